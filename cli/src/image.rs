//! Image encryption: an OCI layout in, the same image with encrypted layers out.
//!
//! Each layer gets a random key of its own, which is wrapped with the owner's key encryption key and travels in the
//! layer's annotations. Trustee hands the key encryption key to guests that its policy admits, by the name `key_id`.
//! The image's configuration, and with it the diff ids that a guest checks in the end, stay as they are.
//!
//! Source: ocicrypt's `AES_256_CTR_HMAC_SHA256` and CoCo's annotation packet, as [`wire::layer`] writes them.

mod layout;

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use oci_spec::image::{Descriptor, ImageIndex, ImageManifest, MediaType};
use serde::Serialize;
use wire::layer::{self, AnnotationPacket, Encryptor, PROVIDER, PROVIDER_ANNOTATION_PREFIX, PUBLIC_OPTIONS_ANNOTATION};
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use layout::{Layout, Writer};

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

    let key = match options.generate_key {
        true => generate_key(&options.key_file)?,
        false => read_key(&options.key_file)?,
    };
    let outcome = write(&source, &image, &key, &key_id, &options);
    if outcome.is_err() && options.generate_key {
        fs::remove_file(&options.key_file).ok();
    }
    outcome
}

fn write(
    source: &Layout,
    image: &Descriptor,
    key: &[u8; 32],
    key_id: &ResourceUri,
    options: &EncryptOptions,
) -> Result<EncryptReport, Error> {
    let mut encryption = Encryption {
        source,
        writer: Writer::create(&options.destination)?,
        key,
        key_id,
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
    key: &'a [u8; 32],
    key_id: &'a ResourceUri,
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
        let packet = AnnotationPacket::wrap(self.key, self.key_id, &private.to_json())?.to_json()?;

        self.layers.push(EncryptedLayer {
            index,
            source_digest: layer.digest().to_string(),
            digest: digest.to_string(),
            size: layer.size(),
        });
        let mut annotations: HashMap<_, _> = layer.annotations().clone().unwrap_or_default();
        annotations.insert(PUBLIC_OPTIONS_ANNOTATION.to_owned(), public.to_annotation());
        annotations.insert(format!("{PROVIDER_ANNOTATION_PREFIX}{PROVIDER}"), STANDARD.encode(packet));
        layer.set_media_type(MediaType::from(format!("{media_type}{ENCRYPTED}").as_str()));
        layer.set_digest(digest);
        layer.set_annotations(Some(annotations));
        // Either would lead to the plain bytes.
        layer.set_urls(None);
        layer.set_data(None);
        Ok(())
    }
}

fn read_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    let failed = |cause: String| Error::Key { path: path.to_owned(), cause };
    let file = File::open(path).map_err(|e| failed(e.to_string()))?;
    // Room for one byte too many, so that the buffer never grows and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(64));
    file.take(33).read_to_end(&mut bytes).map_err(|e| failed(e.to_string()))?;
    let key: [u8; 32] =
        bytes.as_slice().try_into().map_err(|_| failed("it does not hold exactly 32 bytes".to_owned()))?;
    Ok(Zeroizing::new(key))
}

fn generate_key(path: &Path) -> Result<Zeroizing<[u8; 32]>, Error> {
    let failed = |cause: String| Error::Key { path: path.to_owned(), cause };
    let mut key = Zeroizing::new([0; 32]);
    aws_lc_rs::rand::fill(&mut *key).map_err(|_| failed("the system has no random numbers".to_owned()))?;
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let written = file.and_then(|mut file| file.write_all(&*key));
    written.map_err(|e| failed(e.to_string()))?;
    Ok(key)
}

/// Why an image was not encrypted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The source is not an OCI layout, or a damaged one.
    #[error(
        "read the image {path}: {cause}; next: make an OCI layout, for example with `skopeo copy IMAGE oci:DIR:TAG`"
    )]
    Source {
        /// The layout's folder.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The layout holds several images, or not the one that was asked for.
    #[error("choose an image of {path}: {cause}; next: name one as oci:DIR:TAG, it has: {}", tags.join(", "))]
    Choice {
        /// The layout's folder.
        path: PathBuf,
        /// What is wrong with the choice.
        cause: String,
        /// The tags there are.
        tags: Vec<String>,
    },
    /// A blob is missing or damaged.
    #[error("read the blob {digest}: {cause}; next: copy the image into the layout again")]
    Blob {
        /// The blob.
        digest: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The key file can't be read or made.
    #[error("key file {path}: {cause}; next: give a file of 32 random bytes, or a new file name with --generate-key")]
    Key {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The key's name is not a resource.
    #[error("key id: {cause}; next: correct --key-id")]
    KeyId {
        /// As it was given.
        id: String,
        /// What is wrong with it.
        cause: String,
    },
    /// A chosen layer does not exist.
    #[error("choose layers: there is no layer {index}, for the image has {count}, counted from 0; next: choose others")]
    NoSuchLayer {
        /// The layer.
        index: usize,
        /// How many there are.
        count: usize,
    },
    /// A chosen layer is encrypted.
    #[error("encrypt layer {0}: it is encrypted already; next: start from the plain image, or choose other layers")]
    AlreadyEncrypted(usize),
    /// A chosen layer is no filesystem layer.
    #[error(
        "encrypt layer {index}: its type {media_type:?} is not a container image's layer; next: choose other layers"
    )]
    NotALayer {
        /// The layer.
        index: usize,
        /// Its type.
        media_type: String,
    },
    /// The destination is there.
    #[error("write the image {0}: it exists already; next: remove it or choose another folder")]
    DestinationExists(PathBuf),
    /// The destination can't be written.
    #[error("write the image {path}: {source}; next: check the folder's permissions and space")]
    Write {
        /// What was being written.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The cipher failed.
    #[error("encrypt: {0}; next: try again, and report it if it stays")]
    Cipher(#[from] layer::Error),
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

const ENCRYPTED: &str = "+encrypted";

#[cfg(test)]
mod tests;
