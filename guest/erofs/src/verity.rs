//! The hash tree over a layer's blocks: its root as the manifest binds it, and the superblock that describes the tree.
//!
//! Source: containerd's annotations of EROFS layers; dm-verity's on-disk format, version 1, as `veritysetup` writes it.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use device_mapper::Verity;

/// What a manifest says about the hash tree in a layer's image.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct VerityRoot {
    /// The SHA-256 root hash.
    pub hash: [u8; 32],
    /// Where the tree's superblock is in the image, in bytes. The data ends before it.
    pub offset: u64,
}

/// Why a hash tree can't be used.
#[derive(Debug, thiserror::Error)]
pub enum VerityError {
    /// The manifest names a root that can't be checked.
    #[error("its annotation {name} {cause}; next: convert the image again, with a SHA-256 hash tree behind its data")]
    Annotation {
        /// The annotation.
        name: &'static str,
        /// What is wrong with it.
        cause: &'static str,
    },
    /// There is no usable superblock where the manifest says.
    #[error("the superblock of its hash tree {0}; next: convert the image again")]
    Superblock(&'static str),
}

impl VerityRoot {
    /// Reads the annotations of a layer; nothing if they name no hash tree.
    ///
    /// # Errors
    /// [`VerityError::Annotation`]: half an answer is none.
    pub fn from_annotations(annotations: &HashMap<String, String>) -> Result<Option<Self>, VerityError> {
        let wrong = |name, cause| VerityError::Annotation { name, cause };
        let (digest, offset) = match (annotations.get(ROOT_DIGEST), annotations.get(OFFSET)) {
            (None, None) => return Ok(None),
            (None, Some(_)) => return Err(wrong(ROOT_DIGEST, "is missing")),
            (Some(_), None) => return Err(wrong(OFFSET, "is missing")),
            (Some(digest), Some(offset)) => (digest, offset),
        };
        let mut hash = [0; 32];
        let digits = digest.strip_prefix("sha256:").ok_or(wrong(ROOT_DIGEST, "is no SHA-256 digest"))?;
        hex::decode_to_slice(digits, &mut hash).map_err(|_| wrong(ROOT_DIGEST, "is no SHA-256 digest"))?;
        let offset = offset.parse().map_err(|_| wrong(OFFSET, "is no number of bytes"))?;
        Ok(Some(Self { hash, offset }))
    }

    /// The table of a verified device over `image`, which the kernel knows as the block device `device`.
    pub(crate) fn table(&self, image: &File, device: &Path) -> Result<Verity, VerityError> {
        let mut bytes = [0; SUPERBLOCK];
        image
            .read_exact_at(&mut bytes, self.offset)
            .map_err(|_| VerityError::Superblock("lies behind the image's end"))?;
        let superblock = Superblock::parse(&bytes)?;
        let data = superblock.data_blocks.checked_mul(superblock.data_block_size.into());
        if data.is_none_or(|end| end > self.offset) {
            return Err(VerityError::Superblock("says that there is more data than lies before it"));
        }
        let behind = self.offset.checked_add(SUPERBLOCK as u64).ok_or(VerityError::Superblock("lies nowhere"))?;
        Ok(Verity {
            data_device: device.to_owned(),
            hash_device: device.to_owned(),
            data_block_size: superblock.data_block_size,
            hash_block_size: superblock.hash_block_size,
            data_blocks: superblock.data_blocks,
            hash_start_block: behind.div_ceil(superblock.hash_block_size.into()),
            root_hash: self.hash,
            salt: superblock.salt,
        })
    }
}

#[derive(Debug, PartialEq)]
struct Superblock {
    data_block_size: u32,
    hash_block_size: u32,
    data_blocks: u64,
    salt: Vec<u8>,
}

impl Superblock {
    fn parse(bytes: &[u8; SUPERBLOCK]) -> Result<Self, VerityError> {
        let wrong = VerityError::Superblock;
        let (head, salt) = bytes.split_at(SALT);
        let number = |at: usize| u32::from_le_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        if !head.starts_with(b"verity\0\0") {
            return Err(wrong("is not where its annotation says"));
        }
        if (number(8), number(12)) != (1, 1) {
            return Err(wrong("has another version than 1, or another format of hashes"));
        }
        if head[32..64].strip_prefix(b"sha256").is_none_or(|rest| rest.iter().any(|byte| *byte != 0)) {
            return Err(wrong("names another algorithm than SHA-256"));
        }
        let (data_block_size, hash_block_size) = (number(64), number(68));
        let fits = |size: u32| size.is_power_of_two() && (512..=4096).contains(&size);
        if !fits(data_block_size) || !fits(hash_block_size) {
            return Err(wrong("has blocks of a size that can't be read"));
        }
        let salt_size = usize::from(u16::from_le_bytes([head[80], head[81]]));
        Ok(Self {
            data_block_size,
            hash_block_size,
            data_blocks: u64::from(number(72)) | u64::from(number(76)) << 32,
            salt: salt.get(..salt_size).filter(|_| salt_size <= MAX_SALT).ok_or(wrong("has too long a salt"))?.to_vec(),
        })
    }
}

const ROOT_DIGEST: &str = "dev.containerd.erofs.dmverity.root_digest";
const OFFSET: &str = "dev.containerd.erofs.dmverity.offset";
const SUPERBLOCK: usize = 512;
const SALT: usize = 88;
const MAX_SALT: usize = 256;

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;
    use proptest::prelude::*;

