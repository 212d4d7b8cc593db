//! The pod as a whole: its name, its resolver, and the folders its containers share.

use std::ffi::CString;
use std::fs::Permissions;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use wire_ttrpc::agent::{CreateSandboxRequest, Storage};

use crate::id::{Id, InvalidId};

/// What the containers of a pod have in common.
#[derive(Debug)]
pub(crate) struct Sandbox {
    folder: PathBuf,
    hostname: String,
    resolver: String,
    volumes: Vec<PathBuf>,
}

impl Sandbox {
    /// Prepares the folders of a sandbox below `root`, and its storages.
    ///
    /// # Errors
    /// [`Error`]; nothing is left behind then.
    pub(crate) fn create(request: &CreateSandboxRequest, root: &Path) -> Result<Self, Error> {
        if !request.sandbox_id.is_empty() {
            Id::parse(&request.sandbox_id)?;
        }
        for (asked, what) in [
            (request.sandbox_pidns, "a process namespace shared by the sandbox"),
            (!request.guest_hook_path.is_empty(), "hooks"),
            (!request.kernel_modules.is_empty(), "kernel modules"),
            (request.storages.len() > MAX_STORAGES, "so many storages"),
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
        let mut sandbox = Self { folder, hostname: hostname.to_owned(), resolver, volumes: Vec::new() };
        match sandbox.add_volumes(&request.storages, root) {
            Ok(_) => Ok(sandbox),
            Err(error) => {
                sandbox.destroy();
                Err(error)
            }
        }
    }

    /// Makes the volumes among `storages` that are not there yet, and returns those it made.
    ///
    /// # Errors
    /// [`Error`]; none of these volumes is left behind then.
    pub(crate) fn add_volumes(&mut self, storages: &[Storage], root: &Path) -> Result<Vec<PathBuf>, Error> {
        let mut made: Vec<PathBuf> = Vec::new();
        for storage in storages {
            let known = self.volumes.iter().chain(&made);
            match Volume::parse(storage, root, known).and_then(|volume| volume.make()) {
                Ok(Some(path)) => made.push(path),
                Ok(None) => {}
                Err(error) => {
                    self.volumes.extend(made.iter().cloned());
                    self.remove_volumes(&made);
                    return Err(error);
                }
            }
        }
        self.volumes.extend(made.iter().cloned());
        Ok(made)
    }

    /// Removes volumes with what they hold.
    pub(crate) fn remove_volumes(&mut self, volumes: &[PathBuf]) {
        for volume in volumes.iter().rev() {
            // Fails where the volume is a plain folder, which is removed right after.
            let _ = unmount(volume, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
            if let Err(error) = std::fs::remove_dir_all(volume) {
                tracing::warn!(volume = %volume.display(), %error, "volume can't be removed");
            }
            self.volumes.retain(|known| known != volume);
        }
    }

    /// Removes all that belongs to the sandbox.
    pub(crate) fn destroy(&mut self) {
        let volumes = std::mem::take(&mut self.volumes);
        self.remove_volumes(&volumes);
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

    /// The volumes that containers may share. None lies in another, so no container can change the way to one.
    pub(crate) fn volumes(&self) -> &[PathBuf] {
        &self.volumes
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

/// Why there is no sandbox or volume.
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
    #[error("storage {driver:?} at {mount_point:?} is refused: {reason}; next: leave it out")]
    Storage { driver: String, mount_point: String, reason: &'static str },
    #[error("sandbox folders can't be made: {0}")]
    Folder(#[source] io::Error),
    #[error("volume can't be made: {0}")]
    Volume(#[source] io::Error),
}

/// A volume that lives in the guest's memory.
struct Volume<'a> {
    path: &'a Path,
    /// The options of the file system of its own; none for a plain folder.
    tmpfs: Option<String>,
    mode: u32,
}

impl<'a> Volume<'a> {
    fn parse<'b>(
        storage: &'a Storage,
        root: &Path,
        mut known: impl Iterator<Item = &'b PathBuf>,
    ) -> Result<Self, Error> {
        let refuse = |reason| Error::Storage {
            driver: storage.driver.chars().take(64).collect(),
            mount_point: storage.mount_point.chars().take(256).collect(),
            reason,
        };
        let path = Path::new(&storage.mount_point);
        let plain = path.components().all(|part| !matches!(part, std::path::Component::ParentDir))
            && storage.mount_point.len() < 1024;
        let below = |folder: &str| path.starts_with(root.join(folder)) && path != root.join(folder);
        let shared = below("sandbox/ephemeral") || below("shared/containers") || path == root.join("sandbox/shm");
        if !plain || !shared || storage.mount_point.contains('\0') {
            return Err(refuse("its mount point is not one that pods share"));
        }
        // A container could put a link into its volume, and so lead the agent to any place in the guest.
        if known.any(|other| path != other && (path.starts_with(other) || other.starts_with(path))) {
            return Err(refuse("it lies in another volume, or around one"));
        }
        if storage.fs_group.is_some() {
            return Err(refuse("groups of volumes are not supported"));
        }
        let number = |text: &str| !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
        let mut mode = if path.ends_with("shm") { 0o1777 } else { 0o777 };
        let mut options = Vec::new();
        for option in &storage.options {
            match option.split_once('=') {
                Some(("mode", text)) => {
                    mode = u32::from_str_radix(text, 8)
                        .ok()
                        .filter(|mode| *mode <= 0o1777)
                        .ok_or_else(|| refuse("its mode is malformed"))?
                }
                Some(("size", size)) if number(size.trim_end_matches(['k', 'm', 'g', '%'])) => {
                    options.push(option.as_str())
                }
                None if matches!(option.as_str(), "nosuid" | "nodev" | "noexec") => {}
                _ => return Err(refuse("it has an option that is not supported")),
            }
        }
        match storage.driver.as_str() {
            "ephemeral" if storage.fstype == "tmpfs" => Ok(Self { path, tmpfs: Some(options.join(",")), mode }),
            "local" => Ok(Self { path, tmpfs: None, mode }),
            _ => Err(refuse("only volumes in memory are supported")),
        }
    }

    /// The path of the volume, unless it was there already.
    fn make(&self) -> Result<Option<PathBuf>, Error> {
        if self.path.is_dir() {
            return Ok(None);
        }
        std::fs::create_dir_all(self.path).map_err(Error::Volume)?;
        let make = || {
            if let Some(options) = &self.tmpfs {
                let options = CString::new(options.as_str())?;
                let flags = MountFlags::NOSUID | MountFlags::NODEV;
                mount("tmpfs", self.path, "tmpfs", flags, options.as_c_str())?;
            }
            std::fs::set_permissions(self.path, Permissions::from_mode(self.mode))
        };
        match make() {
            Ok(()) => Ok(Some(self.path.to_owned())),
            Err(error) => {
                let _ = unmount(self.path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW);
                let _ = std::fs::remove_dir(self.path);
                Err(Error::Volume(error))
            }
        }
    }
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

const MAX_STORAGES: usize = 64;
const MAX_DNS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn request(root: &Path) -> CreateSandboxRequest {
        CreateSandboxRequest {
            sandbox_id: "s1".into(),
            hostname: "pod-1".into(),
            dns: vec![
                "10.0.0.10".into(),
                "search default.svc.cluster.local".into(),
                "nameserver fd00::1".into(),
                "options ndots:5".into(),
            ],
            storages: vec![Storage {
                driver: "local".into(),
                mount_point: root.join("sandbox/ephemeral/cache").to_str().unwrap().into(),
                options: vec!["mode=0770".into()],
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    #[test]
    fn a_sandbox_has_a_name_a_resolver_and_volumes_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        let mut sandbox = Sandbox::create(&request(root.path()), root.path()).unwrap();
        let expected = "nameserver 10.0.0.10\nsearch default.svc.cluster.local\nnameserver fd00::1\noptions ndots:5\n";
        assert_eq!(sandbox.resolver(), expected);
        let cache = root.path().join("sandbox/ephemeral/cache");
        assert_eq!(cache.metadata().unwrap().permissions().mode() & 0o7777, 0o770);
        assert_eq!(sandbox.add_volumes(&request(root.path()).storages, root.path()).unwrap(), Vec::<PathBuf>::new());

        let bundle = tempfile::tempdir().unwrap();
        let files = sandbox.write_files(bundle.path()).unwrap();
        assert_eq!(files.len(), 4);
        assert_eq!(std::fs::read_to_string(bundle.path().join("hostname")).unwrap(), "pod-1\n");
        sandbox.destroy();
        assert!(!root.path().join("sandbox").exists());
    }

    #[test]
    fn no_volume_lies_in_another() {
        let root = tempfile::tempdir().unwrap();
        let mut sandbox = Sandbox::create(&request(root.path()), root.path()).unwrap();
        let cache = root.path().join("sandbox/ephemeral/cache");
        // What a container that has the volume could do.
        std::os::unix::fs::symlink(root.path(), cache.join("out")).unwrap();
        for place in ["sandbox/ephemeral/cache/out/c2", "sandbox/ephemeral/cache/inner", "sandbox/ephemeral/cache/."] {
            let mount_point = root.path().join(place).to_str().unwrap().to_owned();
            let storage = Storage { mount_point, ..request(root.path()).storages[0].clone() };
            let made = sandbox.add_volumes(&[storage], root.path());
            assert!(
                if place.ends_with('.') { made.is_ok_and(|made| made.is_empty()) } else { made.is_err() },
                "{place}"
            );
        }
        assert!(!root.path().join("c2").exists() && !cache.join("inner").exists());
        assert_eq!(sandbox.volumes(), [cache]);
    }

    #[test]
    fn what_a_sandbox_can_t_have_is_refused_and_leaves_nothing() {
        let root = tempfile::tempdir().unwrap();
        type Change = fn(&mut CreateSandboxRequest);
        let changes: [Change; 14] = [
            |r| r.sandbox_id = "../x".into(),
            |r| r.hostname = "a b".into(),
            |r| r.hostname = "a".repeat(65),
            |r| r.guest_hook_path = "/hooks".into(),
            |r| r.sandbox_pidns = true,
            |r| r.kernel_modules.push(Default::default()),
            |r| r.dns.push("nameserver x".into()),
            |r| r.dns.push("search a\nnameserver 1.1.1.1".into()),
            |r| r.dns.push("include /etc/shadow".into()),
            |r| r.storages[0].driver = "blk".into(),
            |r| r.storages[0].mount_point = "/etc/x".into(),
            |r| r.storages[0].mount_point.push_str("/../../../c1/rootfs"),
            |r| r.storages[0].options.push("suid".into()),
            |r| {
                r.storages.push(Storage { driver: "ephemeral".into(), fstype: "ext4".into(), ..r.storages[0].clone() });
            },
        ];
        for (number, change) in changes.into_iter().enumerate() {
            let mut request = request(root.path());
            change(&mut request);
            assert!(Sandbox::create(&request, root.path()).is_err(), "change {number}");
            assert!(!root.path().join("sandbox/ephemeral/cache").exists(), "change {number}");
        }
    }
}
