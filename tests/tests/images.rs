//! Images as their owner prepares them: encrypted by skopeo with our key provider, and signed so that cosign agrees.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use image::{ImageConfig, KeyError, LayerKeys, Puller};
use serde_json::{Value, json};
use tests::{Daemon, Image, InitDataFiles, Lab, NewerDebian, Pod, Registry, Trustee, agent_policy, run, try_run};
use wire::layer::{AnnotationPacket, PROVIDER};
use zeroize::Zeroizing;

#[test]
fn a_guest_decrypts_what_skopeo_encrypted_and_gets_the_key_from_trustee() {
    let Some(case) = Case::new() else { return };
    let token = case.trustee.folder().join("admin-token");
    let provider = case.key_provider(&["--admin-token-file", text(&token)]);
    let key = case.lab.file("key", [7; 32]);

    for (name, parameters) in [
        ("gcm", format!("keyid=kbs:///default/key/gcm::keypath={}::algorithm=A256GCM", key.display())),
        ("ctr", format!("keyid=kbs:///default/key/ctr::keypath={}::algorithm=A256CTR", key.display())),
        ("new", "keyid=kbs:///default/key/new".to_owned()),
    ] {
        let encrypted = case.encrypt(&provider, name, &parameters);
        assert!(encrypted.status.success(), "{name}: {}", String::from_utf8_lossy(&encrypted.stderr));

        let key_id = format!("kbs:///default/key/{name}");
        let recipients = json!([{ "scheme": format!("provider.{PROVIDER}"), "key_id": key_id }]);
        assert_eq!(case.recipients(name), [recipients.clone(), recipients], "{name}");
        let released = case.released(&format!("default/key/{name}"));
        assert_eq!(case.pull(name, &released).unwrap(), "in another layer", "{name}");
        let refusal = case.pull(name, &[9; 32]).unwrap_err();
        assert!(refusal.contains(": key: ") && refusal.contains("wrapped with another key"), "{name}: {refusal}");
        if name != "new" {
            assert_eq!(released, [7; 32]);
        }
    }
    // Each of the three names was registered once, though each has two layers.
    assert_eq!(provider.text().matches("registered now").count(), 3, "{}", provider.text());
    assert!(!provider.text().contains(&STANDARD.encode([7; 32])));
}

#[test]
fn a_pod_runs_what_skopeo_encrypted() {
    let Some(case) = Case::new() else { return };
    let token = case.trustee.folder().join("admin-token");
    let provider = case.key_provider(&["--admin-token-file", text(&token)]);
    assert!(case.encrypt(&provider, "app", "keyid=kbs:///default/key/app").status.success());
    let image = case.registry.push(&case.lab.path().join("app"), "app");
    let initdata = InitDataFiles::new(agent_policy(&image), &case.trustee, &case.registry);
    let (initdata, _) = initdata.build(&case.lab, "initdata");

    let (status, said) = Pod::run("skopeo", &image, Some(&initdata), &[]).into_process().wait(POD_LIMIT);

    assert_eq!(status.code(), Some(7), "{said}");
    assert!(said.lines().any(|line| line == "in another layer"), "{said}");
}

#[test]
fn a_key_that_trustee_holds_is_replaced_only_when_asked() {
    let Some(case) = Case::new() else { return };
    let admin_key = case.trustee.folder().join("admin.key");
    let token = case.trustee.folder().join("admin-token");
    let key = case.lab.file("key", [7; 32]);
    case.trustee.secret("default/key/app", &case.lab.file("other", [8; 32]));
    let parameters = format!("keyid=kbs:///default/key/app::keypath={}", key.display());

    let careful = case.key_provider(&["--admin-token-file", text(&token)]);
    let refused = case.encrypt(&careful, "refused", &parameters);
    assert!(!refused.status.success());
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(said.contains("holds a resource default/key/app already") && said.contains("--overwrite"), "{said}");
    assert_eq!(case.released("default/key/app"), [8; 32]);

    // With the key that administrators' tokens are signed with, as upstream's tool takes it.
    let asked = case.key_provider(&["-a", text(&admin_key), "--overwrite"]);
    assert!(case.encrypt(&asked, "replaced", &parameters).status.success());
    assert_eq!(case.released("default/key/app"), [7; 32]);
}

