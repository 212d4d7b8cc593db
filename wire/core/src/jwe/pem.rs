//! Private keys as text (RFC 7468).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::error::Error;
use crate::encoding;

/// What a PEM holds.
#[derive(Clone, Copy)]
pub(super) enum Label {
    /// PKCS#8.
    PrivateKey,
    /// PKCS#1.
    RsaPrivateKey,
}

impl Label {
    /// The one that `pem` starts with.
    pub fn of(pem: &str) -> Result<Self, Error> {
        let found =
            [Self::PrivateKey, Self::RsaPrivateKey].into_iter().find(|label| pem.trim().starts_with(label.head()));
        found.ok_or(Error::Key("it is not a PEM of a PKCS#8 or PKCS#1 private key"))
    }

    pub fn decode(self, pem: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        let body = pem.trim().strip_prefix(self.head()).and_then(|rest| rest.strip_suffix(self.tail()));
        let body = body.ok_or(Error::Key("its PEM has no end"))?;
        let body: Zeroizing<String> = Zeroizing::new(body.split_ascii_whitespace().collect());
        encoding::standard(&body).ok_or(Error::Key("its PEM is not base64"))
    }

    pub fn encode(self, der: &[u8]) -> Zeroizing<String> {
        let body = Zeroizing::new(STANDARD.encode(der));
        // All at once: a text that grows leaves its beginnings in memory.
        let mut pem = Zeroizing::new(String::with_capacity(body.len() + body.len() / LINE + 80));
        pem.push_str(self.head());
        pem.push('\n');
        // Base64 is ASCII, so that every so many bytes are a line.
        for line in body.as_bytes().chunks(LINE) {
            pem.push_str(&String::from_utf8_lossy(line));
            pem.push('\n');
        }
        pem.push_str(self.tail());
        pem.push('\n');
        pem
    }

    fn head(self) -> &'static str {
        match self {
            Self::PrivateKey => "-----BEGIN PRIVATE KEY-----",
            Self::RsaPrivateKey => "-----BEGIN RSA PRIVATE KEY-----",
        }
    }

    fn tail(self) -> &'static str {
        match self {
            Self::PrivateKey => "-----END PRIVATE KEY-----",
            Self::RsaPrivateKey => "-----END RSA PRIVATE KEY-----",
        }
    }
}

const LINE: usize = 64;
