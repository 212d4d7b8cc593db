//! Resources: secrets by path, set by the owner, given to guests that the resource policy allows.

use std::sync::Arc;

use wire::resource::ResourcePath;

use crate::Broker;
use crate::admin::Administrator;
use crate::api::{Call, Reply};
use crate::audit::RefusalRecord;
use crate::precondition::Precondition;
use crate::refusal::Refusal;
use crate::resource_policy::Wanted;
use crate::session::Session;
use crate::tenants::Tenant;
use crate::tokens::VerifiedToken;

impl Broker {
    /// `GET /resource/repository/type/tag`: the resource as a JWE that only the guest can open.
    ///
    /// The policy is asked before the store, so that a refused guest doesn't learn which resources exist.
    pub(crate) async fn get_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let path = ResourcePath::parse(path)?;
        let token = self.token(call).await?;
        let query = call.query_members();
        let wanted = Wanted { plugin: RESOURCE, path: &path.segments().collect::<Vec<_>>(), query: &query };
        self.allowed(call, &token, self.tenants.owner(&path), &wanted).await?;

        let entry = self.backend.get(&path).await?;
        let entry = entry.ok_or_else(|| Refusal::NoResource(path.clone()))?;
        self.metrics.resource_reads.inc();
        self.release(call, &token, path.as_str(), &entry.value)
    }

    /// `HEAD /resource/repository/type/tag`: its ETag, for an administrator who wants to change it.
    pub(crate) async fn resource_version(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let (_, path) = self.own(call, path).await?;
        let entry = self.backend.get(&path).await?.ok_or_else(|| Refusal::NoResource(path))?;
        Ok(Reply::empty().with_etag(entry.version))
    }

    /// `GET /resource[?repository=…]`: the paths of all resources that the administrator may see.
    pub(crate) async fn list_resources(&self, call: &Call) -> Result<Reply, Refusal> {
        let administrator = self.administrator(call).await?;
        let query = call.query_members();
        let asked = query.get("repository").map(String::as_str);
        let repository = administrator.tenant.as_ref().map(Tenant::as_str).or(asked);
        let paths = self.backend.list(repository).await?;
        let seen = |path: &&ResourcePath| asked.is_none_or(|asked| path.segments().next() == Some(asked));
        Reply::json(&paths.iter().filter(seen).map(ResourcePath::as_str).collect::<Vec<_>>())
    }

    /// `POST /resource/repository/type/tag`: the body becomes the resource.
    pub(crate) async fn set_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let (administrator, path) = self.own(call, path).await?;
        let condition = Precondition::of(&call.headers)?.of_backend();
        let writing = async { Ok(self.backend.put(&path, &call.body, &condition).await?) };
        let version = self.administer(call, administrator, "set-resource", path.as_str(), writing).await?;
        self.metrics.resource_writes.inc();
        Ok(Reply::empty().with_etag(version))
    }

    /// `DELETE /resource/repository/type/tag`.
    pub(crate) async fn delete_resource(&self, call: &Call, path: &str) -> Result<Reply, Refusal> {
        let (administrator, path) = self.own(call, path).await?;
        let condition = Precondition::of(&call.headers)?.of_backend();
        let deleting = async {
            let found = self.backend.delete(&path, &condition).await?;
            found.then_some(()).ok_or_else(|| Refusal::NoResource(path.clone()))
        };
        self.administer(call, administrator, "delete-resource", path.as_str(), deleting).await?;
        self.metrics.resource_deletes.inc();
        Ok(Reply::empty())
    }

    /// The token of a session that has attested, or else the one in the `Authorization` header.
    pub(crate) async fn token(&self, call: &Call) -> Result<Arc<VerifiedToken>, Refusal> {
        let session = match call.cookie() {
            Some(cookie) => Some(self.sessions.open(cookie).await),
            None => None,
        };
        let now = self.clock.now();
        let of_session = match session {
            Some(Ok(Session::Attested { token })) => self.tokens.verify(&token, &self.attester, now).await,
            Some(Err(e)) => Err(e.into()),
            _ => Err(Refusal::NoToken),
        };
        // A client may still carry the cookie of a session whose token has ended.
        match (of_session, call.bearer()) {
            (Err(_), Some(token)) => self.tokens.verify(token, &self.attester, now).await,
            (of_session, _) => of_session,
        }
    }

    /// Asks the resource policy of what is wanted; a refusal is put on record.
    pub(crate) async fn allowed(
        &self,
        call: &Call,
        token: &Arc<VerifiedToken>,
        owner: Option<&Tenant>,
        wanted: &Wanted<'_>,
    ) -> Result<(), Refusal> {
        let policy = self.resource_policies.of(owner, wanted);
        self.metrics.policy_evaluations.inc();
        // What one tenant's attestation policy affirms says nothing to another.
        let foreign = self.tenants.appraised(&token.policy_ids).find(|tenant| Some(*tenant) != owner);
        let allowed = match foreign {
            Some(_) => Ok(false),
            None => policy.allows(&token.claims, wanted).await,
        };
        let cause = match allowed {
            Ok(false) if foreign.is_some() => {
                self.metrics.policy_violations.inc();
                "the token was appraised under the attestation policy of another tenant".to_owned()
            }
            Ok(true) => {
                self.metrics.policy_approvals.inc();
                return Ok(());
            }
            Ok(false) => {
                self.metrics.policy_violations.inc();
                "the policy's rule allow is not true".to_owned()
            }
            Err(e) => {
                self.metrics.policy_errors.inc();
                e.to_string()
            }
        };
        let reference = self.reference()?;
        let claims = match foreign {
            // Its reference values are not the owner's to see.
            Some(_) => Vec::new(),
            None => match policy.differences(&token.claims, wanted).await {
                Some(declared) => declared,
                None => self.attester.differences(token.claims_json()).await,
            },
        };
        let record = RefusalRecord {
            reference: reference.clone(),
            stage: "resource policy".to_owned(),
            session: None,
            resource: Some(wanted.to_string()),
            token: Some(token.id.clone()),
            cause,
            claims,
        };
        self.refused(call, record).await?;
        Err(Refusal::Policy(reference))
    }

    /// Seals a secret to the guest; it leaves only after its release is on record.
    pub(crate) fn release(
        &self,
        call: &Call,
        token: &VerifiedToken,
        resource: &str,
        secret: &[u8],
    ) -> Result<Reply, Refusal> {
        let sealed = token.key.seal(secret).map_err(Refusal::Seal)?;
        self.record_release(call, token, resource)?;
        Reply::json(&sealed)
    }

    /// The administrator who asks, and the path of a resource that is within reach.
    async fn own(&self, call: &Call, path: &str) -> Result<(Administrator, ResourcePath), Refusal> {
        let administrator = self.administrator(call).await?;
        let path = ResourcePath::parse(path)?;
        match &administrator.tenant {
            Some(tenant) if !tenant.owns(&path) => Err(self.not_own(call, &administrator)),
            _ => Ok((administrator, path)),
        }
    }
}

/// Name of the plugin that serves resources.
pub(crate) const RESOURCE: &str = "resource";
