//! What a decision is about, and where its keys and signatures come from.

use async_trait::async_trait;
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, Digest};

/// The image about which the policy decides.
#[derive(Clone, Copy, Debug)]
pub struct Image<'a> {
    /// The name that was asked for, before any mirror or remapping.
    pub reference: &'a Reference,
    /// The digest of the manifest that will run.
    pub manifest_digest: &'a Digest,
    /// The digest of the index through which the manifest was chosen. The caller has checked that it lists the manifest.
    pub index_digest: Option<&'a Digest>,
    /// The manifest that will run, which must have the digest `manifest_digest`.
    pub manifest_bytes: &'a [u8],
}

impl<'a> Image<'a> {
    /// What a signature may be for: the index, which signers of several platforms sign, and the manifest.
    pub(crate) fn digests(&self) -> impl Iterator<Item = &'a Digest> {
        let index = self.index_digest.filter(|&index| index != self.manifest_digest);
        index.into_iter().chain([self.manifest_digest])
    }
}

/// A manifest as a registry gave it.
#[derive(Clone, Debug)]
pub struct Document {
    /// The `Content-Type` of the answer.
    pub media_type: String,
    /// The answer's body.
    pub bytes: Vec<u8>,
}

/// Fetches what a policy needs. Every method bounds what it holds in memory.
///
/// `manifest`, `blob` and `referrers` speak of the repository from which the image is pulled. Their answers are checked
/// here: an implementation need not compare digests.
#[async_trait]
pub trait SignatureSources: Send + Sync {
    /// A key, key ring or certificate that the policy names by a path, a `file://` or a `kbs://` URI.
    async fn document(&self, uri: &str) -> Result<Vec<u8>, SourceError>;

    /// What lies at an `http://` or `https://` URL of a lookaside store, `None` if there is nothing (404).
    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, SourceError>;

    /// The manifest with a tag or digest, `None` if there is none (404).
    async fn manifest(&self, version: &str) -> Result<Option<Document>, SourceError>;

    /// A blob.
    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, SourceError>;

    /// What `GET /v2/<name>/referrers/<digest>?artifactType=<type>` lists, empty if the registry has no such API.
    async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>, SourceError>;
}

/// Why a source gave no answer, in its own words.
pub type SourceError = Box<dyn std::error::Error + Send + Sync>;
