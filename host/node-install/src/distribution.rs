//! Whose containerd a node has: where its program and its configuration are, and which of its files may be written.

use std::path::Path;

use crate::error::Error;
use crate::root::Root;

/// A distribution of Kubernetes that brings its own containerd, or the machine's own containerd.
#[derive(Debug)]
pub(crate) struct Distribution {
    pub(crate) name: &'static str,
    /// What only such a node has.
    signs: &'static [&'static str],
    /// Where containerd's program may be.
    pub(crate) programs: &'static [&'static str],
    /// containerd's main configuration.
    pub(crate) main: &'static str,
    /// Our own file, where it is imported.
    pub(crate) drop_in: &'static str,
    /// What the main configuration is made of, by version, if it is made at each start.
    templates: Option<[&'static str; 2]>,
    /// The first line of a main configuration that is made at each start.
    managed: Option<&'static str>,
    /// containerd's socket.
    pub(crate) socket: &'static str,
    /// What systemd restarts for containerd to read its configuration, of which a node has one.
    pub(crate) services: &'static [&'static str],
}

/// How containerd gets to know our handlers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Way {
    /// The main configuration is the operator's own: with the handlers, or with an import of the drop-in.
    Main,
    /// The main configuration is made at each start and imports the drop-in's folder, or has it merged.
    DropIn,
    /// The main configuration is made at each start of this template, which is the operator's own.
    Template(&'static str),
}

impl Distribution {
    /// The one that this node has.
    ///
    /// # Errors
    /// [`Error::Ambiguous`].
    pub(crate) fn of(root: &Root) -> Result<&'static Self, Error> {
        let has = |one: &&Self| one.signs.iter().any(|sign| root.at(sign).exists());
        let mut found = DISTRIBUTIONS.iter().filter(has);
        match (found.next(), found.next()) {
            (Some(one), Some(other)) => Err(Error::Ambiguous(one.name, other.name)),
            (Some(one), None) => Ok(one),
            (None, _) => Ok(&PLAIN),
        }
    }

    /// The one of this name; the machine's own containerd has none.
    pub(crate) fn named(name: Option<&str>) -> &'static Self {
        name.and_then(|name| DISTRIBUTIONS.iter().find(|one| one.name == name)).unwrap_or(&PLAIN)
    }

    /// Whether it is the machine's own containerd.
    pub(crate) fn is_plain(&self) -> bool {
        self.name == PLAIN.name
    }

    /// How handlers get into a main configuration of this version with this text, which imports these files.
    pub(crate) fn way(&self, version: i64, text: &str, imports: &[String]) -> Way {
        match (self.templates, self.managed) {
            (Some(_), _) if version > 2 && imports.iter().any(|import| self.is_imported_by(import)) => Way::DropIn,
            (Some([old, _]), _) if version == 2 => Way::Template(old),
            (Some([_, new]), _) => Way::Template(new),
            (None, Some(line)) if text.lines().next() == Some(line) => Way::DropIn,
            _ => Way::Main,
        }
    }

    /// What the main configuration may be made of.
    pub(crate) fn templates(&self) -> impl Iterator<Item = &'static str> + use<> {
        self.templates.into_iter().flatten()
    }

    /// Whether the main configuration is made at each start, or may be.
    pub(crate) fn writes_main(&self) -> bool {
        self.templates.is_some() || self.managed.is_some()
    }

    /// What the main configuration has to import.
    pub(crate) fn import(&self) -> String {
        Path::new(self.drop_in).with_file_name("*.toml").to_string_lossy().into_owned()
    }

    /// Whether the drop-in is among the files that an import names, which may have stars in its last part.
    pub(crate) fn is_imported_by(&self, import: &str) -> bool {
        let import = Path::new(self.main).with_file_name(import);
        let file = Path::new(self.drop_in);
        let (Some(pattern), Some(name)) = (import.file_name(), file.file_name()) else { return false };
        let (Some(pattern), Some(name)) = (pattern.to_str(), name.to_str()) else { return false };
        if import.parent() != file.parent() {
            return false;
        }
        let parts: Vec<&str> = pattern.split('*').collect();
        let (first, last) = (parts[0], parts[parts.len() - 1]);
        match parts.len() {
            1 => pattern == name,
            2 => name.len() >= first.len() + last.len() && name.starts_with(first) && name.ends_with(last),
            _ => false,
        }
    }
}

