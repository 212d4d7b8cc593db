//! Attestation tokens (compact JWS) as their holder sees them: the payload, without a verification.

use serde_json::Value;

use crate::encoding;

/// The payload of a compact JWS, **not verified**: a guest reads the expiry of its own token with this.
///
/// # Errors
/// [`Error`] if the text does not have three parts, or the second is not base64url of a JSON object.
pub fn unverified_claims(jwt: &str) -> Result<Value, Error> {
    if jwt.len() > MAX_TOKEN {
        return Err(Error::TooLarge);
    }
    let mut parts = jwt.split('.');
    let (Some(_), Some(payload), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return Err(Error::NotCompact);
    };
    let payload = encoding::url(payload).ok_or(Error::Payload)?;
    match serde_json::from_slice(&payload) {
        Ok(claims @ Value::Object(_)) => Ok(claims),
        _ => Err(Error::Payload),
    }
}

/// Why a token can't be read. Tokens are credentials: no variant repeats any of the text.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("the token is longer than {MAX_TOKEN} bytes")]
    TooLarge,
    #[error("the token is not a compact JWS of three parts")]
    NotCompact,
    #[error("the token's payload is not base64url of a JSON object")]
    Payload,
}

/// Real tokens of TEEs with event logs reach some 100 KiB.
const MAX_TOKEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_payload_is_read_and_anything_else_refused() {
        let jwt = format!("e30.{}.sig", encoding::to_url(br#"{"exp":7}"#));
        assert_eq!(unverified_claims(&jwt).unwrap()["exp"], 7);

        for (jwt, error) in [
            ("", Error::NotCompact),
            ("a.b", Error::NotCompact),
            ("a.b.c.d", Error::NotCompact),
            ("a.*.c", Error::Payload),
            ("a.W10.c", Error::Payload), // []
        ] {
            assert_eq!(unverified_claims(jwt).unwrap_err(), error, "{jwt:?}");
        }
    }
}
