//! The client of an attestation service that speaks gRPC, ours or upstream's.

use std::collections::HashMap;

use attestation::Evaluation;
use tonic::transport::Channel;
use wire::rcar::Tee;
use wire_grpc::attestation::attestation_service_client::AttestationServiceClient;
use wire_grpc::attestation::{ChallengeRequest, SetPolicyRequest};

use crate::connections::{ClientSettings, Connections};
use crate::error::Error;
use crate::{MAX_REQUEST, evaluation};

/// An attestation service elsewhere.
pub struct AttestationClient {
    connections: Connections,
}

impl AttestationClient {
    /// Prepares connections to the service, which need not run yet. Must be called on a runtime of tokio.
    ///
    /// # Errors
    /// [`Error::Address`], [`Error::File`], [`Error::Tls`], [`Error::Watch`] for settings that can't be used.
    pub fn connect(settings: ClientSettings) -> Result<Self, Error> {
        Ok(Self { connections: Connections::open(settings)? })
    }

    /// Has evidence appraised, and returns the token.
    ///
    /// # Errors
    /// [`Error::Refused`] for evidence or a policy that is no good; [`Error::Unreachable`], [`Error::Timeout`].
    pub async fn evaluate(&self, evaluation: &Evaluation) -> Result<String, Error> {
        let request = evaluation::to_grpc(evaluation);
        let answer = self.connections.call(|channel| {
            let request = request.clone();
            async move { client(channel).attestation_evaluate(request).await }
        });
        Ok(answer.await?.attestation_token)
    }

    /// Sets a policy.
    ///
    /// # Errors
    /// [`Error::Refused`] if it is none; [`Error::Unreachable`], [`Error::Timeout`].
    pub async fn set_policy(&self, id: &str, text: &str) -> Result<(), Error> {
        let request = SetPolicyRequest { policy_id: id.to_owned(), policy: evaluation::encoded_policy(text) };
        let answer = self.connections.call(|channel| {
            let request = request.clone();
            async move { client(channel).set_attestation_policy(request).await }
        });
        answer.await.map(drop)
    }

    /// The challenge for a guest of a TEE.
    ///
    /// # Errors
    /// [`Error::Refused`] for a TEE that the service does not know; [`Error::Unreachable`], [`Error::Timeout`].
    pub async fn challenge(&self, tee: Tee, params: &str) -> Result<String, Error> {
        let inner = [("tee", tee.to_string()), ("tee_params", params.to_owned())];
        let inner: HashMap<_, _> = inner.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        let answer = self.connections.call(|channel| {
            let request = ChallengeRequest { inner: inner.clone() };
            async move { client(channel).get_attestation_challenge(request).await }
        });
        Ok(answer.await?.attestation_challenge)
    }
}

fn client(channel: Channel) -> AttestationServiceClient<Channel> {
    AttestationServiceClient::new(channel).max_decoding_message_size(MAX_REQUEST)
}
