//! The pod as a whole: its name, its resolver, its namespaces, and the files its containers get.

use std::fs::Permissions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use wire_ttrpc::agent::CreateSandboxRequest;

use crate::id::{Id, InvalidId};
use crate::namespaces::Namespaces;

/// What the containers of a pod have in common.
#[derive(Debug)]
pub(crate) struct Sandbox {
    folder: PathBuf,
    hostname: String,
    resolver: String,
    shares_pids: bool,
    namespaces: Option<Namespaces>,
}

impl Sandbox {
    /// Prepares the folders of a sandbox below `root`.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind then.
    pub(crate) fn create(request: &CreateSandboxRequest, root: &Path) -> Result<Self, Error> {
        if !request.sandbox_id.is_empty() {
            Id::parse(&request.sandbox_id)?;
        }
        for (asked, what) in [
            (!request.guest_hook_path.is_empty(), "hooks, which no measured guest image has"),
            (!request.kernel_modules.is_empty(), "kernel modules, which the guest's kernel takes none of any more"),
        ] {
            if asked {
                return Err(Error::Unsupported(what));
            }
        }
        let hostname = if request.hostname.is_empty() { "localhost" } else { &request.hostname };
        let resolver = resolver(&request.dns)?;
        if !is_hostname(hostname) {
            return Err(Error::Hostname);
        }
        let folder = root.join("sandbox");
        std::fs::create_dir_all(folder.join("ephemeral")).map_err(Error::Folder)?;
        std::fs::set_permissions(root, Permissions::from_mode(0o711)).map_err(Error::Folder)?;
        std::fs::write(folder.join("resolv.conf"), &resolver).map_err(Error::Folder)?;
        let hostname = hostname.to_owned();
        Ok(Self { folder, hostname, resolver, shares_pids: request.sandbox_pidns, namespaces: None })
    }

    /// Removes all that belongs to the sandbox. Its volumes are gone by then.
    pub(crate) fn destroy(self) {
        drop(self.namespaces);
        if let Err(error) = std::fs::remove_dir_all(&self.folder) {
            tracing::warn!(%error, "sandbox folder can't be removed");
        }
    }

    /// The pod's host name.
    pub(crate) fn hostname(&self) -> &str {
        &self.hostname
    }

    /// The text of the resolver's configuration; empty where the host gave none.
    pub(crate) fn resolver(&self) -> &str {
        &self.resolver
    }

    /// Whether all containers of the pod see each other's processes.
    pub(crate) fn shares_pids(&self) -> bool {
        self.shares_pids
    }

    /// The namespaces of the pod, made when its first container needs them.
    pub(crate) fn namespaces(&mut self) -> io::Result<&mut Namespaces> {
        let namespaces = match self.namespaces.take() {
            Some(namespaces) => namespaces,
            None => Namespaces::make(self.folder.join("ns"), &self.hostname)?,
        };
        Ok(self.namespaces.insert(namespaces))
    }

    /// Writes the files that each container gets of its own, and returns them as pairs of destination and source.
    pub(crate) fn write_files(&self, bundle: &Path) -> io::Result<Vec<(&'static str, PathBuf)>> {
        let hostname = &self.hostname;
        let hosts = format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n");
        let files = [
            ("/etc/hostname", "hostname", format!("{hostname}\n")),
            ("/etc/hosts", "hosts", hosts),
            ("/etc/resolv.conf", "resolv.conf", self.resolver.clone()),
            ("/dev/termination-log", "termination-log", String::new()),
        ];
        let mut written = Vec::new();
        for (destination, name, content) in files {
            let path = bundle.join(name);
            std::fs::write(&path, content)?;
            // A container that doesn't run as root has to be able to say why it ends.
            let mode = if name == "termination-log" { 0o666 } else { 0o644 };
            std::fs::set_permissions(&path, Permissions::from_mode(mode))?;
            written.push((destination, path));
        }
        Ok(written)
    }
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("sandbox asks for {0}, which this guest doesn't support; next: leave it out")]
    Unsupported(&'static str),
    #[error("host name is malformed; next: use at most 64 letters, digits, dots and hyphens")]
    Hostname,
    #[error("DNS entry {0:?} is neither an address nor a line of resolv.conf; next: correct it")]
    Dns(String),
    #[error("sandbox folders can't be made: {0}")]
    Folder(#[source] io::Error),
}

/// The text of `resolv.conf`, from addresses or whole lines.
fn resolver(entries: &[String]) -> Result<String, Error> {
    let mut text = String::new();
    for entry in entries.iter().take(MAX_DNS) {
        let line = match entry.parse::<IpAddr>() {
            Ok(address) => format!("nameserver {address}"),
            Err(_) => entry.trim().to_owned(),
        };
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let fine = match words.as_slice() {
            ["nameserver", address] => address.parse::<IpAddr>().is_ok(),
            ["search" | "options" | "domain", rest @ ..] => {
                rest.iter().all(|word| word.bytes().all(|b| b.is_ascii_graphic()))
            }
            [] => true,
            _ => line.starts_with('#'),
        };
        if !fine || line.len() > 256 || line.contains(char::is_control) {
            return Err(Error::Dns(entry.chars().take(64).collect()));
        }
        if !words.is_empty() {
            text.push_str(&line);
            text.push('\n');
        }
    }
    Ok(text)
}

fn is_hostname(name: &str) -> bool {
    (1..=64).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
}

const MAX_DNS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "s1".into(),
            hostname: "pod-1".into(),
            dns: vec![
                "10.0.0.10".into(),
                "search default.svc.cluster.local".into(),
                "nameserver fd00::1".into(),
                "options ndots:5".into(),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_sandbox_has_a_name_and_a_resolver_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let sandbox = Sandbox::create(&request(), root.path()).unwrap();
        let expected = "nameserver 10.0.0.10\nsearch default.svc.cluster.local\nnameserver fd00::1\noptions ndots:5\n";
        assert_eq!(sandbox.resolver(), expected);

        let bundle = tempfile::tempdir().unwrap();
        let files = sandbox.write_files(bundle.path()).unwrap();
        assert_eq!(files.len(), 4);
        assert_eq!(std::fs::read_to_string(bundle.path().join("hostname")).unwrap(), "pod-1\n");
        sandbox.destroy();
        assert!(!root.path().join("sandbox").exists());
    }

    #[test]
    fn what_a_sandbox_can_t_have_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        type Change = fn(&mut CreateSandboxRequest);
        let changes: [Change; 8] = [
            |r| r.sandbox_id = "../x".into(),
            |r| r.hostname = "a b".into(),
            |r| r.hostname = "a".repeat(65),
            |r| r.guest_hook_path = "/hooks".into(),
            |r| r.kernel_modules.push(Default::default()),
            |r| r.dns.push("nameserver x".into()),
            |r| r.dns.push("search a\nnameserver 1.1.1.1".into()),
            |r| r.dns.push("include /etc/shadow".into()),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut request = request();
            change(&mut request);
            assert!(Sandbox::create(&request, root.path()).is_err(), "change {number}");
            assert!(!root.path().join("sandbox").exists(), "change {number}");
        }
    }
}
