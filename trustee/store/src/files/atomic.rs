//! Files that are replaced whole or not at all, even where the machine stops in between.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

/// A file's new content, on the disk beside it. Removed where it is not put into place.
pub(super) struct Draft {
    path: PathBuf,
    target: PathBuf,
}

impl Draft {
    /// The caller holds the folder's lock: no other draft of this file exists.
    pub fn write(target: &Path, content: &[u8]) -> io::Result<Self> {
        let name = target.file_name().ok_or(io::ErrorKind::InvalidInput)?;
        let mut hash = aws_lc_rs::digest::Context::new(&aws_lc_rs::digest::SHA256);
        hash.update(name.as_encoded_bytes());
        // The name itself may have the greatest length a name can have.
        let path = target.with_file_name(format!("{PREFIX}{}", hex::encode(&hash.finish().as_ref()[..16])));
        let draft = Self { path, target: target.to_owned() };
        let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&draft.path)?;
        file.write_all(content)?;
        file.sync_all()?;
        Ok(draft)
    }

    /// Replaces the file. It is there for good once [`settle`] has been called for the folder.
    pub fn place(self) -> io::Result<()> {
        fs::rename(&self.path, &self.target)
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        // Gone already where it was put into place.
        let _ = fs::remove_file(&self.path);
    }
}

/// Puts the drafts of one folder into place for good.
pub(super) fn place_and_settle(drafts: Vec<Draft>) -> io::Result<()> {
    let folder = drafts.first().and_then(|draft| draft.target.parent()).map(Path::to_owned);
    for draft in drafts {
        draft.place()?;
    }
    folder.map_or(Ok(()), |folder| settle(&folder))
}

/// Makes what was renamed or removed in a folder last.
pub(super) fn settle(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Removes the drafts of a process that ended in the middle. The caller holds the folder's lock.
pub(super) fn clean(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if is_draft(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Whether a path is that of a draft. No key and no namespace has such a name.
pub(super) fn is_draft(path: &Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(PREFIX))
}

/// A regular file's content of at most `limit` bytes; `None` inside if it has more. Nothing if there is no such
/// file.
pub(super) fn read(path: &Path, limit: usize) -> io::Result<Option<Option<Zeroizing<Vec<u8>>>>> {
    // Anything else, such as a pipe, could make the reader wait.
    let metadata = match fs::metadata(path) {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(None),
        other => other?,
    };
    if !metadata.is_file() {
        return Ok(None);
    }
    let file = match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other?,
    };
    let expected = usize::try_from(metadata.len()).unwrap_or(usize::MAX).min(limit);
    let mut content = Zeroizing::new(Vec::with_capacity(expected + 1));
    file.take(limit as u64 + 1).read_to_end(&mut content)?;
    Ok(Some((content.len() <= limit).then_some(content)))
}

const PREFIX: &str = "~draft-";
