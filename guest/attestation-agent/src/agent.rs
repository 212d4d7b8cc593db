//! The attestation agent: one token for all, and resources fetched with it.

use std::sync::Arc;
use std::time::Instant;

use evidence::{Attester, Binding, InitDataDigest};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::sync::watch;
use wire::event_log::Event;
use wire::initdata::InitData;
use wire::rcar::Tee;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::as_token;
use crate::config::AaConfig;
use crate::error::Error;
use crate::kbs::Kbs;
use crate::platform::{Measured, Platform};
use crate::rcar::Handshake;
use crate::resource;
use crate::tokens::{Clock, Token, TokenCache};

/// Proves what the guest is to the configured key broker, at most once per token lifetime, however many ask.
pub struct AttestationAgent {
    platform: Platform,
    initdata: Option<Arc<InitData>>,
    handshake: Option<Handshake>,
    attestation_service: Option<Kbs>,
    tokens: TokenCache,
    attested: watch::Sender<bool>,
}

impl AttestationAgent {
    /// An agent that has not attested yet. `initdata` is the document whose digest the hardware holds; its text goes
    /// to the broker with the evidence, so that policies can read it. The hardware is asked and the event log opened, if
    /// the configuration wants one: this blocks.
    ///
    /// # Errors
    /// [`Error::Evidence`] if the hardware holds the digest of another initdata: the guest must end then.
    /// [`Error::Config`] if a URL or certificate can't be used, [`Error::EventLog`] if the log can't. Nothing is
    /// connected yet.
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
        let platform = Platform::new(attester, &config.eventlog_config)?;
        if let Some(initdata) = &initdata {
            platform.bind(initdata.into())?;
        }
        let initdata = initdata.map(Arc::new);
        let handshake = match config.token_configs.kbs {
            Some(kbs) => Some(Handshake {
                kbs: Kbs::new(&kbs.url, kbs.cert.as_deref())?,
                key_algorithm: kbs.tee_key_algorithm,
                platform: platform.clone(),
                initdata: initdata.clone(),
                clock: Arc::clone(&clock),
            }),
            None => None,
        };
        let attestation_service = match config.token_configs.coco_as {
            Some(service) => Some(Kbs::new(&service.url, None)?),
            None => None,
        };
        let tokens = TokenCache::new(clock);
        Ok(Self { platform, initdata, handshake, attestation_service, tokens, attested: watch::Sender::new(false) })
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

    /// Says that the broker did not accept the token `jwt`: if it is the current one, the next call of
    /// [`AttestationAgent::token`] attests anew.
    pub fn invalidate(&self, jwt: &str) {
        self.tokens.invalidate(jwt);
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
        let token = |refused: Option<Arc<Token>>| async move {
            if let Some(token) = refused {
                self.invalidate(token.jwt());
            }
            self.token().await
        };
        resource::fetch(kbs, uri, token).await
    }

    /// The key broker that issues the tokens.
    pub fn kbs(&self) -> Option<&Kbs> {
        self.handshake.as_ref().map(|handshake| &handshake.kbs)
    }

    /// The kind of TEE that this guest runs in.
    pub fn tee(&self) -> Tee {
        self.platform.tee()
    }

    /// The devices beside the TEE that have evidence of their own.
    pub fn additional_tees(&self) -> Vec<Tee> {
        self.platform.additional_tees()
    }

    /// Evidence that carries `report_data`, which is at most 64 bytes and used as it is.
    ///
    /// # Errors
    /// [`Error::Evidence`].
    pub async fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        self.platform.evidence(report_data.to_vec()).await
    }

    /// Evidence of each device by its name, over `report_data` of at most 64 bytes; `None` without devices.
    ///
    /// # Errors
    /// [`Error::Evidence`].
    pub async fn additional_evidence(&self, report_data: &[u8]) -> Result<Option<Map<String, Value>>, Error> {
        self.platform.additional_evidence(report_data.to_vec()).await
    }

    /// Measures an event: extends the register that stands for the PCR `register`, or for the configured one, and
    /// appends to the event log.
    ///
    /// # Errors
    /// [`Error::EventLog`]. Without an event log or a register, this is no error but an outcome.
    pub async fn measure(&self, event: Event, register: Option<u64>) -> Result<Measured, Error> {
        self.platform.measure(event, register).await
    }

    /// Binds the guest to the initdata with this digest: compares it with the hardware, or extends a PCR. Once bound,
    /// the same digest is fine and another one is not.
    ///
    /// # Errors
    /// [`Error::BoundAlready`], or [`Error::Evidence`] if the hardware holds another digest.
    pub async fn bind_initdata(&self, digest: InitDataDigest) -> Result<Binding, Error> {
        self.platform.bind_aside(digest).await
    }

    /// What upstream's `GetToken` answers. For `kbs` that is JSON of the token (`token`) and its private key
    /// (`tee_keypair`, PEM: PKCS#1 for RSA, else PKCS#8); for `coco_as` the answer of the attestation service byte for byte, never cached.
    ///
    /// # Errors
    /// [`Error::TokenType`] for another kind; otherwise as [`AttestationAgent::token`].
    pub async fn typed_token(&self, kind: &str) -> Result<Zeroizing<Vec<u8>>, Error> {
        #[derive(Serialize)]
        struct KbsToken<'a> {
            token: &'a str,
            tee_keypair: &'a str,
        }
        match kind {
            "kbs" => {
                let token = self.token().await?;
                let pem = token.key().to_pem().map_err(|e| Error::Key(e.to_string()))?;
                let answer = KbsToken { token: token.jwt(), tee_keypair: &pem };
                serde_json::to_vec(&answer).map(Zeroizing::new).map_err(|e| Error::Key(e.to_string()))
            }
            "coco_as" => {
                let service = self.attestation_service.as_ref().ok_or(Error::NoAttestationService)?;
                as_token::fetch(service, &self.platform, self.initdata.as_deref()).await
            }
            other => Err(Error::TokenType(other.chars().take(40).flat_map(char::escape_default).collect())),
        }
    }
}
