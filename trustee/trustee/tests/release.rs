//! The real binary over TLS: set up, attested to, restarted, stopped.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use reqwest::header::{COOKIE, SET_COOKIE};
use reqwest::{Certificate, Client, Method, StatusCode};
use serde_json::{Value, json};
use wire::jwe::{Jwe, TeeKey};
use wire::rcar::{Challenge, HashAlgorithm, RuntimeData, TokenResponse};

/// A running Trustee; killed when dropped.
struct Trustee {
    process: Child,
    url: String,
    client: Client,
    admin_token: String,
}

impl Trustee {
    fn setup(directory: &Path, extra: &[&str]) {
        let done = Command::new(env!("CARGO_BIN_EXE_trustee"))
            .args(["setup", "--listen", "127.0.0.1:0", "--directory"])
            .arg(directory)
            .args(extra)
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Starts it and waits until it says that it listens.
    fn start(directory: &Path) -> Self {
        Self::spawn(directory, Command::new(env!("CARGO_BIN_EXE_trustee")))
    }

    /// The same where no file can grow beyond some 100 KiB, as on a full disk.
    fn start_on_a_full_disk(directory: &Path) -> Self {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; ulimit -f 200; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_trustee")]);
        Self::spawn(directory, shell)
    }

    fn spawn(directory: &Path, mut command: Command) -> Self {
        let command = command.args(["serve", "--config"]).arg(directory.join("trustee.toml"));
        let mut process = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(process.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let url = line.trim().strip_prefix("listening on ").expect("the trustee did not start").to_owned();

        // Another test of this process may have installed it.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        let authority = Certificate::from_pem(&std::fs::read(directory.join("ca.pem")).unwrap()).unwrap();
        let client = Client::builder().tls_certs_only([authority]).http1_only().build().unwrap();
        let admin_token = std::fs::read_to_string(directory.join("admin-token")).unwrap();
        Self { process, url, client, admin_token }
    }

    /// Ends it as a service manager does, and expects a clean end.
    fn stop(mut self) {
        let pid = self.process.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        assert!(self.process.wait().unwrap().success());
    }

    async fn administer(&self, method: Method, path: &str, body: impl Into<reqwest::Body>) -> (StatusCode, Value) {
        let request = self.client.request(method, format!("{}/kbs/v0/{path}", self.url));
        let response = request.bearer_auth(&self.admin_token).body(body).send().await.unwrap();
        let status = response.status();
        (status, serde_json::from_slice(&response.bytes().await.unwrap()).unwrap_or(Value::Null))
    }

    async fn set_resource_policy(&self, rules: &str) {
        let policy = URL_SAFE_NO_PAD.encode(format!("package policy\n{rules}"));
        let body = json!({ "policy": policy }).to_string();
        assert_eq!(self.administer(Method::POST, "resource-policy", body).await.0, StatusCode::OK);
    }

    /// The handshake of a sample guest: its key and the cookie of its session, or the refusal of the first step.
    async fn attest(&self) -> Result<(TeeKey, String), Value> {
        let post = |path: &str| self.client.post(format!("{}/kbs/v0/{path}", self.url));
        let request = json!({ "version": "0.4.0", "tee": "sample", "extra-params": {} });
        let response = post("auth").body(request.to_string()).send().await.unwrap();
        if !response.status().is_success() {
            return Err(serde_json::from_slice(&response.bytes().await.unwrap()).unwrap());
        }
        let cookie = cookie(&response);
        let challenge: Challenge = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();

        let key = TeeKey::generate().unwrap();
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: key.public_jwk().unwrap() };
        let report_data = STANDARD.encode(runtime_data.report_data("", HashAlgorithm::Sha384).unwrap());
        let attestation = json!({
            "runtime-data": runtime_data,
            "tee-evidence": { "primary_evidence": { "svn": "1", "report_data": report_data }, "additional_evidence": "" },
        });
        let response = post("attest").header(COOKIE, cookie).body(attestation.to_string()).send().await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let cookie = self::cookie(&response);
        let _: TokenResponse = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
        Ok((key, cookie))
    }

    async fn resource(&self, path: &str, cookie: &str) -> (StatusCode, Vec<u8>) {
        let request = self.client.get(format!("{}/kbs/v0/resource/{path}", self.url));
        let response = request.header(COOKIE, cookie).send().await.unwrap();
        (response.status(), response.bytes().await.unwrap().to_vec())
    }
}

impl Drop for Trustee {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn cookie(response: &reqwest::Response) -> String {
    let cookie = response.headers()[SET_COOKIE].to_str().unwrap();
    for attribute in ["HttpOnly", "Secure", "Path=/"] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    cookie.split(';').next().unwrap().to_owned()
}

#[tokio::test]
async fn a_sample_guest_gets_its_secret_and_a_restart_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &["--sample-verifier"]);
    let trustee = Trustee::start(directory.path());
    trustee.set_resource_policy("allow if data.plugin == \"resource\"").await;
    let secret: Vec<u8> = (0..=255).collect();
    assert_eq!(trustee.administer(Method::POST, "resource/default/key/1", secret.clone()).await.0, StatusCode::OK);

