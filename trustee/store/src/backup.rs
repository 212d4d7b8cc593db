//! Backups: the present entries of any store in one sealed file, for any other store.
//!
//! ```text
//! header   "COCOONBK" | format, u32 | id of the key, 8 bytes | salt, 32 bytes
//! chunk    length of what follows, u32, its highest bit set on the last | AES-256-GCM of up to 64 KiB and tag
//! ```
//! Numbers are big endian. The chunks' key comes from the key and the salt by HKDF; a chunk's nonce is its number,
//! and it is bound to the header and to whether it is the last: none can be changed, moved, left out or cut off.
//! Put together they are records: namespace (u8 length), key (u16 length), value (u32 length).

mod stream;

use std::io;

use tokio::io::{AsyncRead, AsyncSeek, AsyncSeekExt as _, AsyncWrite};
use tokio::sync::mpsc;

use crate::backend::{If, Kept, Placed, Space, Write, Written};
use crate::master_key::MasterKey;
use crate::seal::random;
use crate::{Store, error};
use stream::{Opener, Record, Sealer};

/// What a backup's first [`Header::LENGTH`] bytes say.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Header {
    /// The id of the key it is sealed with, as [`MasterKey::id`] gives it.
    pub key_id: String,
    salt: [u8; SALT],
}

impl Header {
    /// How many bytes a header has.
    pub const LENGTH: usize = MAGIC.len() + 4 + KEY_ID + SALT;

    /// Reads a header; bytes that follow are left alone.
    ///
    /// # Errors
    /// [`Error::NotABackup`], [`Error::Format`] for one of a later release.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let rest = bytes.strip_prefix(MAGIC).ok_or(Error::NotABackup)?;
        let (format, rest) = rest.split_first_chunk().ok_or(Error::NotABackup)?;
        let format = u32::from_be_bytes(*format);
        if format != FORMAT {
            return Err(Error::Format(format));
        }
        let (key_id, rest) = rest.split_first_chunk::<KEY_ID>().ok_or(Error::NotABackup)?;
        let (salt, _) = rest.split_first_chunk().ok_or(Error::NotABackup)?;
        Ok(Self { key_id: hex::encode(key_id), salt: *salt })
    }

    fn new(key_id: &str) -> Result<Self, error::Error> {
        Ok(Self { key_id: key_id.to_owned(), salt: *random::<SALT>()? })
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(FORMAT.to_be_bytes());
        let mut id = [0; KEY_ID];
        // An id is the hexadecimal form of so many bytes.
        let _ = hex::decode_to_slice(&self.key_id, &mut id);
        bytes.extend(id);
        bytes.extend(self.salt);
        bytes
    }
}

/// What a backup may be read into.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Target {
    /// Only a store without entries.
    Empty,
    /// Any store: entries of the backup replace those of the same name, others stay.
    Any,
}

/// Why a backup can't be written or read. No variant holds any part of a value.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the file is not a backup of this store")]
    NotABackup,
    #[error("the backup has format {0}, this release knows {FORMAT}; next: use the later release")]
    Format(u32),
    #[error("the backup is sealed with key {0}; next: give this key")]
    OtherKey(String),
    #[error("this store has no master key that could seal the backup; next: give a key for it")]
    NoKey,
    #[error("the backup was changed or cut off, or the key is not its own; next: take another copy")]
    Damaged,
    #[error("the store has entries already; next: take an empty one, or allow it to be overwritten")]
    NotEmpty,
    #[error("the backup can't be read or written: {0}; next: check the file's space and permissions")]
    Io(#[from] io::Error),
}

impl Store {
    /// Writes all present entries, as they are at one moment, and returns how many. Past versions are not among
    /// them. It is sealed with the master key if no other is given.
    ///
    /// # Errors
    /// [`Error::NoKey`], [`Error::Io`] and what reading gives.
    pub async fn export(
        &self,
        to: impl AsyncWrite + Send + Unpin,
        key: Option<&MasterKey>,
    ) -> Result<u64, error::Error> {
        let key = key.cloned().or_else(|| self.master_key()).ok_or(Error::NoKey)?;
        let mut sealer = Sealer::start(to, Header::new(key.id())?, &key).await?;
        let (sender, mut rows) = mpsc::channel(16);
        // It owns the receiver: where it fails, the scan ends.
        let write = async move {
            let mut count = 0;
            while let Some(Placed { namespace, key, row, .. }) = rows.recv().await {
                let entry = self.opened(&namespace, &key, row)?;
                sealer.record(&namespace, &key, &entry.value).await?;
                count += 1;
            }
            Ok::<_, error::Error>((count, sealer))
        };
        let (scanned, written) = tokio::join!(self.0.backend.scan(sender), write);
        scanned?;
        let (count, sealer) = written?;
        sealer.finish().await?;
        Ok(count)
    }

