//! A registry of one image that answers as badly as a test wants.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use super::Layer;
use crate::digest::sha256;

/// What goes wrong when a blob is asked for.
#[derive(Clone, Debug)]
pub(super) enum Fault {
    /// So many answers end after so many bytes of the blob.
    Cut { answers: usize, after: usize },
    /// Every answer stays silent after so many bytes.
    Stall { after: usize },
    /// The bodies of all answers to paths with these words come byte by byte and never end in time.
    Dribble(&'static str),
    /// Ranges are answered with the whole blob.
    NoRanges,
    /// Ranges are answered with another range.
    WrongRange,
    /// The last byte is another.
    LastByte,
    /// These bytes come for a layer, whatever was asked for.
    Instead(Vec<u8>),
    /// More comes than was announced.
    Surplus,
    /// The blob is elsewhere.
    Redirect(String),
    /// A token is needed.
    Token,
    /// A token is needed, and whoever asks for one is sent elsewhere.
    TokenElsewhere(String),
    /// This user and password are needed.
    Login(String),
    /// So many answers to anything say that it is too much, with this header.
    Busy { answers: usize, header: &'static str },
}

pub(super) struct RegistryDouble {
    port: u16,
    /// Who vouches for it, if it speaks TLS.
    pub(super) authority: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

#[derive(Default)]
struct State {
    documents: HashMap<String, (String, Vec<u8>)>,
    faults: Vec<Fault>,
    requests: Vec<String>,
    ranges: Vec<String>,
    forms: Vec<String>,
}

impl RegistryDouble {
    /// Serves an image of these layers as `app:v1`.
    pub(super) async fn with(layers: &[Layer]) -> Self {
        Self::serve(layers, None, String::new()).await
    }

    /// The same with TLS, and a certificate that no public authority vouches for.
    pub(super) async fn with_tls(layers: &[Layer]) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap().self_signed(&key).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
            .unwrap();
        Self::serve(layers, Some(Arc::new(config).into()), certificate.pem()).await
    }

    async fn serve(layers: &[Layer], tls: Option<TlsAcceptor>, authority: String) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(Mutex::new(State::default()));
        let server = tokio::spawn({
            let state = state.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let (state, tls) = (state.clone(), tls.clone());
                    tokio::spawn(async move {
                        match tls {
                            Some(tls) => answer(tls.accept(stream).await.ok()?, state, port).await,
                            None => answer(stream, state, port).await,
                        }
                    });
                }
            }
        });
        let registry = Self { port, authority, state, server };
        registry.push(layers);
        registry
    }

    pub(super) fn with_fault(self, fault: Fault) -> Self {
        self.state.lock().unwrap().faults.push(fault);
        self
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    pub(super) fn reference(&self) -> String {
        format!("{}/app:v1", self.host())
    }

    /// The request lines and `Authorization` headers so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.state.lock().unwrap().requests.clone()
    }

    /// The `Range` headers so far.
    pub(super) fn ranges(&self) -> Vec<String> {
        self.state.lock().unwrap().ranges.clone()
    }

    /// The bodies of the requests so far that had one.
    pub(super) fn forms(&self) -> Vec<String> {
        self.state.lock().unwrap().forms.clone()
    }

    pub(super) fn put(&self, path: &str, media_type: &str, bytes: &[u8]) {
        self.state.lock().unwrap().documents.insert(path.to_owned(), (media_type.to_owned(), bytes.to_vec()));
    }

    fn push(&self, layers: &[Layer]) {
        let blob = |media_type: &str, bytes: &[u8], annotations: &serde_json::Value| {
            self.put(&format!("/v2/app/blobs/{}", sha256(bytes)), media_type, bytes);
            json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len(), "annotations": annotations })
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| &layer.diff_id).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": { "Cmd": ["/bin/sh"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = blob(CONFIG, config.to_string().as_bytes(), &json!({}));
        let layers: Vec<_> =
            layers.iter().map(|layer| blob(&layer.media_type, &layer.blob, &layer.annotations)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        for version in ["v1", &sha256(manifest.as_bytes())] {
            self.put(&format!("/v2/app/manifests/{version}"), media_type, manifest.as_bytes());
        }
    }
}