#[test]
fn a_refusal_of_trustee_fails_the_encryption_with_its_reason() {
    let Some(case) = Case::new() else { return };
    let wrong = case.lab.file("wrong-token", "eyJhbGciOiJFZERTQSJ9.e30.AAAA");
    let key = case.lab.file("key", [7; 32]);
    let good = format!("keyid=kbs:///default/key/app::keypath={}", key.display());

    let provider = case.key_provider(&["--admin-token-file", text(&wrong)]);
    for (parameters, reason) in [
        (good.as_str(), "answered 401"),
        ("keyid=kbs:///default/key/app::keypath=/nowhere", "key file /nowhere"),
        ("keyid=kbs:///default/key", "repository/type/tag"),
        ("secret=1", "no parameter"),
    ] {
        let refused = case.encrypt(&provider, "refused", parameters);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && said.contains(reason) && said.contains("next:"), "{parameters}: {said}");
    }
    let address = format!("127.0.0.1:{}", provider_port(&provider));
    let busy = try_run(Lab::program("cocoon"), ["key-provider", "--socket", &address]);
    assert!(!busy.status.success() && busy.stderr.contains("can't be listened on"), "{busy}");
}

#[test]
fn under_upstreams_names_it_takes_upstreams_flags() {
    let lab = Lab::new();
    let tool = lab.path().join("coco_keyprovider");
    std::os::unix::fs::symlink(Lab::program("cocoon"), &tool).unwrap();
    let log = lab.path().join("log");

    // The parent ends once the child listens.
    let mut command = Command::new("sh");
    command.arg("-c").arg(format!("exec '{}' --socket 127.0.0.1:0 -d 2>'{}'", tool.display(), log.display()));
    let output = command.output().unwrap();

    assert!(output.status.success());
    let said = String::from_utf8(output.stdout).unwrap();
    let port: u16 = said.trim().rsplit(':').next().unwrap().parse().unwrap();
    assert!(std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(), "{said}");
    let child = listener(port).expect("the process that listens");
    run("kill", ["-TERM", &child.to_string()]);
    let sealing = lab.path().join("secret");
    std::os::unix::fs::symlink(Lab::program("cocoon"), &sealing).unwrap();
    run(&sealing, ["keygen", "--kid", "upstream", "--output-dir", text(lab.path())]);
    assert!(lab.path().join("upstream-private.json").exists() && lab.path().join("upstream-public.json").exists());
    let without = try_run(&tool, ["--kbs", "http://127.0.0.1:1"]);
    assert!(!without.status.success() && without.stderr.contains("--socket"), "{without}");
}

