//! The private key in a PKCS #12 file (RFC 7292) as Alibaba Cloud gives it out: PKCS #8, encrypted with
//! PBE-SHA1-3DES.
//!
//! Certificates and the file's checksum are left aside: the key is used, and a wrong password yields none.

use aws_lc_rs::digest;
use des::TdesEde3;
use des::cipher::{BlockCipherDecrypt as _, KeyInit as _};
use zeroize::Zeroizing;

/// The file's private key as PKCS #8.
///
/// # Errors
/// What is wrong, in words that hold nothing of the key.
pub fn private_key(file: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    let bag = encrypted_key(file).ok_or("it is not a PKCS #12 file with an encrypted key")?;
    if bag.algorithm != PBE_SHA1_3DES {
        return Err("its key is encrypted otherwise than with PBE-SHA1-3DES");
    }
    if bag.iterations == 0 || bag.iterations > MAX_ITERATIONS || !bag.encrypted.len().is_multiple_of(BLOCK) {
        return Err("its parameters can't be used");
    }
    let password: Zeroizing<Vec<u8>> =
        Zeroizing::new(password.encode_utf16().chain([0]).flat_map(u16::to_be_bytes).collect());
    let key = derive(1, &password, &bag, 24);
    let iv = derive(2, &password, &bag, BLOCK);
    decrypt(&key, &iv, bag.encrypted).ok_or("the password does not open it")
}

struct KeyBag<'a> {
    algorithm: &'a [u8],
    salt: &'a [u8],
    iterations: u64,
    encrypted: &'a [u8],
}

/// Walks to the first encrypted key of the file.
fn encrypted_key(file: &[u8]) -> Option<KeyBag<'_>> {
    let mut pfx = Der(file).enter(SEQUENCE)?;
    pfx.next(INTEGER)?;
    let mut contents = Der(data(pfx.enter(SEQUENCE)?)?).enter(SEQUENCE)?;
    while let Some(content) = contents.enter(SEQUENCE) {
        // Certificates are in encrypted contents, the key is in a plain one.
        let Some(mut bags) = data(content).and_then(|safe| Der(safe).enter(SEQUENCE)) else { continue };
        while let Some(mut bag) = bags.enter(SEQUENCE) {
            if bag.next(OID)? != KEY_BAG {
                continue;
            }
            let mut info = bag.enter(CONTEXT_0)?.enter(SEQUENCE)?;
            let mut algorithm = info.enter(SEQUENCE)?;
            let name = algorithm.next(OID)?;
            let mut parameters = algorithm.enter(SEQUENCE)?;
            return Some(KeyBag {
                algorithm: name,
                salt: parameters.next(OCTETS)?,
                iterations: parameters
                    .next(INTEGER)?
                    .iter()
                    .try_fold(0_u64, |n, &b| n.checked_mul(256)?.checked_add(b.into()))?,
                encrypted: info.next(OCTETS)?,
            });
        }
    }
    None
}

/// The content of a ContentInfo of the type data.
fn data(mut content: Der<'_>) -> Option<&[u8]> {
    (content.next(OID)? == DATA).then_some(())?;
    content.enter(CONTEXT_0)?.next(OCTETS)
}

/// Values of DER that follow each other.
struct Der<'a>(&'a [u8]);

impl<'a> Der<'a> {
    /// The content of the next value, which must have this tag.
    fn next(&mut self, tag: u8) -> Option<&'a [u8]> {
        let (&found, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, &byte| length << 8 | usize::from(byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        if found != tag {
            return None;
        }
        self.0 = rest;
        Some(content)
    }

    fn enter(&mut self, tag: u8) -> Option<Der<'a>> {
        self.next(tag).map(Der)
    }
}

