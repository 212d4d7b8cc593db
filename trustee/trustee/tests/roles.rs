//! The roles alone: called by their names, with files and flags of their own, health, metrics, traces, maintenance.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use reqwest::{Client, StatusCode};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A process that listens; killed when dropped.
struct Role {
    process: Child,
    url: String,
}

impl Role {
    /// Starts the binary under a role's name and waits until it says that it listens.
    fn start(folder: &Path, name: &str, arguments: &[&str]) -> Self {
        Self::start_with(folder, name, arguments, &[])
    }

    fn start_with(folder: &Path, name: &str, arguments: &[&str], variables: &[(&str, &str)]) -> Self {
        let mut command = named(folder, name);
        command.args(arguments).envs(variables.iter().copied()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("the role did not start").to_owned();
        Self { process, url }
    }

    async fn get(&self, path: &str) -> (StatusCode, String) {
        let response = client().get(format!("{}{path}", self.url)).send().await.unwrap();
        (response.status(), response.text().await.unwrap())
    }

    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn client() -> Client {
    // Another test of this process may have installed it.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::new()
}

/// The binary under another name, as an image that replaces another has it.
fn named(folder: &Path, name: &str) -> Command {
    let link = folder.join(name);
    if !link.exists() {
        symlink(env!("CARGO_BIN_EXE_trustee"), &link).unwrap();
    }
    Command::new(link)
}

fn run(folder: &Path, name: &str, arguments: &[&str]) -> Output {
    named(folder, name).args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[tokio::test]
async fn reference_values_go_through_a_provider_of_their_own_and_stay() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("rvps.json");
    let storage =
        json!({ "storage_type": "LocalFs", "backends": { "local_fs": { "dir_path": folder.path().join("s") } } });
    let write = |unsigned: bool| {
        let text = json!({ "storage": storage, "extractors": { "swid_extractor": {} }, "allow_unsigned": unsigned });
        std::fs::write(&config, text.to_string()).unwrap();
    };
    let payload = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, r#"{"svn":["1"],"a/b":7}"#);
    let message = folder.path().join("message.json");
    std::fs::write(&message, json!({ "version": "0.1.0", "type": "sample", "payload": payload }).to_string()).unwrap();
    let message = message.to_str().unwrap();
    let config = config.to_str().unwrap();

    write(false);
    let provider = Role::start(folder.path(), "rvps", &["-c", config, "-a", "127.0.0.1:0"]);
    let refused = run(folder.path(), "rvps-tool", &["register", "-a", &provider.url, "-p", message]);
    assert!(!refused.status.success(), "nobody signed it: {}", text(&refused.stdout));
    provider.stop();

    write(true);
    let provider = Role::start(folder.path(), "rvps", &["-c", config, "-a", "127.0.0.1:0"]);
    let registered = run(folder.path(), "rvps-tool", &["register", "-a", &provider.url, "-p", message]);
    assert!(registered.status.success(), "{}", text(&registered.stderr));
    provider.stop();

    let provider = Role::start(folder.path(), "rvps", &["--config", config, "--address", "127.0.0.1:0"]);
    let value = run(folder.path(), "rvps-tool", &["query", "-a", &provider.url, "-r", "svn"]);
    assert_eq!(text(&value.stdout).trim(), "[\"1\"]", "{}", text(&value.stderr));
    let names = run(folder.path(), "rvps-tool", &["list", "-a", &provider.url]);
    assert_eq!(text(&names.stdout), "a/b\nsvn\n");
    let nothing = run(folder.path(), "rvps-tool", &["query", "-a", &provider.url, "-r", "other"]);
    assert!(!nothing.status.success() && text(&nothing.stderr).contains("; next: "));
    let (status, metrics) = provider.get("/metrics").await;
    assert!(status.is_success() && metrics.contains("rvps_http_requests_total"), "{metrics}");
    provider.stop();
}

#[tokio::test]
async fn an_attestation_service_answers_over_rest_and_says_how_it_is() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("as.json");
    let sqlite = json!({ "sqlite": { "directory": folder.path().join("data") } });
    let storage = json!({ "storage_type": "Sqlite", "backends": sqlite });
    std::fs::write(&config, json!({ "storage_backend": storage, "sample_verifier": true }).to_string()).unwrap();
    let arguments = ["-c", config.to_str().unwrap(), "-s", "127.0.0.1:0", "-r", "https://pages.example"];
    let service = Role::start(folder.path(), "restful-as", &arguments);

    for path in ["/healthz", "/readyz"] {
        assert_eq!(service.get(path).await.0, StatusCode::OK, "{path}");
    }
    let (status, keys) = service.get("/.well-known/jwks.json").await;
    assert!(status.is_success());
    assert!(serde_json::from_str::<Value>(&keys).unwrap()["keys"].is_array(), "{keys}");
    let evidence = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        json!({ "svn": "1", "report_data": "" }).to_string(),
    );
    let request = json!({ "verification_requests": [{ "tee": "sample", "evidence": evidence }], "policy_ids": [] });
    let url = format!("{}/attestation", service.url);
    let request = client().post(url).header("content-type", "application/json").body(request.to_string());
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.text().await.unwrap().split('.').count(), 3, "a token has three parts");
    let (_, metrics) = service.get("/metrics").await;
    assert!(metrics.contains("as_http_requests_total{method=\"POST\",status=\"200\"} 1"), "{metrics}");
    service.stop();

    let grpc = Role::start(folder.path(), "grpc-as", &["-c", config.to_str().unwrap(), "-s", "127.0.0.1:0"]);
    let (status, keys) = grpc.get("/.well-known/jwks.json").await;
    assert!(status.is_success(), "{keys}");
    grpc.stop();
}

