//! The policy that decides which guest may have which resource.
//!
//! The rule `data.policy.allow` must be exactly `true`; `input` is the claims of the guest's token, and `data` has
//! `plugin`, `resource-path` (a list of three) and `query`.
//!
//! A policy may also say what it expects, for `explain` to tell the owner which claim was wrong:
//!
//! ```rego
//! expected := [{"claim": "/submods/cpu0/ear.status", "values": ["affirming"]}]
//! ```
//!
//! `claim` is a JSON pointer (RFC 6901) into the token's claims, `values` lists all that would do. The rule has no
//! part in the decision.

use std::sync::{Arc, PoisonError, RwLock};

use attestation::Difference;
use attestation::policy::{Policy, Question};
use serde_json::{Value, json};
use store::{Key, Namespace, Store};
use wire::resource::ResourcePath;

/// The resource policy in force.
pub(crate) struct ResourcePolicy {
    store: Store,
    policy: RwLock<Arc<Policy>>,
    /// What is in force must be what is stored, whoever writes at the same time.
    writing: tokio::sync::Mutex<()>,
}

/// What a guest asks for.
pub(crate) struct Wanted<'a> {
    pub path: &'a ResourcePath,
    /// The query's members.
    pub query: Value,
}

impl ResourcePolicy {
    /// Parses the stored policy; stores the default one if there is none.
    ///
    /// # Errors
    /// [`Error`] if the store doesn't answer, or holds a policy that another release accepted.
    pub async fn load(store: Store) -> Result<Self, Error> {
        let key = key()?;
        let text = match store.get(NAMESPACE, &key).await? {
            Some(entry) => String::from_utf8_lossy(&entry.value).into_owned(),
            None => {
                store.put(NAMESPACE, &key, DEFAULT.as_bytes()).await?;
                DEFAULT.to_owned()
            }
        };
        let policy = Policy::compile_aside(text).await?;
        Ok(Self { store, policy: RwLock::new(Arc::new(policy)), writing: Default::default() })
    }

    /// Parses a policy, stores it and puts it in force.
    ///
    /// # Errors
    /// [`Error::Policy`] for what is no policy, [`Error::Store`].
    pub async fn set(&self, text: String) -> Result<(), Error> {
        let policy = Policy::compile_aside(text.clone()).await?;
        let _one_at_a_time = self.writing.lock().await;
        self.store.put(NAMESPACE, &key()?, text.as_bytes()).await?;
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(policy);
        Ok(())
    }

    /// Whether the holder of the claims may have what it wants.
    ///
    /// # Errors
    /// [`Error::Policy`] if the policy fails; that is a refusal too.
    pub fn allows(&self, claims: &regorus::Value, wanted: &Wanted<'_>) -> Result<bool, Error> {
        Ok(self.evaluate("allow", claims, wanted)? == Some(Value::Bool(true)))
    }

    /// The claims that differ from what the policy says it expects; nothing if it doesn't say.
    pub fn differences(&self, claims: &regorus::Value, wanted: &Wanted<'_>) -> Option<Vec<Difference>> {
        let expected = self.evaluate("expected", claims, wanted).ok()??;
        let actual = serde_json::to_value(claims).ok()?;
        Some(expected.as_array()?.iter().filter_map(|rule| difference(rule, &actual)).collect())
    }

    fn evaluate(&self, rule: &str, claims: &regorus::Value, wanted: &Wanted<'_>) -> Result<Option<Value>, Error> {
        let data = json!({
            "plugin": "resource",
            "resource-path": wanted.path.segments().collect::<Vec<_>>(),
            "query": wanted.query,
        });
        let question = Question { input: claims.clone(), data: Some(data.into()) };
        let policy = self.policy.read().unwrap_or_else(PoisonError::into_inner).clone();
        Ok(policy.evaluate(rule, question)?)
    }
}

