//! Folders for layers that containerd insists on unpacking. Nobody reads them; they go when the layer is complete.
//!
//! It does so with an image that it has pulled for another snapshotter: then it unpacks what it has, asking nobody.

use std::io;
use std::path::PathBuf;

use aws_lc_rs::digest;

/// The folders, all of one folder that belongs to this process.
pub(crate) struct Unpacking {
    root: PathBuf,
}

impl Unpacking {
    /// Removes what an earlier process has left: containerd unpacks anew what failed.
    pub(crate) fn open(root: PathBuf) -> io::Result<Self> {
        match std::fs::remove_dir_all(&root) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
        std::fs::create_dir_all(&root)?;
        Ok(Self { root })
    }

    /// A folder for a snapshot; the same one each time.
    pub(crate) fn make(&self, snapshot: &str) -> io::Result<PathBuf> {
        let path = self.path(snapshot);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Removes a snapshot's folder, if it has one.
    pub(crate) async fn remove(&self, snapshot: &str) -> io::Result<()> {
        match tokio::fs::remove_dir_all(self.path(snapshot)).await {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// Names of snapshots have slashes and spaces.
    fn path(&self, snapshot: &str) -> PathBuf {
        let digest = digest::digest(&digest::SHA256, snapshot.as_bytes());
        self.root.join(hex::encode(digest))
    }
}
