//! One kept HTTP/1.1 connection, plain or over TLS.

use std::sync::Arc;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::header::{CONTENT_TYPE, HOST, HeaderName};
use hyper::{Request, Response, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// A server under load.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    tls: Option<TlsConnector>,
}

/// A connection to it.
pub struct Connection {
    target: Target,
    sender: Option<SendRequest<Full<Bytes>>>,
}

/// What a server answered.
pub struct Answer {
    /// Its status.
    pub status: StatusCode,
    /// The session's cookie, if it set one.
    pub cookie: Option<String>,
    /// The body.
    pub body: Bytes,
}

impl Target {
    /// A server by its URL, whose certificate is signed by one of those in `ca` (PEM).
    ///
    /// # Panics
    /// If the URL has no host, or TLS is asked for and `ca` holds no certificate.
    pub fn new(url: &str, ca: Option<&[u8]>) -> Self {
        let uri: Uri = url.parse().unwrap();
        let tls = (uri.scheme_str() == Some("https")).then(|| {
            let mut roots = RootCertStore::empty();
            for certificate in CertificateDer::pem_slice_iter(ca.expect("https needs a CA")) {
                roots.add(certificate.unwrap()).unwrap();
            }
            let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
            let config = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
            TlsConnector::from(Arc::new(config.with_root_certificates(roots).with_no_client_auth()))
        });
        let port = uri.port_u16().unwrap_or(if tls.is_some() { 443 } else { 80 });
        Self { host: uri.host().unwrap().to_owned(), port, tls }
    }

    /// A connection, opened at its first request.
    pub fn connection(&self) -> Connection {
        Connection { target: self.clone(), sender: None }
    }

    async fn open(&self) -> Result<SendRequest<Full<Bytes>>, Broken> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await.map_err(|_| Broken)?;
        let _ = stream.set_nodelay(true);
        match &self.tls {
            None => serve(TokioIo::new(stream)).await,
            Some(tls) => {
                let name = ServerName::try_from(self.host.clone()).map_err(|_| Broken)?;
                serve(TokioIo::new(tls.connect(name, stream).await.map_err(|_| Broken)?)).await
            }
        }
    }
}

/// The connection was cut, or could not be opened.
#[derive(Clone, Copy, Debug)]
pub struct Broken;

impl Connection {
    /// Sends a request and reads the answer. A connection that was cut is opened anew for the next request.
    ///
    /// # Errors
    /// [`Broken`] if there was no whole answer.
    pub async fn send(
        &mut self,
        method: &str,
        path: &str,
        header: Option<(HeaderName, &str)>,
        body: impl Into<Bytes>,
    ) -> Result<Answer, Broken> {
        let mut sender = match self.sender.take() {
            Some(sender) => sender,
            None => self.target.open().await?,
        };
        let mut request = Request::builder().method(method).uri(path).header(HOST, &self.target.host);
        request = request.header(CONTENT_TYPE, "application/json");
        if let Some((name, value)) = header {
            request = request.header(name, value);
        }
        let request = request.body(Full::new(body.into())).unwrap();
        sender.ready().await.map_err(|_| Broken)?;
        let response: Response<_> = sender.send_request(request).await.map_err(|_| Broken)?;
        let cookie = response.headers().get(hyper::header::SET_COOKIE).and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|value| value.split(';').next()).map(str::to_owned);
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|_| Broken)?.to_bytes();
        self.sender = Some(sender);
        Ok(Answer { status, cookie, body })
    }
}

async fn serve<S>(stream: S) -> Result<SendRequest<Full<Bytes>>, Broken>
where
    S: hyper::rt::Read + hyper::rt::Write + Unpin + Send + 'static,
{
    let (sender, connection) = handshake(stream).await.map_err(|_| Broken)?;
    tokio::spawn(async move { _ = connection.await });
    Ok(sender)
}
