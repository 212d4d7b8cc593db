//! What every place that holds entries must be able to do. Values are opaque here: sealed, or plain in files.

use async_trait::async_trait;
use tokio::sync::mpsc;
use zeroize::Zeroizing;

use crate::clock::Timestamp;
use crate::error::Error;
use crate::key::{Key, Namespace};

/// What a write expects of the key beforehand.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum If {
    /// Nothing.
    Any,
    /// That it is not there.
    Absent,
    /// That it is at this version.
    Version(u64),
}

impl If {
    pub(crate) fn holds(self, version: Option<u64>) -> bool {
        match self {
            Self::Any => true,
            Self::Absent => version.is_none(),
            Self::Version(expected) => version == Some(expected),
        }
    }
}

impl From<Option<u64>> for If {
    fn from(expected: Option<u64>) -> Self {
        expected.map_or(Self::Absent, Self::Version)
    }
}

impl From<u64> for If {
    fn from(expected: u64) -> Self {
        Self::Version(expected)
    }
}

/// One version of a key, present or past.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Version {
    /// The number to name in [`Store::at`](crate::Store::at).
    pub version: u64,
    /// When it was written.
    pub time: Timestamp,
    /// Whether it is the absence of a value.
    pub deleted: bool,
}

#[async_trait]
pub(crate) trait Backend: Send + Sync {
    async fn get(&self, namespace: &str, key: &Key) -> Result<Option<Row>, Error>;

    /// Does all writes or none.
    async fn write(&self, space: Space<'_>, writes: Vec<Write>) -> Result<Written, Error>;

    async fn delete_before(&self, space: Space<'_>, bound: &Key) -> Result<u64, Error>;

    /// Sorted keys with this prefix that come after the given text.
    async fn list(&self, namespace: &str, prefix: &str, after: &str, limit: i64) -> Result<Vec<String>, Error>;

    async fn history(&self, namespace: &str, key: &Key) -> Result<Vec<Version>, Error>;

    async fn at(&self, namespace: &str, key: &Key, version: u64) -> Result<Option<Row>, Error>;

    /// Sends all entries as they are at one moment; ends early where nobody receives any more.
    async fn scan(&self, rows: mpsc::Sender<Placed>) -> Result<(), Error>;

    async fn ping(&self) -> Result<(), Error>;

    async fn close(&self);

    /// Whether changes of others are heard of.
    fn healthy(&self) -> bool {
        true
    }

    /// Called once for each follower of a namespace, before it looks.
    fn follow(&self, _namespace: &str) {}

    /// Which keys have sealed something. Nothing where nothing is sealed.
    async fn key_ids(&self) -> Result<Vec<String>, Error> {
        Ok(Vec::new())
    }

    /// Some rows that come after the given one and are sealed with another key than this.
    async fn stale(&self, _key_id: &str, _after: Option<&Placed>) -> Result<Vec<Placed>, Error> {
        Ok(Vec::new())
    }

    /// Takes the sealed forms of values that are the same as before, where they are still at the same version.
    async fn reseal(&self, _rows: &[Placed]) -> Result<(), Error> {
        Ok(())
    }
}

/// A namespace whose name may come from a backup.
#[derive(Clone, Copy)]
pub(crate) struct Space<'a> {
    pub name: &'a str,
    pub versioned: bool,
    pub quiet: bool,
}

impl From<Namespace> for Space<'static> {
    fn from(namespace: Namespace) -> Self {
        Self { name: namespace.as_str(), versioned: namespace.is_versioned(), quiet: namespace.is_quiet() }
    }
}

/// A value as it is kept.
pub(crate) struct Kept {
    /// Empty if the value is not sealed.
    pub key_id: String,
    pub bytes: Zeroizing<Vec<u8>>,
}

pub(crate) struct Row {
    pub version: u64,
    pub kept: Kept,
}

/// A row and where it stands.
pub(crate) struct Placed {
    /// It is in the history.
    pub past: bool,
    pub namespace: String,
    pub key: String,
    pub row: Row,
}

/// One change: a value, or nothing to delete the key.
pub(crate) struct Write {
    pub key: Key,
    pub value: Option<Kept>,
    pub condition: If,
}

pub(crate) enum Written {
    Done(Vec<Effect>),
    /// This key is not as its write expects; nothing was written.
    Conflict(Key),
}

pub(crate) enum Effect {
    Put(u64),
    Deleted,
    /// There was nothing to delete.
    Absent,
}
