//! What a layer becomes, and what a stack of layers looks like through the overlay.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};

use super::*;
use crate::unpack::{self, Limits};

fn unpacked(archive: Archive) -> TempDir {
    let folder = TempDir::new().unwrap();
    unpack::unpack(&archive.done()[..], folder.path(), Limits::default()).unwrap();
    folder
}

#[test]
fn files_keep_what_the_archive_says() {
    let folder = unpacked(
        Archive::new()
            .directory("./", 0o711)
            .directory("sticky/", 0o1777)
            .raw(b'0', "sticky/tool", "", 0o4755, b"#!")
            .hard_link("sticky/twin", "sticky/tool")
            .symlink("sticky/link", "/absent")
            .raw(b'6', "sticky/pipe", "", 0o622, b"")
            .file("sticky/again", b"first")
            .file("sticky/again", b"second")
            .symlink("sticky/turned", "x")
            .directory("sticky/turned", 0o700)
            .file("sticky/emptied/deep/file", b"")
            .file("sticky/emptied", b"no longer a directory")
            .file("sticky/refilled/old", b"")
            .symlink("sticky/refilled", "x")
            .directory("sticky/refilled", 0o750)
            .file("sticky/refilled/new", b""),
    );
    let path = |name: &str| folder.path().join("sticky").join(name);
    let meta = |name: &str| std::fs::symlink_metadata(path(name)).unwrap();

    assert_eq!(std::fs::metadata(folder.path()).unwrap().permissions().mode() & 0o7777, 0o711);
    let sticky = std::fs::metadata(folder.path().join("sticky")).unwrap();
    assert_eq!((sticky.permissions().mode() & 0o7777, sticky.mtime()), (0o1777, 1_600_000_000));
    assert_eq!((meta("tool").permissions().mode() & 0o7777, meta("tool").mtime()), (0o4755, 1_600_000_000));
    assert_eq!((meta("tool").ino(), meta("tool").nlink()), (meta("twin").ino(), 2));
    assert_eq!(std::fs::read_link(path("link")).unwrap(), Path::new("/absent"));
    assert_eq!(meta("link").mtime(), 1_600_000_000);
    assert!(meta("pipe").file_type().is_fifo() && meta("pipe").permissions().mode() & 0o7777 == 0o622);
    assert_eq!(read(&path("again")), "second");
    assert!(meta("turned").is_dir());
    assert_eq!(read(&path("emptied")), "no longer a directory");
    // What comes after a replacement is all that is there.
    let refilled = std::fs::read_dir(path("refilled")).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(refilled.collect::<Vec<_>>(), ["new"]);
    assert_eq!(meta("refilled").permissions().mode() & 0o7777, 0o750);
}

#[test]
fn names_need_not_be_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    let mut builder = tar::Builder::new(Vec::new());
    let name = Path::new(OsStr::from_bytes(b"caf\xe9"));
    let mut header = tar::Header::new_gnu();
    header.set_mode(0o644);
    header.set_uid(owner().0.into());
    header.set_gid(owner().1.into());
    header.set_size(1);
    builder.append_data(&mut header, name, &b"x"[..]).unwrap();
    let folder = TempDir::new().unwrap();
    unpack::unpack(&builder.into_inner().unwrap()[..], folder.path(), Limits::default()).unwrap();
    assert_eq!(read(&folder.path().join(name)), "x");
}

#[test]
fn attributes_may_hold_any_bytes() {
    if !privileged() {
        return;
    }
    let value = b"line\nline\0\xff";
    let folder = unpacked(
        Archive::new()
            .attribute("trusted.note", value)
            .file("file", b"")
            .attribute("trusted.note", value)
            .symlink("link", "x"),
    );
    for name in ["file", "link"] {
        let mut buffer = [0; 64];
        let length = rustix::fs::lgetxattr(folder.path().join(name), "trusted.note", &mut buffer[..]).unwrap();
        assert_eq!(&buffer[..length], value, "{name}");
    }
}

#[test]
fn links_and_opaque_marks_may_come_in_any_order() {
    if !privileged() {
        return;
    }
    let folder = unpacked(
        Archive::new()
            .file("late/.wh..wh..opq", b"")
            .file("late/file", b"kept")
            .directory("late", 0o710)
            .file("a/real", b"x")
            .hard_link("b/c/twin", "/a/real")
            .symlink("a/soft", "real")
            .hard_link("b/soft", "a/soft")
            .file("a/real", b"another"),
    );
    let path = |name: &str| folder.path().join(name);
    let mut value = [0; 1];
    rustix::fs::getxattr(path("late"), "trusted.overlay.opaque", &mut value).unwrap();
    let mode = std::fs::metadata(path("late")).unwrap().permissions().mode() & 0o7777;
    assert_eq!((value, mode, read(&path("late/file"))), (*b"y", 0o710, "kept".to_owned()));
    // A second entry of a name is another file.
    assert_eq!((read(&path("b/c/twin")), read(&path("a/real"))), ("x".to_owned(), "another".to_owned()));
    assert_eq!(std::fs::read_link(path("b/soft")).unwrap(), Path::new("real"));
    assert_eq!(std::fs::symlink_metadata(path("b/soft")).unwrap().nlink(), 2);
}

