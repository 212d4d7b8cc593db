//! A release: the folder with programs, guest image and firmware that an operator gets, and its name on the node.

use std::collections::HashMap;
use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use guest_image::GuestImage;
use sha2::{Digest as _, Sha256};

use crate::class::{CLASSES, Class};
use crate::error::Error;
use crate::journal::{step, sync};
use crate::root::VERSIONS;

/// A folder with `bin/` and `share/`, checked.
#[derive(Debug)]
pub struct Release {
    folder: PathBuf,
    files: Vec<&'static str>,
    /// What each of them has to be, by the release's list; firmware need not be in it.
    sums: HashMap<String, String>,
    version: String,
}

impl Release {
    /// Checks that a folder has the programs and the guest image that its list of sums has.
    ///
    /// # Errors
    /// [`Error::Release`], [`Error::GuestImage`], [`Error::File`].
    pub fn open(folder: &Path) -> Result<Self, Error> {
        let mut files = Vec::new();
        for (name, needed) in FILES {
            let path = folder.join(name);
            let file = fs::metadata(&path).ok().filter(|found| found.is_file());
            match file {
                Some(file) if name.starts_with("bin/") && file.permissions().mode() & 0o111 == 0 => {
                    return Err(Error::Release { path, reason: "can't be executed".to_owned() });
                }
                Some(_) => files.push(name),
                None if needed => return Err(Error::Release { path, reason: "is missing".to_owned() }),
                None => {}
            }
        }
        GuestImage::open(&folder.join("share/guest-image"))?;
        let number = text(&folder.join(VERSION))?;
        let number = number.trim();
        if !(1..=MAX_VERSION).contains(&number.len()) || !number.bytes().all(is_of_version) {
            return Err(Error::Release { path: folder.join(VERSION), reason: "has no version's number".to_owned() });
        }
        // "<64 digits>  <path>", as sha256sum writes it.
        let sums = text(&folder.join(SUMS))?;
        let sums =
            sums.lines().filter_map(|line| line.split_once("  ")).map(|(sum, name)| (name.to_owned(), sum.to_owned()));
        let mut release = Self { folder: folder.to_owned(), files, sums: sums.collect(), version: String::new() };
        release.version = format!("{number}-{}", &release.read(None)?[..12]);
        Ok(release)
    }

    /// The release that this program is part of.
    ///
    /// # Errors
    /// [`Error::Release`] if it is part of none.
    pub fn of_this_program() -> Result<Self, Error> {
        let program = std::env::current_exe().map_err(Error::file("release", "/proc/self/exe"))?;
        let folder = program.parent().filter(|folder| folder.ends_with("bin")).and_then(Path::parent);
        let outside = || Error::Release { path: program.clone(), reason: "is part of no release".to_owned() };
        Self::open(folder.ok_or_else(outside)?)
    }

    /// The version's name: the release's number, and the first 12 digits of the content's SHA-256, so that the same content
    /// has the same name and no other has it.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The classes that it can offer.
    pub(crate) fn classes(&self) -> Vec<&'static Class> {
        let share = self.folder.join("share");
        CLASSES.iter().filter(|class| class.missing(&share).is_none()).collect()
    }

    /// The classes that it can't offer, and why.
    pub(crate) fn left_out(&self) -> Vec<(&'static Class, String)> {
        let share = self.folder.join("share");
        CLASSES.iter().filter_map(|class| Some((class, class.missing(&share)?))).collect()
    }

    /// Copies it into a new folder and adds the configuration of its classes.
    ///
    /// # Errors
    /// [`Error::File`]; [`Error::Release`] if it was changed since it was opened.
    pub(crate) fn copy_to(&self, folder: &Path) -> Result<(), Error> {
        if !self.version.ends_with(&self.read(Some(folder))?[..12]) {
            return Err(Error::Release { path: self.folder.clone(), reason: "was changed just now".to_owned() });
        }
        for class in self.classes() {
            let place = folder.join("share/classes").join(class.name);
            let failed = |error| Error::file("copy", &place)(error);
            fs::create_dir_all(&place).map_err(failed)?;
            let text = class.configuration(&format!("{VERSIONS}/{}/share", self.version));
            write(&place.join("configuration.toml"), 0o644, &mut text.as_bytes(), &mut io::sink()).map_err(failed)?;
            symlink(class.settings(), place.join("config.d")).map_err(failed)?;
            sync(&place)?;
            step();
        }
        Ok(())
    }

    /// Reads all of it, into a copy if one is wanted, and gives its SHA-256.
    fn read(&self, copy: Option<&Path>) -> Result<String, Error> {
        let mut whole = Sha256::new();
        for name in &self.files {
            let source = self.folder.join(name);
            let mut content = Hashing(Sha256::new());
            let mut file = File::open(&source).map_err(Error::file("release", &source))?;
            match copy.map(|folder| folder.join(name)) {
                Some(target) => {
                    let parent = target.parent().unwrap_or(Path::new("/"));
                    fs::create_dir_all(parent).map_err(Error::file("copy", parent))?;
                    let mode = if name.starts_with("bin/") { 0o755 } else { 0o644 };
                    write(&target, mode, &mut file, &mut content).map_err(Error::file("copy", &target))?;
                    sync(parent)?;
                    step();
                }
                None => {
                    io::copy(&mut file, &mut content).map_err(Error::file("release", &source))?;
                }
            }
            let digest = content.0.finalize();
            match self.sums.get(*name) {
                Some(sum) if *sum != hex::encode(digest) => {
                    return Err(Error::Release { path: source, reason: format!("is not what {SUMS} says") });
                }
                None if *name != SUMS && !is_extra(name) => {
                    return Err(Error::Release { path: source, reason: format!("is missing in {SUMS}") });
                }
                _ => {}
            }
            whole.update(name);
            whole.update([0]);
            whole.update(digest);
        }
        for class in self.classes() {
            whole.update(class.configuration(""));
        }
        Ok(hex::encode(whole.finalize()))
    }
}

/// What is made by others, for a TEE, and so is not in the list of sums unless they put it there.
fn is_extra(name: &str) -> bool {
    FILES.contains(&(name, false))
}

fn is_of_version(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'+' | b'~')
}

fn text(path: &Path) -> Result<String, Error> {
    fs::read_to_string(path)
        .map_err(|error| Error::Release { path: path.to_owned(), reason: format!("can't be read: {error}") })
}

struct Hashing(Sha256);

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes a file so that it is on the disk, and what is written to `content` as well.
fn write(path: &Path, mode: u32, source: &mut impl Read, content: &mut impl Write) -> io::Result<()> {
    let mut file = File::create(path)?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let length = source.read(&mut buffer)?;
        let Some(bytes) = buffer.get(..length).filter(|bytes| !bytes.is_empty()) else { break };
        file.write_all(bytes)?;
        content.write_all(bytes)?;
    }
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}

const VERSION: &str = "version";
const SUMS: &str = "SHA256SUMS";
const MAX_VERSION: usize = 32;
/// What a release consists of, and whether it is none without it.
const FILES: [(&str, bool); 13] = [
    (VERSION, true),
    (SUMS, true),
    ("bin/cocoon", true),
    ("bin/containerd-shim-cocoon-v2", true),
    ("bin/cocoon-snapshotter", true),
    ("share/guest-image/vmlinux", true),
    ("share/guest-image/bzImage", true),
    ("share/guest-image/initramfs", true),
    ("share/guest-image/manifest.json", true),
    ("share/guest-image/reference-values.json", true),
    ("share/firmware/snp.fd", false),
    ("share/firmware/tdx.fd", false),
    ("share/se.img", false),
];
