//! The canonical form of a request, which AWS and Alibaba Cloud both sign.

use aws_lc_rs::{digest, hmac};

use crate::error::Error;

/// A request in the form that is hashed and signed, and the names of the headers in it.
pub(crate) struct Canonical {
    hash: String,
    pub(crate) signed_headers: String,
}

impl Canonical {
    /// `query` must be sorted and percent-encoded already; `headers` have lower-case names.
    pub(crate) fn new(method: &str, path: &str, query: &str, headers: &[(&str, &str)], payload_hash: &str) -> Self {
        let mut headers = headers.to_vec();
        headers.sort_unstable();
        let mut lines = String::new();
        for (name, value) in &headers {
            lines.extend([name, ":", value.trim(), "\n"]);
        }
        let names: Vec<&str> = headers.iter().map(|(name, _)| *name).collect();
        let signed_headers = names.join(";");
        let request = format!("{method}\n{path}\n{query}\n{lines}\n{signed_headers}\n{payload_hash}");
        Self { hash: sha256(request.as_bytes()), signed_headers }
    }

    /// The SHA-256 of the canonical request, in hexadecimal digits.
    pub(crate) fn hash(&self) -> &str {
        &self.hash
    }
}

/// SHA-256 in small hexadecimal digits.
pub(crate) fn sha256(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

/// HMAC-SHA-256.
pub(crate) fn hmac_sha256(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

/// 32 hexadecimal digits that no one has used before.
pub(crate) fn random_id() -> Result<String, Error> {
    let mut id = [0; 16];
    let failed = |_| Error::Unavailable { service: "the random generator".to_owned(), cause: "it failed".to_owned() };
    aws_lc_rs::rand::fill(&mut id).map_err(failed)?;
    Ok(hex::encode(id))
}
