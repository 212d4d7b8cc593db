//! Initdata: what a pod's owner fixes before the guest boots, and how its digest binds it to the hardware.
//!
//! The owner writes a TOML document; the host carries it on a small disk and puts its digest in a register
//! that only the TEE can set (SEV-SNP `HOST_DATA`, TDX `MRCONFIGID`). The guest trusts the document because
//! the digest matches, so nothing here may depend on how the host chose to encode it.
//!
//! Source: CoCo initdata specification 0.1.0; disk layout as read by Kata's agent.

use std::collections::BTreeMap;
use std::io::{self, Read, Write};

use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use serde::Deserialize;
use sha2::{Digest as _, Sha256, Sha384, Sha512};

/// An initdata document together with the exact bytes it was parsed from.
///
/// The digest covers those bytes, not the parsed form, so a document is never re-serialised.
#[derive(Clone, Debug, PartialEq)]
pub struct InitData {
    text: String,
    document: Document,
}

impl InitData {
    /// Parses a TOML document of version 0.1.0.
    ///
    /// # Errors
    /// [`Error::Document`] for anything that is not such a document, unknown keys included.
    pub fn parse(text: String) -> Result<Self, Error> {
        let document: Document = toml::from_str(&text).map_err(|e| Error::Document(e.message().to_owned()))?;
        if document.version != VERSION {
            return Err(Error::Document(format!("version is {:?}, expected {VERSION:?}", document.version)));
        }
        Ok(Self { text, document })
    }

    /// Reads the document from the head of an initdata disk.
    ///
    /// Reads at most [`MAX_COMPRESSED`] bytes and inflates to at most [`MAX_TEXT`], whatever the disk claims.
    ///
    /// # Errors
    /// [`Error::NotInitData`] if the magic is missing, so that a scan over disks can go on;
    /// [`Error::TooLarge`], [`Error::Io`] or [`Error::Document`] otherwise.
    pub fn from_disk(mut disk: impl Read) -> Result<Self, Error> {
        let mut head = [0; 16];
        disk.read_exact(&mut head)?;
        let (magic, length) = head.split_at(8);
        if magic != MAGIC {
            return Err(Error::NotInitData);
        }
        let length = u64::from_le_bytes(length.try_into().expect("the head's second half is 8 bytes"));
        if length > MAX_COMPRESSED {
            return Err(Error::TooLarge { what: "compressed initdata", limit: MAX_COMPRESSED });
        }

        let mut text = String::new();
        let mut inflated = GzDecoder::new(disk.take(length)).take(MAX_TEXT + 1);
        inflated.read_to_string(&mut text)?;
        if text.len() as u64 > MAX_TEXT {
            return Err(Error::TooLarge { what: "initdata", limit: MAX_TEXT });
        }
        Self::parse(text)
    }

    /// Writes the document as a disk image, padded to whole 512-byte sectors.
    pub fn write_disk(&self, mut disk: impl Write) -> io::Result<()> {
        let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
        compressed.write_all(self.text.as_bytes())?;
        let compressed = compressed.finish()?;

        disk.write_all(MAGIC)?;
        disk.write_all(&(compressed.len() as u64).to_le_bytes())?;
        disk.write_all(&compressed)?;
        let padding =
            (MAGIC.len() + 8 + compressed.len()).next_multiple_of(SECTOR) - (MAGIC.len() + 8 + compressed.len());
        disk.write_all(&[0; SECTOR][..padding])
    }

    /// The digest of the document's bytes under its own algorithm: 32, 48 or 64 bytes.
    pub fn digest(&self) -> Vec<u8> {
        match self.document.algorithm {
            Algorithm::Sha256 => Sha256::digest(&self.text).to_vec(),
            Algorithm::Sha384 => Sha384::digest(&self.text).to_vec(),
            Algorithm::Sha512 => Sha512::digest(&self.text).to_vec(),
        }
    }

