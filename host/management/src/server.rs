//! The socket in a pod's folder: HTTP/1.1, for root alone.

use std::convert::Infallible;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{once, unfold};
use futures::{Stream, StreamExt as _};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Response, StatusCode};
use hyper_util::rt::TokioIo;
use sandbox::Console;
use tokio::net::UnixListener;
use tokio::sync::broadcast::error::RecvError;

use crate::{Output, State};

/// Whoever owns a pod, and answers for it.
#[async_trait]
pub trait Owner: Send + Sync + 'static {
    /// What it knows.
    fn state(&self) -> State;

    /// The guest's console.
    fn console(&self) -> Console;

    /// What a container of this id or name said, if there is one.
    fn output(&self, container: &str) -> Option<Output>;

    /// Metrics in Prometheus' text form.
    async fn metrics(&self) -> String;

    /// Where the guest's agent is reached.
    fn agent_url(&self) -> String;

    /// Any other request; nothing if there is no such route.
    async fn answer(&self, _request: &Request) -> Option<Answer> {
        None
    }
}

/// A request beyond those that every owner answers.
pub struct Request {
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// Its query, not yet decoded.
    pub query: String,
    /// Its body, of at most 64 KiB.
    pub body: Bytes,
}

/// An answer's status and text.
pub type Answer = (StatusCode, String);

/// Begins to serve in a pod's folder. Whoever drops the future ends it.
///
/// # Errors
/// Where nothing can listen there.
pub fn serve<O: Owner>(folder: &Path, owner: Arc<O>) -> io::Result<impl Future<Output = ()> + Send + use<O>> {
    let path = folder.join(SOCKET);
    let listener = UnixListener::bind(&path)?;
    fs::set_permissions(&path, Permissions::from_mode(0o600))?;
    Ok(async move {
        let mut connections = tokio::task::JoinSet::new();
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "a management connection is lost");
                    // Where descriptors are short, the next attempt would fail at once.
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            let owner = Arc::clone(&owner);
            connections.spawn(async move {
                let service = service_fn(|request| {
                    let owner = Arc::clone(&owner);
                    async move { Ok::<_, Infallible>(answer(&*owner, request).await) }
                });
                if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await {
                    tracing::debug!(%error, "a management connection ended");
                }
            });
            while connections.try_join_next().is_some() {}
        }
    })
}

type Body = UnsyncBoxBody<Bytes, Infallible>;

