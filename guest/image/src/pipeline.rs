//! The life of one layer's bytes: hash, decrypt and inflate on one thread, hash and unpack on another.

use std::fmt::Display;
use std::io::{self, BufReader, Read};

use bytes::{Buf as _, Bytes};
use erofs::VerityRoot;
use flate2::bufread::MultiGzDecoder;
use oci_spec::image::Digest;
use tokio::sync::mpsc;
use wire::layer::Decryptor;

use crate::digest::Hashing;
use crate::encryption::LayerSecrets;
use crate::error::{Failure, Stage};
use crate::handoff::{self, Blocks};
use crate::layer_dir::LayerDir;
use crate::manifest::LayerPlan;
use crate::media::{Compression, Content};
use crate::unpack::{self, Limits, Summary};
use crate::zstd::{Windows, Zstd};

/// What is done to the bytes of one layer.
pub(crate) struct Pipeline<'a> {
    pub(crate) plan: &'a LayerPlan,
    pub(crate) secrets: Option<&'a LayerSecrets>,
    pub(crate) windows: &'a Windows,
}

impl Pipeline<'_> {
    /// Unpacks the blob that arrives through `chunks` into `directory`, and hands the directory out only when the
    /// blob's digest, its HMAC and its diff id are right. Blocks.
    pub(crate) fn run(&self, chunks: mpsc::Receiver<Bytes>, mut directory: LayerDir) -> Result<LayerDir, Failure> {
        let plan = self.plan;
        let verity = self.verity()?;
        let chunks = Chunks { chunks, current: Bytes::new(), missing: plan.blob.size() };
        let mut blob = Hashing::new(chunks, plan.blob.digest());
        let outcome = match self.secrets {
            Some(secrets) => self.decrypt(&mut blob, secrets, &directory),
            None => self.inflate(&mut blob, &directory),
        };
        // Damaged bytes show first in whatever reads them; the digest tells that it was the bytes. What is left of a
        // blob is bounded, so that even what inflates without end is looked at.
        let doubtful = |failure: &Failure| failure.blames_content() || failure.stage == Stage::Limit;
        directory.summary = checked(outcome, doubtful, blob, |blob| {
            blob.finish(plan.blob.digest()).1.map_err(|cause| Failure::new(Stage::Digest, cause))
        })?;
        if plan.format.content == Content::Erofs {
            directory.mount_image(verity.as_ref())?;
        }
        Ok(directory)
    }

    /// The hash tree that the manifest binds for a layer's image.
    fn verity(&self) -> Result<Option<VerityRoot>, Failure> {
        if self.plan.format.content == Content::Archive {
            return Ok(None);
        }
        let refused = |cause: &dyn Display| Failure::advised(Stage::Unpack, format!("the layer's image: {cause}"));
        let annotations = self.plan.blob.annotations().as_ref().map(VerityRoot::from_annotations);
        match annotations.transpose().map_err(|e| refused(&e))?.flatten() {
            // It would be in a frame of its own, at an offset that the image does not have.
            Some(_) if self.plan.format.compression != Compression::None => {
                Err(refused(&"a hash tree in a compressed layer is not supported; next: push the layer as it is"))
            }
            root => Ok(root),
        }
    }

    fn decrypt(&self, blob: &mut dyn Read, secrets: &LayerSecrets, directory: &LayerDir) -> Result<Summary, Failure> {
        let failure = |e| Failure::new(Stage::Decrypt, e);
        let decryptor = Decryptor::new(&secrets.private, &secrets.public).map_err(failure)?;
        let plaintext: Digest = match secrets.private.digest() {
            // Not required by the format; the diff id covers the same bytes.
            "" => self.plan.diff_id.clone(),
            text => text.parse().map_err(|_| Failure::new(Stage::Key, "the private options hold no valid digest"))?,
        };
        let mut plain = Hashing::new(Decrypting { inner: blob, decryptor }, &plaintext);
        let outcome = self.inflate(&mut plain, directory);
        checked(outcome, Failure::blames_content, plain, |plain| {
            let (plain, digest) = plain.finish(&plaintext);
            plain.decryptor.finish().map_err(failure)?;
            match secrets.private.digest() {
                "" => Ok(()),
                _ => digest.map_err(|cause| Failure::new(Stage::Decrypt, format!("the plaintext's digest: {cause}"))),
            }
        })
    }

    fn inflate(&self, compressed: &mut dyn Read, directory: &LayerDir) -> Result<Summary, Failure> {
        let compressed = BufReader::with_capacity(BUFFER, compressed);
        match self.plan.format.compression {
            Compression::None => self.hand_over(compressed, directory),
            Compression::Gzip => self.hand_over(MultiGzDecoder::new(compressed), directory),
            Compression::Zstd => self.hand_over(Zstd::new(compressed, self.windows), directory),
        }
    }

    /// Unpacks on a thread of its own: with the last layer of an image, or its only one, there is no other work
    /// meanwhile.
    fn hand_over(&self, plain: impl Read, directory: &LayerDir) -> Result<Summary, Failure> {
        let limit = self.plan.blob.size().saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES).min(MAX_BYTES);
        let bounded = Bounded { inner: Inflating(plain), left: limit, limit };
        handoff::across(bounded, |blocks| self.unpack(blocks, directory))
    }

    fn unpack(&self, blocks: Blocks, directory: &LayerDir) -> Result<Summary, Failure> {
        let plan = self.plan;
        let mut content = Hashing::new(blocks, &plan.diff_id);
        let outcome = match plan.format.content {
            Content::Archive => unpack::unpack(&mut content, directory.path(), Limits::default()),
            Content::Erofs => directory.keep_image(&mut content),
        };
        checked(outcome, Failure::blames_content, content, |content| {
            content.finish(&plan.diff_id).1.map_err(|cause| Failure::new(Stage::DiffId, cause))
        })
    }
}

