//! The life of one layer's bytes: hash, decrypt and inflate on one thread, hash and unpack on another.

use std::fmt::Display;
use std::io::{self, BufReader, Read};

use bytes::{Buf as _, Bytes};
use erofs::VerityRoot;
use flate2::bufread::MultiGzDecoder;
use oci_spec::image::Digest;
use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};
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

/// Unpacks the blob that arrives through `chunks` into `directory`, and hands the directory out only when the blob's
/// digest, its HMAC and its diff id are right. Blocks.
pub(crate) fn run(
    plan: &LayerPlan,
    secrets: Option<LayerSecrets>,
    chunks: mpsc::Receiver<Bytes>,
    mut directory: LayerDir,
) -> Result<LayerDir, Failure> {
    let verity = verity(plan)?;
    let chunks = Chunks { chunks, current: Bytes::new(), missing: plan.blob.size() };
    let mut blob = Hashing::new(chunks, plan.blob.digest());
    let outcome = match secrets {
        Some(secrets) => decrypt(&mut blob, plan, &secrets, &directory),
        None => inflate(&mut blob, plan, &directory),
    };
    // Damaged bytes show first in whatever reads them; the digest tells that it was the bytes.
    directory.summary = checked(outcome, blob, |blob| {
        blob.finish(plan.blob.digest()).1.map_err(|cause| Failure::new(Stage::Digest, cause))
    })?;
    if plan.format.content == Content::Erofs {
        directory.mount_image(verity.as_ref())?;
    }
    Ok(directory)
}

/// The hash tree that the manifest binds for a layer's image.
fn verity(plan: &LayerPlan) -> Result<Option<VerityRoot>, Failure> {
    if plan.format.content == Content::Archive {
        return Ok(None);
    }
    let refused = |cause: &dyn Display| Failure::advised(Stage::Unpack, format!("the layer's image: {cause}"));
    let annotations = plan.blob.annotations().as_ref().map(VerityRoot::from_annotations);
    match annotations.transpose().map_err(|e| refused(&e))?.flatten() {
        // It would be in a frame of its own, at an offset that the image does not have.
        Some(_) if plan.format.compression != Compression::None => {
            Err(refused(&"a hash tree in a compressed layer is not supported; next: push the layer as it is"))
        }
        root => Ok(root),
    }
}

fn decrypt(
    blob: &mut dyn Read,
    plan: &LayerPlan,
    secrets: &LayerSecrets,
    directory: &LayerDir,
) -> Result<Summary, Failure> {
    let failure = |e| Failure::new(Stage::Decrypt, e);
    let decryptor = Decryptor::new(&secrets.private, &secrets.public).map_err(failure)?;
    let plaintext: Digest = match secrets.private.digest() {
        // Not required by the format; the diff id covers the same bytes.
        "" => plan.diff_id.clone(),
        text => text.parse().map_err(|_| Failure::new(Stage::Key, "the private options hold no valid digest"))?,
    };
    let mut plain = Hashing::new(Decrypting { inner: blob, decryptor }, &plaintext);
    let outcome = inflate(&mut plain, plan, directory);
    checked(outcome, plain, |plain| {
        let (plain, digest) = plain.finish(&plaintext);
        plain.decryptor.finish().map_err(failure)?;
        match secrets.private.digest() {
            "" => Ok(()),
            _ => digest.map_err(|cause| Failure::new(Stage::Decrypt, format!("the plaintext's digest: {cause}"))),
        }
    })
}

fn inflate(compressed: &mut dyn Read, plan: &LayerPlan, directory: &LayerDir) -> Result<Summary, Failure> {
    let compressed = BufReader::with_capacity(BUFFER, compressed);
    match plan.format.compression {
        Compression::None => hand_over(compressed, plan, directory),
        Compression::Gzip => hand_over(MultiGzDecoder::new(compressed), plan, directory),
        Compression::Zstd => hand_over(Zstd::new(compressed), plan, directory),
    }
}

/// Unpacks on a thread of its own: with the last layer of an image, or its only one, there is no other work meanwhile.
fn hand_over(plain: impl Read, plan: &LayerPlan, directory: &LayerDir) -> Result<Summary, Failure> {
    let limit = plan.blob.size().saturating_mul(MAX_RATIO).saturating_add(FREE_BYTES).min(MAX_BYTES);
    let bounded = Bounded { inner: Inflating(plain), left: limit, limit };
    handoff::across(bounded, |blocks| unpack(blocks, plan, directory))
}

fn unpack(blocks: Blocks, plan: &LayerPlan, directory: &LayerDir) -> Result<Summary, Failure> {
    let mut content = Hashing::new(blocks, &plan.diff_id);
    let outcome = match plan.format.content {
        Content::Archive => unpack::unpack(&mut content, directory.path(), Limits::default()),
        Content::Erofs => directory.keep_image(&mut content),
    };
    checked(outcome, content, |content| {
        content.finish(&plan.diff_id).1.map_err(|cause| Failure::new(Stage::DiffId, cause))
    })
}

/// Reads a stage to its end and makes its final check.
///
/// If the stage above failed in a way that damaged or foreign bytes explain, the check decides which it was. Any other
/// failure stands, and nothing more is read.
fn checked<T, R: Read>(
    outcome: Result<T, Failure>,
    mut reader: R,
    check: impl FnOnce(R) -> Result<(), Failure>,
) -> Result<T, Failure> {
    if outcome.as_ref().is_err_and(|failure| !failure.blames_content()) {
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

/// All frames of a zstd stream, skippable ones left out.
struct Zstd<R> {
    source: R,
    decoder: FrameDecoder,
    in_frame: bool,
}

impl<R: io::BufRead> Zstd<R> {
    fn new(source: R) -> Self {
        let mut decoder = FrameDecoder::new();
        decoder.set_max_window_size(MAX_ZSTD_WINDOW);
        Self { source, decoder, in_frame: false }
    }

    /// Begins the next frame; false at the end of the stream.
    fn begin(&mut self) -> io::Result<bool> {
        while !self.source.fill_buf()?.is_empty() {
            match self.decoder.init(&mut self.source) {
                Ok(()) => {
                    self.in_frame = true;
                    return Ok(true);
                }
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame { length, .. })) => {
                    io::copy(&mut (&mut self.source).take(length.into()), &mut io::sink())?;
                }
                Err(e) => return Err(io::Error::other(e)),
            }
        }
        Ok(false)
    }
}

impl<R: io::BufRead> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            if !self.in_frame && !self.begin()? {
                return Ok(0);
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                self.decoder
                    .decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1))
                    .map_err(io::Error::other)?;
            }
            let count = self.decoder.read(buffer)?;
            if count > 0 || buffer.is_empty() {
                return Ok(count);
            }
            self.in_frame = false;
        }
    }
}

const BUFFER: usize = 64 << 10;
/// gzip reaches 1032 with nothing but zeros.
const MAX_RATIO: u64 = 1000;
const FREE_BYTES: u64 = 64 << 20;
const MAX_BYTES: u64 = 64 << 30;
/// What zstd's highest ordinary levels use is 8 MiB.
const MAX_ZSTD_WINDOW: u64 = 64 << 20;
