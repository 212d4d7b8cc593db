//! The attestation agent: one token for all, and resources fetched with it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use evidence::Attester;
use serde_json::Value;
use tokio::sync::watch;
use wire::initdata::InitData;
use wire::rcar::Tee;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::as_token;
use crate::config::AaConfig;
use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::rcar::{self, Handshake};
use crate::retry;
use crate::tokens::{Clock, Token, TokenCache};

/// Proves what the guest is to the configured key broker, at most once per token lifetime, however many ask.
pub struct AttestationAgent {
    attester: Arc<Attester>,
    handshake: Option<Handshake>,
    attestation_service: Option<Kbs>,
    tokens: TokenCache,
    attested: watch::Sender<bool>,
}

impl AttestationAgent {
    /// An agent that has not attested yet. `initdata` is the document whose digest the hardware holds; its text goes
    /// to the broker with the evidence, so that policies can read it.
    ///
    /// # Errors
    /// [`Error::Config`] if a URL or certificate can't be used. Nothing is connected yet.
    pub fn new(config: AaConfig, attester: Attester, initdata: Option<InitData>) -> Result<Self, Error> {
        Self::with_clock(config, attester, initdata, Arc::new(Instant::now))
    }

    /// [`AttestationAgent::new`] with a clock for the expiry of tokens.
    ///
    /// # Errors
    /// As [`AttestationAgent::new`].
    pub fn with_clock(
        config: AaConfig,
        attester: Attester,
        initdata: Option<InitData>,
        clock: Clock,
    ) -> Result<Self, Error> {
        let attester = Arc::new(attester);
        let handshake = match config.token_configs.kbs {
            Some(kbs) => Some(Handshake {
                kbs: Kbs::new(&kbs.url, kbs.cert.as_deref())?,
                attester: Arc::clone(&attester),
                initdata: initdata.map(Arc::new),
                clock: Arc::clone(&clock),
            }),
            None => None,
        };
        let attestation_service = match config.token_configs.coco_as {
            Some(service) => Some(Kbs::new(&service.url, None)?),
            None => None,
        };
        let tokens = TokenCache::new(clock);
        Ok(Self { attester, handshake, attestation_service, tokens, attested: watch::Sender::new(false) })
    }

    /// A token of the key broker, usable now. Callers that come during a handshake wait for its outcome.
    ///
    /// # Errors
    /// [`Error::NoKbs`], or why the handshake failed; refusals at once, network trouble after bounded attempts.
    pub async fn token(&self) -> Result<Arc<Token>, Error> {
        let handshake = self.handshake.as_ref().ok_or(Error::NoKbs)?;
        let attested = self.attested.clone();
        self.tokens
            .get(|| {
                let handshake = handshake.clone();
                async move {
                    let token = handshake.token().await?;
                    attested.send_replace(true);
                    Ok(token)
                }
            })
            .await
    }

    /// Says that the broker did not accept `token`: the next call of [`AttestationAgent::token`] attests anew.
    pub fn invalidate(&self, token: &Arc<Token>) {
        self.tokens.invalidate(token);
    }

    /// Becomes true with the first token.
    pub fn attested(&self) -> watch::Receiver<bool> {
        self.attested.subscribe()
    }

    /// Fetches a resource from the configured key broker. Any number of calls may run at once, over one token.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], or why it could not be asked.
    pub async fn get_resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.get_resource_from(self.kbs().ok_or(Error::NoKbs)?, uri).await
    }

    /// Fetches a resource from a key broker other than the one that issues the tokens, which must trust them.
    ///
    /// # Errors
    /// As [`AttestationAgent::get_resource`].
    pub async fn get_resource_from(&self, kbs: &Kbs, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        match tokio::time::timeout(RESOURCE_DEADLINE, self.fetch(kbs, uri)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                let url = kbs.url().to_owned();
                Err(Error::Deadline { stage: Stage::Resource, url, seconds: RESOURCE_DEADLINE.as_secs() })
            }
        }
    }

    /// The key broker that issues the tokens.
    pub fn kbs(&self) -> Option<&Kbs> {
        self.handshake.as_ref().map(|handshake| &handshake.kbs)
    }

    /// The kind of TEE that this guest runs in.
    pub fn tee(&self) -> Tee {
        self.attester.tee()
    }

    /// Evidence that carries `report_data`, which is at most 64 bytes and used as it is.
    ///
    /// # Errors
    /// [`Error::Evidence`].
    pub async fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        rcar::evidence(&self.attester, report_data.to_vec()).await
    }

    /// What the attestation service answers when it is asked directly, byte for byte. Never cached.
    ///
    /// # Errors
    /// [`Error::NoAttestationService`], or why it gave none.
    pub(crate) async fn attestation_service_token(&self) -> Result<Zeroizing<Vec<u8>>, Error> {
        let service = self.attestation_service.as_ref().ok_or(Error::NoAttestationService)?;
        as_token::fetch(service, &self.attester).await
    }

    async fn fetch(&self, kbs: &Kbs, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        let mut tries = 1;
        loop {
            let token = self.token().await?;
            match retry::transient(|| kbs.resource(uri, token.jwt())).await {
                Ok(sealed) => {
                    return token.key().open(&sealed).map_err(|e| Error::Answer {
                        stage: Stage::Resource,
                        call: format!("GET {uri}"),
                        cause: format!("it can't be opened with this guest's key: {e}"),
                    });
                }
                Err(error) if error.is_stale_token() && tries < TOKENS_PER_RESOURCE => {
                    tracing::info!(%uri, tries, "the token was not accepted, attesting anew");
                    self.invalidate(&token);
                    tries += 1;
                }
                Err(error) => return Err(error),
            }
        }
    }
}

const TOKENS_PER_RESOURCE: u32 = 3;
/// Below the 50 s after which upstream's clients stop waiting, above the deadline of a handshake.
const RESOURCE_DEADLINE: Duration = Duration::from_secs(48);
