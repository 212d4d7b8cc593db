//! `cocoon node`, `cocoon ps` and `cocoon metrics` as an operator calls them.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::process::{Command, Output};

use sandbox::{Directory, SandboxName};
use serde_json::Value;

#[test]
fn a_bare_node_is_told_what_it_lacks() {
    let node = tempfile::tempdir().unwrap();
    let root = node.path().to_str().unwrap();

    let check = cocoon(&["node", "check", "--root", root, "--json"]);
    assert_eq!(check.status.code(), Some(1));
    let findings: Value = serde_json::from_slice(&check.stdout).unwrap();
    let containerd = findings.as_array().unwrap().iter().find(|it| it["name"] == "containerd").unwrap();
    assert_eq!(containerd["verdict"], "failure");
    assert!(containerd["next"].as_str().unwrap().contains("1.7"));
    let check = cocoon(&["node", "check", "--root", root]);
    assert!(check.status.code() == Some(1) && text(&check.stdout).contains("FAILURE  containerd"));

    let install = cocoon(&["node", "install", "--from", root, "--root", root]);
    assert_eq!(install.status.code(), Some(1));
    assert!(text(&install.stderr).contains("version is missing"), "{}", text(&install.stderr));
    let install = cocoon(&["node", "install", "--root", root]);
    assert!(text(&install.stderr).contains("is part of no release"), "{}", text(&install.stderr));

    let status = cocoon(&["node", "status", "--root", root]);
    assert!(status.status.success() && text(&status.stdout).contains("versions      none"));
    assert!(cocoon(&["node", "uninstall", "--root", root]).status.success());
}

#[test]
fn a_pod_s_metrics_come_from_its_shim() {
    let name = SandboxName::parse(&format!("test-metrics-{}", std::process::id())).unwrap();
    let folder = Directory::create(&name).unwrap();
    let shim = UnixListener::bind(folder.path().join("shim-monitor.sock")).unwrap();
    let answering = std::thread::spawn(move || {
        let (mut stream, _) = shim.accept().unwrap();
        let asked = BufReader::new(&stream).lines().next().unwrap().unwrap();
        let body = "kata_shim_threads 7\n";
        write!(stream, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len()).unwrap();
        asked
    });

    let metrics = cocoon(&["metrics", name.as_str()]);

    assert_eq!(text(&metrics.stdout), "kata_shim_threads 7\n", "{}", text(&metrics.stderr));
    assert_eq!(answering.join().unwrap(), "GET /metrics HTTP/1.1");
    let pods: Value = serde_json::from_slice(&cocoon(&["ps", "--json"]).stdout).unwrap();
    let pod = pods.as_array().unwrap().iter().find(|pod| pod["name"] == name.as_str()).unwrap();
    assert_eq!(pod["owner"]["pid"], std::process::id());
    assert!(text(&cocoon(&["ps"]).stdout).contains(name.as_str()));

    fs::remove_file(folder.path().join("shim-monitor.sock")).unwrap();
    let refused = cocoon(&["metrics", name.as_str()]);
    assert!(text(&refused.stderr).contains("cocoon doctor"), "{}", text(&refused.stderr));
}

fn cocoon(words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_cocoon")).args(words).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
