//! Evidence of Hygon's DCU accelerators. In JSON, byte strings are arrays of numbers.

use serde::{Deserialize, Serialize};

use super::csv_certificate::CsvSignature;
use super::{ByteArray, Error};

/// Reports of all accelerators.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct HygonDcuEvidence {
    /// One report an accelerator.
    pub attestation_reports: Vec<DcuReport>,
}

/// What an accelerator signed, by its chip's key.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct DcuReport {
    /// What is signed.
    pub body: DcuReportBody,
    /// An SM2 signature.
    pub sig: CsvSignature,
}

impl DcuReport {
    /// Reads the driver's answer: length of the report, 4 bytes and little endian, a reserved field, the report.
    ///
    /// # Errors
    /// [`Error::Length`] if it is shorter than a report is.
    pub fn parse_answer(answer: &[u8]) -> Result<Self, Error> {
        let report = answer.get(ANSWER_HEADER..).unwrap_or_default();
        Self::read(report).ok_or(Error::Length { what: "a DCU's report", expected: LENGTH, actual: report.len() })
    }

    fn read(mut bytes: &[u8]) -> Option<Self> {
        fn number(bytes: &mut &[u8]) -> Option<u32> {
            ByteArray::take(bytes).map(|field| u32::from_le_bytes(field.0))
        }

        let rest = &mut bytes;
        let body = DcuReportBody {
            version: number(rest)?,
            chip_id: ByteArray::take(rest)?,
            user_data: ByteArray::take(rest)?,
            measure: ByteArray::take(rest)?,
            reserved: ByteArray::take(rest)?,
            sig_usage: number(rest)?,
            sig_algo: number(rest)?,
        };
        Some(Self { body, sig: CsvSignature { r: ByteArray::take(rest)?, s: ByteArray::take(rest)? } })
    }
}

/// What the signature of a [`DcuReport`] covers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct DcuReportBody {
    pub version: u32,
    /// The chip, by which Hygon's service knows its certificates.
    pub chip_id: ByteArray<16>,
    /// The report data.
    pub user_data: ByteArray<64>,
    /// The firmware's measurement.
    pub measure: ByteArray<32>,
    pub reserved: ByteArray<128>,
    pub sig_usage: u32,
    pub sig_algo: u32,
}

const ANSWER_HEADER: usize = 32;
const LENGTH: usize = 396;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fields_lie_where_the_driver_puts_them() {
        let answer: Vec<u8> = (0..ANSWER_HEADER + LENGTH).map(|i| i as u8).collect();
        let report = DcuReport::parse_answer(&answer).unwrap();
        let at = |offset: usize| (ANSWER_HEADER + offset) as u8;
        let body = report.body;
        assert_eq!(body.version, u32::from_le_bytes([32, 33, 34, 35]));
        assert_eq!((body.chip_id.0[0], body.user_data.0[0], body.measure.0[0]), (at(4), at(20), at(84)));
        assert_eq!((body.reserved.0[0], body.sig_usage as u8, body.sig_algo as u8), (at(116), at(244), at(248)));
        assert_eq!((report.sig.r.0[0], report.sig.s.0[71]), (at(252), at(395)));
    }

    #[test]
    fn a_short_answer_is_refused() {
        for length in [0, 31, ANSWER_HEADER + LENGTH - 1] {
            assert!(matches!(DcuReport::parse_answer(&vec![0; length]), Err(Error::Length { .. })));
        }
    }
}