/// Reads a stage to its end and makes its final check.
///
/// If the stage above failed in a way that is doubtful, since damaged or foreign bytes explain it as well, the check
/// decides which it was. Any other failure stands, and nothing more is read.
fn checked<T, R: Read>(
    outcome: Result<T, Failure>,
    doubtful: impl Fn(&Failure) -> bool,
    mut reader: R,
    check: impl FnOnce(R) -> Result<(), Failure>,
) -> Result<T, Failure> {
    if outcome.as_ref().is_err_and(|failure| !doubtful(failure)) {
        return outcome;
    }
    match (io::copy(&mut reader, &mut io::sink()), outcome) {
        (Ok(_), outcome) => check(reader).and(outcome),
        (Err(e), Ok(_)) => Err(Failure::from_io(e, Stage::Inflate)),
        (Err(e), Err(failure)) => {
            let drain = Failure::from_io(e, Stage::Inflate);
            Err(if drain.blames_content() { failure } else { drain })
        }
    }
}

/// The blob as it arrives from the registry's stream.
struct Chunks {
    chunks: mpsc::Receiver<Bytes>,
    current: Bytes,
    missing: u64,
}

impl Read for Chunks {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.chunks.blocking_recv() {
                Some(chunk) => self.current = chunk,
                None if self.missing == 0 => return Ok(0),
                None => {
                    let cause = format!("the stream ended {} bytes early", self.missing);
                    return Err(Failure::new(Stage::Fetch, cause).into());
                }
            }
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        self.missing = self.missing.saturating_sub(count as u64);
        Ok(count)
    }
}

/// Decrypts in place what is read through it. What it delivers is authentic only after [`Decryptor::finish`].
struct Decrypting<R> {
    inner: R,
    decryptor: Decryptor,
}

impl<R: Read> Read for Decrypting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.decryptor.update(&mut buffer[..count]).map_err(|e| Failure::new(Stage::Decrypt, e))?;
        Ok(count)
    }
}

/// Names the stage of a decoder's errors, unless they come from further down.
struct Inflating<R>(R);

impl<R: Read> Read for Inflating<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.read(buffer).map_err(|e| Failure::from_io(e, Stage::Inflate).into())
    }
}

/// Ends a stream that inflates to more than is acceptable.
struct Bounded<R> {
    inner: R,
    left: u64,
    limit: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.left = self.left.checked_sub(count as u64).ok_or_else(|| {
            Failure::new(Stage::Limit, format!("the layer inflates to more than {} bytes", self.limit))
        })?;
        Ok(count)
    }
}

const BUFFER: usize = 64 << 10;
/// gzip reaches 1032 with nothing but zeros.
const MAX_RATIO: u64 = 1000;
const FREE_BYTES: u64 = 64 << 20;
const MAX_BYTES: u64 = 64 << 30;
