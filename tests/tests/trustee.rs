//! Trustee as its owner runs it: in parts, for years, through rotations, reloads and restores.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;
use tests::load::{Guest, Target};
use tests::{Daemon, Lab, over_http, run, set, try_run};

/// A key broker, an attestation service and a provider of reference values, each a process with upstream's flags and
/// configuration file.
#[tokio::test]
async fn the_three_services_apart_release_a_secret() {
    let lab = Lab::new();
    let program = Lab::program("trustee");
    let provider = lab.file("rvps.json", json!({ "storage": memory(), "allow_unsigned": true }).to_string());
    let (_provider, provider) = role(&["rvps", "-c", text(&provider), "-a", "127.0.0.1:0"]);
    let service = json!({
        "storage_backend": memory(),
        "rvps_config": { "type": "GrpcRemote", "address": provider },
        "sample_verifier": true,
    });
    let service = lab.file("as.json", service.to_string());
    let (_service, service) = role(&["grpc-as", "-c", text(&service), "-s", "127.0.0.1:0"]);
    let broker = lab.trustee_with(|configuration| {
        over_http(configuration);
        configuration.remove("attestation_service");
        set(configuration, "attestation_service.type", "coco_as_grpc");
        set(configuration, "attestation_service.as_addr", service.as_str());
        set(configuration, "attestation_token.insecure_header_jwk", true);
    });
    broker.secret("default/test/key", &lab.file("secret", "a secret"));
    broker.config(&["set-resource-policy", "--affirming"]);

    let mut guest = Guest::new(&Target::new(&broker.url(), None));
    guest.attest().await.unwrap();
    assert!(guest.fetch("default/test/key", None).await.is_err(), "nothing is affirmed without reference values");
    for (name, value) in [
        ("launch_digest", json!(["abcde"])),
        ("svn", json!(["1"])),
        ("major_version", json!(1)),
        ("minimum_minor_version", json!(4)),
    ] {
        let payload = base64(&json!({ name: value }).to_string());
        let message = json!({ "version": "0.1.0", "type": "sample", "payload": payload });
        let message = lab.file("message.json", message.to_string());
        run(&program, ["rvps-tool", "register", "-a", &provider, "-p", text(&message)]);
    }
    let svn = run(&program, ["rvps-tool", "query", "-a", &provider, "-r", "svn"]);
    assert!(svn.contains("[\"1\"]"), "{svn}");
    guest.attest().await.unwrap();
    assert_eq!(guest.secret("default/test/key", None).await.unwrap().as_slice(), b"a secret");
}

/// One Trustee verifies evidence, another one that knows nothing but its keys has the secrets.
#[tokio::test]
async fn a_token_of_one_trustee_opens_the_secrets_of_another() {
    let lab = Lab::new();
    let issuer = lab.trustee();
    let target = Target::new(&issuer.url(), Some(issuer.certificate().as_bytes()));
    let keys = Guest::new(&target).get("/.well-known/jwks.json").await.unwrap();
    let keys = format!("file://{}", text(&lab.file("keys.json", keys)));
    let relying = lab.trustee_with(|configuration| {
        configuration.remove("attestation_service");
        set(configuration, "attestation_token.trusted_jwk_sets", vec![keys]);
    });
    relying.secret("default/test/key", &lab.file("secret", "a secret"));
    relying.config(&["set-resource-policy", "--allow-all"]);
    for (kind, arguments) in [
        ("ec", ["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out"].as_slice()),
        ("rsa", ["genrsa", "-traditional", "-out"].as_slice()),
    ] {
        let key = lab.path().join(kind);
        let mut arguments = arguments.to_vec();
        arguments.push(text(&key));
        run("openssl", arguments);
        let attested = issuer.client(&["attest", "--tee-key-file", text(&key)]);
        assert!(attested.status.success(), "{attested}");
        let token = lab.file("token", attested.stdout);
        let get = [
            "get-resource",
            "--path",
            "default/test/key",
            "--tee-key-file",
            text(&key),
            "--attestation-token",
            text(&token),
        ];
        let fetched = relying.client(&get);
        assert_eq!(fetched.stdout.trim(), base64("a secret"), "{kind}: {fetched}");
    }
    let refused = relying.client(&["attest"]);
    assert!(refused.stderr.contains("verifies no evidence"), "{refused}");
}

