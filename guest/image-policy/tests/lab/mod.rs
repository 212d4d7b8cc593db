//! A real registry and the tools that sign images in it, all in one folder that goes with the lab.

use std::collections::HashMap;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use async_trait::async_trait;
use image_policy::{Document, Image, SignatureSources, SourceError};
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, Digest};
use serde_json::json;

pub struct Lab {
    folder: tempfile::TempDir,
    registry: Child,
    host: String,
}

impl Lab {
    /// Starts the registry and pushes an image; nothing, with the reason printed, on a machine without the tools.
    pub fn new(tools: &[&str]) -> Option<Self> {
        for tool in ["skopeo", "umoci", "docker-registry"].iter().chain(tools) {
            if let Err(e) = Command::new(tool).arg("--version").output() {
                eprintln!("skipped: {tool} can't be run: {e}");
                return None;
            }
        }
        let folder = tempfile::tempdir().unwrap();
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let host = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{ level: info }}\nstorage: {{ filesystem: {{ rootdirectory: {} }} }}\nhttp: {{ addr: {host} }}\n",
            folder.path().join("storage").display()
        );
        fs::write(folder.path().join("config.yml"), config).unwrap();
        let mut registry = Command::new("docker-registry")
            .arg("serve")
            .arg(folder.path().join("config.yml"))
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
        let lab = Self { folder, registry, host };
        listening.recv_timeout(Duration::from_secs(20)).expect("the registry does not listen");
        lab.run(Command::new("umoci").args(["init", "--layout", "layout"]));
        lab.run(Command::new("umoci").args(["new", "--image", "layout:v1"]));
        lab.skopeo(&[]);
        Some(lab)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub fn reference(&self) -> Reference {
        format!("{}/team/app:v1", self.host).parse().unwrap()
    }

    /// Pushes the image, with further options.
    pub fn skopeo(&self, options: &[&str]) {
        let mut command = Command::new("skopeo");
        command.args([
            "--insecure-policy",
            "--registries.d",
            "registries.d",
            "copy",
            "--quiet",
            "--dest-tls-verify=false",
        ]);
        command.args(options).args(["oci:layout:v1", &format!("docker://{}", self.reference())]);
        fs::create_dir_all(self.path("registries.d")).unwrap();
        self.run(&mut command);
    }

    /// Runs a tool in the lab's folder, with GnuPG's and cosign's homes in it; gives what it printed.
    pub fn run(&self, command: &mut Command) -> String {
        command.current_dir(self.folder.path()).env("HOME", self.folder.path()).env("COSIGN_PASSWORD", "");
        let output = command.env("GNUPGHOME", self.gnupg()).stdin(Stdio::null()).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn manifest(&self) -> Manifest {
        let bytes = self.read_tag("v1").unwrap();
        Manifest { reference: self.reference(), digest: digest_of(&bytes), bytes }
    }

    fn gnupg(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let home = self.path("gnupg");
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        home
    }

    fn storage(&self) -> PathBuf {
        self.path("storage/docker/registry/v2")
    }

    fn read_tag(&self, tag: &str) -> Option<Vec<u8>> {
        let link = self.storage().join("repositories/team/app/_manifests/tags").join(tag).join("current/link");
        self.read_blob(fs::read_to_string(link).ok()?.trim())
    }

    fn read_blob(&self, digest: &str) -> Option<Vec<u8>> {
        let hex = digest.strip_prefix("sha256:")?;
        fs::read(self.storage().join("blobs/sha256").join(hex.get(..2)?).join(hex).join("data")).ok()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        Command::new("gpgconf").arg("--homedir").arg(self.path("gnupg")).args(["--kill", "gpg-agent"]).output().ok();
        self.registry.kill().ok();
        self.registry.wait().ok();
    }
}

/// The image in the registry.
pub struct Manifest {
    pub reference: Reference,
    pub digest: Digest,
    pub bytes: Vec<u8>,
}

impl Manifest {
    pub fn image(&self) -> Image<'_> {
        Image {
            reference: &self.reference,
            manifest_digest: &self.digest,
            index_digest: None,
            manifest_bytes: &self.bytes,
        }
    }
}

/// What the registry holds, read from its storage; documents are files, and `https://lookaside.example` is a folder.
pub struct Storage<'a> {
    lab: &'a Lab,
    added: HashMap<String, Vec<u8>>,
    referrers: Vec<Descriptor>,
}

impl<'a> Storage<'a> {
    pub fn of(lab: &'a Lab) -> Self {
        Self { lab, added: HashMap::new(), referrers: Vec::new() }
    }

    /// Puts a signature of the older form beside the image, in the place of any other.
    pub fn tag(&mut self, digest: &Digest, payload: Vec<u8>, signature: &str) {
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": digest_of(b"{}")});
        let layer = json!({"mediaType": "application/vnd.dev.cosign.simplesigning.v1+json", "size": payload.len(),
                           "digest": digest_of(&payload),
                           "annotations": {"dev.cosignproject.cosign/signature": signature}});
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": empty, "layers": [layer]});
        self.added.insert(digest_of(&payload).to_string(), payload);
        self.added.insert(format!("sha256-{}.sig", digest.digest()), serde_json::to_vec(&manifest).unwrap());
    }

    /// Lets a bundle refer to the image, as a registry with a list of referrers would say.
    pub fn refer(&mut self, bundle: Vec<u8>) {
        let kind = "application/vnd.dev.sigstore.bundle.v0.3+json";
        let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "size": 2, "digest": digest_of(b"{}")});
        let layer = json!({"mediaType": kind, "size": bundle.len(), "digest": digest_of(&bundle)});
        let manifest = json!({"schemaVersion": 2, "artifactType": kind, "config": empty, "layers": [layer],
                              "mediaType": "application/vnd.oci.image.manifest.v1+json"});
        let manifest = serde_json::to_vec(&manifest).unwrap();
        let descriptor = json!({"mediaType": "application/vnd.oci.image.manifest.v1+json", "artifactType": kind,
                                "size": manifest.len(), "digest": digest_of(&manifest)});
        self.referrers.push(serde_json::from_value(descriptor).unwrap());
        self.added.insert(digest_of(&bundle).to_string(), bundle);
        self.added.insert(digest_of(&manifest).to_string(), manifest);
    }
}

#[async_trait]
impl SignatureSources for Storage<'_> {
    async fn document(&self, uri: &str) -> Result<Vec<u8>, SourceError> {
        Ok(fs::read(self.lab.path(uri))?)
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, SourceError> {
        let path = url.strip_prefix("https://lookaside.example/").ok_or("there is no such host")?;
        Ok(fs::read(self.lab.path("lookaside").join(path)).ok())
    }

    async fn manifest(&self, version: &str) -> Result<Option<Document>, SourceError> {
        let added = || self.added.get(version).cloned();
        let bytes = added().or_else(|| self.lab.read_blob(version)).or_else(|| self.lab.read_tag(version));
        Ok(bytes.map(|bytes| Document { media_type: String::new(), bytes }))
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let digest = digest.to_string();
        let added = self.added.get(&digest).cloned();
        added.or_else(|| self.lab.read_blob(&digest)).ok_or_else(|| "there is no such blob".into())
    }

    async fn referrers(&self, _digest: &Digest, _artifact_type: &str) -> Result<Vec<Descriptor>, SourceError> {
        Ok(self.referrers.clone())
    }
}

pub fn digest_of(bytes: &[u8]) -> Digest {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    format!("sha256:{}", hex::encode(digest)).parse().unwrap()
}
