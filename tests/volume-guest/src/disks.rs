//! The guest's disks by their names: what is written to them, what is found on them, and what may not be left of them.

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The device's numbers as requests name it: `MAJ:MIN`.
pub fn device_id(disk: &str) -> String {
    let number = fs::metadata(disk_path(disk)).map(|it| std::os::unix::fs::MetadataExt::rdev(&it)).unwrap();
    format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number))
}

/// A file with known content that is easily recognised.
pub fn fill(path: &str) {
    let file = File::create(path).unwrap();
    for block in 0..FILE_BLOCKS {
        file.write_all_at(&pattern(block, BLOCK as usize), block * BLOCK).unwrap();
    }
    file.sync_all().unwrap();
}

pub fn check(path: &str) {
    check_open(&File::open(path).unwrap());
}

pub fn check_open(file: &File) {
    let mut block = vec![0; BLOCK as usize];
    assert_eq!(file.metadata().unwrap().len(), FILE_BLOCKS * BLOCK);
    for number in 0..FILE_BLOCKS {
        file.read_exact_at(&mut block, number * BLOCK).unwrap();
        assert!(block == pattern(number, BLOCK as usize), "block {number}");
    }
}

/// Also in `tests/volumes.rs`, which makes a layer of it.
pub fn pattern(block: u64, length: usize) -> Vec<u8> {
    format!("{MARKER} {block:8}\n").bytes().cycle().take(length).collect()
}

pub fn holds_plaintext(disk: &str) -> bool {
    let bytes = fs::read(disk_path(disk)).unwrap();
    let mut starts = (0..bytes.len()).filter(|at| bytes[*at] == MARKER.as_bytes()[0]);
    starts.any(|at| bytes[at..].starts_with(MARKER.as_bytes()))
}

pub fn assert_nothing_left(mount_point: &str) {
    assert!(is_nothing_left(mount_point), "{mount_point}: {:?}", mappings());
}

/// No mount, no mapping, and no folder that was made for it.
pub fn is_nothing_left(mount_point: &str) -> bool {
    let mounted = fs::read_to_string("/proc/mounts").unwrap().contains("/dev/mapper");
    fs::symlink_metadata(mount_point).is_err() && !mounted && mappings().is_empty()
}

pub fn assert_no_mapping() {
    assert!(mappings().is_empty(), "{:?}", mappings());
}

fn mappings() -> Vec<PathBuf> {
    let names = |folder: &str| fs::read_dir(folder).unwrap().map(|it| it.unwrap().path());
    let named = names("/dev/mapper").filter(|path| path != Path::new("/dev/mapper/control"));
    named.chain(names("/sys/block").filter(|path| path.to_string_lossy().contains("/dm-"))).collect()
}

pub fn options_of(mount_point: &str) -> String {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    mounts.lines().find(|line| line.contains(&format!(" {mount_point} "))).unwrap().to_owned()
}

pub fn length(path: &str) -> u64 {
    std::io::Seek::seek(&mut File::open(path).unwrap(), std::io::SeekFrom::End(0)).unwrap()
}

pub fn disk_path(name: &str) -> String {
    fs::canonicalize(Path::new("/run/disks").join(name)).unwrap().display().to_string()
}

pub fn cryptsetup(arguments: &[&str]) {
    let output = Command::new("/usr/sbin/cryptsetup")
        .arg("--batch-mode")
        .args(arguments)
        .env("DM_DISABLE_UDEV", "1")
        .output()
        .unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success(), "cryptsetup {arguments:?}: {}", String::from_utf8_lossy(&said));
}

pub const KEY_FILE: &str = "/run/key";
/// Not text, so that its derivation costs the least. Also in `tests/volumes.rs`, which forges a header with it.
pub const KEY: [u8; 32] = [0xfe; 32];
const MARKER: &str = "the owner's data, block";
pub const BLOCK: u64 = 4096;
const FILE_BLOCKS: u64 = 512;
