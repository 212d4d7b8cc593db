//! The policies that decide which guest may have which resource: one of the Trustee, and one for each tenant.
//!
//! The rule `data.policy.allow` must be exactly `true`; `input` is the claims of the guest's token, and `data` has
//! `plugin`, `resource-path` (a list of segments) and `query`.
//!
//! A policy may also say what it expects, for `explain` to tell the owner which claim was wrong:
//!
//! ```rego
//! expected := [{"claim": "/submods/cpu0/ear.status", "values": ["affirming"]}]
//! ```
//!
//! `claim` is a JSON pointer (RFC 6901) into the token's claims, `values` lists all that would do. The rule has no
//! part in the decision.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use attestation::Difference;
use attestation::policy::{Policy, Question};
use serde_json::{Value, json};
use store::{If, Key, Namespace, Store, Version};

use crate::tenants::Tenant;

/// The resource policies in force. Clones share them.
#[derive(Clone)]
pub(crate) struct ResourcePolicies {
    store: Store,
    compiled: Arc<RwLock<BTreeMap<String, Compiled>>>,
    /// What is in force must be what is stored, whoever writes at the same time.
    writing: Arc<tokio::sync::Mutex<()>>,
    deny: Arc<Policy>,
}

/// One policy, ready to be asked.
#[derive(Clone)]
pub(crate) struct Compiled {
    policy: Arc<Policy>,
    version: u64,
}

/// What a guest asks for.
pub(crate) struct Wanted<'a> {
    pub plugin: &'a str,
    pub path: &'a [&'a str],
    pub query: &'a BTreeMap<String, String>,
}

impl fmt::Display for Wanted<'_> {
    /// A resource by its path, anything else with its plugin's name in front, as in `kbs+plugin:///path`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.plugin {
            crate::resource::RESOURCE => f.write_str(&self.path.join("/")),
            plugin => write!(f, "kbs+{plugin}:///{}", self.path.join("/")),
        }?;
        let mut separator = '?';
        for (name, value) in self.query {
            write!(f, "{separator}{name}={value}")?;
            separator = '&';
        }
        Ok(())
    }
}

impl ResourcePolicies {
    /// Compiles the stored policies, stores the default one if there is none, and follows what others change.
    ///
    /// # Errors
    /// [`Error`] if the store doesn't answer, or holds a policy that can't be compiled.
    pub async fn load(store: Store) -> Result<Self, Error> {
        let mut changes = store.changes(NAMESPACE);
        match store.put_if(NAMESPACE, &key(GLOBAL)?, DEFAULT.as_bytes(), If::Absent).await {
            Ok(_) | Err(store::Error::Conflict { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        let deny = Arc::new(Policy::compile_aside(DENY.to_owned()).await?);
        let policies = Self { store, compiled: Arc::default(), writing: Arc::default(), deny };
        policies.reload(false).await?;

        let following = policies.clone();
        tokio::spawn(async move {
            loop {
                changes.changed().await;
                while let Err(e) = following.reload(true).await {
                    tracing::error!("resource policies stay as they are for now: {e}");
                    tokio::time::sleep(RETRY).await;
                }
            }
        });
        Ok(policies)
    }

    /// The policy that decides about the resources of a tenant, or about those that are nobody's.
    ///
    /// A tenant without a policy of its own releases nothing. Nor does a repository that was a tenant's, until its
    /// policy is deleted: a name that is missing in the configuration must not open it to everybody.
    pub fn of(&self, tenant: Option<&Tenant>, wanted: &Wanted<'_>) -> Compiled {
        let compiled = self.compiled.read().unwrap_or_else(PoisonError::into_inner);
        let first = wanted.path.first().copied().unwrap_or_default();
        let abandoned = tenant.is_none() && wanted.plugin == crate::resource::RESOURCE && compiled.contains_key(first);
        let found = compiled.get(tenant.map_or(GLOBAL, Tenant::as_str)).filter(|_| !abandoned).cloned();
        found.unwrap_or_else(|| Compiled { policy: self.deny.clone(), version: 0 })
    }

    /// The ids of all policies.
    pub fn ids(&self) -> Vec<String> {
        self.compiled.read().unwrap_or_else(PoisonError::into_inner).keys().cloned().collect()
    }

    /// The text and version of a policy, as it is or as it was at a version.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn text(&self, id: &str, version: Option<u64>) -> Result<Option<(String, u64)>, Error> {
        let entry = match version {
            None => self.store.get(NAMESPACE, &key(id)?).await?,
            Some(version) => self.store.at(NAMESPACE, &key(id)?, version).await?,
        };
        Ok(entry.map(|entry| (String::from_utf8_lossy(&entry.value).into_owned(), entry.version)))
    }

    /// What a policy was before, newest first.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn history(&self, id: &str) -> Result<Vec<Version>, Error> {
        Ok(self.store.history(NAMESPACE, &key(id)?).await?)
    }

    /// Compiles a policy, stores it, puts it in force and returns its version.
    ///
    /// # Errors
    /// [`Error::Policy`] for what is no policy, [`Error::Store`].
    pub async fn set(&self, id: &str, text: String, condition: If) -> Result<u64, Error> {
        let policy = Arc::new(Policy::compile_aside(text.clone()).await?);
        let _one_at_a_time = self.writing.lock().await;
        let version = self.store.put_if(NAMESPACE, &key(id)?, text.as_bytes(), condition).await?;
        self.insert(id, Compiled { policy, version });
        Ok(version)
    }

    /// Takes a tenant's policy away, so that its resources are released to nobody; the Trustee's own becomes the
    /// default one again. False if there was none.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn delete(&self, id: &str, condition: If) -> Result<bool, Error> {
        if id == GLOBAL {
            self.set(id, DEFAULT.to_owned(), condition).await?;
            return Ok(true);
        }
        let _one_at_a_time = self.writing.lock().await;
        let found = self.store.delete_if(NAMESPACE, &key(id)?, condition).await?;
        self.compiled.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok(found)
    }

