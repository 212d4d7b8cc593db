//! Programs that an image has beside guestd, taken from this machine with the shared libraries they need.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::{self, FileHeader64};
use object::read::elf::{Dyn as _, FileHeader as _, ProgramHeader as _};

use crate::{Error, files};

/// Reads programs and all that they are linked to: by their paths in the guest, which are those of a Debian system.
pub(crate) fn collect(programs: &[PathBuf]) -> Result<BTreeMap<String, Vec<u8>>, Error> {
    let mut collected = BTreeMap::new();
    let (mut open, mut seen) = (Vec::new(), BTreeSet::new());
    for path in programs {
        let refused = |reason: &str| Error::Program { path: path.clone(), reason: reason.to_owned() };
        let inside =
            path.strip_prefix("/").ok().and_then(Path::to_str).ok_or_else(|| refused("it is no absolute path"))?;
        open.push((path.clone(), inside.to_owned()));
    }
    while let Some((path, inside)) = open.pop() {
        if !seen.insert(inside.clone()) {
            continue;
        }
        let bytes = files::read(&path, MAX_PROGRAM)?;
        let linkage = Linkage::parse(&bytes)
            .map_err(|e| Error::Program { path: path.clone(), reason: format!("it is not a 64-bit ELF file ({e})") })?;
        for name in linkage.libraries {
            let found = FOLDERS.iter().map(|folder| Path::new(folder).join(&name)).find(|library| library.is_file());
            let found = found.ok_or_else(|| Error::Program {
                path: path.clone(),
                reason: format!("it needs {name}, which is not installed"),
            })?;
            open.push((found, format!("{LIBRARIES}/{name}")));
        }
        if let Some(loader) = linkage.loader {
            open.push((PathBuf::from(&loader), loader.trim_start_matches('/').to_owned()));
        }
        collected.insert(inside, bytes);
    }
    Ok(collected)
}

/// What an executable or library says that it needs.
#[derive(Debug, PartialEq)]
struct Linkage {
    libraries: Vec<String>,
    loader: Option<String>,
}

impl Linkage {
    fn parse(elf: &[u8]) -> object::Result<Self> {
        let header = FileHeader64::<LittleEndian>::parse(elf)?;
        let endian = header.endian()?;
        let mut loader = None;
        for segment in header.program_headers(endian, elf)? {
            if segment.p_type(endian) == elf::PT_INTERP {
                let path = segment.data(endian, elf).unwrap_or_default().split(|byte| *byte == 0).next();
                loader = path.map(|path| String::from_utf8_lossy(path).into_owned());
            }
        }
        let sections = header.sections(endian, elf)?;
        let mut libraries = Vec::new();
        if let Some((entries, strings)) = sections.dynamic(endian, elf)? {
            let strings = sections.strings(endian, elf, strings)?;
            for entry in entries.iter().filter(|entry| entry.tag(endian) == elf::DT_NEEDED) {
                libraries.push(String::from_utf8_lossy(entry.string(endian, strings)?).into_owned());
            }
        }
        // The loader names itself among the libraries.
        libraries.retain(|name| !name.starts_with("ld-linux"));
        Ok(Self { libraries, loader })
    }
}

/// Where a Debian system has its libraries, and where the loader looks for them.
const FOLDERS: [&str; 4] = ["/lib/x86_64-linux-gnu", "/usr/lib/x86_64-linux-gnu", "/lib", "/usr/lib"];
const LIBRARIES: &str = "lib/x86_64-linux-gnu";
const MAX_PROGRAM: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_libraries_and_its_loader() {
        let program = Path::new("/usr/sbin/mke2fs");
        if !program.exists() {
            return println!("skipped: {} is not installed", program.display());
        }
        let collected = collect(&[program.to_owned()]).unwrap();
        let paths: Vec<&str> = collected.keys().map(String::as_str).collect();
        for path in [
            "usr/sbin/mke2fs",
            "lib64/ld-linux-x86-64.so.2",
            "lib/x86_64-linux-gnu/libc.so.6",
            "lib/x86_64-linux-gnu/libext2fs.so.2",
        ] {
            assert!(paths.contains(&path), "{path} is not among {paths:?}");
        }
        assert!(!paths.iter().any(|path| path.contains("crypto") || path.contains("ssl")), "{paths:?}");
    }

    #[test]
    fn what_is_no_program_is_refused_with_its_reason() {
        for (path, reason) in [("relative", "no absolute path"), ("/etc/passwd", "not a 64-bit ELF")] {
            let error = collect(&[path.into()]).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("next:"), "{error}");
        }
    }
}