#[tokio::test]
async fn a_variable_turns_the_sample_verifier_on_where_a_file_can_not() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kbs.json");
    let file = json!({
        "http_server": { "insecure_http": true, "sockets": ["127.0.0.1:0"] },
        "attestation_service": { "type": "coco_as_builtin" },
        "audit": { "path": folder.path().join("audit.jsonl") },
    });
    std::fs::write(&config, file.to_string()).unwrap();
    let evidence = base64::Engine::encode(
        &base64::engine::general_purpose::URL_SAFE_NO_PAD,
        json!({ "svn": "1", "report_data": "" }).to_string(),
    );
    let appraise = json!({ "verification_requests": [{ "tee": "sample", "evidence": evidence }], "policy_ids": [] });
    let challenge = json!({ "version": "0.4.0", "tee": "sample", "extra-params": "" });
    let on = [("TRUSTEE_SAMPLE_VERIFIER", "1")];
    for (name, arguments, path, body) in [
        ("kbs", ["-c", config.to_str().unwrap()], "/kbs/v0/auth", challenge),
        ("restful-as", ["-s", "127.0.0.1:0"], "/attestation", appraise),
    ] {
        for (variables, expected) in [(&on[..], true), (&[], false), (&[("TRUSTEE_SAMPLE_VERIFIER", "0")], false)] {
            let role = Role::start_with(folder.path(), name, &arguments, variables);
            let request = client().post(format!("{}{path}", role.url)).header("content-type", "application/json");
            let status = request.body(body.to_string()).send().await.unwrap().status();
            assert_eq!(status.is_success(), expected, "{name} with {variables:?} said {status}");
            role.stop();
        }
    }
}

