//! Several Trustees on one PostgreSQL: any of them serves any step, and none of them is needed.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use postgres_server::PostgresServer;
use tests::load::{Failure, Guest, Target};
use tests::{Lab, Trustee, over_http, set};
use tokio::task::JoinSet;
use toml::Table;

/// Three replicas behind a load balancer, one of them killed and started again every second, under load.
#[tokio::test(flavor = "multi_thread")]
async fn replicas_that_crash_lose_no_handshake_and_no_secret() {
    let lab = Lab::new();
    let database = PostgresServer::start();
    let key = lab.path().join("master.key");
    let first = lab.trustee_with(|configuration| on_postgres(configuration, &database, &key));
    let second = first.replica("second", |_| {});
    let third = first.replica("third", |_| {});
    first.secret("default/test/key", &lab.file("secret", SECRET));
    first.secret("hidden/test/key", &lab.file("hidden", "never released"));
    first.resource_policy(
        "package policy\nimport rego.v1\ndefault allow := false\nallow if data[\"resource-path\"][0] == \"default\"",
    );
    let mut replicas = vec![first, second, third];
    let balancer = lab.balancer(&replicas);
    everywhere(&replicas, "hidden/test/key").await;

    let target = Target::new(&balancer.url(), None);
    let tally = Arc::new(Tally::default());
    let mut guests = JoinSet::new();
    for _ in 0..GUESTS {
        guests.spawn(guest(target.clone(), tally.clone()));
    }
    let written = tokio::task::spawn_blocking({
        let (lab_file, tally) = (lab.file("written", "kept"), tally.clone());
        let client = replicas[0].client_of(&balancer.url());
        move || {
            let mut written = Vec::new();
            while !tally.over.load(Ordering::Relaxed) {
                let path = format!("default/written/k{}", written.len());
                let set = ["set-resource", "--path", &path, "--resource-file", lab_file.to_str().unwrap()];
                written.push((path.clone(), client.config(&set).status.success()));
            }
            written
        }
    });
    let mut crashes = 0;
    let end = Instant::now() + LOAD;
    let mut next = tokio::time::interval(Duration::from_secs(1));
    while Instant::now() < end {
        next.tick().await;
        let replica = crashes % replicas.len();
        replicas[replica].crash_and_restart();
        crashes += 1;
    }
    tally.over.store(true, Ordering::Relaxed);
    while let Some(done) = guests.join_next().await {
        done.unwrap();
    }

    let written = written.await.unwrap();
    let (done, cut) = (tally.released.load(Ordering::Relaxed), tally.cut.load(Ordering::Relaxed));
    println!("{done} handshakes with a secret, {cut} cut by {crashes} crashes, {} writes", written.len());
    assert!(done > 100 && crashes >= 10);
    // A crash cuts the requests that the replica was answering: one for each guest at most.
    assert!(cut <= crashes * GUESTS, "{cut} of {done} were cut by {crashes} crashes");
    let listed = replicas[0].config(&["list-resources"]);
    for (path, acknowledged) in written {
        assert!(!acknowledged || listed.lines().any(|line| line == path), "{path} is lost");
    }
    let releases = replicas.iter().flat_map(Trustee::audit).filter(|line| line["event"] == "release");
    assert!(releases.into_iter().all(|line| line["resource"] == "default/test/key"));
    for replica in &replicas {
        let log = replica.audit_file();
        let verified = replica.client(&["audit", "verify", log.to_str().unwrap()]);
        assert!(verified.status.success(), "{verified}");
    }
}

#[derive(Default)]
struct Tally {
    over: AtomicBool,
    released: AtomicUsize,
    cut: AtomicUsize,
}

/// Attests and fetches until the end; anything but a connection that was cut fails the test.
async fn guest(target: Target, tally: Arc<Tally>) {
    let mut guest = Guest::new(&target);
    while !tally.over.load(Ordering::Relaxed) {
        match secret(&mut guest).await {
            Ok(()) => _ = tally.released.fetch_add(1, Ordering::Relaxed),
            // The balancer's word for a server that vanished before it had answered.
            Err(Failure::Broken | Failure::Refused(StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT, _)) => {
                tally.cut.fetch_add(1, Ordering::Relaxed);
            }
            Err(Failure::Refused(status, body)) => panic!("{status}: {body}"),
        }
    }
}

async fn secret(guest: &mut Guest) -> Result<(), Failure> {
    guest.attest().await?;
    assert_eq!(guest.secret("default/test/key", None).await?.as_slice(), SECRET.as_bytes());
    match guest.fetch("hidden/test/key", None).await {
        Err(Failure::Refused(StatusCode::FORBIDDEN, _)) => Ok(()),
        Err(other) => Err(other),
        Ok(_) => panic!("a secret was released that the policy keeps"),
    }
}

/// Waits until no replica releases a resource any more: a policy set at one of them is in force at all.
async fn everywhere(replicas: &[Trustee], kept: &str) {
    for replica in replicas {
        let mut guest = Guest::new(&Target::new(&replica.url(), None));
        guest.attest().await.unwrap();
        let refused = async {
            while !matches!(guest.fetch(kept, None).await, Err(Failure::Refused(StatusCode::FORBIDDEN, _))) {}
        };
        tokio::time::timeout(Duration::from_secs(10), refused).await.unwrap();
    }
}

/// Plain HTTP, behind the balancer, with the data in PostgreSQL and one master key for all.
fn on_postgres(configuration: &mut Table, database: &PostgresServer, master_key: &Path) {
    over_http(configuration);
    set(configuration, "storage_backend.storage_type", "Postgres");
    set(configuration, "storage_backend.backends.postgres.url", database.url());
    set(configuration, "storage_backend.master_key.file", master_key.to_str().unwrap());
}

const SECRET: &str = "a secret for every guest";
const GUESTS: usize = 8;
const LOAD: Duration = Duration::from_secs(12);
