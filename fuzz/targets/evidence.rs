//! What a TEE's firmware, a vTPM and a host hand to an attester, and evidence as guests send it.
#![no_main]

use libfuzzer_sys::fuzz_target;
use serde_json::from_slice;
use wire::evidence::{
    AzSnpVtpmEvidence, AzTdxVtpmEvidence, CsvCaCertificate, CsvCertificate, CsvEvidence, CsvReport, DcuReport,
    HclReport, HskCek, HygonDcuEvidence, SeRequest, SnpCertificate, SnpEvidence, SnpReport, TpmEvidence,
};

fuzz_target!(|bytes: &[u8]| {
    if let Ok(report) = SnpReport::parse(bytes) {
        assert_eq!(SnpReport::parse(&report.to_bytes()), Ok(report));
    }
    if let Ok(report) = HclReport::parse(bytes) {
        let _ = (report.hardware_report(), report.user_data());
    }
    let _ = SnpCertificate::parse_table(bytes);
    let _ = (CsvCertificate::parse(bytes), CsvCaCertificate::parse(bytes), HskCek::parse(bytes));
    let _ = DcuReport::parse_answer(bytes);
    if let Some((page, rest)) = bytes.split_first_chunk() {
        let nonce = std::array::from_fn(|i| rest.get(i).copied().unwrap_or_default());
        if let Ok(report) = CsvReport::open(*page, &nonce, rest.len() % 2 == 0) {
            let _ = report.signer();
        }
    }
    if let Ok(evidence) = from_slice::<CsvEvidence>(bytes) {
        let _ = evidence.attestation_report.signer();
    }
    let _ = (from_slice::<SnpEvidence>(bytes), from_slice::<HygonDcuEvidence>(bytes), from_slice::<SeRequest>(bytes));
    let _ = (from_slice::<AzSnpVtpmEvidence>(bytes), from_slice::<AzTdxVtpmEvidence>(bytes));
    let _ = from_slice::<TpmEvidence>(bytes);
});
