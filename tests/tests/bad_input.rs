//! What a person gets for a mistake on the command line: stage, cause, next step, a status, and no leftovers.

#![allow(clippy::unwrap_used)]

use tests::{Finished, Lab, try_run};

#[test]
fn every_mistake_is_one_paragraph_that_says_what_to_do() {
    let lab = Lab::new();
    let guest = Lab::guest_image().display().to_string();
    let missing = lab.path().join("missing").display().to_string();
    let broken = lab.file("broken.toml", "version = \"0.1.0\"\nalgorithm = \"sha256\"\n").display().to_string();
    let truncated = lab.file("truncated", b"initdata\x10\0\0\0\0\0\0\0\x1f\x8b").display().to_string();
    let output = lab.path().join("output").display().to_string();
    let cases: &[(&[&str], &[&str])] = &[
        (&["run", "--guest-image", &missing, "image"], &[&missing, "next:"]),
        (&["run", "--guest-image", &guest, "--initdata", &missing, "image"], &["initdata", &missing, "next:"]),
        (&["run", "--guest-image", &guest, "--initdata", &broken, "image"], &["initdata", "data", "next:"]),
        (&["run", "--guest-image", &guest, "--initdata", &truncated, "image"], &["initdata", "next:"]),
        (&["run", "--guest-image", &guest, "--name", "a/b", "image"], &["not a name"]),
        (&["exec", "no-such-pod", "--", "true"], &["no-such-pod is not running", "next:"]),
        (&["initdata", "build", "--output", &output], &["nothing to put into it", "next:"]),
        (&["initdata", "build", "--policy", &missing, "--output", &output], &[&missing, "next:"]),
        (&["initdata", "build", "--aa", &truncated, "--output", &output], &["next:"]),
        (&["initdata", "show", &missing], &[&missing, "next:"]),
        (&["image", "encrypt", &missing, &output, "--key-file", &missing, "--key-id", "kbs:///a/b/c"], &["next:"]),
        (&["image", "encrypt", &missing, &output, "--key-file", &missing, "--key-id", "nonsense"], &["kbs:///"]),
        (&["guest-image", "build", "--guestd", &missing, "--output", &output], &[&missing, "next:"]),
    ];
    for (arguments, expected) in cases {
        let finished = try_run(Lab::program("cocoon"), *arguments);
        assert_eq!(finished.status.code(), Some(1), "{arguments:?}: {finished}");
        expect_paragraph(arguments, &finished, expected);
    }
    assert!(!lab.path().join("output").exists());
}

#[test]
fn a_wrong_flag_shows_the_usage() {
    for arguments in [&["run", "--no-such-flag"][..], &["fly"], &["run", "--memory", "1", "image"], &[]] {
        let finished = try_run(Lab::program("cocoon"), arguments);
        assert_eq!(finished.status.code(), Some(2), "{arguments:?}: {finished}");
        assert!(finished.stderr.contains("--help") || finished.stderr.contains("Usage"), "{finished}");
    }
}

#[test]
fn an_unreachable_trustee_is_named_to_its_owner() {
    let finished = try_run(
        Lab::program("kbs-client"),
        ["--url", "http://127.0.0.1:1", "config", "set-resource-policy", "--allow-all"],
    );
    assert!(!finished.status.success());
    expect_paragraph(&["set-resource-policy"], &finished, &["127.0.0.1:1", "next:"]);
}

fn expect_paragraph(arguments: &[&str], finished: &Finished, expected: &[&str]) {
    let text = finished.stderr.trim_end();
    assert_eq!(text.lines().count(), 1, "{arguments:?}: {text}");
    for word in expected {
        assert!(text.contains(word), "{arguments:?}: no {word:?} in {text}");
    }
}
