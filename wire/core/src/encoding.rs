//! Base64 members of JSON documents: secret ones are wiped, and no error repeats what it could not decode.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use zeroize::Zeroizing;

/// Decodes standard base64 with padding.
pub(crate) fn standard(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    STANDARD.decode(text).ok().map(Zeroizing::new)
}

/// Encodes standard base64 with padding.
pub(crate) fn to_standard(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Decodes base64url without padding.
pub(crate) fn url(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

/// Encodes base64url without padding.
pub(crate) fn to_url(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}
