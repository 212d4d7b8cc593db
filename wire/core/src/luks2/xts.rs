//! AES-256-XTS over the sectors of a key slot, made of the library's AES.
//!
//! Source: IEEE 1619; the sectors' numbers as Linux' `plain64` has them.

use aws_lc_rs::cipher::{AES_256, DecryptingKey, DecryptionContext, EncryptingKey, UnboundCipherKey};
use zeroize::Zeroizing;

use super::Error;

/// Two keys: one for the data, one for the tweak.
pub(super) struct Xts {
    data: [u8; 32],
    tweak: EncryptingKey,
}

impl Xts {
    /// Of both keys, one after the other.
    pub(super) fn new(key: &Zeroizing<[u8; 64]>) -> Result<Self, Error> {
        let (data, tweak) = key.split_at(32);
        let data = data.try_into().map_err(|_| Error::Crypto)?;
        Ok(Self { data, tweak: EncryptingKey::ecb(aes(tweak)?).map_err(|_| Error::Crypto)? })
    }

    /// Encrypts whole sectors in place; the first one has number 0.
    pub(super) fn encrypt(&self, sectors: &mut [u8]) -> Result<(), Error> {
        let cipher = EncryptingKey::ecb(aes(&self.data)?).map_err(|_| Error::Crypto)?;
        self.apply(sectors, |sector| cipher.encrypt(sector).map(drop).map_err(|_| Error::Crypto))
    }

    /// The reverse.
    pub(super) fn decrypt(&self, sectors: &mut [u8]) -> Result<(), Error> {
        let cipher = DecryptingKey::ecb(aes(&self.data)?).map_err(|_| Error::Crypto)?;
        let none = || DecryptionContext::None;
        self.apply(sectors, |sector| cipher.decrypt(sector, none()).map(drop).map_err(|_| Error::Crypto))
    }

    fn apply(&self, sectors: &mut [u8], cipher: impl Fn(&mut [u8]) -> Result<(), Error>) -> Result<(), Error> {
        for (number, sector) in (0u64..).zip(sectors.chunks_exact_mut(SECTOR)) {
            let mask = self.mask(number)?;
            mix(sector, &mask);
            cipher(sector)?;
            mix(sector, &mask);
        }
        Ok(())
    }

    /// What a sector is mixed with before and after the cipher.
    fn mask(&self, sector: u64) -> Result<[u8; SECTOR], Error> {
        let mut tweak = u128::from(sector).to_le_bytes();
        self.tweak.encrypt(&mut tweak).map_err(|_| Error::Crypto)?;
        let mut tweak = u128::from_le_bytes(tweak);
        let mut mask = [0; SECTOR];
        for block in mask.chunks_exact_mut(16) {
            block.copy_from_slice(&tweak.to_le_bytes());
            let carry = tweak >> 127;
            tweak = (tweak << 1) ^ (carry * 0x87);
        }
        Ok(mask)
    }
}

impl Drop for Xts {
    fn drop(&mut self) {
        zeroize::Zeroize::zeroize(&mut self.data);
    }
}

fn aes(key: &[u8]) -> Result<UnboundCipherKey, Error> {
    UnboundCipherKey::new(&AES_256, key).map_err(|_| Error::Crypto)
}

fn mix(sector: &mut [u8], mask: &[u8]) {
    for (byte, mask) in sector.iter_mut().zip(mask) {
        *byte ^= mask;
    }
}

/// Of a key slot, whatever the volume's own sector size is.
pub(super) const SECTOR: usize = 512;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_xts_of_the_standard() {
        // Key and data of IEEE 1619 annex B, vector 10, whose sector has the number 0xff; the first sectors are padding.
        let key = hex::decode(concat!(
            "2718281828459045235360287471352662497757247093699959574966967627",
            "3141592653589793238462643383279502884197169399375105820974944592"
        ))
        .unwrap();
        let key = Zeroizing::new(<[u8; 64]>::try_from(key).unwrap());
        let plain: Vec<u8> = (0..512u32).map(|i| i as u8).collect();
        let mut sectors = vec![0; 256 * SECTOR];
        sectors[255 * SECTOR..].copy_from_slice(&plain);

        let xts = Xts::new(&key).unwrap();
        xts.encrypt(&mut sectors).unwrap();

        let sector = &sectors[255 * SECTOR..];
        assert_eq!(hex::encode(&sector[..32]), "1c3b3a102f770386e4836c99e370cf9bea00803f5e482357a4ae12d414a3e63b");
        xts.decrypt(&mut sectors).unwrap();
        assert_eq!(&sectors[255 * SECTOR..], plain);
    }
}
