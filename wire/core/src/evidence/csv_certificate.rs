//! Certificates of Hygon CSV, in the security processor's own format; all numbers are little endian.
//!
//! In JSON, byte strings are arrays of numbers.

use serde::{Deserialize, Serialize};

use super::{ByteArray, Error};

/// A certificate of the security processor (PEK, CEK), 2084 bytes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCertificate {
    /// What is signed.
    pub body: CsvCertificateBody,
    /// Up to two signatures; unused ones are zeros.
    pub sigs: [CsvCertificateSignature; 2],
}

impl CsvCertificate {
    /// Length in bytes.
    pub const LENGTH: usize = 2084;

    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Error::Length`] for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields(bytes);
        let certificate = fields.certificate().filter(|_| fields.0.is_empty());
        certificate.ok_or(Error::Length { what: "a CSV certificate", expected: Self::LENGTH, actual: bytes.len() })
    }
}

/// What signatures of a [`CsvCertificate`] cover.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCertificateBody {
    pub ver: u32,
    pub data: CsvCertificateData,
}

/// The key and its owner.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCertificateData {
    pub firmware: CsvFirmware,
    pub reserved1: u16,
    pub pubkey: CsvPublicKey,
    /// How much of `user_id` is used.
    pub uid_size: u16,
    pub user_id: ByteArray<254>,
    pub sid: ByteArray<16>,
    pub reserved2: ByteArray<608>,
}

/// The firmware that made the certificate.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvFirmware {
    pub major: u8,
    pub minor: u8,
}

/// A key with its use.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvPublicKey {
    pub usage: u32,
    pub algo: u32,
    pub key: CsvPoint,
}

/// A point of a curve; 3 is SM2's.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvPoint {
    pub g: u32,
    pub x: ByteArray<72>,
    pub y: ByteArray<72>,
}

/// One signature of a [`CsvCertificate`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCertificateSignature {
    pub usage: u32,
    pub algo: u32,
    pub signature: CsvSignature,
    #[serde(rename = "_reserved")]
    pub reserved: ByteArray<368>,
}

/// The two numbers of an SM2 signature.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvSignature {
    pub r: ByteArray<72>,
    pub s: ByteArray<72>,
}

/// A certificate of Hygon's own authority (HSK), 832 bytes.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCaCertificate {
    /// What is signed.
    pub body: CsvCaBody,
    pub signature: CsvSignature,
    #[serde(rename = "_reserved")]
    pub reserved: ByteArray<112>,
}

impl CsvCaCertificate {
    /// Length in bytes.
    pub const LENGTH: usize = 832;

    /// Reads a certificate.
    ///
    /// # Errors
    /// [`Error::Length`] for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let mut fields = Fields(bytes);
        let certificate = fields.ca_certificate().filter(|_| fields.0.is_empty());
        certificate.ok_or(Error::Length {
            what: "a CSV authority's certificate",
            expected: Self::LENGTH,
            actual: bytes.len(),
        })
    }
}

/// What the signature of a [`CsvCaCertificate`] covers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCaBody {
    pub preamble: CsvCaPreamble,
    pub pubkey: CsvPoint,
    /// How much of `user_id` is used.
    pub uid_size: u16,
    pub user_id: ByteArray<254>,
    pub reserved: ByteArray<108>,
}

/// The head of a [`CsvCaBody`].
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCaPreamble {
    pub ver: u32,
    pub data: CsvCaIds,
}

/// Who certifies whom.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCaIds {
    pub kid: ByteArray<16>,
    pub sid: ByteArray<16>,
    pub usage: u32,
    pub reserved: ByteArray<24>,
}

/// The rest of a structure that is read field by field.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn certificate(&mut self) -> Option<CsvCertificate> {
        let ver = self.u32()?;
        let firmware = CsvFirmware { major: self.u8()?, minor: self.u8()? };
        let data = CsvCertificateData {
            firmware,
            reserved1: self.u16()?,
            pubkey: CsvPublicKey { usage: self.u32()?, algo: self.u32()?, key: self.point()? },
            uid_size: self.u16()?,
            user_id: self.bytes()?,
            sid: self.bytes()?,
            reserved2: self.bytes()?,
        };
        let sigs = [self.certificate_signature()?, self.certificate_signature()?];
        Some(CsvCertificate { body: CsvCertificateBody { ver, data }, sigs })
    }

    fn certificate_signature(&mut self) -> Option<CsvCertificateSignature> {
        let (usage, algo) = (self.u32()?, self.u32()?);
        Some(CsvCertificateSignature { usage, algo, signature: self.signature()?, reserved: self.bytes()? })
    }

    fn ca_certificate(&mut self) -> Option<CsvCaCertificate> {
        let ver = self.u32()?;
        let data = CsvCaIds { kid: self.bytes()?, sid: self.bytes()?, usage: self.u32()?, reserved: self.bytes()? };
        let body = CsvCaBody {
            preamble: CsvCaPreamble { ver, data },
            pubkey: self.point()?,
            uid_size: self.u16()?,
            user_id: self.bytes()?,
            reserved: self.bytes()?,
        };
        Some(CsvCaCertificate { body, signature: self.signature()?, reserved: self.bytes()? })
    }

    fn point(&mut self) -> Option<CsvPoint> {
        Some(CsvPoint { g: self.u32()?, x: self.bytes()?, y: self.bytes()? })
    }

    fn signature(&mut self) -> Option<CsvSignature> {
        Some(CsvSignature { r: self.bytes()?, s: self.bytes()? })
    }

    fn bytes<const N: usize>(&mut self) -> Option<ByteArray<N>> {
        ByteArray::take(&mut self.0)
    }

    fn u8(&mut self) -> Option<u8> {
        self.bytes::<1>().map(|bytes| bytes.0[0])
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes().map(|bytes| u16::from_le_bytes(bytes.0))
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes().map(|bytes| u32::from_le_bytes(bytes.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_firmware_puts_them() {
        let bytes: Vec<u8> = (0..CsvCertificate::LENGTH).map(|i| i as u8).collect();
        let certificate = CsvCertificate::parse(&bytes).unwrap();
        let data = certificate.body.data;
        assert_eq!(certificate.body.ver, 0x0302_0100);
        assert_eq!((data.firmware.major, data.firmware.minor, data.reserved1), (4, 5, 0x0706));
        assert_eq!((data.pubkey.usage, data.pubkey.algo), (0x0b0a_0908, 0x0f0e_0d0c));
        assert_eq!((data.pubkey.key.x.0[0], data.pubkey.key.y.0[0]), (20, 92));
        assert_eq!((data.uid_size, data.user_id.0[0]), (0xa5a4, 166));
        let at = |offset: usize| offset as u8;
        assert_eq!((data.sid.0[0], data.reserved2.0[0]), (at(420), at(436)));
        assert_eq!(certificate.sigs[1].reserved.0[367], at(2083));
    }

    #[test]
    fn an_authoritys_fields_lie_where_it_puts_them() {
        let bytes: Vec<u8> = (0..CsvCaCertificate::LENGTH).map(|i| i as u8).collect();
        let certificate = CsvCaCertificate::parse(&bytes).unwrap();
        let at = |offset: usize| offset as u8;
        assert_eq!((certificate.body.preamble.data.kid.0[0], certificate.body.preamble.data.sid.0[0]), (4, 20));
        assert_eq!((certificate.body.pubkey.x.0[0], certificate.body.user_id.0[0]), (68, at(214)));
        assert_eq!((certificate.signature.r.0[0], certificate.reserved.0[0]), (at(576), at(720)));
    }

    #[test]
    fn other_lengths_are_refused() {
        for length in [0, CsvCertificate::LENGTH - 1, CsvCertificate::LENGTH + 1] {
            assert!(matches!(CsvCertificate::parse(&vec![0; length]), Err(Error::Length { .. })));
        }
        for length in [0, CsvCaCertificate::LENGTH - 1, CsvCaCertificate::LENGTH + 1] {
            assert!(matches!(CsvCaCertificate::parse(&vec![0; length]), Err(Error::Length { .. })));
        }
    }
}
