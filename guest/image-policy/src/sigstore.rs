//! sigstore signatures: where they lie beside an image, and what makes one good.
//!
//! They come in two forms. The older one is an image of its own under the tag `sha256-<hex>.sig`, whose layers are
//! payloads and whose annotations are signatures. The newer one is a bundle that refers to the image. Whatever else lies
//! there, a single good signature is enough: others may be by others, for others.
//!
//! Source: cosign's signature specification; sigstore's bundle format 0.3; OCI distribution specification 1.1,
//! "Listing Referrers".

mod bundle;
mod certificate;
mod legacy;
mod log;

use std::time::SystemTime;

use oci_spec::image::{Descriptor, Digest, ImageIndex, ImageManifest};
use rustls_pki_types::CertificateDer;

use crate::check::has_digest;
use crate::error::Failure;
use crate::identity::Name;
use crate::key::PublicKey;
use crate::payload::PayloadError;
use crate::policy::{Signer, SigstoreSigned};
use crate::sources::{Image, SignatureSources};

pub use bundle::BundleError;
pub use certificate::CertificateError;
pub use log::LogError;

use certificate::Authority;
use log::Entry;

/// A signature in either form, taken apart and not yet believed.
#[derive(Debug)]
struct Candidate {
    /// The bytes that are signed.
    message: Vec<u8>,
    signature: Vec<u8>,
    /// The signer's certificate, if it comes with one, and the certificates above it.
    certificate: Option<CertificateDer<'static>>,
    chain: Vec<CertificateDer<'static>>,
    /// The log entries that it comes with.
    entries: Vec<Entry>,
    /// What the log must have recorded.
    recorded: log::Record,
    /// The digest for which it is.
    digests: Vec<Digest>,
    /// The name that the signer gave to the image, if the form has one.
    name: Option<String>,
}

/// Who may have signed, with all keys at hand.
enum Trusted {
    Keys(Vec<PublicKey>),
    Fulcio { authority: Authority, issuer: String, subject: String },
    Pki { authority: Authority, email: Option<String>, hostname: Option<String> },
}

impl SigstoreSigned {
    /// Looks for a signature that the requirement accepts; says which one and by whom.
    pub(crate) async fn check(
        &self,
        image: &Image<'_>,
        sources: &dyn SignatureSources,
        now: SystemTime,
    ) -> Result<String, Vec<Failure>> {
        let trusted = self.trusted(sources).await.map_err(|failure| vec![failure])?;
        let log_keys = keys(&self.log_keys, sources).await.map_err(|failure| vec![failure])?;
        let mut search = Search { requirement: self, image, trusted, log_keys, now, failures: Vec::new() };
        for digest in image.digests() {
            if let Some(found) = search.tagged(digest, sources).await {
                return Ok(found);
            }
        }
        for digest in image.digests() {
            if let Some(found) = search.referring(digest, sources).await {
                return Ok(found);
            }
        }
        if search.failures.is_empty() {
            search.failures.push(Failure::Unsigned("beside the image".to_owned()));
        }
        Err(search.failures)
    }

    async fn trusted(&self, sources: &dyn SignatureSources) -> Result<Trusted, Failure> {
        let authority = async |material: &crate::policy::Material, more: Option<&crate::policy::Material>| {
            let pem = material.fetch(sources).await?;
            let intermediates = match more {
                Some(more) => more.fetch(sources).await?,
                None => Vec::new(),
            };
            Authority::parse(&pem, &intermediates)
                .map_err(|cause| Failure::Key { place: material.to_string(), cause: cause.to_string() })
        };
        Ok(match &self.signer {
            Signer::Keys(materials) => Trusted::Keys(keys(materials, sources).await?),
            Signer::Fulcio { authorities, issuer, subject } => Trusted::Fulcio {
                authority: authority(authorities, None).await?,
                issuer: issuer.clone(),
                subject: subject.clone(),
            },
            Signer::Pki { roots, intermediates, email, hostname } => Trusted::Pki {
                authority: authority(roots, intermediates.as_ref()).await?,
                email: email.clone(),
                hostname: hostname.clone(),
            },
        })
    }
}

async fn keys(
    materials: &[crate::policy::Material],
    sources: &dyn SignatureSources,
) -> Result<Vec<PublicKey>, Failure> {
    let mut keys = Vec::new();
    for material in materials {
        let pem = material.fetch(sources).await?;
        let parsed = PublicKey::parse_pem(&pem);
        keys.extend(parsed.map_err(|cause| Failure::Key { place: material.to_string(), cause })?);
    }
    Ok(keys)
}

/// One requirement's way through all that lies beside an image.
struct Search<'a> {
    requirement: &'a SigstoreSigned,
    image: &'a Image<'a>,
    trusted: Trusted,
    log_keys: Vec<PublicKey>,
    now: SystemTime,
    failures: Vec<Failure>,
}

