//! Requests of anybody on the network: session cookies, administrators' tokens, attestation tokens, bodies.
#![no_main]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use fuzz::{Trustee, clock, folder};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::{Request, Response};
use key_broker::admin::{Admin, Authenticated, Rule};
use key_broker::attester::{Attester, Service};
use key_broker::reference_value_provider::Provider;
use key_broker::tenants::Tenants;
use key_broker::{Broker, Parts, Settings};
use libfuzzer_sys::fuzz_target;
use serde_json::{Value, json};
use token_verifier::{AdminTokens, Http, IdentityProvider, KeySource};

static BENCH: LazyLock<Bench> = LazyLock::new(Bench::new);

/// A broker, and a guest that it has challenged.
struct Bench {
    trustee: Trustee,
    broker: Arc<Broker>,
    cookie: String,
    nonce: String,
}

// Method, path, value of the header and body, separated by line ends. NONCE in a body is the guest's.
fuzz_target!(|bytes: &[u8]| {
    let mut parts = bytes.splitn(4, |byte| *byte == b'\n');
    let mut part = || parts.next().unwrap_or_default();
    let (method, path, value, body) = (part(), part(), part(), part());
    let body = match std::str::from_utf8(body) {
        Ok(text) => Bytes::from(text.replace("NONCE", &BENCH.nonce)),
        Err(_) => Bytes::copy_from_slice(body),
    };
    for (header, value) in [
        ("authorization", [b"Bearer ", value].concat()),
        ("authorization", value.to_vec()),
        ("cookie", [b"kbs-session-id=", value].concat()),
        ("cookie", BENCH.cookie.clone().into_bytes()),
    ] {
        let request = Request::builder().method(method).uri([b"/kbs/v0/", path].concat()).header(header, value);
        let Ok(request) = request.body(Full::new(body.clone())) else { continue };
        assert_ne!(BENCH.answer(request).status().as_u16(), 500);
    }
});

impl Bench {
    fn new() -> Self {
        let trustee = Trustee::start();
        let broker = trustee.runtime.block_on(broker(&trustee));
        let mut bench = Self { trustee, broker: Arc::new(broker), cookie: String::new(), nonce: String::new() };
        let body = json!({ "version": "0.4.0", "tee": "sample", "extra-params": "" }).to_string();
        let request = Request::post("/kbs/v0/auth").body(Full::new(Bytes::from(body))).expect("a request");
        let answer = bench.answer(request);
        let cookie = answer.headers()["set-cookie"].to_str().expect("text");
        bench.cookie = cookie.split(';').next().expect("a cookie").to_owned();
        let body = bench.trustee.runtime.block_on(answer.into_body().collect()).expect("a body").to_bytes();
        let challenge: Value = serde_json::from_slice(&body).expect("a challenge");
        bench.nonce = challenge["nonce"].as_str().expect("a nonce").to_owned();
        bench
    }

    fn answer(&self, request: Request<Full<Bytes>>) -> Response<Full<Bytes>> {
        self.trustee.runtime.block_on(self.broker.answer(Ipv4Addr::LOCALHOST.into(), request))
    }
}

async fn broker(trustee: &Trustee) -> Broker {
    let folder = folder("broker");
    let key = folder.join("admin.pub");
    std::fs::write(&key, PUBLIC_KEY).expect("a file");
    let provider = IdentityProvider { issuer: None, audience: None, source: KeySource::Pem(key) };
    let tokens = AdminTokens::new(vec![provider], Http::new(None).expect("a client"), clock()).await.expect("a key");
    let rule = Rule::new("admin".to_owned(), "^/kbs/v0/.*$", &[], None).expect("a rule");
    let backend = resource_backends::open(Default::default(), trustee.store.clone(), clock()).await;
    let parts = Parts {
        store: trustee.store.clone(),
        clock: clock(),
        attester: Attester::new(Service::BuiltIn(trustee.service.clone()), None),
        reference_values: Provider::BuiltIn(trustee.values.clone()),
        backend: backend.expect("a place of resources"),
        plugins: Vec::new(),
        admin: Admin::Authenticated(Box::new(Authenticated::new(tokens, vec![rule]).expect("rules"))),
        tenants: Tenants::new(["blue", "red"]).expect("tenants"),
        registry: Arc::default(),
        settings: Settings {
            audit: folder.join("audit.jsonl"),
            session_lifetime: Duration::from_secs(300),
            tls: true,
            max_body: 2 << 20,
            tee_key_paths: Vec::new(),
            rsa1_5: true,
            policy_ids: BTreeMap::from([("strict".to_owned(), "tight".to_owned())]),
            metrics_for_administrators: false,
        },
    };
    Broker::assemble(parts).await.expect("a broker")
}

/// Nobody has its private half.
const PUBLIC_KEY: &[u8] = b"-----BEGIN PUBLIC KEY-----
MCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=
-----END PUBLIC KEY-----
";
