//! Keys and secrets in a hardware security module, through PKCS#11.
//!
//! Every call blocks until the module has answered, and a module may lie across a network: call from a thread that
//! may block.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod error;
mod master_key;
mod objects;
mod sessions;
mod settings;
mod wrapping;

pub use error::Error;
pub use master_key::MASTER_KEY_LEN;
pub use objects::MAX_OBJECT;
pub use sessions::MAX_SESSIONS;
use sessions::Sessions;
pub use settings::{HsmSettings, Pin, Token};
pub use wrapping::{MAX_WRAPPED, RsaMechanism};

/// A token that this process is logged in to. It logs in again when the token or the way to it was lost for a while.
pub struct Hsm {
    sessions: Sessions,
}

impl Hsm {
    /// Loads the module, finds the token and logs in.
    ///
    /// # Errors
    /// [`Error::Module`], [`Error::NoToken`], [`Error::PinFile`], [`Error::PinRefused`], [`Error::Failed`].
    pub fn open(settings: HsmSettings) -> Result<Self, Error> {
        Ok(Self { sessions: Sessions::open(settings)? })
    }
}
