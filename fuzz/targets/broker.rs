//! Requests of anybody on the network: session cookies, administrators' tokens, attestation tokens, bodies.
#![no_main]

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::LazyLock;
use std::time::Duration;

use http_body_util::Full;
use hyper::Request;
use hyper::body::Bytes;
use key_broker::admin::{Admin, Authenticated};
use key_broker::{Broker, Settings};
use libfuzzer_sys::fuzz_target;
use tokio::runtime::{Builder, Runtime};

static BROKER: LazyLock<(Runtime, Broker)> = LazyLock::new(|| {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/fuzz/broker");
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).expect("the folder of the build");
    let settings = Settings {
        storage: folder.join("data"),
        audit: folder.join("audit.jsonl"),
        admin: Admin::Authenticated(Box::new(Authenticated::new(PUBLIC_KEY, vec!["admin".to_owned()]).expect("a key"))),
        sample_verifier: true,
        token_lifetime: Duration::from_secs(300),
        tls: true,
    };
    let broker = runtime.block_on(Broker::open(settings)).expect("a broker");
    (runtime, broker)
});

// Method, path, value of the header and body, separated by line ends.
fuzz_target!(|bytes: &[u8]| {
    let (runtime, broker) = &*BROKER;
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (method, path, value, body) = (part(), part(), part(), part());
    for (header, prefix) in [("authorization", "Bearer "), ("cookie", "kbs-session-id="), ("authorization", "")] {
        let value = [prefix.as_bytes(), value].concat();
        let request = Request::builder()
            .method(method)
            .uri([b"/kbs/v0/", path].concat())
            .header(header, value)
            .body(Full::new(Bytes::copy_from_slice(body)));
        let Ok(request) = request else { return };
        let answer = runtime.block_on(broker.answer(Ipv4Addr::LOCALHOST.into(), request));
        assert_ne!(answer.status().as_u16(), 500);
    }
});

/// Nobody has its private half.
const PUBLIC_KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";
