//! What administrators do besides setting resources: policies, reference values, explanations, audit and backup.

use std::future::Future;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::json;
use store::clock::Timestamp;
use store::{If, Key, Namespace, Version};
use wire::reference_value::Message;

use crate::Broker;
use crate::admin::{Admin, Administrator, Error as AdminError};
use crate::api::{Call, Reply};
use crate::audit::{Event, RefusalRecord};
use crate::excerpt::excerpt;
use crate::precondition::{Precondition, etag};
use crate::refusal::Refusal;
use crate::resource_policy::GLOBAL;
use crate::tenants::Tenant;
use crate::tokens::VerifiedToken;

impl Broker {
    /// `GET /resource-policy`: the ids of the resource policies.
    pub(crate) async fn list_resource_policies(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let mut ids = self.resource_policies.ids();
        ids.retain(|id| administrator.tenant.as_ref().is_none_or(|tenant| tenant.as_str() == id));
        Reply::json(&ids)
    }

    /// `GET /resource-policy/id`: its text, with `?version=` as it was, with `?history` what there was.
    pub(crate) async fn resource_policy(&self, call: &Call, id: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_resource_policy(call, &administrator, id)?;
        let query = call.query_members();
        if query.contains_key("history") {
            return versions(&self.resource_policies.history(id).await?);
        }
        let version = query.get("version").map(|version| version_of(version)).transpose()?;
        let (text, version) = self.resource_policies.text(id, version).await?.ok_or(Refusal::NoPolicy)?;
        Ok(Reply::text(text, REGO).with_etag(Some(etag(version))))
    }