    /// The digest as a TEE register of `width` bytes holds it: cut off or padded with zeros on the right.
    pub fn register(&self, width: usize) -> Vec<u8> {
        let mut register = self.digest();
        register.resize(width, 0);
        register
    }

    /// The exact text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// One entry of the `[data]` table, such as `policy.rego`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.document.data.get(name).map(String::as_str)
    }
}

/// Why initdata was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("not an initdata disk")]
    NotInitData,
    #[error("{what} is larger than {limit} bytes")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("initdata is not a valid document: {0}")]
    Document(String),
    #[error("initdata can't be read: {0}")]
    Io(#[from] io::Error),
}

#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(deny_unknown_fields)]
struct Document {
    version: String,
    algorithm: Algorithm,
    data: BTreeMap<String, String>,
}

#[derive(Clone, Copy, Debug, Deserialize, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Algorithm {
    Sha256,
    Sha384,
    Sha512,
}

const VERSION: &str = "0.1.0";
const MAGIC: &[u8; 8] = b"initdata";
const SECTOR: usize = 512;
/// Kubernetes caps all annotations of a pod at 256 KiB; the compressed form must fit there.
const MAX_COMPRESSED: u64 = 256 << 10;
/// Bounds what a hostile host can make the guest hold in memory.
const MAX_TEXT: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DOCUMENT: &str =
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = \"package agent_policy\"\n";

    #[test]
    fn the_digest_covers_the_exact_bytes() {
        let spaced = InitData::parse(format!("{DOCUMENT}\n")).unwrap();
        let original = InitData::parse(DOCUMENT.to_owned()).unwrap();
        assert_eq!(original.get("policy.rego"), spaced.get("policy.rego"));
        assert_ne!(original.digest(), spaced.digest());
    }

    #[test]
    fn a_register_is_padded_or_cut_on_the_right() {
        let initdata = InitData::parse(DOCUMENT.to_owned()).unwrap();
        let digest = initdata.digest();
        assert_eq!(initdata.register(48), [&digest[..], &[0; 16]].concat());
        assert_eq!(initdata.register(20), digest[..20]);
    }

    #[test]
    fn what_is_not_a_document_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "version"),
            ("version = \"0.2.0\"\nalgorithm = \"sha256\"\n[data]\n", "expected \"0.1.0\""),
            ("version = \"0.1.0\"\nalgorithm = \"md5\"\n[data]\n", "md5"),
            ("version = \"0.1.0\"\nalgorithm = \"sha256\"\nextra = 1\n[data]\n", "extra"),
        ] {
            let error = InitData::parse(text.to_owned()).unwrap_err().to_string();
            assert!(error.contains(reason), "{text:?} gave {error:?}");
        }
    }

    #[test]
    fn a_gzip_bomb_stops_at_the_limit() {
        let mut compressed = GzEncoder::new(Vec::new(), Compression::best());
        compressed.write_all(&vec![b' '; 8 << 20]).unwrap();
        let compressed = compressed.finish().unwrap();
        let disk = [&MAGIC[..], &(compressed.len() as u64).to_le_bytes(), &compressed].concat();
        assert!(matches!(InitData::from_disk(&disk[..]), Err(Error::TooLarge { .. })));
    }

    proptest! {
        #[test]
        fn any_document_survives_the_disk(policy in "[ -~]{0,2000}") {
            let text = format!("version = \"0.1.0\"\nalgorithm = \"sha384\"\n[data]\n\"policy.rego\" = {}\n", toml::Value::from(policy));
            let initdata = InitData::parse(text).unwrap();
            let mut disk = Vec::new();
            initdata.write_disk(&mut disk).unwrap();
            prop_assert_eq!(disk.len() % SECTOR, 0);
            prop_assert_eq!(InitData::from_disk(&disk[..]).unwrap(), initdata);
        }

        #[test]
        fn no_disk_makes_it_panic(disk in proptest::collection::vec(any::<u8>(), 0..600)) {
            let _ = InitData::from_disk(&disk[..]);
        }
    }
}
