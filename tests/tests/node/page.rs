//! The page about Kubernetes: its commands, run as they stand, and the pod that comes of them.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::node::{Cocoon, Containerd, Node};
use tests::{Image, Lab};

use crate::ground::{INITDATA, LIMIT};

#[tokio::test(flavor = "multi_thread")]
async fn an_owner_can_follow_the_page_about_kubernetes() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let script = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/answer; echo; exec sleep 3600";
    let image = registry.push(Image::busybox(&lab, "app", script).layout(), "app");
    trustee.secret("default/demo/answer", &lab.file("answer", "the answer is 42"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let node = match Node::start(&lab, &registry, Containerd::V1, Some(&Cocoon::new())).await {
        Ok(node) => node,
        Err(reason) => return eprintln!("skipped: there can't be a node: {reason}"),
    };
    node.relay(trustee.port().parse().unwrap());

    let project = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let page = fs::read_to_string(project.join("docs/kubernetes.md")).unwrap();
    let blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    let script = lab.file("script", format!("set -eu\nset -o pipefail\n{}", blocks.collect::<String>()));
    let desk = lab.path().join("desk");
    fs::create_dir_all(desk.join("trustee")).unwrap();
    fs::write(desk.join("trustee/ca.pem"), trustee.certificate()).unwrap();
    let programs = Lab::program("cocoon").parent().unwrap().to_owned();
    let certificate = registry.data().with_file_name("tls.crt");
    let mut shell = Command::new("bash");
    shell.arg(script).current_dir(&desk);
    shell.env("PATH", format!("{}:{}", programs.display(), std::env::var("PATH").unwrap()));
    shell.env("IMAGE", image.split('@').next().unwrap().replace("10.0.2.2", "127.0.0.1"));
    shell.env("POLICIES", project.join("examples/policies")).env("KBS", trustee.guest_url());
    shell.env("REGISTRY_CA", &certificate).env("SSL_CERT_FILE", &certificate);
    let output = shell.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));

    // What a kubelet makes of the page's pod.
    assert!(page.contains(&format!("    {INITDATA}: ")) && page.contains("\nhandler: cocoon\n"));
    node.pull(&image).await;
    let annotation = fs::read_to_string(desk.join("annotation")).unwrap();
    let pod = node.pod("app").handler("cocoon").annotation(INITDATA, annotation).run().await;
    let app = pod.container("app", &image).start().await;
    app.said("the answer is 42", LIMIT).await;
    pod.remove().await;
    assert_eq!(node.leftovers().await, [""; 0]);
}
