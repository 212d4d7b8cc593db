//! Where a store lies.

use std::fmt;
use std::path::PathBuf;

use zeroize::Zeroizing;

/// Where a store lies.
#[derive(Clone)]
pub enum Location {
    /// A SQLite database for one process: `trustee.db`, beside `master.key` where no other key is given.
    Sqlite {
        /// The folder, made with mode 0700.
        directory: PathBuf,
    },
    /// A PostgreSQL database for any number of replicas.
    Postgres {
        /// `postgres://user:password@host:port/database`, with `?sslmode=verify-full&sslrootcert=FILE` for a server
        /// that must prove its name. It is never shown.
        url: Zeroizing<String>,
        /// Most connections of this process, besides one that listens.
        connections: u32,
    },
    /// Nothing that outlives the process.
    Memory,
    /// Upstream's `LocalFs`: `<directory>/<namespace>/<key>`, where `\x2F` stands for `/`. Plain.
    LocalFs {
        /// The folder of the namespaces' folders.
        directory: PathBuf,
    },
    /// Upstream's `LocalJson`: one file `<directory>/<namespace>` of keys and values in URL-safe base64. Plain.
    LocalJson {
        /// The folder of the namespaces' files.
        directory: PathBuf,
    },
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite { directory } => write!(f, "SQLite in {}", directory.display()),
            Self::Postgres { .. } => f.write_str("PostgreSQL"),
            Self::Memory => f.write_str("memory"),
            Self::LocalFs { directory } => write!(f, "files in {}", directory.display()),
            Self::LocalJson { directory } => write!(f, "JSON files in {}", directory.display()),
        }
    }
}
