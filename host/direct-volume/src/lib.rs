//! Volumes whose devices go into a guest without being mounted on the node: what storage drivers tell a runtime about them.
//!
//! A driver writes down which device is behind a volume's path, and the runtime that is asked to mount the path gives its
//! guest the device. Each volume has a folder whose name is base64url of the volume's path, and in it `mountInfo.json` and an
//! empty file named like the sandbox that has the volume.
//!
//! Source: Kata Containers, direct block device assignment.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io::{self, Read as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE;
use serde::{Deserialize, Serialize};

/// What a driver says about a volume.
#[derive(Clone, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
pub struct MountInfo {
    /// `blk`, or `directvol` as some drivers have it.
    #[serde(rename = "volume-type")]
    pub volume_type: String,
    /// A block device of the node, or a raw image.
    pub device: PathBuf,
    /// The file system on it.
    #[serde(rename = "fstype")]
    pub file_system: String,
    /// `fsGroup`, `fsGroupChangePolicy`, `createFilesystem`, `encryptionKey`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// As `mount -o` has them.
    #[serde(default)]
    pub options: Vec<String>,
}

impl MountInfo {
    /// Reads the JSON form.
    ///
    /// # Errors
    /// [`Error::Malformed`]; [`Error::Kind`] for volumes that are no block devices.
    pub fn parse(text: &str) -> Result<Self, Error> {
        let info: Self = serde_json::from_str(text).map_err(|error| Error::Malformed(error.to_string()))?;
        if !["blk", "directvol"].contains(&info.volume_type.as_str()) {
            return Err(Error::Kind(info.volume_type.chars().take(60).collect()));
        }
        if !info.device.is_absolute() {
            return Err(Error::Malformed("its device is not an absolute path".to_owned()));
        }
        Ok(info)
    }
}

/// The volumes of a node.
#[derive(Clone, Debug)]
pub struct Assignments(PathBuf);

impl Default for Assignments {
    fn default() -> Self {
        Self(FOLDER.into())
    }
}

impl Assignments {
    /// Those in another folder than a node's own.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// Notes what is behind a volume, in place of what was noted before.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::File`].
    pub fn add(&self, volume: &str, info: &MountInfo) -> Result<(), Error> {
        let folder = self.folder(volume)?;
        let failed = |source| Error::File { path: folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let text = serde_json::to_vec(info).map_err(io::Error::from).map_err(failed)?;
        // In one step: a runtime may be reading.
        let draft = folder.join(format!("{FILE}.new"));
        fs::write(&draft, text).and_then(|()| fs::rename(&draft, folder.join(FILE))).map_err(failed)
    }

    /// Forgets a volume.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::Unknown`], [`Error::File`].
    pub fn remove(&self, volume: &str) -> Result<(), Error> {
        let folder = self.folder(volume)?;
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Unknown(volume.to_owned())),
            removed => removed.map_err(|source| Error::File { path: folder, source }),
        }
    }

    /// What is behind a volume; nothing where it is an ordinary path.
    ///
    /// # Errors
    /// [`Error::Malformed`], [`Error::Kind`], [`Error::File`].
    pub fn find(&self, volume: &str) -> Result<Option<MountInfo>, Error> {
        // No driver can have noted such a path.
        let Ok(folder) = self.folder(volume) else { return Ok(None) };
        let path = folder.join(FILE);
        let mut text = String::new();
        let read = fs::File::open(&path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text));
        match read {
            Ok(_) => MountInfo::parse(&text).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(Error::File { path, source }),
        }
    }

    /// Notes which sandbox has a volume, in place of one that had it before.
    ///
    /// # Errors
    /// [`Error::Path`], [`Error::File`].
    pub fn claim(&self, volume: &str, sandbox: &str) -> Result<(), Error> {
        let folder = self.folder(volume)?;
        let failed = |source| Error::File { path: folder.clone(), source };
        if let Some(before) = self.owner(volume)? {
            fs::remove_file(folder.join(before)).map_err(failed)?;
        }
        fs::write(folder.join(sandbox), "").map_err(failed)
    }

    /// Takes back what [`Assignments::claim`] noted.
    pub fn release(&self, volume: &str, sandbox: &str) {
        if let Ok(folder) = self.folder(volume) {
            // The driver may have forgotten the volume already.
            let _ = fs::remove_file(folder.join(sandbox));
        }
    }

    /// The sandbox that has a volume.
    ///
    /// # Errors
    /// [`Error::Path`]; [`Error::Unknown`] if nothing is noted about the volume; [`Error::File`].
    pub fn owner(&self, volume: &str) -> Result<Option<String>, Error> {
        let folder = self.folder(volume)?;
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Error::Unknown(volume.to_owned())),
            entries => entries.map_err(|source| Error::File { path: folder, source })?,
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names.into_iter().find(|name| !name.starts_with(FILE)))
    }

    fn folder(&self, volume: &str) -> Result<PathBuf, Error> {
        let name = URL_SAFE.encode(volume);
        // A file's name has no more room.
        if !volume.starts_with('/') || name.len() > 255 {
            return Err(Error::Path(volume.chars().take(200).collect()));
        }
        Ok(self.0.join(name))
    }
}

