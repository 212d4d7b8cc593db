//! What the cases stand on: a folder that is a node's `/`, and releases to install there.

use std::collections::BTreeMap;
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use guest_image::{Artifact, Manifest};
use newer_debian::NewerDebian;
use sha2::{Digest as _, Sha256, Sha384};

use crate::distribution::PLAIN;
use crate::root::{CURRENT, HOME};
use crate::{Node, Release};

/// A folder that is a node's `/`: with systemd, and with a containerd of which nothing runs.
pub(crate) struct Ground {
    pub(crate) folder: PathBuf,
}

impl Ground {
    /// A node in an empty folder with this containerd; none, with a printed reason, where that can't be had.
    pub(crate) fn new(folder: &Path, suite: &str, configuration: Option<&str>) -> Option<Self> {
        let files: Vec<_> = configuration.map(|text| (PLAIN.main, text)).into_iter().collect();
        Self::with(folder, suite, PLAIN.programs[0], &files)
    }

    /// The same with containerd's program at this place, and these files.
    pub(crate) fn with(folder: &Path, suite: &str, program: &str, files: &[(&str, &str)]) -> Option<Self> {
        let debian = NewerDebian::unpack(suite, &["containerd"]);
        let debian = debian.inspect_err(|reason| eprintln!("skipped: containerd can't be had: {reason}")).ok()?;
        let ground = Self { folder: folder.to_owned() };
        for path in ["run/systemd/system", "etc/containerd"] {
            fs::create_dir_all(folder.join(path)).unwrap();
        }
        ground.write(program, "");
        fs::remove_file(ground.at(program)).unwrap();
        symlink(debian.path().join("usr/bin/containerd"), ground.at(program)).unwrap();
        for (path, text) in files {
            ground.write(path, text);
        }
        Some(ground)
    }

    pub(crate) fn node(&self) -> Node {
        Node::at(&self.folder)
    }

    pub(crate) fn at(&self, path: &str) -> PathBuf {
        self.folder.join(path.trim_start_matches('/'))
    }

