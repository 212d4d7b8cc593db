//! Work on container images in OCI layouts: encrypt, sign, inspect.

mod encrypt;
mod error;
mod inspect;
mod layout;
mod recipient;
mod sign;

pub use encrypt::{EncryptOptions, EncryptReport, EncryptedLayer, encrypt};
pub use error::Error;
pub use inspect::{ImageReport, Inspection, LayerReport, ManifestReport, SignatureReport, inspect};
pub use sign::{SignOptions, SignReport, sign};

#[cfg(test)]
mod lab;