/// The certificate changes while guests come and go; none of them notices.
#[tokio::test(flavor = "multi_thread")]
async fn no_guest_notices_that_the_certificate_is_replaced() {
    let lab = Lab::new();
    let trustee = lab.trustee();
    let other = lab.trustee();
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    // Both authorities are good, so that only a mismatch or a gap would fail.
    let authorities = format!("{}{}", trustee.certificate(), other.certificate());
    let (over, done) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let guests: Vec<_> = (0..4)
        .map(|_| {
            let (url, authorities, over, done) = (trustee.url(), authorities.clone(), over.clone(), done.clone());
            tokio::spawn(async move {
                while !over.load(Ordering::Relaxed) {
                    // A new connection for each, so that each meets the certificate of its moment.
                    let mut guest = Guest::new(&Target::new(&url, Some(authorities.as_bytes())));
                    guest.attest().await.unwrap();
                    guest.fetch("default/test/key", None).await.unwrap();
                    done.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let more = async |number: usize| {
        let target = done.load(Ordering::Relaxed) + number;
        let reached = async {
            while done.load(Ordering::Relaxed) < target {
                tokio::task::yield_now().await
            }
        };
        tokio::time::timeout(Duration::from_secs(60), reached).await.unwrap();
    };
    more(10).await;
    for name in ["tls.key", "tls.pem"] {
        replace(&other.folder().join(name), &trustee.folder().join(name));
    }
    let only_new = Target::new(&trustee.url(), Some(other.certificate().as_bytes()));
    let seen = async { while Guest::new(&only_new).challenge().await.is_err() {} };
    tokio::time::timeout(Duration::from_secs(20), seen).await.unwrap();
    more(10).await;
    over.store(true, Ordering::Relaxed);
    for guest in guests {
        guest.await.unwrap();
    }
}

/// What was stored in SQLite is restored into PostgreSQL, and the guests don't notice.
#[tokio::test]
async fn a_backup_moves_a_trustee_to_another_database() {
    let lab = Lab::new();
    let program = Lab::program("trustee");
    let mut trustee = lab.trustee_with(over_http);
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    trustee.sample_reference_values();
    let (backup, by_client) = (lab.path().join("backup"), lab.path().join("backup-by-client"));
    let token = trustee.folder().join("admin-token");
    run(&program, ["backup", "--config", text(trustee.configuration()), "--output", text(&backup)]);
    let fetched = trustee.client(&["backup", "--output", text(&by_client), "--admin-token-file", text(&token)]);
    assert!(fetched.status.success(), "{fetched}");
    let key = trustee.folder().join("data/master.key");

    let database = postgres_server::PostgresServer::start();
    for backup in [backup, by_client] {
        let url = database.new_database();
        trustee.restart_with(|configuration| {
            set(configuration, "storage_backend.storage_type", "Postgres");
            set(configuration, "storage_backend.backends.postgres.url", url);
            set(configuration, "storage_backend.master_key.file", text(&key));
        });
        trustee.pause(|configuration| {
            let restore = ["restore", "--overwrite", "--config", text(configuration), "--input", text(&backup)];
            run(&program, restore);
        });
        let mut guest = Guest::new(&Target::new(&trustee.url(), None));
        guest.attest().await.unwrap();
        assert_eq!(guest.secret("default/test/key", None).await.unwrap().as_slice(), b"a secret");
        let svn = trustee.config(&["get-reference-value", "--id", "svn"]);
        assert!(svn.contains('1'), "{svn}");
    }
    let mut spoilt = fs::read(lab.path().join("backup")).unwrap();
    let middle = spoilt.len() / 2;
    spoilt[middle] ^= 1;
    let spoilt = lab.file("spoilt", spoilt);
    trustee.pause(|configuration| {
        let restored =
            try_run(&program, ["restore", "--overwrite", "--config", text(configuration), "--input", text(&spoilt)]);
        assert!(!restored.status.success() && restored.stderr.contains("next:"), "{restored}");
    });
}

/// The master key is replaced, the database opens under the new one and no longer under the old one.
#[tokio::test]
async fn the_master_key_is_rotated() {
    let lab = Lab::new();
    let mut trustee = lab.trustee_with(over_http);
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let key = trustee.folder().join("data/master.key");
    let old = fs::read(&key).unwrap();
    trustee.pause(|configuration| {
        run(Lab::program("trustee"), ["rotate-master-key", "--config", text(configuration)]);
    });
    assert_ne!(fs::read(&key).unwrap(), old);
    let mut guest = Guest::new(&Target::new(&trustee.url(), None));
    guest.attest().await.unwrap();
    assert_eq!(guest.secret("default/test/key", None).await.unwrap().as_slice(), b"a secret");

    fs::write(&key, old).unwrap();
    trustee.pause(|configuration| {
        let served = try_run(Lab::program("trustee"), ["serve", "--config", text(configuration)]);
        assert!(!served.status.success() && served.stderr.contains("master"), "{served}");
        // So that what comes after the pause starts.
        fs::remove_dir_all(key.parent().unwrap()).unwrap();
    });
}

/// Attestation tokens of the key before are good until they expire, those of the new one at once.
#[tokio::test]
async fn the_signing_key_is_rotated_with_overlap() {
    let lab = Lab::new();
    let mut trustee = lab.trustee_with(over_http);
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let mut guest = Guest::new(&Target::new(&trustee.url(), None));
    let before = guest.attest().await.unwrap();
    trustee.pause(|configuration| {
        run(Lab::program("trustee"), ["rotate-signing-key", "--config", text(configuration)]);
    });
    let mut later = Guest::new(&Target::new(&trustee.url(), None));
    let after = later.attest().await.unwrap();
    let header = |token: &str| token.split('.').next().unwrap().to_owned();
    assert_ne!(header(&before), header(&after));
    guest = guest.again(&Target::new(&trustee.url(), None));
    assert_eq!(guest.secret("default/test/key", Some(&before)).await.unwrap().as_slice(), b"a secret");
    assert_eq!(later.secret("default/test/key", Some(&after)).await.unwrap().as_slice(), b"a secret");
}

/// Secrets that were put there as files, as upstream's users do.
#[tokio::test]
async fn a_secret_preloaded_as_a_file_is_released() {
    let lab = Lab::new();
    let folder = lab.path().join("preloaded");
    fs::create_dir_all(folder.join("repository")).unwrap();
    fs::write(folder.join("repository/default\\x2Ftest\\x2Fkey"), "a secret").unwrap();
    let trustee = lab.trustee_with(|configuration| {
        over_http(configuration);
        set(configuration, "storage_backend.storage_type", "LocalFs");
        set(configuration, "storage_backend.backends.local_fs.dir_path", text(&folder));
    });
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let mut guest = Guest::new(&Target::new(&trustee.url(), None));
    guest.attest().await.unwrap();
    assert_eq!(guest.secret("default/test/key", None).await.unwrap().as_slice(), b"a secret");
    assert_eq!(trustee.config(&["list-resources"]).trim(), "default/test/key");
}

/// The sealing key of everything lies in a hardware security module.
#[tokio::test]
async fn the_master_key_is_wrapped_by_a_security_module() {
    let lab = Lab::new();
    let tokens = lab.path().join("tokens");
    fs::create_dir(&tokens).unwrap();
    let configuration =
        lab.file("softhsm2.conf", format!("directories.tokendir = {}\nobjectstore.backend = file\n", text(&tokens)));
    let initialised = Command::new("softhsm2-util")
        .env("SOFTHSM2_CONF", &configuration)
        .args(["--init-token", "--free", "--label", "trustee", "--so-pin", "5678", "--pin", "1234"])
        .status();
    assert!(initialised.unwrap().success());
    let wrapped = lab.path().join("wrapped.key");
    let pin = lab.file("pin", "1234");
    fs::set_permissions(&pin, fs::Permissions::from_mode(0o400)).unwrap();
    let trustee = lab.trustee_in(&[("SOFTHSM2_CONF", &configuration)], |document| {
        over_http(document);
        for (key, value) in [
            ("module", "/usr/lib/softhsm/libsofthsm2.so"),
            ("token_label", "trustee"),
            ("pin_file", text(&pin)),
            ("wrapped_key_file", text(&wrapped)),
        ] {
            set(document, &format!("storage_backend.master_key.pkcs11.{key}"), value);
        }
    });
    trustee.secret("default/test/key", &lab.file("secret", "a secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let mut guest = Guest::new(&Target::new(&trustee.url(), None));
    guest.attest().await.unwrap();
    assert_eq!(guest.secret("default/test/key", None).await.unwrap().as_slice(), b"a secret");
    assert!(wrapped.exists() && !trustee.folder().join("data/master.key").exists());
}

/// Programs read one JSON document, people lines; both name what comes next when they are refused.
#[tokio::test]
async fn the_client_speaks_to_people_and_to_programs() {
    let lab = Lab::new();
    let trustee = lab.trustee();
    let secret = lab.file("secret", "a secret");
    let client = trustee.client_of(&trustee.url());
    let set =
        client.config(&["--json", "set-resource", "--path", "default/test/key", "--resource-file", text(&secret)]);
    let set: serde_json::Value = serde_json::from_str(&set.stdout).unwrap();
    let etag = set["etag"].as_str().unwrap();
    let late = |etag: &str| client.config(&["--if-match", etag, "delete-resource", "--path", "default/test/key"]);
    let refused = late("dead");
    assert!(refused.stderr.contains("412") && refused.stderr.contains("next:"), "{refused}");
    assert_eq!(client.config(&["list-resources"]).stdout.trim(), "default/test/key");
    assert!(late(etag).status.success());

    let policy = lab.file("policy", "package policy\nimport rego.v1\ndefault allow := false");
    for (kind, id, set) in [
        ("resource-policy", "resource-policy", vec!["set-resource-policy", "--policy-file", text(&policy)]),
        ("attestation-policy", "default_cpu", vec!["set-attestation-policy", "--policy-file", text(&policy)]),
    ] {
        client.config(&set);
        assert!(trustee.config(&[&format!("list-{}", kind.replace("policy", "policies"))]).contains(id));
        let history = trustee.config(&[&format!("get-{kind}"), "--id", id, "--history"]);
        let history: serde_json::Value = serde_json::from_str(&history).unwrap();
        let version = history[0]["version"].as_str().unwrap().to_owned();
        assert!(trustee.config(&[&format!("get-{kind}"), "--id", id]).contains("default allow := false"));
        trustee.config(&[&format!("rollback-{kind}"), "--id", id, "--version", &version]);
        trustee.config(&[&format!("delete-{kind}"), "--id", id]);
        assert!(
            !trustee.config(&[&format!("get-{kind}"), "--id", id]).contains("import rego.v1\ndefault allow := false")
        );
    }
    let log = trustee.audit_file();
    assert!(trustee.client(&["audit", "verify", text(&log)]).stdout.contains("unbroken"));
    let token = trustee.folder().join("admin-token");
    let fetched = trustee.client(&["audit", "fetch", "--limit", "1", "--admin-token-file", text(&token)]);
    assert_eq!(fetched.stdout.lines().count(), 1, "{fetched}");
}

/// A guest with a device: both are appraised, the device's evidence is bound to the machine's.
#[tokio::test]
async fn a_device_is_appraised_beside_its_machine() {
    let lab = Lab::new();
    let trustee = lab.trustee();
    let url = trustee.url();
    let ca = trustee.folder().join("ca.pem");
    let attested = Command::new(Lab::program("kbs-client"))
        .args(["--url", &url, "--cert-file", text(&ca), "attest"])
        .env("ENABLE_SAMPLE_DEVICE", "1")
        .output()
        .unwrap();
    assert!(attested.status.success(), "{}", String::from_utf8_lossy(&attested.stderr));
    let token = String::from_utf8(attested.stdout).unwrap();
    let claims = wire::token::unverified_claims(token.trim()).unwrap();
    assert!(claims["submods"]["cpu0"].is_object() && claims["submods"]["gpu0"].is_object(), "{claims}");
}

/// A role of the program `trustee`, and where it listens.
fn role(arguments: &[&str]) -> (Daemon, String) {
    let daemon = Daemon::start(Command::new(Lab::program("trustee")).args(arguments));
    let line = daemon.wait_for("listening on", Duration::from_secs(30));
    let url = line.trim_end().rsplit(' ').next().unwrap().to_owned();
    (daemon, url)
}

fn replace(new: &Path, old: &Path) {
    let draft = old.with_extension("draft");
    fs::copy(new, &draft).unwrap();
    fs::rename(draft, old).unwrap();
}

fn memory() -> serde_json::Value {
    json!({ "storage_type": "Memory" })
}

fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(text)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}
