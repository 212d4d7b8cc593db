//! The snapshotter as a proxy plugin of a real containerd, with a real registry: pulls, containers, kills and wipes.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use futures::future::try_join_all;
use serde_json::Value;
use tests::node::{Cocoon, Containerd, Node, Snapshotter};
use tests::{Image, InitDataFiles, Lab, Registry, example_policy, run};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;

#[tokio::test(flavor = "multi_thread")]
async fn containerd_1_leaves_an_image_to_guests_whatever_happens_to_the_snapshotter() {
    story(Containerd::V1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_leaves_an_image_to_guests_whatever_happens_to_the_snapshotter() {
    story(Containerd::V2).await;
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
    let node = match Node::start(&lab, &registry, Containerd::V1, Some(&cocoon)).await {
        Ok(node) => node,
        Err(cause) => {
            eprintln!("skipped: {cause}");
            return;
        }
    };
    let snapshotter = Snapshotter::start(&node);
    snapshotter.pull(&first).await;
    snapshotter.pull(&second).await;
    let pod = node.pod("cached").handler("cocoon").annotation(INITDATA, &initdata).run().await;

    // The guest has everything from the node: each blob has been downloaded once, by the node.
    // The group of the image's USER gets lost in Kubernetes, as with any runtime.
    pod.container("first", &first).start().await.said("first as 1000:0", LIMIT).await;
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

async fn story(version: Containerd) {
    let lab = Lab::new();
    let registry = lab.registry();
    let first = registry.push(Image::busybox(&lab, "first", "sleep 1").layout(), "first");
    let second = registry.push(Image::busybox(&lab, "second", "sleep 2").layout(), "second");
    let ordinary = registry.push(Image::busybox(&lab, "ordinary", "sleep 3").layout(), "ordinary");
    let cocoon = Cocoon::new().with_snapshotter();
    let node = match Node::start(&lab, &registry, version, Some(&cocoon)).await {
        Ok(node) => node,
        Err(cause) => return eprintln!("skipped: {cause}"),
    };
    let snapshotter = Snapshotter::start(&node);
    let unpacked = snapshots(&node, "overlayfs");

    // Ten pods want the image at the same time.
    try_join_all((0..10).map(|_| node.try_pull(&first, "cocoon", None))).await.unwrap();
    for layer in &layers(&lab, "first") {
        assert!(!node.ctr(&["content", "ls", "-q"]).contains(layer), "containerd has fetched {layer}");
        assert_eq!(requests(&registry, layer), 1, "{layer}");
        let blob = blob(&node, layer).await.unwrap();
        assert_eq!(format!("sha256:{}", sha256(&blob)), *layer);
    }
    assert_eq!(container(&node, &first, "one")["source"], first);
    assert_eq!(snapshots(&node, "overlayfs"), unpacked);

    // Killed and wiped between two pulls, it goes on with what containerd knows.
    snapshotter.wipe_and_restart();
    assert_eq!(container(&node, &first, "two")["volume_type"], "image_guest_pull");
    assert_eq!(volume(&node, "one")["volume_type"], "image_guest_pull");
    node.try_pull(&first, "cocoon", None).await.unwrap();
    node.try_pull(&second, "cocoon", None).await.unwrap();
    assert_eq!(container(&node, &second, "three")["source"], second);

    // Away during a pull, it makes that one pull fail.
    snapshotter.kill();
    let third = registry.push(Image::busybox(&lab, "third", "sleep 4").layout(), "third");
    node.try_pull(&third, "cocoon", None).await.unwrap_err();
    snapshotter.start_again();
    snapshotter.pull(&third).await;

    // An image that was pulled for ordinary containers serves guests, too.
    node.pull(&ordinary).await;
    assert_eq!(container(&node, &ordinary, "four")["volume_type"], "image_guest_pull");
    assert_eq!(fs::read_dir(node.folder().join("snapshotter/unpacking")).unwrap().count(), 0);

    // A mirror by its name, which only the node's /etc/hosts knows.
    node.shell("echo '10.0.2.2 mirror.test' >> /etc/hosts");
    let hosts = node.folder().join("registries").join(registry.host()).join("hosts.toml");
    let was = fs::read_to_string(&hosts).unwrap();
    let port = registry.host().rsplit(':').next().unwrap().to_owned();
    let mirror =
        format!("[host.\"https://mirror.test:{port}\"]\ncapabilities = [\"pull\", \"resolve\"]\nskip_verify = true\n");
    fs::write(&hosts, mirror).unwrap();
    let by_name = registry.push(Image::busybox(&lab, "by-name", "sleep 5").layout(), "by-name");
    snapshotter.pull(&by_name).await;
    for layer in &layers(&lab, "by-name") {
        assert!(blob(&node, layer).await.is_some(), "{}", snapshotter.log());
    }
    fs::write(&hosts, was).unwrap();

    users_are_the_image_s(&lab, &registry, &node, &snapshotter).await;

    // Where containerd can't be asked, its refusal says what can be done.
    let named = named(&lab, &registry, "unasked", "web");
    snapshotter.pull(&named).await;
    snapshotter.restart_with("containerd = \"/nowhere\"\n");
    let initdata =
        InitDataFiles::without_trustee(example_policy("debug", &named), &registry).annotation(&lab, "initdata");
    let pod = node.pod("unasked").handler("cocoon").annotation(INITDATA, initdata).run().await;
    let refused = pod.container("app", &named).create().await.err().unwrap();
    assert!(refused.message().contains("next: see the snapshotter's log"), "{refused}");
    assert!(snapshotter.log().contains("containerd can't be reached"), "{}", snapshotter.log());
    pod.remove().await;
    snapshotter.restart_with("");

    for container in ["one", "two", "three", "four"] {
        node.ctr(&["containers", "rm", container]);
    }
    let images = node.ctr(&["images", "ls", "--quiet"]);
    node.ctr(&[&["images", "rm", "--sync"], &images.lines().collect::<Vec<_>>()[..]].concat());
    assert_eq!(snapshots(&node, "cocoon"), [""; 0]);
}

/// A user whom an image names is looked up in its guest, since the node has none of the image's files, and the owner's policy
/// lets nobody else in. The group beside it a kubelet drops.
async fn users_are_the_image_s(lab: &Lab, registry: &Registry, node: &Node, snapshotter: &Snapshotter<'_>) {
    for (number, (user, expected)) in
        [("web", "1234:2345 2345 3456"), ("web:staff", "1234:2345 2345 3456"), ("1234:7", "1234:2345 2345 3456")]
            .iter()
            .enumerate()
    {
        let name = format!("named-{number}");
        let named = named(lab, registry, &name, user);
        snapshotter.pull(&named).await;
        // What it knows of names it has from containerd, at any time.
        snapshotter.wipe_and_restart();
        let policy = example_policy("exec-and-logs", &named);
        let policy = policy.replace("\"exec_commands\": []", "\"exec_commands\": [[\"id\", \"-u\"]]");
        let initdata = InitDataFiles::without_trustee(policy, registry).annotation(lab, "initdata");
        let pod = node.pod(&name).handler("cocoon").annotation(INITDATA, initdata).run().await;

        let container = pod.container("app", &named).start().await;

        container.said(&format!("as {expected}"), LIMIT).await;
        assert_eq!(container.exec(&["id", "-u"]).await.stdout, "1234\n");
        for (other, id) in [("root", 0), ("other", 7)] {
            let other = pod.container(other, &named).user(id, id, &[]).create().await.unwrap();
            assert!(other.start().await.unwrap_err().message().contains("blocked by policy"));
        }
        pod.remove().await;
    }
}

/// An image with accounts, which names a user and says whom it runs as.
fn named(lab: &Lab, registry: &Registry, name: &str, user: &str) -> String {
    let image = Image::busybox(lab, name, "echo as $(id -u):$(id -g) $(id -G); exec sleep 3600");
    let etc = lab.path().join("etc");
    fs::create_dir_all(&etc).unwrap();
    fs::write(etc.join("passwd"), "root:x:0:0::/:/bin/sh\nweb:x:1234:2345::/:/bin/sh\n").unwrap();
    fs::write(etc.join("group"), "root:x:0:\nweb:x:2345:\nstaff:x:3456:web\n").unwrap();
    let layout = format!("{}:latest", image.layout().display());
    run("umoci", ["insert", "--rootless", "--image", &layout, &etc.display().to_string(), "/etc"]);
    run("umoci", ["config", "--image", &layout, "--config.user", user]);
    registry.push(image.layout(), name)
}

/// Creates a container, which makes containerd look into its root, and returns the order for its guest.
fn container(node: &Node, image: &str, name: &str) -> Value {
    node.ctr(&["containers", "create", "--snapshotter", "cocoon", image, name]);
    volume(node, name)
}

/// The order for a container's guest.
fn volume(node: &Node, container: &str) -> Value {
    let mount = node.ctr(&["snapshots", "--snapshotter", "cocoon", "mounts", "/target", container]);
    let (_, option) = mount.split_once("io.katacontainers.volume=").unwrap_or_else(|| panic!("{mount}"));
    let option = option.split([',', ' ', '\n']).next().unwrap();
    serde_json::from_slice(&STANDARD.decode(option).unwrap()).unwrap()
}

fn snapshots(node: &Node, snapshotter: &str) -> Vec<String> {
    let list = node.ctr(&["snapshots", "--snapshotter", snapshotter, "ls"]);
    list.lines().skip(1).map(str::to_owned).collect()
}

/// What a guest gets for a digest, if it gets anything.
async fn blob(node: &Node, digest: &str) -> Option<Vec<u8>> {
    let mut stream = UnixStream::connect(node.path("/run/cocoon-snapshotter/blobs.sock")).await.unwrap();
    let request = format!("GET /blobs/{digest} HTTP/1.1\r\nhost: node\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    let end = answer.windows(4).position(|part| part == b"\r\n\r\n").unwrap();
    answer.starts_with(b"HTTP/1.1 200").then(|| answer[end + 4..].to_vec())
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

/// The annotation with which an owner's initdata travels.
const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
const LIMIT: Duration = Duration::from_secs(60);
