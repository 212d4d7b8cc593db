//! The workload API as a container calls it.

#![allow(clippy::unwrap_used)]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use async_trait::async_trait;
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UnixStream};
use wire::resource::ResourceUri;
use workload_api::{Api, Attestation, Caller, Failure, Features, Measured, Resources, Tees, WorkloadApi};
use zeroize::Zeroizing;

#[tokio::test]
async fn a_resource_comes_as_its_bytes() {
    let api = Guest::start(Features::Resource).await;
    let answer = api.get("/cdh/resource/default/key/1").await;
    assert_eq!(answer.status, 200);
    assert!(answer.head.contains("\r\ncontent-type: application/octet-stream\r\n"), "{}", answer.head);
    assert!(answer.head.contains("\r\ncache-control: no-store\r\n"), "{}", answer.head);
    assert_eq!(answer.body, "bytes of kbs:///default/key/1");
}

#[tokio::test]
async fn the_query_is_forwarded() {
    let api = Guest::start(Features::Resource).await;
    let answer = api.get("/cdh/resource/default/key/1?version=2").await;
    assert_eq!(answer.body, "bytes of kbs:///default/key/1?version=2");
}

#[tokio::test]
async fn a_plugin_is_reached_by_its_name() {
    let api = Guest::start(Features::Resource).await;
    let answer = api.get("/cdh/plugin/nebula-ca/credential?name=n&ip=10.0.0.1/8").await;
    assert_eq!(answer.body, "bytes of kbs+nebula-ca:///credential?name=n&ip=10.0.0.1/8");
    assert_eq!(api.get("/cdh/plugin/resource/a/b/c").await.body, "bytes of kbs:///a/b/c");
    assert_eq!(api.get("/cdh/plugin/..%2f/a").await.status, 400);
}

#[tokio::test]
async fn each_failure_has_its_status_and_says_why() {
    let api = Guest::start(Features::All).await;
    for (path, status, text) in [
        ("/cdh/resource/default/key/none", 404, "no such resource"),
        ("/cdh/resource/default/key/denied", 403, "the policy says no"),
        ("/cdh/resource/default/key/later", 502, "connection refused; next: wait"),
        ("/cdh/resource/default/key/slow", 504, "no answer"),
        ("/cdh/resource/default/key/broken", 500, "broken"),
        ("/cdh/resource/default/../key", 400, "BAD REQUEST\n"),
        ("/cdh/resource/a/%2e%2e/b", 400, "BAD REQUEST\n"),
        ("/cdh/resource/a%20b/c/d", 400, "BAD REQUEST\n"),
        ("/cdh/resource//a/b/c", 400, "BAD REQUEST\n"),
        ("/cdh/resource/", 404, "URL NOT FOUND"),
        ("/cdh/resources/a/b/c", 404, "URL NOT FOUND"),
        ("/aa/token", 400, "BAD REQUEST\nthe query has no token_type\n"),
        ("/aa/token?token_type=maa", 400, "BAD REQUEST\nmaa is not known"),
        ("/aa/token?token_type=coco_as", 502, "no attestation service answers"),
        ("/aa/evidence", 400, "BAD REQUEST\nthe query has no runtime_data\n"),
        ("/aa/evidence?runtime_data=%ff", 400, "BAD REQUEST\nruntime_data is not UTF-8; next: "),
        ("/aa/evidence?runtime_data=_w%3D%3D&encoding=base64", 400, "BAD REQUEST\nruntime_data is not base64url"),
        ("/aa/evidence?runtime_data=ff&encoding=hex", 400, "BAD REQUEST\nthe only encoding is base64\n"),
        ("/aa/nothing", 404, "URL NOT FOUND"),
        ("/", 404, "URL NOT FOUND"),
    ] {
        let answer = api.get(path).await;
        assert_eq!(answer.status, status, "{path}: {}", answer.body);
        assert!(answer.body.starts_with(text), "{path}: {}", answer.body);
    }
}

