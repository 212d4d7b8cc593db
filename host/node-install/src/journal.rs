//! Changes to small files and links that are all made, or all taken back by whoever comes after a crash.

use std::fs::{self, File, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::root::{JOURNAL, Root};

/// One path, before and after.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Change {
    /// On the node.
    path: PathBuf,
    before: Option<Entry>,
    after: Option<Entry>,
}

/// What is at a path.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Entry {
    File { text: String, mode: u32 },
    Link(PathBuf),
}

#[derive(Debug, Deserialize, Serialize)]
struct Journal {
    operation: String,
    changes: Vec<Change>,
}

impl Change {
    /// A file with this text, which keeps the mode that it has.
    pub(crate) fn file(root: &Root, path: impl Into<PathBuf>, text: impl Into<String>) -> Result<Self, Error> {
        let mut change = Self::removal(root, path)?;
        let mode = match change.before {
            Some(Entry::File { mode, .. }) => mode,
            _ => 0o644,
        };
        change.after = Some(Entry::File { text: text.into(), mode });
        Ok(change)
    }

    /// A link to this target.
    pub(crate) fn link(root: &Root, path: impl Into<PathBuf>, target: impl Into<PathBuf>) -> Result<Self, Error> {
        Ok(Self { after: Some(Entry::Link(target.into())), ..Self::removal(root, path)? })
    }

    /// Nothing.
    pub(crate) fn removal(root: &Root, path: impl Into<PathBuf>) -> Result<Self, Error> {
        let path = path.into();
        Ok(Self { before: Entry::at(&root.at(&path))?, path, after: None })
    }
}

/// Makes the changes that change something; says whether there are any.
///
/// # Errors
/// [`Error::File`]; what was done is taken back by [`recover`].
pub(crate) fn carry_out(root: &Root, operation: &str, mut changes: Vec<Change>) -> Result<bool, Error> {
    changes.retain(|change| change.before != change.after);
    if changes.is_empty() {
        return Ok(false);
    }
    let journal = Journal { operation: operation.to_owned(), changes };
    let text = serde_json::to_string(&journal).map_err(io::Error::from).map_err(Error::file("journal", JOURNAL))?;
    put(&root.at(JOURNAL), Some(&Entry::File { text, mode: 0o600 }))?;
    for change in &journal.changes {
        put(&root.at(&change.path), change.after.as_ref())?;
    }
    put(&root.at(JOURNAL), None)?;
    Ok(true)
}

/// Takes back what an interrupted operation has done, and says which that was.
///
/// # Errors
/// [`Error::Changed`] if somebody else has written to one of its files since; [`Error::File`].
pub(crate) fn recover(root: &Root) -> Result<Option<String>, Error> {
    let path = root.at(JOURNAL);
    // A journal that was not whole has changed nothing.
    remove(&draft(&path))?;
    let Some(journal) = read(&path)? else { return Ok(None) };
    let state = |change: &Change| Entry::at(&root.at(&change.path));
    for change in &journal.changes {
        let found = state(change)?;
        if found != change.before && found != change.after {
            let (path, operation) = (root.at(&change.path), journal.operation.clone());
            return Err(Error::Changed { path, operation, journal: root.at(JOURNAL) });
        }
    }
    for change in journal.changes.iter().rev() {
        let place = root.at(&change.path);
        remove(&draft(&place))?;
        if state(change)? != change.before {
            put(&place, change.before.as_ref())?;
        }
    }
    put(&path, None)?;
    Ok(Some(journal.operation))
}

/// The operation that was interrupted, if one was.
///
/// # Errors
/// [`Error::File`].
pub(crate) fn interrupted(root: &Root) -> Result<Option<String>, Error> {
    Ok(read(&root.at(JOURNAL))?.map(|journal| journal.operation))
}

fn read(path: &Path) -> Result<Option<Journal>, Error> {
    match Entry::at(path)? {
        Some(Entry::File { text, .. }) => {
            let journal = serde_json::from_str(&text).map_err(io::Error::from);
            journal.map(Some).map_err(Error::file("journal", path))
        }
        _ => Ok(None),
    }
}

impl Entry {
    /// What is at `path`.
    pub(crate) fn at(path: &Path) -> Result<Option<Self>, Error> {
        let failed = |error| Error::file("read", path)(error);
        let found = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found.map_err(failed)?,
        };
        if found.is_symlink() {
            return Ok(Some(Self::Link(fs::read_link(path).map_err(failed)?)));
        }
        let mut text = String::new();
        File::open(path).and_then(|file| file.take(MAX_FILE).read_to_string(&mut text)).map_err(failed)?;
        Ok(Some(Self::File { text, mode: found.permissions().mode() & 0o7777 }))
    }

    /// Its text, if it is a file.
    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::File { text, .. } => Some(text),
            Self::Link(_) => None,
        }
    }
}

/// Puts an entry at `path` in one step, on the disk before it returns.
fn put(path: &Path, entry: Option<&Entry>) -> Result<(), Error> {
    let failed = |error| Error::file("write", path)(error);
    let parent = path.parent().unwrap_or(Path::new("/"));
    step();
    match entry {
        None => remove(path)?,
        Some(entry) => {
            fs::create_dir_all(parent).map_err(failed)?;
            let draft = draft(path);
            remove(&draft)?;
            entry.write(&draft).map_err(failed)?;
            step();
            fs::rename(&draft, path).map_err(failed)?;
        }
    }
    sync(parent)?;
    step();
    Ok(())
}

impl Entry {
    fn write(&self, path: &Path) -> io::Result<()> {
        match self {
            Self::Link(target) => symlink(target, path),
            Self::File { text, mode } => {
                let mut file = File::create_new(path)?;
                file.write_all(text.as_bytes())?;
                file.set_permissions(Permissions::from_mode(*mode))?;
                file.sync_all()
            }
        }
    }
}

fn remove(path: &Path) -> Result<(), Error> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes sure that a folder's entries are on the disk.
pub(crate) fn sync(folder: &Path) -> Result<(), Error> {
    File::open(folder).and_then(|folder| folder.sync_all()).map_err(Error::file("write", folder))
}

/// Where a file grows. containerd reads what ends in `.toml`, so this doesn't.
fn draft(path: &Path) -> PathBuf {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".cocoon-new");
    path.with_file_name(name)
}

/// A moment at which a crash must do no harm.
#[cfg(not(test))]
pub(crate) fn step() {}
#[cfg(test)]
pub(crate) use crate::tests::crash::step;

/// No configuration is longer.
const MAX_FILE: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_else_wrote_meanwhile_is_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let root = Root::new(folder.path().to_owned());
        fs::create_dir_all(root.at(JOURNAL).parent().unwrap()).unwrap();
        fs::write(root.at("/file"), "before").unwrap();
        let change = Change::file(&root, "/file", "after").unwrap();
        let journal = Journal { operation: "install 2".to_owned(), changes: vec![change] };
        fs::write(root.at(JOURNAL), serde_json::to_string(&journal).unwrap()).unwrap();

        fs::write(root.at("/file"), "somebody's").unwrap();
        let error = recover(&root).unwrap_err().to_string();
        assert!(error.contains("install 2") && error.contains("journal.json"), "{error}");
        assert_eq!(fs::read_to_string(root.at("/file")).unwrap(), "somebody's");

        fs::write(root.at("/file"), "after").unwrap();
        assert_eq!(recover(&root).unwrap().as_deref(), Some("install 2"));
        assert_eq!(fs::read_to_string(root.at("/file")).unwrap(), "before");
        assert_eq!(recover(&root).unwrap(), None);
    }
}
