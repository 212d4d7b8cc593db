//! Resources: secrets by path, set by the owner, given to guests that the resource policy allows.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use store::seal::random;
use store::{Key, Namespace};
use wire::resource::ResourcePath;

use crate::Broker;
use crate::api::{Call, Reply};
use crate::audit::{Event, RefusalRecord};
use crate::refusal::Refusal;
use crate::resource_policy::Wanted;
use crate::session::Session;
use crate::tokens::VerifiedToken;

impl Broker {
    /// `GET /resource/repository/type/tag`: the resource as a JWE that only the guest can open.
    ///
    /// The policy is asked before the store, so that a refused guest doesn't learn which resources exist.
    pub(crate) async fn get_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let path = ResourcePath::parse(path)?;
        let token = self.token(call).await?;
        let query: BTreeMap<String, String> =
            form_urlencoded::parse(call.query.as_deref().unwrap_or_default().as_bytes()).into_owned().collect();
        let wanted = Wanted { path: &path, query: query.into_iter().map(|(k, v)| (k, Value::from(v))).collect() };

        let cause = match self.resource_policy.allows(&token.claims, &wanted) {
            Ok(true) => None,
            Ok(false) => Some("the policy's rule allow is not true".to_owned()),
            Err(e) => Some(e.to_string()),
        };
        if let Some(cause) = cause {
            return Err(self.refuse_resource(call, &token, &wanted, cause));
        }
        let entry = self.store.get(NAMESPACE, &key(&path)?).await?;
        let entry = entry.ok_or_else(|| Refusal::NoResource(path.clone()))?;
        let sealed = token.key.seal(&entry.value).map_err(Refusal::Seal)?;
        let event = Event::Release { resource: path.to_string(), token: token.id.clone() };
        self.audit.record(call.peer, event)?;
        Reply::json(&sealed)
    }

    /// `POST /resource/repository/type/tag`: the body becomes the resource.
    pub(crate) async fn set_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        let path = ResourcePath::parse(path)?;
        self.store.put(NAMESPACE, &key(&path)?, &call.body).await?;
        self.administered(call, administrator, "set-resource", path.as_str())
    }

    /// `DELETE /resource/repository/type/tag`.
    pub(crate) async fn delete_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call)?;
        let path = ResourcePath::parse(path)?;
        if !self.store.delete(NAMESPACE, &key(&path)?).await? {
            return Err(Refusal::NoResource(path));
        }
        self.administered(call, administrator, "delete-resource", path.as_str())
    }

    /// The token of a session that has attested, or else the one in the `Authorization` header.
    async fn token(&self, call: &Call) -> Result<Arc<VerifiedToken>, Refusal> {
        let session = match call.cookie() {
            Some(cookie) => Some(self.sessions.open(cookie).await),
            None => None,
        };
        let verify = |token: &str| self.tokens.verify(token, &self.attestation, self.clock.now());
        let of_session = match session {
            Some(Ok(Session::Attested { token })) => verify(&token),
            Some(Err(e)) => Err(e.into()),
            _ => Err(Refusal::NoToken),
        };
        // A client may still carry the cookie of a session whose token has ended.
        match (of_session, call.bearer()) {
            (Err(_), Some(token)) => verify(token),
            (of_session, _) => of_session,
        }
    }

    fn refuse_resource(&self, call: &Call, token: &VerifiedToken, wanted: &Wanted<'_>, cause: String) -> Refusal {
        let reference = match random::<8>() {
            Ok(bytes) => hex::encode(bytes.as_slice()),
            Err(e) => return Refusal::Store(e.into()),
        };
        let claims = self
            .resource_policy
            .differences(&token.claims, wanted)
            .unwrap_or_else(|| self.attestation.differences(&token.claims_json()));
        let record = RefusalRecord {
            reference: reference.clone(),
            stage: "resource policy".to_owned(),
            resource: Some(wanted.path.to_string()),
            token: Some(token.id.clone()),
            cause,
            claims,
        };
        match self.audit.record(call.peer, Event::Refusal(record)) {
            Ok(()) => Refusal::Policy(reference),
            Err(e) => e.into(),
        }
    }
}

fn key(path: &ResourcePath) -> Result<Key, Refusal> {
    Ok(Key::parse(path.as_str())?)
}

const NAMESPACE: Namespace = Namespace::new("resource");
