//! Azure's confidential VMs on AMD SEV-SNP.

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::Value;
use wire::evidence::AzSnpVtpmEvidence;
use wire::rcar::Tee;

use crate::attester::{Collector, json};
use crate::azure::{Azure, EVIDENCE_VERSION, MAX_ANSWER, encoded};
use crate::http::{self, Request};
use crate::{Binding, Error, InitDataDigest, Registers};

/// A confidential VM.
#[derive(Debug)]
pub(crate) struct AzSnpVtpm(pub(crate) Azure);

impl AzSnpVtpm {
    /// The chip's certificate in DER, from the metadata service.
    fn vcek(&self) -> Result<Vec<u8>, Error> {
        #[derive(Deserialize)]
        struct Certificates {
            #[serde(rename = "vcekCert")]
            vcek: String,
        }

        let url = format!("{}/metadata/THIM/amd/certification", self.0.metadata);
        let answer = http::fetch(Request::Get { url: &url, headers: &[("Metadata", "true")] }, MAX_ANSWER)?;
        let certificates: Certificates = serde_json::from_slice(&answer).map_err(|e| Error::malformed(WHAT, e))?;
        let der = CertificateDer::from_pem_slice(certificates.vcek.as_bytes());
        Ok(der.map_err(|e| Error::malformed(WHAT, e))?.to_vec())
    }
}

impl Collector for AzSnpVtpm {
    fn tee(&self) -> Tee {
        Tee::AzSnpVtpm
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        let hcl_report = self.0.fresh_report(report_data)?;
        json(&AzSnpVtpmEvidence {
            version: EVIDENCE_VERSION,
            tpm_quote: self.0.quote(report_data)?,
            hcl_report: encoded(hcl_report.as_bytes()),
            vcek: encoded(&self.vcek()?),
        })
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(&self.0.pcrs)
    }

    fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        self.0.pcrs.bind(digest)
    }
}

const WHAT: &str = "the metadata service's certificates";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::tests::{report, vtpm};
    use crate::http::tests::Server;

    const ANSWER: &str = r#"{"vcekCert":"-----BEGIN CERTIFICATE-----\nMAMCAQE=\n-----END CERTIFICATE-----\n","certificateChain":"","tcbm":"0"}"#;

    #[test]
    fn evidence_is_quote_report_and_certificate() {
        let Some(swtpm) = vtpm(2, &[7; 48]) else { return };
        let server = Server::start(vec![(200, ANSWER.into())]);
        let attester = AzSnpVtpm(Azure::for_test(&swtpm.machine(), server.url()));

        let json = attester.evidence(&[7; 48], None).unwrap();

        let evidence: AzSnpVtpmEvidence = serde_json::from_value(json).unwrap();
        assert_eq!((evidence.version, evidence.vcek), (2, encoded(&[0x30, 3, 2, 1, 1])));
        assert_eq!(evidence.hcl_report, encoded(&report(2, &[7; 48])));
        assert_eq!((evidence.tpm_quote.signature.len(), evidence.tpm_quote.pcrs.len()), (512, 24));
        assert!(evidence.tpm_quote.message.contains(&hex::encode([&[0, 48][..], &[7; 48]].concat())));
        assert!(server.requests()[0].starts_with("GET /metadata/THIM/amd/certification HTTP/1.1\r\n"));
    }

    #[test]
    fn an_answer_without_a_certificate_is_refused() {
        let Some(swtpm) = vtpm(2, &[7; 48]) else { return };
        for answer in ["{}", r#"{"vcekCert":"none"}"#, "not JSON"] {
            let server = Server::start(vec![(200, answer.into())]);
            let attester = AzSnpVtpm(Azure::for_test(&swtpm.machine(), server.url()));
            assert!(matches!(attester.vcek(), Err(Error::Malformed { .. })), "{answer}");
        }
    }
}
