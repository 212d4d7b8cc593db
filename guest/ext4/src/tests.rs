//! File systems as others see them: `e2fsck` finds nothing to mend, and hosts find little to store.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;

#[test]
fn a_check_finds_nothing_to_mend() {
    for (mib, wish) in [
        (1, without_journal()),
        (8, Ext4::default()),
        (40, Ext4 { label: "data".to_owned(), ..Ext4::default() }),
        (127, Ext4 { reserved_percent: 5, ..Ext4::default() }),
        (128, without_journal()),
        (300, Ext4::default()),
        (2048, Ext4 { inode_size: 128, bytes_per_inode: 163_840, ..without_journal() }),
        (5000, Ext4 { bytes_per_inode: 4096, ..Ext4::default() }),
        (300 << 10, without_journal()),
    ] {
        let image = make(&wish, mib << 20);
        let Some(complaints) = complaints(image.path()) else { return };
        assert_eq!(complaints, "", "{mib} MiB, {wish:?}");
    }
}

#[test]
fn a_large_disk_costs_its_host_little() {
    for (tib, mib) in [(1, 1), (3, 2)] {
        let image = make(&without_journal(), tib << 40);
        let stored = image.as_file().metadata().unwrap().blocks() * 512;
        assert!(stored < mib << 20, "{tib} TiB take {stored} bytes");
    }
}

#[test]
fn nothing_is_read_and_only_whole_blocks_are_written() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let only_writing = File::options().write(true).open(file.path()).unwrap();
    only_writing.set_len(200 << 20).unwrap();
    Ext4::default().make(&only_writing, 200 << 20).unwrap();
    assert_eq!(file.as_file().metadata().unwrap().len(), 200 << 20);
}

#[test]
fn the_superblock_says_what_was_wished() {
    let image = make(&Ext4 { label: "data".to_owned(), ..Ext4::default() }, 300 << 20);
    let mut superblock = [0; 1024];
    image.as_file().read_exact_at(&mut superblock, 1024).unwrap();
    assert_eq!(superblock[56..58], 0xef53_u16.to_le_bytes());
    assert_eq!(&superblock[120..125], b"data\0");
    let (has_journal, has_extents) = (superblock[92] & 4 != 0, superblock[96] & 0x40 != 0);
    assert!(has_journal && has_extents);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn a_disk_of_any_size_gets_a_whole_file_system(size in (1_u64 << 20)..(1 << 32), journal: bool) {
        let wish = Ext4 { journal: journal && size > 8 << 20, ..Ext4::default() };
        let image = make(&wish, size);
        let complaints = complaints(image.path()).unwrap_or_default();
        prop_assert!(complaints.is_empty(), "{size}: {complaints}");
    }
}

fn without_journal() -> Ext4 {
    Ext4 { journal: false, ..Ext4::default() }
}

fn make(wish: &Ext4, size: u64) -> tempfile::NamedTempFile {
    let image = tempfile::NamedTempFile::new().unwrap();
    image.as_file().set_len(size).unwrap();
    wish.make(image.as_file(), size).unwrap();
    image
}

/// What `e2fsck` has against a file system but for the folder that it would make for itself; none without `e2fsck`.
fn complaints(image: &Path) -> Option<String> {
    let Ok(output) = Command::new("/usr/sbin/e2fsck").arg("-fn").arg(image).env("LC_ALL", "C").output() else {
        println!("skipped: there is no e2fsck; next: install e2fsprogs");
        return None;
    };
    let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert!(said.contains("Pass 5"), "{said}");
    let expected = |line: &str| {
        let plain = ["Pass ", "/lost+found not found", "e2fsck 1."].iter().any(|start| line.starts_with(start));
        plain
            || line.trim().is_empty()
            || line.contains("** WARNING: Filesystem still has errors **")
            || line.contains(" files (")
    };
    Some(said.lines().filter(|line| !expected(line)).collect::<Vec<_>>().join("\n"))
}
