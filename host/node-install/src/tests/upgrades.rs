//! Versions that come and go while pods run from them.

use std::fs;
use std::process::{Child, Command, Stdio};

use super::ground::{Ground, VERSION_3, release, sum};
use crate::root::{CURRENT, JOURNAL, VERSIONS};
use crate::{Error, Verdict};

#[test]
fn a_version_stays_while_a_pod_runs_from_it_and_goes_when_nobody_needs_it() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ground) = Ground::new(&folder.path().join("node"), "sid", Some(VERSION_3)) else { return };
    let node = ground.node();
    let [one, two, three] = ["one", "two", "three"].map(|words| release(&folder.path().join(words), words));
    node.install(&one).unwrap();
    let mut pod = pod(&ground, "pod-7");

    assert_eq!(node.install(&two).unwrap().in_use, [one.version()]);
    let outcome = node.install(&three).unwrap();
    assert_eq!((&outcome.in_use[..], &outcome.removed[..]), (&[one.version().to_owned()][..], &[][..]));

    let status = node.status().unwrap();
    assert_eq!((status.current.as_deref(), status.previous.as_deref()), (Some(three.version()), Some(two.version())));
    let of_one = status.versions.iter().find(|it| it.version == one.version()).unwrap();
    assert_eq!(of_one.pods, ["pod-7"]);
    assert_eq!(status.handlers.names, ["kata-qemu-coco-dev", "kata-remote"]);
    assert!(status.containerd.starts_with("2."), "{}", status.containerd);

    let refused = node.uninstall().unwrap_err();
    assert!(matches!(refused, Error::InUse(_)) && refused.to_string().contains("pod-7"), "{refused}");
    ground.expect_whole();

    drop(pod.stdin.take());
    pod.wait().unwrap();
    assert_eq!(node.install(&three).unwrap().removed, [one.version()]);
    node.uninstall().unwrap();
    assert!(!ground.home().exists());
}

#[test]
fn a_rollback_leads_to_the_version_before_and_back_again() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ground) = Ground::new(&folder.path().join("node"), "sid", Some(VERSION_3)) else { return };
    let node = ground.node();
    let one = release(&folder.path().join("one"), "one");
    // The newer one has firmware for a class more.
    release(&folder.path().join("two"), "two");
    fs::write(folder.path().join("two/share/firmware/snp.fd"), "firmware").unwrap();
    let two = crate::Release::open(&folder.path().join("two")).unwrap();
    assert!(matches!(node.rollback(), Err(Error::NoPrevious)));
    node.install(&one).unwrap();
    let of_one = ground.content();
    assert!(matches!(node.rollback(), Err(Error::NoPrevious)));
    assert_eq!(node.install(&two).unwrap().handlers, ["kata-qemu-coco-dev", "kata-qemu-snp", "kata-remote"]);
    let of_two = ground.content();
    let mut pod = pod(&ground, "pod-8");

    let back = node.rollback().unwrap();

    assert_eq!((back.version.as_deref(), &back.in_use[..]), (Some(one.version()), &[two.version().to_owned()][..]));
    assert_eq!(fs::read_link(ground.at(CURRENT)).unwrap().file_name().unwrap(), one.version());
    for (path, content) in &of_one {
        if !path.ends_with("state.json") {
            assert_eq!(ground.content().get(path), Some(content), "{}", path.display());
        }
    }
    node.rollback().unwrap();
    assert_eq!(ground.content(), of_two);
    pod.kill().unwrap();
    pod.wait().unwrap();
}

#[test]
fn two_operations_at_once_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ground) = Ground::new(&folder.path().join("node"), "sid", Some(VERSION_3)) else { return };
    let one = release(&folder.path().join("one"), "one");
    fs::create_dir_all(ground.home()).unwrap();
    let lock = fs::File::open(ground.home()).unwrap();
    lock.lock().unwrap();
    assert!(matches!(ground.node().install(&one), Err(Error::Busy)));
}