impl Search<'_> {
    /// Goes through the layers under the tag of a digest.
    async fn tagged(&mut self, digest: &Digest, sources: &dyn SignatureSources) -> Option<String> {
        let tag = format!("{}-{}.sig", digest.algorithm(), digest.digest());
        let manifest = self.manifest(&tag, None, sources).await??;
        for (index, layer) in manifest.layers().iter().take(MAX_SIGNATURES).enumerate() {
            let place = format!("{tag}, layer {}", index + 1);
            let Some(payload) = self.blob(&place, layer, sources).await else { continue };
            let annotations = layer.annotations().clone().unwrap_or_default();
            if let Some(found) = self.accept(&place, legacy::candidate(payload, &annotations)) {
                return Some(found);
            }
        }
        None
    }

    /// Goes through the bundles that refer to a digest.
    async fn referring(&mut self, digest: &Digest, sources: &dyn SignatureSources) -> Option<String> {
        let listed = sources.referrers(digest, BUNDLE_TYPE).await;
        // Some registries that don't know the question answer with an error, and have a tag all the same.
        let mut referrers = self.keep(&format!("the list of what refers to {digest}"), listed).unwrap_or_default();
        if referrers.is_empty() {
            referrers = self.referrers_tag(digest, sources).await?;
        }
        // Lists that clients keep under a tag may give the type of an artifact's empty configuration instead.
        let bundles = referrers.iter().filter(|it| {
            let artifact = it.artifact_type().as_ref().map(ToString::to_string);
            artifact.is_none_or(|artifact| artifact.starts_with(BUNDLE_FAMILY) || artifact == EMPTY_TYPE)
        });
        let mut content = None;
        for referrer in bundles.take(MAX_SIGNATURES) {
            let Some(Some(manifest)) =
                self.manifest(referrer.digest().as_ref(), Some(referrer.digest()), sources).await
            else {
                continue;
            };
            for layer in manifest.layers().iter().take(MAX_SIGNATURES) {
                if !layer.media_type().to_string().starts_with(BUNDLE_FAMILY) {
                    continue;
                }
                let place = format!("bundle {}", layer.digest());
                let Some(json) = self.blob(&place, layer, sources).await else { continue };
                if content.is_none() {
                    content = Some(self.signed_manifest(digest, sources).await);
                }
                let candidate = bundle::candidate(&json, digest, content.as_ref().and_then(Option::as_deref));
                if let Some(found) = self.accept(&place, candidate) {
                    return Some(found);
                }
            }
        }
        None
    }

    /// The list of referrers of registries that have no API for it.
    async fn referrers_tag(&mut self, digest: &Digest, sources: &dyn SignatureSources) -> Option<Vec<Descriptor>> {
        let tag = format!("{}-{}", digest.algorithm(), digest.digest());
        let Some(document) = self.keep(&tag, sources.manifest(&tag).await)? else { return Some(Vec::new()) };
        let index: Result<ImageIndex, _> = serde_json::from_slice(&document.bytes);
        let index = index.map_err(|e| Failure::Form { place: tag, cause: e.to_string() });
        index.map_err(|failure| self.failures.push(failure)).ok().map(|index| index.manifests().clone())
    }

    /// The bytes of the manifest or index with a digest, which a bundle may be a signature of.
    async fn signed_manifest(&mut self, digest: &Digest, sources: &dyn SignatureSources) -> Option<Vec<u8>> {
        if digest == self.image.manifest_digest {
            return Some(self.image.manifest_bytes.to_vec());
        }
        let place = format!("index {digest}");
        let document = self.keep(&place, sources.manifest(digest.as_ref()).await)??;
        match has_digest(&document.bytes, digest) {
            true => Some(document.bytes),
            false => {
                self.failures.push(Failure::Digest(place));
                None
            }
        }
    }

    /// A manifest; `Some(None)` if there is none, and `None` if that is a failure.
    async fn manifest(
        &mut self,
        version: &str,
        digest: Option<&Digest>,
        sources: &dyn SignatureSources,
    ) -> Option<Option<ImageManifest>> {
        let Some(document) = self.keep(version, sources.manifest(version).await)? else { return Some(None) };
        let place = || version.to_owned();
        let parsed = match digest.is_none_or(|digest| has_digest(&document.bytes, digest)) {
            true => serde_json::from_slice(&document.bytes)
                .map_err(|e| Failure::Form { place: place(), cause: e.to_string() }),
            false => Err(Failure::Digest(place())),
        };
        parsed.map(Some).map_err(|failure| self.failures.push(failure)).ok()
    }

    async fn blob(&mut self, place: &str, layer: &Descriptor, sources: &dyn SignatureSources) -> Option<Vec<u8>> {
        if layer.size() > MAX_BLOB as u64 {
            self.failures.push(Failure::TooLarge { place: place.to_owned(), limit: MAX_BLOB });
            return None;
        }
        let blob = self.keep(place, sources.blob(layer.digest()).await)?;
        match has_digest(&blob, layer.digest()) {
            true => Some(blob),
            false => {
                self.failures.push(Failure::Digest(place.to_owned()));
                None
            }
        }
    }

    fn keep<T>(&mut self, place: &str, answer: Result<T, crate::sources::SourceError>) -> Option<T> {
        answer.map_err(|cause| self.failures.push(Failure::Source { place: place.to_owned(), cause })).ok()
    }

    fn accept(&mut self, place: &str, candidate: Result<Candidate, SigstoreError>) -> Option<String> {
        match candidate.and_then(|candidate| self.verify(&candidate)) {
            Ok(signer) => Some(format!("{place}, by {signer}")),
            Err(cause) => {
                self.failures.push(Failure::Sigstore { place: place.to_owned(), cause });
                None
            }
        }
    }

    /// Whether a signature is what the requirement asks for; says by whom.
    fn verify(&self, candidate: &Candidate) -> Result<String, SigstoreError> {
        if !candidate.digests.iter().any(|signed| self.image.digests().any(|digest| digest == signed)) {
            let signed = candidate.digests.first().map(ToString::to_string);
            return Err(SigstoreError::Digest(signed.unwrap_or_else(|| "nothing".to_owned())));
        }
        if let Some(identity) = &self.requirement.identity {
            let name = candidate.name.as_deref().ok_or(SigstoreError::Nameless)?;
            let signed = Name::parse(name).map_err(PayloadError::Form)?;
            if !identity.accepts(&Name::of(self.image.reference), &signed) {
                return Err(SigstoreError::Identity(name.to_owned()));
            }
        }
        match &self.trusted {
            Trusted::Keys(keys) => {
                let key = keys.iter().find(|key| key.verifies(&candidate.message, &candidate.signature));
                let key = key.ok_or(SigstoreError::Signature)?;
                if !self.log_keys.is_empty() {
                    self.logged(candidate, key.spki())?;
                }
                Ok(format!("key sha256:{}", key.id()))
            }
            Trusted::Fulcio { authority, issuer, subject } => {
                let certificate = candidate.certificate.as_ref().ok_or(SigstoreError::NoCertificate)?;
                let key = certificate::key(certificate)?;
                let logged = self.logged(candidate, key.spki())?.ok_or(LogError::NoTime)?;
                authority.verify(certificate, &candidate.chain, logged)?;
                certificate::expect_identity(certificate, issuer, subject)?;
                match key.verifies(&candidate.message, &candidate.signature) {
                    true => Ok(format!("{subject} of {issuer}")),
                    false => Err(SigstoreError::Signature),
                }
            }
            Trusted::Pki { authority, email, hostname } => {
                let certificate = candidate.certificate.as_ref().ok_or(SigstoreError::NoCertificate)?;
                authority.verify(certificate, &candidate.chain, self.now)?;
                certificate::expect_subject(certificate, email.as_deref(), hostname.as_deref())?;
                match certificate::key(certificate)?.verifies(&candidate.message, &candidate.signature) {
                    true => Ok(email.iter().chain(hostname).cloned().collect::<Vec<_>>().join(" and ")),
                    false => Err(SigstoreError::Signature),
                }
            }
        }
    }

    /// Whether a log has recorded the signature; says when, if the log vouches for the time.
    fn logged(&self, candidate: &Candidate, spki: &[u8]) -> Result<Option<SystemTime>, LogError> {
        let mut refusal = LogError::Missing;
        for entry in &candidate.entries {
            match entry.verify(&self.log_keys, &candidate.recorded, &candidate.signature, spki) {
                Ok(time) => return Ok(time),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }
}

/// Why a sigstore signature does not convince.
#[derive(Debug, thiserror::Error)]
pub enum SigstoreError {
    #[error("it has no annotation {0}")]
    NoAnnotation(&'static str),
    #[error("its annotation {0} is not of the expected form")]
    Annotation(&'static str),
    #[error(transparent)]
    Payload(#[from] PayloadError),
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("it is for another image, {0}")]
    Digest(String),
    #[error("it names the image {0:?}, which the policy's signedIdentity doesn't accept here")]
    Identity(String),
    #[error("it names no image, while the policy asks for a signedIdentity")]
    Nameless,
    #[error("it is not by a key that the policy trusts")]
    Signature,
    #[error("it has no certificate")]
    NoCertificate,
}

const BUNDLE_TYPE: &str = "application/vnd.dev.sigstore.bundle.v0.3+json";
const BUNDLE_FAMILY: &str = "application/vnd.dev.sigstore.bundle";
const EMPTY_TYPE: &str = "application/vnd.oci.empty.v1+json";
const MAX_SIGNATURES: usize = 128;
/// Bounds one payload or bundle; a bundle with a certificate and a log entry has some 10 KiB.
const MAX_BLOB: usize = 1 << 20;

#[cfg(test)]
mod tests;
