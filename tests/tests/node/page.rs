//! The page about Kubernetes: its commands, run as they stand, and the pod that comes of them.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tests::node::{Cocoon, Containerd, Node};
use tests::{Image, Lab};

use crate::ground::{INITDATA, LIMIT};

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_can_follow_the_page_about_kubernetes() {
    let lab = Lab::new();
    let registry = lab.registry();
    let script = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/answer; echo; exec sleep 3600";
    let image = registry.push(Image::busybox(&lab, "app", script).layout(), "app");
    let node = match Node::start(&lab, &registry, Containerd::V1, Some(&Cocoon::new())).await {
        Ok(node) => node,
        Err(reason) => return eprintln!("skipped: there can't be a node: {reason}"),
    };
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    node.relay(port);

    let page = fs::read_to_string(project().join("docs/kubernetes.md")).unwrap();
    let certificate = registry.data().with_file_name("tls.crt");
    let mut shell = Command::new("bash");
    shell.env("ADDRESS", HOST);
    shell.env("IMAGE", image.split('@').next().unwrap().replace(HOST, "127.0.0.1"));
    shell.env("POLICIES", project().join("examples/policies"));
    shell.env("REGISTRY_CA", &certificate).env("SSL_CERT_FILE", &certificate);
    let desk = Desk::follow(&lab, shell, &page.replace(":8080", &format!(":{port}")));

    // What a kubelet makes of the page's pod.
    assert!(page.contains(&format!("    {INITDATA}: ")) && page.contains("\nhandler: cocoon\n"));
    node.pull(&image).await;
    let annotation = fs::read_to_string(desk.folder.join("annotation")).unwrap();
    let pod = node.pod("app").handler("cocoon").annotation(INITDATA, annotation).run().await;
    let app = pod.container("app", &image).start().await;
    app.said("the answer is 42", LIMIT).await;
    pod.remove().await;
    assert_eq!(node.leftovers().await, [""; 0]);
}

/// An owner who has typed a page's commands. What they have started ends with this value.
struct Desk {
    folder: PathBuf,
    shell: Child,
}

impl Desk {
    /// Runs the page's commands to the last.
    fn follow(lab: &Lab, mut shell: Command, page: &str) -> Self {
        let folder = lab.path().join("desk");
        fs::create_dir_all(&folder).unwrap();
        let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
        // At the end of its input, which is this value's, the shell ends what runs still.
        let script = format!("{BEGIN}{}echo; echo {FOLLOWED}; read -r _ || true\n", blocks.collect::<String>());
        let script = lab.file("script", script);
        let programs = Lab::program("cocoon").parent().unwrap().to_owned();
        let errors = lab.path().join("errors");
        shell.arg(script).current_dir(&folder);
        shell.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
        shell.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(File::create(&errors).unwrap());
        let mut desk = Self { folder, shell: shell.spawn().unwrap() };
        let mut said = BufReader::new(desk.shell.stdout.take().unwrap()).lines().map_while(Result::ok);
        assert!(said.any(|line| line == FOLLOWED), "{}", fs::read_to_string(errors).unwrap());
        desk
    }
}

impl Drop for Desk {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

fn project() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

const BEGIN: &str = "set -eu\nset -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n";
const FOLLOWED: &str = "the page was followed";
/// This machine as pods of a node see it.
const HOST: &str = "10.0.2.2";