#[test]
fn cosign_verifies_what_was_signed_and_so_is_what_cosigns_own_keys_sign() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: cosign can't be had: {reason}"),
    };
    let lab = Lab::new();
    let registry = lab.registry();
    let image = Image::busybox(&lab, "app", "true");
    let pushed = registry.push(image.layout(), "team/app");
    let (place, digest) = pushed.split_once('@').unwrap();
    let place = place.replace(HOST_IN_GUEST, "127.0.0.1");
    let cosign = |arguments: &[&str]| {
        let mut command = debian.command("cosign");
        command.args(arguments).current_dir(lab.path()).env("COSIGN_PASSWORD", "a password").env("HOME", lab.path());
        command.env("SSL_CERT_FILE", certificates(&registry).join("ca.crt")).output().unwrap()
    };
    let generated = cosign(&["generate-key-pair"]);
    assert!(generated.status.success(), "{}", String::from_utf8_lossy(&generated.stderr));
    let source = format!("oci:{}:latest", image.layout().display());
    let sign = |key: &str, more: &[&str]| {
        let mut command = Command::new(Lab::program("cocoon"));
        command.env("COSIGN_PASSWORD", "a password").current_dir(lab.path());
        let arguments = ["image", "sign", &source, "--json", "--reference", &place, "--key-file", key];
        let output = command.args(arguments).args(more).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice::<Value>(&output.stdout).unwrap()
    };

    let first = sign("own.pem", &["--generate-key"]);
    let second = sign("cosign.key", &[]);
    let again = sign("own.pem", &[]);
    let tag = first["tag"].as_str().unwrap();
    assert_eq!(tag, format!("{}.sig", digest.replace(':', "-")));
    assert_eq!([&first, &second, &again].map(|report| report["signatures"].as_u64().unwrap()), [1, 2, 2]);
    run(
        "skopeo",
        [
            "copy",
            "--quiet",
            "--insecure-policy",
            "--preserve-digests",
            "--dest-cert-dir",
            text(&certificates(&registry)),
            &format!("oci:{}:{tag}", image.layout().display()),
            &format!("docker://{place}:{tag}"),
        ],
    );

    let reference = format!("{place}@{digest}");
    let verify =
        |key: &str| cosign(&["verify", "--key", key, "--insecure-ignore-tlog", "--private-infrastructure", &reference]);
    for key in ["own.pem.pub", "cosign.pub"] {
        let verified = verify(key);
        assert!(verified.status.success(), "{key}: {}", String::from_utf8_lossy(&verified.stderr));
        assert!(String::from_utf8_lossy(&verified.stdout).contains(&place));
    }
    run(
        "openssl",
        [
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-out",
            text(&lab.path().join("mallory.pem")),
        ],
    );
    run(
        "openssl",
        [
            "pkey",
            "-in",
            text(&lab.path().join("mallory.pem")),
            "-pubout",
            "-out",
            text(&lab.path().join("mallory.pub")),
        ],
    );
    assert!(!verify("mallory.pub").status.success());

    let inspected = run(Lab::program("cocoon"), ["image", "inspect", &source]);
    assert!(inspected.matches(&format!("for \"{place}\" (not verified)")).count() == 2, "{inspected}");
}

/// A Trustee that gives everything to whoever attests, a registry, an image of two layers, and skopeo.
struct Case {
    trustee: Trustee,
    registry: Registry,
    image: PathBuf,
    debian: NewerDebian,
    // Last, since the others live in its folder.
    lab: Lab,
}

impl Case {
    fn new() -> Option<Self> {
        let debian =
            NewerDebian::get().inspect_err(|reason| eprintln!("skipped: skopeo can't be had: {reason}")).ok()?;
        let lab = Lab::new();
        let (trustee, registry) = (lab.trustee(), lab.registry());
        trustee.config(&["set-resource-policy", "--allow-all"]);
        let image = Image::busybox(&lab, "plain", "cat /more/file; echo; exit 7").layout().to_owned();
        let more = lab.path().join("more");
        fs::create_dir(&more).unwrap();
        fs::write(more.join("file"), "in another layer").unwrap();
        run("umoci", ["insert", "--rootless", "--image", &format!("{}:latest", image.display()), text(&more), "/more"]);
        Some(Self { trustee, registry, image, debian, lab })
    }

    /// A key provider that registers keys with the Trustee.
    fn key_provider(&self, more: &[&str]) -> Daemon {
        let mut command = Command::new(Lab::program("cocoon"));
        command.args(["key-provider", "--socket", "127.0.0.1:0", "--kbs", &self.trustee.url(), "--kbs-cert"]);
        let provider = Daemon::start(command.arg(self.trustee.folder().join("ca.pem")).args(more));
        provider.wait_for("listening on", Duration::from_secs(30));
        provider
    }

    /// Encrypts the image with skopeo into a layout of this name.
    fn encrypt(&self, provider: &Daemon, name: &str, parameters: &str) -> Output {
        let address = format!("127.0.0.1:{}", provider_port(provider));
        let config = json!({ "key-providers": { PROVIDER: { "grpc": address } } }).to_string();
        let mut skopeo = self.debian.command("skopeo");
        skopeo.env("OCICRYPT_KEYPROVIDER_CONFIG", self.lab.file("ocicrypt.json", config));
        skopeo.args(["--insecure-policy", "copy", "--quiet", "--encryption-key"]);
        skopeo.arg(format!("provider:{PROVIDER}:{parameters}"));
        skopeo.arg(format!("oci:{}:latest", self.image.display()));
        skopeo.arg(format!("oci:{}:latest", self.lab.path().join(name).display())).output().unwrap()
    }