/// Why a resource policy was refused or gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("resource policy: {0}")]
    Policy(#[from] attestation::policy::Error),
    #[error(transparent)]
    Store(#[from] store::Error),
}

fn difference(rule: &Value, claims: &Value) -> Option<Difference> {
    let (claim, values) = (rule["claim"].as_str()?, rule["values"].as_array()?);
    let actual = claims.pointer(claim).cloned().unwrap_or(Value::Null);
    let differs = !values.contains(&actual);
    differs.then(|| Difference::new(claim, actual, Value::from(values.clone())))
}

fn key() -> Result<Key, store::Error> {
    Key::parse("resource-policy.rego")
}

const NAMESPACE: Namespace = Namespace::new("resource-policy");
const DEFAULT: &str = include_str!("default_resource.rego");

#[cfg(test)]
mod tests {
    use super::*;

    async fn policy(text: &str) -> ResourcePolicy {
        let policy = ResourcePolicy::load(Store::memory().await.unwrap()).await.unwrap();
        policy.set(format!("package policy\n{text}")).await.unwrap();
        policy
    }

    fn ask(policy: &ResourcePolicy, claims: &Value) -> Result<bool, Error> {
        let path = ResourcePath::parse("a/b/c").unwrap();
        policy.allows(&claims.clone().into(), &Wanted { path: &path, query: json!({ "q": "1" }) })
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
            assert_eq!(ask(&policy(text).await, &json!({})).unwrap(), expected, "{text}");
        }
    }

    #[tokio::test]
    async fn the_default_gives_resources_to_real_tees_only() {
        let policy = ResourcePolicy::load(Store::memory().await.unwrap()).await.unwrap();
        let claims =
            |evidence: Value| json!({ "submods": { "cpu0": { "ear.veraison.annotated-evidence": evidence } } });
        assert!(ask(&policy, &claims(json!({ "snp": {} }))).unwrap());
        assert!(!ask(&policy, &claims(json!({ "sample": {} }))).unwrap());
        assert!(!ask(&policy, &json!({ "submods": {} })).unwrap());
        assert!(!ask(&policy, &json!({})).unwrap());
    }

    #[tokio::test]
    async fn declared_expectations_are_compared_with_the_claims() {
        let policy = policy(
            "expected := [{\"claim\": \"/submods/cpu0/ear.status\", \"values\": [\"affirming\", \"none\"]},
              {\"claim\": \"/iss\", \"values\": [\"me\"]}, {\"claim\": \"/a~1b\", \"values\": [1]}]",
        )
        .await;
        let path = ResourcePath::parse("a/b/c").unwrap();
        let claims = json!({ "iss": "me", "submods": { "cpu0": { "ear.status": "warning" } } });
        let found = policy.differences(&claims.into(), &Wanted { path: &path, query: json!({}) }).unwrap();
        let found: Vec<_> = found.iter().map(|d| (d.claim.as_str(), &d.actual)).collect();
        assert_eq!(found, [("/submods/cpu0/ear.status", &json!("warning")), ("/a~1b", &Value::Null)]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn the_policy_in_force_is_the_stored_one_after_many_writes_at_once() {
        let policy = Arc::new(policy("allow := false").await);
        let mut writes = tokio::task::JoinSet::new();
        for number in 0..40 {
            let (policy, text) = (policy.clone(), format!("package policy\nallow := {}", number % 2 == 0));
            writes.spawn(async move { policy.set(text).await.unwrap() });
        }
        writes.join_all().await;
        let stored = policy.store.get(NAMESPACE, &key().unwrap()).await.unwrap().unwrap();
        let stored_allows = stored.value.ends_with(b"true");
        assert_eq!(ask(&policy, &json!({})).unwrap(), stored_allows);
    }

    #[tokio::test]
    async fn a_bad_policy_is_not_stored() {
        let policy = policy("allow := true").await;
        assert!(policy.set("package policy\nallow if {".to_owned()).await.is_err());
        assert!(ask(&policy, &json!({})).unwrap());
        let stored = policy.store.get(NAMESPACE, &key().unwrap()).await.unwrap().unwrap();
        assert_eq!(stored.value.as_slice(), b"package policy\nallow := true");
    }
}