#[test]
fn times_have_fractions_and_devices_their_numbers() {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("mtime", &b"1700000000.123456789"[..])]).unwrap();
    let archive = Archive(builder).directory("d", 0o755).done();
    let folder = TempDir::new().unwrap();
    unpack::unpack(&archive[..], folder.path(), Limits::default()).unwrap();
    let meta = std::fs::metadata(folder.path().join("d")).unwrap();
    assert_eq!((meta.mtime(), meta.mtime_nsec()), (1_700_000_000, 123_456_789));

    if privileged() {
        let folder = unpacked(Archive::new().raw(b'3', "null", "", 0o622, b"").raw(b'4', "disk", "", 0o640, b""));
        for (name, mode, block) in [("null", 0o622, false), ("disk", 0o640, true)] {
            let meta = std::fs::symlink_metadata(folder.path().join(name)).unwrap();
            assert_eq!((meta.rdev(), meta.permissions().mode() & 0o7777), (rustix::fs::makedev(1, 3), mode));
            assert_eq!(meta.file_type().is_block_device(), block);
        }
    }
}

#[test]
fn holes_take_no_space() {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNUSparse);
    header.set_mode(0o644);
    header.set_uid(owner().0.into());
    header.set_gid(owner().1.into());
    header.set_size(512);
    {
        let gnu = header.as_gnu_mut().unwrap();
        gnu.sparse[0].set_offset(1 << 30);
        gnu.sparse[0].set_length(512);
        gnu.set_real_size(2 << 30);
    }
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_data(&mut header, "holes", &[7; 512][..]).unwrap();
    let folder = TempDir::new().unwrap();

    unpack::unpack(&builder.into_inner().unwrap()[..], folder.path(), Limits::default()).unwrap();

    let meta = std::fs::metadata(folder.path().join("holes")).unwrap();
    assert_eq!(meta.len(), 2 << 30);
    assert!(meta.blocks() < 1000, "{} blocks", meta.blocks());
}

