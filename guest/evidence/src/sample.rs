//! The sample TEE: evidence for machines without hardware.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::evidence::SampleEvidence;

use crate::Error;

/// Evidence with the report data as it is, neither padded nor cut: its verifier compares it as a whole.
pub(crate) fn evidence(report_data: &[u8]) -> Result<Value, Error> {
    let evidence = SampleEvidence { svn: SVN.to_owned(), report_data: STANDARD.encode(report_data) };
    serde_json::to_value(evidence).map_err(|e| Error::Json(e.to_string()))
}

const SVN: &str = "1";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_has_the_form_on_the_wire() {
        let evidence = evidence(&[0xfb, 0xff]).unwrap();
        assert_eq!(evidence, serde_json::json!({ "svn": "1", "report_data": "+/8=" }));
    }
}