#[test]
fn a_release_that_is_not_whole_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let place = folder.path().join("one");
    let first = release(&place, "one").version().to_owned();
    assert_eq!(release(&place, "one").version(), first, "the same content has the same name");
    assert_ne!(release(&place, "two").version(), first);

    fs::write(place.join("bin/cocoon"), "another").unwrap();
    let error = crate::Release::open(&place).unwrap_err().to_string();
    assert!(error.contains("bin/cocoon is not what SHA256SUMS says"), "{error}");
    sum(&place);
    crate::Release::open(&place).unwrap();
    fs::write(place.join("version"), "../1\n").unwrap();
    let error = crate::Release::open(&place).unwrap_err().to_string();
    assert!(error.contains("no version's number"), "{error}");
    fs::write(place.join("version"), "0.2.0\n").unwrap();
    sum(&place);
    assert!(crate::Release::open(&place).unwrap().version().starts_with("0.2.0-"));

    fs::write(place.join("share/guest-image/initramfs"), "cut").unwrap();
    let error = crate::Release::open(&place).unwrap_err().to_string();
    assert!(error.contains("initramfs"), "{error}");
    fs::remove_file(place.join("bin/cocoon-snapshotter")).unwrap();
    let error = crate::Release::open(&place).unwrap_err().to_string();
    assert!(error.contains("cocoon-snapshotter is missing"), "{error}");
}

#[tokio::test]
async fn a_check_says_what_is_wrong_and_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ground) = Ground::new(&folder.path().join("node"), "sid", Some(VERSION_3)) else { return };
    // A file of its own: other nodes on this machine may run the other one.
    let program = ground.at("/usr/bin/containerd");
    let original = fs::canonicalize(&program).unwrap();
    fs::remove_file(&program).unwrap();
    fs::copy(original, &program).unwrap();
    let node = ground.node();
    let verdicts = async || {
        let findings = node.check().await;
        for finding in &findings {
            assert_eq!(finding.verdict == Verdict::Good, finding.next.is_none(), "{finding:?}");
        }
        move |name: &str| findings.iter().find(|it| it.name == name).map(|it| (it.verdict, it.found.clone()))
    };
    let bare = verdicts().await;
    for name in ["installation", "network", "guest image", "containerd"] {
        assert_eq!(bare(name).unwrap().0, Verdict::Failure, "{name}");
    }

    fs::create_dir_all(ground.at("/dev/net")).unwrap();
    fs::write(ground.at("/dev/net/tun"), "").unwrap();
    node.install(&release(&folder.path().join("one"), "one")).unwrap();
    let installed = verdicts().await;
    for name in ["installation", "network", "guest image", "vsock"] {
        assert_eq!(installed(name).unwrap().0, Verdict::Good, "{name}");
    }
    assert!(installed("guest image").unwrap().1.contains("6.12.0"));
    assert!(installed("containerd").unwrap().1.contains("does not run"));
    assert_eq!(installed("snapshotter").unwrap().0, Verdict::Failure);
    assert!(installed("qemu-snp").is_none(), "the release has no firmware for it");

    let current = fs::read_link(ground.at(CURRENT)).unwrap();
    let image = ground.at(VERSIONS).join(current.file_name().unwrap()).join("share/guest-image/vmlinux");
    fs::write(image, "rotten").unwrap();
    fs::write(ground.at(JOURNAL), "{\"operation\": \"install 2\", \"changes\": []}").unwrap();
    let damaged = verdicts().await;
    assert_eq!(damaged("guest image").unwrap().0, Verdict::Failure);
    assert!(damaged("installation").unwrap().1.contains("install 2"));
}

/// A process that runs the current version's shim until its standard input ends.
fn pod(ground: &Ground, id: &str) -> Child {
    let shim = ground.at(CURRENT).join("bin/containerd-shim-cocoon-v2");
    let mut command = Command::new(shim);
    command.args(["-c", "read line", "-namespace", "k8s.io", "-id", id]).stdin(Stdio::piped());
    command.spawn().unwrap()
}
