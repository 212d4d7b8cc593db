//! Images that skopeo and cosign signed, in a real registry, pulled as a guest pulls them.

#![allow(clippy::unwrap_used, missing_docs)]

mod lab;

use std::cell::Cell;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use image::Puller;
use lab::Lab;
use newer_debian::NewerDebian;
use serde_json::{Value, json};

#[tokio::test]
async fn what_skopeo_signed_is_pulled_by_its_signers_key_alone() {
    let Some(case) = Case::new("gpg") else { return };
    for name in [SIGNER, OTHER] {
        let options = ["--batch", "--passphrase", "", "--quick-generate-key", name, "ed25519", "sign", "never"];
        case.run(Command::new("gpg").args(options));
        case.run(Command::new("gpg").args(["--batch", "--output", name, "--export", name]));
    }
    let store = case.lab.path("lookaside");
    let config = format!("default-docker:\n  sigstore-staging: file://{}\n", store.display());
    fs::write(case.lab.path("registries.d/default.yaml"), config).unwrap();
    case.copy(&case.place("v1"), "v1", &["--sign-by", SIGNER]);
    let (signed, other) = (case.digest("v1").await, case.digest("v2").await);
    let folder = |digest: &str| store.join(format!("team/app@{}", digest.replace(':', "=")));
    let places = [format!("file://{}", store.display()), serve(store.clone())];
    let guest = |key: &str, place: &str| {
        case.guest(&json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": case.lab.path(key) }), Some(place))
    };

    for place in &places {
        assert_eq!(case.pull(&guest(SIGNER, place), "v1").await.unwrap(), "first");
        let refusal = case.pull(&guest(OTHER, place), "v1").await.unwrap_err();
        assert!(refusal.contains("signed by a key that the policy doesn't have"), "{refusal}");
        let refusal = case.pull(&guest(SIGNER, place), "v2").await.unwrap_err();
        assert!(refusal.contains(&format!("no signature was found in {place}")), "{refusal}");
    }

    // The signature of one image where that of another would lie.
    fs::create_dir(folder(&other)).unwrap();
    fs::copy(folder(&signed).join("signature-1"), folder(&other).join("signature-1")).unwrap();
    let mut message = fs::read(folder(&signed).join("signature-1")).unwrap();
    *message.last_mut().unwrap() ^= 1;
    fs::write(folder(&signed).join("signature-1"), message).unwrap();
    for place in &places {
        let refusal = case.pull(&guest(SIGNER, place), "v2").await.unwrap_err();
        assert!(refusal.contains(&format!("it is for another image, {signed}")), "{refusal}");
        let refusal = case.pull(&guest(SIGNER, place), "v1").await.unwrap_err();
        assert!(refusal.contains("/signature-1: ") && refusal.contains("next: sign the image"), "{refusal}");
    }
}

#[tokio::test]
async fn what_cosign_signed_is_pulled_by_its_signers_key_alone() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: cosign can't be had: {reason}"),
    };
    let Some(case) = Case::new("umoci") else { return };
    for name in [SIGNER, OTHER] {
        case.run(debian.command("cosign").args(["generate-key-pair", "--output-key-prefix", name]));
    }
    let guest = |name: &str| {
        let key = case.lab.path(&format!("{name}.pub"));
        let identity = json!({ "type": "matchRepository" });
        case.guest(&json!({ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": identity }), None)
    };
    let sign = |digest: &str| {
        let mut sign = debian.command("cosign");
        sign.args(["sign", "--yes", "--tlog-upload=false", "--key", &format!("{SIGNER}.key")]);
        case.run(sign.arg(format!("{}/team/app@{digest}", case.lab.host())));
    };
    let (first, second) = (case.digest("v1").await, case.digest("v2").await);
    let tag = |digest: &str| format!("{}.sig", digest.replace(':', "-"));

    let refusal = case.pull(&guest(SIGNER), "v1").await.unwrap_err();
    assert!(refusal.contains("no signature was found beside the image"), "{refusal}");

    sign(&first);
    assert!(
        case.lab.path("storage/docker/registry/v2/repositories/team/app/_manifests/tags").join(tag(&first)).exists()
    );
    assert_eq!(case.pull(&guest(SIGNER), "v1").await.unwrap(), "first");
    let refusal = case.pull(&guest(OTHER), "v1").await.unwrap_err();
    assert!(refusal.contains(&format!("{}, layer 1: ", tag(&first))), "{refusal}");

    // The signature of one image under the tag of another.
    case.copy(&case.place(&tag(&first)), &tag(&second), &[]);
    let refusal = case.pull(&guest(SIGNER), "v2").await.unwrap_err();
    assert!(refusal.contains(&first), "{refusal}");

    sign(&second);
    assert_eq!(case.pull(&guest(SIGNER), "v2").await.unwrap(), "second");
}

/// A registry with two images in one repository, `v1` and `v2`.
struct Case {
    lab: Lab,
    pulls: Cell<usize>,
}

impl Case {
    /// Nothing, with the reason printed, if the machine or the user can't do what is needed.
    fn new(tool: &str) -> Option<Self> {
        if let Err(e) = Command::new(tool).arg("--version").output() {
            eprintln!("skipped: {tool} can't be run: {e}");
            return None;
        }
        let lab = Lab::new().filter(|lab| lab::privileged(&lab.path("")))?;
        let case = Self { lab, pulls: Cell::default() };
        fs::create_dir(case.lab.path("registries.d")).unwrap();
        case.lab.new_image();
        for (tag, text) in [("v1", "first"), ("v2", "second")] {
            fs::write(case.lab.path("bundle/rootfs/motd"), text).unwrap();
            case.lab.commit();
            case.copy("oci:layout:v1", tag, &[]);
        }
        Some(case)
    }

    /// Copies an image into the repository.
    fn copy(&self, source: &str, tag: &str, options: &[&str]) {
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "--registries.d", "registries.d", "copy", "--quiet", "--preserve-digests"]);
        skopeo.args(["--src-cert-dir", "certificates", "--dest-cert-dir", "certificates"]).args(options);
        self.run(skopeo.args([source, &self.place(tag)]));
    }

    /// Where skopeo finds an image.
    fn place(&self, tag: &str) -> String {
        format!("docker://{}/team/app:{tag}", self.lab.host())
    }

    /// Runs a tool in the lab's folder, which is also its home.
    fn run(&self, command: &mut Command) {
        let (home, gnupg) = (self.lab.path(""), self.gnupg());
        command.current_dir(&home).env("HOME", &home).env("GNUPGHOME", gnupg).env("COSIGN_PASSWORD", "");
        let output = command.env("SSL_CERT_FILE", home.join("certificates/ca.crt")).output().unwrap();
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn gnupg(&self) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let home = self.lab.path("gnupg");
        fs::create_dir_all(&home).unwrap();
        fs::set_permissions(&home, fs::Permissions::from_mode(0o700)).unwrap();
        home
    }

    /// A guest that asks this of images from the registry, and runs no others.
    fn guest(&self, requirement: &Value, lookaside: Option<&str>) -> Puller {
        let host = self.lab.host();
        let scopes = json!({ host: [requirement] });
        let policy = json!({ "default": [{ "type": "reject" }], "transports": { "docker": scopes } });
        self.lab.puller_with(|config| {
            config.image_security_policy = Some(policy.to_string());
            config.sigstore_config = lookaside.map(|place| format!("docker:\n  {host}:\n    lookaside: {place}\n"));
        })
    }

    async fn digest(&self, tag: &str) -> String {
        self.lab.puller().resolve(&format!("{}/team/app:{tag}", self.lab.host())).await.unwrap().digest
    }

    /// What the image says, or why it can't run. Whatever a refused image brought is gone.
    async fn pull(&self, guest: &Puller, tag: &str) -> Result<String, String> {
        self.pulls.set(self.pulls.get() + 1);
        let bundle = self.lab.path(&format!("pod-{}", self.pulls.get()));
        let resolved = guest.resolve(&format!("{}/team/app:{tag}", self.lab.host())).await.unwrap();
        let outcome = match guest.pull(&resolved, &bundle).await {
            Ok(pulled) => {
                let text = fs::read_to_string(pulled.rootfs.join("motd")).unwrap();
                guest.release(&bundle).await.unwrap();
                Ok(text)
            }
            Err(error) => {
                assert!(!bundle.exists(), "{error}");
                Err(error.to_string())
            }
        };
        for folder in ["work/layers", "work/overlay"] {
            assert_eq!(fs::read_dir(self.lab.path(folder)).unwrap().count(), 0, "{folder}: {outcome:?}");
        }
        outcome
    }
}

impl Drop for Case {
    fn drop(&mut self) {
        let home = self.lab.path("gnupg");
        Command::new("gpgconf").arg("--homedir").arg(home).args(["--kill", "gpg-agent"]).output().ok();
    }
}

/// Serves a folder over HTTP, as a lookaside store is served; returns its URL.
fn serve(folder: PathBuf) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            let head: Vec<_> =
                BufReader::new(&stream).lines().map_while(Result::ok).take_while(|it| !it.is_empty()).collect();
            let path = head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or("/").trim_start_matches('/');
            let (status, body) = match fs::read(folder.join(Path::new(path))) {
                Ok(body) => ("200 OK", body),
                Err(_) => ("404 Not Found", Vec::new()),
            };
            let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", body.len());
            stream.write_all(&[head.into_bytes(), body].concat()).ok();
        }
    });
    url
}

const SIGNER: &str = "signer@example.org";
const OTHER: &str = "other@example.org";
