//! Who may administer: nobody, or holders of a token that the owner signed.

use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode};
use serde::Deserialize;
use store::clock::Timestamp;

use crate::excerpt::excerpt;

/// The rule for administrative requests.
pub enum Admin {
    /// Every one is refused.
    DenyAll,
    /// A bearer token in the form of a JWT is asked for.
    Authenticated(Box<Authenticated>),
}

/// What an administrator's token must be.
pub struct Authenticated {
    key: DecodingKey,
    validation: Validation,
    roles: Vec<String>,
}

/// An administrator who showed a good token.
#[derive(Debug, PartialEq)]
pub(crate) struct Administrator {
    /// The token's `sub`.
    pub subject: Option<String>,
    /// The token's `role`.
    pub role: String,
}

impl Authenticated {
    /// Tokens signed with the private half of a public key in PEM: Ed25519 (EdDSA) or EC P-256 (ES256). The kind of
    /// the key alone decides the algorithm.
    ///
    /// # Errors
    /// [`Error::Key`] for any other key, [`Error::NoRoles`] if no role is allowed.
    pub fn new(public_key: &[u8], roles: Vec<String>) -> Result<Self, Error> {
        if roles.is_empty() {
            return Err(Error::NoRoles);
        }
        let (key, algorithm) = match DecodingKey::from_ed_pem(public_key) {
            Ok(key) => (key, Algorithm::EdDSA),
            Err(_) => (DecodingKey::from_ec_pem(public_key).map_err(|_| Error::Key)?, Algorithm::ES256),
        };
        let mut validation = Validation::new(algorithm);
        // The expiry is required and checked below, by our own clock and without leeway.
        validation.validate_exp = false;
        validation.validate_aud = false;
        Ok(Self { key, validation, roles })
    }
}

impl Admin {
    /// Checks the bearer token of a request.
    ///
    /// # Errors
    /// [`Error::DenyAll`], [`Error::NoToken`], [`Error::Token`], [`Error::Expired`], [`Error::Role`].
    pub(crate) fn authorize(&self, bearer: Option<&str>, now: Timestamp) -> Result<Administrator, Error> {
        let Self::Authenticated(rule) = self else { return Err(Error::DenyAll) };
        let token = bearer.ok_or(Error::NoToken)?;
        let Claims { exp, role, sub } = decode(token, &rule.key, &rule.validation).map_err(|_| Error::Token)?.claims;
        if now.unix() >= exp {
            return Err(Error::Expired);
        }
        if !rule.roles.contains(&role) {
            return Err(Error::Role(excerpt(&role)));
        }
        Ok(Administrator { subject: sub.map(|subject| excerpt(&subject)), role })
    }
}

/// Why an administrative request was refused, or its rule can't be set up.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("DenyAll authorization_mode is enabled; set another under [admin] in the Trustee's configuration")]
    DenyAll,
    #[error("no token: send the administrator's token as Authorization: Bearer")]
    NoToken,
    #[error(
        "Cannot verify token with any of the issuers: it must be a JWT with exp and role, signed by the owner's key"
    )]
    Token,
    #[error("the administrator's token has expired: issue a new one with trustee admin-token")]
    Expired,
    #[error("Role \"{0}\" not allowed: the Trustee's configuration lists others under [admin]")]
    Role(String),
    #[error("public_key is not an Ed25519 or EC P-256 public key in PEM")]
    Key,
    #[error("roles is empty: nobody could administer")]
    NoRoles,
}