    /// `POST /resource-policy[/id]` with `{"policy": base64url of Rego}`, or with `?rollback=version`.
    pub(crate) async fn set_resource_policy(&self, call: &Call, id: Option<&str>) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let own = administrator.tenant.as_ref().map_or(GLOBAL, Tenant::as_str).to_owned();
        let id = id.map_or(own, str::to_owned);
        self.check_resource_policy(call, &administrator, &id)?;
        let condition = Precondition::of(&call.headers)?.of_store()?;
        let text = match call.query_members().get("rollback") {
            Some(version) => {
                let old = self.resource_policies.text(&id, Some(version_of(version)?)).await?;
                old.ok_or(Refusal::NoPolicy)?.0
            }
            None => text(&call.json::<PolicyBody>()?.policy)?,
        };
        let setting = async { Ok(self.resource_policies.set(&id, text, condition).await?) };
        let version = self.administer(call, administrator, "set-resource-policy", &id, setting).await?;
        Ok(Reply::empty().with_etag(Some(etag(version))))
    }

    /// `DELETE /resource-policy/id`.
    pub(crate) async fn delete_resource_policy(&self, call: &Call, id: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_resource_policy(call, &administrator, id)?;
        let condition = Precondition::of(&call.headers)?.of_store()?;
        let deleting = async {
            let found = self.resource_policies.delete(id, condition).await?;
            found.then_some(()).ok_or(Refusal::NoPolicy)
        };
        self.administer(call, administrator, "delete-resource-policy", id, deleting).await?;
        Ok(Reply::empty())
    }

    /// `GET /attestation-policy`: the ids of the attestation policies.
    pub(crate) async fn list_attestation_policies(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let ids = self.attester.built_in()?.policies().into_iter().map(|policy| policy.id);
        let seen = ids.filter(|id| administrator.tenant.as_ref().is_none_or(|tenant| tenant.owns_policy(id)));
        Reply::json(&seen.collect::<Vec<_>>())
    }

    /// `GET /attestation-policy/id`: its text, with `?version=` as it was, with `?history` what there was.
    pub(crate) async fn attestation_policy(&self, call: &Call, id: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_attestation_policy(call, &administrator, id)?;
        let service = self.attester.built_in()?;
        let query = call.query_members();
        if query.contains_key("history") {
            return versions(&service.policy_history(id).await.map_err(Refusal::AttestationPolicy)?);
        }
        let version = query.get("version").map(|version| version_of(version)).transpose()?;
        let found = service.policy(id, version).await.map_err(Refusal::AttestationPolicy)?;
        let (text, version) = found.ok_or(Refusal::NoPolicy)?;
        Ok(Reply::text(text, REGO).with_etag(Some(etag(version))))
    }

    /// `POST /attestation-policy[/id]` with `{"policy_id": …, "policy": base64url of Rego}`, or with
    /// `?rollback=version`.
    pub(crate) async fn set_attestation_policy(&self, call: &Call, id: Option<&str>) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let condition = Precondition::of(&call.headers)?.of_store()?;
        let (id, text) = match (id, call.query_members().get("rollback")) {
            (Some(id), Some(version)) => {
                self.check_attestation_policy(call, &administrator, id)?;
                let old = self.attester.built_in()?.policy(id, Some(version_of(version)?)).await;
                (id.to_owned(), old.map_err(Refusal::AttestationPolicy)?.ok_or(Refusal::NoPolicy)?.0)
            }
            _ => {
                let PolicyBody { policy_id, policy } = call.json()?;
                let id = id.map(str::to_owned).or(policy_id);
                (id.ok_or_else(|| Refusal::Body("policy_id is missing".to_owned()))?, text(&policy)?)
            }
        };
        self.check_attestation_policy(call, &administrator, &id)?;
        let setting = self.attester.set_policy(&id, text, condition);
        let version = self.administer(call, administrator, "set-attestation-policy", &id, setting).await?;
        Ok(Reply::empty().with_etag(version.map(etag)))
    }

    /// `DELETE /attestation-policy/id`.
    pub(crate) async fn delete_attestation_policy(&self, call: &Call, id: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_attestation_policy(call, &administrator, id)?;
        let condition = Precondition::of(&call.headers)?.of_store()?;
        let deleting = async {
            let found = self.attester.built_in()?.delete_policy(id, condition).await;
            found.map_err(Refusal::AttestationPolicy)?.then_some(()).ok_or(Refusal::NoPolicy)
        };
        self.administer(call, administrator, "delete-attestation-policy", id, deleting).await?;
        Ok(Reply::empty())
    }

    /// `POST /reference-value` with a message of the reference value provider.
    pub(crate) async fn register_reference_values(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let message: Message = call.json()?;
        let condition = Precondition::of(&call.headers)?;
        let prefix = administrator.tenant.as_ref().map(Tenant::prefix).unwrap_or_default();
        let registering = self.reference_values.register(&message, &prefix, &condition);
        let target = named(&message);
        self.administer(call, administrator, "register-reference-values", &target, registering).await?;
        Ok(Reply::text("", "application/json"))
    }

    /// `GET /reference-value/name`: the value as JSON, with `?history` what it was.
    pub(crate) async fn reference_value(&self, call: &Call, name: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_reference_value(call, &administrator, name)?;
        if call.query_members().contains_key("history") {
            return Reply::json(&self.reference_values.history(name).await?);
        }
        Reply::json(&self.reference_values.query(name).await?.ok_or(Refusal::NoReferenceValue)?)
    }

    /// `GET /reference-value`: all records, under an ETag that changes with any of them.
    pub(crate) async fn list_reference_values(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let prefix = administrator.tenant.as_ref().map(Tenant::prefix).unwrap_or_default();
        let (records, version) = self.reference_values.list(&prefix).await?;
        Ok(Reply::json(&records)?.with_etag(version))
    }

    /// `DELETE /reference-value/name`.
    pub(crate) async fn delete_reference_value(&self, call: &Call, name: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        self.check_reference_value(call, &administrator, name)?;
        let deleting = async {
            let found = self.reference_values.delete(name).await?;
            found.then_some(()).ok_or(Refusal::NoReferenceValue)
        };
        self.administer(call, administrator, "delete-reference-value", &target(name), deleting).await?;
        Ok(Reply::empty())
    }

    /// `GET /explain/reference`: the record of a refusal, expected values included.
    pub(crate) async fn explain(&self, call: &Call, reference: &str) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let key = Key::parse(reference).map_err(|_| Refusal::NoReference)?;
        let entry = self.store.get(REFUSALS, &key).await?.ok_or(Refusal::NoReference)?;
        let kept: Kept = serde_json::from_slice(&entry.value).map_err(|_| Refusal::NoReference)?;
        let RefusalRecord { reference, stage, session, resource, token, cause, claims } = kept.record;
        if let Some(tenant) = &administrator.tenant {
            // What was refused before a resource was named is nobody's but the Trustee's.
            let own = resource.as_deref().is_some_and(|resource| resource.starts_with(&tenant.prefix()));
            own.then_some(()).ok_or(Refusal::NoReference)?;
        }
        Reply::json(&json!({
            "reference": reference, "time": kept.time, "stage": stage, "session": session, "resource": resource,
            "token": token, "cause": cause, "claims": claims,
        }))
    }

    /// `GET /audit?from=…&limit=…`: lines of this replica's audit log, from a sequence number on.
    pub(crate) async fn audit_lines(&self, call: &Call) -> Result<Reply, Refusal> {
        self.trustees_own(call).await?;
        let query = call.query_members();
        let number = |name: &str, default: u64| match query.get(name) {
            Some(text) => text.parse().map_err(|_| Refusal::Query(excerpt(name))),
            None => Ok(default),
        };
        let (from, limit) = (number("from", 0)?, usize::try_from(number("limit", 1_000)?).unwrap_or(usize::MAX));
        let audit = self.audit.clone();
        let reading = tokio::task::spawn_blocking(move || audit.lines(from, limit)).await;
        let lines = reading.map_err(|_| Refusal::Busy)??;
        Ok(Reply::text(lines, "application/jsonl"))
    }

    /// `GET /backup`: the whole store, sealed.
    pub(crate) async fn backup(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.trustees_own(call).await?;
        let exporting = async {
            let mut backup = Vec::new();
            self.store.export(&mut backup, None).await?;
            Ok(backup)
        };
        let backup = self.administer(call, administrator, "backup", "store", exporting).await?;
        Ok(Reply::text(backup, "application/octet-stream"))
    }

    /// The administrator who sent a request. One whose token is refused is put on record.
    pub(crate) async fn administrator(&self, call: &Call) -> Result<Administrator, Refusal> {
        let refused = match self.admin.authorize(call.bearer(), &call.method, &call.uri()).await {
            Ok(administrator) => return Ok(administrator),
            Err(refused) => refused,
        };
        if call.bearer().is_some() && !matches!(self.admin, Admin::DenyAll) {
            let event = Event::AdministrationRefused { path: excerpt(&call.path), cause: refused.to_string() };
            self.audit.record_refusal(call.peer, event)?;
        }
        Err(refused.into())
    }

    /// Does what an administrator asks, after putting it on record; if it fails, that is recorded too.
    pub(crate) async fn administer<T>(
        &self,
        call: &Call,
        administrator: Administrator,
        act: &str,
        target: &str,
        doing: impl Future<Output = Result<T, Refusal>>,
    ) -> Result<T, Refusal> {
        let Administrator { subject, issuer, role, tenant } = administrator;
        let (act, target) = (act.to_owned(), target.to_owned());
        let tenant = tenant.map(|tenant| tenant.to_string());
        let event = Event::Administration { act: act.clone(), target: target.clone(), subject, issuer, role, tenant };
        self.audit.record(call.peer, event)?;
        let done = doing.await;
        if let Err(refusal) = &done {
            self.audit.record(call.peer, Event::AdministrationFailed { act, target, cause: refusal.to_string() })?;
        }
        done
    }

    /// Puts a refusal on record, and keeps it for whoever asks any replica to explain it.
    pub(crate) async fn refused(&self, call: &Call, record: RefusalRecord) -> Result<(), Refusal> {
        let record = record.shortened();
        if !self.audit.record_refusal(call.peer, Event::Refusal(record.clone()))? {
            return Ok(());
        }
        if let Err(e) = self.keep(record).await {
            tracing::warn!("a refusal can't be explained later: {e}");
        }
        Ok(())
    }

    /// A new reference id; ids sort by time, so that old ones are a range.
    pub(crate) fn reference(&self) -> Result<String, Refusal> {
        let random = store::seal::random::<4>().map_err(store::Error::from)?;
        Ok(format!("{:08x}{}", self.clock.now().unix(), hex::encode(random.as_slice())))
    }

    /// Puts a plugin's unencrypted answer to a guest on record.
    pub(crate) fn record_release(&self, call: &Call, token: &VerifiedToken, resource: &str) -> Result<(), Refusal> {
        let event = Event::Release { resource: resource.to_owned(), token: token.id.clone() };
        Ok(self.audit.record(call.peer, event)?)
    }

    async fn keep(&self, record: RefusalRecord) -> Result<(), store::Error> {
        let now = self.clock.now();
        let oldest = format!("{:08x}", now.unix().saturating_sub(EXPLAINED));
        self.store.delete_before(REFUSALS, &Key::parse(&oldest)?).await?;
        let key = Key::parse(&record.reference)?;
        let kept = serde_json::to_vec(&Kept { time: now, record }).unwrap_or_default();
        self.store.put(REFUSALS, &key, &kept).await?;
        Ok(())
    }

    async fn trustees_own(&self, call: &Call) -> Result<Administrator, Refusal> {
        let administrator = self.administrator(call).await?;
        if administrator.tenant.is_some() {
            return Err(self.not_own(call, &administrator));
        }
        Ok(administrator)
    }

    /// The refusal of an administrator who reaches for what is another tenant's or the Trustee's; put on record.
    pub(crate) fn not_own(&self, call: &Call, administrator: &Administrator) -> Refusal {
        let who = administrator.subject.as_deref().unwrap_or("an administrator without sub");
        let tenant = administrator.tenant.as_ref().map_or("nobody", Tenant::as_str);
        let cause = format!("{who} of tenant {tenant} reached for what is not theirs");
        let event = Event::AdministrationRefused { path: target(&call.path), cause };
        match self.audit.record_refusal(call.peer, event) {
            Ok(_) => AdminError::Tenant.into(),
            Err(e) => e.into(),
        }
    }

    fn check_attestation_policy(&self, call: &Call, administrator: &Administrator, id: &str) -> Result<(), Refusal> {
        match &administrator.tenant {
            Some(tenant) if !tenant.owns_policy(id) => Err(self.not_own(call, administrator)),
            _ => Ok(()),
        }
    }

    fn check_reference_value(&self, call: &Call, administrator: &Administrator, name: &str) -> Result<(), Refusal> {
        match &administrator.tenant {
            Some(tenant) if !name.starts_with(&tenant.prefix()) => Err(self.not_own(call, administrator)),
            _ => Ok(()),
        }
    }

    fn check_resource_policy(&self, call: &Call, administrator: &Administrator, id: &str) -> Result<(), Refusal> {
        match &administrator.tenant {
            Some(tenant) if tenant.as_str() != id => Err(self.not_own(call, administrator)),
            None if id != GLOBAL && self.tenants.get(id).is_none() => Err(Refusal::NoPolicy),
            _ => Ok(()),
        }
    }
}

