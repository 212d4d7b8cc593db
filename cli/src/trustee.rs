//! A Trustee over HTTP, as its administrator sees it.

mod token;

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{ETAG, HeaderMap, HeaderName, IF_MATCH};
use reqwest::{Body, Certificate, Client, Method};
use wire::rcar::ErrorInformation;
use zeroize::Zeroizing;

/// A Trustee and the administrator's token for it.
pub struct Trustee {
    url: String,
    client: Client,
    token: Option<Zeroizing<String>>,
}

impl Trustee {
    /// A Trustee at `url`. Without a token file, `~/.trustee/admin-token` is used if it is there.
    ///
    /// # Errors
    /// [`Error::File`], [`Error::Client`]. Nothing is connected yet.
    pub fn new(url: &str, cert_file: Option<&Path>, token_file: Option<&Path>) -> Result<Self, Error> {
        let fallback = std::env::home_dir().map(|home| home.join(".trustee/admin-token")).filter(|path| path.exists());
        let token = match token_file.map(Path::to_owned).or(fallback) {
            Some(path) => Some(token::read_file(&path)?),
            None => None,
        };
        Ok(Self { token, ..Self::anonymous(url, cert_file)? })
    }

    /// A Trustee at `url`, with a token signed on the spot by the administrator's private key: `admin.key` of
    /// `trustee setup`, Ed25519 in PKCS#8 PEM. The token is valid for 5 minutes.
    ///
    /// # Errors
    /// As [`Trustee::new`], and [`Error::Key`] for any other key. Nothing is connected yet.
    pub fn with_private_key(url: &str, cert_file: Option<&Path>, key_file: &Path) -> Result<Self, Error> {
        Ok(Self { token: Some(token::sign(key_file)?), ..Self::anonymous(url, cert_file)? })
    }

    /// A Trustee at `url`, as guests see it.
    ///
    /// # Errors
    /// [`Error::Url`], [`Error::Certificates`], [`Error::Client`]. Nothing is connected yet.
    pub fn anonymous(url: &str, cert_file: Option<&Path>) -> Result<Self, Error> {
        let parsed = reqwest::Url::parse(url).map_err(|e| Error::Url { url: url.to_owned(), cause: e.to_string() })?;
        if !matches!(parsed.scheme(), "http" | "https") || !parsed.has_host() {
            return Err(Error::Url { url: url.to_owned(), cause: "it is not one of http or https".to_owned() });
        }
        let mut builder = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        if let Some(path) = cert_file {
            let unusable = |cause: String| Error::Certificates { path: path.to_owned(), cause };
            let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|e| unusable(chain(&e)))?;
            if certificates.is_empty() {
                return Err(unusable("no certificate in it".to_owned()));
            }
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|e| Error::Client(chain(&e)))?;
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client, token: None })
    }

    /// Sends a request without a body below `/kbs/v0/` and returns the answer's.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Refused`] with what the Trustee says about it.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>, Error> {
        Ok(self.call(Method::GET, path, Vec::new(), None).await?.body)
    }

    /// Sends a request below `/kbs/v0/`; a change is made only if what it changes still has the ETag `if_match`.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Refused`] with what the Trustee says about it.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        body: Vec<u8>,
        if_match: Option<&str>,
    ) -> Result<Answer, Error> {
        let condition = if_match.map(|etag| (IF_MATCH, format!("\"{etag}\"")));
        let Response { headers, body } = self.send(method, path, body, condition).await?;
        let etag = headers.get(ETAG).and_then(|etag| etag.to_str().ok());
        Ok(Answer { etag: etag.map(|etag| etag.trim_matches('"').to_owned()), body })
    }

    /// Sends a request below `/kbs/v0/`, with one more header.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Refused`] with what the Trustee says about it.
    pub async fn send(
        &self,
        method: Method,
        path: &str,
        body: impl Into<Body>,
        header: Option<(HeaderName, String)>,
    ) -> Result<Response, Error> {
        let url = format!("{}/kbs/v0/{path}", self.url);
        let unreachable = |e: reqwest::Error| Error::Unreachable { url: url.clone(), cause: chain(&e.without_url()) };
        let mut request = self.client.request(method, &url).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.as_str());
        }
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let response = request.send().await.map_err(unreachable)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(unreachable)?.to_vec();
        if status.is_success() {
            return Ok(Response { headers, body });
        }
        let detail = match serde_json::from_slice::<ErrorInformation>(&body) {
            Ok(information) => format!("{}: {}", information.variant(), information.detail),
            Err(_) => {
                let text = String::from_utf8_lossy(&body);
                let words: Vec<&str> = text.split_whitespace().collect();
                words.join(" ").chars().take(500).collect()
            }
        };
        Err(Error::Refused { url, status: status.as_u16(), detail })
    }
}

