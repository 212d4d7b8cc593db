//! Archives that try to get out of their layer, and archives that try to use the guest up.

use proptest::prelude::*;

use super::*;
use crate::unpack::{self, Limits};

/// Unpacks beside a file that no archive may reach.
fn attempt(archive: &[u8]) -> Result<(), String> {
    attempt_within(archive, Limits::default())
}

fn attempt_within(archive: &[u8], limits: Limits) -> Result<(), String> {
    let folder = TempDir::new().unwrap();
    let layer = folder.path().join("layer");
    std::fs::create_dir(&layer).unwrap();
    std::fs::write(folder.path().join("outside"), "untouched").unwrap();

    let outcome = unpack::unpack(archive, &layer, limits);

    let names: Vec<_> = std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    assert_eq!(read(&folder.path().join("outside")), "untouched");
    outcome.map(drop).map_err(|failure| failure.to_string())
}

#[test]
fn nothing_leaves_the_layer() {
    let link = |target: &str| Archive::new().symlink("link", target);
    for (name, archive, expected) in [
        ("dotdot", Archive::new().file("../outside", b"x"), Err("leads out")),
        ("dotdot inside", Archive::new().file("a/../../outside", b"x"), Err("leads out")),
        ("dotdot directory", Archive::new().directory("..", 0o777), Err("leads out")),
        ("absolute", Archive::new().file("/outside", b"x"), Ok(())),
        ("through a relative link", link("..").file("link/outside", b"x"), Ok(())),
        ("through an absolute link", link("/").file("link/outside", b"x"), Ok(())),
        ("through a long link", link("../../../../../../tmp").file("link/outside", b"x"), Err("not a directory")),
        ("through a link to a file", link("../outside").file("link/x", b"x"), Err("not a directory")),
        ("over a link", link("../outside").file("link", b"x"), Ok(())),
        ("hard link up", Archive::new().hard_link("x", "../outside"), Err("hard link leads out")),
        ("hard link to the root", Archive::new().hard_link("x", "/"), Err("hard link leads out")),
        ("hard link by absolute name", Archive::new().hard_link("x", "/outside"), Err("does not have")),
        ("hard link through a link", link("..").hard_link("x", "link/outside"), Err("does not have")),
        ("hard link to a link", link("../outside").hard_link("x", "link"), Ok(())),
        ("write through that", link("../outside").hard_link("x", "link").file("x", b"x"), Ok(())),
        ("whiteout of dotdot", Archive::new().file(".wh...", b""), Err("hides no usable name")),
        ("whiteout of nothing", Archive::new().file(".wh.", b""), Err("hides no usable name")),
        ("whiteout behind a link", link("..").file("link/.wh.outside", b""), Ok(())),
        ("loop", link("link").file("link/x", b"x"), Err("not a directory")),
        ("root as a file", Archive::new().file("./", b""), Ok(())),
        ("root as a link", Archive::new().symlink(".", "/"), Err("layer's root")),
        (
            "redirect",
            Archive::new().attribute("trusted.overlay.redirect", b"/").directory("d", 0o755),
            Err("overlayfs"),
        ),
        ("empty link", Archive::new().symlink("x", ""), Err("no usable target")),
        ("self link", Archive::new().file("x", b"1").hard_link("x", "x"), Err("itself")),
        ("file over a full directory", Archive::new().file("d/x", b"").file("d", b""), Ok(())),
        (
            "file over a directory with links out",
            Archive::new().symlink("d/up", "../../outside").symlink("d/root", "/").file("d", b""),
            Ok(()),
        ),
        ("unknown type", Archive::new().raw(b'Z', "x", "", 0o644, b""), Err("unknown type")),
    ] {
        match (attempt(&archive.done()), expected) {
            (Ok(()), Ok(())) => {}
            (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{name} gave {actual:?}"),
            (actual, _) => panic!("{name} gave {actual:?}"),
        }
    }
}

#[test]
fn entries_and_directories_are_counted() {
    let pipes = (0..11).fold(Archive::new(), |archive, index| archive.raw(b'6', &format!("p{index}"), "", 0o600, b""));
    let error = attempt_within(&pipes.done(), Limits { entries: 10, ..Default::default() }).unwrap_err();
    assert_eq!(error, "limit: more than 10 entries");

    let deep = Archive::new().file(&("d/".repeat(40) + "file"), b"").done();
    let error = attempt_within(&deep, Limits { implied: 1000, ..Default::default() }).unwrap_err();
    assert_eq!(error, "limit: the names of directories without an entry take more than 1000 bytes");
    attempt(&deep).unwrap();
}

#[test]
fn a_device_number_that_the_kernel_would_cut_is_refused() {
    for (major, minor, allowed) in [(4095, 0, true), (4096, 0, false), (1, 0xfffff, true), (1, 0x10_0000, false)] {
        let mut header = tar::Header::new_gnu();
        header.set_path("device").unwrap();
        header.set_entry_type(tar::EntryType::Char);
        header.set_mode(0o600);
        header.set_uid(owner().0.into());
        header.set_gid(owner().1.into());
        header.set_size(0);
        header.set_device_major(major).unwrap();
        header.set_device_minor(minor).unwrap();
        header.set_cksum();
        let outcome = attempt(&[&header.as_bytes()[..], &[0; 1024]].concat());
        match (&outcome, allowed) {
            (Ok(()), true) => {}
            // Whoever may make no device at all can't tell.
            (Err(text), true) => assert!(text.contains("not permitted"), "{text}"),
            (Err(text), false) => assert!(text.contains("device number"), "{text}"),
            (Ok(()), false) => panic!("{major}:{minor} was made"),
        }
    }
}

#[test]
fn a_deep_path_costs_each_of_its_directories_once() {
    // 1200 directories in one name; resolved from the root each time, they would be 720 000 steps.
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(owner().0.into());
    header.set_gid(owner().1.into());
    builder.append_data(&mut header, "d/".repeat(1200) + "file", &b""[..]).unwrap();
    attempt(&builder.into_inner().unwrap()).unwrap();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_sequence_of_entries_gets_out(
        entries in proptest::collection::vec(
            (proptest::sample::select(&b"01256"[..]), "[ab./]{1,12}", "[ab./]{0,12}"), 1..12,
        ),
    ) {
        let archive = entries.iter().fold(Archive::new(), |archive, (kind, name, link)| {
            archive.raw(*kind, name, link, 0o700, b"")
        });
        let _ = attempt(&archive.done());
    }

    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let _ = attempt(&bytes);
    }
}
