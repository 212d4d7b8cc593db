//! Writes a cpio archive that the kernel unpacks as initramfs, the same bytes for the same content.
//!
//! Source: Linux, Documentation/driver-api/early-userspace/buffer-format.rst ("newc", uncompressed).

use std::collections::BTreeMap;

/// A tree of files; owner, group and times are zero, and inode numbers count up in the order of paths.
#[derive(Debug, Default)]
pub(crate) struct Archive {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug)]
struct Entry {
    mode: u32,
    device: (u32, u32),
    bytes: Vec<u8>,
}

impl Archive {
    /// Adds a folder. Paths are relative to the root, without a leading slash, and parents are to be added too.
    pub(crate) fn folder(&mut self, path: &str, permissions: u32) {
        self.add(path, FOLDER | permissions, (0, 0), Vec::new());
    }

    /// Adds a regular file.
    pub(crate) fn file(&mut self, path: &str, permissions: u32, bytes: Vec<u8>) {
        self.add(path, FILE | permissions, (0, 0), bytes);
    }

    /// Adds a character device.
    pub(crate) fn character_device(&mut self, path: &str, permissions: u32, major: u32, minor: u32) {
        self.add(path, CHARACTER_DEVICE | permissions, (major, minor), Vec::new());
    }

    /// The archive's bytes.
    pub(crate) fn finish(self) -> Vec<u8> {
        let size = |(path, entry): (&String, &Entry)| HEADER + path.len() + entry.bytes.len() + 2 * ALIGNMENT;
        let mut archive = Vec::with_capacity(self.entries.iter().map(size).sum::<usize>() + 2 * HEADER);
        let trailer = Entry { mode: 0, device: (0, 0), bytes: Vec::new() };
        for (inode, (path, entry)) in (1..).zip(&self.entries) {
            append(&mut archive, inode, path, entry);
        }
        append(&mut archive, 0, "TRAILER!!!", &trailer);
        archive
    }

    fn add(&mut self, path: &str, mode: u32, device: (u32, u32), bytes: Vec<u8>) {
        self.entries.insert(path.to_owned(), Entry { mode, device, bytes });
    }
}

fn append(archive: &mut Vec<u8>, inode: u32, path: &str, entry: &Entry) {
    let links = if entry.mode & FOLDER == FOLDER { 2 } else { 1 };
    let (major, minor) = entry.device;
    let (size, name_size) = (entry.bytes.len() as u32, path.len() as u32 + 1);
    // inode, mode, uid, gid, links, mtime, size, device of the file (2), device that it is (2), name's size, checksum
    let fields = [inode, entry.mode, 0, 0, links, 0, size, 0, 0, major, minor, name_size, 0];
    archive.extend(MAGIC);
    for field in fields {
        archive.extend(format!("{field:08x}").bytes());
    }
    archive.extend(path.bytes().chain([0]));
    align(archive);
    archive.extend(&entry.bytes);
    align(archive);
}

fn align(archive: &mut Vec<u8>) {
    archive.resize(archive.len().next_multiple_of(ALIGNMENT), 0);
}

const MAGIC: &[u8] = b"070701";
const HEADER: usize = 110;
const ALIGNMENT: usize = 4;
const FOLDER: u32 = 0o040_000;
const FILE: u32 = 0o100_000;
const CHARACTER_DEVICE: u32 = 0o020_000;

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// An entry read back.
    #[derive(Debug, PartialEq)]
    pub(crate) struct Parsed {
        pub(crate) path: String,
        pub(crate) mode: u32,
        pub(crate) device: (u32, u32),
        pub(crate) bytes: Vec<u8>,
    }

    pub(crate) fn parse(mut archive: &[u8]) -> Vec<Parsed> {
        let mut entries = Vec::new();
        loop {
            let (header, rest) = archive.split_at(HEADER);
            assert_eq!(&header[..6], MAGIC);
            let field = |index: usize| {
                let digits = str::from_utf8(&header[6 + 8 * index..14 + 8 * index]).unwrap();
                u32::from_str_radix(digits, 16).unwrap()
            };
            let (size, name_size) = (field(6) as usize, field(11) as usize);
            let path = str::from_utf8(&rest[..name_size - 1]).unwrap().to_owned();
            let start = (HEADER + name_size).next_multiple_of(ALIGNMENT);
            if path == "TRAILER!!!" {
                assert_eq!(archive.len(), start);
                return entries;
            }
            assert_eq!(field(0) as usize, entries.len() + 1);
            assert_eq!([field(2), field(3), field(5)], [0; 3], "owner, group and time");
            let bytes = archive[start..start + size].to_vec();
            entries.push(Parsed { path, mode: field(1), device: (field(9), field(10)), bytes });
            archive = &archive[(start + size).next_multiple_of(ALIGNMENT)..];
        }
    }

    #[test]
    fn every_kind_of_entry_comes_back_in_the_order_of_paths() {
        let mut archive = Archive::default();
        archive.file("init", 0o755, b"#!".to_vec());
        archive.character_device("dev/console", 0o600, 5, 1);
        archive.folder("dev", 0o755);
        let entry = |path: &str, mode, device, bytes: &[u8]| Parsed {
            path: path.to_owned(),
            mode,
            device,
            bytes: bytes.to_vec(),
        };
        assert_eq!(
            parse(&archive.finish()),
            [
                entry("dev", 0o040_755, (0, 0), b""),
                entry("dev/console", 0o020_600, (5, 1), b""),
                entry("init", 0o100_755, (0, 0), b"#!"),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_file_comes_back(files in proptest::collection::btree_map("[a-z.-]{1,20}", any::<Vec<u8>>(), 0..8)) {
            let mut archive = Archive::default();
            for (path, bytes) in &files {
                archive.file(path, 0o644, bytes.clone());
            }
            let read: BTreeMap<_, _> = parse(&archive.finish()).into_iter().map(|entry| (entry.path, entry.bytes)).collect();
            prop_assert_eq!(read, files);
        }
    }
}
