//! Why work on an image failed.

use std::io;
use std::path::PathBuf;

use wire::layer;

use crate::{kek, signing_key};

/// Why an image was not read, encrypted or signed.
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
    /// The key encryption key can't be read or made.
    #[error(transparent)]
    Key(#[from] kek::Error),
    /// A recipient's public key can't be used.
    #[error("recipient {path}: {cause}; next: give a public key in PEM, RSA of 2048 bits or more or EC on P-256")]
    Recipient {
        /// Its file.
        path: PathBuf,
        /// What is wrong with it.
        cause: String,
    },
    /// The signing key can't be read, made or used.
    #[error(transparent)]
    SigningKey(#[from] signing_key::Error),
    /// The signature could not be made.
    #[error("sign: the library failed; next: try again")]
    Signature,
    /// What the signature is to name is no repository.
    #[error(
        "reference {0:?}: it is not REGISTRY/REPOSITORY[:TAG]; next: give --reference as guests will name the image"
    )]
    Reference(String),
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
