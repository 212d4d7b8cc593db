//! Why the store could not do what was asked.

use std::io;
use std::path::PathBuf;

use crate::key::{self, Key};
use crate::{LAYOUT, MAX_VALUE, backup, master_key, seal};

/// Why the store could not do what was asked. No variant holds any part of a value, a key or a database's password.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("\"{0}\" can't be a key: use up to {max} of the characters a-z A-Z 0-9 - _ . /", max = key::MAX_KEY)]
    Key(String),
    #[error("\"{0}\" can't be a file's name; next: use a shorter key, or a database")]
    FileName(Key),
    #[error("the value has {size} bytes, the store holds at most {MAX_VALUE} in one")]
    TooLarge { size: usize },
    #[error("{namespace}/{key} was changed by someone else; next: read it again")]
    Conflict { namespace: &'static str, key: Key },
    #[error("{namespace}/{key} does not open under the master key; next: restore the database from a backup")]
    Damaged { namespace: String, key: String },
    #[error("{} holds something else than this store writes; next: restore it from a backup", .0.display())]
    DamagedFile(PathBuf),
    #[error("values were sealed with master key {sealed_with}, but {given} was given; next: restore master.key")]
    OtherKey { sealed_with: String, given: String },
    #[error("a PostgreSQL database needs a master key; next: name its file or variable")]
    NoKey,
    #[error("files are kept as they are, a master key would seal nothing; next: give none, or use a database")]
    Plaintext,
    #[error("the database has layout {found}, this release knows {LAYOUT}; next: use the later release")]
    Newer { found: i64 },
    #[error("there is no way from layout {LAYOUT} to layout {wanted} here; next: check the number")]
    NoSuchLayout { wanted: i64 },
    #[error("the database's URL is not of the form postgres://user:password@host:port/name; next: correct it")]
    Url,
    #[error("directory {}: {source}; next: check the path and its permissions", path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("files can't be watched: {0}; next: check fs.inotify.max_user_watches and max_user_instances")]
    Watch(#[from] notify::Error),
    #[error(transparent)]
    MasterKey(#[from] master_key::Error),
    #[error(transparent)]
    Seal(#[from] seal::Error),
    #[error(transparent)]
    Backup(#[from] backup::Error),
    #[error("the store does not answer: {0}; next: check its space and permissions, and that its server runs")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::Error> for Error {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(error.into())
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Unavailable(error.into())
    }
}