#[test]
fn a_configuration_that_is_no_good_is_an_error_of_every_role() {
    let folder = tempfile::tempdir().unwrap();
    let broken = folder.path().join("broken.json");
    std::fs::write(&broken, r#"{ "storage": { "type": "Sled" }, "sockts": 1 }"#).unwrap();
    let path = broken.to_str().unwrap();
    for (name, arguments) in [
        ("kbs", vec!["-c", path]),
        ("kbs", vec![]),
        ("grpc-as", vec!["-c", path, "-s", "127.0.0.1:0"]),
        ("restful-as", vec!["-c", path, "-s", "127.0.0.1:0"]),
        ("rvps", vec!["-c", path, "-a", "127.0.0.1:0"]),
        ("rvps", vec!["-c", "/nowhere/rvps.json"]),
        ("trustee", vec!["serve", "--config", path]),
    ] {
        let done = named(folder.path(), name).args(&arguments).env_remove("KBS_CONFIG_FILE").output().unwrap();
        let error = text(&done.stderr);
        assert!(!done.status.success() && error.contains("; next: "), "{name} {arguments:?}: {error}");
    }
}

/// A key broker that the environment configures, with a collector of traces at an address.
#[tokio::test]
async fn spans_of_requests_reach_the_collector_in_the_client_s_trace() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("kbs.yaml");
    std::fs::write(
        &config,
        "http_server:\n  insecure_http: true\n  sockets: ['127.0.0.1:0']\nadmin: {}\n\
                             attestation_service: {}\naudit: {path: AUDIT}\n"
            .replace("AUDIT", folder.path().join("audit.jsonl").to_str().unwrap()),
    )
    .unwrap();
    let collector = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", collector.local_addr().unwrap());
    let variables = [
        ("KBS_CONFIG_FILE", config.to_str().unwrap()),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str()),
        ("OTEL_SERVICE_NAME", "broker-of-the-test"),
        ("LOG_FORMAT", "json"),
    ];
    let broker = Role::start_with(folder.path(), "kbs", &[], &variables);
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let response = client()
        .get(format!("{}/healthz", broker.url))
        .header("traceparent", format!("00-{trace}-b7ad6b7169203331-01"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    let (_, metrics) = broker.get("/metrics").await;
    for name in ["kbs_build_info{version=\"", "kbs_http_requests_total", "kbs_http_active_connections"] {
        assert!(metrics.contains(name), "{name} is not in {metrics}");
    }

    // What waits is sent at the end.
    let stopping = tokio::task::spawn_blocking(move || broker.stop());
    let id: Vec<u8> = (0..32).step_by(2).map(|i| u8::from_str_radix(&trace[i..i + 2], 16).unwrap()).collect();
    let collect = async {
        loop {
            let (mut stream, _) = collector.accept().await.unwrap();
            let mut request = Vec::new();
            let has = |request: &[u8], wanted: &[u8]| request.windows(wanted.len()).any(|window| window == wanted);
            while !has(&request, &id) && stream.read_buf(&mut request).await.unwrap() > 0 {}
            stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
            if has(&request, &id) {
                assert!(request.starts_with(b"POST /v1/traces "));
                assert!(has(&request, b"broker-of-the-test"));
                break;
            }
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(60), collect).await.expect("no span arrived");
    stopping.await.unwrap();
}

#[tokio::test]
async fn a_backup_is_restored_elsewhere_and_the_master_key_changes() {
    let folder = tempfile::tempdir().unwrap();
    let [first, second] = ["first", "second"].map(|name| folder.path().join(name));
    for directory in [&first, &second] {
        let directory = directory.to_str().unwrap();
        let done = run(folder.path(), "trustee", &["setup", "--listen", "127.0.0.1:0", "--directory", directory]);
        assert!(done.status.success(), "{}", text(&done.stderr));
    }
    let config = |directory: &Path| directory.join("trustee.toml").to_str().unwrap().to_owned();
    let expect = |arguments: &[&str]| {
        let done = run(folder.path(), "trustee", arguments);
        assert!(done.status.success(), "{arguments:?}: {}", text(&done.stderr));
        text(&done.stdout)
    };
    let (one, two) = (config(&first), config(&second));
    // Its policies and keys are made at the first start.
    expect(&["rotate-signing-key", "--config", &one]);

    let backup = folder.path().join("backup").to_str().unwrap().to_owned();
    expect(&["backup", "--config", &one, "--output", &backup]);
    assert!(!run(folder.path(), "trustee", &["backup", "--config", &one, "--output", &backup]).status.success());
    let key = first.join("data/master.key").to_str().unwrap().to_owned();
    let foreign = run(folder.path(), "trustee", &["restore", "--config", &two, "--input", &backup]);
    assert!(!foreign.status.success(), "it opened without its key");
    let restored = expect(&["restore", "--config", &two, "--input", &backup, "--key", &key]);
    assert!(!restored.starts_with("0 "), "{restored}");

    let before = std::fs::read_to_string(&key).unwrap();
    let running = Role::start(folder.path(), "kbs", &["-c", &one]);
    let refused = run(folder.path(), "trustee", &["rotate-master-key", "--config", &one]);
    assert!(
        !refused.status.success() && text(&refused.stderr).contains("; next: stop it"),
        "{}",
        text(&refused.stderr)
    );
    running.stop();
    assert_eq!(std::fs::read_to_string(&key).unwrap(), before, "it changed the key of a Trustee that runs");
    expect(&["rotate-master-key", "--config", &one]);
    let after = std::fs::read_to_string(&key).unwrap();
    assert!(before != after && after.trim().lines().count() == 1);
    expect(&["rotate-signing-key", "--config", &one]);
    expect(&["migrate", "--config", &one, "--to", "1"]);
    expect(&["rotate-signing-key", "--config", &one]);
}

#[test]
fn the_reference_and_the_api_are_printed() {
    let folder = tempfile::tempdir().unwrap();
    let reference = run(folder.path(), "trustee", &["config-reference"]);
    assert!(text(&reference.stdout).contains("| `sockets` | `[\"127.0.0.1:8080\"]` |"));
    let api: Value = serde_json::from_slice(&run(folder.path(), "trustee", &["openapi"]).stdout).unwrap();
    assert!(api["openapi"].is_string());
}
