//! Why the token signing keys can't be had.

use super::files::FileError;

/// Why the token signing keys can't be had or rotated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the token signing key can't be made or read: restore the store from a backup")]
    Key,
    #[error("the token signing key was rotated too often; next: wait until tokens of former keys have expired")]
    TooManyKeys,
    #[error("the token signing key is in files: replace the files to rotate it")]
    InFiles,
    #[error("token signing key: {0}")]
    Files(#[from] FileError),
    #[error(transparent)]
    Store(#[from] store::Error),
}