/// A policy as it is sent; upstream's clients add a `type`, which says nothing.
#[derive(Deserialize)]
struct PolicyBody {
    policy_id: Option<String>,
    policy: String,
}

/// A refusal as it is kept in the store.
#[derive(Deserialize, serde::Serialize)]
struct Kept {
    time: Timestamp,
    record: RefusalRecord,
}

/// What a message registers, for the record: the names as far as they can be told, or its kind.
fn named(message: &Message) -> String {
    let payload = STANDARD.decode(&message.payload).unwrap_or_default();
    let Ok(extract) = reference_values::extract(&message.kind, &payload) else { return excerpt(&message.kind) };
    let names: Vec<String> = extract.values.into_keys().collect();
    target(&names.join(" "))
}

/// What was administered, for the record: longer than what a client is shown.
pub(crate) fn target(text: &str) -> String {
    text.chars().take(MAX_TARGET).flat_map(char::escape_default).collect()
}

fn versions(versions: &[Version]) -> Result<Reply, Refusal> {
    let version = |version: &Version| json!({ "version": etag(version.version), "time": version.time, "deleted": version.deleted });
    Reply::json(&versions.iter().map(version).collect::<Vec<_>>())
}

fn version_of(text: &str) -> Result<u64, Refusal> {
    match Precondition::Version(text.to_owned()).of_store() {
        Ok(If::Version(version)) => Ok(version),
        _ => Err(Refusal::NoPolicy),
    }
}

fn text(encoded: &str) -> Result<String, Refusal> {
    let bytes = URL_SAFE_NO_PAD.decode(encoded.trim_end_matches('='));
    let bytes = bytes.map_err(|_| Refusal::Body("policy is not base64url".to_owned()))?;
    String::from_utf8(bytes).map_err(|_| Refusal::Body("policy is not UTF-8".to_owned()))
}

const REGO: &str = "text/plain; charset=utf-8";
const REFUSALS: Namespace = Namespace::quiet("refusal");
const MAX_TARGET: usize = 1_024;
/// How long refusals can be explained, in seconds; their lines stay in the audit log.
const EXPLAINED: u64 = 24 * 60 * 60;
