//! A proxy for HTTP and for tunnels, which tells who asked for what.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

pub(super) struct ProxyDouble {
    port: u16,
    requests: Arc<Mutex<Vec<String>>>,
    server: JoinHandle<()>,
}

impl ProxyDouble {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let requests = Arc::new(Mutex::new(Vec::new()));
        let server = tokio::spawn({
            let requests = requests.clone();
            async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(forward(stream, requests.clone()));
                }
            }
        });
        Self { port, requests, server }
    }

    pub(super) fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Method, target and `Proxy-Authorization` of each request so far.
    pub(super) fn requests(&self) -> Vec<String> {
        self.requests.lock().unwrap().clone()
    }
}

impl Drop for ProxyDouble {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn forward(stream: TcpStream, requests: Arc<Mutex<Vec<String>>>) -> Option<()> {
    let mut stream = BufReader::new(stream);
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.ok().filter(|count| *count > 0)?;
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let mut first = head.first()?.split(' ');
    let (method, target) = (first.next()?.to_owned(), first.next()?.to_owned());
    let login = head.iter().find_map(|line| {
        line.to_ascii_lowercase()
            .strip_prefix("proxy-authorization: ")
            .map(|_| line.split_once(": ").map(|(_, value)| value.to_owned()).unwrap_or_default())
    });
    requests.lock().unwrap().push(format!("{method} {target} {}", login.as_deref().unwrap_or("-")));
    if method == "CONNECT" {
        let mut server = TcpStream::connect(&target).await.ok()?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await.ok()?;
        copy_bidirectional(&mut stream, &mut server).await.ok()?;
        return Some(());
    }
    let (host, path) = target.strip_prefix("http://")?.split_once('/')?;
    let mut server = TcpStream::connect(host).await.ok()?;
    let rest = head[1..].join("\r\n");
    server.write_all(format!("{method} /{path} HTTP/1.1\r\n{rest}\r\n\r\n").as_bytes()).await.ok()?;
    copy_bidirectional(&mut stream, &mut server).await.ok()?;
    Some(())
}