    /// Brings what is in force up to what is stored. `lenient` keeps what can't be compiled as it was.
    async fn reload(&self, lenient: bool) -> Result<(), Error> {
        let _one_at_a_time = self.writing.lock().await;
        let mut stored = Vec::new();
        for key in self.store.list(NAMESPACE, "").await? {
            let Some(id) = id(&key) else { continue };
            let Some(entry) = self.store.get(NAMESPACE, &key).await? else { continue };
            stored.push(id.to_owned());
            if self.version(id) == Some(entry.version) {
                continue;
            }
            match Policy::compile_aside(String::from_utf8_lossy(&entry.value).into_owned()).await {
                Ok(policy) => self.insert(id, Compiled { policy: Arc::new(policy), version: entry.version }),
                // It was good when it was set: the machine is busy, and the next attempt may be in time.
                Err(e @ attestation::policy::Error::Slow) => return Err(e.into()),
                Err(e) if lenient => tracing::error!(id, "a changed resource policy is not put in force: {e}"),
                Err(e) => return Err(e.into()),
            }
        }
        self.compiled.write().unwrap_or_else(PoisonError::into_inner).retain(|id, _| stored.contains(id));
        Ok(())
    }

    fn version(&self, id: &str) -> Option<u64> {
        self.compiled.read().unwrap_or_else(PoisonError::into_inner).get(id).map(|compiled| compiled.version)
    }

    fn insert(&self, id: &str, compiled: Compiled) {
        self.compiled.write().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned(), compiled);
    }
}

impl Compiled {
    /// Whether the holder of the claims may have what it wants.
    ///
    /// # Errors
    /// [`Error::Policy`] if the policy fails; that is a refusal too.
    pub async fn allows(&self, claims: &regorus::Value, wanted: &Wanted<'_>) -> Result<bool, Error> {
        Ok(self.evaluate("allow", claims, wanted).await? == Some(Value::Bool(true)))
    }

    /// The claims that differ from what the policy says it expects; nothing if it doesn't say.
    pub async fn differences(&self, claims: &regorus::Value, wanted: &Wanted<'_>) -> Option<Vec<Difference>> {
        let expected = self.evaluate("expected", claims, wanted).await.ok()??;
        let actual = serde_json::to_value(claims).ok()?;
        Some(expected.as_array()?.iter().filter_map(|rule| difference(rule, &actual)).collect())
    }

