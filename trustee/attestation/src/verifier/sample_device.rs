//! The sample TEE's device: evidence of a GPU that proves nothing, for machines without one.

use serde_json::{Map, Value};

use super::{Error, Expected, Verified, sample};

/// Checks that the evidence repeats the session's report data of devices.
pub(super) fn verify(evidence: &Value, expected: &Expected<'_>) -> Result<Verified, Error> {
    let evidence = sample::read(evidence, expected)?;
    let claims = Map::from_iter([
        ("svn".to_owned(), Value::from(evidence.svn)),
        ("report_data".to_owned(), Value::from(evidence.report_data)),
    ]);
    Ok(Verified { class: "gpu", claims })
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde_json::json;

    #[test]
    fn a_device_is_a_gpu_without_initdata() {
        let evidence = json!({ "svn": "1", "report_data": STANDARD.encode([7; 48]) });
        let expected = Expected { report_data: Some(&[7; 48]), init_data: Some(&[9; 32]) };
        let verified = verify(&evidence, &expected).unwrap();
        assert_eq!((verified.class, verified.claims.len()), ("gpu", 2));

        let other = Expected { report_data: Some(&[8; 48]), init_data: None };
        assert!(matches!(verify(&evidence, &other), Err(Error::Mismatch { claim: "report_data", .. })));
    }
}
