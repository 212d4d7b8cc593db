//! Who must have signed an image: the containers policy, simple signing and sigstore.
//!
//! [`Policy::parse`] reads a `containers-policy.json(5)`; [`Policy::check`] decides about one image by it. What a
//! decision needs from outside (keys, signatures) comes through [`SignatureSources`], so that nothing here speaks to
//! a network. All that comes through it is untrusted but what [`SignatureSources::document`] gives.
//!
//! Times are compared with the clock that the caller gives. A guest's clock is set by its host, so that the expiry of
//! a key restrains signers and not the host.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod check;
mod error;
#[cfg(test)]
mod fixture;
mod identity;
mod key;
mod lookaside;
mod openpgp;
mod payload;
mod policy;
mod scope;
mod sigstore;
mod simple;
mod sources;

pub use check::{Accepted, Verdict};
pub use error::{Error, Failure, Refusal, Unmet};
pub use openpgp::OpenPgpError;
pub use payload::PayloadError;
pub use policy::Policy;
pub use sigstore::{BundleError, CertificateError, LogError, SigstoreError};
pub use simple::SimpleError;
pub use sources::{Document, Image, SignatureSources, SourceError};
