//! KMAC256 with an empty customisation (NIST SP 800-185 section 4), from cSHAKE256.

use cshake::CShake256;
use cshake::digest::{ExtendableOutput, Update, XofReader};
use zeroize::Zeroizing;

/// The code of `data` under `key`. Its length is a part of what is hashed.
pub(super) fn kmac256<const LENGTH: usize>(key: &[u8], data: &[u8]) -> Zeroizing<[u8; LENGTH]> {
    let mut hasher = CShake256::new_with_function_name(b"KMAC", b"");
    let (rate, bits) = (left_encode(RATE), left_encode(8 * key.len()));
    let used = rate.len() + bits.len() + key.len();
    for part in [&*rate, &bits, key, &[0; RATE][..used.next_multiple_of(RATE) - used], data] {
        hasher.update(part);
    }
    hasher.update(&right_encode(8 * LENGTH));
    let mut code = Zeroizing::new([0; LENGTH]);
    hasher.finalize_xof().read(&mut *code);
    code
}

/// The number in as few bytes as hold it, after how many there are.
fn left_encode(number: usize) -> Vec<u8> {
    let mut encoded = vec![0];
    encoded.extend_from_slice(&significant(number));
    encoded[0] = encoded.len() as u8 - 1;
    encoded
}

/// The number in as few bytes as hold it, before how many there are.
fn right_encode(number: usize) -> Vec<u8> {
    let mut encoded = significant(number);
    encoded.push(encoded.len() as u8);
    encoded
}

fn significant(number: usize) -> Vec<u8> {
    let bytes = number.to_be_bytes();
    let zeros = bytes.iter().take_while(|&&byte| byte == 0).count().min(bytes.len() - 1);
    bytes[zeros..].to_vec()
}

/// Bytes that one permutation of Keccak takes in at a capacity of 512 bits.
const RATE: usize = 136;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sample_of_nist_comes_out() {
        let key: Vec<u8> = (0x40..0x60).collect();
        let data: Vec<u8> = (0..200).collect();
        // KMAC_samples.pdf, sample 5.
        assert_eq!(
            hex::encode(*kmac256::<64>(&key, &data)),
            "75358cf39e41494e949707927cee0af20a3ff553904c86b08f21cc414bcfd691\
             589d27cf5e15369cbbff8b9a4c2eb17800855d0235ff635da82533ec6b759b69"
        );
    }

    #[test]
    fn keys_and_outputs_of_every_length_are_told_apart() {
        // A key that fills a block together with its length.
        let long = kmac256::<32>(&[1; 131], b"");
        assert_ne!(*long, *kmac256::<32>(&[1; 132], b""));
        assert_ne!(long[..16], *kmac256::<16>(&[1; 131], b""));
        assert_eq!(left_encode(0), [1, 0]);
        assert_eq!(left_encode(256), [2, 1, 0]);
        assert_eq!(right_encode(192), [192, 1]);
    }
}
