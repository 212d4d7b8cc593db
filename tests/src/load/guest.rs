//! A guest of the sample TEE as it meets a key broker on the wire.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::StatusCode;
use hyper::body::Bytes;
use hyper::header::{AUTHORIZATION, COOKIE};
use serde_json::{Value, json};
use wire::jwe::{Jwe, TeeKey};
use wire::rcar::{HashAlgorithm, RuntimeData};
use zeroize::Zeroizing;

use super::connection::{Broken, Connection, Target};

/// A guest with a key and a connection.
pub struct Guest {
    key: TeeKey,
    public_key: Value,
    connection: Connection,
    cookie: String,
}

/// Why a guest did not get what it asked for.
#[derive(Debug)]
pub enum Failure {
    /// The connection was cut.
    Broken,
    /// The server said no.
    Refused(StatusCode, String),
}

impl From<Broken> for Failure {
    fn from(_: Broken) -> Self {
        Self::Broken
    }
}

impl Guest {
    /// A guest that has said nothing yet.
    pub fn new(target: &Target) -> Self {
        let key = TeeKey::generate().unwrap();
        let public_key = key.public_jwk().unwrap();
        Self { key, public_key, connection: target.connection(), cookie: String::new() }
    }

    /// The same guest on a new connection.
    pub fn again(self, target: &Target) -> Self {
        Self { connection: target.connection(), ..self }
    }

    /// The first half of a handshake: returns the nonce.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn challenge(&mut self) -> Result<String, Failure> {
        let body = r#"{"version":"0.4.0","tee":"sample","extra-params":""}"#;
        let answer = self.connection.send("POST", "/kbs/v0/auth", None, body).await?;
        let nonce = json_of(answer.status, &answer.body)?["nonce"].as_str().unwrap_or_default().to_owned();
        self.cookie = answer.cookie.unwrap_or_default();
        Ok(nonce)
    }

    /// A whole handshake: returns the token.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn attest(&mut self) -> Result<String, Failure> {
        let nonce = self.challenge().await?;
        let runtime_data = RuntimeData { nonce, tee_pubkey: self.public_key.clone() };
        let report_data = STANDARD.encode(runtime_data.report_data("", HashAlgorithm::Sha384).unwrap());
        let attestation = json!({
            "runtime-data": { "nonce": runtime_data.nonce, "tee-pubkey": runtime_data.tee_pubkey },
            "tee-evidence": {
                "primary_evidence": { "svn": "1", "report_data": report_data },
                "additional_evidence": "",
            },
        });
        let cookie = Some((COOKIE, self.cookie.as_str()));
        let answer = self.connection.send("POST", "/kbs/v0/attest", cookie, attestation.to_string()).await?;
        let token = json_of(answer.status, &answer.body)?["token"].as_str().unwrap_or_default().to_owned();
        if let Some(cookie) = answer.cookie {
            self.cookie = cookie;
        }
        Ok(token)
    }

    /// Fetches a resource, by the session's cookie or by a token; it stays sealed.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn fetch(&mut self, path: &str, bearer: Option<&str>) -> Result<Bytes, Failure> {
        let authorization = bearer.map(|token| format!("Bearer {token}"));
        let header = match &authorization {
            Some(authorization) => (AUTHORIZATION, authorization.as_str()),
            None => (COOKIE, self.cookie.as_str()),
        };
        let path = format!("/kbs/v0/resource/{path}");
        let answer = self.connection.send("GET", &path, Some(header), Bytes::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(answer.body),
            status => Err(Failure::Refused(status, String::from_utf8_lossy(&answer.body).into_owned())),
        }
    }

    /// Fetches a resource and opens it.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn secret(&mut self, path: &str, bearer: Option<&str>) -> Result<Zeroizing<Vec<u8>>, Failure> {
        let sealed = self.fetch(path, bearer).await?;
        Ok(self.open(&sealed))
    }

    /// Opens what [`Guest::fetch`] returned.
    ///
    /// # Panics
    /// If it was not sealed to this guest.
    fn open(&self, sealed: &[u8]) -> Zeroizing<Vec<u8>> {
        let jwe: Jwe = serde_json::from_slice(sealed).unwrap();
        self.key.open(&jwe).unwrap()
    }

    /// Asks for any path, and returns what is there.
    ///
    /// # Errors
    /// [`Failure`].
    pub async fn get(&mut self, path: &str) -> Result<Bytes, Failure> {
        let answer = self.connection.send("GET", path, None, Bytes::new()).await?;
        match answer.status {
            StatusCode::OK => Ok(answer.body),
            status => Err(Failure::Refused(status, String::from_utf8_lossy(&answer.body).into_owned())),
        }
    }
}

fn json_of(status: StatusCode, body: &[u8]) -> Result<Value, Failure> {
    let refused = || Failure::Refused(status, String::from_utf8_lossy(body).into_owned());
    if status != StatusCode::OK {
        return Err(refused());
    }
    serde_json::from_slice(body).map_err(|_| refused())
}
