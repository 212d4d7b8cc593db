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
mod identity;
mod lookaside;
mod policy;
mod scope;
mod sources;

pub use check::{Accepted, Verdict};
pub use error::{Error, Failure, Refusal, Unmet};
pub use policy::Policy;
pub use sources::{Document, Image, SignatureSources, SourceError};
