//! Blobs on the node's disk by their digests: compressed or encrypted, as a registry has them.
//!
//! A blob's file appears under its digest only when it is whole and has been checked, and on the disk by then. The cache
//! stays below its limit by removing what was used longest ago; a guest that still reads a removed blob reads on. There is
//! no index: what is in the folder is in the cache, so the folder may be emptied at any time.

use std::collections::HashMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::SystemTime;

use aws_lc_rs::digest::{self, Context};
use bytes::Bytes;
use futures::{Stream, TryStreamExt as _};
use tokio::fs::File;
use tokio::io::AsyncWriteExt as _;
use tokio::sync::OnceCell;
use tokio::task::spawn_blocking;
use wire::blob::{Algorithm, BlobDigest};

/// The cache. One process at a time may fill it.
pub struct Cache {
    folder: PathBuf,
    limit: u64,
    /// Bytes that running downloads may still write.
    reserved: Arc<Mutex<u64>>,
    downloads: Mutex<HashMap<BlobDigest, Weak<Download>>>,
    partial: AtomicU64,
}

/// What all who want a blob at the same time wait for.
type Download = OnceCell<Result<(), Error>>;

impl Cache {
    /// Opens the cache of a folder, for at most `limit` bytes. Downloads that an earlier process has not finished are
    /// removed.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub fn open(folder: PathBuf, limit: u64) -> Result<Self, Error> {
        let unusable = |source: io::Error| Error::Folder { path: folder.clone(), cause: source.to_string() };
        match fs::remove_dir_all(folder.join(PARTIAL)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(unusable(e)),
            _ => {}
        }
        make_folders(&folder).map_err(unusable)?;
        let (reserved, downloads, partial) = (Arc::default(), Mutex::default(), AtomicU64::default());
        Ok(Self { folder, limit, reserved, downloads, partial })
    }

    /// The most that the cache holds, in bytes.
    pub fn limit(&self) -> u64 {
        self.limit
    }

    /// A blob and its length, if it is here. It now counts as used.
    ///
    /// # Errors
    /// [`Error::Folder`].
    pub async fn blob(&self, digest: &BlobDigest) -> Result<Option<(File, u64)>, Error> {
        let path = self.path(digest);
        let opened = spawn_blocking(move || {
            let file = fs::File::open(&path)?;
            file.set_modified(SystemTime::now())?;
            let length = file.metadata()?.len();
            Ok::<_, io::Error>((file, length))
        });
        match opened.await.unwrap_or_else(|e| Err(e.into())) {
            Ok((file, length)) => Ok(Some((File::from_std(file), length))),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.broken(&e)),
        }
    }

    /// Brings a blob of `size` bytes into the cache unless it is there. Of several calls for one blob one fetches, and the
    /// others get its outcome. A fetch that is dropped is taken over by one that waits.
    ///
    /// # Errors
    /// Any [`Error`]. Nothing of the blob stays.
    pub async fn fill<S>(
        &self,
        digest: &BlobDigest,
        size: u64,
        fetch: impl Future<Output = Result<S, String>>,
    ) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, String>>,
    {
        let download = self.download(digest);
        let filled = download.get_or_init(async || match self.blob(digest).await? {
            Some(_) => Ok(()),
            None => self.store(digest, size, fetch).await,
        });
        filled.await.clone()
    }

    fn download(&self, digest: &BlobDigest) -> Arc<Download> {
        let mut downloads = self.downloads.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(running) = downloads.get(digest).and_then(Weak::upgrade) {
            return running;
        }
        downloads.retain(|_, download| download.strong_count() > 0);
        let fresh = Arc::default();
        downloads.insert(digest.clone(), Arc::downgrade(&fresh));
        fresh
    }

    async fn store<S>(
        &self,
        digest: &BlobDigest,
        size: u64,
        fetch: impl Future<Output = Result<S, String>>,
    ) -> Result<(), Error>
    where
        S: Stream<Item = Result<Bytes, String>>,
    {
        let _room = self.make_room(digest, size).await?;
        let fetched = |cause: String| Error::Fetch { digest: digest.clone(), cause };
        let mut chunks = pin!(fetch.await.map_err(fetched)?);

        make_folders(&self.folder).map_err(|e| self.broken(&e))?;
        let number = self.partial.fetch_add(1, Ordering::Relaxed);
        let partial = Partial(self.folder.join(PARTIAL).join(number.to_string()));
        let mut file = File::create(&partial.0).await.map_err(|e| self.broken(&e))?;
        let (mut hash, mut length) = (Context::new(algorithm(digest)), 0);
        while let Some(chunk) = chunks.try_next().await.map_err(fetched)? {
            length += chunk.len() as u64;
            if length > size {
                return Err(Error::Length { digest: digest.clone(), size });
            }
            hash.update(&chunk);
            file.write_all(&chunk).await.map_err(|e| self.broken(&e))?;
        }
        if length != size {
            return Err(Error::Length { digest: digest.clone(), size });
        }
        let found = hex::encode(hash.finish());
        if found != digest.hex() {
            return Err(Error::Digest { digest: digest.clone(), found });
        }
        // A name that survives a crash must not lead to bytes that don't.
        file.flush().await.map_err(|e| self.broken(&e))?;
        file.sync_data().await.map_err(|e| self.broken(&e))?;
        tokio::fs::rename(&partial.0, self.path(digest)).await.map_err(|e| self.broken(&e))
    }

    /// Removes what was used longest ago until `size` more bytes fit, beside those that other downloads may write.
    async fn make_room(&self, digest: &BlobDigest, size: u64) -> Result<Room, Error> {
        if size > self.limit {
            return Err(Error::TooLarge { digest: digest.clone(), size, limit: self.limit });
        }
        let (folder, reserved, limit) = (self.folder.join(BLOBS), Arc::clone(&self.reserved), self.limit);
        let room = spawn_blocking(move || {
            let mut taken = reserved.lock().unwrap_or_else(PoisonError::into_inner);
            let mut blobs = blobs(&folder)?;
            blobs.sort_by_key(|(used, ..)| *used);
            let mut total: u64 = blobs.iter().map(|(_, length, _)| length).sum();
            for (_, length, path) in blobs {
                if total.saturating_add(*taken).saturating_add(size) <= limit {
                    break;
                }
                match fs::remove_file(&path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => total -= length,
                }
            }
            *taken = taken.saturating_add(size);
            drop(taken);
            Ok(Room { reserved, size })
        });
        room.await.unwrap_or_else(|e| Err(e.into())).map_err(|e| self.broken(&e))
    }

    fn path(&self, digest: &BlobDigest) -> PathBuf {
        self.folder.join(BLOBS).join(digest.algorithm().name()).join(digest.hex())
    }

    fn broken(&self, error: &io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full { path: self.folder.clone() },
            _ => Error::Folder { path: self.folder.clone(), cause: error.to_string() },
        }
    }
}

