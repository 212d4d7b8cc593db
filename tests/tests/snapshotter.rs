//! The snapshotter as a proxy plugin of a real containerd, with a real registry: pulls, containers, kills and wipes.

#![allow(clippy::unwrap_used)]

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use cri::ImageServiceClient;
use futures::future::try_join_all;
use serde_json::Value;
use tests::node::{self, Cocoon, Containerd, Snapshotter};
use tests::{Daemon, Image, InitDataFiles, Lab, NewerDebian, Registry, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

#[tokio::test]
async fn containerd_1_leaves_an_image_to_guests_whatever_happens_to_the_snapshotter() {
    story("trixie", VERSION_1).await;
}

#[tokio::test]
async fn containerd_2_leaves_an_image_to_guests_whatever_happens_to_the_snapshotter() {
    story("sid", VERSION_2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_image_from_the_node_and_without_it_from_the_registry() {
    let lab = Lab::new();
    let registry = lab.registry();
    let image = Image::busybox(&lab, "first", "echo first as $(id -u):$(id -g); exec sleep 3600");
    // For users and volumes containerd looks into the image's files, which are not on the node.
    let name = format!("{}:latest", image.layout().display());
    run("umoci", ["config", "--image", &name, "--config.user", "1000:2000", "--config.volume", "/data"]);
    let first = registry.push(image.layout(), "first");
    let second = registry.push(Image::busybox(&lab, "second", "echo second; exec sleep 3600").layout(), "second");
    let policy = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/policies/debug.rego"));
    let digests = [&first, &second].map(|image| image.split_once('@').unwrap().1).join("\", \"");
    let policy = policy.unwrap().replace("sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE", &digests);
    let initdata = InitDataFiles::without_trustee(policy, &registry).annotation(&lab, "initdata");
    let cocoon = Cocoon::new().with_snapshotter();
    let node = match node::Node::start(&lab, &registry, Containerd::V1, Some(&cocoon)).await {
        Ok(node) => node,
        Err(cause) => {
            eprintln!("skipped: {cause}");
            return;
        }
    };
    let snapshotter = Snapshotter::start(&node);
    snapshotter.pull(&first).await;
    snapshotter.pull(&second).await;
    let annotation = "io.katacontainers.config.hypervisor.cc_init_data";
    let pod = node.pod("cached").handler("cocoon").annotation(annotation, &initdata).run().await;

    // The guest has everything from the node: each blob has been downloaded once, by the node.
    pod.container("first", &first).start().await.said("first as 1000:2000", LIMIT).await;
    for layer in layers(&lab, "first") {
        assert_eq!(requests(&registry, &layer), 1, "{layer}: {}", registry.log());
    }

    // What the node has lost, the guest has from the registry.
    snapshotter.wipe_and_restart();
    pod.container("second", &second).start().await.said("second", LIMIT).await;
    for layer in layers(&lab, "second") {
        assert_eq!(requests(&registry, &layer), 2, "{layer}: {}", registry.log());
    }
    pod.remove().await;
}

async fn story(suite: &str, configuration: &str) {
    let lab = Lab::new();
    let registry = lab.registry();
    let first = registry.push(Image::busybox(&lab, "first", "sleep 1").layout(), "first");
    let second = registry.push(Image::busybox(&lab, "second", "sleep 2").layout(), "second");
    let ordinary = registry.push(Image::busybox(&lab, "ordinary", "sleep 3").layout(), "ordinary");
    let mut node = match Node::start(&lab, &registry, suite, configuration).await {
        Ok(node) => node,
        Err(cause) => {
            eprintln!("skipped: {cause}");
            return;
        }
    };

    // Ten pods want the image at the same time.
    try_join_all((0..10).map(|_| node.pull(&first, "guests"))).await.unwrap();
    let layers = layers(&lab, "first");
    for layer in &layers {
        assert!(!node.ctr(&["content", "ls", "-q"]).unwrap().contains(layer), "containerd has fetched {layer}");
        assert_eq!(requests(&registry, layer), 1, "{layer}");
        let blob = node.blob(layer).await.unwrap();
        assert_eq!(format!("sha256:{}", sha256(&blob)), *layer);
    }
    assert_eq!(node.container(&first, "one")["source"], first);
    assert_eq!(node.snapshots("overlayfs"), Vec::<String>::new());

    // Killed and wiped between two pulls, it goes on with what containerd knows.
    node.kill_and_wipe_snapshotter();
    assert_eq!(node.container(&first, "two")["volume_type"], "image_guest_pull");
    assert_eq!(node.volume("one")["volume_type"], "image_guest_pull");
    node.pull(&first, "guests").await.unwrap();
    node.pull(&second, "guests").await.unwrap();
    assert_eq!(node.container(&second, "three")["source"], second);

    // Away during a pull, it makes that one pull fail.
    node.snapshotter.kill();
    let third = registry.push(Image::busybox(&lab, "third", "sleep 4").layout(), "third");
    node.pull(&third, "guests").await.unwrap_err();
    node.start_snapshotter();
    node.pull_until_it_works(&third).await;

    // An image that was pulled for ordinary containers serves guests, too.
    node.pull(&ordinary, "ordinary").await.unwrap();
    assert_eq!(node.container(&ordinary, "four")["volume_type"], "image_guest_pull");
    assert_eq!(fs::read_dir(lab.path().join("snapshotter/state/unpacking")).unwrap().count(), 0);

    for container in ["one", "two", "three", "four"] {
        node.ctr(&["containers", "rm", container]).unwrap();
    }
    let images = node.ctr(&["images", "ls", "--quiet"]).unwrap();
    node.ctr(&[&["images", "rm", "--sync"], &images.lines().collect::<Vec<_>>()[..]].concat()).unwrap();
    assert_eq!(node.snapshots("guests"), Vec::<String>::new());
}

/// containerd with the snapshotter as its plugin, each with folders of its own.
struct Node<'a> {
    folder: &'a Path,
    programs: PathBuf,
    snapshotter: Daemon,
    containerd: Daemon,
}

impl<'a> Node<'a> {
    async fn start(lab: &'a Lab, registry: &Registry, suite: &str, configuration: &str) -> Result<Self, String> {
        let programs = NewerDebian::unpack(suite, &["containerd"])?.path().join("usr/bin");
        let folder = lab.path();
        let hosts = folder.join("registries").join(registry.host());
        fs::create_dir_all(&hosts).unwrap();
        fs::write(hosts.join("ca.crt"), registry.certificate()).unwrap();
        // The registry's name is the one that guests know.
        let port = registry.host().rsplit(':').next().unwrap().to_owned();
        let ca = hosts.join("ca.crt");
        let mirror = format!(
            "[host.\"https://127.0.0.1:{port}\"]\ncapabilities = [\"pull\", \"resolve\"]\nca = {:?}\n",
            ca.to_str().unwrap()
        );
        fs::write(hosts.join("hosts.toml"), mirror).unwrap();

        let snapshotter = serve_snapshotter(folder);
        let configuration = configuration.replace("FOLDER", folder.to_str().unwrap());
        fs::write(folder.join("containerd.toml"), configuration).unwrap();
        let mut command = Command::new(programs.join("containerd"));
        command.env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
        let containerd = Daemon::start(command.arg("--config").arg(folder.join("containerd.toml")));
        containerd.wait_for("containerd successfully booted", LIMIT);
        Ok(Self { folder, programs, snapshotter, containerd })
    }

    fn start_snapshotter(&mut self) {
        self.snapshotter = serve_snapshotter(self.folder);
    }

    fn kill_and_wipe_snapshotter(&mut self) {
        self.snapshotter.kill();
        fs::remove_dir_all(self.folder.join("snapshotter")).unwrap();
        self.start_snapshotter();
    }

    /// Pulls an image as a kubelet does for a pod of this handler.
    async fn pull(&self, image: &str, handler: &str) -> Result<(), Status> {
        let annotations = HashMap::from([("io.containerd.cri.runtime-handler".to_owned(), handler.to_owned())]);
        let image =
            cri::ImageSpec { image: image.to_owned(), runtime_handler: handler.to_owned(), ..Default::default() };
        let sandbox = cri::PodSandboxConfig { annotations, ..Default::default() };
        let request = cri::PullImageRequest { image: Some(image), sandbox_config: Some(sandbox), ..Default::default() };
        let endpoint =
            Endpoint::from_shared(format!("unix:{}", self.folder.join("containerd.sock").display())).unwrap();
        let channel: Channel = endpoint.timeout(LIMIT).connect().await.unwrap();
        ImageServiceClient::new(channel).pull_image(request).await.map(drop)
    }

    /// Pulls an image as often as a kubelet would: containerd connects to a plugin that was away only after a pause.
    async fn pull_until_it_works(&self, image: &str) {
        let again = async {
            while self.pull(image, "guests").await.is_err() {
                // The end of that pause is no event that one could wait for.
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(LIMIT, again).await.unwrap();
    }

    /// Creates a container, which makes containerd look into its root, and returns the order for its guest.
    fn container(&self, image: &str, name: &str) -> Value {
        self.ctr(&["containers", "create", "--snapshotter", "guests", image, name]).unwrap();
        self.volume(name)
    }

    /// The order for a container's guest.
    fn volume(&self, container: &str) -> Value {
        let mount = self.ctr(&["snapshots", "--snapshotter", "guests", "mounts", "/target", container]).unwrap();
        let (_, option) = mount.split_once("io.katacontainers.volume=").unwrap_or_else(|| panic!("{mount}"));
        let option = option.split([',', ' ', '\n']).next().unwrap();
        serde_json::from_slice(&STANDARD.decode(option).unwrap()).unwrap()
    }

    fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let list = self.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]).unwrap();
        list.lines().skip(1).map(str::to_owned).collect()
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let mut command = Command::new(self.programs.join("ctr"));
        command.arg("--address").arg(self.folder.join("containerd.sock")).args(["--namespace", "k8s.io"]);
        let output = command.args(arguments).output().unwrap();
        match output.status.success() {
            true => Ok(String::from_utf8(output.stdout).unwrap()),
            false => Err(format!("{arguments:?}: {}", String::from_utf8_lossy(&output.stderr))),
        }
    }

    /// What a guest gets for a digest, if it gets anything.
    async fn blob(&self, digest: &str) -> Option<Vec<u8>> {
        let mut stream = UnixStream::connect(self.folder.join("snapshotter/run/blobs.sock")).await.unwrap();
        let request = format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
        answer.starts_with(b"HTTP/1.1 200").then(|| answer[end + 4..].to_vec())
    }
}

impl Drop for Node<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("containerd:\n{}\nsnapshotter:\n{}", self.containerd.text(), self.snapshotter.text());
        }
    }
}

