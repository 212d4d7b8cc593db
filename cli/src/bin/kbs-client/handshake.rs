//! The guest's side of the protocol: a challenge answered with evidence, and resources for the token.

use evidence::Attester;
use reqwest::Method;
use reqwest::header::{AUTHORIZATION, COOKIE, HeaderMap, SET_COOKIE};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use wire::initdata::InitData;
use wire::jwe::{self, Jwe, TeeKey};
use wire::rcar::{Challenge, Request, RuntimeData, TokenResponse};
use wire::resource::{ResourcePath, ResourceUri};
use zeroize::Zeroizing;

use cli::trustee::{self, Trustee};

/// This machine as a guest of a Trustee.
pub struct Guest {
    trustee: Trustee,
    key: TeeKey,
    /// The session's cookie, once it has attested.
    cookie: Option<String>,
}

impl Guest {
    /// A guest that secrets are sealed to by its key.
    pub fn new(trustee: Trustee, key: TeeKey) -> Self {
        Self { trustee, key, cookie: None }
    }

    /// Attests, and returns the token.
    ///
    /// # Errors
    /// [`Error`] with the stage that failed.
    pub async fn attest(&mut self, attester: &Attester, initdata: Option<&InitData>) -> Result<String, Error> {
        let request = serde_json::to_vec(&Request::new(attester.tee())).unwrap_or_default();
        let answer = self.trustee.send(Method::POST, "auth", request, None).await?;
        let cookie = (COOKIE, cookies(&answer.headers));
        let challenge: Challenge = parse("the challenge", &answer.body)?;

        let algorithm = challenge.hash_algorithm()?;
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey: self.key.public_jwk()? };
        let devices = attester.additional_evidence(&runtime_data.device_report_data(algorithm)?)?;
        let additional = devices.map_or_else(String::new, |devices| Value::from(devices).to_string());
        let evidence = attester.evidence(&runtime_data.report_data(&additional, algorithm)?)?;
        let mut attestation = json!({
            "runtime-data": runtime_data,
            "tee-evidence": { "primary_evidence": evidence, "additional_evidence": additional },
        });
        if let Some(initdata) = initdata {
            attestation["init-data"] = json!({ "format": "toml", "body": initdata.text() });
        }
        let attestation = attestation.to_string().into_bytes();
        let answer = self.trustee.send(Method::POST, "attest", attestation, Some(cookie)).await?;
        self.cookie = Some(cookies(&answer.headers)).filter(|cookie| !cookie.is_empty());
        Ok(parse::<TokenResponse>("the token", &answer.body)?.token)
    }

    /// Fetches a resource in the session that attested, or else with a token that was issued for this guest's key.
    ///
    /// # Errors
    /// [`Error`] with the stage that failed.
    pub async fn fetch(&self, path: &ResourcePath, token: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        // A token may be longer than servers take in a header.
        let who = match &self.cookie {
            Some(cookie) => (COOKIE, cookie.clone()),
            None => (AUTHORIZATION, format!("Bearer {token}")),
        };
        let path = ResourceUri::resource(path).url_path();
        let answer = self.trustee.send(Method::GET, &path, "", Some(who)).await?;
        let sealed: Jwe = parse("the resource", &answer.body)?;
        Ok(self.key.open(&sealed)?)
    }
}

/// Why a guest did not get what it asked for.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Trustee(#[from] trustee::Error),
    #[error("evidence: {0}")]
    Evidence(#[from] evidence::Error),
    #[error("attestation: {0}; next: use a Trustee of this protocol version")]
    Protocol(#[from] wire::rcar::Error),
    #[error("{what} can't be read (line {line}, column {column}); next: check that --url is that of a Trustee")]
    Answer { what: &'static str, line: usize, column: usize },
    #[error("key: {0}; next: check that --tee-key-file is the key that the token was issued for")]
    Key(#[from] jwe::Error),
}

/// The cookies that an answer sets, as a request sends them back.
fn cookies(headers: &HeaderMap) -> String {
    let set = headers.get_all(SET_COOKIE).iter().filter_map(|cookie| cookie.to_str().ok());
    set.filter_map(|cookie| cookie.split(';').next()).collect::<Vec<_>>().join("; ")
}

/// The parser's own words could repeat a token, so only the place is told.
fn parse<T: DeserializeOwned>(what: &'static str, body: &[u8]) -> Result<T, Error> {
    serde_json::from_slice::<Value>(body).and_then(serde_json::from_value).map_err(|e| Error::Answer {
        what,
        line: e.line(),
        column: e.column(),
    })
}
