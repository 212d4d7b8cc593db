//! Image signatures as cosign makes them with a key: kept in the layout beside the image, under the tag
//! `sha256-<digest>.sig`.
//!
//! A signature is a manifest whose layers are simple-signing payloads in JSON, each with its signature in an annotation.
//! It names the digest of what was signed, and where the image is going to be.

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageManifest, MediaType};
use serde::Serialize;
use serde_json::json;

use super::Error;
use super::layout::{self, Layout};
use crate::signing_key::SigningKey;

/// What to sign, and with which key.
#[derive(Clone, Debug)]
pub struct SignOptions {
    /// An OCI layout: `DIR`, `oci:DIR` or `oci:DIR:TAG`. Without a tag, its only image.
    pub source: String,
    /// The private key: P-256 in PEM.
    pub key_file: PathBuf,
    /// Make the key and write it to `key_file`, and its public half to `key_file` with `.pub`.
    pub generate_key: bool,
    /// What the signature says the image is: `REGISTRY/REPOSITORY[:TAG]`.
    pub reference: String,
}

/// What was signed.
#[derive(Clone, Debug, Serialize)]
pub struct SignReport {
    /// The digest of the manifest or index that was signed.
    pub digest: String,
    /// The layout's tag that has the signature, to be copied beside the image.
    pub tag: String,
    /// What the signature says the image is.
    pub reference: String,
    /// How many signatures the image has now.
    pub signatures: usize,
}

/// Signs an image. Signatures by other keys stay; an older one by the same key for the same reference is replaced.
///
/// # Errors
/// [`Error`], one variant a cause.
pub fn sign(options: &SignOptions) -> Result<SignReport, Error> {
    if !is_reference(&options.reference) {
        return Err(Error::Reference(options.reference.clone()));
    }
    let layout = Layout::open(&options.source)?;
    let image = layout.image()?;
    let key = match options.generate_key {
        true => SigningKey::create(&options.key_file)?,
        false => SigningKey::read(&options.key_file)?,
    };

    let payload = layout::json(&json!({
        "critical": {
            "identity": { "docker-reference": options.reference },
            "image": { "docker-manifest-digest": image.digest().to_string() },
            "type": PAYLOAD_KIND,
        },
        "optional": null,
    }))?;
    let signature = key.sign(&payload).map_err(|_| Error::Signature)?;
    let tag = layout::signature_tag(image.digest());
    let mut layers = match layout.tagged(&tag) {
        Some(existing) => Signatures::read(&layout, existing)?,
        None => Vec::new(),
    };
    let (digest, size) = layout.add(&payload)?;
    layers
        .retain(|layer| layer.digest() != &digest || !signature_of(layer).is_some_and(|old| key.made(&payload, &old)));
    let mut layer = Descriptor::new(MediaType::from(PAYLOAD_TYPE), size, digest);
    layer.set_annotations(Some(HashMap::from([(SIGNATURE.to_owned(), STANDARD.encode(signature))])));
    layers.push(layer);

    let signatures = layers.len();
    Signatures::write(&layout, &tag, layers)?;
    Ok(SignReport { digest: image.digest().to_string(), tag, reference: options.reference.clone(), signatures })
}

/// The manifest that has an image's signatures as its layers.
pub(super) struct Signatures;

impl Signatures {
    /// The payloads' descriptors.
    pub(super) fn read(layout: &Layout, manifest: &Descriptor) -> Result<Vec<Descriptor>, Error> {
        let bytes = layout.document(manifest)?;
        let manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(|e| Error::Source {
            path: layout.path().to_owned(),
            cause: format!("{} is no manifest of signatures: {e}", manifest.digest()),
        })?;
        Ok(manifest.layers().clone())
    }

    fn write(layout: &Layout, tag: &str, layers: Vec<Descriptor>) -> Result<(), Error> {
        let layer_ids: Vec<_> = layers.iter().map(|layer| layer.digest().to_string()).collect();
        // What registries ask of an image's configuration, and nothing else.
        let config = json!({
            "architecture": "", "os": "", "config": {}, "rootfs": { "type": "layers", "diff_ids": layer_ids },
        });
        let (digest, size) = layout.add(&layout::json(&config)?)?;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": MediaType::ImageManifest,
            "config": Descriptor::new(MediaType::ImageConfig, size, digest),
            "layers": layers,
        });
        let (digest, size) = layout.add(&layout::json(&manifest)?)?;
        layout.set_tag(tag, &Descriptor::new(MediaType::ImageManifest, size, digest))
    }
}

/// The signature in DER.
pub(super) fn signature_of(layer: &Descriptor) -> Option<Vec<u8>> {
    STANDARD.decode(layer.annotations().as_ref()?.get(SIGNATURE)?).ok()
}

/// A registry and a repository, without a digest: the payload has that.
fn is_reference(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b':' | b'/' | b'[' | b']');
    let (host, repository) = text.split_once('/').unwrap_or_default();
    let parts = repository.split('/').all(|part| !part.is_empty() && !part.starts_with(['.', ':']));
    !host.is_empty() && parts && text.len() <= 512 && text.bytes().all(plain)
}

impl fmt::Display for SignReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "image {}", self.digest)?;
        writeln!(f, "signed for {}", self.reference)?;
        write!(f, "signature {} ({} in all)", self.tag, self.signatures)
    }
}

const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const PAYLOAD_KIND: &str = "cosign container image signature";
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reference_has_a_registry_and_a_repository() {
        for good in ["r/a", "r:5000/a/b:v1", "[::1]:5000/a", "registry.example/team/app"] {
            assert!(is_reference(good), "{good}");
        }
        for bad in ["", "app", "/app", "r/", "r//a", "r/a@sha256:00", "r/a b", "r/../b", "r/:v1", "r/\u{fc}"] {
            assert!(!is_reference(bad), "{bad}");
        }
    }
}
