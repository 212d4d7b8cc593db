//! The handshake: a guest asks, is challenged, attests and is given a token (RCAR).

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use store::seal::random;
use wire::jwe::TeePublicKey;
use wire::rcar::{Attestation, Challenge, Request, Tee, TokenResponse, VERSION};

use crate::Broker;
use crate::api::{Call, Reply};
use crate::audit::{Event, RefusalRecord};
use crate::excerpt::excerpt;
use crate::refusal::Refusal;
use crate::session::Session;
use crate::tokens;

impl Broker {
    /// `POST /auth`: a nonce, and a cookie that remembers it. Writes nothing.
    pub(crate) async fn auth(&self, call: &Call) -> Result<Reply, Refusal> {
        let request: Request = call.json()?;
        if request.version != VERSION {
            return Err(Refusal::Version(excerpt(&request.version)));
        }
        self.attestation.supports(request.tee).map_err(Refusal::Tee)?;
        let nonce = STANDARD.encode(random::<32>().map_err(store::Error::from)?.as_slice());
        let cookie = self.sessions.challenged(nonce.clone(), request.tee).await?;
        Ok(Reply::json(&Challenge { nonce, extra_params: Value::from("") })?.with_cookie(cookie))
    }

    /// `POST /attest`: evidence against a token.
    pub(crate) async fn attest(&self, call: &Call) -> Result<Reply, Refusal> {
        let cookie = call.cookie().ok_or(Refusal::NoSession)?;
        let (nonce, tee) = match self.sessions.open(cookie).await? {
            Session::Challenged { nonce, tee, .. } => (nonce, tee),
            // Asked again after success, a session answers the same.
            Session::Attested { token } => {
                self.tokens.verify(&token, &self.attestation, self.clock.now())?;
                return Reply::json(&TokenResponse { token });
            }
            Session::Kept { .. } => return Err(Refusal::NoSession),
        };
        let attestation: Attestation = call.json()?;
        if attestation.runtime_data.nonce != nonce {
            return Err(Refusal::Nonce);
        }
        // A token for a key that nothing can be sealed to would be of no use.
        TeePublicKey::from_jwk(&attestation.runtime_data.tee_pubkey).map_err(Refusal::TeeKey)?;

        let appraisal = match self.attestation.appraise(tee, &attestation) {
            Ok(appraisal) => appraisal,
            Err(cause) => return Err(self.refuse_attestation(call, tee, cause)),
        };
        let event = Event::Attestation {
            tee: tee.to_string(),
            status: appraisal.status.to_string(),
            token: tokens::id(&appraisal.token),
            init_data: appraisal.init_data,
            expires: appraisal.expiry,
        };
        self.audit.record(call.peer, event)?;
        let cookie = self.sessions.attested(&appraisal.token, appraisal.expiry).await?;
        Ok(Reply::json(&TokenResponse { token: appraisal.token })?.with_cookie(cookie))
    }

    fn refuse_attestation(&self, call: &Call, tee: Tee, cause: attestation::Error) -> Refusal {
        let reference = match random::<8>() {
            Ok(bytes) => hex::encode(bytes.as_slice()),
            Err(e) => return Refusal::Store(e.into()),
        };
        let record = RefusalRecord {
            reference: reference.clone(),
            stage: "attestation".to_owned(),
            resource: None,
            token: None,
            cause: format!("evidence of TEE {tee}: {cause}"),
            claims: cause.difference().into_iter().collect(),
        };
        match self.audit.record(call.peer, Event::Refusal(record)) {
            Ok(()) => Refusal::Attestation { cause, reference },
            Err(e) => e.into(),
        }
    }
}