/// What a Trustee answered, with all of its headers.
pub struct Response {
    /// Its headers.
    pub headers: HeaderMap,
    /// Its body.
    pub body: Vec<u8>,
}

/// What a Trustee answered.
pub struct Answer {
    /// The body.
    pub body: Vec<u8>,
    /// What to name in a later condition.
    pub etag: Option<String>,
}

/// Why a Trustee did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{} can't be read: {source}; next: check the path and its permissions", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("the Trustee's URL {url:?} can't be used: {cause}; next: write it as https://HOST:PORT")]
    Url { url: String, cause: String },
    #[error("the certificates of {} can't be used: {cause}; next: give certificates in PEM, such as ca.pem of trustee setup", path.display())]
    Certificates { path: PathBuf, cause: String },
    #[error("{} holds no token; next: issue one with trustee admin-token", .0.display())]
    Token(PathBuf),
    #[error("{} can't sign a token: it is no Ed25519 key in PKCS#8 PEM; next: give admin.key of trustee setup", .0.display())]
    Key(PathBuf),
    #[error("the system's certificates can't be used: {0}; next: name the Trustee's certificates")]
    Client(String),
    #[error("{url} can't be reached: {cause}; next: {}", advice(.url, .cause))]
    Unreachable { url: String, cause: String },
    #[error("{url} answered {status}: {detail}; next: {}", next(*.status))]
    Refused { url: String, status: u16, detail: String },
}

fn advice(url: &str, cause: &str) -> &'static str {
    match (url.starts_with("http:"), cause.contains("certificate")) {
        (true, _) => {
            "check the URL; where Trustee serves TLS, as it does unless told otherwise, it begins with https://"
        }
        (_, true) => "trust the ca.pem of this Trustee's setup, and use a URL with a name that its certificate has",
        _ => "check the URL, and that Trustee runs and serves TLS there",
    }
}

fn next(status: u16) -> &'static str {
    match status {
        400 | 413 => "correct what was sent",
        401 => "give a valid token with --admin-token-file; trustee admin-token issues one",
        403 => "give the token of this Trustee's setup; [admin] in its configuration says whose it takes",
        412 => "read it again, and repeat the change with the new ETag",
        404 | 405 => "check the name, and that the URL is that of a Trustee",
        _ => "look at Trustee's log",
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text = format!("{text}: {error}");
        next = error.source();
    }
    text
}

const TIMEOUT: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_t_be_used_is_named_before_anything_is_sent() {
        // Another test of this process may have installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, content: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, content).unwrap();
            path
        };
        let (empty, random, missing) =
            (file("empty", b" \n"), file("random", &[0xff; 30]), folder.path().join("missing"));
        let lines = file("lines", b"a token\nand more");
        let url = "https://127.0.0.1:1";
        for (url, cert_file, token_file, expected) in [
            ("nonsense", None, None, "URL \"nonsense\""),
            ("ftp://a", None, None, "URL \"ftp://a\""),
            (url, Some(&empty), None, "no certificate in it"),
            (url, Some(&missing), None, "missing can't be read"),
            (url, None, Some(&empty), "empty holds no token"),
            (url, None, Some(&random), "random holds no token"),
            (url, None, Some(&lines), "lines holds no token"),
            (url, None, Some(&missing), "missing can't be read"),
        ] {
            let outcome = Trustee::new(url, cert_file.map(PathBuf::as_path), token_file.map(PathBuf::as_path));
            let error = outcome.err().unwrap().to_string();
            assert!(error.contains(expected) && error.contains("; next: "), "{error}");
        }
    }

    #[test]
    fn advice_fits_the_cause() {
        assert!(advice("http://a", "connection refused").contains("https://"));
        assert!(advice("https://a", "invalid peer certificate: UnknownIssuer").contains("ca.pem"));
        assert!(next(401).contains("--admin-token-file"));
    }
}
