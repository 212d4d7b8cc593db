//! What a stretch of a mapping is made of, and the line of text that the kernel takes for it.

use std::fmt;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use crate::{Error, SECTOR};

/// One stretch of a mapping.
#[derive(Clone, Debug)]
pub enum Target {
    /// dm-crypt
    Crypt(Crypt),
    /// dm-integrity
    Integrity(Integrity),
    /// dm-verity; to be opened read-only.
    Verity(Verity),
}

/// Encryption of sectors.
#[derive(Clone)]
pub struct Crypt {
    /// Where the ciphertext is; for a cipher with authentication a mapping of [`Integrity`], which keeps the tags.
    pub device: PathBuf,
    /// Where on the device it starts, in units of 512 bytes.
    pub offset: u64,
    /// How much of it there is, in units of 512 bytes.
    pub sectors: u64,
    /// Also fixes the key's length.
    pub cipher: Cipher,
    /// As long as the cipher demands: the cipher's own key first, then that of the authentication.
    pub key: Zeroizing<Vec<u8>>,
    /// What is encrypted at once: 512, 1024, 2048 or 4096 bytes.
    pub sector_size: u32,
}

/// What sectors are encrypted with. Each is numbered in units of 512 bytes, as LUKS2 does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Cipher {
    /// `aes-xts-plain64` with a key of 64 bytes: nobody reads it, but whoever writes the disk can make plaintext random.
    AesXts,
    /// The same with HMAC-SHA-256 over number and ciphertext, a key of 64 + 32 bytes: what is not intact reads as EIO.
    AesXtsHmacSha256,
}

/// Room for authentication tags beside the sectors they belong to, written together with them.
///
/// The kernel formats a device whose first 4 KiB at `offset` are zeros.
#[derive(Clone, Debug)]
pub struct Integrity {
    /// Where sectors and tags are.
    pub device: PathBuf,
    /// Where on the device it starts, in units of 512 bytes.
    pub offset: u64,
    /// What it provides, in units of 512 bytes: at most what its superblock says.
    pub sectors: u64,
    /// Bytes of a tag.
    pub tag_size: u32,
    /// What each tag is for, in bytes: 512, 1024, 2048 or 4096.
    pub block_size: u32,
    /// How sector and tag stay together.
    pub mode: IntegrityMode,
}

/// What a crash between the writes of a sector and its tag does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum IntegrityMode {
    /// Nothing: both go through a journal first, which halves the speed of writing.
    Journal,
    /// The sector is lost: for what does not outlive a crash anyway.
    Direct,
}

/// A hash tree over blocks: what does not lead to the root reads as EIO. SHA-256, format 1.
#[derive(Clone, Debug)]
pub struct Verity {
    /// Where the blocks are.
    pub data_device: PathBuf,
    /// Where the tree is, which may be the same device.
    pub hash_device: PathBuf,
    /// Bytes of a block: a power of two from 512 to 4096.
    pub data_block_size: u32,
    /// Bytes of a node of the tree: a power of two from 512 to 4096.
    pub hash_block_size: u32,
    /// Number of blocks.
    pub data_blocks: u64,
    /// Where on its device the tree starts, in nodes. That is behind the superblock, where there is one.
    pub hash_start_block: u64,
    /// The only thing that has to be trusted.
    pub root_hash: [u8; 32],
    /// At most 256 bytes, usually 32 or none.
    pub salt: Vec<u8>,
}

/// A target as the kernel takes it.
pub(crate) struct Row {
    pub(crate) kind: &'static str,
    pub(crate) sectors: u64,
    pub(crate) parameters: Zeroizing<String>,
}

impl Target {
    pub(crate) fn row(&self) -> Result<Row, Error> {
        let (kind, sectors, parameters) = match self {
            Self::Crypt(crypt) => ("crypt", crypt.sectors, crypt.parameters(&number(&crypt.device)?)?),
            Self::Integrity(integrity) => {
                ("integrity", integrity.sectors, integrity.parameters(&number(&integrity.device)?)?)
            }
            Self::Verity(verity) => {
                let devices = (number(&verity.data_device)?, number(&verity.hash_device)?);
                ("verity", verity.sectors()?, verity.parameters(&devices.0, &devices.1)?)
            }
        };
        if sectors == 0 {
            return Err(Error::Target { target: kind, reason: "a length of 0".to_owned() });
        }
        Ok(Row { kind, sectors, parameters: Zeroizing::new(parameters) })
    }
}

