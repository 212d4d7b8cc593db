//! Why a hardware security module could not do what was asked.

use std::io;
use std::path::PathBuf;

use cryptoki::error::{Error as Cause, RvError};

/// Why a hardware security module could not do what was asked. No variant holds a PIN, a key or a secret.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("PKCS#11 module {}: {source}; next: check the path and what the module itself needs", path.display())]
    Module { path: PathBuf, source: Cause },
    #[error("the PKCS#11 module has {present} tokens and not the one {wanted}; next: check slot_index or the label")]
    NoToken { wanted: String, present: usize },
    #[error("PIN file {}: {source}; next: check the path and its permissions", path.display())]
    PinFile { path: PathBuf, source: io::Error },
    #[error("PIN file {} can be read by everyone; next: chmod 400 it", .0.display())]
    PinExposed(PathBuf),
    #[error(
        "the token refused the PIN ({0}), and it is not tried again; next: set the right one, before the token locks"
    )]
    PinRefused(RvError),
    #[error("all sessions with the token are busy; next: try again later")]
    Busy,
    #[error("the token has no {class} key with label \"{label}\"; next: make one, or correct the label")]
    NoKey { class: &'static str, label: String },
    #[error("the token does not give out the value of \"{0}\"; next: store it as an extractable secret")]
    Sensitive(String),
    #[error("{what} has {size} bytes, at most {limit} are possible")]
    TooLarge { what: &'static str, size: usize, limit: usize },
    #[error("the value is too long for the RSA key \"{0}\"; next: send less, or use a longer key")]
    TooLong(String),
    #[error("this was not wrapped by key \"{0}\" in this way")]
    NotWrapped(String),
    #[error("the token can't do {what} ({cause}); next: choose another mechanism, or another token")]
    Mechanism { what: &'static str, cause: RvError },
    #[error("wrapped key {}: {source}; next: check the path and its permissions", path.display())]
    WrappedFile { path: PathBuf, source: io::Error },
    #[error("{what}: {source}; next: check the hardware security module and its logs")]
    Failed { what: &'static str, source: Cause },
}

impl Error {
    /// Whether it may work later without anyone changing the request or the configuration.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Busy) || self.is_lost()
    }

    /// Whether the session is gone, so that a new login may help.
    pub(crate) fn is_lost(&self) -> bool {
        use RvError::{
            CryptokiNotInitialized, DeviceError, DeviceRemoved, SessionClosed, SessionHandleInvalid, SlotIdInvalid,
            TokenNotPresent, TokenNotRecognized, UserNotLoggedIn,
        };
        let Self::Failed { source: Cause::Pkcs11(code, _), .. } = self else { return false };
        matches!(
            code,
            CryptokiNotInitialized
                | DeviceError
                | DeviceRemoved
                | SessionClosed
                | SessionHandleInvalid
                | SlotIdInvalid
                | TokenNotPresent
                | TokenNotRecognized
                | UserNotLoggedIn
        )
    }
}

/// Says what was being done when the module failed.
pub(crate) fn doing(what: &'static str) -> impl Fn(Cause) -> Error {
    move |source| Error::Failed { what, source }
}