/// Why a volume can't be noted or used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Not what a driver writes.
    #[error("direct volume: its mount info is malformed: {0}; next: correct it, as in {EXAMPLE}")]
    Malformed(String),
    /// Not a block device.
    #[error("direct volume: volumes of type {0:?} are not supported; next: use \"blk\"")]
    Kind(String),
    /// A path that no folder can be named after.
    #[error("direct volume: {0:?} is not an absolute path of at most 189 bytes; next: name the volume's mount path")]
    Path(String),
    /// Nothing is noted.
    #[error("direct volume: nothing is known about {0:?}; next: check the path, or add it first")]
    Unknown(String),
    /// A file of it can't be used.
    #[error("direct volume: {path}: {source}; next: check that it may be used, as root", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

const FOLDER: &str = "/run/kata-containers/shared/direct-volumes";
const FILE: &str = "mountInfo.json";
const MAX_FILE: u64 = 64 << 10;
const EXAMPLE: &str = r#"{"volume-type":"blk","device":"/dev/sdb","fstype":"ext4","options":[]}"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_noted_found_claimed_and_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let node = Assignments::at(folder.path());
        let info = MountInfo::parse(EXAMPLE).unwrap();
        assert_eq!(node.find(VOLUME).unwrap(), None);
        assert!(matches!(node.owner(VOLUME), Err(Error::Unknown(_))));

        node.add(VOLUME, &info).unwrap();

        // Where other runtimes look for it.
        assert!(folder.path().join("L2t1YmVsZXQvcG9kcy91L3ZvbHVtZXMvYT8-").join("mountInfo.json").exists());
        assert_eq!(node.find(VOLUME).unwrap(), Some(info));
        assert_eq!(node.owner(VOLUME).unwrap(), None);
        node.claim(VOLUME, "sandbox-1").unwrap();
        node.claim(VOLUME, "sandbox-2").unwrap();
        assert_eq!(node.owner(VOLUME).unwrap().as_deref(), Some("sandbox-2"));
        node.release(VOLUME, "sandbox-2");
        assert_eq!(node.owner(VOLUME).unwrap(), None);
        node.remove(VOLUME).unwrap();
        assert!(matches!(node.remove(VOLUME), Err(Error::Unknown(_))));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_drivers_write_is_read_and_anything_else_is_refused() {
        let text = r#"{"volume-type":"directvol","device":"/dev/sdb","fstype":"xfs","metadata":{"fsGroup":"7"},"options":["ro"],"more":1}"#;
        let info = MountInfo::parse(text).unwrap();
        assert_eq!((info.metadata["fsGroup"].as_str(), info.options.as_slice()), ("7", &["ro".to_owned()][..]));
        for (text, reason) in [
            ("{}", "volume-type"),
            (r#"{"volume-type":"spdkvol","device":"/s","fstype":"ext4"}"#, "\"spdkvol\" are not supported"),
            (r#"{"volume-type":"blk","device":"sdb","fstype":"ext4"}"#, "not an absolute path"),
            ("no JSON", "malformed"),
        ] {
            let error = MountInfo::parse(text).unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("next:"), "{text} gave {error}");
        }
    }

    #[test]
    fn a_path_that_no_folder_is_named_after_is_an_ordinary_one() {
        let folder = tempfile::tempdir().unwrap();
        let node = Assignments::at(folder.path());
        for path in ["proc", &format!("/{}", "a".repeat(190))] {
            assert_eq!(node.find(path).unwrap(), None);
            assert!(matches!(node.add(path, &MountInfo::parse(EXAMPLE).unwrap()), Err(Error::Path(_))));
        }
        assert!(node.add(&format!("/{}", "a".repeat(188)), &MountInfo::parse(EXAMPLE).unwrap()).is_ok());
    }

    /// With characters at which base64url differs from base64.
    const VOLUME: &str = "/kubelet/pods/u/volumes/a?>";
}
