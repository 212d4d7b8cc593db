//! Finds the kernel modules a guest needs, with all that they depend on, in an order in which they load.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use object::LittleEndian;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader as _, SectionHeader as _};

use crate::{Error, compression, files};

/// The modules of one kernel: a folder such as `/lib/modules/6.12.0-cloud`.
///
/// Dependencies are read from the modules themselves; `modules.dep` is only made where a kernel is installed.
#[derive(Debug)]
pub(crate) struct ModuleTree {
    folder: PathBuf,
    paths: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

/// A module ready to load.
#[derive(Debug, PartialEq)]
pub(crate) struct Module {
    /// Such as `tdx-guest.ko`.
    pub(crate) file_name: String,
    /// Unpacked, without its signature.
    ///
    /// The kernel would check it at every boot, over bytes that are measured with the initramfs they are in. guestd
    /// instead forbids all loading once it has loaded these.
    pub(crate) bytes: Vec<u8>,
}

impl ModuleTree {
    /// Lists the modules below `folder`; symbolic links, which lead to kernel sources, are not followed.
    pub(crate) fn open(folder: &Path) -> Result<Self, Error> {
        let builtin = files::read(&folder.join("modules.builtin"), MAX_LIST)?;
        let builtin = String::from_utf8_lossy(&builtin).lines().filter_map(|line| name(Path::new(line))).collect();
        let mut paths = BTreeMap::new();
        list(folder, &mut paths)?;
        Ok(Self { folder: folder.to_owned(), paths, builtin })
    }

    /// The modules of each group and all that they depend on, each after what it depends on and only once, for the
    /// kernel `release`.
    ///
    /// # Errors
    /// [`Error::NoModule`] if one is nowhere, [`Error::Module`] if one is damaged or for another kernel.
    pub(crate) fn closure(&self, groups: &[&[&str]], release: &str) -> Result<Vec<Vec<Module>>, Error> {
        let mut closure = Closure { tree: self, release, seen: BTreeSet::new(), modules: Vec::new() };
        let group = |wanted: &&[&str]| {
            wanted.iter().try_for_each(|wanted| closure.add(wanted))?;
            Ok(std::mem::take(&mut closure.modules))
        };
        groups.iter().map(group).collect()
    }
}

struct Closure<'a> {
    tree: &'a ModuleTree,
    release: &'a str,
    seen: BTreeSet<String>,
    modules: Vec<Module>,
}

impl Closure<'_> {
    fn add(&mut self, wanted: &str) -> Result<(), Error> {
        let wanted = wanted.replace('-', "_");
        // A module that is seen before it is added would depend on itself: the kernel's build refuses such a circle.
        if self.tree.builtin.contains(&wanted) || !self.seen.insert(wanted.clone()) {
            return Ok(());
        }
        let Some(path) = self.tree.paths.get(&wanted) else {
            return Err(Error::NoModule { name: wanted, tree: self.tree.folder.clone() });
        };

        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let (stem, packed) = file_name.split_once(".ko").unwrap_or((&file_name, ""));
        let mut bytes = files::read(path, MAX_MODULE)?;
        if !packed.is_empty() {
            bytes = compression::unpack(&bytes, MAX_MODULE)
                .map_err(|reason| Error::Unpack { what: format!("kernel module {wanted}"), reason })?;
        }
        let info = ModuleInfo::parse(&bytes).map_err(|reason| Error::Module { name: wanted.clone(), reason })?;
        if info.release != self.release {
            let reason = format!("it is for kernel {}, and the kernel is {}", info.release, self.release);
            return Err(Error::Module { name: wanted, reason });
        }
        for dependency in &info.depends {
            self.add(dependency)?;
        }
        let signed = bytes.len() - signature_length(&bytes);
        bytes.truncate(signed);
        self.modules.push(Module { file_name: format!("{stem}.ko"), bytes });
        Ok(())
    }
}

/// What a module says of itself in its `.modinfo` section: NUL-terminated `key=value` strings.
#[derive(Debug, PartialEq)]
struct ModuleInfo {
    depends: Vec<String>,
    release: String,
}

impl ModuleInfo {
    fn parse(module: &[u8]) -> Result<Self, String> {
        let info = modinfo(module).map_err(|e| format!("it is not a 64-bit ELF file ({e})"))?;
        let info = info.ok_or("it has no .modinfo section")?;
        let value = |key: &str| {
            info.split(|byte| *byte == 0)
                .filter_map(|entry| str::from_utf8(entry).ok())
                .find_map(|entry| entry.strip_prefix(key)?.strip_prefix('='))
        };
        let depends = value("depends").ok_or("it does not say what it depends on")?;
        let magic = value("vermagic").ok_or("it does not say which kernel it is for")?;
        Ok(Self {
            depends: depends.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect(),
            release: magic.split(' ').next().unwrap_or_default().to_owned(),
        })
    }
}

fn modinfo(module: &[u8]) -> object::Result<Option<&[u8]>> {
    let header = FileHeader64::<LittleEndian>::parse(module)?;
    let endian = header.endian()?;
    let sections = header.sections(endian, module)?;
    sections.section_by_name(endian, b".modinfo").map(|(_, section)| section.data(endian, module)).transpose()
}