#[derive(Deserialize)]
struct Claims {
    exp: u64,
    role: String,
    sub: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_lc_rs::encoding::AsDer as _;
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _};
    use base64::Engine as _;
    use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
    use jsonwebtoken::{EncodingKey, Header, encode};
    use serde_json::{Value, json};

    const NOW: u64 = 1_000;

    /// Keys of a kind: how to sign, and the public half as the configuration has it.
    fn keys(algorithm: Algorithm) -> (EncodingKey, String) {
        let pem =
            |der: &[u8]| format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", STANDARD.encode(der));
        if algorithm == Algorithm::EdDSA {
            let pair = Ed25519KeyPair::generate().unwrap();
            let signing = EncodingKey::from_ed_der(pair.to_pkcs8v1().unwrap().as_ref());
            (signing, pem(pair.public_key().as_der().unwrap().as_ref()))
        } else {
            let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).unwrap();
            let signing = EncodingKey::from_ec_der(pair.to_pkcs8v1().unwrap().as_ref());
            (signing, pem(pair.public_key().as_der().unwrap().as_ref()))
        }
    }

    fn rule(public_key: &str) -> Admin {
        Admin::Authenticated(Box::new(Authenticated::new(public_key.as_bytes(), vec!["admin".to_owned()]).unwrap()))
    }

    fn check(rule: &Admin, token: &str) -> Result<Administrator, Error> {
        rule.authorize(Some(token), Timestamp::from_unix(NOW))
    }

    #[test]
    fn a_good_token_names_its_holder() {
        for algorithm in [Algorithm::EdDSA, Algorithm::ES256] {
            let (signing, public) = keys(algorithm);
            let claims = json!({ "exp": NOW + 1, "role": "admin", "sub": "kim" });
            let token = encode(&Header::new(algorithm), &claims, &signing).unwrap();
            let expected = Administrator { subject: Some("kim".to_owned()), role: "admin".to_owned() };
            assert_eq!(check(&rule(&public), &token), Ok(expected));
            assert_eq!(Admin::DenyAll.authorize(Some(&token), Timestamp::from_unix(NOW)), Err(Error::DenyAll));
        }
    }

    #[test]
    fn claims_are_required_and_checked() {
        let (signing, public) = keys(Algorithm::EdDSA);
        for (claims, expected) in [
            (json!({ "exp": NOW, "role": "admin" }), Error::Expired),
            (json!({ "role": "admin" }), Error::Token),
            (json!({ "exp": NOW + 1 }), Error::Token),
            (json!({ "exp": NOW + 1, "role": "guest" }), Error::Role("guest".to_owned())),
            (json!({ "exp": NOW + 1, "role": ["admin"] }), Error::Token),
        ] {
            let token = encode(&Header::new(Algorithm::EdDSA), &claims, &signing).unwrap();
            assert_eq!(check(&rule(&public), &token), Err(expected), "{claims}");
        }
        assert_eq!(rule(&public).authorize(None, Timestamp::from_unix(NOW)), Err(Error::NoToken));
    }

    #[test]
    fn the_algorithm_is_the_keys_and_not_the_tokens() {
        let (_, public) = keys(Algorithm::EdDSA);
        let claims = json!({ "exp": NOW + 1, "role": "admin" });
        let encoded = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let (other_ed, _) = keys(Algorithm::EdDSA);
        let (ec, _) = keys(Algorithm::ES256);
        let hmac = EncodingKey::from_secret(public.as_bytes());
        for token in [
            format!("{}.{}.", encoded(&json!({ "alg": "none" })), encoded(&claims)),
            encode(&Header::new(Algorithm::HS256), &claims, &hmac).unwrap(),
            encode(&Header::new(Algorithm::ES256), &claims, &ec).unwrap(),
            encode(&Header::new(Algorithm::EdDSA), &claims, &other_ed).unwrap(),
            String::new(),
            "a.b.c".to_owned(),
        ] {
            assert_eq!(check(&rule(&public), &token), Err(Error::Token), "{token}");
        }
    }

    #[test]
    fn a_rule_needs_a_key_and_a_role() {
        let (_, public) = keys(Algorithm::ES256);
        assert_eq!(Authenticated::new(public.as_bytes(), vec![]).err(), Some(Error::NoRoles));
        assert_eq!(Authenticated::new(b"no key", vec!["a".to_owned()]).err(), Some(Error::Key));
    }
}
