//! `kbs-client explain`: why a guest was refused, with the values that only its owner may see.

use std::path::PathBuf;

use clap::Args;
use serde::Deserialize;
use serde_json::Value;

use crate::Outcome;
use cli::trustee::Trustee;

/// Which refusal.
#[derive(Args)]
pub struct Arguments {
    /// The reference that the guest was given.
    #[arg(long)]
    pub reference: String,
    /// File with the administrator's token. Default: ~/.trustee/admin-token if it is there.
    #[arg(long)]
    pub admin_token_file: Option<PathBuf>,
}

/// Prints the record of a refusal.
pub async fn run(trustee: &Trustee, reference: &str, json: bool) -> Outcome {
    if !reference.bytes().all(|b| b.is_ascii_alphanumeric()) {
        return Err("--reference is not one; next: give the letters and digits that the guest was told".into());
    }
    let answer = trustee.get(&format!("explain/{reference}")).await?;
    if json {
        println!("{}", String::from_utf8_lossy(&answer));
        return Ok(());
    }
    let refusal: Refusal = serde_json::from_slice(&answer)
        .map_err(|e| format!("the answer is no explanation: {e}; next: check that --url is that of a Trustee"))?;
    print!("{}", refusal.to_text());
    Ok(())
}

#[derive(Deserialize)]
struct Refusal {
    reference: String,
    time: String,
    stage: String,
    resource: Option<String>,
    cause: String,
    claims: Vec<Claim>,
}

#[derive(Deserialize)]
struct Claim {
    claim: String,
    actual: Value,
    expected: Value,
    reference_value: Option<String>,
}

impl Refusal {
    fn to_text(&self) -> String {
        let Self { reference, time, stage, resource, cause, claims } = self;
        let resource = resource.as_ref().map(|resource| format!("\nresource   {resource}")).unwrap_or_default();
        let mut text =
            format!("reference  {reference}\ntime       {time}\nstage      {stage}{resource}\ncause      {cause}\n");
        if claims.is_empty() {
            text.push_str("No claim is known to be wrong; a rule expected in the policy would name them.\n");
        }
        for Claim { claim, actual, expected, reference_value } in claims {
            let expected = match (expected, reference_value) {
                (Value::Null, Some(name)) => format!("reference value {name}, which is not registered"),
                (value, Some(name)) => format!("{value} (reference value {name})"),
                (value, None) => value.to_string(),
            };
            text.push_str(&format!("\n{claim}\n  actual    {actual}\n  expected  {expected}\n"));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_refusal_is_told_with_its_claims() {
        let refusal: Refusal = serde_json::from_value(json!({
            "reference": "4f1c", "time": "2026-11-24T00:00:00Z", "stage": "resource policy", "resource": "a/b/c",
            "cause": "the policy's rule allow is not true",
            "claims": [
                { "claim": "/submods/cpu0/ear.status", "actual": "warning", "expected": ["affirming"] },
                { "claim": "reference value svn", "actual": null, "expected": null, "reference_value": "svn" },
            ],
        }))
        .unwrap();
        let text = refusal.to_text();
        for part in [
            "reference  4f1c",
            "resource   a/b/c",
            "actual    \"warning\"",
            "expected  [\"affirming\"]",
            "svn, which is not registered",
        ] {
            assert!(text.contains(part), "{text}");
        }
    }
}