fn list(folder: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<(), Error> {
    for entry in fs::read_dir(folder).map_err(files::failed("listed", folder))? {
        let entry = entry.map_err(files::failed("listed", folder))?;
        let (kind, path) = (entry.file_type().map_err(files::failed("listed", folder))?, entry.path());
        if kind.is_dir() {
            list(&path, paths)?;
        } else if let Some(name) = name(&path).filter(|_| kind.is_file()) {
            paths.insert(name, path);
        }
    }
    Ok(())
}

/// The module's name as the kernel spells it: no folder, no suffix, and underscores only.
fn name(path: &Path) -> Option<String> {
    let (name, packed) = path.file_name()?.to_str()?.split_once(".ko")?;
    (packed.is_empty() || packed.starts_with('.')).then(|| name.replace('-', "_"))
}

/// Bytes of the signature behind a module, with its trailer (`struct module_signature` and the magic), if there is one.
fn signature_length(module: &[u8]) -> usize {
    let Some(signed) = module.strip_suffix(SIGNATURE_MAGIC) else { return 0 };
    let Some((_, length)) = signed.split_last_chunk::<4>() else { return 0 };
    let length = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX);
    let total = length.saturating_add(SIGNATURE_HEADER + SIGNATURE_MAGIC.len());
    if total < module.len() { total } else { 0 }
}

const MAX_LIST: u64 = 4 << 20;
const MAX_MODULE: u64 = 64 << 20;
/// What the kernel's build puts behind a signed module.
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`: eight bytes that say nothing today, then the length.
const SIGNATURE_HEADER: usize = 12;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::synthetic::{gzip, module, module_tree};

    const RELEASE: &str = "6.12.0-cloud";

    fn names(modules: Vec<Module>) -> Vec<String> {
        modules.into_iter().map(|module| module.file_name).collect()
    }

    #[test]
    fn each_module_comes_after_what_it_depends_on_and_once() {
        let folder = tempfile::tempdir().unwrap();
        module_tree(
            folder.path(),
            &[
                ("kernel/net/vsock.ko", module("", RELEASE)),
                ("kernel/net/common.ko.gz", gzip(&module("vsock", RELEASE))),
                ("kernel/net/transport.ko", module("common,vsock", RELEASE)),
                ("kernel/drivers/tsm.ko", module("configfs", RELEASE)),
                ("kernel/drivers/tdx-guest.ko", module("tsm", RELEASE)),
                ("kernel/drivers/unwanted.ko", module("", RELEASE)),
            ],
        );

        let closure =
            ModuleTree::open(folder.path()).unwrap().closure(&[&["transport"], &["tdx_guest", "tsm"]], RELEASE);

        let closure = closure.unwrap();
        assert_eq!(closure.iter().map(Vec::len).collect::<Vec<_>>(), [3, 2]);
        let closure = closure.into_iter().flatten().collect::<Vec<_>>();
        assert_eq!(closure[1].bytes, module("vsock", RELEASE));
        assert_eq!(names(closure), ["vsock.ko", "common.ko", "transport.ko", "tsm.ko", "tdx-guest.ko"]);
    }

    #[test]
    fn a_signature_is_left_behind() {
        let signed = [b"module", &[7; 100][..], &[0; 8], &100u32.to_be_bytes(), SIGNATURE_MAGIC].concat();
        assert_eq!(signed.len() - signature_length(&signed), b"module".len());
        for unsigned in [&b"module"[..], SIGNATURE_MAGIC, &[&[0xff; 12], SIGNATURE_MAGIC].concat()] {
            assert_eq!(signature_length(unsigned), 0);
        }
    }

    #[test]
    fn a_missing_module_is_named() {
        let folder = tempfile::tempdir().unwrap();
        module_tree(folder.path(), &[("kernel/net/common.ko", module("vsock", RELEASE))]);
        let error = ModuleTree::open(folder.path()).unwrap().closure(&[&["common"]], RELEASE).unwrap_err();
        assert!(matches!(error, Error::NoModule { ref name, .. } if name == "vsock"), "{error}");
    }

    #[test]
    fn a_module_of_another_kernel_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        module_tree(folder.path(), &[("kernel/net/vsock.ko", module("", "6.1.0"))]);
        let error = ModuleTree::open(folder.path()).unwrap().closure(&[&["vsock"]], RELEASE).unwrap_err().to_string();
        assert!(error.contains("it is for kernel 6.1.0, and the kernel is 6.12.0-cloud"), "{error}");
    }

    #[test]
    fn a_circle_of_links_and_dependencies_ends() {
        let folder = tempfile::tempdir().unwrap();
        module_tree(folder.path(), &[("a.ko", module("b", RELEASE)), ("b.ko", module("a", RELEASE))]);
        std::os::unix::fs::symlink(folder.path(), folder.path().join("build")).unwrap();
        let closure = ModuleTree::open(folder.path()).unwrap().closure(&[&["a"]], RELEASE).unwrap();
        assert_eq!(names(closure.into_iter().flatten().collect()), ["b.ko", "a.ko"]);
    }

    proptest! {
        #[test]
        fn no_module_makes_it_panic(at in 0..256usize, to in any::<[u8; 8]>()) {
            let mut module = module("a,b", RELEASE);
            module[at..at + 8].copy_from_slice(&to);
            let _ = ModuleInfo::parse(&module);
        }
    }
}
