//! Digests of streams: a reader that hashes what passes, and the comparison with what was promised.

use std::io::{self, BufRead, Read};

use aws_lc_rs::digest::{self, Context};
use oci_spec::image::{Digest, DigestAlgorithm};

/// Whether blobs can be checked against this digest.
pub(crate) fn supported(digest: &Digest) -> bool {
    matches!(digest.algorithm(), DigestAlgorithm::Sha256 | DigestAlgorithm::Sha384 | DigestAlgorithm::Sha512)
}

/// Checks `bytes` against a digest.
///
/// # Errors
/// The digest that the bytes do have.
pub(crate) fn verify(bytes: &[u8], expected: &Digest) -> Result<(), String> {
    let mut context = context(expected);
    context.update(bytes);
    compare(context, expected)
}

/// The SHA-256 digest of `bytes`.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(digest::digest(&digest::SHA256, bytes)))
}

/// Hashes everything that is read through it.
pub(crate) struct Hashing<R> {
    inner: R,
    context: Context,
}

impl<R: Read> Hashing<R> {
    /// Hashes with the algorithm of `expected`.
    pub(crate) fn new(inner: R, expected: &Digest) -> Self {
        Self { inner, context: context(expected) }
    }

    /// Compares what was read so far with `expected`, which must be the digest given to [`Self::new`].
    ///
    /// # Errors
    /// The digest that was found instead.
    pub(crate) fn finish(self, expected: &Digest) -> (R, Result<(), String>) {
        (self.inner, compare(self.context, expected))
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.context.update(&buffer[..count]);
        Ok(count)
    }
}

impl<R: BufRead> BufRead for Hashing<R> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.inner.fill_buf()
    }

    fn consume(&mut self, count: usize) {
        if count > 0
            && let Ok(bytes) = self.inner.fill_buf()
        {
            self.context.update(&bytes[..count.min(bytes.len())]);
        }
        self.inner.consume(count);
    }
}

fn compare(context: Context, expected: &Digest) -> Result<(), String> {
    let actual = hex::encode(context.finish());
    match actual == expected.digest() {
        true => Ok(()),
        false => Err(format!("expected {expected}, found {}:{actual}", expected.algorithm())),
    }
}

fn context(expected: &Digest) -> Context {
    Context::new(match expected.algorithm() {
        DigestAlgorithm::Sha384 => &digest::SHA384,
        DigestAlgorithm::Sha512 => &digest::SHA512,
        // Others were refused by `supported`; hashed like this they would never compare equal.
        _ => &digest::SHA256,
    })
}
