//! Runtime measurement registers: the hash algorithms that TEEs extend them with.

use sha2::{Digest as _, Sha256, Sha384};

/// The hash that a TEE extends its runtime measurement registers with.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum RegisterAlgorithm {
    /// TPMs and Azure's vTPMs.
    Sha256,
    /// Intel TDX.
    Sha384,
    /// Hygon CSV (GB/T 32905-2016).
    Sm3,
}

impl RegisterAlgorithm {
    /// The digest of `data`.
    pub fn digest(self, data: &[u8]) -> Vec<u8> {
        match self {
            Self::Sha256 => Sha256::digest(data).to_vec(),
            Self::Sha384 => Sha384::digest(data).to_vec(),
            Self::Sm3 => sm3::Sm3::digest(data).to_vec(),
        }
    }

    /// What a register of `old` holds once `digest` went into it: the hash of both, one after the other.
    pub fn extended(self, old: &[u8], digest: &[u8]) -> Vec<u8> {
        self.digest(&[old, digest].concat())
    }

    /// Length of a digest, and of a register, in bytes.
    pub fn size(self) -> usize {
        match self {
            Self::Sha256 | Self::Sm3 => 32,
            Self::Sha384 => 48,
        }
    }

    /// The algorithm's number in event logs (TCG Algorithm Registry).
    pub fn tcg_id(self) -> u16 {
        match self {
            Self::Sha256 => 0x000b,
            Self::Sha384 => 0x000c,
            Self::Sm3 => 0x0012,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_standards() {
        for (algorithm, id, expected) in [
            (RegisterAlgorithm::Sha256, 0x0b, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
            (
                RegisterAlgorithm::Sha384,
                0x0c,
                "cb00753f45a35e8bb5a03d699ac65007272c32ab0eded1631a8b605a43ff5bed8086072ba1e7cc2358baeca134c825a7",
            ),
            (RegisterAlgorithm::Sm3, 0x12, "66c7f0f462eeedd9d1f2d46bdc10e4e24167c4875cf2f7a2297da02b8f4ba8e0"),
        ] {
            assert_eq!(hex::encode(algorithm.digest(b"abc")), expected);
            assert_eq!((algorithm.size(), algorithm.tcg_id()), (expected.len() / 2, id));
        }
    }

    #[test]
    fn extending_chains_the_old_value_and_the_digest() {
        let algorithm = RegisterAlgorithm::Sha256;
        assert_eq!(algorithm.extended(&[0; 32], &[7; 32]), algorithm.digest(&[[0; 32], [7; 32]].concat()));
    }
}