    /// What a guest gets that has attested.
    fn released(&self, path: &str) -> Vec<u8> {
        let finished = self.trustee.client(&["get-resource", "--path", path]);
        assert!(finished.status.success(), "{finished}");
        STANDARD.decode(finished.stdout.trim()).unwrap()
    }

    /// Whom each layer's key is wrapped for, as `cocoon image inspect` says it.
    fn recipients(&self, name: &str) -> [Value; 2] {
        let inspected = run(Lab::program("cocoon"), ["image", "inspect", "--json", text(&self.lab.path().join(name))]);
        let inspected: Value = serde_json::from_str(&inspected).unwrap();
        let layers = inspected["images"][0]["manifests"][0]["layers"].as_array().unwrap();
        assert!(layers.iter().all(|layer| layer["encrypted"] == true), "{inspected}");
        let recipients: Vec<Value> = layers.iter().map(|layer| layer["recipients"].clone()).collect();
        recipients.try_into().unwrap()
    }

    /// Pulls as a guest does that has got this key: what the second layer says, or why not. Nothing stays of it.
    fn pull(&self, name: &str, key: &[u8]) -> Result<String, String> {
        let pushed = self.registry.push(&self.lab.path().join(name), name).replace(HOST_IN_GUEST, "127.0.0.1");
        let (work_dir, bundle) = (self.lab.path().join("work"), self.lab.path().join("bundle"));
        let config = ImageConfig {
            work_dir: work_dir.clone(),
            extra_root_certificates: vec![self.registry.certificate().to_owned()],
            ..Default::default()
        };
        let puller = Puller::new(config, Arc::new(Released(key.to_vec()))).unwrap();
        let outcome = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let resolved = puller.resolve(&pushed).await.unwrap();
            let unpacked = puller.unpack(&resolved, &bundle).await.map_err(|e| e.to_string())?;
            let said = fs::read_to_string(unpacked.layers[1].join("more/file")).unwrap();
            puller.release(&bundle).await.unwrap();
            Ok(said)
        });
        assert_eq!(fs::read_dir(work_dir.join("layers")).unwrap().count(), 0, "{outcome:?}");
        outcome
    }
}

/// The key that Trustee released, in the place of the data hub.
struct Released(Vec<u8>);

#[async_trait::async_trait]
impl LayerKeys for Released {
    async fn unwrap(&self, packet: &AnnotationPacket) -> Result<Zeroizing<Vec<u8>>, KeyError> {
        packet.unwrap(&self.0).map_err(|e| KeyError::new(format!("{}: {e}", packet.kid())))
    }
}

fn provider_port(provider: &Daemon) -> u16 {
    let line = provider.wait_for("listening on", Duration::from_secs(30));
    line.trim().rsplit(':').next().unwrap().parse().unwrap()
}

/// Where skopeo finds the authority to trust.
fn certificates(registry: &Registry) -> PathBuf {
    registry.data().with_file_name("certificates")
}

/// The process that listens on a port of the loopback.
fn listener(port: u16) -> Option<u32> {
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let local = format!("0100007F:{port:04X}");
    let line = table.lines().find(|line| line.contains(&local) && line.split_whitespace().nth(3) == Some("0A"))?;
    let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
    let processes = fs::read_dir("/proc").unwrap().flatten();
    processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).find(|process: &u32| {
        let open = fs::read_dir(format!("/proc/{process}/fd")).into_iter().flatten().flatten();
        open.filter_map(|file| fs::read_link(file.path()).ok()).any(|target| target.as_os_str() == socket.as_str())
    })
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

const HOST_IN_GUEST: &str = "10.0.2.2";
/// Software emulation on a machine that also does other work.
const POD_LIMIT: Duration = Duration::from_secs(180);
