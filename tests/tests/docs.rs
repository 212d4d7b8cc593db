//! The documentation's commands, run as they stand.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;
use std::process::Command;

use postgres_server::PostgresServer;
use tests::{Image, Lab, NewerDebian};

/// Every block of docs/trustee.md that is marked `sh`, in one shell, with other ports and a database of its own.
#[test]
fn a_newcomer_can_follow_the_page_about_trustee() {
    let lab = Lab::new();
    let database = PostgresServer::start();
    let mut script = script("trustee.md");
    for port in ["127.0.0.1:8080", "127.0.0.1:8090"] {
        script = script.replace(port, &format!("127.0.0.1:{}", free_port()));
    }
    let programs = Lab::program("trustee").parent().unwrap().to_owned();
    let path = format!("{}:{}", programs.display(), std::env::var("PATH").unwrap());
    let script = lab.file("script", script);

    let mut shell = Command::new("bash");
    shell.arg(script).current_dir(lab.path()).env("PATH", path).env("DATABASE", database.url());
    let output = run_to_end(&mut shell);
    assert_eq!(output.matches("the answer is 42").count(), 2, "{output}");
    for part in ["default/demo/answer", "svn", "unbroken", "entries"] {
        assert!(output.contains(part), "no {part} in\n{output}");
    }
}

/// Every block of docs/images.md that is marked `sh`, with a registry, and with a skopeo that knows key providers.
#[test]
fn an_owner_can_follow_the_page_about_images() {
    let debian = match NewerDebian::get() {
        Ok(debian) => debian,
        Err(reason) => return eprintln!("skipped: skopeo can't be had: {reason}"),
    };
    let lab = Lab::new();
    let registry = lab.registry();
    let pushed = registry.push(Image::busybox(&lab, "app", "true").layout(), "team/plain");
    let place = pushed.split_once("/plain@").unwrap().0.replace("10.0.2.2", "127.0.0.1");
    let mut script = script("images.md");
    for port in ["127.0.0.1:8080", "127.0.0.1:50000"] {
        script = script.replace(port, &format!("127.0.0.1:{}", free_port()));
    }
    let tools = lab.path().join("tools");
    fs::create_dir(&tools).unwrap();
    debian.script("skopeo", "--insecure-policy", &tools.join("skopeo"));
    let programs = Lab::program("trustee").parent().unwrap().to_owned();
    let path = format!("{}:{}:{}", tools.display(), programs.display(), std::env::var("PATH").unwrap());
    let script = lab.file("script", script);

    let mut shell = Command::new("bash");
    shell.arg(script).current_dir(lab.path()).env("PATH", path).env("REGISTRY", &place);
    shell.env("SSL_CERT_FILE", registry.data().with_file_name("tls.crt"));
    let output = run_to_end(&mut shell);
    for part in [
        "tar+gzip+encrypted",
        "key for provider.attestation-agent kbs:///default/key/app",
        &format!("for \"{place}/app\" (not verified)"),
        "envelope.unsealed",
        "the answer is 42",
        "32\n",
    ] {
        assert!(output.contains(part), "no {part} in\n{output}");
    }
}

/// The blocks of a page as one script that ends what it starts.
fn script(page: &str) -> String {
    let page = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page)).unwrap();
    let mut script = String::from("set -eu\nset -o pipefail\ntrap 'kill $(jobs -p) 2>/dev/null || true; wait' EXIT\n");
    for block in page.split("```sh\n").skip(1) {
        script.push_str(block.split("```").next().unwrap());
    }
    script
}

fn run_to_end(command: &mut Command) -> String {
    let output = command.output().unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{text}", output.status);
    text
}

fn free_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}
