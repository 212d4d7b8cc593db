//! The attestation handshake (RCAR): challenge, evidence bound to a fresh key, token.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evidence::Attester;
use wire::initdata::InitData;
use wire::jwe::TeeKey;
use wire::rcar::{Attestation, Challenge, InitDataBody, Request, RuntimeData, TeeEvidence, TokenResponse};

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::retry;
use crate::tokens::{Clock, Token};

/// All that a handshake needs, so that a task of its own can run it.
#[derive(Clone)]
pub(crate) struct Handshake {
    pub(crate) kbs: Kbs,
    pub(crate) attester: Arc<Attester>,
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
        let request = Request::new(self.attester.tee());
        let (challenge, cookies) = self.kbs.post::<Challenge>(Stage::Auth, AUTH, None, &request).await?;
        let unusable = |stage, path: &str, cause: String| Error::Answer {
            stage,
            call: format!("POST {}/{path}", self.kbs.url()),
            cause,
        };

        let algorithm = challenge.hash_algorithm().map_err(|e| unusable(Stage::Auth, AUTH, e.to_string()))?;
        let key = TeeKey::generate().map_err(|e| Error::Key(e.to_string()))?;
        let tee_pubkey = key.public_jwk().map_err(|e| Error::Key(e.to_string()))?;
        let runtime_data = RuntimeData { nonce: challenge.nonce, tee_pubkey };
        let additional_evidence = String::new();
        let report_data =
            runtime_data.report_data(&additional_evidence, algorithm).map_err(|e| Error::Key(e.to_string()))?;
        let primary_evidence = evidence(&self.attester, report_data).await?;

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
            tee = %self.attester.tee(),
            kbs = self.kbs.url(),
            took_ms = started.elapsed().as_millis() as u64,
            lifetime_s = token.lifetime().as_secs(),
            "attested"
        );
        Ok(token)
    }
}

/// Collects evidence on a thread that may block, as hardware does for up to seconds.
pub(crate) async fn evidence(attester: &Arc<Attester>, report_data: Vec<u8>) -> Result<serde_json::Value, Error> {
    let attester = Arc::clone(attester);
    let collected = tokio::task::spawn_blocking(move || attester.evidence(&report_data)).await;
    Ok(collected.map_err(|e| Error::GivenUp(e.to_string()))??)
}

const AUTH: &str = "kbs/v0/auth";
const ATTEST: &str = "kbs/v0/attest";
/// Below the 50 s after which upstream's clients of this service stop waiting.
const DEADLINE: Duration = Duration::from_secs(40);
