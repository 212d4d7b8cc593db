//! Where a guest has what volumes are made with.

use std::path::{Path, PathBuf};

/// The places of a guest.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where sysfs is mounted, which knows devices by their numbers: `/sys`.
    pub sysfs: PathBuf,
    /// Where devtmpfs is mounted: `/dev`.
    pub devices: PathBuf,
    /// Where `mke2fs` may be, in this order: the folders of a Debian system.
    pub programs: Vec<PathBuf>,
}

impl Config {
    /// The program that makes an ext4 file system, if there is one.
    pub(crate) fn mke2fs(&self) -> Option<PathBuf> {
        self.programs.iter().map(|folder| folder.join("mke2fs")).find(|path| path.is_file())
    }
}

impl Default for Config {
    fn default() -> Self {
        let programs = ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin", "/usr/local/bin"];
        Self {
            sysfs: Path::new("/sys").to_owned(),
            devices: Path::new("/dev").to_owned(),
            programs: programs.iter().map(PathBuf::from).collect(),
        }
    }
}
