//! A Trustee over HTTP, as its administrator sees it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::{Certificate, Client, Method};
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
        let mut builder = Client::builder().timeout(TIMEOUT).redirect(reqwest::redirect::Policy::none());
        if let Some(path) = cert_file {
            let certificates = Certificate::from_pem_bundle(&read(path)?).map_err(|e| Error::Client(chain(&e)))?;
            builder = builder.tls_certs_only(certificates);
        }
        let client = builder.build().map_err(|e| Error::Client(chain(&e)))?;
        let fallback = std::env::home_dir().map(|home| home.join(".trustee/admin-token")).filter(|path| path.exists());
        let token = match token_file.map(Path::to_owned).or(fallback) {
            Some(path) => Some(Zeroizing::new(String::from_utf8_lossy(&read(&path)?).trim().to_owned())),
            None => None,
        };
        Ok(Self { url: url.trim_end_matches('/').to_owned(), client, token })
    }

    /// Sends a request below `/kbs/v0/` and returns the answer's body.
    ///
    /// # Errors
    /// [`Error::Unreachable`]; [`Error::Refused`] with what the Trustee says about it.
    pub async fn call(&self, method: Method, path: &str, body: Vec<u8>) -> Result<Vec<u8>, Error> {
        let url = format!("{}/kbs/v0/{path}", self.url);
        let unreachable = |e: reqwest::Error| Error::Unreachable { url: url.clone(), cause: chain(&e.without_url()) };
        let mut request = self.client.request(method, &url).body(body);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token.as_str());
        }
        let response = request.send().await.map_err(unreachable)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreachable)?.to_vec();
        if status.is_success() {
            return Ok(body);
        }
        let detail = match serde_json::from_slice::<ErrorInformation>(&body) {
            Ok(information) => format!("{}: {}", information.variant(), information.detail),
            Err(_) => String::from_utf8_lossy(&body).chars().take(500).collect(),
        };
        Err(Error::Refused { url, status: status.as_u16(), detail })
    }
}

/// Why a Trustee did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("can't read {}: {source}", path.display())]
    File { path: PathBuf, source: std::io::Error },
    #[error("--url or --cert-file can't be used: {0}")]
    Client(String),
    #[error("{url} can't be reached: {cause}; check --url, and --cert-file for the certificates to trust")]
    Unreachable { url: String, cause: String },
    #[error("{url} answered {status}: {detail}")]
    Refused { url: String, status: u16, detail: String },
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