impl Crypt {
    fn parameters(&self, device: &str) -> Result<String, Error> {
        let wrong = |reason| Error::Target { target: "crypt", reason };
        if self.key.len() != self.cipher.key_length() {
            return Err(wrong(format!("a key of {} bytes, {} are needed", self.key.len(), self.cipher.key_length())));
        }
        check_block_size("crypt", self.sector_size)?;
        if !(self.sectors * SECTOR).is_multiple_of(self.sector_size.into()) {
            return Err(wrong(format!("{} half KiB in sectors of {} bytes", self.sectors, self.sector_size)));
        }
        // Written in place, so that no piece of the key stays behind in a buffer that has grown.
        let mut parameters = String::with_capacity(self.key.len() * 2 + 256);
        parameters.push_str(self.cipher.specification());
        parameters.push(' ');
        let mut digits = Zeroizing::new([0; MAX_KEY * 2]);
        let digits = &mut digits[..self.key.len() * 2];
        // Can't fail: the digits are twice as many as the bytes.
        let _ = hex::encode_to_slice(&*self.key, digits);
        parameters.extend(digits.iter().map(|digit| char::from(*digit)));
        let mut options = Vec::new();
        if let Cipher::AesXtsHmacSha256 = self.cipher {
            options.push(format!("integrity:{HMAC_SHA256}:aead"));
        }
        if self.sector_size != 512 {
            options.push(format!("sector_size:{}", self.sector_size));
        }
        parameters.push_str(&format!(" 0 {device} {}", self.offset));
        if !options.is_empty() {
            parameters.push_str(&format!(" {} {}", options.len(), options.join(" ")));
        }
        Ok(parameters)
    }
}

impl Cipher {
    /// Bytes of key.
    pub const fn key_length(self) -> usize {
        match self {
            Self::AesXts => 64,
            Self::AesXtsHmacSha256 => MAX_KEY,
        }
    }

    /// Bytes of the tag of a sector, 0 where there is none.
    pub const fn tag_length(self) -> u32 {
        match self {
            Self::AesXts => 0,
            Self::AesXtsHmacSha256 => HMAC_SHA256,
        }
    }

    fn specification(self) -> &'static str {
        match self {
            Self::AesXts => "aes-xts-plain64",
            Self::AesXtsHmacSha256 => "capi:authenc(hmac(sha256),xts(aes))-plain64",
        }
    }
}

impl fmt::Debug for Crypt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Crypt").field("device", &self.device).field("cipher", &self.cipher).finish_non_exhaustive()
    }
}

impl Integrity {
    fn parameters(&self, device: &str) -> Result<String, Error> {
        check_block_size("integrity", self.block_size)?;
        let Self { offset, tag_size, block_size, .. } = self;
        let place = format!("{device} {offset} {tag_size}");
        let options = format!("block_size:{block_size} fix_padding");
        Ok(match self.mode {
            IntegrityMode::Journal => format!("{place} J 2 {options}"),
            // What is formatted gets a journal in any case, up to 64 MiB of it unless it is to be as small as can be.
            IntegrityMode::Direct => format!("{place} D 3 {options} journal_sectors:8"),
        })
    }
}

impl Verity {
    fn sectors(&self) -> Result<u64, Error> {
        check_block_size("verity", self.data_block_size)?;
        check_block_size("verity", self.hash_block_size)?;
        let wrong = || Error::Target { target: "verity", reason: format!("{} blocks", self.data_blocks) };
        self.data_blocks.checked_mul(u64::from(self.data_block_size) / SECTOR).ok_or_else(wrong)
    }

    fn parameters(&self, data: &str, hashes: &str) -> Result<String, Error> {
        if self.salt.len() > MAX_SALT {
            return Err(Error::Target { target: "verity", reason: format!("a salt of {} bytes", self.salt.len()) });
        }
        let salt = if self.salt.is_empty() { "-".to_owned() } else { hex::encode(&self.salt) };
        let Self { data_block_size, hash_block_size, data_blocks, hash_start_block, .. } = self;
        let root = hex::encode(self.root_hash);
        Ok(format!(
            "1 {data} {hashes} {data_block_size} {hash_block_size} {data_blocks} {hash_start_block} sha256 {root} {salt}"
        ))
    }
}

fn check_block_size(target: &'static str, size: u32) -> Result<(), Error> {
    if [512, 1024, 2048, 4096].contains(&size) {
        Ok(())
    } else {
        Err(Error::Target { target, reason: format!("blocks of {size} bytes") })
    }
}

