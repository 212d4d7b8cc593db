//! Evidence of Hygon CSV. In JSON, byte strings are arrays of numbers.
//!
//! Source: the layouts that Hygon's open source tools for the guest document (attestation report, versions 1 and 2).

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sm3::Sm3;

use super::{ByteArray, CsvCaCertificate, CsvCertificate, Error};

/// A report with the certificates that lead to it.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvEvidence {
    /// The report.
    pub attestation_report: CsvReport,
    /// The signer's certificates.
    pub cert_chain: CsvCertChain,
    /// The chip, by which Hygon's service knows its certificates: text, padded with zeros.
    pub serial_number: ByteArray<64>,
    /// The event logs of firmware and agent in standard base64, if the guest has any.
    pub cc_eventlog: Option<String>,
}

/// Certificates from the report's signer upwards.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvCertChain {
    /// Hygon's certificates for the chip; a verifier fetches them where the guest does not send them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hsk_cek: Option<HskCek>,
    /// The certificate of the key that signed the report.
    pub pek: CsvCertificate,
}

/// Hygon's certificates for one chip.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct HskCek {
    /// Hygon's signing key.
    pub hsk: CsvCaCertificate,
    /// The chip's key.
    pub cek: CsvCertificate,
}

impl HskCek {
    /// Reads the two as Hygon's service sends them, one after the other.
    ///
    /// # Errors
    /// [`Error::Length`] for another length.
    pub fn parse(bytes: &[u8]) -> Result<Self, Error> {
        let expected = CsvCaCertificate::LENGTH + CsvCertificate::LENGTH;
        let (hsk, cek) = bytes.split_at_checked(CsvCaCertificate::LENGTH).ok_or(Error::Length {
            what: "the chip's certificates",
            expected,
            actual: bytes.len(),
        })?;
        Ok(Self { hsk: CsvCaCertificate::parse(hsk)?, cek: CsvCertificate::parse(cek)? })
    }
}

/// A report's page, its signer in the clear.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct CsvReport {
    /// `ATTESTATION_EXT` and a zero for version 2, zeros for version 1.
    pub magic: ByteArray<16>,
    /// 1 for version 2, 0 for version 1.
    pub flags: u32,
    /// The page.
    pub data: ByteArray<4096>,
}

impl CsvReport {
    /// What asks the security processor for a report: report data, a fresh nonce, their hash; for version 2 also the
    /// magic and the flags. It is written over by the report.
    pub fn request(report_data: &[u8; 64], nonce: &[u8; 16], is_extended: bool) -> [u8; PAGE] {
        use sm3::Digest as _;
        let hash = Sm3::new().chain_update(report_data).chain_update(nonce).finalize();
        let mut request = [report_data.as_slice(), nonce, &hash].concat();
        if is_extended {
            request.extend(MAGIC);
            request.extend(EXTENDED.to_le_bytes());
        }
        let mut page = [0; PAGE];
        page[..request.len()].copy_from_slice(&request);
        page
    }

    /// Takes the page that the security processor wrote for a request with `nonce`.
    ///
    /// Version 1 masks most fields with a number of its own; the signer's are unmasked here, as verifiers expect.
    ///
    /// # Errors
    /// [`Error::Field`] if the page answers another nonce, or its signer was changed on the way.
    pub fn open(mut page: [u8; PAGE], nonce: &[u8; 16], is_extended: bool) -> Result<Self, Error> {
        let mask: [u8; 4] = if is_extended { [0; 4] } else { std::array::from_fn(|i| page[MASK + i]) };
        let unmask =
            |bytes: &mut [u8]| bytes.iter_mut().zip(mask.iter().cycle()).for_each(|(byte, mask)| *byte ^= mask);

        let mut answered: [u8; 16] = std::array::from_fn(|i| page[NONCE + i]);
        unmask(&mut answered);
        if answered != *nonce {
            return Err(Error::field(WHAT, "it answers another request than this"));
        }
        let signer = signer_offset(is_extended);
        let mac = signer + SIGNER;
        let key = Hmac::<Sm3>::new_from_slice(nonce).map_err(|_| Error::field(WHAT, "its nonce is no key"))?;
        key.chain_update(&page[signer..mac])
            .verify_slice(&page[mac..mac + 32])
            .map_err(|_| Error::field(WHAT, "its signer was changed on the way"))?;

        unmask(&mut page[signer..signer + CsvCertificate::LENGTH + 64]);
        page[signer + CsvCertificate::LENGTH + 64..mac].fill(0);
        Ok(match is_extended {
            true => Self { magic: ByteArray(*MAGIC), flags: EXTENDED, data: ByteArray(page) },
            false => Self { magic: ByteArray::default(), flags: 0, data: ByteArray(page) },
        })
    }

