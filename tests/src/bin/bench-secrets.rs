//! Measures how fast containers get secrets: through workload API, data hub and attestation agent, each a process, with a
//! Trustee behind them; and in the same run what that Trustee alone serves for a token.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use serde_json::json;
use tests::load::{Guest, Target, run};
use tests::{Lab, Services};

/// Measures the workload API.
#[derive(Parser)]
struct Arguments {
    /// The guest's program, whose roles are measured.
    #[arg(long)]
    guestd: PathBuf,
    /// How long each operation is repeated, in seconds.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Connections at once.
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// The kind of key that Trustee seals to.
    #[arg(long, default_value = "ECDH-ES+A256KW-P256")]
    tee_key_algorithm: String,
}

#[tokio::main]
async fn main() {
    let arguments = Arguments::parse();
    let duration = Duration::from_secs(arguments.seconds);
    let lab = Lab::new();
    let trustee = lab.trustee_over_http();
    trustee.secret(RESOURCE, &lab.file("secret", [7; 32]));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let services = Services::start(&lab, &arguments.guestd, &trustee, &arguments.tee_key_algorithm);

    let target = Target::new(services.url(), None);
    let connections = (0..arguments.connections).map(|_| target.connection()).collect();
    let secrets = run(connections, duration, |mut connection| async {
        let answer = connection.send("GET", &format!("/cdh/resource/{RESOURCE}"), None, "").await.unwrap();
        assert_eq!((answer.status.as_u16(), answer.body.len()), (200, 32));
        (connection, true)
    })
    .await;

    let target = Target::new(&trustee.url(), None);
    let token = Guest::new(&target).attest().await.unwrap();
    let guests = (0..arguments.connections).map(|_| (Guest::new(&target), token.clone())).collect();
    let sealed = run(guests, duration, |(mut guest, token)| async {
        guest.fetch(RESOURCE, Some(&token)).await.unwrap();
        ((guest, token), true)
    })
    .await;

    let result = json!({
        "secrets_through_three_processes": secrets,
        "sealed_by_trustee_alone": sealed,
        "ratio": secrets.per_second / sealed.per_second,
        "connections": arguments.connections,
        "tee_key_algorithm": arguments.tee_key_algorithm,
    });
    println!("{}", serde_json::to_string_pretty(&result).unwrap());
}

const RESOURCE: &str = "default/bench/key";