    fn superblock() -> [u8; SUPERBLOCK] {
        let mut bytes = [0; SUPERBLOCK];
        bytes[..8].copy_from_slice(b"verity\0\0");
        bytes[8] = 1;
        bytes[12] = 1;
        bytes[32..38].copy_from_slice(b"sha256");
        bytes[64..68].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[68..72].copy_from_slice(&4096_u32.to_le_bytes());
        bytes[72..80].copy_from_slice(&3_u64.to_le_bytes());
        bytes[80] = 2;
        bytes[SALT..SALT + 2].copy_from_slice(&[7, 8]);
        bytes
    }

    fn table(bytes: &[u8], before: usize, offset: u64) -> Result<Verity, VerityError> {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&vec![0; before]).unwrap();
        file.write_all(bytes).unwrap();
        VerityRoot { hash: [9; 32], offset }.table(&file, Path::new("/dev/loop7"))
    }

    #[test]
    fn the_tree_begins_in_the_block_behind_the_superblock() {
        let verity = table(&superblock(), 3 * 4096, 3 * 4096).unwrap();
        assert_eq!((verity.data_blocks, verity.hash_start_block, verity.salt), (3, 4, vec![7, 8]));
        assert_eq!((verity.root_hash, verity.data_device.as_path()), ([9; 32], Path::new("/dev/loop7")));
    }

    #[test]
    fn a_superblock_that_lies_is_refused() {
        for (at, value, expected) in [
            (0, b'V', "not where"),
            (8, 2, "another version"),
            (12, 0, "another version"),
            (36, b'3', "another algorithm"),
            (38, b'0', "another algorithm"),
            (65, 0x20, "blocks of a size"),
            (68, 1, "blocks of a size"),
            (72, 4, "more data"),
            (79, 0xff, "more data"),
            (81, 2, "too long a salt"),
        ] {
            let mut bytes = superblock();
            bytes[at] = value;
            let error = table(&bytes, 3 * 4096, 3 * 4096).unwrap_err().to_string();
            assert!(error.contains(expected), "{at} gave {error}");
        }
        assert!(
            table(&superblock()[..511], 3 * 4096, 3 * 4096).unwrap_err().to_string().contains("behind the image's end")
        );
        assert!(table(&superblock(), 0, u64::MAX).is_err());
    }

    #[test]
    fn annotations_name_a_root_or_none_or_are_refused() {
        let root = format!("sha256:{}", "0a".repeat(32));
        for (digest, offset, expected) in [
            (None, None, Ok(None)),
            (Some(root.as_str()), Some("4096"), Ok(Some(VerityRoot { hash: [10; 32], offset: 4096 }))),
            (Some(&root), None, Err("offset is missing")),
            (None, Some("4096"), Err("root_digest is missing")),
            (Some(&root), Some("-1"), Err("no number")),
            (Some("sha512:00"), Some("4096"), Err("no SHA-256")),
            (Some("sha256:00"), Some("4096"), Err("no SHA-256")),
        ] {
            let given = [(ROOT_DIGEST, digest), (OFFSET, offset)].into_iter();
            let all = given.filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect();
            match (VerityRoot::from_annotations(&all), expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
                (Err(actual), Err(expected)) => assert!(actual.to_string().contains(expected), "{actual}"),
                (actual, _) => panic!("{all:?} gave {actual:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_superblock_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), SUPERBLOCK), real in any::<bool>()) {
            let mut bytes: [u8; SUPERBLOCK] = bytes.try_into().unwrap();
            if real {
                bytes[..64].copy_from_slice(&superblock()[..64]);
            }
            let _ = Superblock::parse(&bytes);
        }
    }
}