/// `major:minor`, which needs no escaping and can't come to mean another device.
fn number(path: &Path) -> Result<String, Error> {
    let metadata =
        std::fs::metadata(path).map_err(|cause| Error::Device { path: path.to_owned(), cause: Some(cause) })?;
    if !metadata.file_type().is_block_device() {
        return Err(Error::Device { path: path.to_owned(), cause: None });
    }
    let device = metadata.rdev();
    Ok(format!("{}:{}", libc::major(device), libc::minor(device)))
}

const MAX_KEY: usize = 64 + HMAC_SHA256 as usize;
/// Bytes of a tag, and of the key that makes it.
const HMAC_SHA256: u32 = 32;
const MAX_SALT: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    fn crypt(cipher: Cipher) -> Crypt {
        Crypt {
            device: "/dev/null".into(),
            offset: 32768,
            sectors: 16,
            cipher,
            key: Zeroizing::new(vec![0xab; cipher.key_length()]),
            sector_size: 4096,
        }
    }

    fn verity() -> Verity {
        Verity {
            data_device: "/dev/null".into(),
            hash_device: "/dev/null".into(),
            data_block_size: 4096,
            hash_block_size: 4096,
            data_blocks: 10,
            hash_start_block: 11,
            root_hash: [0x11; 32],
            salt: vec![],
        }
    }

    #[test]
    fn tables_are_as_the_kernel_documents_them() {
        let key = "ab".repeat(64);
        assert_eq!(
            crypt(Cipher::AesXts).parameters("254:0").unwrap(),
            format!("aes-xts-plain64 {key} 0 254:0 32768 1 sector_size:4096")
        );
        let small = Crypt { sector_size: 512, ..crypt(Cipher::AesXts) };
        assert_eq!(small.parameters("254:0").unwrap(), format!("aes-xts-plain64 {key} 0 254:0 32768"));
        let key = "ab".repeat(96);
        assert_eq!(
            crypt(Cipher::AesXtsHmacSha256).parameters("254:0").unwrap(),
            format!(
                "capi:authenc(hmac(sha256),xts(aes))-plain64 {key} 0 254:0 32768 2 integrity:32:aead sector_size:4096"
            )
        );
        let integrity = Integrity {
            device: "/dev/null".into(),
            offset: 32768,
            sectors: 8,
            tag_size: 32,
            block_size: 4096,
            mode: IntegrityMode::Journal,
        };
        assert_eq!(integrity.parameters("8:1").unwrap(), "8:1 32768 32 J 2 block_size:4096 fix_padding");
        let direct = Integrity { mode: IntegrityMode::Direct, ..integrity };
        let parameters = "8:1 32768 32 D 3 block_size:4096 fix_padding journal_sectors:8";
        assert_eq!(direct.parameters("8:1").unwrap(), parameters);
        let root = "11".repeat(32);
        assert_eq!(verity().parameters("8:1", "8:2").unwrap(), format!("1 8:1 8:2 4096 4096 10 11 sha256 {root} -"));
        let salted = Verity { salt: vec![1, 2], ..verity() };
        assert!(salted.parameters("8:1", "8:2").unwrap().ends_with(" 0102"));
        assert_eq!(verity().sectors().unwrap(), 80);
    }

    #[test]
    fn values_that_the_kernel_would_misread_are_refused() {
        let mut short = crypt(Cipher::AesXtsHmacSha256);
        short.key.truncate(64);
        let odd = Crypt { sectors: 15, ..crypt(Cipher::AesXts) };
        let large = Crypt { sector_size: 8192, ..crypt(Cipher::AesXts) };
        for (crypt, reason) in [(short, "64 bytes, 96"), (odd, "15 half KiB"), (large, "8192")] {
            let error = crypt.parameters("8:1").unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let endless = Verity { data_blocks: u64::MAX, ..verity() };
        assert!(endless.sectors().is_err());
        let salted = Verity { salt: vec![0; 257], ..verity() };
        assert!(salted.parameters("8:1", "8:2").is_err());
    }

    #[test]
    fn what_is_no_block_device_is_refused() {
        for path in ["/dev/null", "/nowhere"] {
            let error = Target::Crypt(Crypt { device: path.into(), ..crypt(Cipher::AesXts) }).row().err().unwrap();
            assert!(error.to_string().contains(&format!("{path} is no block device")), "{error}");
        }
    }

    #[test]
    fn a_key_is_not_in_the_debug_form() {
        let text = format!("{:?}", Target::Crypt(crypt(Cipher::AesXts)));
        assert!(!text.contains("ab") && !text.contains("171"), "{text}");
    }
}
