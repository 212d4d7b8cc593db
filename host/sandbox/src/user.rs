//! The user that QEMU runs as where its owner is root: one of its own for each sandbox, with no name and no rights.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hypervisor::{Acceleration, Tee, User};

use crate::SandboxConfig;

/// A user for QEMU, or none where QEMU has to stay what its owner is: an ordinary user already; or root, who alone
/// may use a TEE's devices and lock its memory, or read files that are hidden from others.
pub(crate) fn of_vmm(config: &SandboxConfig, acceleration: Acceleration) -> Option<User> {
    if !nix::unistd::geteuid().is_root() || config.tee != Tee::None {
        return None;
    }
    let files = [Some(&config.guest.kernel), Some(&config.guest.initramfs), config.firmware.as_ref()];
    if let Some(hidden) = files.into_iter().flatten().find(|path| !is_public(path)) {
        tracing::warn!(path = %hidden.display(), "QEMU runs as root, since nobody else can read this file");
        return None;
    }
    let groups = match acceleration {
        Acceleration::Tcg => Vec::new(),
        Acceleration::Kvm => group_of(Path::new("/dev/kvm"))?,
    };
    let random = RandomState::new().hash_one(config.name.as_str());
    Some(User { id: FIRST_USER | (random as u32 & USERS), groups })
}

/// Whether anybody can read a file: it, and search all folders on the way.
fn is_public(path: &Path) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let allows = |path: &Path, bits: u32| fs::metadata(path).is_ok_and(|found| found.mode() & bits == bits);
    allows(&path, 0o004) && path.ancestors().skip(1).all(|folder| allows(folder, 0o001))
}

/// The groups in which one can read and write a device; none at all if only root can.
fn group_of(device: &Path) -> Option<Vec<u32>> {
    let found = fs::metadata(device).ok()?;
    match found.mode() {
        mode if mode & 0o006 == 0o006 => Some(Vec::new()),
        mode if mode & 0o060 == 0o060 && found.gid() != 0 => Some(vec![found.gid()]),
        _ => None,
    }
}

/// Numbers that neither distributions nor containers give to anybody: 0x70000000 to 0x7fffffff.
const FIRST_USER: u32 = 0x7000_0000;
const USERS: u32 = 0x0fff_ffff;

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn a_file_is_public_if_it_and_all_folders_above_are() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        fs::write(&path, "").unwrap();
        for (folder_mode, file_mode, public) in [(0o711, 0o644, true), (0o700, 0o644, false), (0o711, 0o640, false)] {
            fs::set_permissions(folder.path(), Permissions::from_mode(folder_mode)).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(file_mode)).unwrap();
            assert_eq!(is_public(&path), public, "{folder_mode:o} {file_mode:o}");
        }
        assert!(!is_public(Path::new("/no/such/file")));
    }

    #[test]
    fn a_device_is_used_by_its_group_but_not_by_root_alone() {
        let device = tempfile::NamedTempFile::new().unwrap();
        let group = device.as_file().metadata().unwrap().gid();
        let mode = |mode| fs::set_permissions(device.path(), Permissions::from_mode(mode)).unwrap();
        mode(0o666);
        assert_eq!(group_of(device.path()), Some(Vec::new()));
        mode(0o660);
        assert_eq!(group_of(device.path()), (group != 0).then(|| vec![group]));
        mode(0o600);
        assert_eq!(group_of(device.path()), None);
    }
}
