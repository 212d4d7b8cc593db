//! Attestation tokens: an EAT attestation result (EAR) as a compact JWS, signed with ES256.
//!
//! The signing key lives in the store, so that a restart or another Trustee on the same store keeps trusting the
//! tokens that were issued.

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use store::clock::Timestamp;
use store::{Key, Namespace, Store};

use crate::appraisal::TrustVector;

/// Signs tokens and recognises the ones it signed.
pub(crate) struct Signer {
    key: EcdsaKeyPair,
    /// The protected header, the same for every token, in base64url.
    header: String,
}

/// One appraised part of a guest.
pub(crate) struct Submodule {
    /// Class and index, `cpu0`.
    pub name: String,
    pub vector: TrustVector,
    /// Id of the policy that was asked for, without the class.
    pub policy_id: String,
    /// The input of the appraisal.
    pub evidence: Value,
    /// Members that the policy adds, by name.
    pub extensions: Map<String, Value>,
}

impl Signer {
    /// Loads the signing key, or makes one if the store has none.
    ///
    /// # Errors
    /// [`Error::Store`]; [`Error::Key`] if the key can't be made or read.
    pub async fn load(store: &Store) -> Result<Self, Error> {
        let name = Key::parse("token-signer")?;
        if let Some(entry) = store.get(NAMESPACE, &name).await? {
            return Self::from_pkcs8(&entry.value);
        }
        let key = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| Error::Key)?;
        let document = key.to_pkcs8v1().map_err(|_| Error::Key)?;
        match store.put_if(NAMESPACE, &name, document.as_ref(), None).await {
            Ok(_) => Self::from_pkcs8(document.as_ref()),
            // Another process was faster: its key counts.
            Err(store::Error::Conflict { .. }) => match store.get(NAMESPACE, &name).await? {
                Some(entry) => Self::from_pkcs8(&entry.value),
                None => Err(Error::Key),
            },
            Err(e) => Err(e.into()),
        }
    }

    fn from_pkcs8(document: &[u8]) -> Result<Self, Error> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, document).map_err(|_| Error::Key)?;
        // An uncompressed point: 4, x, y.
        let point = key.public_key().as_ref();
        let (x, y) = match point {
            [4, coordinates @ ..] if coordinates.len() == 64 => coordinates.split_at(32),
            _ => return Err(Error::Key),
        };
        let jwk = json!({
            "kty": "EC", "crv": "P-256", "alg": ALGORITHM, "x": URL_SAFE_NO_PAD.encode(x), "y": URL_SAFE_NO_PAD.encode(y),
        });
        let header = json!({ "typ": "JWT", "alg": ALGORITHM, "jwk": jwk });
        let header = URL_SAFE_NO_PAD.encode(header.to_string());
        Ok(Self { key, header })
    }

    /// A token with the given submodules.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a token that would not be accepted either; [`Error::Sign`] if the system gives no
    /// randomness.
    pub fn issue(&self, submodules: Vec<Submodule>, now: Timestamp, expiry: Timestamp) -> Result<String, Error> {
        let submods: Map<String, Value> =
            submodules.into_iter().map(|part| (part.name.clone(), part.into_json())).collect();
        let claims = json!({
            "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
            "iat": now.unix(),
            "exp": expiry.unix(),
            "iss": "CoCo-Attestation-Service",
            "ear.verifier-id": {
                "developer": "https://confidentialcontainers.org",
                "build": "attestation-service 0.1.0",
            },
            "submods": submods,
        });
        let token = self.sign(&claims)?;
        if token.len() > MAX_TOKEN { Err(Error::TooLarge) } else { Ok(token) }
    }

    /// The claims of a token that this signer issued and that has not expired.
    ///
    /// # Errors
    /// [`Error::TooLarge`], [`Error::Form`], [`Error::Algorithm`], [`Error::Signature`], [`Error::Expired`].
    pub fn verify(&self, token: &str, now: Timestamp) -> Result<Value, Error> {
        if token.len() > MAX_TOKEN {
            return Err(Error::TooLarge);
        }
        let (signed, signature) = token.rsplit_once('.').ok_or(Error::Form)?;
        let (header, payload) = signed.split_once('.').ok_or(Error::Form)?;
        let header: Value = decode_json(header)?;
        // The key decides the algorithm; a header can only agree. The header's own key is never used.
        if header["alg"] != ALGORITHM {
            return Err(Error::Algorithm);
        }
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| Error::Form)?;
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref())
            .verify(signed.as_bytes(), &signature)
            .map_err(|_| Error::Signature)?;
        let claims: Value = decode_json(payload)?;
        match claims["exp"].as_u64() {
            Some(expiry) if now.unix() < expiry => Ok(claims),
            _ => Err(Error::Expired),
        }
    }

    fn sign(&self, claims: &Value) -> Result<String, Error> {
        let mut token = format!("{}.{}", self.header, URL_SAFE_NO_PAD.encode(claims.to_string()));
        let signature = self.key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| Error::Sign)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature.as_ref(), &mut token);
        Ok(token)
    }
}

impl Submodule {
    fn into_json(self) -> Value {
        let mut members = self.extensions;
        members.insert("ear.status".to_owned(), Value::from(self.vector.status().to_string()));
        members.insert("ear.trustworthiness-vector".to_owned(), Value::Object(self.vector.to_json()));
        members.insert("ear.appraisal-policy-id".to_owned(), Value::from(self.policy_id));
        members.insert("ear.veraison.annotated-evidence".to_owned(), self.evidence);
        Value::Object(members)
    }
}