/// Upstream's rows: its words are the first line of the body, and each set of features has its column.
#[tokio::test]
async fn every_route_has_its_status_and_body_in_each_set_of_features() {
    let (secret, evidence) = ("bytes of kbs:///a/b/c", "evidence of [120]");
    let (no_resource, no_attestation) = ("Resource Feature Not Enabled", "Attestation Feature Not Enabled");
    let event = r#"{"domain":"d","operation":"done","content":"c"}"#;
    for (method, path, body, [resource, attestation, all]) in [
        ("GET", "/cdh/resource/a/b/c", "", [(200, secret), (404, no_resource), (200, secret)]),
        (
            "GET",
            "/cdh/resource/a/b/none",
            "",
            [(404, "no such resource"), (404, no_resource), (404, "no such resource")],
        ),
        ("GET", "/cdh/resource/..", "", [(400, "BAD REQUEST"), (404, no_resource), (400, "BAD REQUEST")]),
        ("GET", "/aa/token?token_type=kbs", "", [(404, no_attestation), (200, "token of kbs"), (200, "token of kbs")]),
        ("GET", "/aa/token", "", [(404, no_attestation), (400, "BAD REQUEST"), (400, "BAD REQUEST")]),
        ("GET", "/aa/evidence?runtime_data=x", "", [(404, no_attestation), (200, evidence), (200, evidence)]),
        ("GET", "/aa/evidence", "", [(404, no_attestation), (400, "BAD REQUEST"), (400, "BAD REQUEST")]),
        (
            "GET",
            "/aa/additional-evidence?encoding=base64&runtime_data=eA",
            "",
            [(404, no_attestation), (200, "devices of [120]"), (200, "devices of [120]")],
        ),
        (
            "POST",
            "/aa/aael",
            event,
            [(404, no_attestation), (200, r#"{"success":"true"}"#), (200, r#"{"success":"true"}"#)],
        ),
        ("POST", "/aa/aael", "{", [(404, no_attestation), (400, "BAD REQUEST"), (400, "BAD REQUEST")]),
        ("GET", "/unknown", "", [(404, "URL NOT FOUND"); 3]),
        ("GET", "/cdh", "", [(404, "URL NOT FOUND"); 3]),
        ("POST", "/info", "", [(405, "METHOD NOT ALLOWED"); 3]),
    ] {
        for (features, expected) in
            [(Features::Resource, resource), (Features::Attestation, attestation), (Features::All, all)]
        {
            let answer = ask(Guest::start(features).await.address, method, path, body).await;
            let first_line = answer.body.lines().next().unwrap_or_default();
            assert_eq!((answer.status, first_line), expected, "{method} {path} with {features}");
        }
    }
}

#[tokio::test]
async fn a_feature_that_is_off_is_named() {
    let resource = Guest::start(Features::Resource).await;
    for path in ["/aa/token?token_type=kbs", "/aa/evidence?runtime_data=x", "/aa/additional-evidence?runtime_data=x"] {
        let answer = resource.get(path).await;
        assert_eq!(answer.status, 404);
        assert!(answer.body.starts_with("Attestation Feature Not Enabled\nnext: "), "{}", answer.body);
    }
    assert_eq!(resource.post("/aa/aael", "{}").await.status, 404);
    let attestation = Guest::start(Features::Attestation).await;
    for path in ["/cdh/resource/default/key/1", "/cdh/plugin/x/y"] {
        let answer = attestation.get(path).await;
        assert_eq!(answer.status, 404);
        assert!(answer.body.starts_with("Resource Feature Not Enabled\nnext: "), "{}", answer.body);
    }
    assert_eq!(attestation.get("/aa/token?token_type=kbs").await.status, 200);
}

#[tokio::test]
async fn each_endpoint_has_one_method() {
    let api = Guest::start(Features::All).await;
    for (path, allowed) in [
        ("/cdh/resource/default/key/1", "GET"),
        ("/cdh/plugin/a/b", "GET"),
        ("/info", "GET"),
        ("/aa/token", "GET"),
        ("/aa/evidence", "GET"),
        ("/aa/additional-evidence", "GET"),
        ("/aa/aael", "POST"),
    ] {
        for method in ["GET", "POST", "PUT", "DELETE", "HEAD"].into_iter().filter(|method| *method != allowed) {
            let answer = ask(api.address, method, path, "").await;
            assert_eq!(answer.status, 405, "{method} {path}");
            assert!(answer.head.contains(&format!("\r\nallow: {allowed}\r\n")), "{}", answer.head);
        }
    }
}

#[tokio::test]
async fn tokens_and_evidence_come_as_their_bytes() {
    let api = Guest::start(Features::All).await;
    for (path, body) in [
        ("/aa/token?token_type=kbs", "token of kbs"),
        ("/aa/evidence?runtime_data=a%20b+c", "evidence of [97, 32, 98, 32, 99]"),
        ("/aa/evidence?encoding=base64&runtime_data=-_8", "evidence of [251, 255]"),
        ("/aa/additional-evidence?runtime_data=-_8&encoding=base64", "devices of [251, 255]"),
        ("/aa/evidence?runtime_data=", "evidence of []"),
    ] {
        let answer = api.get(path).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, body), "{path}");
        assert!(answer.head.contains("\r\ncontent-type: application/octet-stream\r\n"), "{}", answer.head);
    }
}

