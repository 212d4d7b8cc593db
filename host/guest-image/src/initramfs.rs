//! What the guest's root holds when its first process starts.

use std::collections::BTreeMap;

use crate::cpio::Archive;
use crate::modules::Module;

/// Lays out guestd, its modules and the few nodes it needs before it has mounted anything.
///
/// `groups` are in load order, which becomes `/etc/cocoon/modules`: one file name in `/lib/modules` a line, an empty line
/// between groups. `programs` are executables and libraries by their paths.
pub(crate) fn compose(guestd: Vec<u8>, groups: Vec<Vec<Module>>, programs: BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut root = Archive::default();
    for (path, permissions) in FOLDERS {
        root.folder(path, permissions);
    }
    // The kernel opens the console for the first process; without the node it starts with no standard streams.
    root.character_device("dev/console", 0o600, 5, 1);
    root.character_device("dev/null", 0o666, 1, 3);

    let lines = |group: &Vec<Module>| group.iter().map(|module| format!("{}\n", module.file_name)).collect::<String>();
    let order = groups.iter().map(lines).collect::<Vec<_>>().join("\n");
    root.file("etc/cocoon/modules", 0o644, order.into_bytes());
    for Module { file_name, bytes } in groups.into_iter().flatten() {
        root.file(&format!("lib/modules/{file_name}"), 0o644, bytes);
    }
    for (path, bytes) in programs {
        let folders = path.match_indices('/').map(|(end, _)| &path[..end]);
        folders.for_each(|folder| root.folder(folder, 0o755));
        root.file(&path, 0o755, bytes);
    }
    root.file("init", 0o755, guestd);
    root.finish()
}

/// The modules a guest needs, in the groups in which it loads them: for its first answer to the host, for the network, for
/// a TEE, where it runs in one, and for containers.
///
/// Of ciphers there are the processor's own instructions too, without which a volume is ten times slower.
pub(crate) const MODULES: &[&[&str]] = &[
    &["vmw_vsock_virtio_transport", "virtio_blk"],
    &["virtio_net"],
    &["tsm", "tdx_guest", "sev_guest"],
    &[
        "overlay",
        "dm_crypt",
        "dm_integrity",
        "dm_verity",
        "xts",
        "authenc",
        "aesni_intel",
        "sha256_ssse3",
        "erofs",
        "loop",
    ],
];

const FOLDERS: [(&str, u32); 10] = [
    ("dev", 0o755),
    ("etc", 0o755),
    ("etc/cocoon", 0o755),
    ("lib", 0o755),
    ("lib/modules", 0o755),
    ("proc", 0o755),
    ("root", 0o700),
    ("run", 0o755),
    ("sys", 0o755),
    ("tmp", 0o1777),
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpio::tests::parse;

    fn programs() -> BTreeMap<String, Vec<u8>> {
        BTreeMap::from([("usr/sbin/mke2fs".to_owned(), b"program".to_vec())])
    }

    #[test]
    fn the_load_order_names_the_files_that_are_there() {
        let module = |name: &str| Module { file_name: name.to_owned(), bytes: name.as_bytes().to_vec() };
        let root =
            parse(&compose(b"guestd".to_vec(), vec![vec![module("vsock.ko")], vec![module("overlay.ko")]], programs()));
        let bytes = |path: &str| root.iter().find(|entry| entry.path == path).map(|entry| &entry.bytes[..]);

        assert_eq!(bytes("etc/cocoon/modules"), Some(&b"vsock.ko\n\noverlay.ko\n"[..]));
        assert_eq!(bytes("lib/modules/overlay.ko"), Some(&b"overlay.ko"[..]));
        assert_eq!(bytes("init"), Some(&b"guestd"[..]));
        assert_eq!(bytes("usr/sbin/mke2fs"), Some(&b"program"[..]));
    }

    #[test]
    fn every_entry_has_its_folder() {
        let root = parse(&compose(Vec::new(), Vec::new(), programs()));
        let paths: Vec<_> = root.iter().map(|entry| &entry.path).collect();
        for path in &paths {
            if let Some((folder, _)) = path.rsplit_once('/') {
                assert!(paths.iter().any(|path| *path == folder), "{path}");
            }
        }
    }
}