    let (key, cookie) = trustee.attest().await.unwrap();
    let (status, sealed) = trustee.resource("default/key/1", &cookie).await;
    assert_eq!(status, StatusCode::OK);
    let jwe: Jwe = serde_json::from_slice(&sealed).unwrap();
    assert_eq!(key.open(&jwe).unwrap().as_slice(), secret);
    trustee.stop();

    let trustee = Trustee::start(directory.path());
    let (status, sealed) = trustee.resource("default/key/1", &cookie).await;
    assert_eq!(status, StatusCode::OK, "the session did not survive the restart");
    let jwe: Jwe = serde_json::from_slice(&sealed).unwrap();
    assert_eq!(key.open(&jwe).unwrap().as_slice(), secret);
    trustee.stop();
}

#[tokio::test]
async fn a_refusal_is_explained_to_the_owner() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &["--sample-verifier"]);
    let trustee = Trustee::start(directory.path());
    trustee.administer(Method::POST, "resource/default/key/1", "a secret").await;
    trustee
        .set_resource_policy(
            "default allow := false\nexpected := [{\"claim\": \"/submods/cpu0/ear.status\", \"values\": [\"affirming\"]}]",
        )
        .await;

    let (_, cookie) = trustee.attest().await.unwrap();
    let (status, body) = trustee.resource("default/key/1", &cookie).await;
    assert_eq!(status, StatusCode::FORBIDDEN);
    let refusal: Value = serde_json::from_slice(&body).unwrap();
    let detail = refusal["detail"].as_str().unwrap();
    let reference = detail.split("--reference ").nth(1).unwrap().trim();
    let (status, explained) = trustee.administer(Method::GET, &format!("explain/{reference}"), "").await;
    assert_eq!(status, StatusCode::OK);
    assert_eq!(explained["claims"][0]["actual"], "contraindicated");
    assert_eq!(explained["claims"][0]["expected"], json!(["affirming"]));
    trustee.stop();

    let log = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
    assert!(log.contains(reference));
    assert!(!log.contains("\"event\":\"release\""));
}

#[tokio::test]
async fn the_sample_tee_is_refused_unless_it_is_enabled() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &[]);
    let trustee = Trustee::start(directory.path());
    let Err(refusal) = trustee.attest().await else { panic!("sample evidence was accepted") };
    assert!(refusal["detail"].as_str().unwrap().contains("sample_verifier = true"), "{refusal}");
    trustee.stop();
}

#[tokio::test]
async fn a_changed_audit_log_stops_the_start() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &[]);
    let trustee = Trustee::start(directory.path());
    trustee.administer(Method::POST, "resource/default/key/1", "a secret").await;
    trustee.administer(Method::POST, "resource/default/key/2", "a secret").await;
    trustee.stop();

    let log = directory.path().join("audit.jsonl");
    let text = std::fs::read_to_string(&log).unwrap().replace("default/key/1", "default/key/3");
    std::fs::File::create(&log).unwrap().write_all(text.as_bytes()).unwrap();
    let started = Command::new(env!("CARGO_BIN_EXE_trustee"))
        .args(["serve", "--config"])
        .arg(directory.path().join("trustee.toml"))
        .output()
        .unwrap();
    assert!(!started.status.success());
    let error = String::from_utf8_lossy(&started.stderr).into_owned();
    assert!(error.contains("line 2 does not continue the chain"), "{error}");
}

#[test]
fn a_directory_is_set_up_once_and_gets_new_tokens() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &["--san", "trustee.example", "--san", "10.0.0.1"]);
    let again = Command::new(env!("CARGO_BIN_EXE_trustee"))
        .args(["setup", "--directory"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(!again.status.success());

    let token = directory.path().join("admin-token");
    let before = std::fs::read(&token).unwrap();
    let issued = Command::new(env!("CARGO_BIN_EXE_trustee"))
        .args(["admin-token", "--hours", "1", "--subject", "kim", "--directory"])
        .arg(directory.path())
        .output()
        .unwrap();
    assert!(issued.status.success());
    assert_ne!(std::fs::read(&token).unwrap(), before);
}

#[tokio::test]
async fn on_a_full_disk_a_write_fails_aloud_and_nothing_is_broken() {
    let directory = tempfile::tempdir().unwrap();
    Trustee::setup(directory.path(), &["--sample-verifier"]);
    let trustee = Trustee::start_on_a_full_disk(directory.path());
    let (status, _) = trustee.administer(Method::POST, "resource/default/key/1", vec![7; 1 << 20]).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "the resource was not written");
    trustee.stop();

    let trustee = Trustee::start(directory.path());
    assert_eq!(trustee.administer(Method::DELETE, "resource/default/key/1", "").await.0, StatusCode::NOT_FOUND);
    assert_eq!(trustee.administer(Method::POST, "resource/default/key/1", vec![7; 1 << 20]).await.0, StatusCode::OK);
    assert_eq!(trustee.administer(Method::DELETE, "resource/default/key/1", "").await.0, StatusCode::OK);
    // More than is taken: the answer comes all the same.
    let (status, refusal) = trustee.administer(Method::POST, "resource/default/key/1", vec![7; 3 << 20]).await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{refusal}");
    trustee.stop();
}