#[tokio::test]
async fn an_event_is_measured_or_it_is_said_why_not() {
    let api = Guest::start(Features::All).await;
    let event = |operation: &str| json!({ "domain": "d", "operation": operation, "content": "c" }).to_string();
    for (event, status, success) in [
        (event("done"), 200, "true"),
        (event("not-supported"), 200, "false"),
        (event("not-enabled"), 200, "false"),
        (event("a b"), 400, "false"),
        (event("broken"), 500, "false"),
    ] {
        let answer = api.post("/aa/aael", &event).await;
        assert_eq!(answer.status, status, "{event}: {}", answer.body);
        assert!(answer.head.contains("\r\ncontent-type: application/json\r\n"), "{}", answer.head);
        let told: Value = serde_json::from_str(&answer.body).unwrap();
        assert_eq!(told["success"], success);
        assert_eq!(told["message"].is_string(), success == "false", "{told}");
    }
    for malformed in ["", "{", "{}", "[]", "{\"domain\":\"d\",\"operation\":\"o\"}", &"x".repeat(200 << 10)] {
        let answer = api.post("/aa/aael", malformed).await;
        assert_eq!(answer.status, 400, "{}", answer.body);
        assert!(answer.body.starts_with("BAD REQUEST\n"), "{}", answer.body);
    }
}

#[tokio::test]
async fn info_names_version_tee_devices_and_feature() {
    let api = Guest::start(Features::Resource).await;
    let answer = api.get("/info").await;
    assert!(answer.head.contains("\r\ncontent-type: application/json\r\n"), "{}", answer.head);
    let info: Value = serde_json::from_str(&answer.body).unwrap();
    let expected = json!({
        "version": env!("CARGO_PKG_VERSION"), "tee": "sample", "additional_tees": ["sampledevice"],
        "feature": "resource",
    });
    assert_eq!(info, expected);
}

#[tokio::test]
async fn info_without_an_agent_is_less_or_says_why() {
    let resource = Guest::with(Features::Resource, Doubles { no_agent: true }).await;
    let info: Value = serde_json::from_str(&resource.get("/info").await.body).unwrap();
    assert_eq!(info, json!({ "version": env!("CARGO_PKG_VERSION"), "feature": "resource" }));
    let all = Guest::with(Features::All, Doubles { no_agent: true }).await;
    let answer = all.get("/info").await;
    assert_eq!((answer.status, answer.body.as_str()), (502, "no agent"));
}

