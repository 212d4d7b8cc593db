//! Resources fetched with tokens that an attestation agent in another process gets (passport mode).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Deserialize;
use ttrpc::r#async::Client;
use ttrpc::context;
use wire::event_log::Event;
use wire::jwe::TeeKey;
use wire::resource::ResourceUri;
use wire_ttrpc::attestation_agent::{ExtendRuntimeMeasurementRequest, GetTokenRequest, RuntimeMeasurementResult};
use wire_ttrpc::attestation_agent_ttrpc::AttestationAgentServiceClient;
use zeroize::Zeroizing;

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::platform::Measured;
use crate::service::REFUSED_TOKEN;
use crate::tokens::{Token, TokenCache};
use crate::{resource, retry};

/// A key broker, and the socket of the agent that has the tokens for it.
///
/// Any number of calls may run at once, over one token. Nothing is connected before it is needed.
pub struct Passport {
    kbs: Kbs,
    agent: AgentSocket,
    tokens: TokenCache,
}

impl Passport {
    /// The agent serves at `address`, as in [`crate::ADDRESS`].
    pub fn new(kbs: Kbs, address: &str) -> Self {
        let agent = AgentSocket { address: address.into() };
        Self { kbs, agent, tokens: TokenCache::new(Arc::new(Instant::now)) }
    }

    /// Fetches a resource. A token that the broker does not accept is replaced, and the agent told of it.
    ///
    /// # Errors
    /// [`Error::NotFound`], [`Error::Refused`], or why broker or agent could not be asked.
    pub async fn get_resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        let token = |refused: Option<Arc<Token>>| async move {
            if let Some(token) = &refused {
                self.tokens.invalidate(token.jwt());
            }
            self.tokens.get(|| self.agent.clone().token(refused)).await
        };
        resource::fetch(&self.kbs, uri, token).await
    }

    /// Has the agent measure an event into its configured register.
    ///
    /// # Errors
    /// If the agent can't be asked, or says that it failed.
    pub async fn measure(&self, event: &Event) -> Result<Measured, Error> {
        self.agent.measure(event).await
    }
}

/// The attestation agent's ttrpc service.
#[derive(Clone)]
struct AgentSocket {
    address: Arc<str>,
}

impl AgentSocket {
    /// A token that is not `refused`, which the broker did not accept.
    async fn token(self, refused: Option<Arc<Token>>) -> Result<Token, Error> {
        #[derive(Deserialize)]
        struct Answer {
            token: String,
            tee_keypair: Zeroizing<String>,
        }
        let mut request = GetTokenRequest::new();
        request.TokenType = "kbs".to_owned();
        let mut context = context::with_duration(CALL);
        if let Some(token) = refused {
            context.add(REFUSED_TOKEN.to_owned(), token.jwt().to_owned());
        }
        let answer = retry::transient(|| async {
            let client = self.client("GetToken").await?;
            client.get_token(context.clone(), &request).await.map_err(|e| self.failed("GetToken", e))
        });
        let answer = Zeroizing::new(answer.await?.Token);
        // The parser's own words could repeat the key.
        let answer: Answer = serde_json::from_slice(&answer)
            .map_err(|_| self.unusable("it is not JSON with token and tee_keypair".to_owned()))?;
        let key = TeeKey::from_pem(&answer.tee_keypair).map_err(|e| self.unusable(format!("tee_keypair: {e}")))?;
        Token::new(answer.token, key, Instant::now()).map_err(|e| self.unusable(e))
    }

    async fn measure(&self, event: &Event) -> Result<Measured, Error> {
        const CALLED: &str = "ExtendRuntimeMeasurement";
        let mut request = ExtendRuntimeMeasurementRequest::new();
        request.Domain = event.domain().to_owned();
        request.Operation = event.operation().to_owned();
        request.Content = event.content().to_owned();
        // Not sent twice: an answer that was lost does not tell whether the register was extended.
        let client = self.client(CALLED).await?;
        let answer = client.extend_runtime_measurement(context::with_duration(CALL), &request).await;
        let answer = answer.map_err(|e| self.failed(CALLED, e))?;
        match answer.Result.enum_value() {
            Ok(RuntimeMeasurementResult::OK) => Ok(Measured::Done),
            Ok(RuntimeMeasurementResult::NOT_SUPPORTED) => Ok(Measured::NotSupported),
            Ok(RuntimeMeasurementResult::NOT_ENABLED) => Ok(Measured::NotEnabled),
            Err(number) => Err(self.unusable(format!("result {number} is not known"))),
        }
    }

    /// A connection for one call: tokens are asked for once in their lifetime.
    async fn client(&self, call: &str) -> Result<AttestationAgentServiceClient, Error> {
        let client = Client::connect(&self.address).await.map_err(|e| self.failed(call, e))?;
        Ok(AttestationAgentServiceClient::new(client))
    }

    fn failed(&self, call: &str, error: ttrpc::Error) -> Error {
        match error {
            ttrpc::Error::RpcStatus(status) => Error::GivenUp(format!("{}: {}", self.address, status.message)),
            error => Error::Unreachable {
                stage: Stage::Attest,
                call: format!("{call} at {}", self.address),
                cause: error.to_string(),
            },
        }
    }

    fn unusable(&self, cause: String) -> Error {
        Error::GivenUp(format!("{}: the agent's answer can't be used: {cause}", self.address))
    }
}

/// Above the deadline of a handshake.
const CALL: Duration = Duration::from_secs(45);