/// Space for one download.
struct Room {
    reserved: Arc<Mutex<u64>>,
    size: u64,
}

impl Drop for Room {
    fn drop(&mut self) {
        let mut taken = self.reserved.lock().unwrap_or_else(PoisonError::into_inner);
        *taken = taken.saturating_sub(self.size);
    }
}

/// A file that goes unless it got another name.
struct Partial(PathBuf);

impl Drop for Partial {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Every blob with its last use and its length.
fn blobs(folder: &Path) -> io::Result<Vec<(SystemTime, u64, PathBuf)>> {
    let mut found = Vec::new();
    for algorithm in fs::read_dir(folder).into_iter().flatten().flatten() {
        for blob in fs::read_dir(algorithm.path())?.flatten() {
            // One that is gone meanwhile takes no space.
            if let Ok(metadata) = blob.metadata() {
                found.push((metadata.modified()?, metadata.len(), blob.path()));
            }
        }
    }
    Ok(found)
}

/// Not every user of the node may have what the node may have.
fn make_folders(folder: &Path) -> io::Result<()> {
    let mut private = DirBuilder::new();
    private.recursive(true).mode(0o700).create(folder.join(PARTIAL))?;
    let algorithms = [Algorithm::Sha256, Algorithm::Sha384, Algorithm::Sha512];
    algorithms.iter().try_for_each(|algorithm| private.create(folder.join(BLOBS).join(algorithm.name())))
}

fn algorithm(digest: &BlobDigest) -> &'static digest::Algorithm {
    match digest.algorithm() {
        Algorithm::Sha256 => &digest::SHA256,
        Algorithm::Sha384 => &digest::SHA384,
        Algorithm::Sha512 => &digest::SHA512,
    }
}

/// Why a blob is not in the cache.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The folder can't be used.
    #[error("cache {path}: {cause}; next: check the folder's rights and its disk")]
    Folder {
        /// The folder.
        path: PathBuf,
        /// The kernel's answer.
        cause: String,
    },
    /// The disk is full.
    #[error("cache {path}: no space left on its disk; next: free some, or make cache_mib smaller")]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// The blob is larger than everything that the cache may hold.
    #[error("cache: {digest} has {size} bytes and the cache {limit}; next: make cache_mib larger")]
    TooLarge {
        /// The blob.
        digest: BlobDigest,
        /// Its length.
        size: u64,
        /// The cache's limit.
        limit: u64,
    },
    /// The blob could not be had.
    #[error("cache: {digest}: {cause}")]
    Fetch {
        /// The blob.
        digest: BlobDigest,
        /// What happened, and the next step.
        cause: String,
    },
    /// Another length came than was announced.
    #[error("cache: {digest} does not have the {size} bytes of its manifest; next: push the image again")]
    Length {
        /// The blob.
        digest: BlobDigest,
        /// The length in the manifest.
        size: u64,
    },
    /// Other bytes came.
    #[error("cache: {digest} was asked for and {found} came; next: push the image again, or check the mirror")]
    Digest {
        /// The blob.
        digest: BlobDigest,
        /// The digest of what came.
        found: String,
    },
}

const BLOBS: &str = "blobs";
const PARTIAL: &str = "partial";