#[test]
fn a_whiteout_hides_lower_layers_and_nothing_of_its_own() {
    if !privileged() {
        return;
    }
    let folder = unpacked(
        Archive::new()
            .file("d/.wh.gone", b"")
            .file("d/kept", b"new")
            .file("d/.wh.kept", b"")
            .file("d/.wh.turned", b"")
            .directory("d/turned", 0o755)
            .directory("d/both", 0o755)
            .file("d/.wh.both", b"")
            .file("d/.wh.implied", b"")
            .file("d/implied/x", b"")
            .file("d/.wh..wh.plnk", b"")
            .file("opaque/.wh..wh..opq", b""),
    );
    let opaque = |name: &str| {
        let mut value = [0; 1];
        rustix::fs::getxattr(folder.path().join(name), "trusted.overlay.opaque", &mut value).is_ok()
    };
    let gone = std::fs::symlink_metadata(folder.path().join("d/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    assert_eq!(read(&folder.path().join("d/kept")), "new");
    for (name, expected) in [("opaque", true), ("d/turned", true), ("d/both", true), ("d/implied", true), ("d", false)]
    {
        assert_eq!(opaque(name), expected, "{name}");
    }
    assert!(!folder.path().join("d/.wh.plnk").exists());
}

#[tokio::test]
async fn members_of_gzip_and_the_padding_of_an_archive_belong_to_a_layer() {
    let mut archive = Archive::new().file("etc/motd", b"hello").done();
    archive.resize(archive.len() + (1 << 20), 0);
    let (first, second) = archive.split_at(700);
    let blob = [Layer::gzip(first).blob, Layer::gzip(second).blob].concat();
    let registry = RegistryDouble::with(&[Layer { blob, ..Layer::gzip(&archive) }]).await;
    let guest = Guest::new(&registry);

    let layers = guest.unpack(&registry).await.unwrap();

    assert_eq!(read(&layers[0].join("etc/motd")), "hello");
}

#[tokio::test]
async fn layers_stack_in_order_even_when_one_comes_twice() {
    if !privileged() {
        return;
    }
    let base = Archive::new()
        .directory("./", 0o751)
        .directory("tmp", 0o1777)
        .file("tmp/a", b"base")
        .file("tmp/b", b"base")
        .raw(b'3', "tmp/null", "", 0o666, b"")
        .directory("etc", 0o750)
        .file("etc/conf", b"base")
        .done();
    let middle = Archive::new().file("tmp/.wh.a", b"").file("tmp/b", b"middle").file("tmp/c", b"middle").done();
    let top = Archive::new().file("etc/.wh..wh..opq", b"").file("etc/new", b"top").done();
    let layers = [&base, &middle, &base, &top].map(|archive| Layer::gzip(archive));
    let registry = RegistryDouble::with(&layers).await;
    let guest = Guest::new(&registry);
    let resolved = guest.puller.resolve(&registry.reference()).await.unwrap();

    let pulled = match guest.puller.pull(&resolved, &guest.bundle("one")).await {
        Err(Error::Mount { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => {
            eprintln!("skipped: this user can't mount: {source}");
            return;
        }
        other => other.unwrap(),
    };

    let path = |name: &str| pulled.rootfs.join(name);
    assert_eq!(
        (read(&path("tmp/a")), read(&path("tmp/b")), read(&path("tmp/c"))),
        ("base".into(), "base".into(), "middle".into())
    );
    assert!(!path("etc/conf").exists() && path("etc/new").exists());
    let mode = |name: &str| std::fs::metadata(path(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode(""), mode("tmp")), (0o751, 0o1777));
    // The opaque directory is another one than the base layer's.
    assert_eq!(mode("etc"), 0o755);
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/sh"]);
    std::fs::write(path("tmp/written"), "x").unwrap();
    // An image can bring a node of any device, and it opens none.
    assert!(path("tmp/null").symlink_metadata().is_ok());
    assert_eq!(std::fs::File::open(path("tmp/null")).unwrap_err().kind(), std::io::ErrorKind::PermissionDenied);

    // A second bundle shares the layers and sees nothing of the first.
    let second = guest.puller.pull(&resolved, &guest.bundle("two")).await.unwrap();
    assert!(!second.rootfs.join("tmp/written").exists());
    assert_eq!(guest.layer_dirs(), 3);
    assert!(matches!(guest.puller.pull(&resolved, &guest.bundle("two")).await, Err(Error::BundleInUse { .. })));

    guest.puller.release(&guest.bundle("one")).await.unwrap();
    assert_eq!((guest.layer_dirs(), path("tmp").exists()), (3, false));
    guest.puller.release(&guest.bundle("two")).await.unwrap();
    guest.puller.release(&guest.bundle("two")).await.unwrap();
    assert_eq!(guest.layer_dirs(), 0);
}

#[tokio::test]
async fn a_directory_that_a_layer_only_implies_keeps_its_owner_and_mode() {
    if !privileged() {
        return;
    }
    let base = Archive::new().directory("tmp", 0o1777).directory("home", 0o700).directory("old", 0o700).done();
    let middle = Archive::new().file(".wh.old", b"").done();
    let top = Archive::new().file("tmp/x", b"").file("home/deep/er/x", b"").file("old/x", b"").done();
    let registry = RegistryDouble::with(&[&base, &middle, &top].map(|archive| Layer::tar(archive))).await;
    let guest = Guest::new(&registry);
    let resolved = guest.puller.resolve(&registry.reference()).await.unwrap();
    let pulled = match guest.puller.pull(&resolved, &guest.bundle("one")).await {
        Err(Error::Mount { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => return,
        other => other.unwrap(),
    };
    let mode = |name: &str| std::fs::metadata(pulled.rootfs.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("tmp"), mode("home"), mode("home/deep"), mode("old")), (0o1777, 0o700, 0o755, 0o755));
    assert!(pulled.rootfs.join("home/deep/er/x").exists());
}

#[tokio::test]
async fn three_hundred_layers_are_mounted() {
    if !privileged() {
        return;
    }
    let layers: Vec<_> =
        (0..300).map(|index| Layer::tar(&Archive::new().file(&format!("f{index}"), b"").done())).collect();
    let registry = RegistryDouble::with(&layers).await;
    let guest = Guest::new(&registry);
    let resolved = guest.puller.resolve(&registry.reference()).await.unwrap();
    let pulled = match guest.puller.pull(&resolved, &guest.bundle("one")).await {
        Err(Error::Mount { source, .. }) if source.kind() == std::io::ErrorKind::PermissionDenied => return,
        other => other.unwrap(),
    };
    assert_eq!(std::fs::read_dir(&pulled.rootfs).unwrap().count(), 300);
}