/// The machine's own containerd.
pub(crate) const PLAIN: Distribution = Distribution {
    name: "containerd",
    signs: &[],
    programs: &["/usr/bin/containerd", "/usr/local/bin/containerd"],
    main: "/etc/containerd/config.toml",
    drop_in: "/etc/containerd/conf.d/cocoon.toml",
    templates: None,
    managed: None,
    socket: "/run/containerd/containerd.sock",
    services: &["containerd.service"],
};

const DISTRIBUTIONS: [Distribution; 4] = [
    Distribution {
        name: "k3s",
        signs: &["/var/lib/rancher/k3s/agent/etc/containerd/config.toml"],
        programs: &["/var/lib/rancher/k3s/data/current/bin/containerd"],
        main: "/var/lib/rancher/k3s/agent/etc/containerd/config.toml",
        drop_in: "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.d/cocoon.toml",
        templates: Some([
            "/var/lib/rancher/k3s/agent/etc/containerd/config.toml.tmpl",
            "/var/lib/rancher/k3s/agent/etc/containerd/config-v3.toml.tmpl",
        ]),
        managed: None,
        socket: "/run/k3s/containerd/containerd.sock",
        services: &["k3s.service", "k3s-agent.service"],
    },
    Distribution {
        name: "rke2",
        signs: &["/var/lib/rancher/rke2/agent/etc/containerd/config.toml"],
        programs: &["/var/lib/rancher/rke2/bin/containerd"],
        main: "/var/lib/rancher/rke2/agent/etc/containerd/config.toml",
        drop_in: "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.d/cocoon.toml",
        templates: Some([
            "/var/lib/rancher/rke2/agent/etc/containerd/config.toml.tmpl",
            "/var/lib/rancher/rke2/agent/etc/containerd/config-v3.toml.tmpl",
        ]),
        managed: None,
        socket: "/run/k3s/containerd/containerd.sock",
        services: &["rke2-server.service", "rke2-agent.service"],
    },
    Distribution {
        name: "k0s",
        signs: &["/etc/k0s/containerd.toml", "/var/lib/k0s/bin/containerd"],
        programs: &["/var/lib/k0s/bin/containerd"],
        main: "/etc/k0s/containerd.toml",
        drop_in: "/etc/k0s/containerd.d/cocoon.toml",
        templates: None,
        managed: Some("# k0s_managed=true"),
        socket: "/run/k0s/containerd.sock",
        services: &["k0sworker.service", "k0scontroller.service"],
    },
    Distribution {
        name: "microk8s",
        signs: &["/var/snap/microk8s/current/args/containerd-template.toml"],
        programs: &["/snap/microk8s/current/bin/containerd"],
        main: "/var/snap/microk8s/current/args/containerd-template.toml",
        drop_in: "/var/snap/microk8s/current/args/containerd.d/cocoon.toml",
        templates: None,
        managed: None,
        socket: "/var/snap/microk8s/common/run/containerd.sock",
        services: &["snap.microk8s.daemon-containerd.service"],
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_import_names_the_drop_in_or_not() {
        for (import, named) in [
            ("/etc/containerd/conf.d/*.toml", true),
            ("/etc/containerd/conf.d/cocoon.toml", true),
            ("conf.d/*.toml", true),
            ("/etc/containerd/conf.d/c*", true),
            ("/etc/containerd/*.toml", false),
            ("/etc/containerd/conf.d/other.toml", false),
            ("/usr/etc/conf.d/*.toml", false),
        ] {
            assert_eq!(PLAIN.is_imported_by(import), named, "{import}");
        }
    }

    #[test]
    fn each_distribution_has_files_of_its_own_and_imports_what_it_writes() {
        for one in DISTRIBUTIONS.iter().chain([&PLAIN]) {
            assert!(one.is_imported_by(&one.import()), "{}", one.name);
            assert_eq!(Distribution::named(Some(one.name)).main, one.main);
            let others = DISTRIBUTIONS.iter().filter(|other| other.name != one.name);
            for other in others {
                assert!(other.main != one.main && other.drop_in != one.drop_in && other.signs != one.signs);
            }
        }
    }
}