    /// Reads a backup and returns how many entries it has. It is checked to its end before anything is written. It
    /// is opened with the master key if no other is given.
    ///
    /// # Errors
    /// [`Error::NotEmpty`], [`Error::OtherKey`], [`Error::Damaged`] and the others; what writing gives.
    pub async fn import(
        &self,
        mut from: impl AsyncRead + AsyncSeek + Send + Unpin,
        key: Option<&MasterKey>,
        into: Target,
    ) -> Result<u64, error::Error> {
        let key = key.cloned().or_else(|| self.master_key()).ok_or(Error::NoKey)?;
        if into == Target::Empty && !self.is_empty().await? {
            return Err(Error::NotEmpty.into());
        }
        let start = from.stream_position().await.map_err(Error::Io)?;
        let mut opener = Opener::start(&mut from, &key).await?;
        while opener.record().await?.is_some() {}

        from.seek(io::SeekFrom::Start(start)).await.map_err(Error::Io)?;
        let mut opener = Opener::start(&mut from, &key).await?;
        let (mut count, mut size, mut batch) = (0, 0, Vec::new());
        let mut namespace = String::new();
        while let Some(record) = opener.record().await? {
            if record.namespace != namespace || size >= BATCH {
                self.restore(&namespace, std::mem::take(&mut batch)).await?;
                namespace.clone_from(&record.namespace);
                size = 0;
            }
            size += record.value.len() + record.key.as_str().len();
            count += 1;
            batch.push(record);
        }
        self.restore(&namespace, batch).await?;
        Ok(count)
    }

    async fn is_empty(&self) -> Result<bool, error::Error> {
        let (sender, mut rows) = mpsc::channel(1);
        let (scanned, first) = tokio::join!(self.0.backend.scan(sender), async move { rows.recv().await });
        scanned?;
        Ok(first.is_none())
    }

    async fn restore(&self, namespace: &str, records: Vec<Record>) -> Result<(), error::Error> {
        if records.is_empty() {
            return Ok(());
        }
        let mut writes = Vec::with_capacity(records.len());
        for Record { key, value, .. } in records {
            let kept: Kept = self.kept(namespace, &key, &value)?;
            writes.push(Write { key, value: Some(kept), condition: If::Any });
        }
        let space = Space { name: namespace, versioned: false, quiet: false };
        match self.0.backend.write(space, writes).await? {
            Written::Done(_) => Ok(()),
            // No write has a condition.
            Written::Conflict(_) => Err(Error::NotEmpty.into()),
        }
    }
}

