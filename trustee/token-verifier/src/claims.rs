//! The claims that decide when, by whom and for whom a token is good (RFC 7519 section 4.1).

use serde_json::Value;
use store::clock::Timestamp;

use crate::error::Error;

/// Checks `exp`, which has to be there and is stretched by `leeway` seconds, and `nbf`, which is stretched by a minute.
///
/// # Errors
/// [`Error::Times`], [`Error::Expired`], [`Error::NotYetValid`].
pub(crate) fn check_times(claims: &Value, now: Timestamp, leeway: u64) -> Result<(), Error> {
    let expiry = claims.get("exp").and_then(seconds).ok_or(Error::Times)?;
    if now.unix() >= expiry.saturating_add(leeway) {
        return Err(Error::Expired);
    }
    if let Some(start) = claims.get("nbf") {
        let start = seconds(start).ok_or(Error::Times)?;
        if now.unix().saturating_add(SKEW) < start {
            return Err(Error::NotYetValid);
        }
    }
    Ok(())
}

/// Checks `iss` and `aud` against what is asked for.
///
/// # Errors
/// [`Error::Issuer`], [`Error::Audience`].
pub(crate) fn check_parties(claims: &Value, issuer: Option<&str>, audience: Option<&str>) -> Result<(), Error> {
    if issuer.is_some_and(|issuer| claims["iss"] != issuer) {
        return Err(Error::Issuer);
    }
    let meant_for = |audience: &str| match &claims["aud"] {
        Value::String(one) => one == audience,
        Value::Array(several) => several.iter().any(|one| one == audience),
        _ => false,
    };
    if audience.is_some_and(|audience| !meant_for(audience)) {
        return Err(Error::Audience);
    }
    Ok(())
}

/// A NumericDate, whose fractions don't matter.
fn seconds(date: &Value) -> Option<u64> {
    date.as_u64().or_else(|| date.as_f64().filter(|&date| date >= 0.0).map(|date| date as u64))
}

/// How far the clock of who issues tokens may be ahead, in seconds.
const SKEW: u64 = 60;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const NOW: u64 = 1_000_000;

    #[test]
    fn times_are_checked_to_the_second() {
        for (claims, leeway, expected) in [
            (json!({ "exp": NOW + 1 }), 0, "Ok"),
            (json!({ "exp": NOW as f64 + 1.5 }), 0, "Ok"),
            (json!({ "exp": NOW }), 0, "Expired"),
            (json!({ "exp": NOW - 59 }), 60, "Ok"),
            (json!({ "exp": NOW - 60 }), 60, "Expired"),
            (json!({ "exp": u64::MAX }), 60, "Ok"),
            (json!({ "exp": 1e300 }), 60, "Ok"),
            (json!({ "exp": -1 }), 0, "Times"),
            (json!({ "exp": "never" }), 0, "Times"),
            (json!({ "exp": null }), 0, "Times"),
            (json!({}), 0, "Times"),
            (json!({ "exp": NOW + 1, "nbf": NOW + 60 }), 0, "Ok"),
            (json!({ "exp": NOW + 1, "nbf": NOW + 61 }), 0, "NotYetValid"),
            (json!({ "exp": NOW + 1, "nbf": "x" }), 0, "Times"),
        ] {
            let result = check_times(&claims, Timestamp::from_unix(NOW), leeway);
            assert_eq!(result.map_or_else(|e| format!("{e:?}"), |()| "Ok".to_owned()), expected, "{claims}");
        }
    }

    #[test]
    fn issuer_and_audience_are_checked_where_they_are_asked_for() {
        for (claims, issuer, audience, expected) in [
            (json!({}), None, None, "Ok"),
            (json!({ "iss": "a", "aud": "b" }), Some("a"), Some("b"), "Ok"),
            (json!({ "iss": "a", "aud": ["c", "b"] }), Some("a"), Some("b"), "Ok"),
            (json!({ "iss": "a" }), Some("b"), None, "Issuer"),
            (json!({ "iss": ["b"] }), Some("b"), None, "Issuer"),
            (json!({}), Some("b"), None, "Issuer"),
            (json!({ "aud": "bc" }), None, Some("b"), "Audience"),
            (json!({ "aud": [] }), None, Some("b"), "Audience"),
            (json!({ "aud": { "b": "b" } }), None, Some("b"), "Audience"),
        ] {
            let result = check_parties(&claims, issuer, audience);
            assert_eq!(result.map_or_else(|e| format!("{e:?}"), |()| "Ok".to_owned()), expected, "{claims}");
        }
    }
}
