//! A disk of the guest: found by its number or path, measured, read and written at its start.

use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{FileExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Component, Path, PathBuf};

use crate::request::DeviceName;
use crate::{Config, Error};

/// A block device that exists.
#[derive(Clone, Debug)]
pub(crate) struct BlockDevice {
    path: PathBuf,
    /// Which one it is, whatever path leads to it.
    number: u64,
}

impl BlockDevice {
    pub(crate) fn find(name: &DeviceName, config: &Config) -> Result<Self, Error> {
        match name {
            DeviceName::Path(path) => {
                let found =
                    Self::at(path).and_then(|device| device.ok_or_else(|| io::Error::other("it is no block device")));
                found.map_err(|cause| missing(path.display().to_string(), cause))
            }
            DeviceName::Number { major, minor } => {
                let what = format!("{major}:{minor}");
                let uevent = config.sysfs.join("dev/block").join(&what).join("uevent");
                let failed = |cause: io::Error| missing(what.clone(), cause);
                let uevent = fs::read_to_string(&uevent).map_err(failed)?;
                let name = device_name(&uevent).ok_or_else(|| failed(io::Error::other("it has no name")))?;
                let device = Self::at(&config.devices.join(name)).map_err(failed)?;
                device
                    .filter(|device| device.number == libc::makedev(*major, *minor))
                    .ok_or_else(|| failed(io::Error::other(format!("{name} is another device"))))
            }
        }
    }

    fn at(path: &Path) -> io::Result<Option<Self>> {
        let metadata = fs::metadata(path)?;
        let is_block_device = metadata.file_type().is_block_device();
        Ok(is_block_device.then(|| Self { path: path.to_owned(), number: metadata.rdev() }))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn number(&self) -> u64 {
        self.number
    }

    /// Opens it for nobody else: a device that is mounted or mapped is refused.
    pub(crate) fn claim(&self, write: bool) -> Result<Claimed, Error> {
        let opened = File::options().read(true).write(write).custom_flags(libc::O_EXCL).open(&self.path);
        match opened {
            Ok(file) => Claimed::new(file, &self.path),
            Err(cause) if cause.raw_os_error() == Some(libc::EBUSY) => Err(Error::InUse(self.path.clone())),
            Err(cause) => Err(Error::io("opened", &self.path)(cause)),
        }
    }

    /// Opens it though a mapping holds it, to write what lies beside the mapping.
    pub(crate) fn share(&self) -> Result<Claimed, Error> {
        let file = File::options().read(true).write(true).open(&self.path).map_err(Error::io("opened", &self.path))?;
        Claimed::new(file, &self.path)
    }
}

/// An open device.
pub(crate) struct Claimed {
    file: File,
    path: PathBuf,
    size: u64,
}

impl Claimed {
    fn new(mut file: File, path: &Path) -> Result<Self, Error> {
        let size = file.seek(SeekFrom::End(0)).map_err(Error::io("measured", path))?;
        Ok(Self { file, path: path.to_owned(), size })
    }

    /// Bytes.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// Reads `length` bytes from `offset` on, or fewer where the device ends before.
    pub(crate) fn read(&mut self, offset: u64, length: usize) -> Result<Vec<u8>, Error> {
        let mut bytes = Vec::with_capacity(length);
        self.file
            .seek(SeekFrom::Start(offset))
            .and_then(|_| (&self.file).take(length as u64).read_to_end(&mut bytes))
            .map_err(Error::io("read", &self.path))?;
        Ok(bytes)
    }

    /// Writes, and waits until it is on the disk.
    pub(crate) fn write(&self, offset: u64, bytes: &[u8]) -> Result<(), Error> {
        let written = self.file.write_all_at(bytes, offset).and_then(|()| self.file.sync_all());
        written.map_err(Error::io("written", &self.path))
    }
}

fn missing(what: String, cause: io::Error) -> Error {
    Error::Device { what, reason: cause.to_string() }
}

/// The device's path below `/dev`.
fn device_name(uevent: &str) -> Option<&str> {
    let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="))?;
    let plain = Path::new(name).components().all(|component| matches!(component, Component::Normal(_)));
    (plain && !name.is_empty()).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_is_the_kernels_and_stays_in_its_folder() {
        assert_eq!(device_name("MAJOR=254\nMINOR=16\nDEVNAME=vdb\nDEVTYPE=disk\n"), Some("vdb"));
        assert_eq!(device_name("DEVNAME=mapper/x"), Some("mapper/x"));
        for uevent in ["", "DEVNAME=", "DEVNAME=../etc", "DEVNAME=/etc"] {
            assert_eq!(device_name(uevent), None, "{uevent:?}");
        }
    }

    #[test]
    fn a_number_leads_through_sysfs_to_a_device_that_has_it() {
        let folder = tempfile::tempdir().unwrap();
        let entry = folder.path().join("sys/dev/block/254:16");
        fs::create_dir_all(&entry).unwrap();
        fs::write(entry.join("uevent"), "DEVNAME=vdb\n").unwrap();
        let config = Config { sysfs: folder.path().join("sys"), devices: folder.path().join("dev") };
        let find =
            |minor| BlockDevice::find(&DeviceName::Number { major: 254, minor }, &config).unwrap_err().to_string();

        assert!(find(17).contains("254:17 can't be found"), "{}", find(17));
        assert!(find(16).contains("No such file"), "{}", find(16));
        fs::create_dir(folder.path().join("dev")).unwrap();
        fs::write(folder.path().join("dev/vdb"), "").unwrap();
        assert!(find(16).contains("vdb is another device"), "{}", find(16));
    }

    #[test]
    fn a_path_to_something_else_is_refused() {
        for path in ["/dev/null", "/nowhere"] {
            let error = BlockDevice::find(&DeviceName::Path(path.into()), &Config::default()).unwrap_err();
            assert!(matches!(&error, Error::Device { what, .. } if what == path), "{error}");
        }
    }

    #[test]
    fn reading_stops_at_the_end() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("disk");
        fs::write(&path, [7; 1000]).unwrap();
        let mut claimed = Claimed::new(File::options().read(true).write(true).open(&path).unwrap(), &path).unwrap();
        assert_eq!(claimed.size(), 1000);
        assert_eq!(claimed.read(900, 4096).unwrap(), [7; 100]);
        claimed.write(0, b"abc").unwrap();
        assert_eq!(claimed.read(0, 4).unwrap(), b"abc\x07");
    }
}
