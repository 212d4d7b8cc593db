//! A real registry with TLS and real image tools, all in one folder that goes with the lab.

use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc;
use std::time::Duration;

use async_trait::async_trait;
use image::{ImageConfig, KeyError, LayerKeys, Puller};
use tempfile::TempDir;
use wire::layer::AnnotationPacket;
use zeroize::Zeroizing;

pub struct Lab {
    folder: TempDir,
    registry: Child,
    host: String,
    authority: String,
    private: bool,
}

impl Lab {
    /// Starts the registry; nothing, with the reason printed, on a machine without the tools.
    pub fn new() -> Option<Self> {
        Self::start(false)
    }

    /// A registry that only [`LOGIN`] may use.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn private() -> Option<Self> {
        Self::start(true)
    }

    fn start(private: bool) -> Option<Self> {
        for tool in ["skopeo", "umoci", "docker-registry"] {
            if let Err(e) = Command::new(tool).arg("--version").output() {
                eprintln!("skipped: {tool} can't be run: {e}");
                return None;
            }
        }
        let folder = TempDir::new().unwrap();
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
        let authority = parameters.self_signed(&key).unwrap().pem();
        // skopeo takes the authorities of a registry from a folder.
        let certificates = folder.path().join("certificates");
        std::fs::create_dir(&certificates).unwrap();
        std::fs::write(certificates.join("ca.crt"), &authority).unwrap();
        std::fs::write(folder.path().join("key.pem"), key.serialize_pem()).unwrap();

        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let path = |name: &str| folder.path().join(name).display().to_string();
        let config = format!(
            "version: 0.1\nlog: {{ level: info }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp:\n  addr: {host}\n  \
             tls: {{ certificate: {}, key: {} }}\n",
            path("storage"),
            path("certificates/ca.crt"),
            path("key.pem"),
        );
        std::fs::write(path("htpasswd"), HTPASSWD).unwrap();
        let access = format!("auth: {{ htpasswd: {{ realm: lab, path: {} }} }}\n", path("htpasswd"));
        std::fs::write(path("config.yml"), config + if private { &access } else { "" }).unwrap();
        let mut registry = Command::new("docker-registry")
            .args(["serve", &path("config.yml")])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(registry.stderr.take().unwrap());
        let (ready, listening) = mpsc::channel();
        std::thread::spawn(move || {
            for line in log.lines().map_while(Result::ok) {
                if line.contains("listening on") {
                    ready.send(()).ok();
                }
            }
        });
        let lab = Self { folder, registry, host, authority, private };
        listening.recv_timeout(Duration::from_secs(20)).expect("the registry does not listen");
        Some(lab)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn reference(&self) -> String {
        format!("{}/team/app:v1", self.host)
    }

    /// An empty image in an OCI layout, unpacked into a bundle.
    pub fn new_image(&self) {
        let (layout, image) = (self.text("layout"), self.text("layout:v1"));
        run("umoci", &["init", "--layout", &layout]);
        run("umoci", &["new", "--image", &image]);
        run("umoci", &["config", "--image", &image, "--config.cmd", "/bin/true"]);
        run("umoci", &["unpack", "--image", &image, &self.text("bundle")]);
    }

    /// Makes a layer of what changed in the bundle since the last one.
    pub fn commit(&self) {
        run("umoci", &["repack", "--refresh-bundle", "--image", &self.text("layout:v1"), &self.text("bundle")]);
    }

    #[allow(dead_code, reason = "not every test needs it")]
    pub fn push(&self) {
        let (source, target) = (format!("oci:{}", self.text("layout:v1")), format!("docker://{}", self.reference()));
        let login: &[&str] = if self.private { &["--dest-creds", LOGIN] } else { &[] };
        let copy = ["--insecure-policy", "copy", "--dest-cert-dir", &self.text("certificates"), &source, &target];
        run("skopeo", &[&copy[..], login].concat());
    }

    pub fn puller(&self) -> Puller {
        self.puller_with(|_| {})
    }

    pub fn puller_with(&self, change: impl FnOnce(&mut ImageConfig)) -> Puller {
        let mut config = ImageConfig {
            work_dir: self.path("work"),
            extra_root_certificates: vec![self.authority.clone()],
            ..Default::default()
        };
        change(&mut config);
        Puller::new(config, Arc::new(NoKeys)).unwrap()
    }

    /// Host and port of the registry.
    #[allow(dead_code, reason = "not every test needs it")]
    pub fn host(&self) -> &str {
        &self.host
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.registry.kill().ok();
        self.registry.wait().ok();
    }
}

pub fn run(tool: &str, arguments: &[&str]) {
    let output = Command::new(tool).args(arguments).output().unwrap();
    assert!(output.status.success(), "{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Whether this user may mount and own as a guest does; prints why a test is skipped.
pub fn privileged(folder: &Path) -> bool {
    let allowed = rustix::fs::setxattr(folder, "trusted.test", b"1", rustix::fs::XattrFlags::empty());
    if let Err(e) = allowed {
        eprintln!("skipped: this user can't set trusted attributes: {e}");
    }
    allowed.is_ok()
}

struct NoKeys;

#[async_trait]
impl LayerKeys for NoKeys {
    async fn unwrap(&self, _packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        Err(KeyError::new("this lab has no keys"))
    }
}

pub const LOGIN: &str = "me:secret";
/// That login, by bcrypt.
const HTPASSWD: &str = "me:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
