//! The workload API as a container calls it.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use wire::rcar::Tee;
use wire::resource::ResourceUri;
use workload_api::{ResourceError, Resources, WorkloadApi};
use zeroize::Zeroizing;

#[tokio::test]
async fn a_resource_comes_as_its_bytes() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    let answer = api.get("/cdh/resource/default/key/1").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\ncontent-type: application/octet-stream\r\n"), "{}", answer.head);
    assert!(answer.head.contains("\r\ncache-control: no-store\r\n"), "{}", answer.head);
    assert_eq!(answer.body, "bytes of kbs:///default/key/1");
}

#[tokio::test]
async fn the_query_is_forwarded() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    let answer = api.get("/cdh/resource/default/key/1?version=2").await;
    assert_eq!(answer.body, "bytes of kbs:///default/key/1?version=2");
}

#[tokio::test]
async fn each_failure_has_its_status_and_says_why() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    for (path, status, text) in [
        ("/cdh/resource/default/key/none", 404, "no such resource"),
        ("/cdh/resource/default/key/denied", 403, "the policy says no"),
        ("/cdh/resource/default/key/later", 503, "connection refused; next: wait"),
        ("/cdh/resource/default/key/broken", 500, "broken"),
        ("/cdh/resource/default/../key", 400, "BAD REQUEST: "),
        ("/cdh/resource/a/%2e%2e/b", 400, "BAD REQUEST: "),
        ("/cdh/resource/a%20b/c/d", 400, "BAD REQUEST: "),
        ("/cdh/resource/", 404, "URL NOT FOUND"),
        ("/aa/token?token_type=kbs", 404, "Attestation Feature Not Enabled"),
        ("/aa/evidence?runtime_data=x", 404, "Attestation Feature Not Enabled"),
        ("/", 404, "URL NOT FOUND"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.starts_with(text), "{path}: {}", answer.body);
    }
}

#[tokio::test]
async fn only_get_is_allowed() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    for path in ["/cdh/resource/default/key/1", "/info"] {
        for method in ["POST", "PUT", "DELETE"] {
            assert_eq!(ask(api.address, method, path).await.status, 405, "{method} {path}");
        }
    }
}

#[tokio::test]
async fn info_names_version_tee_and_feature() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    let answer = api.get("/info").await;
    assert!(answer.head.contains("\r\ncontent-type: application/json\r\n"), "{}", answer.head);
    let info: Value = serde_json::from_str(&answer.body).unwrap();
    assert_eq!(info, json!({ "version": env!("CARGO_PKG_VERSION"), "tee": "sample", "feature": "resource" }));
}

#[tokio::test]
async fn a_peer_from_elsewhere_is_refused() {
    let Some(address) = own_address() else {
        println!("skipped: this machine has no address but loopback");
        return;
    };
    let api = Api::start(Ipv4Addr::UNSPECIFIED).await;
    let elsewhere = SocketAddr::new(address, api.address.port());
    for path in ["/cdh/resource/default/key/1", "/info", "/"] {
        let answer = ask(elsewhere, "GET", path).await;
        assert_eq!((answer.status, answer.body.as_str()), (403, "Forbidden"));
    }
}

#[tokio::test]
async fn a_client_that_was_led_here_is_refused() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    for (host, status) in [
        ("127.0.0.1:8006", 200),
        ("127.0.0.1", 200),
        ("localhost:8006", 200),
        ("[::1]:8006", 200),
        ("registry.example:8006", 403),
        ("127.0.0.1.example", 403),
        ("10.0.2.15:8006", 403),
        ("", 403),
    ] {
        let answer = ask_as(host, api.address, "GET", "/cdh/resource/default/key/1").await;
        assert_eq!(answer.status, status, "{host}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let api = Api::start(Ipv4Addr::LOCALHOST).await;
    let answer = api.get(&format!("/{}", "x".repeat(64 << 10))).await;
    assert!([0, 414, 431].contains(&answer.status), "{} {}", answer.status, answer.body);
}

#[tokio::test]
async fn many_connections_are_served_in_turn() {
    let api = Arc::new(Api::start(Ipv4Addr::LOCALHOST).await);
    let calls: Vec<_> = (0..300)
        .map(|_| {
            let api = Arc::clone(&api);
            tokio::spawn(async move { api.get("/cdh/resource/default/key/1").await })
        })
        .collect();
    for call in calls {
        assert_eq!(call.await.unwrap().status, 200);
    }
}

/// Answers by the tag of what it is asked for.
struct Broker;

#[async_trait]
impl Resources for Broker {
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, ResourceError> {
        match uri.path.rsplit('/').next().unwrap() {
            "none" => Err(ResourceError::NotFound("no such resource".to_owned())),
            "denied" => Err(ResourceError::Refused("the policy says no".to_owned())),
            "later" => Err(ResourceError::Unreachable("connection refused; next: wait".to_owned())),
            "broken" => Err(ResourceError::Other("broken".to_owned())),
            _ => Ok(Zeroizing::new(format!("bytes of {uri}").into_bytes())),
        }
    }
}

struct Api {
    address: SocketAddr,
}

impl Api {
    async fn start(ip: Ipv4Addr) -> Self {
        let api = WorkloadApi::bind((ip, 0).into(), Tee::Sample, Arc::new(Broker)).await.unwrap();
        let address = (Ipv4Addr::LOCALHOST, api.local_addr().unwrap().port()).into();
        tokio::spawn(api.serve());
        Self { address }
    }

    async fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path).await
    }
}

struct Answer {
    /// 0 if the connection ended without an answer.
    status: u16,
    head: String,
    body: String,
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    ask_as("127.0.0.1:8006", address, method, path).await
}

/// Sends the path as it is, which a client library would clean first.
async fn ask_as(host: &str, address: SocketAddr, method: &str, path: &str) -> Answer {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("{method} {path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
    // The server may answer and close before it has read all.
    let _ = stream.write_all(request.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    let answer = String::from_utf8(answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_default();
    let status = head.split(' ').nth(1).map_or(0, |status| status.parse().unwrap());
    Answer { status, head: format!("{head}\r\n"), body: body.to_owned() }
}

/// The address from which this machine would reach others; nothing is sent.
fn own_address() -> Option<std::net::IpAddr> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|ip| !ip.is_loopback() && !ip.is_unspecified())
}
