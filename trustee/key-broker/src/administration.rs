//! What administrators do besides setting resources: policies, reference values, and explanations of refusals.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde_json::json;
use wire::reference_value::Message;

use crate::Broker;
use crate::admin::{Administrator, Error as AdminError};
use crate::api::{Call, Reply};
use crate::audit::Event;
use crate::excerpt::excerpt;
use crate::refusal::Refusal;

impl Broker {
    /// `GET /resource-policy`: the ids of the resource policies, of which there is one.
    pub(crate) fn list_resource_policies(&self, call: &Call) -> Result<Reply, Refusal> {
        self.administrator(call)?;
        Reply::json(&["resource-policy"])
    }

    /// `POST /resource-policy` with `{"policy": base64url of Rego}`.
    pub(crate) async fn set_resource_policy(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        let PolicyBody { policy, .. } = call.json()?;
        self.resource_policy.set(text(&policy)?).await?;
        self.administered(call, administrator, "set-resource-policy", "resource-policy")
    }

    /// `POST /attestation-policy` with `{"policy_id": …, "policy": base64url of Rego}`.
    pub(crate) async fn set_attestation_policy(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        let PolicyBody { policy_id, policy } = call.json()?;
        let id = policy_id.ok_or_else(|| Refusal::Body("policy_id is missing".to_owned()))?;
        self.attestation.set_policy(&id, text(&policy)?).await.map_err(Refusal::AttestationPolicy)?;
        self.administered(call, administrator, "set-attestation-policy", &id)
    }

    /// `POST /reference-value` with a message of the reference value provider.
    pub(crate) async fn register_reference_values(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        let message: Message = call.json()?;
        let names = self.reference_values.register(&message).await?;
        self.administered(call, administrator, "register-reference-values", &excerpt(&names.join(" ")))
    }

    /// `GET /reference-value/name`: the value as JSON.
    pub(crate) fn reference_value(&self, call: &Call, name: &str) -> Result<Reply, Refusal> {
        self.administrator(call)?;
        Reply::json(&self.reference_values.query(name).ok_or(Refusal::NoReferenceValue)?)
    }

    /// `GET /reference-value`: all records.
    pub(crate) fn list_reference_values(&self, call: &Call) -> Result<Reply, Refusal> {
        self.administrator(call)?;
        Reply::json(&self.reference_values.list())
    }

    /// `DELETE /reference-value/name`.
    pub(crate) async fn delete_reference_value(&self, call: &Call, name: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        if !self.reference_values.delete(name).await? {
            return Err(Refusal::NoReferenceValue);
        }
        self.administered(call, administrator, "delete-reference-value", name)
    }

    /// `GET /explain/reference`: the record of a refusal, expected values included.
    pub(crate) fn explain(&self, call: &Call, reference: &str) -> Result<Reply, Refusal> {
        self.administrator(call)?;
        let (time, record) = self.audit.refusal(reference)?.ok_or(Refusal::NoReference)?;
        Reply::json(&json!({
            "reference": record.reference,
            "time": time,
            "stage": record.stage,
            "resource": record.resource,
            "cause": record.cause,
            "claims": record.claims,
        }))
    }

    /// The administrator who sent a request. One whose token is refused is put on record.
    pub(crate) fn administrator(&self, call: &Call) -> Result<Administrator, Refusal> {
        let refused = match self.admin.authorize(call.bearer(), self.clock.now()) {
            Ok(administrator) => return Ok(administrator),
            Err(refused) => refused,
        };
        if call.bearer().is_some() && refused != AdminError::DenyAll {
            let event = Event::AdministrationRefused { path: excerpt(&call.path), cause: refused.to_string() };
            self.audit.record(call.peer, event)?;
        }
        Err(refused.into())
    }

    /// Puts what was administered on record.
    pub(crate) fn administered(
        &self,
        call: &Call,
        administrator: Administrator,
        act: &str,
        target: &str,
    ) -> Result<Reply, Refusal> {
        let Administrator { subject, role } = administrator;
        let event = Event::Administration { act: act.to_owned(), target: target.to_owned(), subject, role };
        self.audit.record(call.peer, event)?;
        Ok(Reply::empty())
    }
}

/// A policy as it is sent; upstream's clients add a `type`, which says nothing.
#[derive(Deserialize)]
struct PolicyBody {
    policy_id: Option<String>,
    policy: String,
}

fn text(encoded: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('='));
    let bytes = bytes.map_err(|_| Refusal::Body("policy is not base64url".to_owned()))?;
    String::from_utf8(bytes).map_err(|_| Refusal::Body("policy is not UTF-8".to_owned()))
}
