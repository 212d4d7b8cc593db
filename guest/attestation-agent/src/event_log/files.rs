//! The event log's two files: the log, and beside it the intent.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use wire::event_log::MAX_LOG;

use super::Storage;
use super::intent::MAX_INTENT;

/// Files in a folder, which is made when something is written.
pub(super) struct Files {
    log: PathBuf,
    pub(super) intent: PathBuf,
}

impl Files {
    /// The log at `path`, the intent in the same folder.
    pub(super) fn new(path: &Path) -> Self {
        Self { log: path.to_owned(), intent: path.with_file_name(INTENT) }
    }

    fn folder(&self) -> &Path {
        self.log.parent().unwrap_or(Path::new("/"))
    }
}

impl Storage for Files {
    fn log(&self) -> io::Result<Vec<u8>> {
        read(&self.log, MAX_LOG).map(Option::unwrap_or_default)
    }

    fn write_log(&mut self, offset: usize, entry: &[u8]) -> io::Result<()> {
        fs::create_dir_all(self.folder())?;
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(&self.log)?;
        file.set_len(offset as u64)?;
        file.write_all_at(entry, offset as u64)?;
        file.sync_all()
    }

    fn intent(&self) -> io::Result<Option<Vec<u8>>> {
        read(&self.intent, MAX_INTENT)
    }

    fn write_intent(&mut self, intent: &[u8]) -> io::Result<()> {
        fs::create_dir_all(self.folder())?;
        let new = self.intent.with_extension("new");
        let file = File::create(&new)?;
        file.write_all_at(intent, 0)?;
        file.sync_all()?;
        fs::rename(&new, &self.intent)?;
        File::open(self.folder())?.sync_all()
    }

    fn remove_intent(&mut self) -> io::Result<()> {
        match fs::remove_file(&self.intent) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
            _ => File::open(self.folder())?.sync_all(),
        }
    }
}

/// A file of at most `limit` bytes, or none.
fn read(path: &Path, limit: usize) -> io::Result<Option<Vec<u8>>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let mut bytes = Vec::new();
    file.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        return Err(io::Error::new(ErrorKind::FileTooLarge, format!("{} is too long", path.display())));
    }
    Ok(Some(bytes))
}

/// Hidden, as upstream names it.
const INTENT: &str = ".wal_event_entry";