fn serve_snapshotter(folder: &Path) -> Daemon {
    let own = folder.join("snapshotter");
    let configuration = format!(
        "run_dir = \"{own}/run\"\nstate_dir = \"{own}/state\"\nregistries = \"{}/registries\"\n\
         credentials = \"{own}/config.json\"\n",
        folder.display(),
        own = own.display()
    );
    fs::write(folder.join("snapshotter.toml"), configuration).unwrap();
    let mut command = Command::new(Lab::program("cocoon-snapshotter"));
    let snapshotter = Daemon::start(command.arg("--config").arg(folder.join("snapshotter.toml")));
    snapshotter.wait_for("ready", LIMIT);
    snapshotter
}

/// The digests of an image's layers.
fn layers(lab: &Lab, name: &str) -> Vec<String> {
    let layout = lab.path().join(name);
    let blob = |digest: &Value| {
        let (_, hex) = digest.as_str().unwrap().split_once(':').unwrap();
        fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
    };
    let index: Value = serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
    let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0]["digest"])).unwrap();
    let layers = manifest["layers"].as_array().unwrap();
    layers.iter().map(|layer| layer["digest"].as_str().unwrap().to_owned()).collect()
}

/// How often the registry has sent a blob.
fn requests(registry: &Registry, digest: &str) -> usize {
    let log = registry.log();
    let sent = |line: &&str| line.contains("\"GET /v2/") && line.contains(digest) && line.contains("\" 200 ");
    log.lines().filter(sent).count()
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}

