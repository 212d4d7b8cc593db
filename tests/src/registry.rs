//! A real container registry on loopback, with TLS.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::Duration;

use rcgen::{CertifiedKey, generate_simple_self_signed};

use crate::lab::HOST_IN_GUEST;
use crate::{Daemon, run};

/// A running registry.
pub struct Registry {
    folder: PathBuf,
    port: u16,
    certificate: String,
    server: Mutex<Daemon>,
}

impl Registry {
    pub(crate) fn start(folder: &Path) -> Self {
        fs::create_dir_all(folder.join("certificates")).unwrap();
        let names = ["localhost", "127.0.0.1", HOST_IN_GUEST].map(str::to_owned);
        let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).unwrap();
        let certificate = cert.pem();
        // Under this name skopeo takes it for the authority to trust.
        fs::write(folder.join("certificates/ca.crt"), &certificate).unwrap();
        fs::write(folder.join("tls.crt"), &certificate).unwrap();
        fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();

        let (port, server) = (0..ATTEMPTS).find_map(|_| Self::serve(folder)).expect("a registry");
        Self { folder: folder.to_owned(), port, certificate, server: Mutex::new(server) }
    }

    /// Ends it at once, as a crash does, and starts it again at the same port.
    ///
    /// # Panics
    /// If it does not start.
    pub fn crash_and_restart(&self) {
        let mut server = self.server.lock().unwrap();
        server.kill();
        *server = run_server(&self.folder);
        server.wait_for(READY, LIMIT);
    }

    /// The registry can't be asked for a free port, so one is found and given to it. It may be taken meanwhile.
    fn serve(folder: &Path) -> Option<(u16, Daemon)> {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let configuration = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {root}/data\nhttp:\n  \
             addr: 127.0.0.1:{port}\n  tls:\n    certificate: {root}/tls.crt\n    key: {root}/tls.key\n",
            root = folder.display()
        );
        fs::write(folder.join("config.yml"), configuration).unwrap();
        let server = run_server(folder);
        server.try_wait_for(READY, LIMIT).ok()?;
        Some((port, server))
    }

    /// From now on it answers only to the account that is returned, as `user:password`.
    ///
    /// # Panics
    /// If it does not start.
    pub fn demand_account(&self) -> &'static str {
        let accounts = self.folder.join("htpasswd");
        fs::write(&accounts, HTPASSWD).unwrap();
        let configuration = self.folder.join("config.yml");
        let text = fs::read_to_string(&configuration).unwrap();
        let access = format!("auth:\n  htpasswd:\n    realm: lab\n    path: {}\n", accounts.display());
        fs::write(configuration, text + &access).unwrap();
        self.crash_and_restart();
        ACCOUNT
    }

    /// Loses all images of a name.
    ///
    /// # Panics
    /// If it has none.
    pub fn forget(&self, name: &str) {
        fs::remove_dir_all(self.data().join("docker/registry/v2/repositories").join(name)).unwrap();
    }

    /// Pushes an OCI layout and returns the reference under which guests find it, with its digest.
    ///
    /// # Panics
    /// If skopeo fails.
    pub fn push(&self, layout: &Path, name: &str) -> String {
        self.push_with(layout, name, &["--preserve-digests"])
    }

    /// Pushes an OCI layout with its layers compressed anew by zstd.
    ///
    /// # Panics
    /// If skopeo fails.
    pub fn push_as_zstd(&self, layout: &Path, name: &str) -> String {
        let image = self.push_with(layout, name, &["--dest-compress-format", "zstd", "--dest-compress"]);
        // Else a case about zstd could pass on gzip.
        let folders = fs::read_dir(self.data().join("docker/registry/v2/blobs/sha256")).unwrap().flatten();
        let mut blobs = folders.flat_map(|folder| fs::read_dir(folder.path()).unwrap().flatten());
        let is_zstd = |path: PathBuf| fs::read(path).is_ok_and(|blob| blob.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]));
        assert!(blobs.any(|blob| is_zstd(blob.path().join("data"))), "skopeo pushed no zstd layer");
        image
    }

    /// Changes one byte at the end of every layer that the registry keeps.
    ///
    /// # Panics
    /// If there is none.
    pub fn corrupt_layers(&self, layout: &Path) {
        let mut corrupted = 0;
        for blob in fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten() {
            let name = blob.file_name().into_string().unwrap();
            let kept = self.data().join(format!("docker/registry/v2/blobs/sha256/{}/{name}/data", &name[..2]));
            let Ok(mut bytes) = fs::read(&kept) else { continue };
            // Layers are the blobs that are not JSON.
            if bytes.first() != Some(&b'{') {
                *bytes.last_mut().unwrap() ^= 1;
                fs::write(&kept, bytes).unwrap();
                corrupted += 1;
            }
        }
        assert!(corrupted > 0, "the registry keeps no layer");
    }

    fn push_with(&self, layout: &Path, name: &str, more: &[&str]) -> String {
        let certificates = self.folder.join("certificates");
        let digest_file = self.folder.join("digest");
        let source = format!("oci:{}:latest", layout.display());
        let destination = format!("docker://127.0.0.1:{}/{name}:latest", self.port);
        let mut arguments = vec!["copy", "--quiet", "--insecure-policy"];
        arguments.extend(["--dest-cert-dir", certificates.to_str().unwrap()]);
        arguments.extend(["--digestfile", digest_file.to_str().unwrap()]);
        arguments.extend_from_slice(more);
        arguments.extend([source.as_str(), destination.as_str()]);
        run("skopeo", arguments);
        let digest = fs::read_to_string(digest_file).unwrap();
        format!("{}/{name}@{}", self.host(), digest.trim())
    }

    /// The certificate that clients must trust, in PEM.
    pub fn certificate(&self) -> &str {
        &self.certificate
    }

    /// The port that it listens on.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// Its host and port in the references that guests and nodes see.
    pub fn host(&self) -> String {
        format!("{HOST_IN_GUEST}:{}", self.port)
    }

    /// What it said so far; it says a line for each request.
    pub fn log(&self) -> String {
        self.server.lock().unwrap().text()
    }

    /// Where the registry keeps its blobs.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }
}

fn run_server(folder: &Path) -> Daemon {
    Daemon::start(Command::new("docker-registry").arg("serve").arg(folder.join("config.yml")))
}

const ATTEMPTS: usize = 5;
const ACCOUNT: &str = "me:secret";
/// That account, by bcrypt.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
const READY: &str = "listening on";
const LIMIT: Duration = Duration::from_secs(30);
