//! Where the guest's kernel comes from: Debian's cloud kernel through a cache, or files of another distribution.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::apt::Apt;
use crate::{Error, files};

/// Where the kernel and its modules come from.
#[derive(Clone, Debug, PartialEq)]
pub enum KernelSource {
    /// Debian's signed cloud kernel of bookworm-backports (6.12): from the cache, else through apt.
    Debian,
    /// A kernel that is already on disk.
    Files {
        /// An x86-64 bzImage, such as `/boot/vmlinuz-RELEASE`.
        kernel: PathBuf,
        /// Its modules, such as `/lib/modules/RELEASE`.
        modules: PathBuf,
    },
}

/// A kernel on disk.
#[derive(Debug, PartialEq)]
pub(crate) struct Kernel {
    pub(crate) bzimage: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) package: Option<String>,
}

impl KernelSource {
    /// Finds the kernel, downloading it if need be.
    pub(crate) fn obtain(&self, cache: &Path) -> Result<Kernel, Error> {
        match self {
            Self::Debian => debian(cache),
            Self::Files { kernel, modules } => {
                Ok(Kernel { bzimage: kernel.clone(), modules: modules.clone(), package: None })
            }
        }
    }
}

fn debian(cache: &Path) -> Result<Kernel, Error> {
    let home = cache.join("debian-kernel");
    // The folder appears complete, by one rename, so that only a download needs the lock.
    if !home.exists() {
        fs::create_dir_all(cache).map_err(files::failed("made", cache))?;
        let _lock = files::lock(cache)?;
        if !home.exists() {
            download(cache, &home)?;
        }
    }
    let package = files::read(&home.join(PACKAGE), MAX_PACKAGE)?;
    Ok(Kernel {
        bzimage: home.join(BZIMAGE),
        modules: home.join(MODULES),
        package: Some(String::from_utf8_lossy(&package).trim().to_owned()),
    })
}

fn download(cache: &Path, home: &Path) -> Result<(), Error> {
    tracing::info!(package = METAPACKAGE, suite = SUITE, "downloading the guest's kernel");
    let work = cache.join("download");
    // A build that was killed leaves the folder behind; the cache's lock says that nobody is using it.
    discard(&work)?;
    fetch(&work, home).and(discard(&work))
}

fn fetch(work: &Path, home: &Path) -> Result<(), Error> {
    let apt = Apt::update(&work.join("apt"), SUITE)?;
    let package = apt.depends(METAPACKAGE)?.into_iter().find(|name| is_signed_kernel(name));
    let package = package.ok_or(Error::NoPackage { package: METAPACKAGE, suite: SUITE })?;
    let unpacked = work.join("unpacked");
    let package = apt.unpack(&package, &unpacked)?;

    let found = |places: &[&str], prefix, what| {
        places
            .iter()
            .find_map(|place| entry(&unpacked.join(place), prefix))
            .ok_or_else(|| Error::Package { package: package.clone(), what })
    };
    let kernel = work.join("kernel");
    fs::create_dir(&kernel).map_err(files::failed("made", &kernel))?;
    rename(&found(&["boot"], "vmlinuz-", "boot/vmlinuz")?, &kernel.join(BZIMAGE))?;
    rename(&found(&["lib/modules", "usr/lib/modules"], "", "lib/modules")?, &kernel.join(MODULES))?;
    files::write(&kernel.join(PACKAGE), format!("{package}\n").as_bytes())?;
    rename(&kernel, home)
}

/// The metapackage depends on the kernel itself and, in some releases, on helpers.
fn is_signed_kernel(name: &str) -> bool {
    name.starts_with("linux-image-") && !name.ends_with("-unsigned")
}

/// The first entry of `folder` by name that starts with `prefix`.
fn entry(folder: &Path, prefix: &str) -> Option<PathBuf> {
    let entries = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok());
    entries.filter(|entry| entry.file_name().as_encoded_bytes().starts_with(prefix.as_bytes())).map(|e| e.path()).min()
}

fn discard(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(cause) if cause.kind() != io::ErrorKind::NotFound => Err(files::failed("removed", folder)(cause)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<(), Error> {
    fs::rename(from, to).map_err(files::failed("written", to))
}

const METAPACKAGE: &str = "linux-image-cloud-amd64";
const SUITE: &str = "bookworm-backports";
const BZIMAGE: &str = "bzImage";
const MODULES: &str = "modules";
const PACKAGE: &str = "package";
const MAX_PACKAGE: u64 = 4 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cached_kernel_needs_no_network() {
        let cache = tempfile::tempdir().unwrap();
        let home = cache.path().join("debian-kernel");
        fs::create_dir(&home).unwrap();
        fs::write(home.join(PACKAGE), "linux-image-6.12.0-cloud-amd64 6.12.0-1\n").unwrap();

        let kernel = KernelSource::Debian.obtain(cache.path()).unwrap();

        assert_eq!(kernel.package.as_deref(), Some("linux-image-6.12.0-cloud-amd64 6.12.0-1"));
        assert_eq!(kernel.bzimage, home.join("bzImage"));
    }

    #[test]
    fn the_signed_kernel_is_told_from_others() {
        assert!(is_signed_kernel("linux-image-6.12.0+deb12-cloud-amd64"));
        assert!(!is_signed_kernel("linux-image-6.12.0+deb12-cloud-amd64-unsigned"));
        assert!(!is_signed_kernel("linux-base"));
    }
}
