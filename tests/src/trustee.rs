//! A real Trustee on loopback, administered with `kbs-client`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;

use crate::lab::HOST_IN_GUEST;
use crate::{Daemon, Finished, Lab, run, try_run};

/// A running Trustee.
pub struct Trustee {
    folder: PathBuf,
    port: String,
    server: Daemon,
}

impl Trustee {
    pub(crate) fn start(folder: &Path) -> Self {
        let program = Lab::program("trustee");
        run(
            &program,
            [
                "setup".as_ref(),
                "--directory".as_ref(),
                folder.as_os_str(),
                "--listen".as_ref(),
                "127.0.0.1:0".as_ref(),
                "--san".as_ref(),
                "127.0.0.1".as_ref(),
                "--san".as_ref(),
                HOST_IN_GUEST.as_ref(),
                "--sample-verifier".as_ref(),
            ],
        );
        let server = Daemon::start(Command::new(program).arg("serve").arg("--config").arg(folder.join("trustee.toml")));
        let line = server.wait_for("listening on", Duration::from_secs(30));
        let port = line.trim_end().rsplit(':').next().unwrap().to_owned();
        Self { folder: folder.to_owned(), port, server }
    }

    /// Runs a `kbs-client config` command as the owner.
    ///
    /// # Panics
    /// If it fails.
    pub fn config(&self, arguments: &[&str]) -> String {
        let token = self.folder.join("admin-token");
        let mut all = vec!["config", "--admin-token-file", token.to_str().unwrap()];
        all.extend_from_slice(arguments);
        let finished = self.client(&all);
        assert!(finished.status.success(), "kbs-client {arguments:?} failed: {finished}");
        finished.stdout
    }

    /// Runs `kbs-client`.
    pub fn client(&self, arguments: &[&str]) -> Finished {
        let (url, certificate) = (format!("https://127.0.0.1:{}", self.port), self.folder.join("ca.pem"));
        let mut all = vec!["--url", &url, "--cert-file", certificate.to_str().unwrap()];
        all.extend_from_slice(arguments);
        try_run(Lab::program("kbs-client"), all)
    }

    /// Stores a secret.
    ///
    /// # Panics
    /// If it is refused.
    pub fn secret(&self, path: &str, file: &Path) {
        self.config(&["set-resource", "--path", path, "--resource-file", file.to_str().unwrap()]);
    }

    /// Sets what releases resources.
    ///
    /// # Panics
    /// If it is refused.
    pub fn resource_policy(&self, policy: &str) {
        let file = self.folder.join("resource-policy.rego");
        fs::write(&file, policy).unwrap();
        self.config(&["set-resource-policy", "--policy-file", file.to_str().unwrap()]);
    }

    /// Sets what the sample TEE must measure to be affirming.
    ///
    /// # Panics
    /// If it is refused.
    pub fn sample_reference_values(&self) {
        self.config(&["set-sample-reference-value", "launch_digest", "abcde"]);
        self.config(&["set-sample-reference-value", "svn", "1"]);
        self.config(&["set-sample-reference-value", "major_version", "1", "--as-integer", "--as-single-value"]);
        self.config(&["set-sample-reference-value", "minimum_minor_version", "4", "--as-integer", "--as-single-value"]);
    }

    /// What the owner is told about a refusal.
    ///
    /// # Panics
    /// If there is no such refusal.
    pub fn explain(&self, reference: &str) -> String {
        let token = self.folder.join("admin-token");
        let finished =
            self.client(&["explain", "--admin-token-file", token.to_str().unwrap(), "--reference", reference]);
        assert!(finished.status.success(), "explain failed: {finished}");
        finished.stdout
    }

    /// Every record of the audit log.
    ///
    /// # Panics
    /// If the log can't be read.
    pub fn audit(&self) -> Vec<Value> {
        let text = fs::read_to_string(self.folder.join("audit.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// `aa.toml` of a guest that asks this Trustee.
    pub fn aa_toml(&self) -> String {
        let kbs = toml::toml! { [token_configs.kbs] };
        let mut document = kbs;
        let section = document["token_configs"]["kbs"].as_table_mut().unwrap();
        section.insert("url".to_owned(), self.guest_url().into());
        section.insert("cert".to_owned(), self.certificate().into());
        toml::to_string(&document).unwrap()
    }

    /// Trustee's address as guests see it.
    pub fn guest_url(&self) -> String {
        format!("https://{HOST_IN_GUEST}:{}", self.port)
    }

    /// The authority that signed Trustee's certificate, in PEM.
    ///
    /// # Panics
    /// If it can't be read.
    pub fn certificate(&self) -> String {
        fs::read_to_string(self.folder.join("ca.pem")).unwrap()
    }

    /// Everything that Trustee printed.
    pub fn log(&self) -> String {
        self.server.text()
    }
}