    /// Evaluates a rule: at once if that is quick, and else away from the threads that serve requests.
    async fn evaluate(
        &self,
        rule: &'static str,
        claims: &regorus::Value,
        wanted: &Wanted<'_>,
    ) -> Result<Option<Value>, Error> {
        let data = json!({ "plugin": wanted.plugin, "resource-path": wanted.path, "query": wanted.query });
        let data: regorus::Value = data.into();
        let question = || Question { input: claims.clone(), data: Some(data.clone()) };
        if let Some(answer) = self.policy.evaluate_promptly(rule, question()) {
            return Ok(answer);
        }
        let (policy, question) = (self.policy.clone(), question());
        Ok(attestation::aside(move || policy.evaluate(rule, question)).await??)
    }
}

/// Why a resource policy was refused or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("resource policy: {0}")]
    Policy(#[from] attestation::policy::Error),
    #[error(transparent)]
    Busy(#[from] attestation::Busy),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn difference(rule: &Value, claims: &Value) -> Option<Difference> {
    let (claim, values) = (rule["claim"].as_str()?, rule["values"].as_array()?);
    let actual = claims.pointer(claim).cloned().unwrap_or(Value::Null);
    let differs = !values.contains(&actual);
    differs.then(|| Difference::new(claim, actual, Value::from(values.clone())))
}

/// Upstream's key is the global policy's; those of tenants lie beside it.
fn key(id: &str) -> Result<Key, store::Error> {
    match id {
        GLOBAL => Key::parse("resource-policy.rego"),
        tenant => Key::parse(&format!("tenant/{tenant}.rego")),
    }
}

fn id(key: &Key) -> Option<&str> {
    let name = key.as_str().strip_suffix(".rego")?;
    match name.strip_prefix("tenant/") {
        Some(tenant) => Some(tenant),
        None => (name == GLOBAL).then_some(name),
    }
}

/// Id of the policy that decides about everything that is no tenant's.
pub(crate) const GLOBAL: &str = "resource-policy";
const NAMESPACE: Namespace = Namespace::versioned("kbs");
const DEFAULT: &str = include_str!("default_resource.rego");
/// Between two attempts to read a store that does not answer.
const RETRY: Duration = Duration::from_secs(5);
const DENY: &str = "package policy\n\nimport rego.v1\n\ndefault allow := false\n";

#[cfg(test)]
mod tests {
    use super::*;

    async fn policies(text: &str) -> ResourcePolicies {
        let policies = ResourcePolicies::load(Store::memory().await.unwrap()).await.unwrap();
        policies.set(GLOBAL, format!("package policy\n{text}"), If::Any).await.unwrap();
        policies
    }

    async fn ask(policies: &ResourcePolicies, claims: &Value) -> Result<bool, Error> {
        let query = BTreeMap::from([("q".to_owned(), "1".to_owned())]);
        let wanted = Wanted { plugin: "resource", path: &["a", "b", "c"], query: &query };
        policies.of(None, &wanted).allows(&claims.clone().into(), &wanted).await
    }

    #[tokio::test]
    async fn only_true_allows() {
        for (text, expected) in [
            ("allow := true", true),
            ("allow if data.plugin == \"resource\"", true),
            ("allow if data[\"resource-path\"] == [\"a\", \"b\", \"c\"]", true),
            ("allow if data.query.q == \"1\"", true),
            ("allow if { x := input.missing }", false),
            ("allow := 1", false),
            ("allow := \"true\"", false),
            ("allow := [true]", false),
            ("other := true", false),
        ] {
            assert_eq!(ask(&policies(text).await, &json!({})).await.unwrap(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn the_default_gives_resources_to_real_tees_only() {
        let policies = ResourcePolicies::load(Store::memory().await.unwrap()).await.unwrap();
        let claims =
            |evidence: Value| json!({ "submods": { "cpu0": { "ear.veraison.annotated-evidence": evidence } } });
        assert!(ask(&policies, &claims(json!({ "snp": {} }))).await.unwrap());
        assert!(!ask(&policies, &claims(json!({ "sample": {} }))).await.unwrap());
        assert!(!ask(&policies, &json!({ "submods": {} })).await.unwrap());
        assert!(!ask(&policies, &json!({})).await.unwrap());
    }

    #[tokio::test]
    async fn declared_expectations_are_compared_with_the_claims() {
        let policies = policies(
            "expected := [{\"claim\": \"/submods/cpu0/ear.status\", \"values\": [\"affirming\", \"none\"]},
              {\"claim\": \"/iss\", \"values\": [\"me\"]}, {\"claim\": \"/a~1b\", \"values\": [1]}]",
        )
        .await;
        let wanted = Wanted { plugin: "resource", path: &["a", "b", "c"], query: &BTreeMap::new() };
        let claims = json!({ "iss": "me", "submods": { "cpu0": { "ear.status": "warning" } } });
        let found = policies.of(None, &wanted).differences(&claims.into(), &wanted).await.unwrap();
        let found: Vec<_> = found.iter().map(|d| (d.claim.as_str(), &d.actual)).collect();
        assert_eq!(found, [("/submods/cpu0/ear.status", &json!("warning")), ("/a~1b", &Value::Null)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_policy_in_force_is_the_stored_one_after_many_writes_at_once() {
        let policies = policies("allow := false").await;
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (policies, text) = (policies.clone(), format!("package policy\nallow := {}", number % 2 == 0));
            writes.spawn(async move { policies.set(GLOBAL, text, If::Any).await.unwrap() });
        }
        writes.join_all().await;
        let stored = policies.text(GLOBAL, None).await.unwrap().unwrap().0;
        assert_eq!(ask(&policies, &json!({})).await.unwrap(), stored.ends_with("true"));
    }

    #[tokio::test]
    async fn a_bad_policy_is_not_stored_and_an_old_one_comes_back() {
        let policies = policies("allow := true").await;
        let good = policies.text(GLOBAL, None).await.unwrap().unwrap();
        let bad = policies.set(GLOBAL, "package policy\nallow if {".to_owned(), If::Any).await;
        assert!(matches!(bad, Err(Error::Policy(_))));
        assert_eq!(policies.text(GLOBAL, None).await.unwrap().unwrap(), good);

        let other = "package policy\nallow := false".to_owned();
        policies.set(GLOBAL, other.clone(), If::Version(good.1)).await.unwrap();
        let late = policies.set(GLOBAL, other, If::Version(good.1)).await;
        assert!(matches!(late, Err(Error::Store(store::Error::Conflict { .. }))));
        assert!(!ask(&policies, &json!({})).await.unwrap());
        let (text, _) = policies.text(GLOBAL, Some(good.1)).await.unwrap().unwrap();
        policies.set(GLOBAL, text, If::Any).await.unwrap();
        assert!(ask(&policies, &json!({})).await.unwrap());
        assert_eq!(policies.history(GLOBAL).await.unwrap().len(), 4);
    }

    #[tokio::test]
    async fn a_tenants_policy_decides_about_its_resources_only() {
        let policies = policies("allow := true").await;
        let blue = Tenant::parse("blue").unwrap();
        let wanted = Wanted { plugin: "resource", path: &["blue", "b", "c"], query: &BTreeMap::new() };
        let claims = json!({}).into();
        assert!(!policies.of(Some(&blue), &wanted).allows(&claims, &wanted).await.unwrap());

        policies.set("blue", "package policy\nallow := true".to_owned(), If::Absent).await.unwrap();
        assert!(policies.of(Some(&blue), &wanted).allows(&claims, &wanted).await.unwrap());
        assert_eq!(policies.ids(), ["blue", GLOBAL]);
        assert!(!policies.of(None, &wanted).allows(&claims, &wanted).await.unwrap(), "it is no tenant any more");
        assert!(policies.delete("blue", If::Any).await.unwrap());
        assert!(!policies.of(Some(&blue), &wanted).allows(&claims, &wanted).await.unwrap());
    }

    #[tokio::test]
    async fn what_another_replica_sets_comes_into_force_here() {
        let store = Store::memory().await.unwrap();
        let (here, there) = (
            ResourcePolicies::load(store.clone()).await.unwrap(),
            ResourcePolicies::load(store.clone()).await.unwrap(),
        );
        let version = there.set(GLOBAL, "package policy\nallow := true".to_owned(), If::Any).await.unwrap();
        let arrived = async {
            while here.version(GLOBAL) != Some(version) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(10), arrived).await.unwrap();
        assert!(ask(&here, &json!({})).await.unwrap());
    }
}