impl Drop for RegistryDouble {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn answer(stream: impl AsyncRead + AsyncWrite + Unpin, state: Arc<Mutex<State>>, port: u16) -> Option<()> {
    let mut stream = BufReader::new(stream);
    if stream.fill_buf().await.ok()?.first() == Some(&TLS_HANDSHAKE) {
        return None;
    }
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let header = |name: &str| {
        let mut lines = head.iter().filter_map(|line| line.split_once(": "));
        lines.find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.to_owned())
    };
    let path = head.first()?.split(' ').nth(1)?.to_owned();
    let authorization = header("authorization");
    let mut form = vec![0; header("content-length").and_then(|length| length.parse().ok()).unwrap_or(0)];
    stream.read_exact(&mut form).await.ok()?;
    let (response, rest) = {
        let mut state = state.lock().unwrap();
        state.ranges.extend(header("range"));
        state.forms.extend(Some(String::from_utf8(form).ok()?).filter(|form| !form.is_empty()));
        state.requests.push(format!("{path} {}", authorization.as_deref().unwrap_or("-")));
        respond(&mut state, &path, header("range"), authorization, port)
    };
    stream.write_all(&response).await.ok()?;
    stream.flush().await.ok()?;
    match rest {
        Rest::Nothing => {}
        // Until the other side gives up.
        Rest::Silence => {
            let mut line = String::new();
            stream.read_line(&mut line).await.ok()?;
        }
        Rest::Dribble(body) => {
            let mut ticks = tokio::time::interval(DRIP);
            for byte in body {
                ticks.tick().await;
                stream.write_all(&[byte]).await.ok()?;
                stream.flush().await.ok()?;
            }
        }
    }
    Some(())
}

/// What follows an answer.
enum Rest {
    Nothing,
    Silence,
    Dribble(Vec<u8>),
}

fn respond(
    state: &mut State,
    path: &str,
    range: Option<String>,
    authorization: Option<String>,
    port: u16,
) -> (Vec<u8>, Rest) {
    let head = |status: &str, rest: &str, length: usize| {
        format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n{rest}\r\n").into_bytes()
    };
    for fault in &mut state.faults {
        if let Fault::Busy { answers, header } = fault
            && *answers > 0
        {
            *answers -= 1;
            return (head("429 Too Many Requests", header, 0), Rest::Nothing);
        }
    }
    let faults = state.faults.clone();
    if path.starts_with("/token") {
        let elsewhere = |fault: &Fault| match fault {
            Fault::TokenElsewhere(to) => Some(format!("Location: {to}{path}\r\n")),
            _ => None,
        };
        if let Some(location) = faults.iter().find_map(elsewhere) {
            return (head("307 Temporary Redirect", &location, 0), Rest::Nothing);
        }
        let body = json!({ "token": format!("for {}", authorization.as_deref().unwrap_or("anybody")) }).to_string();
        return ([head("200 OK", "", body.len()), body.into_bytes()].concat(), Rest::Nothing);
    }
    let token = |fault: &Fault| matches!(fault, Fault::Token | Fault::TokenElsewhere(_));
    if faults.iter().any(token) && authorization.is_none() {
        let challenge = format!("WWW-Authenticate: Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\"\r\n");
        return (head("401 Unauthorized", &challenge, 0), Rest::Nothing);
    }
    let refused = |fault: &Fault| match fault {
        Fault::Login(login) => authorization != Some(format!("Basic {}", STANDARD.encode(login))),
        _ => false,
    };
    if faults.iter().any(refused) {
        return (head("401 Unauthorized", "WWW-Authenticate: Basic realm=\"r\"\r\n", 0), Rest::Nothing);
    }
    let Some((media_type, mut bytes)) = state.documents.get(path).cloned() else {
        return (head("404 Not Found", "", 0), Rest::Nothing);
    };
    let content_type = format!("Content-Type: {media_type}\r\n");
    if faults.iter().any(|fault| matches!(fault, Fault::Dribble(words) if path.contains(words))) {
        return (head("200 OK", &content_type, bytes.len()), Rest::Dribble(bytes));
    }
    // Only layers are spoilt: the configuration must arrive for a test to get that far.
    if !path.contains("/blobs/") || media_type == CONFIG {
        return ([head("200 OK", &content_type, bytes.len()), bytes].concat(), Rest::Nothing);
    }

    let mut start = range.and_then(|range| range.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let mut shown = start.unwrap_or(0);
    for fault in &faults {
        match fault {
            Fault::NoRanges => start = None,
            Fault::WrongRange => shown = 0,
            Fault::LastByte => *bytes.last_mut().unwrap() ^= 1,
            Fault::Instead(other) => bytes.clone_from(other),
            Fault::Surplus => bytes.push(0),
            Fault::Redirect(to) => {
                let location = format!("Location: {to}{path}\r\n");
                return (head("307 Temporary Redirect", &location, 0), Rest::Nothing);
            }
            _ => {}
        }
    }
    let total = bytes.len();
    bytes.drain(..start.unwrap_or(0));
    let (status, rest) = match start {
        Some(_) => ("206 Partial Content", format!("Content-Range: bytes {shown}-{}/{total}\r\n", total - 1)),
        None => ("200 OK", content_type),
    };
    let head = head(status, &rest, bytes.len());
    for fault in &mut state.faults {
        match fault {
            Fault::Cut { answers, after } if *answers > 0 => {
                *answers -= 1;
                bytes.truncate(*after);
            }
            Fault::Stall { after } => {
                bytes.truncate(*after);
                return ([head, bytes].concat(), Rest::Silence);
            }
            _ => {}
        }
    }
    ([head, bytes].concat(), Rest::Nothing)
}

const DRIP: Duration = Duration::from_millis(10);
/// How a client begins that expects TLS.
const TLS_HANDSHAKE: u8 = 0x16;
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