/// Key material for a purpose (RFC 7292, appendix B.2, with SHA-1).
fn derive(purpose: u8, password: &[u8], bag: &KeyBag<'_>, length: usize) -> Zeroizing<Vec<u8>> {
    let fill = |part: &[u8]| -> Vec<u8> { part.iter().copied().cycle().take(part.len().next_multiple_of(V)).collect() };
    let mut input = Zeroizing::new(fill(bag.salt));
    input.reserve_exact(password.len().next_multiple_of(V));
    input.extend_from_slice(&Zeroizing::new(fill(password)));

    let mut output = Zeroizing::new(Vec::with_capacity(length + HASH));
    while output.len() < length {
        let mut hash = sha1(&Zeroizing::new([&[purpose; V], input.as_slice()].concat()));
        for _ in 1..bag.iterations {
            hash = sha1(hash.as_slice());
        }
        output.extend_from_slice(hash.as_slice());
        // Every block of the input grows by the hash, repeated to a block's length, and one.
        for block in input.chunks_exact_mut(V) {
            let mut carry = 1;
            for (i, byte) in block.iter_mut().enumerate().rev() {
                carry += u16::from(*byte) + u16::from(hash[i % HASH]);
                *byte = (carry & 0xff) as u8;
                carry >>= 8;
            }
        }
    }
    output.truncate(length);
    output
}

fn sha1(data: &[u8]) -> Zeroizing<[u8; HASH]> {
    let mut hash = Zeroizing::new([0; HASH]);
    hash.copy_from_slice(digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, data).as_ref());
    hash
}

/// 3DES in CBC mode; nothing if the padding is wrong.
fn decrypt(key: &[u8], iv: &[u8], encrypted: &[u8]) -> Option<Zeroizing<Vec<u8>>> {
    let cipher = TdesEde3::new_from_slice(key).ok()?;
    let mut plain = Zeroizing::new(Vec::with_capacity(encrypted.len()));
    let mut previous = iv;
    for block in encrypted.chunks_exact(BLOCK) {
        let mut buffer = des::cipher::Block::<TdesEde3>::try_from(block).ok()?;
        cipher.decrypt_block(&mut buffer);
        plain.extend(buffer.iter().zip(previous).map(|(a, b)| a ^ b));
        previous = block;
    }
    let padding = usize::from(*plain.last()?);
    let end = plain.len().checked_sub(padding)?;
    if padding == 0 || padding > BLOCK || plain[end..].iter().any(|&byte| usize::from(byte) != padding) {
        return None;
    }
    plain.truncate(end);
    Some(plain)
}

const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const OID: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
const CONTEXT_0: u8 = 0xa0;
/// 1.2.840.113549.1.7.1
const DATA: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
/// 1.2.840.113549.1.12.10.1.2
const KEY_BAG: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x0a\x01\x02";
/// 1.2.840.113549.1.12.1.3
const PBE_SHA1_3DES: &[u8] = b"\x2a\x86\x48\x86\xf7\x0d\x01\x0c\x01\x03";
const BLOCK: usize = 8;
const HASH: usize = 20;
/// The block length of SHA-1.
const V: usize = 64;
const MAX_ITERATIONS: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::rsa::KeyPair;
    use base64::Engine as _;
    use proptest::prelude::*;

    /// Made by openssl with the legacy algorithms that Alibaba Cloud uses.
    const CLIENT_KEY: &str = include_str!("pkcs12/client-key.p12.base64");
    const PASSWORD: &str = "f1e2d3c4";

    fn file() -> Vec<u8> {
        base64::engine::general_purpose::STANDARD.decode(CLIENT_KEY).unwrap()
    }

    #[test]
    fn a_key_that_openssl_encrypted_is_opened_by_its_password_only() {
        let key = private_key(&file(), PASSWORD).unwrap();
        assert_eq!(KeyPair::from_pkcs8(&key).unwrap().public_modulus_len(), 256);
        for wrong in ["", "F1e2d3c4", "f1e2d3c4 "] {
            assert!(private_key(&file(), wrong).is_err(), "{wrong:?} opened it");
        }
    }

    #[test]
    fn every_cut_file_is_refused() {
        let file = file();
        for end in (0..file.len()).step_by(7) {
            assert!(encrypted_key(&file[..end]).is_none(), "{end}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes: Vec<u8>) {
            let _ = encrypted_key(&bytes);
        }

        #[test]
        fn no_changed_file_makes_it_panic(at in 0..2373_usize, to: u8) {
            let mut file = file();
            file[at] = to;
            let _ = encrypted_key(&file);
        }
    }
}
