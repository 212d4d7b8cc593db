//! What an installation makes of containerd's configuration, as containerd itself reads it.

use std::fs;

use super::ground::{Ground, NODES, VERSION_2, VERSION_3, release, runtimes};
use crate::Error;
use crate::distribution::PLAIN;
use crate::root::{HOME, UNIT};

#[test]
fn containerd_has_the_handlers_and_all_that_it_had_and_loses_them_again() {
    // The last is containerd 2.x with a configuration of 1.7's, as after an upgrade.
    for (suite, configuration) in NODES.into_iter().chain([("sid", VERSION_2)]) {
        let folder = tempfile::tempdir().unwrap();
        let Some(ground) = Ground::new(&folder.path().join("node"), suite, Some(configuration)) else { return };
        let (node, before, untouched) = (ground.node(), ground.dump(), ground.content());
        let release = release(&folder.path().join("release"), "one");

        let outcome = node.install(&release).unwrap();

        assert_eq!(outcome.handlers, ["kata-qemu-coco-dev", "kata-remote"]);
        let left_out: Vec<_> = outcome.left_out.iter().map(|it| it.class).collect();
        assert_eq!(left_out, ["qemu-snp", "qemu-tdx", "qemu-se"], "{outcome:?}");
        let after = ground.dump();
        let runtime = runtimes(&after)["kata-qemu-coco-dev"].as_table().unwrap();
        assert_eq!(runtime["snapshotter"].as_str(), Some("cocoon"));
        let configuration = runtime["options"]["ConfigPath"].as_str().unwrap();
        let shim = shim::Config::load(Some(&ground.at(configuration))).unwrap();
        assert!(shim.hypervisor.qemu.kernel.ends_with("share/guest-image/vmlinux"));
        assert!(ground.at(shim.hypervisor.qemu.kernel.to_str().unwrap()).is_file());
        assert!(ground.at(runtime["runtime_path"].as_str().unwrap()).is_file());
        assert_eq!(runtimes(&after)["runc"], runtimes(&before)["runc"]);
        assert_eq!(runtimes(&after)["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(after["proxy_plugins"]["cocoon"]["type"].as_str(), Some("snapshot"));
        let text = after.to_string();
        assert!(text.contains("disable_snapshot_annotations = false") && !text.contains("annotations = true"));
        assert!(fs::read_to_string(ground.at(UNIT)).unwrap().contains("/opt/cocoon/current/bin/cocoon-snapshotter"));

        let installed = ground.content();
        let again = node.install(&release).unwrap();
        assert!(!again.changed && again.removed.is_empty(), "{again:?}");
        assert_eq!(ground.content(), installed);

        assert!(node.uninstall().unwrap().changed);
        assert_eq!(ground.content(), untouched);
        assert!(!ground.at(HOME).exists());
        assert!(!node.uninstall().unwrap().changed);
    }
}

#[test]
fn a_containerd_without_a_configuration_gets_one_of_its_version() {
    for (suite, drop_in) in [("trixie", false), ("sid", true)] {
        let folder = tempfile::tempdir().unwrap();
        let Some(ground) = Ground::new(&folder.path().join("node"), suite, None) else { return };
        let release = release(&folder.path().join("release"), "one");
        ground.node().install(&release).unwrap();
        assert!(runtimes(&ground.dump()).contains_key("kata-qemu-coco-dev"));
        assert_eq!(ground.at(PLAIN.drop_in).exists(), drop_in);
        ground.node().uninstall().unwrap();
        assert!(!ground.at(PLAIN.main).exists());
    }
}

#[test]
fn a_node_without_systemd_has_handlers_without_the_snapshotter() {
    let folder = tempfile::tempdir().unwrap();
    let Some(ground) = Ground::new(&folder.path().join("node"), "trixie", Some(VERSION_2)) else { return };
    fs::remove_dir_all(ground.at("/run/systemd")).unwrap();
    let outcome = ground.node().install(&release(&folder.path().join("release"), "one")).unwrap();
    let dump = ground.dump();
    assert_eq!(runtimes(&dump)["kata-qemu-coco-dev"]["snapshotter"].as_str(), Some(""));
    assert!(!dump["proxy_plugins"].as_table().unwrap().contains_key("cocoon"));
    assert!(outcome.next[0].contains("no systemd") && !ground.at(UNIT).exists());
}

#[test]
fn where_something_is_wrong_nothing_is_changed() {
    let folder = tempfile::tempdir().unwrap();
    let release = release(&folder.path().join("release"), "one");
    let foreign = |table: &str| {
        format!("[plugins.\"{table}\".containerd.runtimes.kata-qemu-coco-dev]\nruntime_path = \"/opt/kata/bin/shim\"\n")
    };
    let cases = [
        ("trixie", "version = [".to_owned(), "config.toml"),
        ("trixie", "disabled_plugins = [\"cri\"]\n".to_owned(), "version 1"),
        ("sid", "version = 5\n".to_owned(), "its version is 5"),
        // containerd 2.3 is the first to know it.
        ("sid", "version = 4\n".to_owned(), "containerd says"),
        // What containerd can't read, we must not add to.
        ("trixie", "version = 2\noom_score = \"high\"\n".to_owned(), "containerd"),
        ("trixie", VERSION_3.to_owned(), "version `3` is not supported"),
        ("trixie", VERSION_2.to_owned() + &foreign("io.containerd.grpc.v1.cri"), "/opt/kata/bin/shim"),
        ("sid", VERSION_3.to_owned() + &foreign("io.containerd.cri.v1.runtime"), "/opt/kata/bin/shim"),
    ];
    for (at, (suite, configuration, reason)) in cases.into_iter().enumerate() {
        let place = folder.path().join(at.to_string());
        let Some(ground) = Ground::new(&place, suite, Some(&configuration)) else { return };
        let before = ground.content();
        let error = ground.node().install(&release).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("next:"), "{configuration:?} gave {error:?}");
        assert_eq!(ground.content(), before, "{configuration}");
    }
}

#[test]
fn another_installer_s_handler_in_an_imported_file_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let configuration = format!("imports = [\"/etc/containerd/kata.toml\"]\n{VERSION_3}");
    let Some(ground) = Ground::new(&folder.path().join("node"), "sid", Some(&configuration)) else { return };
    let kata = "version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".containerd.runtimes.kata-qemu-coco-dev]\n\
                runtime_type = \"io.containerd.kata.v2\"\nruntime_path = \"/opt/kata/bin/shim\"\n";
    fs::write(ground.at("/etc/containerd/kata.toml"), kata).unwrap();
    let refused = ground.node().install(&release(&folder.path().join("release"), "one"));
    assert!(matches!(refused, Err(Error::Taken { .. })), "{refused:?}");
}
