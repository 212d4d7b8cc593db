//! IBM Secure Execution: the Ultravisor answers the verifier's own request.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::evidence::{SeEvidence, SeRequest};
use wire::rcar::Tee;

use crate::Error;
use crate::attester::{Collector, MAX_REPORT_DATA, json, padded};
use crate::machine::{Call, Machine};

/// A protected guest.
#[derive(Debug)]
pub(crate) struct Se {
    machine: Machine,
}

impl Se {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }
}

impl Collector for Se {
    fn tee(&self) -> Tee {
        Tee::Se
    }

    fn max_report_data(&self) -> usize {
        MAX_REQUEST_TEXT
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        let refused = |reason: String| Error::malformed(WHAT, reason);
        let request: SeRequest = serde_json::from_slice(report_data)
            .map_err(|e| refused(format!("it is not the JSON expected (line {}, column {})", e.line(), e.column())))?;
        let blob = STANDARD.decode(&request.request_blob).map_err(|_| refused("its blob is not base64".to_owned()))?;
        if blob.is_empty() || blob.len() > MAX_REQUEST {
            return Err(refused(format!("its blob has {} bytes, where 1 to {MAX_REQUEST} are taken", blob.len())));
        }
        let buffer = |what: &str, size: u32| match size as usize {
            size if size <= MAX_ANSWER => Ok(vec![0; size]),
            size => Err(refused(format!("its {what} of {size} bytes is longer than {MAX_ANSWER}"))),
        };
        let mut measurement = buffer("measurement", request.measurement_size)?;
        let mut additional_data = buffer("additional data", request.additional_size)?;
        // Without the digest the answer would fit any handshake.
        let digest = request.runtime_data_digest.ok_or_else(|| refused("it has no runtime_data_digest".to_owned()))?;
        let digest =
            STANDARD.decode(digest).map_err(|_| refused("its runtime_data_digest is not base64".to_owned()))?;
        if digest.is_empty() || digest.len() > MAX_REPORT_DATA {
            return Err(refused(format!("its runtime_data_digest has {} bytes", digest.len())));
        }
        let user_data = padded(&digest);

        let mut configuration = [0; 16];
        let call = Call::SeAttest {
            request: &blob,
            user_data: &user_data,
            measurement: &mut measurement,
            additional_data: &mut additional_data,
            configuration: &mut configuration,
        };
        self.machine.kernel().call(DEVICE, call).map_err(|e| Error::file(DEVICE, &e))?;
        json(&SeEvidence {
            measurement: STANDARD.encode(measurement),
            additional_data: STANDARD.encode(additional_data),
            user_data: STANDARD.encode(user_data),
            cuid: STANDARD.encode(configuration),
            encr_measurement_key: request.encr_measurement_key,
            encr_request_nonce: request.encr_request_nonce,
            image_hdr_tags: request.image_hdr_tags,
        })
    }
}

/// Says `1` in a protected guest.
pub(crate) const PROTECTED: &str = "/sys/firmware/uv/prot_virt_guest";
const DEVICE: &str = "/dev/uv";
const WHAT: &str = "the verifier's request";
/// Limits of the kernel's driver.
const MAX_REQUEST: usize = 1 << 20;
const MAX_ANSWER: usize = 32 << 10;
/// The request in base64, and room for the other members.
const MAX_REQUEST_TEXT: usize = 2 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;
    use serde_json::json;

    fn se() -> Se {
        let kernel = FakeKernel::new().device(DEVICE, |call| match call {
            Call::SeAttest { request, user_data, measurement, additional_data, configuration } => {
                assert_eq!((request, user_data), (&b"blob"[..], &padded(&[7; 48])[..]));
                measurement.fill(1);
                additional_data.fill(2);
                *configuration = [3; 16];
                Ok(())
            }
            call => panic!("{call:?}"),
        });
        Se::new(&kernel.machine().0)
    }

    fn request() -> Value {
        json!({
            "request_blob": STANDARD.encode("blob"), "measurement_size": 3, "additional_size": 2,
            "encr_measurement_key": "a2V5", "encr_request_nonce": "bm9uY2U=", "image_hdr_tags": "dGFncw==",
            "runtime_data_digest": STANDARD.encode([7; 48]),
        })
    }

    #[test]
    fn the_answer_carries_the_digest_and_what_goes_back() {
        let evidence = se().evidence(request().to_string().as_bytes(), None).unwrap();
        assert_eq!(
            evidence,
            json!({
                "measurement": "AQEB", "additional_data": "AgI=", "user_data": STANDARD.encode(padded(&[7; 48])),
                "cuid": STANDARD.encode([3; 16]), "encr_measurement_key": "a2V5",
                "encr_request_nonce": "bm9uY2U=", "image_hdr_tags": "dGFncw==",
            })
        );
    }

    #[test]
    fn a_request_that_binds_nothing_or_too_much_is_refused() {
        for (member, value, reason) in [
            ("runtime_data_digest", Value::Null, "no runtime_data_digest"),
            ("runtime_data_digest", json!(STANDARD.encode([7; 65])), "65 bytes"),
            ("runtime_data_digest", json!("?"), "not base64"),
            ("measurement_size", json!(32769), "longer than"),
            ("additional_size", json!(u32::MAX), "longer than"),
            ("request_blob", json!(""), "0 bytes"),
            ("request_blob", json!(7), "JSON"),
        ] {
            let mut request = request();
            request[member] = value;
            let error = se().evidence(request.to_string().as_bytes(), None).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
    }
}