const MAGIC: &[u8] = b"COCOONBK";
const FORMAT: u32 = 1;
const KEY_ID: usize = 8;
const SALT: usize = 32;
/// How many bytes are written at once.
const BATCH: usize = 8 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::{Key, Namespace};
    use proptest::prelude::*;
    use std::io::Cursor;

    const SECRETS: Namespace = Namespace::new("secrets");
    const OTHERS: Namespace = Namespace::versioned("others");

    fn key(text: &str) -> Key {
        Key::parse(text).unwrap()
    }

    async fn filled() -> Store {
        let store = Store::memory().await.unwrap();
        store.put(SECRETS, &key("empty"), b"").await.unwrap();
        // More than one chunk, and a value across chunks.
        store.put(SECRETS, &key("large"), &vec![b'x'; 200_000]).await.unwrap();
        store.put(OTHERS, &key("a/b"), b"first").await.unwrap();
        store.put(OTHERS, &key("a/b"), b"second").await.unwrap();
        store
    }

    #[tokio::test]
    async fn a_backup_fills_another_store_under_another_key() {
        let store = filled().await;
        let key_of_backup = MasterKey::generate().unwrap();
        let mut file = Vec::new();
        assert_eq!(store.export(&mut file, Some(&key_of_backup)).await.unwrap(), 3);
        assert_eq!(Header::parse(&file).unwrap().key_id, key_of_backup.id());
        assert!(!file.windows(8).any(|w| w == b"xxxxxxxx"));

        let other = Store::memory().await.unwrap();
        let restored = other.import(Cursor::new(&file), Some(&key_of_backup), Target::Empty).await.unwrap();

        assert_eq!(restored, 3);
        assert_eq!(other.get(SECRETS, &key("large")).await.unwrap().unwrap().value.len(), 200_000);
        assert_eq!(other.get(SECRETS, &key("empty")).await.unwrap().unwrap().value.len(), 0);
        assert_eq!(other.get(OTHERS, &key("a/b")).await.unwrap().unwrap().value.as_slice(), b"second");
        assert_eq!(other.history(OTHERS, &key("a/b")).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn a_store_with_entries_is_only_overwritten_when_told() {
        let store = filled().await;
        let mut file = Vec::new();
        store.export(&mut file, None).await.unwrap();
        store.put(SECRETS, &key("empty"), b"not any more").await.unwrap();
        store.put(SECRETS, &key("later"), b"stays").await.unwrap();

        let refused = store.import(Cursor::new(&file), None, Target::Empty).await;
        assert!(matches!(refused, Err(error::Error::Backup(Error::NotEmpty))));
        store.import(Cursor::new(&file), None, Target::Any).await.unwrap();

        assert_eq!(store.get(SECRETS, &key("empty")).await.unwrap().unwrap().value.len(), 0);
        assert!(store.get(SECRETS, &key("later")).await.unwrap().is_some());
    }

    #[tokio::test]
    async fn a_changed_or_shortened_backup_writes_nothing() {
        let master = MasterKey::generate().unwrap();
        let mut file = Vec::new();
        filled().await.export(&mut file, Some(&master)).await.unwrap();
        let first_chunk_ends = Header::LENGTH + 4 + stream::CHUNK + 16;
        let swapped = {
            let (first, second) = file[Header::LENGTH..].split_at(4 + stream::CHUNK + 16);
            [&file[..Header::LENGTH], &second[..4 + stream::CHUNK + 16], first, &second[4 + stream::CHUNK + 16..]]
                .concat()
        };
        let flipped = |i: usize| {
            let mut changed = file.clone();
            changed[i] ^= 1;
            changed
        };
        let last_flag = |mut file: Vec<u8>| {
            file[Header::LENGTH] |= 0x80;
            file
        };

        for (what, bad) in [
            ("cut within a chunk", file[..file.len() - 1].to_vec()),
            ("cut at a chunk's end", file[..first_chunk_ends].to_vec()),
            ("cut, the end forged", last_flag(file[..first_chunk_ends].to_vec())),
            ("longer", [&file[..], b"x"].concat()),
            ("chunks swapped", swapped),
            ("salt changed", flipped(30)),
            ("content changed", flipped(file.len() - 20)),
            ("length changed", flipped(Header::LENGTH + 3)),
            ("no header", file[..20].to_vec()),
            ("empty", Vec::new()),
        ] {
            let store = Store::memory().await.unwrap();
            let result = store.import(Cursor::new(bad), Some(&master), Target::Empty).await;
            assert!(matches!(result, Err(error::Error::Backup(_))), "{what} passed");
            assert!(store.is_empty().await.unwrap(), "{what} wrote something");
        }

        let store = Store::memory().await.unwrap();
        let other_key = store.import(Cursor::new(&file), None, Target::Empty).await;
        assert!(matches!(other_key, Err(error::Error::Backup(Error::OtherKey(id))) if id == master.id()));
        let later = [b"COCOONBK".as_slice(), &[0, 0, 0, 2], &[0; 40]].concat();
        assert_eq!(Header::parse(&later).unwrap_err().to_string(), Error::Format(2).to_string());
    }

    proptest! {
        #[test]
        fn no_header_makes_it_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..80), magic in any::<bool>()) {
            if magic && bytes.len() >= 12 {
                bytes[..8].copy_from_slice(MAGIC);
                bytes[8..12].copy_from_slice(&FORMAT.to_be_bytes());
            }
            if let Ok(header) = Header::parse(&bytes) {
                prop_assert_eq!(header.to_bytes(), &bytes[..Header::LENGTH]);
            }
        }
    }
}
