//! Where a guest has what volumes are made with.

use std::path::{Path, PathBuf};

/// The places of a guest.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where sysfs is mounted, which knows devices by their numbers: `/sys`.
    pub sysfs: PathBuf,
    /// Where devtmpfs is mounted: `/dev`.
    pub devices: PathBuf,
}

impl Default for Config {
    fn default() -> Self {
        Self { sysfs: Path::new("/sys").to_owned(), devices: Path::new("/dev").to_owned() }
    }
}