/// Why a token could not be issued, or is not accepted. No variant repeats any part of a token.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the attestation token is longer than {MAX_TOKEN} bytes: send less initdata")]
    TooLarge,
    #[error("the attestation token is not a compact JWS")]
    Form,
    #[error("the attestation token is not signed with {ALGORITHM}")]
    Algorithm,
    #[error("the attestation token was not signed by this Trustee")]
    Signature,
    #[error("the attestation token has expired: attest again")]
    Expired,
    #[error("the attestation token can't be signed: the system gives no randomness")]
    Sign,
    #[error("the token signing key can't be made or read: restore the store from a backup")]
    Key,
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn decode_json(part: &str) -> Result<Value, Error> {
    let text = URL_SAFE_NO_PAD.decode(part).map_err(|_| Error::Form)?;
    serde_json::from_slice(&text).map_err(|_| Error::Form)
}

const NAMESPACE: Namespace = Namespace::new("key");
const ALGORITHM: &str = "ES256";
const MAX_TOKEN: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_000_000;

    fn at(seconds: u64) -> Timestamp {
        Timestamp::from_unix(seconds)
    }

    fn part() -> Submodule {
        Submodule {
            name: "cpu0".to_owned(),
            vector: TrustVector::from_policy(&json!({ "executables": 3, "hardware": 97 })).unwrap(),
            policy_id: "default".to_owned(),
            evidence: json!({ "sample": { "svn": "1" } }),
            extensions: Map::new(),
        }
    }

    #[tokio::test]
    async fn a_token_has_the_members_of_an_ear() {
        let signer = Signer::load(&Store::memory().await.unwrap()).await.unwrap();
        let token = signer.issue(vec![part()], at(NOW), at(NOW + 300)).unwrap();

        let header: Value = decode_json(token.split('.').next().unwrap()).unwrap();
        assert_eq!((header["typ"].as_str(), header["alg"].as_str()), (Some("JWT"), Some("ES256")));
        assert_eq!((header["jwk"]["kty"].as_str(), header["jwk"]["crv"].as_str()), (Some("EC"), Some("P-256")));
        assert_eq!(header["jwk"]["x"].as_str().unwrap().len(), 43);

        let claims = signer.verify(&token, at(NOW)).unwrap();
        assert_eq!((claims["iat"].as_u64(), claims["exp"].as_u64()), (Some(NOW), Some(NOW + 300)));
        assert_eq!(claims["submods"]["cpu0"]["ear.status"], "contraindicated");
        assert_eq!(claims["submods"]["cpu0"]["ear.trustworthiness-vector"]["sourced-data"], 0);
        assert_eq!(claims["submods"]["cpu0"]["ear.veraison.annotated-evidence"]["sample"]["svn"], "1");
    }

    #[tokio::test]
    async fn only_an_unchanged_and_fresh_token_of_the_same_signer_is_accepted() {
        let store = Store::memory().await.unwrap();
        let signer = Signer::load(&store).await.unwrap();
        let token = signer.issue(vec![part()], at(NOW), at(NOW + 300)).unwrap();
        assert!(Signer::load(&store).await.unwrap().verify(&token, at(NOW + 299)).is_ok());
        assert!(matches!(signer.verify(&token, at(NOW + 300)), Err(Error::Expired)));

        let other = Signer::load(&Store::memory().await.unwrap()).await.unwrap();
        assert!(matches!(other.verify(&token, at(NOW)), Err(Error::Signature)));

        let [header, payload, signature]: [&str; 3] = token.split('.').collect::<Vec<_>>().try_into().unwrap();
        let encoded = |json: &Value| URL_SAFE_NO_PAD.encode(json.to_string());
        let none = encoded(&json!({ "alg": "none" }));
        let hs256 = encoded(&json!({ "alg": "HS256" }));
        let later = encoded(&json!({ "exp": NOW * 2 }));
        for (changed, expected) in [
            (format!("{none}.{payload}."), "not signed with"),
            (format!("{hs256}.{payload}.{signature}"), "not signed with"),
            (format!("{header}.{later}.{signature}"), "not signed by this"),
            (format!("{header}.{payload}."), "not signed by this"),
            (format!("{header}.{payload}.*"), "not a compact"),
            (format!("{header}.{payload}"), "not a compact"),
            (String::new(), "not a compact"),
        ] {
            let error = signer.verify(&changed, at(NOW)).unwrap_err().to_string();
            assert!(error.contains(expected), "{changed}: {error}");
        }
    }

    #[tokio::test]
    async fn a_token_that_would_not_be_accepted_is_not_issued() {
        let signer = Signer::load(&Store::memory().await.unwrap()).await.unwrap();
        let large = Submodule { evidence: Value::from("x".repeat(MAX_TOKEN)), ..part() };
        assert!(matches!(signer.issue(vec![large], at(NOW), at(NOW + 300)), Err(Error::TooLarge)));
    }

    #[tokio::test]
    async fn a_token_without_expiry_is_not_accepted() {
        let signer = Signer::load(&Store::memory().await.unwrap()).await.unwrap();
        let token = signer.sign(&json!({ "submods": {} })).unwrap();
        assert!(matches!(signer.verify(&token, at(NOW)), Err(Error::Expired)));
    }
}
