//! One call of a cloud's or vendor's service, with a bounded answer.

use std::sync::Arc;
use std::time::Duration;

use reqwest::Client;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;

use crate::Error;

/// A call.
#[derive(Clone, Copy)]
pub(crate) enum Request<'a> {
    Get { url: &'a str, headers: &'a [(&'static str, &'static str)] },
    Post { url: &'a str, body: &'a Value },
}

impl Request<'_> {
    fn url(&self) -> &str {
        match self {
            Self::Get { url, .. } | Self::Post { url, .. } => url,
        }
    }
}

/// Makes the call and reads at most `limit` bytes of the answer. Blocks.
///
/// # Errors
/// [`Error::Service`] for no answer in time, another status than 2xx, or a longer answer.
pub(crate) fn fetch(request: Request<'_>, limit: usize) -> Result<Vec<u8>, Error> {
    let failed = |reason: String| Error::Service { url: request.url().to_owned(), reason };
    // A thread of its own: the caller's may belong to a runtime, which must not be blocked on from inside.
    let answer = std::thread::scope(|scope| scope.spawn(|| blocking(request, limit)).join());
    answer.unwrap_or_else(|_| Err("the call ended early".to_owned())).map_err(failed)
}

fn blocking(request: Request<'_>, limit: usize) -> Result<Vec<u8>, String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(|e| e.to_string())?;
    runtime.block_on(call(request, limit))
}

async fn call(request: Request<'_>, limit: usize) -> Result<Vec<u8>, String> {
    let client = Client::builder()
        .tls_backend_preconfigured(tls()?)
        // The environment comes from the kernel's command line, which the host writes.
        .no_proxy()
        .redirect(reqwest::redirect::Policy::none())
        .timeout(DEADLINE)
        .build()
        .map_err(chain)?;
    let call = match request {
        Request::Get { url, headers } => {
            headers.iter().fold(client.get(url), |call, (name, value)| call.header(*name, *value))
        }
        Request::Post { url, body } => {
            client.post(url).header("Content-Type", "application/json").body(body.to_string())
        }
    };
    let mut response = call.send().await.map_err(chain)?;
    if !response.status().is_success() {
        return Err(format!("it answered {}", response.status()));
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(chain)? {
        if body.len() + chunk.len() > limit {
            return Err(format!("its answer is longer than {limit} bytes"));
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

fn tls() -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()));
    let builder = builder.with_safe_default_protocol_versions().map_err(|e| e.to_string())?;
    Ok(builder.with_root_certificates(roots).with_no_client_auth())
}

/// An error with all of its causes, which say what the error itself does not.
fn chain(error: reqwest::Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

const DEADLINE: Duration = Duration::from_secs(15);

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::io::{Read as _, Write as _};
    use std::net::{SocketAddr, TcpListener};
    use std::sync::Mutex;

    /// A service that answers its calls one by one with what it was given.
    pub(crate) struct Server {
        address: SocketAddr,
        requests: Arc<Mutex<Vec<String>>>,
    }

    impl Server {
        pub(crate) fn start(answers: Vec<(u16, Vec<u8>)>) -> Self {
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = listener.local_addr().unwrap();
            let requests = Arc::<Mutex<Vec<String>>>::default();
            let seen = Arc::clone(&requests);
            std::thread::spawn(move || {
                for (status, body) in answers {
                    let (mut connection, _) = listener.accept().unwrap();
                    let mut request = Vec::new();
                    while !is_whole(&request) {
                        let mut buffer = [0; 4096];
                        match connection.read(&mut buffer).unwrap() {
                            0 => break,
                            read => request.extend_from_slice(&buffer[..read]),
                        }
                    }
                    seen.lock().unwrap().push(String::from_utf8_lossy(&request).into_owned());
                    let head =
                        format!("HTTP/1.1 {status} X\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
                    // A client that does not want the whole answer hangs up.
                    let _ = connection.write_all(&[head.as_bytes(), &body].concat());
                }
            });
            Self { address, requests }
        }

        pub(crate) fn url(&self) -> String {
            format!("http://{}", self.address)
        }

        pub(crate) fn requests(&self) -> Vec<String> {
            self.requests.lock().unwrap().clone()
        }
    }

    fn is_whole(request: &[u8]) -> bool {
        let text = String::from_utf8_lossy(request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
        let length =
            head.to_ascii_lowercase().lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
        body.len() >= length.unwrap_or(0)
    }

    #[test]
    fn an_answer_comes_as_it_is_and_the_header_goes_along() {
        let server = Server::start(vec![(200, b"answer".to_vec())]);
        let request = Request::Get { url: &format!("{}/path", server.url()), headers: &[("Metadata", "true")] };
        assert_eq!(fetch(request, 6).unwrap(), b"answer");
        assert!(server.requests()[0].to_ascii_lowercase().contains("metadata: true"));
    }

    #[test]
    fn a_refusal_or_an_answer_too_long_is_an_error_with_the_url() {
        for (status, limit, reason) in [(404, 100, "404"), (302, 100, "302"), (200, 5, "longer than 5")] {
            let server = Server::start(vec![(status, b"answer".to_vec())]);
            let error = fetch(Request::Get { url: &server.url(), headers: &[] }, limit).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains(&server.url()), "{error}");
        }
    }

    #[test]
    fn nobody_there_is_an_error() {
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let error = fetch(Request::Get { url: &format!("http://{address}/"), headers: &[] }, 1).unwrap_err();
        assert!(matches!(error, Error::Service { .. }), "{error}");
    }

    #[test]
    fn a_call_from_inside_a_runtime_works() {
        let server = Server::start(vec![(200, Vec::new())]);
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let body = Value::Null;
        let answer = runtime.block_on(async { fetch(Request::Post { url: &server.url(), body: &body }, 0) });
        assert!(answer.unwrap().is_empty());
    }
}
