//! Measures what a key broker serves: handshakes, resources, memory, and the time until it is ready.
//!
//! Without arguments it starts a Trustee of its own, once with plain HTTP and once with TLS. With `--url URL` it loads
//! any server that speaks the protocol, takes the sample TEE and releases `--resource PATH` to it.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use clap::Parser;
use serde_json::{Value, json};
use tests::load::{Figures, Guest, Target, run};
use tests::{Lab, Trustee};

/// Measures a key broker.
#[derive(Parser)]
struct Arguments {
    /// A server to load instead of one that is started here.
    #[arg(long)]
    url: Option<String>,
    /// PEM file with the certificate authority of that server.
    #[arg(long)]
    ca: Option<PathBuf>,
    /// A resource that it releases to the sample TEE.
    #[arg(long, default_value = RESOURCE)]
    resource: String,
    /// How long each operation is repeated, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections at once.
    #[arg(long, default_value_t = 16)]
    connections: usize,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let load = |target: Target, resource: String| Load {
        target,
        resource,
        duration: Duration::from_secs(arguments.seconds),
        connections: arguments.connections,
    };
    let result = match &arguments.url {
        Some(url) => {
            let ca = arguments.ca.as_ref().map(|path| std::fs::read(path).unwrap());
            load(Target::new(url, ca.as_deref()), arguments.resource.clone()).all().await
        }
        None => own(load).await,
    };
    println!("{}", serde_json::to_string_pretty(&result).unwrap());
}

/// A Trustee of our own with its audit log and SQLite, by plain HTTP and by TLS.
async fn own(load: impl Fn(Target, String) -> Load) -> Value {
    let lab = Lab::new();
    let secret = lab.file("secret", [7; 32]);
    let mut plain = lab.trustee_over_http();
    prepare(&plain, &secret);
    let idle = plain.resident_kib();
    let of_plain = load(Target::new(&plain.url(), None), RESOURCE.to_owned());
    let over_http = of_plain.all().await;
    let handshakes = of_plain.until(HANDSHAKES).await;
    let loaded = plain.resident_kib();
    let ready = plain.crash_and_restart();
    drop(plain);

    let tls = lab.trustee();
    prepare(&tls, &secret);
    let ca = tls.certificate();
    let over_tls = load(Target::new(&tls.url(), Some(ca.as_bytes())), RESOURCE.to_owned()).all().await;
    let ratio = |name: &str| {
        let of = |result: &Value| result[name]["per_second"].as_f64().unwrap();
        of(&over_tls) / of(&over_http)
    };
    json!({
        "http": over_http,
        "tls": over_tls,
        "ratio_tls_to_http": { "handshake": ratio("handshake"), "resource_token_repeated": ratio("resource_token_repeated") },
        "resident_idle_mib": idle as f64 / 1024.0,
        "handshakes_before_loaded": handshakes,
        "resident_loaded_mib": loaded as f64 / 1024.0,
        "ready_ms": ready.as_secs_f64() * 1e3,
    })
}

fn prepare(trustee: &Trustee, secret: &std::path::Path) {
    trustee.secret(RESOURCE, secret);
    trustee.config(&["set-resource-policy", "--allow-all"]);
}

/// What is sent to one server.
struct Load {
    target: Target,
    resource: String,
    duration: Duration,
    connections: usize,
}

/// What every connection repeats.
#[derive(Clone)]
enum Operation {
    /// The smallest request that there is.
    Request,
    Auth,
    Handshake,
    HandshakeAndResource,
    /// A resource, by the cookie of a session that attested before.
    Cookie,
    /// A resource, by each of these tokens once, or by one of them all the time.
    Token {
        tokens: Arc<Vec<String>>,
        next: Arc<AtomicUsize>,
        repeated: bool,
    },
}

impl Load {
    async fn all(&self) -> Value {
        let request = self.measure(Operation::Request, self.duration).await;
        let auth = self.measure(Operation::Auth, self.duration).await;
        let handshake = self.measure(Operation::Handshake, self.duration).await;
        let tokens = Arc::new(self.tokens(TOKENS).await);
        let by_token = |repeated| Operation::Token { tokens: tokens.clone(), next: Arc::default(), repeated };
        json!({
            "request": request,
            "auth": auth,
            "handshake": handshake,
            "handshake_and_resource": self.measure(Operation::HandshakeAndResource, self.duration).await,
            "resource_cookie": self.measure(Operation::Cookie, self.duration).await,
            "resource_token_repeated": self.measure(by_token(true), self.duration).await,
            "resource_token_new": self.measure(by_token(false), self.duration).await,
            "ratio_handshake_to_request": handshake.per_second / request.per_second,
        })
    }

    /// Repeats an operation on every connection.
    async fn measure(&self, operation: Operation, duration: Duration) -> Figures {
        let mut guests = Vec::new();
        for _ in 0..self.connections {
            let mut guest = Guest::new(&self.target);
            guest.attest().await.unwrap();
            guests.push(guest);
        }
        let resource = self.resource.clone();
        run(guests, duration, move |guest| operation.clone().perform(guest, resource.clone())).await
    }

    /// Tokens of as many handshakes.
    async fn tokens(&self, number: usize) -> Vec<String> {
        let mut guest = Guest::new(&self.target);
        let mut tokens = Vec::with_capacity(number);
        while tokens.len() < number {
            tokens.push(guest.attest().await.unwrap());
        }
        tokens
    }

    /// Goes on with handshakes until there were so many.
    async fn until(&self, number: usize) -> usize {
        let mut done = 0;
        while done < number {
            done += self.measure(Operation::Handshake, self.duration).await.operations;
        }
        done
    }
}

impl Operation {
    /// Does it once; false when there is nothing left to do.
    async fn perform(self, mut guest: Guest, resource: String) -> (Guest, bool) {
        match self {
            Self::Request => _ = guest.get("/healthz").await.unwrap(),
            Self::Auth => _ = guest.challenge().await.unwrap(),
            Self::Handshake => _ = guest.attest().await.unwrap(),
            Self::HandshakeAndResource => {
                guest.attest().await.unwrap();
                guest.fetch(&resource, None).await.unwrap();
            }
            Self::Cookie => _ = guest.fetch(&resource, None).await.unwrap(),
            Self::Token { tokens, next, repeated } => {
                let number = if repeated { 0 } else { next.fetch_add(1, Ordering::Relaxed) };
                let Some(token) = tokens.get(number) else { return (guest, false) };
                guest.fetch(&resource, Some(token)).await.unwrap();
            }
        }
        (guest, true)
    }
}

const RESOURCE: &str = "default/bench/key";
/// Enough for a few seconds of requests with a token that was not seen before.
const TOKENS: usize = 20_000;
const HANDSHAKES: usize = 100_000;
