//! Distributions of Kubernetes that bring their own containerd, by the files that they have: none of them runs here.

use std::fs;

use super::ground::{Ground, VERSION_2, release, runtimes};
use crate::distribution::Distribution;
use crate::root::UNIT;
use crate::{Error, Outcome};

#[test]
fn k3s_and_rke2_import_a_file_of_ours() {
    for name in ["k3s", "rke2"] {
        let folder = tempfile::tempdir().unwrap();
        let rancher = Rancher::new(name);
        let Some(ground) = rancher.ground(&folder, "sid", &rancher.version_3(true)) else { return };
        let untouched = ground.content();

        let outcome = install(&ground, &folder);

        assert_eq!(outcome.handlers, ["kata-qemu-coco-dev", "kata-remote"]);
        let dump = rancher.start(&ground);
        assert_eq!(runtimes(&dump)["kata-qemu-coco-dev"]["snapshotter"].as_str(), Some("cocoon"));
        let images = &dump["plugins"]["io.containerd.cri.v1.images"];
        assert_eq!(images["disable_snapshot_annotations"].as_bool(), Some(false));
        assert_eq!(runtimes(&dump)["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert!(!ground.at(&rancher.template("config-v3.toml.tmpl")).exists(), "there is no need for a template");
        assert!(ground.read(UNIT).contains(&format!("Before={}", rancher.place.services.join(" "))));
        assert_eq!(ground.node().status().unwrap().handlers.names, ["kata-qemu-coco-dev", "kata-remote"]);
        assert!(!install(&ground, &folder).changed);

        ground.node().uninstall().unwrap();
        rancher.start(&ground);
        assert_eq!(ground.content(), untouched);
    }
}

#[test]
fn k3s_without_that_import_gets_a_template_or_more_in_the_one_that_it_has() {
    let operators_own = "# ours\n{{ template \"base\" . }}\n[debug]\nlevel = \"info\"";
    for (suite, version, template, own) in [
        ("sid", 3, "config-v3.toml.tmpl", None),
        ("sid", 3, "config-v3.toml.tmpl", Some(operators_own)),
        ("trixie", 2, "config.toml.tmpl", None),
        ("trixie", 2, "config.toml.tmpl", Some(operators_own)),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let rancher = Rancher::new("k3s");
        let base = if version == 2 { VERSION_2.to_owned() } else { rancher.version_3(false) };
        let Some(ground) = rancher.ground(&folder, suite, &base) else { return };
        let template = rancher.template(template);
        if let Some(text) = own {
            ground.write(&template, text);
            rancher.start(&ground);
        }

        let outcome = install(&ground, &folder);

        assert!(outcome.next[0].contains("template") && !ground.at(UNIT).exists(), "{outcome:?}");
        assert!(ground.read(&template).starts_with(own.unwrap_or("{{ template \"base\" . }}\n")));
        let dump = rancher.start(&ground);
        assert_eq!(runtimes(&dump)["kata-qemu-coco-dev"]["snapshotter"].as_str(), Some(""));
        assert_eq!(runtimes(&dump)["runc"]["options"]["SystemdCgroup"].as_bool(), Some(true));
        assert_eq!(ground.node().status().unwrap().handlers.names, ["kata-qemu-coco-dev", "kata-remote"]);
        assert!(!install(&ground, &folder).changed);

        ground.node().uninstall().unwrap();
        assert_eq!(ground.node().status().unwrap().handlers.names, [""; 0]);
        match own {
            Some(text) => assert_eq!(ground.read(&template).trim_end(), text),
            None => assert!(!ground.at(&template).exists()),
        }
        assert!(!runtimes(&rancher.start(&ground)).contains_key("kata-qemu-coco-dev"));
    }
}

#[test]
fn an_upgrade_of_k3s_that_brings_the_import_ends_the_template() {
    let folder = tempfile::tempdir().unwrap();
    let rancher = Rancher::new("k3s");
    let Some(ground) = rancher.ground(&folder, "sid", &rancher.version_3(false)) else { return };
    install(&ground, &folder);
    rancher.start(&ground);

    ground.write(rancher.place.main, &rancher.version_3(true));
    assert!(install(&ground, &folder).changed);

    assert!(!ground.at(&rancher.template("config-v3.toml.tmpl")).exists());
    assert!(runtimes(&rancher.start(&ground)).contains_key("kata-qemu-coco-dev"));
}

#[test]
fn k0s_gets_a_drop_in_unless_its_configuration_is_the_operator_s() {
    let k0s = Distribution::named(Some("k0s"));
    let version_3 = "# k0s_managed=true\nversion = 3\nimports = [\"/etc/k0s/containerd.d/*.toml\"]\n";
    let version_2 = "# k0s_managed=true\nversion = 2\nimports = [\"/run/k0s/containerd-cri.toml\"]\n";
    for (suite, main) in [("sid", version_3), ("trixie", version_2)] {
        let folder = tempfile::tempdir().unwrap();
        let files = [(k0s.main, main), ("/run/k0s/containerd-cri.toml", VERSION_2)];
        let Some(ground) = Ground::with(&folder.path().join("node"), suite, k0s.programs[0], &files) else { return };
        let untouched = ground.content();
        install(&ground, &folder);

        assert_eq!(ground.read(k0s.main), main);
        let drop_in: toml::Table = ground.read(k0s.drop_in).parse().unwrap();
        assert_eq!(runtimes(&drop_in)["kata-qemu-coco-dev"]["snapshotter"].as_str(), Some("cocoon"));
        match suite {
            "sid" => assert!(runtimes(&ground.dump_of(k0s.programs[0], k0s.main)).contains_key("kata-qemu-coco-dev")),
            // k0s lays the file over its own, in which containerd would else find no annotations.
            _ => {
                let containerd = &drop_in["plugins"]["io.containerd.grpc.v1.cri"]["containerd"];
                assert_eq!(containerd["disable_snapshot_annotations"].as_bool(), Some(false));
            }
        }
        assert_eq!(ground.node().status().unwrap().handlers.names, ["kata-qemu-coco-dev", "kata-remote"]);
        assert!(!install(&ground, &folder).changed);
        ground.node().uninstall().unwrap();
        assert_eq!(ground.content(), untouched);
    }

    let folder = tempfile::tempdir().unwrap();
    let files = [(k0s.main, VERSION_2)];
    let Some(ground) = Ground::with(&folder.path().join("node"), "trixie", k0s.programs[0], &files) else { return };
    install(&ground, &folder);
    assert!(runtimes(&ground.dump_of(k0s.programs[0], k0s.main)).contains_key("kata-qemu-coco-dev"));
    assert!(!ground.at(k0s.drop_in).exists());
    ground.node().uninstall().unwrap();
    assert_eq!(ground.read(k0s.main), VERSION_2);
}

#[test]
fn microk8s_gets_the_handlers_in_its_template_which_is_a_configuration_with_variables() {
    let microk8s = Distribution::named(Some("microk8s"));
    let text = VERSION_2.replace("\"runc\"", "\"${RUNTIME}\"");
    let folder = tempfile::tempdir().unwrap();
    let files = [(microk8s.main, &*text)];
    let Some(ground) = Ground::with(&folder.path().join("node"), "trixie", microk8s.programs[0], &files) else {
        return;
    };
    install(&ground, &folder);
    assert!(runtimes(&ground.dump_of(microk8s.programs[0], microk8s.main)).contains_key("kata-qemu-coco-dev"));
    assert!(ground.read(microk8s.main).contains("\"${RUNTIME}\""));
    assert!(!install(&ground, &folder).changed);
    ground.node().uninstall().unwrap();
    assert_eq!(ground.read(microk8s.main), text);
}

#[test]
fn a_node_whose_containerd_is_in_doubt_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let [k3s, rke2] = ["k3s", "rke2"].map(Rancher::new);
    let release = release(&folder.path().join("release"), "one");
    let Some(ground) = k3s.ground(&folder, "sid", &k3s.version_3(true)) else { return };
    ground.write(rke2.place.main, &rke2.version_3(true));
    let before = ground.content();
    let refused = ground.node().install(&release).unwrap_err();
    assert!(matches!(refused, Error::Ambiguous("k3s", "rke2")), "{refused}");
    assert_eq!(ground.content(), before);

    // Its containerd is there, and nothing has said yet how it is configured.
    let k0s = Distribution::named(Some("k0s"));
    let ground = Ground::with(&folder.path().join("k0s"), "sid", k0s.programs[0], &[]).unwrap();
    let refused = ground.node().install(&release).unwrap_err().to_string();
    assert!(refused.contains("k0s has not written it yet") && refused.contains("start it once"), "{refused}");

    // An installation for one containerd is none for another.
    let ground = Ground::new(&folder.path().join("plain"), "trixie", Some(VERSION_2)).unwrap();
    ground.node().install(&release).unwrap();
    ground.write(k0s.main, "# k0s_managed=true\nversion = 2\n");
    ground.write(k0s.programs[0], "");
    fs::remove_file(ground.at(k0s.programs[0])).unwrap();
    std::os::unix::fs::symlink(fs::read_link(ground.at("/usr/bin/containerd")).unwrap(), ground.at(k0s.programs[0]))
        .unwrap();
    let refused = ground.node().install(&release).unwrap_err();
    assert!(matches!(refused, Error::Moved { was: "containerd", is: "k0s" }), "{refused}");
    ground.node().uninstall().unwrap();
    assert_eq!(ground.read("/etc/containerd/config.toml"), VERSION_2);
}

fn install(ground: &Ground, folder: &tempfile::TempDir) -> Outcome {
    ground.node().install(&release(&folder.path().join("release"), "one")).unwrap()
}

/// k3s or rke2.
struct Rancher {
    place: &'static Distribution,
}

impl Rancher {
    fn new(name: &str) -> Self {
        Self { place: Distribution::named(Some(name)) }
    }

    fn ground(&self, folder: &tempfile::TempDir, suite: &str, base: &str) -> Option<Ground> {
        let files = [(self.place.main, base), ("/base", base)];
        Ground::with(&folder.path().join("node"), suite, self.place.programs[0], &files)
    }

    fn template(&self, name: &str) -> String {
        self.place.main.replace("config.toml", name)
    }

    /// Makes the main configuration of its template as it does at each start, and gives what containerd has then.
    fn start(&self, ground: &Ground) -> toml::Table {
        let base = match ground.read(self.place.main).contains("config-v3.toml.d") {
            true => self.version_3(true),
            false => ground.read("/base"),
        };
        let template = ["config-v3.toml.tmpl", "config.toml.tmpl"].map(|name| self.template(name));
        let template = template.into_iter().find(|path| ground.at(path).exists());
        let text = template.map_or("{{ template \"base\" . }}".to_owned(), |path| ground.read(&path));
        let text =
            if text == "{{ template \"base\" . }}" { base } else { text.replace("{{ template \"base\" . }}", &base) };
        ground.write(self.place.main, &text);
        ground.dump_of(self.place.programs[0], self.place.main)
    }

    /// A base as releases with containerd 2.x have it.
    fn version_3(&self, imports: bool) -> String {
        let folder = self.place.main.replace("config.toml", "config-v3.toml.d");
        let imports = if imports { format!("imports = [\"{folder}/*.toml\"]\n") } else { String::new() };
        format!("# File generated by {}. DO NOT EDIT.\nversion = 3\n{imports}{VERSION_3_TABLES}", self.place.name)
    }
}

const VERSION_3_TABLES: &str = "\
[grpc]
  address = \"/run/k3s/containerd/containerd.sock\"

[plugins.'io.containerd.cri.v1.images']
  snapshotter = \"overlayfs\"
  disable_snapshot_annotations = true

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = \"io.containerd.runc.v2\"

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  SystemdCgroup = true
";
