//! `cocoon run` ended at any moment, by whatever means: nothing stays behind, and the next run finds its place free.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};

/// A pod without initdata, which boots and then denies its container.
struct Run {
    name: String,
    process: Child,
    log: BufReader<ChildStderr>,
}

impl Run {
    /// `None`, with a printed reason, where there is nothing to boot.
    fn start(name: &str) -> Option<Self> {
        let image = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cocoon/guest-image");
        if !image.join("manifest.json").exists()
            || Command::new("qemu-system-x86_64").arg("--version").output().is_err()
        {
            eprintln!("skipped: QEMU or the guest image is missing; next: run \"cargo xtask test\"");
            return None;
        }
        let name = format!("{name}-{}", std::process::id());
        let mut process = Command::new(env!("CARGO_BIN_EXE_cocoon"))
            .args(["run", "--acceleration", "tcg", "--name", &name, "--guest-image"])
            .arg(image)
            .arg("registry.invalid/image")
            .env("RUST_LOG", "hypervisor=info,console=debug")
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let log = BufReader::new(process.stderr.take().unwrap());
        Some(Self { name, process, log })
    }

    /// Waits for a line of the log.
    fn wait_for(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            assert_ne!(self.log.read_line(&mut line).unwrap(), 0, "cocoon ended without {text:?}");
        }
        line
    }

    /// Waits for the machine, and tells QEMU's process id.
    fn qemu(&mut self) -> u32 {
        let line = self.wait_for("QEMU runs");
        let digits = line.split("pid=").nth(1).unwrap();
        digits.chars().take_while(char::is_ascii_digit).collect::<String>().parse().unwrap()
    }

    fn signal(&self, signal: &str) {
        send(signal, self.process.id());
    }

    /// Waits for cocoon's end: its status, and the rest of its log.
    fn end(mut self) -> (ExitStatus, String) {
        let mut rest = String::new();
        self.log.read_to_string(&mut rest).unwrap();
        (self.process.wait().unwrap(), rest)
    }

    fn folder(&self) -> PathBuf {
        sandbox::Directory::path_of(&sandbox::SandboxName::parse(&self.name).unwrap())
    }
}

impl Drop for Run {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn send(signal: &str, pid: u32) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
}

/// Waits until a process that is no child of ours is gone.
fn wait_for_end(pid: u32) {
    let wait = ["60", "tail", "--follow", "/dev/null", "--pid", &pid.to_string()];
    assert!(Command::new("timeout").args(wait).status().unwrap().success(), "process {pid} stays");
}

fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok()
}

#[test]
fn a_signal_ends_a_booting_pod_and_everything_of_it() {
    for (signal, status, moment) in [("-INT", 130, None), ("-TERM", 143, None), ("-INT", 130, Some("cocoon: init"))] {
        let Some(mut run) = Run::start("signal") else { return };
        let folder = run.folder();
        let qemu = run.qemu();
        moment.map(|line| run.wait_for(line));
        assert!(folder.exists() && is_running(qemu));

        run.signal(signal);

        let (ended, log) = run.end();
        assert_eq!(ended.code(), Some(status), "{log}");
        assert!(!folder.exists() && !is_running(qemu), "{signal} {moment:?}");
    }
}

#[test]
fn a_signal_before_the_machine_leaves_nothing() {
    let Some(run) = Run::start("early") else { return };
    let folder = run.folder();
    run.signal("-TERM");
    let (ended, log) = run.end();
    assert!(!ended.success(), "{log}");
    assert!(!folder.exists());
}

#[test]
fn a_killed_cocoon_takes_its_machine_along_and_the_next_one_takes_its_place() {
    let Some(mut killed) = Run::start("killed") else { return };
    let folder = killed.folder();
    let qemu = killed.qemu();
    killed.signal("-KILL");
    killed.end();
    wait_for_end(qemu);
    assert!(folder.exists(), "nobody was left to remove it");

    let mut next = Run::start("killed").unwrap();
    let qemu = next.qemu();
    next.signal("-INT");
    let (ended, log) = next.end();
    assert_eq!(ended.code(), Some(130), "{log}");
    assert!(!folder.exists() && !is_running(qemu));
}

#[test]
fn a_killed_machine_is_named_as_the_cause() {
    let Some(mut run) = Run::start("machine") else { return };
    let folder = run.folder();
    send("-KILL", run.qemu());
    let (ended, log) = run.end();
    assert_eq!(ended.code(), Some(1), "{log}");
    assert!(log.contains("QEMU ended with signal: 9") && log.contains("next: "), "{log}");
    assert!(!folder.exists());
}
