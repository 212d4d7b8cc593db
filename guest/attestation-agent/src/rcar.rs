//! The attestation handshake (RCAR): challenge, evidence bound to a fresh key, token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use wire::initdata::InitData;
use wire::jwe::{KeyAlgorithm, TeeKey};
use wire::rcar::{Attestation, Challenge, InitDataBody, Request, RuntimeData, Tee, TeeEvidence, TokenResponse};

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::platform::Platform;
use crate::retry;
use crate::tokens::{Clock, Token};

/// All that a handshake needs, so that a task of its own can run it.
#[derive(Clone)]
pub(crate) struct Handshake {
    pub(crate) kbs: Kbs,
    /// Of the key that each handshake makes.
    pub(crate) key_algorithm: KeyAlgorithm,
    pub(crate) platform: Platform,
    pub(crate) initdata: Option<Arc<InitData>>,
    pub(crate) clock: Clock,
}

impl Handshake {
    /// Attests, with another attempt from the start while the network is the problem, and a deadline over all.
    pub(crate) async fn token(self) -> Result<Token, Error> {
        let attempts = retry::transient(|| self.attempt());
        match tokio::time::timeout(DEADLINE, attempts).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let url = self.kbs.url().to_owned();
                Err(Error::Deadline { stage: Stage::Attest, url, seconds: DEADLINE.as_secs() })
            }
        }
    }

    async fn attempt(&self) -> Result<Token, Error> {
        let started = Instant::now();
        let request = Request::new(self.platform.tee());
        let (challenge, cookies) = self.kbs.post::<Challenge>(Stage::Auth, AUTH, None, &request).await?;
        let unusable = |stage, path: &str, cause: String| Error::Answer {
            stage,
            call: format!("POST {}/{path}", self.kbs.url()),
            cause,
        };

        let algorithm = challenge.hash_algorithm().map_err(|e| unusable(Stage::Auth, AUTH, e.to_string()))?;
        let key_algorithm = self.key_algorithm;
        // RSA takes its time.
        let key = tokio::task::spawn_blocking(move || TeeKey::generate_for(key_algorithm)).await;
        let key = key.map_err(|e| Error::GivenUp(e.to_string()))?.map_err(|e| Error::Key(e.to_string()))?;
        let tee_pubkey = key.public_jwk().map_err(|e| Error::Key(e.to_string()))?;
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey };
        let for_devices = runtime_data.device_report_data(algorithm).map_err(|e| Error::Key(e.to_string()))?;
        let additional_evidence = match self.platform.additional_evidence(for_devices).await? {
            Some(devices) => Value::Object(devices).to_string(),
            None => String::new(),
        };
        let report_data =
            runtime_data.report_data(&additional_evidence, algorithm).map_err(|e| Error::Key(e.to_string()))?;
        let report_data = match self.platform.tee() {
            Tee::Se => se_request(&runtime_data.nonce, &report_data).map_err(|e| unusable(Stage::Auth, AUTH, e))?,
            _ => report_data,
        };
        let primary_evidence = self.platform.evidence(report_data).await?;

        let attestation = Attestation {
            init_data: self
                .initdata
                .as_ref()
                .map(|initdata| InitDataBody { format: "toml".to_owned(), body: initdata.text().to_owned() }),
            runtime_data,
            tee_evidence: TeeEvidence { primary_evidence, additional_evidence },
        };
        let (answer, _) = self.kbs.post::<TokenResponse>(Stage::Attest, ATTEST, cookies.as_ref(), &attestation).await?;
        let token = Token::new(answer.token, key, (self.clock)()).map_err(|e| unusable(Stage::Attest, ATTEST, e))?;
        tracing::info!(
            tee = %self.platform.tee(),
            kbs = self.kbs.url(),
            took_ms = started.elapsed().as_millis() as u64,
            lifetime_s = token.lifetime().as_secs(),
            "attested"
        );
        Ok(token)
    }
}

/// What the attester of IBM SE gets instead of report data: the broker's request, which came as the nonce, with the
/// digest in it.
fn se_request(nonce: &str, digest: &[u8]) -> Result<Vec<u8>, String> {
    let mut request: Map<String, Value> =
        serde_json::from_str(nonce).map_err(|_| "the nonce for IBM SE is not an attestation request".to_owned())?;
    request.insert("runtime_data_digest".to_owned(), STANDARD.encode(digest).into());
    Ok(Value::Object(request).to_string().into_bytes())
}

const AUTH: &str = "kbs/v0/auth";
const ATTEST: &str = "kbs/v0/attest";
/// Below the 50 s after which upstream's clients of this service stop waiting.
const DEADLINE: Duration = Duration::from_secs(40);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_of_ibm_se_gets_the_digest() {
        let request = se_request(r#"{"request_blob":"AA==","measurement_size":64}"#, &[0xfb, 0xff]).unwrap();
        let request: Value = serde_json::from_slice(&request).unwrap();
        let expected =
            serde_json::json!({ "request_blob": "AA==", "measurement_size": 64, "runtime_data_digest": "+/8=" });
        assert_eq!(request, expected);
        for nonce in ["", "bm9uY2U=", "[]", "\"text\""] {
            assert!(se_request(nonce, &[1]).is_err(), "{nonce:?} passed");
        }
    }
}
