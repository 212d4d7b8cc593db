//! A real Trustee on loopback, administered with `kbs-client`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;
use toml::Table;

use crate::lab::HOST_IN_GUEST;
use crate::{Daemon, Finished, Lab, run, try_run};

/// A running Trustee.
pub struct Trustee {
    folder: PathBuf,
    configuration: PathBuf,
    scheme: String,
    port: String,
    server: Daemon,
}

impl Trustee {
    /// Sets a Trustee up in a folder, lets its configuration be changed, and starts it.
    pub(crate) fn start(folder: &Path, variables: &[(&str, &Path)], change: impl FnOnce(&mut Table)) -> Self {
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
        let configuration = folder.join("trustee.toml");
        edit(&configuration, change);
        Self::serve(folder, configuration, variables)
    }

    /// Another Trustee with the keys and certificates of this one, and its configuration changed: a replica, as long
    /// as both keep their data in one place.
    pub fn replica(&self, name: &str, change: impl FnOnce(&mut Table)) -> Self {
        let configuration = self.folder.join(format!("{name}.toml"));
        fs::copy(&self.configuration, &configuration).unwrap();
        edit(&configuration, |table| {
            let audit = self.folder.join(format!("{name}.jsonl"));
            table["audit"]["path"] = audit.to_str().unwrap().into();
            table["http_server"]["sockets"] = vec!["127.0.0.1:0"].into();
            change(table);
        });
        Self::serve(&self.folder, configuration, &[])
    }

    fn serve(folder: &Path, configuration: PathBuf, variables: &[(&str, &Path)]) -> Self {
        let (server, scheme, port) = serve(&configuration, variables);
        Self { folder: folder.to_owned(), configuration, scheme, port, server }
    }

    /// Ends the process at once, as a crash does, and starts it again at the same address. Returns how long the new
    /// one took to be ready.
    ///
    /// # Panics
    /// If it does not start.
    pub fn crash_and_restart(&mut self) -> Duration {
        self.server.kill();
        self.listen_where_it_did();
        let start = Instant::now();
        (self.server, _, _) = serve(&self.configuration, &[]);
        start.elapsed()
    }

    /// The same in the orderly way, with the configuration changed.
    ///
    /// # Panics
    /// If it does not start.
    pub fn restart_with(&mut self, change: impl FnOnce(&mut Table)) {
        self.server.stop();
        self.listen_where_it_did();
        edit(&self.configuration, change);
        (self.server, self.scheme, _) = serve(&self.configuration, &[]);
    }

    /// Does something while it does not run.
    ///
    /// # Panics
    /// If it does not start again.
    pub fn pause(&mut self, act: impl FnOnce(&Path)) {
        self.server.stop();
        self.listen_where_it_did();
        act(&self.configuration);
        (self.server, _, _) = serve(&self.configuration, &[]);
    }

    fn listen_where_it_did(&self) {
        let address = format!("127.0.0.1:{}", self.port);
        edit(&self.configuration, |table| table["http_server"]["sockets"] = vec![address].into());
    }

    /// Runs a `kbs-client config` command as the owner.
    ///
    /// # Panics
    /// If it fails.
    pub fn config(&self, arguments: &[&str]) -> String {
        let finished = self.client_of(&self.url()).config(arguments);
        assert!(finished.status.success(), "kbs-client {arguments:?} failed: {finished}");
        finished.stdout
    }

    /// Runs `kbs-client`.
    pub fn client(&self, arguments: &[&str]) -> Finished {
        self.client_of(&self.url()).run(arguments)
    }

    /// `kbs-client` for this Trustee, or for what stands before it at another URL.
    pub fn client_of(&self, url: &str) -> Client {
        Client { url: url.to_owned(), folder: self.folder.clone() }
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
        let text = fs::read_to_string(self.audit_file()).unwrap();
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

    /// The audit log's file.
    ///
    /// # Panics
    /// If the configuration names none.
    pub fn audit_file(&self) -> PathBuf {
        let table: Table = fs::read_to_string(&self.configuration).unwrap().parse().unwrap();
        table["audit"]["path"].as_str().unwrap().into()
    }

    /// The folder of its setup.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its configuration file.
    pub fn configuration(&self) -> &Path {
        &self.configuration
    }

    /// Its address on the host.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme, self.port)
    }

    /// The port that it listens on.
    pub fn port(&self) -> &str {
        &self.port
    }

    /// Its resident memory in KiB.
    pub fn resident_kib(&self) -> u64 {
        self.server.resident_kib()
    }

    /// Trustee's address as guests see it.
    pub fn guest_url(&self) -> String {
        format!("{}://{HOST_IN_GUEST}:{}", self.scheme, self.port)
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

/// `kbs-client` with the owner's token.
#[derive(Clone)]
pub struct Client {
    url: String,
    folder: PathBuf,
}

impl Client {
    /// Runs it.
    pub fn run(&self, arguments: &[&str]) -> Finished {
        let certificate = self.folder.join("ca.pem");
        let mut all = vec!["--url", &self.url, "--cert-file", certificate.to_str().unwrap()];
        all.extend_from_slice(arguments);
        try_run(Lab::program("kbs-client"), all)
    }

    /// Runs a `config` command as the owner.
    pub fn config(&self, arguments: &[&str]) -> Finished {
        let token = self.folder.join("admin-token");
        let mut all = vec!["config", "--admin-token-file", token.to_str().unwrap()];
        all.extend_from_slice(arguments);
        self.run(&all)
    }
}

fn serve(configuration: &Path, variables: &[(&str, &Path)]) -> (Daemon, String, String) {
    let mut command = Command::new(Lab::program("trustee"));
    let server = Daemon::start(command.arg("serve").arg("--config").arg(configuration).envs(variables.iter().copied()));
    let line = server.wait_for("listening on", Duration::from_secs(30));
    let url = line.trim_end().rsplit(' ').next().unwrap();
    let (scheme, port) = (url.split(':').next().unwrap(), url.rsplit(':').next().unwrap());
    (server, scheme.to_owned(), port.to_owned())
}

fn edit(configuration: &Path, change: impl FnOnce(&mut Table)) {
    let mut table: Table = fs::read_to_string(configuration).unwrap().parse().unwrap();
    change(&mut table);
    fs::write(configuration, toml::to_string(&table).unwrap()).unwrap();
}
