//! Runtime classes: what each asks of a release, and the shim's configuration for it.

use std::fmt::Write as _;
use std::path::Path;

/// A runtime class, by which a pod says in which kind of machine it is to run.
#[derive(Debug, Eq, PartialEq)]
pub struct Class {
    /// Its name: upstream's without `kata-`.
    pub name: &'static str,
    machine: Machine,
}

#[derive(Debug, Eq, PartialEq)]
enum Machine {
    /// QEMU on the node.
    Here {
        tee: &'static str,
        kernel: &'static str,
        firmware: Option<&'static str>,
        /// The first QEMU that has such machines.
        qemu: (u32, u32),
        architecture: &'static str,
    },
    /// What an adaptor makes elsewhere.
    Elsewhere,
}

/// All classes for which the shim can make machines.
pub const CLASSES: [Class; 5] = [
    Class {
        name: "qemu-coco-dev",
        machine: Machine::Here {
            tee: "none",
            // The uncompressed kernel boots faster, and nobody measures this class.
            kernel: "guest-image/vmlinux",
            firmware: None,
            qemu: (7, 2),
            architecture: "x86_64",
        },
    },
    Class {
        name: "qemu-snp",
        machine: Machine::Here {
            tee: "snp",
            kernel: "guest-image/bzImage",
            firmware: Some("firmware/snp.fd"),
            qemu: (9, 1),
            architecture: "x86_64",
        },
    },
    Class {
        name: "qemu-tdx",
        machine: Machine::Here {
            tee: "tdx",
            kernel: "guest-image/bzImage",
            firmware: Some("firmware/tdx.fd"),
            qemu: (10, 1),
            architecture: "x86_64",
        },
    },
    Class {
        name: "qemu-se",
        machine: Machine::Here { tee: "se", kernel: "se.img", firmware: None, qemu: (7, 2), architecture: "s390x" },
    },
    Class { name: "remote", machine: Machine::Elsewhere },
];

impl Class {
    /// The class of this name.
    pub fn named(name: &str) -> Option<&'static Self> {
        CLASSES.iter().find(|class| class.name == name)
    }

    /// The handler's name in containerd's configuration and in a RuntimeClass.
    pub fn handler(&self) -> String {
        format!("kata-{}", self.name)
    }

    /// Why a release with this `share` folder, on this processor, can't offer the class, if it can't.
    pub(crate) fn missing(&self, share: &Path) -> Option<String> {
        let Machine::Here { kernel, firmware, architecture, .. } = self.machine else { return None };
        if architecture != std::env::consts::ARCH {
            return Some(format!("it is for {architecture}"));
        }
        let mut files = firmware.into_iter().chain([kernel]);
        files.find(|file| !share.join(file).is_file()).map(|file| format!("the release has no share/{file}"))
    }

    /// The shim's configuration; `share` is where the version's files are on the node.
    pub(crate) fn configuration(&self, share: &str) -> String {
        let mut text = format!(
            "# Written by \"cocoon node install\", and replaced with the next version. Your own settings go into files\n\
             # {}/*.toml.\n",
            self.settings(),
        );
        // Writing to memory can't fail.
        let _ = match self.machine {
            Machine::Here { tee, kernel, firmware, .. } => {
                let firmware = firmware.map(|file| format!("firmware = \"{share}/{file}\"\n")).unwrap_or_default();
                write!(
                    text,
                    "[hypervisor.qemu]\nkernel = \"{share}/{kernel}\"\ninitrd = \"{share}/guest-image/initramfs\"\n\
                     tee = \"{tee}\"\n{firmware}"
                )
            }
            Machine::Elsewhere => writeln!(text, "[hypervisor.remote]"),
        };
        text
    }

    /// The first QEMU that has such machines, if they are QEMU's.
    pub(crate) fn qemu(&self) -> Option<(u32, u32)> {
        match self.machine {
            Machine::Here { qemu, .. } => Some(qemu),
            Machine::Elsewhere => None,
        }
    }

    /// The folder on the node with the operator's own settings.
    pub(crate) fn settings(&self) -> String {
        format!("/etc/cocoon/{}.d", self.name)
    }

    /// What has to be switched on in the host's kernel, as a file there says, if the class needs hardware.
    pub(crate) fn switch(&self) -> Option<&'static str> {
        match self.machine {
            Machine::Here { tee: "snp", .. } => Some("/sys/module/kvm_amd/parameters/sev_snp"),
            Machine::Here { tee: "tdx", .. } => Some("/sys/module/kvm_intel/parameters/tdx"),
            Machine::Here { tee: "se", .. } => Some("/sys/firmware/uv/prot_virt_host"),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_shim_reads_each_class_and_the_operator_s_settings_over_it() {
        for class in &CLASSES {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("configuration.toml");
            fs::write(&path, class.configuration("/opt/cocoon/versions/1/share")).unwrap();
            let config = shim::Config::load(Some(&path)).unwrap();
            let machine = &config.hypervisor.qemu;
            match class.machine {
                Machine::Here { tee, firmware, .. } => {
                    assert!(machine.kernel.starts_with("/opt/cocoon/versions/1/share"), "{:?}", machine.kernel);
                    assert_eq!(machine.firmware.is_some(), firmware.is_some());
                    assert_eq!(format!("{:?}", machine.tee).to_lowercase(), tee);
                }
                Machine::Elsewhere => {}
            }
            assert_eq!(config.hypervisor.remote.is_some(), class.machine == Machine::Elsewhere);

            let settings = folder.path().join("etc");
            fs::create_dir(&settings).unwrap();
            fs::write(settings.join("10-mine.toml"), "[hypervisor.qemu]\ndefault_memory = 512\n").unwrap();
            std::os::unix::fs::symlink(&settings, folder.path().join("config.d")).unwrap();
            assert_eq!(shim::Config::load(Some(&path)).unwrap().hypervisor.qemu.default_memory, 512);
        }
    }

    #[test]
    fn each_class_has_a_manifest_and_no_manifest_is_without_its_class() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/runtime-classes");
        let mut found: Vec<String> = Vec::new();
        for entry in fs::read_dir(folder).unwrap().flatten() {
            let text = fs::read_to_string(entry.path()).unwrap();
            let value = |key: &str| {
                let line = text.lines().find_map(|line| line.trim().strip_prefix(key)).unwrap();
                line.trim().to_owned()
            };
            assert_eq!(value("handler:"), value("name:"));
            assert_eq!(entry.path().file_stem().unwrap().to_str().unwrap(), value("name:"));
            // What the machine has beyond the containers' limits, and something for whoever runs it.
            let defaults = shim::Config::default().hypervisor.qemu;
            let (memory, cpu) = (value("memory:"), value("cpu:"));
            let memory: u32 = memory.strip_suffix("Mi").unwrap().parse().unwrap();
            let cpu = match cpu.strip_suffix('m') {
                Some(thousandths) => thousandths.parse::<f64>().unwrap() / 1000.0,
                None => cpu.trim_matches('"').parse().unwrap(),
            };
            let is_here = CLASSES.iter().any(|class| class.handler() == value("handler:") && class.qemu().is_some());
            assert!(!is_here || memory > defaults.overhead_memory && cpu > defaults.overhead_vcpus, "{text}");
            found.push(value("handler:"));
        }
        found.sort();
        let mut expected: Vec<String> = CLASSES.iter().map(Class::handler).collect();
        expected.sort();
        assert_eq!(found, expected);
    }
}
