//! The handshake: a guest asks, is challenged, attests and is given a token (RCAR).

use serde_json::{Value, json};
use wire::rcar::{Attestation, Challenge, Request, Tee, TokenResponse, VERSION};

use crate::Broker;
use crate::api::{Call, Reply};
use crate::attester::{Attested, Cause};
use crate::audit::{Event, RefusalRecord};
use crate::excerpt::excerpt;
use crate::refusal::Refusal;
use crate::replay::SessionId;
use crate::session::{Challenged, Session};
use crate::tokens;

impl Broker {
    /// `POST /auth`: a nonce, and a cookie that remembers it. Writes nothing.
    pub(crate) async fn auth(&self, call: &Call) -> Result<Reply, Refusal> {
        self.metrics.auth_requests.inc();
        let request: Request = call.json().map_err(|e| Refusal::AuthBody(e.to_string()))?;
        if request.version != VERSION {
            return Err(Refusal::Version(excerpt(&request.version)));
        }
        self.attester.supports(request.tee)?;
        let policy = self.selected_policy(&request.extra_params)?;
        let extra_params = match self.attester.hash_algorithm(request.tee) {
            Some(algorithm) => selected_hash(algorithm, &request.extra_params)?,
            None => Value::from(""),
        };
        let params = match request.tee {
            Tee::Se => request.extra_params.to_string(),
            _ => String::new(),
        };
        let nonce = self.attester.challenge(request.tee, &params).await?;
        let cookie = self.sessions.challenged(nonce.clone(), request.tee, policy).await?;
        self.metrics.auth_successes.inc();
        Ok(Reply::json(&Challenge { nonce, extra_params })?.with_cookie(cookie))
    }

    /// `POST /attest`: evidence against a token.
    pub(crate) async fn attest(&self, call: &Call) -> Result<Reply, Refusal> {
        self.metrics.attestation_requests.inc();
        let cookie = call.cookie().ok_or(Refusal::NoSession)?;
        let challenged = match self.sessions.open(cookie).await? {
            Session::Challenged(challenged) => challenged,
            // Asked again after success, a session answers the same.
            Session::Attested { token } => {
                let verified = self.tokens.verify(&token, &self.attester, self.clock.now()).await?;
                let again = self.sessions.again(cookie, verified.expiry);
                return Ok(Reply::json(&TokenResponse { token })?.with_cookie(again));
            }
            Session::Kept { .. } => return Err(Refusal::NoSession),
        };
        let Challenged { nonce, tee, policy, .. } = &challenged;
        let tee = *tee;
        let attestation: Attestation = call.json().map_err(|e| Refusal::AttestBody(e.to_string()))?;
        if attestation.runtime_data.nonce != *nonce {
            return Err(Refusal::Nonce);
        }
        // A token for a key that nothing can be sealed to would be of no use.
        self.tokens.public_key(&attestation.runtime_data.tee_pubkey)?;

        let session = SessionId::of(nonce);
        let attested = match self.attester.attest(tee, &attestation, policy).await {
            Ok(attested) => attested,
            Err(cause) => return Err(self.refuse_attestation(call, tee, session, cause).await),
        };
        let Attested { token, status, expiry, init_data } = attested;
        let event = Event::Attestation {
            tee: tee.to_string(),
            status,
            policy: policy.clone(),
            session: session.text(),
            replayed: self.seen.again(session),
            token: tokens::id(&token),
            init_data,
            expires: expiry,
        };
        self.audit.record(call.peer, event)?;
        if self.attester.built_in().is_ok() {
            self.tokens.issued(&token, &self.attester);
        }
        let cookie = self.sessions.attested(&token, expiry, &challenged).await?;
        self.metrics.attested(tee, true);
        Ok(Reply::json(&TokenResponse { token })?.with_cookie(cookie))
    }

    /// The id of the attestation policy that a guest asks for by a selector in its request.
    fn selected_policy(&self, extra_params: &Value) -> Result<String, Refusal> {
        let Some(selector) = extra_params.get(SELECTOR) else { return Ok(DEFAULT_POLICY.to_owned()) };
        let selector = selector.as_str().ok_or_else(|| Refusal::Selector("not a text".to_owned()))?;
        let mapped = self.policy_ids.get(selector).map(String::as_str);
        let tenant = self.tenants.get(selector).map(|tenant| tenant.as_str());
        let policy = mapped.or(tenant).ok_or_else(|| Refusal::Selector(excerpt(selector)))?;
        Ok(policy.to_owned())
    }

    async fn refuse_attestation(&self, call: &Call, tee: Tee, session: SessionId, cause: Cause) -> Refusal {
        self.metrics.attested(tee, false);
        let reference = match self.reference() {
            Ok(reference) => reference,
            Err(e) => return e,
        };
        let record = RefusalRecord {
            reference: reference.clone(),
            stage: "attestation".to_owned(),
            session: Some(session.text()),
            resource: None,
            token: None,
            cause: format!("evidence of TEE {tee}: {cause}"),
            claims: cause.difference().into_iter().collect(),
        };
        match self.refused(call, record).await {
            Ok(()) => Refusal::Attestation { cause, reference },
            Err(e) => e,
        }
    }
}

/// What the challenge says to a guest that has to use this hash algorithm, if it offers it.
fn selected_hash(algorithm: &str, extra_params: &Value) -> Result<Value, Refusal> {
    let offered = extra_params["supported-hash-algorithms"].as_array();
    match offered.is_some_and(|offered| offered.iter().any(|name| name == algorithm)) {
        true => Ok(json!({ "selected-hash-algorithm": algorithm })),
        false => Err(Refusal::HashAlgorithm(algorithm.to_owned())),
    }
}

/// The member of a request's `extra-params` that selects an attestation policy.
const SELECTOR: &str = "attestation-policy-selector";
const DEFAULT_POLICY: &str = "default";