async fn answer(owner: &impl Owner, request: hyper::Request<Incoming>) -> Response<Body> {
    let (head, body) = request.into_parts();
    let (path, query) = (head.uri.path(), head.uri.query().unwrap_or_default());
    let of_query = |name: &str| {
        form_urlencoded::parse(query.as_bytes()).find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
    };
    let follow = of_query("follow").is_some_and(|value| value == "1");
    if head.method == Method::GET {
        match path {
            "/state" => {
                // Its maps have names for keys.
                let state = serde_json::to_vec(&owner.state()).unwrap_or_default();
                return whole(StatusCode::OK, JSON, state);
            }
            "/console" if follow => return stream(console(&owner.console())),
            "/console" => {
                let lines = owner.console().lines().into_iter().map(|line| format!("{}\n", line.text));
                return whole(StatusCode::OK, PLAIN, lines.collect::<String>());
            }
            "/output" => {
                let container = of_query("container").unwrap_or_default();
                return match owner.output(&container) {
                    Some(output) if follow => stream(output.follow()),
                    Some(output) => whole(StatusCode::OK, PLAIN, output.kept()),
                    None => whole(StatusCode::NOT_FOUND, PLAIN, format!("there is no container {container:?}\n")),
                };
            }
            "/metrics" => return whole(StatusCode::OK, METRICS, owner.metrics().await),
            "/agent-url" => return whole(StatusCode::OK, PLAIN, owner.agent_url()),
            _ => {}
        }
    } else if OWN.contains(&path) {
        let mut response = whole(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET\n");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        return response;
    }
    let body = match Limited::new(body, LARGEST).collect().await {
        Ok(body) => body.to_bytes(),
        Err(_) => return whole(StatusCode::PAYLOAD_TOO_LARGE, PLAIN, "at most 64 KiB\n"),
    };
    let request = Request { path: path.to_owned(), query: query.to_owned(), method: head.method.clone(), body };
    match owner.answer(&request).await {
        Some((status, text)) => whole(status, PLAIN, text),
        None => whole(StatusCode::NOT_FOUND, PLAIN, format!("there are {}\n", OWN.join(", "))),
    }
}

/// Lines that are there and lines to come.
fn console(console: &Console) -> impl Stream<Item = Bytes> + Send + use<> {
    let (lines, coming) = console.follow();
    let lines: String = lines.into_iter().map(|line| format!("{}\n", line.text)).collect();
    let coming = unfold(coming, |mut coming| async move {
        let text = match coming.recv().await {
            Ok(line) => format!("{}\n", line.text),
            Err(RecvError::Lagged(lost)) => format!("[{lost} lines are lost]\n"),
            Err(RecvError::Closed) => return None,
        };
        Some((Bytes::from(text), coming))
    });
    once(async move { Bytes::from(lines) }).chain(coming)
}

fn whole(status: StatusCode, kind: &'static str, text: impl Into<Bytes>) -> Response<Body> {
    respond(status, kind, Full::new(text.into()).boxed_unsync())
}

fn stream(pieces: impl Stream<Item = Bytes> + Send + 'static) -> Response<Body> {
    respond(StatusCode::OK, PLAIN, StreamBody::new(pieces.map(|piece| Ok(Frame::data(piece)))).boxed_unsync())
}

fn respond(status: StatusCode, kind: &'static str, body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

/// The socket's name in a pod's folder.
pub const SOCKET: &str = "shim-monitor.sock";
const OWN: [&str; 5] = ["/state", "/console", "/output", "/metrics", "/agent-url"];
const LARGEST: usize = 64 << 10;
const PAUSE: Duration = Duration::from_millis(100);
const PLAIN: &str = "text/plain; charset=utf-8";
const METRICS: &str = "text/plain; version=0.0.4";
const JSON: &str = "application/json";

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::UnixStream;

    struct Host {
        console: Console,
        output: Output,
    }

    #[async_trait]
    impl Owner for Host {
        fn state(&self) -> State {
            State { machine: Some(42), ..State::default() }
        }

        fn console(&self) -> Console {
            self.console.clone()
        }

        fn output(&self, container: &str) -> Option<Output> {
            (container == "a b").then(|| self.output.clone())
        }

        async fn metrics(&self) -> String {
            "up 1\n".to_owned()
        }

        fn agent_url(&self) -> String {
            "vsock://3:1024".to_owned()
        }

        async fn answer(&self, request: &Request) -> Option<Answer> {
            let text = format!("{} {} {:?}", request.method, request.query, request.body);
            (request.path == "/volume").then_some((StatusCode::CREATED, text))
        }
    }

    #[tokio::test]
    async fn whoever_asks_gets_what_the_owner_knows() {
        let lab = Lab::new().await;
        let mode = fs::metadata(lab.folder.path().join(SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        for (request, status, text) in [
            ("GET /state", "200", "\"machine\":42"),
            ("GET /console", "200", "booting\nready\n"),
            ("GET /output?container=a+b", "200", "hello"),
            ("GET /output?container=c", "404", "no container \"c\""),
            ("GET /metrics", "200", "up 1\n"),
            ("GET /agent-url", "200", "vsock://3:1024"),
            ("POST /metrics", "405", "only GET"),
            ("GET /none", "404", "there are /state"),
            ("POST /volume?path=x", "201", "POST path=x b\"\""),
        ] {
            let answer = lab.ask(request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {answer}");
            assert!(answer.contains(text), "{request}: {answer}");
        }
    }

    #[tokio::test]
    async fn a_console_and_an_output_are_followed_to_their_end() {
        let lab = Lab::new().await;
        let follow = |path: &'static str| lab.ask(path);
        let (console, output, ()) =
            tokio::join!(follow("GET /console?follow=1"), follow("GET /output?container=a%20b&follow=1"), async {
                lab.owner.output.push(b" world");
                lab.owner.output.end();
                // The guest prints a last line, and ends.
                lab.owner.console.capture(&b"bye\n"[..]).await;
            });
        assert!(console.contains("ready\n") && console.contains("bye\n"), "{console}");
        assert!(output.contains("hello") && output.contains(" world"), "{output}");
    }

    struct Lab {
        folder: tempfile::TempDir,
        owner: Arc<Host>,
        _guest: tokio::io::DuplexStream,
        _server: tokio::task::JoinHandle<()>,
    }

    impl Lab {
        async fn new() -> Self {
            let (folder, console, output) = (tempfile::tempdir().unwrap(), Console::new(), Output::default());
            // A console ends with its input, and this one is to go on.
            let (mut guest, input) = tokio::io::duplex(64);
            let captured = console.clone();
            tokio::spawn(async move { captured.capture(input).await });
            guest.write_all(b"booting\nready\n").await.unwrap();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(20);
            console.wait_for(|line| line == "ready", deadline).await.unwrap();
            output.begin();
            output.push(b"hello");
            let owner = Arc::new(Host { console, output });
            let server = tokio::spawn(serve(folder.path(), Arc::clone(&owner)).unwrap());
            Self { folder, owner, _guest: guest, _server: server }
        }

        async fn ask(&self, request: &str) -> String {
            let mut stream = UnixStream::connect(self.folder.path().join(SOCKET)).await.unwrap();
            let request = format!("{request} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
            stream.write_all(request.as_bytes()).await.unwrap();
            let mut answer = String::new();
            let read = stream.read_to_string(&mut answer);
            tokio::time::timeout(Duration::from_secs(20), read).await.expect("it takes for ever").unwrap();
            answer
        }
    }
}