    /// Who signed the report.
    ///
    /// # Errors
    /// [`Error::Field`] for a magic or flags of no known version.
    pub fn signer(&self) -> Result<CsvSigner, Error> {
        let is_extended = match (&self.magic.0, self.flags) {
            ([0, ..], _) => false,
            (magic, 0) if magic == MAGIC => false,
            (magic, EXTENDED) if magic == MAGIC => true,
            (_, flags) => return Err(Error::field(WHAT, format!("its magic or flags ({flags}) are not known"))),
        };
        let rest = &self.data.0[signer_offset(is_extended)..];
        let (pek, rest) = rest.split_at(CsvCertificate::LENGTH);
        let serial_number = ByteArray(std::array::from_fn(|i| rest[i]));
        Ok(CsvSigner { pek: CsvCertificate::parse(pek)?, serial_number })
    }
}

/// Who signed a report.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct CsvSigner {
    /// The signing key's certificate.
    pub pek: CsvCertificate,
    /// The chip.
    pub serial_number: ByteArray<64>,
}

const fn signer_offset(is_extended: bool) -> usize {
    if is_extended { 0x490 } else { 0x150 }
}

const WHAT: &str = "the CSV report";
const PAGE: usize = 4096;
const MAGIC: &[u8; 16] = b"ATTESTATION_EXT\0";
const EXTENDED: u32 = 1;
/// Behind two digests, ids and report data.
const NONCE: usize = 0x80;
const MASK: usize = 0xbc;
/// Certificate, serial number and a reserved field.
const SIGNER: usize = CsvCertificate::LENGTH + 64 + 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::evidence::tests::vector;

    const REQUESTED: [u8; 16] = [0x5a; 16];

    /// The page of a security processor: the signer is masked, and its code is over the masked form.
    fn page(is_extended: bool) -> [u8; PAGE] {
        let mask = if is_extended { [0; 4] } else { [1, 2, 3, 4] };
        let masked = |i: usize, byte: u8| byte ^ mask[i % 4];
        let mut page = [0; PAGE];
        for (i, byte) in REQUESTED.iter().enumerate() {
            page[NONCE + i] = masked(i, *byte);
        }
        page[MASK..MASK + 4].copy_from_slice(&[1, 2, 3, 4]);
        let signer = signer_offset(is_extended);
        for i in 0..SIGNER {
            let byte = if i < CsvCertificate::LENGTH { 0x11 } else { b'S' };
            page[signer + i] = masked(i, byte);
        }
        let mac = Hmac::<Sm3>::new_from_slice(&REQUESTED).unwrap().chain_update(&page[signer..signer + SIGNER]);
        page[signer + SIGNER..signer + SIGNER + 32].copy_from_slice(&mac.finalize().into_bytes());
        page
    }

    #[test]
    fn both_versions_give_their_signer_in_the_clear() {
        for is_extended in [false, true] {
            let report = CsvReport::open(page(is_extended), &REQUESTED, is_extended).unwrap();
            let signer = report.signer().unwrap();
            assert_eq!(signer.pek, CsvCertificate::parse(&[0x11; CsvCertificate::LENGTH]).unwrap());
            assert_eq!((signer.serial_number.0, report.flags), ([b'S'; 64], u32::from(is_extended)));
        }
    }

    #[test]
    fn a_page_for_another_request_or_with_another_signer_is_refused() {
        let error = CsvReport::open(page(true), &[0; 16], true).unwrap_err().to_string();
        assert!(error.contains("another request"), "{error}");

        let mut changed = page(false);
        changed[signer_offset(false)] ^= 1;
        let error = CsvReport::open(changed, &REQUESTED, false).unwrap_err().to_string();
        assert!(error.contains("changed"), "{error}");
    }

    #[test]
    fn a_request_carries_the_hash_of_its_parts() {
        use sm3::Digest as _;
        let request = CsvReport::request(&[1; 64], &[2; 16], true);
        assert_eq!(request[80..112], Sm3::digest([&[1; 64][..], &[2; 16]].concat())[..]);
        assert_eq!((&request[112..128], &request[128..132]), (&MAGIC[..], &[1, 0, 0, 0][..]));
        assert_eq!(CsvReport::request(&[1; 64], &[2; 16], false)[112..], [0; PAGE - 112]);
    }

    #[test]
    fn real_evidence_has_the_form_and_names_its_signer() {
        let Some(bytes) = vector("csv/csv_evidence.json") else { return };
        let json: serde_json::Value = serde_json::from_slice(&bytes).unwrap();
        let evidence: CsvEvidence = serde_json::from_value(json.clone()).unwrap();
        let signer = evidence.attestation_report.signer().unwrap();
        assert_eq!((signer.pek, signer.serial_number), (evidence.cert_chain.pek, evidence.serial_number));
        assert_eq!(serde_json::to_value(&evidence).unwrap(), json);
    }
}
