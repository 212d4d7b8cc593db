//! The sample TEE: evidence that proves nothing, for machines without hardware.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize as _;
use serde_json::{Map, Value, json};
use wire::evidence::SampleEvidence;

use super::{Error, Expected, Verified};

/// Checks that the evidence repeats the session's report data; the other claims are the same for every guest.
pub(super) fn verify(evidence: &Value, expected: &Expected<'_>) -> Result<Verified, Error> {
    let evidence = read(evidence, expected)?;
    let mut claims = Map::from_iter([
        ("svn".to_owned(), Value::from(evidence.svn)),
        ("report_data".to_owned(), Value::from(evidence.report_data)),
        ("launch_digest".to_owned(), Value::from("abcde")),
        ("platform_version".to_owned(), json!({ "major": 1, "minor": 4 })),
        ("debug".to_owned(), Value::from(false)),
    ]);
    if let Some(digest) = expected.init_data {
        claims.insert("init_data".to_owned(), Value::from(STANDARD.encode(digest)));
    }
    Ok(Verified { class: "cpu", claims })
}

/// Reads the evidence of the sample TEE or its device, and compares its report data with what is expected.
///
/// # Errors
/// [`Error::Malformed`] or [`Error::Mismatch`].
pub(super) fn read(evidence: &Value, expected: &Expected<'_>) -> Result<SampleEvidence, Error> {
    let evidence = SampleEvidence::deserialize(evidence)
        .map_err(|_| Error::Malformed("sample evidence is an object of svn and report_data"))?;
    let report_data =
        STANDARD.decode(&evidence.report_data).map_err(|_| Error::Malformed("report_data is not standard base64"))?;
    match expected.report_data {
        Some(expected) if report_data != expected => Err(Error::Mismatch {
            claim: "report_data",
            actual: evidence.report_data.chars().take(MAX_SHOWN).collect(),
            expected: STANDARD.encode(expected),
        }),
        _ => Ok(evidence),
    }
}

/// A digest of 64 bytes in base64 is 88 characters long.
const MAX_SHOWN: usize = 100;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::verifier::{Enabled, Verifier};
    use wire::rcar::Tee;

    #[test]
    fn evidence_with_the_sessions_report_data_gives_claims() {
        let evidence = json!({ "svn": "1", "report_data": STANDARD.encode([7; 48]) });
        let expected = Expected { report_data: Some(&[7; 48]), init_data: Some(&[9; 32]) };
        let verified = verify(&evidence, &expected).unwrap();
        assert_eq!(verified.class, "cpu");
        assert_eq!(verified.claims["launch_digest"], "abcde");
        assert_eq!(verified.claims["init_data"], STANDARD.encode([9; 32]));

        let without = verify(&evidence, &Expected { report_data: Some(&[7; 48]), init_data: None }).unwrap();
        assert!(!without.claims.contains_key("init_data"));

        let unbound = Expected { report_data: None, init_data: None };
        assert_eq!(verify(&evidence, &unbound).unwrap().claims["report_data"], STANDARD.encode([7; 48]));
    }

    #[test]
    fn other_report_data_is_a_mismatch_even_if_padded() {
        let expected = Expected { report_data: Some(&[7; 48]), init_data: None };
        let mut padded = vec![7; 48];
        padded.resize(64, 0);
        for other in [vec![], vec![8; 48], padded] {
            let evidence = json!({ "svn": "1", "report_data": STANDARD.encode(other) });
            assert!(matches!(verify(&evidence, &expected), Err(Error::Mismatch { claim: "report_data", .. })));
        }
        for malformed in [json!(null), json!({ "svn": 1 }), json!({ "svn": "1", "report_data": "*" })] {
            assert!(matches!(verify(&malformed, &expected), Err(Error::Malformed(_))));
        }
    }

    #[test]
    fn the_sample_verifier_is_off_unless_enabled() {
        for tee in [Tee::Sample, Tee::SampleDevice] {
            assert_eq!(Verifier::of(tee, Enabled::default()), Err(Error::SampleDisabled));
        }
        assert_eq!(Verifier::of(Tee::Sample, Enabled { sample: true }), Ok(Verifier::Sample));
        assert_eq!(Verifier::of(Tee::Se, Enabled { sample: true }), Err(Error::Unknown(Tee::Se)));
    }
}
