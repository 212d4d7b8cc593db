//! Azure's confidential VMs on Intel TDX.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::{Value, json as object};
use wire::evidence::{AzTdxVtpmEvidence, HclReport};
use wire::rcar::Tee;

use crate::attester::{Collector, json};
use crate::azure::{Azure, EVIDENCE_VERSION, MAX_ANSWER, encoded};
use crate::http::{self, Request};
use crate::{Binding, Error, InitDataDigest, Registers};

/// A confidential VM.
#[derive(Debug)]
pub(crate) struct AzTdxVtpm(pub(crate) Azure);

impl AzTdxVtpm {
    /// The quote for the domain's report, from the metadata service.
    fn quote(&self, report: &HclReport) -> Result<Vec<u8>, Error> {
        #[derive(Deserialize)]
        struct Answer {
            quote: String,
        }

        let url = format!("{}/acc/tdquote", self.0.metadata);
        let body = object!({ "report": URL_SAFE_NO_PAD.encode(report.hardware_report()) });
        let answer = http::fetch(Request::Post { url: &url, body: &body }, MAX_ANSWER)?;
        let answer: Answer = serde_json::from_slice(&answer).map_err(|e| Error::malformed(WHAT, e))?;
        let quote = URL_SAFE_NO_PAD.decode(answer.quote.trim_end_matches('='));
        quote.map_err(|_| Error::malformed(WHAT, "it is not base64url"))
    }
}

impl Collector for AzTdxVtpm {
    fn tee(&self) -> Tee {
        Tee::AzTdxVtpm
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        let hcl_report = self.0.fresh_report(report_data)?;
        json(&AzTdxVtpmEvidence {
            version: EVIDENCE_VERSION,
            tpm_quote: self.0.quote(report_data)?,
            td_quote: encoded(&self.quote(&hcl_report)?),
            hcl_report: encoded(hcl_report.as_bytes()),
        })
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(&self.0.pcrs)
    }

    fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        self.0.pcrs.bind(digest)
    }
}

const WHAT: &str = "the metadata service's quote";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::azure::tests::{report, vtpm};
    use crate::http::tests::Server;

    #[test]
    fn evidence_is_both_quotes_and_the_report() {
        let Some(swtpm) = vtpm(4, &[7; 48]) else { return };
        let server = Server::start(vec![(200, br#"{"quote":"BAD_"}"#.to_vec())]);
        let attester = AzTdxVtpm(Azure::for_test(&swtpm.machine(), server.url()));

        let json = attester.evidence(&[7; 48], None).unwrap();

        let evidence: AzTdxVtpmEvidence = serde_json::from_value(json).unwrap();
        assert_eq!((evidence.version, evidence.td_quote.as_str()), (2, "BAD_"));
        assert_eq!(evidence.hcl_report, encoded(&report(4, &[7; 48])));
        assert!(evidence.tpm_quote.message.contains(&hex::encode([7; 48])));
        let request = &server.requests()[0];
        assert!(request.starts_with("POST /acc/tdquote HTTP/1.1\r\n"), "{request}");
        assert!(request.ends_with(&format!(r#"{{"report":"{}"}}"#, URL_SAFE_NO_PAD.encode([4; 1024]))), "{request}");
    }
}
