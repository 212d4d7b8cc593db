//! The directory that one layer unpacks into.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::unpack::Summary;

/// A directory of one layer; removed when dropped.
pub(crate) struct LayerDir {
    path: PathBuf,
    pub(crate) summary: Summary,
}

impl LayerDir {
    /// Makes an empty directory.
    ///
    /// # Errors
    /// If there is one already, or it can't be made.
    pub(crate) fn create(path: PathBuf) -> io::Result<Self> {
        fs::create_dir(&path)?;
        Ok(Self { path, summary: Summary::default() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for LayerDir {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "a layer's directory can't be removed");
        }
    }
}
