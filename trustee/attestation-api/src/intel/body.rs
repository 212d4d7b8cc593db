//! Requests to Intel Trust Authority: evidence as guests send it, in the service's form.

use attestation::{HashAlgorithm, Part, RuntimeData};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::{Map, Value, json};
use wire::rcar::Tee;

use crate::error::Error;

/// Path and members of a request: one TEE, and the GPUs beside it.
///
/// # Errors
/// [`Error::Evidence`] for what the service does not verify.
pub(super) fn of(parts: &[Part]) -> Result<(&'static str, Map<String, Value>), Error> {
    let (mut path, mut members) = (ATTEST, Map::new());
    for part in parts {
        let (name, member) = match part.tee {
            Tee::Tdx => ("tdx", quote(part)?),
            Tee::Sgx => ("sgx", quote(part)?),
            Tee::AzTdxVtpm => {
                path = ATTEST_AZURE;
                ("tdx", azure_quote(part)?)
            }
            Tee::Nvidia => match gpus(part)? {
                Some(gpus) => ("nvgpu", gpus),
                None => continue,
            },
            _ => return Err(Error::Evidence("it is neither of TDX nor of SGX, nor of a GPU of NVIDIA")),
        };
        if members.insert(name.to_owned(), member).is_some() {
            return Err(Error::Evidence("it is of two machines"));
        }
    }
    match (members.contains_key("tdx"), members.contains_key("sgx")) {
        (true, false) | (false, true) => Ok((path, members)),
        (true, true) => Err(Error::Evidence("it is of two machines")),
        (false, false) => Err(Error::Evidence("devices are verified beside their machine only")),
    }
}

fn quote(part: &Part) -> Result<Value, Error> {
    let quote = part.evidence["quote"].as_str().ok_or(Error::Evidence("it has no quote"))?;
    Ok(json!({ "quote": quote, "runtime_data": STANDARD.encode(runtime_data(part)?) }))
}

/// Azure's quote covers the paravisor's variable data, and that, by way of the vTPM, the guest's runtime data.
fn azure_quote(part: &Part) -> Result<Value, Error> {
    let quote = bytes(&part.evidence["td_quote"]).ok_or(Error::Evidence("it has no quote"))?;
    let report = bytes(&part.evidence["hcl_report"]).ok_or(Error::Evidence("it has no HCL report"))?;
    let variable_data = variable_data(&report).ok_or(Error::Evidence("its HCL report is too short"))?;
    Ok(json!({
        "quote": STANDARD.encode(quote),
        "runtime_data": STANDARD.encode(variable_data),
        "user_data": STANDARD.encode(runtime_data(part)?),
    }))
}

/// The GPUs that the service can verify; others are left out.
fn gpus(part: &Part) -> Result<Option<Value>, Error> {
    let devices = part.evidence["device_evidence_list"].as_array().ok_or(Error::Evidence("it lists no devices"))?;
    let known = |device: &&Value| matches!(device["arch"].as_str(), Some("HOPPER" | "BLACKWELL"));
    let devices: Vec<&Value> = devices.iter().filter(known).collect();
    let Some(first) = devices.first() else { return Ok(None) };
    if devices.iter().any(|device| device["arch"] != first["arch"]) {
        return Err(Error::Evidence("its GPUs are of two architectures"));
    }
    let list = devices.iter().map(|it| json!({ "evidence": it["evidence"], "certificate": it["certificate"] }));
    let digest = HashAlgorithm::Sha512.digest(&runtime_data(part)?);
    Ok(Some(json!({
        "gpu_nonce": hex::encode(&digest[..GPU_NONCE]),
        "arch": first["arch"].as_str().map(str::to_ascii_lowercase),
        "evidence_list": list.collect::<Vec<_>>(),
    })))
}

/// What the report data is the hash of.
fn runtime_data(part: &Part) -> Result<Vec<u8>, Error> {
    match &part.runtime_data {
        RuntimeData::None => Err(Error::Evidence("it comes without runtime data")),
        RuntimeData::Raw(bytes) => Ok(bytes.clone()),
        RuntimeData::Structured(value) => serde_json_canonicalizer::to_vec(value)
            .map_err(|_| Error::Evidence("its runtime data has no canonical JSON form")),
    }
}

/// The variable data of Azure's report: behind its header and the hardware's report come five numbers of 32 bits, of
/// which the last is its length.
fn variable_data(report: &[u8]) -> Option<&[u8]> {
    let length = report.get(VARIABLE_DATA - 4..VARIABLE_DATA)?;
    let length = u32::from_le_bytes(length.try_into().ok()?);
    report.get(VARIABLE_DATA..)?.get(..usize::try_from(length).ok()?)
}

/// Bytes as guests send them: base64url, or a list of numbers.
fn bytes(value: &Value) -> Option<Vec<u8>> {
    match value {
        Value::String(text) => URL_SAFE_NO_PAD.decode(text).ok(),
        list => serde_json::from_value(list.clone()).ok(),
    }
}

const ATTEST: &str = "/appraisal/v2/attest";
const ATTEST_AZURE: &str = "/appraisal/v2/attest/azure";
const GPU_NONCE: usize = 32;
const VARIABLE_DATA: usize = 32 + 1184 + 20;

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use attestation::InitDataInput;
    use proptest::prelude::*;

    pub(crate) fn part(tee: Tee, evidence: Value) -> Part {
        Part {
            tee,
            evidence,
            runtime_data: RuntimeData::Structured(json!({ "tee-pubkey": { "kty": "EC" }, "nonce": "n" })),
            hash: HashAlgorithm::Sha512,
            init_data: InitDataInput::None,
        }
    }

    pub(crate) fn tdx() -> Part {
        part(Tee::Tdx, json!({ "quote": "AQID", "cc_eventlog": null }))
    }

    pub(crate) fn gpus_of(archs: &[&str]) -> Part {
        let device = |arch: &&str| json!({ "arch": arch, "evidence": "0a", "certificate": "Y2VydA==" });
        part(Tee::Nvidia, json!({ "device_evidence_list": archs.iter().map(device).collect::<Vec<_>>() }))
    }

    pub(crate) fn hcl_report(variable_data: &[u8]) -> Vec<u8> {
        let mut report = vec![0; VARIABLE_DATA - 4];
        report.extend(u32::try_from(variable_data.len()).unwrap().to_le_bytes());
        report.extend(variable_data);
        report.extend([0; 100]);
        report
    }

    #[test]
    fn what_can_not_be_verified_is_not_sent() {
        let without_runtime_data = Part { runtime_data: RuntimeData::None, ..tdx() };
        for parts in [
            vec![],
            vec![gpus_of(&["HOPPER"])],
            vec![tdx(), tdx()],
            vec![tdx(), part(Tee::Sgx, json!({ "quote": "AQID" }))],
            vec![tdx(), gpus_of(&["HOPPER", "BLACKWELL"])],
            vec![part(Tee::Snp, json!({}))],
            vec![part(Tee::Tdx, json!({ "quote": 1 }))],
            vec![part(Tee::AzTdxVtpm, json!({ "hcl_report": "AQID", "td_quote": "AQID" }))],
            vec![without_runtime_data],
        ] {
            assert!(matches!(of(&parts), Err(Error::Evidence(_))));
        }
    }

    proptest! {
        #[test]
        fn no_report_makes_it_panic(length in any::<u32>(), tail in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut report = vec![0; VARIABLE_DATA - 4];
            report.extend(length.to_le_bytes());
            report.extend(&tail);
            for end in [0, VARIABLE_DATA - 1, report.len()] {
                let _ = variable_data(&report[..end]);
            }
        }
    }
}
