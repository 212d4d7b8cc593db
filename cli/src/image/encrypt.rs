//! Image encryption: an OCI layout in, the same image with encrypted layers out.
//!
//! Each layer gets a random key of its own, which is wrapped with the owner's key encryption key and travels in the
//! layer's annotations. Trustee hands the key encryption key to guests that its policy admits, by the name `key_id`.
//! The image's configuration, and with it the diff ids that a guest checks in the end, stay as they are.
//!
//! Source: ocicrypt's `AES_256_CTR_HMAC_SHA256` and CoCo's annotation packet, as [`wire::layer`] writes them.

use std::collections::HashMap;
use std::fmt;
use std::fs;
use std::path::PathBuf;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Serialize;
use wire::layer::{AnnotationPacket, Encryptor, PROVIDER, PROVIDER_ANNOTATION_PREFIX, PUBLIC_OPTIONS_ANNOTATION};
use wire::resource::ResourceUri;

use super::Error;
use super::layout::{self, ENCRYPTED, Layout, Writer};
use super::recipient::{JWE_ANNOTATION, Recipient};
use crate::kek::Kek;

/// What to encrypt, and with which key.
#[derive(Clone, Debug)]
pub struct EncryptOptions {
    /// An OCI layout: `DIR`, `oci:DIR` or `oci:DIR:TAG`. Without a tag, its only image.
    pub source: String,
    /// The folder of the new layout. It must not exist.
    pub destination: PathBuf,
    /// The key encryption key: 32 bytes.
    pub key_file: PathBuf,
    /// Make the key and write it to `key_file`, which must not exist then.
    pub generate_key: bool,
    /// The name under which Trustee serves the key, such as `kbs:///default/key/app`.
    pub key_id: String,
    /// The layers to encrypt, 0 is the bottom. All of them if empty.
    pub layers: Vec<usize>,
    /// Public keys in PEM whose holders can decrypt the layers too, without Trustee.
    pub recipients: Vec<PathBuf>,
}

/// What was encrypted.
#[derive(Clone, Debug, Serialize)]
pub struct EncryptReport {
    /// The digest of the manifest or index that was read.
    pub source_digest: String,
    /// The digest of what was written in its place.
    pub digest: String,
    /// The layers that were encrypted, in the order of the manifests.
    pub layers: Vec<EncryptedLayer>,
    /// Attestations of the plain image that were left out: they describe an image that no longer exists.
    pub left_out: Vec<String>,
}

/// One layer before and after.
#[derive(Clone, Debug, Serialize)]
pub struct EncryptedLayer {
    /// Its place in the manifest.
    pub index: usize,
    /// The plain blob.
    pub source_digest: String,
    /// The encrypted blob.
    pub digest: String,
    /// The length of either.
    pub size: u64,
}

/// Encrypts an image.
///
/// The destination appears complete or not at all. Memory does not depend on the image's size.
///
/// # Errors
/// [`Error`], one variant a cause. A key that was generated for nothing is removed again.
pub fn encrypt(options: EncryptOptions) -> Result<EncryptReport, Error> {
    let key_id: ResourceUri =
        options.key_id.parse().map_err(|e| Error::KeyId { id: options.key_id.clone(), cause: format!("{e}") })?;
    if options.destination.symlink_metadata().is_ok() {
        return Err(Error::DestinationExists(options.destination));
    }
    let source = Layout::open(&options.source)?;
    let image = source.image()?;
    let recipients = options.recipients.iter().map(|path| Recipient::read(path)).collect::<Result<_, _>>()?;

    let key = match options.generate_key {
        true => Kek::create(&options.key_file)?,
        false => Kek::read(&options.key_file)?,
    };
    let outcome = write(&source, &image, (&key, &key_id, recipients), &options);
    if outcome.is_err() && options.generate_key {
        fs::remove_file(&options.key_file).ok();
    }
    outcome
}

fn write(
    source: &Layout,
    image: &Descriptor,
    (key, key_id, recipients): (&Kek, &ResourceUri, Vec<Recipient>),
    options: &EncryptOptions,
) -> Result<EncryptReport, Error> {
    let mut encryption = Encryption {
        source,
        writer: Writer::create(&options.destination)?,
        key,
        key_id,
        recipients,
        wanted: &options.layers,
        layers: Vec::new(),
        left_out: Vec::new(),
    };
    let written = encryption.tree(image)?;
    let report = EncryptReport {
        source_digest: image.digest().to_string(),
        digest: written.digest().to_string(),
        layers: encryption.layers,
        left_out: encryption.left_out,
    };
    encryption.writer.finish(written)?;
    Ok(report)
}