#[tokio::test]
async fn a_process_at_the_unix_socket_is_known_and_let_in_or_not() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("new/workload.sock");
    let seen: Arc<Mutex<Vec<(Caller, String)>>> = Arc::default();
    let note = Arc::clone(&seen);
    let guard = Arc::new(move |caller: &Caller, path: &str| {
        note.lock().unwrap().push((caller.clone(), path.to_owned()));
        path != "/cdh/resource/default/key/other"
    });
    let api = Doubles::default().api(Features::All);
    // A file that is left from before is replaced.
    drop(WorkloadApi::bind_unix(&socket, guard.clone(), api.clone()).unwrap());
    tokio::spawn(WorkloadApi::bind_unix(&socket, guard, api).unwrap().serve());

    let ask = async |path: &str| {
        let stream = UnixStream::connect(&socket).await.unwrap();
        talk(stream, "anything", "GET", path, "").await
    };
    assert_eq!(ask("/cdh/resource/default/key/1").await.body, "bytes of kbs:///default/key/1");
    let refused = ask("/cdh/resource/default/key/other").await;
    assert_eq!((refused.status, refused.body.as_str()), (403, "Forbidden"));

    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|(caller, _)| caller.pid == Some(std::process::id() as i32)), "{seen:?}");
}

#[tokio::test]
async fn a_peer_from_elsewhere_is_refused() {
    let Some(address) = own_address() else {
        println!("skipped: this machine has no address but loopback");
        return;
    };
    let api = Guest::at(Ipv4Addr::UNSPECIFIED, Features::Resource, Doubles::default()).await;
    let elsewhere = SocketAddr::new(address, api.address.port());
    for path in ["/cdh/resource/default/key/1", "/info", "/"] {
        let answer = ask(elsewhere, "GET", path, "").await;
        assert_eq!((answer.status, answer.body.as_str()), (403, "Forbidden"));
    }
}

#[tokio::test]
async fn a_client_that_was_led_here_is_refused() {
    let api = Guest::start(Features::Resource).await;
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
        let answer = ask_as(host, api.address, "GET", "/cdh/resource/default/key/1", "").await;
        assert_eq!(answer.status, status, "{host}");
    }
}

#[tokio::test]
async fn a_head_that_is_too_long_is_refused() {
    let api = Guest::start(Features::Resource).await;
    let answer = api.get(&format!("/{}", "x".repeat(64 << 10))).await;
    assert!([0, 414, 431].contains(&answer.status), "{} {}", answer.status, answer.body);
}

#[tokio::test]
async fn many_connections_are_served_in_turn() {
    let api = Arc::new(Guest::start(Features::Resource).await);
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

/// Prints how fast it is; what decides is that all of them are answered.
#[tokio::test(flavor = "multi_thread")]
async fn secrets_come_by_the_thousand_over_kept_connections() {
    let api = Guest::start(Features::Resource).await;
    let started = Instant::now();
    let connections = (0..16).map(|_| {
        tokio::spawn(async move {
            let mut stream = TcpStream::connect(api.address).await.unwrap();
            let request = "GET /cdh/resource/default/key/1 HTTP/1.1\r\nhost: 127.0.0.1:8006\r\n\r\n";
            let end = b"bytes of kbs:///default/key/1";
            for _ in 0..REQUESTS {
                stream.write_all(request.as_bytes()).await.unwrap();
                let mut answer = Vec::new();
                while !answer.ends_with(end) {
                    assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0);
                }
            }
        })
    });
    for connection in connections.collect::<Vec<_>>() {
        connection.await.unwrap();
    }
    let rate = f64::from(16 * REQUESTS) / started.elapsed().as_secs_f64();
    println!("{rate:.0} secrets per second over 16 connections");
}

const REQUESTS: u32 = 200;

/// Answers by the tag, kind or operation of what it is asked for.
#[derive(Clone, Default)]
struct Doubles {
    no_agent: bool,
}

