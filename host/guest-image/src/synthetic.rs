//! Small kernels, modules and executables that the tests make themselves.

use std::fs;
use std::io::Write as _;
use std::path::Path;

use flate2::{Compression, write::GzEncoder};

/// An x86-64 executable with one loaded segment of `code`, and `debug` behind it.
pub(crate) fn executable(code: &[u8], debug: &[u8]) -> Vec<u8> {
    let mut elf = header(2, 1, 0);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]);
    let offset = 64 + 56u64;
    for field in [offset, 0, 0, code.len() as u64, code.len() as u64, 8] {
        elf.extend(field.to_le_bytes());
    }
    [&elf, code, debug].concat()
}

/// A kernel module that says what it depends on and which kernel it is for.
pub(crate) fn module(depends: &str, release: &str) -> Vec<u8> {
    let info = format!("license=GPL\0depends={depends}\0vermagic={release} SMP preempt mod_unload \0");
    let names = b"\0.modinfo\0.shstrtab\0";
    let mut elf = header(1, 0, 3);
    let offset = 64 + 3 * 64u64;
    for (name, kind, offset, length) in
        [(0u32, 0u32, 0, 0), (1, 1, offset, info.len() as u64), (10, 3, offset + info.len() as u64, names.len() as u64)]
    {
        elf.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
        for field in [0, 0, offset, length, 0, 1, 0] {
            elf.extend(field.to_le_bytes());
        }
    }
    [&elf, info.as_bytes(), names].concat()
}

/// A boot image of kernel `release` whose payload, packed as it is, unpacks to `length` bytes.
pub(crate) fn bzimage(release: &str, packed: &[u8], length: u32) -> Vec<u8> {
    let payload = [packed, &length.to_le_bytes()].concat();
    let mut image = vec![0; 1024 + 16];
    image[0x1f1] = 1;
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image[0x206..0x208].copy_from_slice(&0x020f_u16.to_le_bytes());
    image[0x20e..0x210].copy_from_slice(&0x100_u16.to_le_bytes());
    image[0x248..0x24c].copy_from_slice(&16_u32.to_le_bytes());
    image[0x24c..0x250].copy_from_slice(&(payload.len() as u32).to_le_bytes());
    let version = format!("{release} (builder) #1");
    image[0x300..0x300 + version.len()].copy_from_slice(version.as_bytes());
    [image, payload, b"rest".to_vec()].concat()
}

pub(crate) fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// Writes a module tree of `(path below the tree, module)` with an empty list of built-in modules.
pub(crate) fn module_tree(folder: &Path, modules: &[(&str, Vec<u8>)]) {
    for (path, module) in modules {
        let path = folder.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, module).unwrap();
    }
    fs::write(folder.join("modules.builtin"), "kernel/fs/configfs/configfs.ko\n").unwrap();
}

/// An ELF header for x86-64 with segments right behind it, or sections right behind it.
fn header(kind: u8, segments: u8, sections: u8) -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, kind, 0, 62, 0, 1, 0, 0, 0];
    let table = |count| if count > 0 { 64u64 } else { 0 };
    for field in [0, table(segments), table(sections)] {
        header.extend(field.to_le_bytes());
    }
    header.extend([0, 0, 0, 0, 64, 0, 56, 0, segments, 0, 64, 0, sections, 0, sections.saturating_sub(1), 0]);
    header
}