const VERSION_1: &str = r#"
version = 2
root = "FOLDER/root"
state = "FOLDER/containerd"
[grpc]
address = "FOLDER/containerd.sock"
[proxy_plugins.guests]
type = "snapshot"
address = "FOLDER/snapshotter/run/containerd.sock"
[plugins."io.containerd.grpc.v1.cri".registry]
config_path = "FOLDER/registries"
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "ordinary"
disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.ordinary]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.guests]
runtime_type = "io.containerd.runc.v2"
snapshotter = "guests"
"#;
const VERSION_2: &str = r#"
version = 3
root = "FOLDER/root"
state = "FOLDER/containerd"
[grpc]
address = "FOLDER/containerd.sock"
[proxy_plugins.guests]
type = "snapshot"
address = "FOLDER/snapshotter/run/containerd.sock"
[proxy_plugins.guests.exports]
enable_remote_snapshot_annotations = "true"
[plugins."io.containerd.cri.v1.images"]
disable_snapshot_annotations = false
[plugins."io.containerd.cri.v1.images".registry]
config_path = "FOLDER/registries"
[plugins."io.containerd.cri.v1.images".runtime_platforms.guests]
platform = "linux/amd64"
snapshotter = "guests"
[plugins."io.containerd.cri.v1.runtime".containerd]
default_runtime_name = "ordinary"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.ordinary]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.cri.v1.runtime".containerd.runtimes.guests]
runtime_type = "io.containerd.runc.v2"
snapshotter = "guests"
"#;
const LIMIT: Duration = Duration::from_secs(60);