impl Doubles {
    fn api(self, features: Features) -> Api {
        Api::new(features, Arc::new(self.clone()), Arc::new(self))
    }
}

#[async_trait]
impl Resources for Doubles {
    async fn get(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match uri.path.rsplit('/').next().unwrap() {
            "none" => Err(Failure::NotFound("no such resource".to_owned())),
            "denied" => Err(Failure::Refused("the policy says no".to_owned())),
            "later" => Err(Failure::Unreachable("connection refused; next: wait".to_owned())),
            "slow" => Err(Failure::Late("no answer".to_owned())),
            "broken" => Err(Failure::Other("broken".to_owned())),
            _ => Ok(Zeroizing::new(format!("bytes of {uri}").into_bytes())),
        }
    }
}

#[async_trait]
impl Attestation for Doubles {
    async fn tees(&self) -> Result<Tees, Failure> {
        match self.no_agent {
            true => Err(Failure::Unreachable("no agent".to_owned())),
            false => Ok(Tees { tee: "sample".to_owned(), additional: vec!["sampledevice".to_owned()] }),
        }
    }

    async fn token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Failure> {
        match kind {
            "kbs" => Ok(Zeroizing::new(b"token of kbs".to_vec())),
            "coco_as" => Err(Failure::Unreachable("no attestation service answers".to_owned())),
            other => Err(Failure::Invalid(format!("{other} is not known"))),
        }
    }

    async fn evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(format!("evidence of {runtime_data:?}").into_bytes())
    }

    async fn additional_evidence(&self, runtime_data: &[u8]) -> Result<Vec<u8>, Failure> {
        Ok(format!("devices of {runtime_data:?}").into_bytes())
    }

    async fn measure(&self, domain: &str, operation: &str, content: &str) -> Result<Measured, Failure> {
        assert_eq!((domain, content), ("d", "c"));
        match operation {
            "done" => Ok(Measured::Done),
            "not-supported" => Ok(Measured::NotSupported),
            "not-enabled" => Ok(Measured::NotEnabled),
            "a b" => Err(Failure::Invalid("white space".to_owned())),
            _ => Err(Failure::Other("broken".to_owned())),
        }
    }
}

struct Guest {
    address: SocketAddr,
}

impl Guest {
    async fn start(features: Features) -> Self {
        Self::with(features, Doubles::default()).await
    }

    async fn with(features: Features, doubles: Doubles) -> Self {
        Self::at(Ipv4Addr::LOCALHOST, features, doubles).await
    }

    async fn at(ip: Ipv4Addr, features: Features, doubles: Doubles) -> Self {
        let api = WorkloadApi::bind((ip, 0).into(), doubles.api(features)).await.unwrap();
        let address = (Ipv4Addr::LOCALHOST, api.local_addr().unwrap().port()).into();
        tokio::spawn(api.serve());
        Self { address }
    }

    async fn get(&self, path: &str) -> Answer {
        ask(self.address, "GET", path, "").await
    }

    async fn post(&self, path: &str, body: &str) -> Answer {
        ask(self.address, "POST", path, body).await
    }
}

struct Answer {
    /// 0 if the connection ended without an answer.
    status: u16,
    head: String,
    body: String,
}

async fn ask(address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    ask_as("127.0.0.1:8006", address, method, path, body).await
}

async fn ask_as(host: &str, address: SocketAddr, method: &str, path: &str, body: &str) -> Answer {
    talk(TcpStream::connect(address).await.unwrap(), host, method, path, body).await
}

/// Sends the path as it is, which a client library would clean first.
async fn talk(stream: impl AsyncRead + AsyncWrite, host: &str, method: &str, path: &str, body: &str) -> Answer {
    let (mut from, mut to) = tokio::io::split(stream);
    let length = body.len();
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: {host}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"
    );
    let mut answer = Vec::new();
    // The server may answer and close before it has read all.
    let _ = tokio::join!(to.write_all(request.as_bytes()), from.read_to_end(&mut answer));
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
