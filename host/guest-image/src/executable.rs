//! Cuts an executable down to what the kernel loads, so that debug information costs no memory in the guest.

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{FileHeader as _, ProgramHeader as _};

/// Cuts off symbols, debug sections and the section table: everything behind the last segment.
///
/// Linkers put what is loaded first, so that cutting is enough and every loaded byte stays where it was.
///
/// # Errors
/// The reason why this is not a static x86-64 executable.
pub(crate) fn strip(mut executable: Vec<u8>) -> Result<Vec<u8>, String> {
    let end = end_of_segments(&executable)?;
    executable.truncate(end);
    for field in SECTION_TABLE_FIELDS {
        executable[field].fill(0);
    }
    Ok(executable)
}

fn end_of_segments(executable: &[u8]) -> Result<usize, String> {
    let invalid = |e: object::Error| format!("it is not a 64-bit ELF file ({e})");
    let header = FileHeader64::<LittleEndian>::parse(executable).map_err(invalid)?;
    let endian = header.endian().map_err(invalid)?;
    if header.e_machine(endian) != elf::EM_X86_64 {
        return Err("it is built for another processor".to_owned());
    }

    let segments = header.program_headers(endian, executable).map_err(invalid)?;
    if segments.iter().any(|segment| segment.p_type(endian) == elf::PT_INTERP) {
        return Err("it is linked dynamically".to_owned());
    }
    if !segments.iter().any(|segment| segment.p_type(endian) == elf::PT_LOAD) {
        return Err("it has nothing to load".to_owned());
    }
    let table = u64::from(u16::from(header.e_phnum)) * PROGRAM_HEADER + header.e_phoff.get(endian);
    let ends = segments.iter().map(|segment| segment.p_offset(endian).checked_add(segment.p_filesz(endian)));
    let end = ends.chain([Some(table)]).max_by_key(|end| end.unwrap_or(u64::MAX)).flatten();
    end.and_then(|end| usize::try_from(end).ok())
        .filter(|end| (HEADER..=executable.len()).contains(end))
        .ok_or_else(|| "it ends before its last segment".to_owned())
}

const HEADER: usize = size_of::<FileHeader64<LittleEndian>>();
const PROGRAM_HEADER: u64 = size_of::<elf::ProgramHeader64<LittleEndian>>() as u64;
/// `e_shoff`; `e_shentsize`, `e_shnum` and `e_shstrndx`.
const SECTION_TABLE_FIELDS: [std::ops::Range<usize>; 2] = [0x28..0x30, 0x3a..0x40];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::synthetic;

    #[test]
    fn what_lies_behind_the_last_segment_is_cut_off() {
        let executable = synthetic::executable(b"code", b"debug");
        let stripped = strip(executable.clone()).unwrap();
        assert!(stripped.ends_with(b"code"));
        assert_eq!(stripped.len(), executable.len() - b"debug".len());
        assert_eq!(strip(stripped.clone()).unwrap(), stripped);
    }

    #[test]
    #[cfg_attr(
        not(target_feature = "crt-static"),
        ignore = "needs a static build: RUSTFLAGS=-Ctarget-feature=+crt-static"
    )]
    fn this_test_still_starts_when_stripped() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stripped");
        let own = std::fs::read("/proc/self/exe").unwrap();
        std::fs::write(&path, strip(own).unwrap()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();

        let listed = std::process::Command::new(&path).arg("--list").output().unwrap();

        assert!(String::from_utf8_lossy(&listed.stdout).contains("this_test_still_starts_when_stripped"));
    }

    #[test]
    fn what_can_not_be_init_is_refused_with_its_reason() {
        let mut dynamic = synthetic::executable(b"code", b"");
        dynamic[HEADER] = 3;
        let mut foreign = synthetic::executable(b"code", b"");
        foreign[0x12] = 183;
        let mut short = synthetic::executable(b"code", b"");
        short.pop();
        for (executable, reason) in [
            (b"#!/bin/sh\n".to_vec(), "not a 64-bit ELF"),
            (dynamic, "dynamically"),
            (foreign, "another processor"),
            (short, "ends before"),
        ] {
            let error = strip(executable).unwrap_err();
            assert!(error.contains(reason), "{error}");
        }
    }

    proptest! {
        #[test]
        fn damage_never_makes_it_panic(at in 0..124usize, to in any::<u64>()) {
            let mut executable = synthetic::executable(b"code", b"debug");
            let end = (at + 8).min(executable.len());
            executable[at..end].copy_from_slice(&to.to_le_bytes()[..end - at]);
            let _ = strip(executable);
        }
    }
}
