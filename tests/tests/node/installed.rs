//! The page about nodes: its commands, run as they stand, and the pods of the handlers that they make.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde_json::Value;
use tests::node::{Containerd, Node, Pod};
use tests::{Image, InitDataFiles, Lab, example_policy, run};

use crate::ground::{INITDATA, LIMIT};

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_of_containerd_1_can_follow_the_page_about_nodes() {
    follow(Containerd::V1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_of_containerd_2_can_follow_the_page_about_nodes() {
    follow(Containerd::V2).await;
}

async fn follow(version: Containerd) {
    let lab = Lab::new();
    let registry = lab.registry();
    let image = registry.push(Image::busybox(&lab, "app", "echo the image; exec sleep 3600").layout(), "app");
    let initdata =
        InitDataFiles::without_trustee(example_policy("debug", &image), &registry).annotation(&lab, "initdata");
    let node = match Node::start(&lab, &registry, version, None).await {
        Ok(node) => node,
        Err(reason) => return eprintln!("skipped: there can't be a node: {reason}"),
    };
    let operator = Operator::new(&lab, &node);
    let [install, look, rollback, uninstall] = blocks();
    let configuration = fs::read_to_string(node.path(CONFIGURATION)).unwrap();
    let pod = async |name: &str| {
        node.try_pull(&image, HANDLER, None).await.unwrap();
        node.pod(name).handler(HANDLER).annotation(INITDATA, &initdata).run().await
    };

    let first = operator.releases("0.1.0");
    operator.runs(&install);
    operator.carry_out_orders().await;
    let found = operator.runs(&look);
    assert!(found.contains("good     containerd") && found.contains("good     snapshotter"), "{found}");
    let old = pod("old").await;
    let app = old.container("app", &image).start().await;
    app.said("the image", LIMIT).await;
    assert!(operator.runs("cocoon ps").contains(old.id()));
    assert!(operator.runs("cocoon --version").starts_with("cocoon 0."));

    // The newer release changes nothing for pods that run.
    let second = operator.releases("0.2.0");
    let said = operator.runs(&install);
    assert!(said.contains(&format!("still in use  {}", operator.version_of(&old))), "{said}");
    operator.carry_out_orders().await;
    assert!(operator.version_of(&old).starts_with(&first));
    assert_eq!(app.exec(&["echo", "still here"]).await.stdout, "still here\n");
    let new = pod("new").await;
    assert!(operator.version_of(&new).starts_with(&second));
    new.container("app", &image).start().await.said("the image", LIMIT).await;

    operator.runs(&rollback);
    let again = pod("again").await;
    assert!(operator.version_of(&again).starts_with(&first));
    again.container("app", &image).start().await.said("the image", LIMIT).await;

    let refused = operator.fails(&uninstall);
    for pod in [&old, &new, &again] {
        assert!(refused.contains(&format!("the pod {} runs from", pod.id())), "{refused}");
    }
    assert_eq!(app.exec(&["echo", "and here"]).await.stdout, "and here\n");
    for pod in [old, new, again] {
        pod.remove().await;
    }
    operator.runs(&uninstall);
    assert_eq!(node.leftovers().await, [""; 0]);

    assert_eq!(fs::read_to_string(node.path(CONFIGURATION)).unwrap(), configuration);
    assert!(
        !node.path("/opt/cocoon").exists() && !node.path("/etc/systemd/system/cocoon-snapshotter.service").exists()
    );
    assert!(node.path(SETTINGS).exists(), "what is the operator's own stays");
    node.restart_containerd().await;
    assert!(node.pod("none").handler(HANDLER).try_run().await.is_err());
    assert_eq!(node.leftovers().await, [""; 0]);
}

/// Whoever types the page's commands on a node, in a folder with a release.
struct Operator<'a> {
    node: &'a Node,
    desk: PathBuf,
}

impl<'a> Operator<'a> {
    /// systemd can't be had in a node's namespaces: a script does what it is asked to do with the snapshotter, and writes down
    /// the rest.
    fn new(lab: &Lab, node: &'a Node) -> Self {
        let desk = lab.path().join("desk");
        fs::create_dir_all(&desk).unwrap();
        fs::create_dir_all(node.path("/run/systemd/system")).unwrap();
        let systemctl = node.path("/usr/local/bin/systemctl");
        fs::write(&systemctl, SYSTEMCTL).unwrap();
        fs::set_permissions(systemctl, Permissions::from_mode(0o755)).unwrap();

        let folder = node.folder().display();
        for (path, text) in [
            (SETTINGS, "[hypervisor.qemu]\ndefault_memory = 256\n".to_owned()),
            (
                "/etc/cocoon/snapshotter.toml",
                format!("state_dir = \"{folder}/snapshotter\"\nregistries = \"{folder}/registries\"\n"),
            ),
        ] {
            fs::create_dir_all(node.path(path).parent().unwrap()).unwrap();
            fs::write(node.path(path), text).unwrap();
        }
        Self { node, desk }
    }

    /// Gets another release of what is under test, under this number, which it gives back.
    fn releases(&self, number: &str) -> String {
        let release = self.desk.join(number);
        for folder in ["bin", "share/guest-image"] {
            fs::create_dir_all(release.join(folder)).unwrap();
        }
        for program in ["cocoon", "containerd-shim-cocoon-v2", "cocoon-snapshotter"] {
            fs::copy(Lab::program(program), release.join("bin").join(program)).unwrap();
        }
        for file in fs::read_dir(Lab::guest_image()).unwrap().flatten() {
            fs::copy(file.path(), release.join("share/guest-image").join(file.file_name())).unwrap();
        }
        fs::write(release.join("version"), number).unwrap();
        let sum = format!("cd {} && sha256sum version bin/* share/guest-image/* > SHA256SUMS", release.display());
        run("sh", ["-c", &sum]);
        let _ = fs::remove_file(self.desk.join("release"));
        symlink(number, self.desk.join("release")).unwrap();
        format!("{number}-")
    }

    /// Runs commands that succeed, and gives what they print.
    fn runs(&self, script: &str) -> String {
        let (succeeded, text) = self.types(script);
        assert!(succeeded, "{text}");
        text
    }

    /// Runs commands that fail, and gives what they print.
    fn fails(&self, script: &str) -> String {
        let (succeeded, text) = self.types(script);
        assert!(!succeeded, "{text}");
        text
    }

    fn types(&self, script: &str) -> (bool, String) {
        let path = format!("{}/release/bin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.desk.display());
        let script = format!("cd {} && set -eu\n{script}", self.desk.display());
        let output = self.node.command("bash").args(["-c", &script]).env("PATH", path).output().unwrap();
        let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        (output.status.success(), text)
    }

    /// Restarts containerd if systemd was asked to.
    async fn carry_out_orders(&self) {
        let orders = self.node.path("/run/systemd/orders");
        assert_eq!(fs::read_to_string(&orders).unwrap(), "restart containerd.service\n");
        fs::remove_file(orders).unwrap();
        self.node.restart_containerd().await;
    }

    /// The version that a pod runs from.
    fn version_of(&self, pod: &Pod<'_>) -> String {
        let status: Value = serde_json::from_str(&self.runs("cocoon node status --json")).unwrap();
        let mut versions = status["versions"].as_array().unwrap().iter();
        let version = versions.find(|version| version["pods"].as_array().unwrap().iter().any(|id| id == pod.id()));
        version.unwrap_or_else(|| panic!("no version has {}: {status}", pod.id()))["version"]
            .as_str()
            .unwrap()
            .to_owned()
    }
}

/// The page's commands.
fn blocks<const N: usize>() -> [String; N] {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/node.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap().to_owned());
    blocks.collect::<Vec<_>>().try_into().unwrap()
}

const HANDLER: &str = "kata-qemu-coco-dev";
const CONFIGURATION: &str = "/etc/containerd/config.toml";
const SETTINGS: &str = "/etc/cocoon/qemu-coco-dev.d/10-memory.toml";
/// Its pipe is that of whoever asks, so nothing may keep it open.
const SYSTEMCTL: &str = r#"#!/bin/bash
cd /run/systemd
stop() {
    test -e pid || return 0
    kill "$(cat pid)"
    tail --pid="$(cat pid)" -f /dev/null
    rm pid
}
start() {
    test ! -e pid || return 0
    program=$(sed -n s/^ExecStart=//p /etc/systemd/system/cocoon-snapshotter.service)
    setsid $program > snapshotter.log 2>&1 < /dev/null &
    echo $! > pid
    timeout 60 bash -c 'grep -q -m1 ready <(exec tail -n +1 -F snapshotter.log 2>&1)'
}
case "$*" in
    daemon-reload) ;;
    "is-active --quiet containerd.service") ;;
    "enable --now cocoon-snapshotter.service") start ;;
    "restart cocoon-snapshotter.service") stop; start ;;
    "disable --now cocoon-snapshotter.service") stop ;;
    *) echo "$*" >> orders ;;
esac
"#;