struct Encryption<'a> {
    source: &'a Layout,
    writer: Writer,
    key: &'a Kek,
    key_id: &'a ResourceUri,
    recipients: Vec<Recipient>,
    wanted: &'a [usize],
    layers: Vec<EncryptedLayer>,
    left_out: Vec<String>,
}

impl Encryption<'_> {
    /// Rewrites a manifest, or an index with its manifests.
    fn tree(&mut self, descriptor: &Descriptor) -> Result<Descriptor, Error> {
        let bytes = self.source.document(descriptor)?;
        let malformed = |e: serde_json::Error| Error::Source {
            path: self.source.path().to_owned(),
            cause: format!("{} is not what its media type says: {e}", descriptor.digest()),
        };
        let rewritten = match layout::is_index(descriptor) {
            true => {
                let mut index: ImageIndex = serde_json::from_slice(&bytes).map_err(malformed)?;
                let (attestations, images): (Vec<_>, Vec<_>) =
                    index.manifests().iter().cloned().partition(layout::is_attestation);
                self.left_out.extend(attestations.iter().map(|entry| entry.digest().to_string()));
                index.set_manifests(images.iter().map(|image| self.tree(image)).collect::<Result<_, _>>()?);
                layout::json(&index)?
            }
            false => {
                let mut manifest: ImageManifest = serde_json::from_slice(&bytes).map_err(malformed)?;
                self.manifest(&mut manifest)?;
                layout::json(&manifest)?
            }
        };
        let mut written = descriptor.clone();
        let (digest, size) = self.writer.document(&rewritten)?;
        written.set_digest(digest);
        written.set_size(size);
        Ok(written)
    }

    fn manifest(&mut self, manifest: &mut ImageManifest) -> Result<(), Error> {
        let count = manifest.layers().len();
        if let Some(index) = self.wanted.iter().find(|index| **index >= count) {
            return Err(Error::NoSuchLayer { index: *index, count });
        }
        self.writer.copy(self.source, manifest.config())?;
        for (index, layer) in manifest.layers_mut().iter_mut().enumerate() {
            if self.wanted.is_empty() || self.wanted.contains(&index) {
                self.layer(index, layer)?;
            } else {
                self.writer.copy(self.source, layer)?;
            }
        }
        Ok(())
    }

    fn layer(&mut self, index: usize, layer: &mut Descriptor) -> Result<(), Error> {
        let media_type = layer.media_type().as_ref().to_owned();
        if media_type.ends_with(ENCRYPTED) {
            return Err(Error::AlreadyEncrypted(index));
        }
        if !layout::is_layer(&media_type) {
            return Err(Error::NotALayer { index, media_type });
        }

        let mut encryptor = Encryptor::new()?;
        let digest = self.writer.transformed(self.source, layer, |chunk| Ok(encryptor.update(chunk)?))?;
        let (private, public) = encryptor.finish(layer.digest().to_string());
        let options = private.to_json();
        let packet = AnnotationPacket::wrap(self.key.as_bytes(), self.key_id, &options)?.to_json()?;
        let sealed: Vec<_> = self.recipients.iter().map(|one| one.seal(&options)).collect::<Result<_, _>>()?;

        self.layers.push(EncryptedLayer {
            index,
            source_digest: layer.digest().to_string(),
            digest: digest.to_string(),
            size: layer.size(),
        });
        let mut annotations: HashMap<_, _> = layer.annotations().clone().unwrap_or_default();
        annotations.insert(PUBLIC_OPTIONS_ANNOTATION.to_owned(), public.to_annotation());
        annotations.insert(format!("{PROVIDER_ANNOTATION_PREFIX}{PROVIDER}"), STANDARD.encode(packet));
        if !sealed.is_empty() {
            annotations.insert(JWE_ANNOTATION.to_owned(), sealed.join(","));
        }
        layer.set_media_type(MediaType::from(format!("{media_type}{ENCRYPTED}").as_str()));
        layer.set_digest(digest);
        layer.set_annotations(Some(annotations));
        // Either would lead to the plain bytes.
        layer.set_urls(None);
        layer.set_data(None);
        Ok(())
    }
}

impl fmt::Display for EncryptReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "image {}", self.source_digest)?;
        writeln!(f, "   -> {}", self.digest)?;
        for layer in &self.layers {
            writeln!(f, "layer {} {} ({} bytes)", layer.index, layer.source_digest, layer.size)?;
            writeln!(f, "   -> {}", layer.digest)?;
        }
        for digest in &self.left_out {
            writeln!(f, "left out {digest}: an attestation of the plain image")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