    pub(crate) fn write(&self, path: &str, text: &str) {
        let path = self.at(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub(crate) fn read(&self, path: &str) -> String {
        fs::read_to_string(self.at(path)).unwrap()
    }

    /// What containerd would have if it were started now, without its defaults' comments.
    pub(crate) fn dump(&self) -> toml::Table {
        self.dump_of(PLAIN.programs[0], PLAIN.main)
    }

    /// The same of a containerd elsewhere.
    pub(crate) fn dump_of(&self, program: &str, main: &str) -> toml::Table {
        // containerd looks for imports from `/`, which the node's folder is not.
        let here = self.folder.to_str().unwrap();
        let localized = |line: &str| match line.starts_with("imports") {
            true => line.replace("\"/", &format!("\"{here}/")),
            false => line.to_owned(),
        };
        let text: Vec<String> = self.read(main).lines().map(localized).collect();
        let main = self.folder.join("dumped.toml");
        fs::write(&main, text.join("\n")).unwrap();
        let mut command = std::process::Command::new(self.at(program));
        let output = command.arg("--config").arg(&main).args(["config", "dump"]).output().unwrap();
        fs::remove_file(main).unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().parse().unwrap()
    }

    /// Every file and link of the node with its content, and nothing that only says how it was made.
    pub(crate) fn content(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        let (mut found, mut open) = (BTreeMap::new(), vec![self.folder.clone()]);
        while let Some(folder) = open.pop() {
            for entry in fs::read_dir(folder).unwrap().flatten() {
                let (path, kind) = (entry.path(), entry.file_type().unwrap());
                let name = path.strip_prefix(&self.folder).unwrap().to_owned();
                if kind.is_dir() {
                    open.push(path);
                } else if kind.is_symlink() {
                    found.insert(name, fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes());
                } else {
                    found.insert(name, fs::read(&path).unwrap());
                }
            }
        }
        found
    }

    /// Expects that the current version, if there is one, is whole.
    pub(crate) fn expect_whole(&self) {
        let current = self.at(CURRENT);
        if fs::symlink_metadata(&current).is_ok() {
            Release::open(&current).unwrap();
            assert!(current.join("share/classes/qemu-coco-dev/configuration.toml").is_file());
        }
    }

    /// What is under `/opt/cocoon`.
    pub(crate) fn home(&self) -> PathBuf {
        self.at(HOME)
    }
}

/// A release whose programs say `words`, except for a shim that is a shell, so that it can run.
pub(crate) fn release(folder: &Path, words: &str) -> Release {
    for place in ["bin", "share/guest-image", "share/firmware"] {
        fs::create_dir_all(folder.join(place)).unwrap();
    }
    for program in ["cocoon", "cocoon-snapshotter"] {
        fs::write(folder.join("bin").join(program), words).unwrap();
    }
    fs::copy("/bin/sh", folder.join("bin/containerd-shim-cocoon-v2")).unwrap();
    for program in fs::read_dir(folder.join("bin")).unwrap().flatten() {
        fs::set_permissions(program.path(), Permissions::from_mode(0o755)).unwrap();
    }
    let artifact = |name: &str| {
        fs::write(folder.join("share/guest-image").join(name), words).unwrap();
        Artifact {
            size: words.len() as u64,
            sha256: Sha256::digest(words).into(),
            sha384: Sha384::digest(words).into(),
        }
    };
    let manifest = Manifest {
        schema: 1,
        kernel_release: "6.12.0".to_owned(),
        kernel_package: None,
        command_line: guest_image::COMMAND_LINE.to_owned(),
        modules: Vec::new(),
        vmlinux: artifact("vmlinux"),
        bzimage: artifact("bzImage"),
        initramfs: artifact("initramfs"),
    };
    let image = folder.join("share/guest-image");
    fs::write(image.join("manifest.json"), serde_json::to_vec(&manifest).unwrap()).unwrap();
    fs::write(image.join("reference-values.json"), manifest.reference_values()).unwrap();
    fs::write(folder.join("version"), "0.1.0\n").unwrap();
    sum(folder);
    Release::open(folder).unwrap()
}

/// The handlers in what containerd has.
pub(crate) fn runtimes(dump: &toml::Table) -> &toml::Table {
    let plugins = &dump["plugins"];
    let names = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.runtime"];
    let plugin = names.iter().find_map(|name| plugins.get(name)?.get("containerd")).unwrap();
    plugin["runtimes"].as_table().unwrap()
}

/// Writes down what a release's files are.
pub(crate) fn sum(release: &Path) {
    let mut command = std::process::Command::new("sh");
    command.args(["-c", "sha256sum version bin/* share/guest-image/* > SHA256SUMS"]).current_dir(release);
    assert!(command.status().unwrap().success());
}

/// A configuration as people have it: with comments, runc's cgroups by systemd, and a mirror.
pub(crate) const VERSION_2: &str = "\
# ours
version = 2

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    sandbox_image = \"registry.internal/pause:3.10\" # mirrored
    [plugins.\"io.containerd.grpc.v1.cri\".registry]
      config_path = \"/etc/containerd/certs.d\"
    [plugins.\"io.containerd.grpc.v1.cri\".containerd]
      default_runtime_name = \"runc\"
      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]
        runtime_type = \"io.containerd.runc.v2\"
        [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]
          SystemdCgroup = true
  [plugins.\"io.containerd.internal.v1.opt\"]
    path = \"/var/lib/containerd/opt\"
";

/// The same in version 3.
pub(crate) const VERSION_3: &str = "\
# ours
version = 3

[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = 'registry.internal/pause:3.10' # mirrored

[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'runc'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'

[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
SystemdCgroup = true
";

/// containerd 1.7 and 2.x, each with a configuration of its version.
pub(crate) const NODES: [(&str, &str); 2] = [("trixie", VERSION_2), ("sid", VERSION_3)];
