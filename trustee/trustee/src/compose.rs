//! Composes a key broker of its parts, as the configuration says: the one place where they all meet.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use attestation_api::{AttestationClient, IntelSettings, IntelTrustAuthority, ReferenceValueClient};
use http_body_util::BodyExt as _;
use http_server::{Body, Handler, Metrics, Peer};
use hyper::body::Incoming;
use hyper::{Request, Response};
use key_broker::admin::{Admin, Authenticated, Rule};
use key_broker::attester::{Attester, Service};
use key_broker::reference_value_provider::Provider;
use key_broker::tenants::{self, Tenants};
use key_broker::{Broker, Parts, Settings};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;
use store::Store;
use store::clock::Clock;
use token_verifier::{AdminTokens, AttestationTokens, AttestationTrust, Http, IdentityProvider, KeySource};

use crate::config::admin::AuthorizationMode;
use crate::config::attestation::{AttestationService, RvpsConfig, ServiceType};
use crate::config::{Config, Plugin};
use crate::reference::{self, Values};
use crate::{attestation_role, storage};

/// A broker as a handler of requests.
pub struct Serving(Arc<Broker>);

impl Handler for Serving {
    async fn answer(&self, peer: Peer, request: Request<Incoming>) -> Response<Body> {
        let response = self.0.answer(peer.address.ip(), request).await;
        response.map(|body| body.map_err(|never| match never {}).boxed_unsync())
    }
}

/// A broker on a store.
///
/// # Errors
/// [`Error`] names the part that could not be made.
pub async fn broker(config: &Config, store: Store, tls: bool) -> Result<(Arc<Serving>, Metrics), Error> {
    let clock = Clock::system();
    let mut registry = Registry::default();
    let metrics = Metrics::new("kbs", &mut registry);
    build_info(&mut registry);

    let tenants = Tenants::new(config.tenants.iter().filter_map(|tenant| tenant.name.as_deref()))?;
    let admin = admin(config, &tenants, &clock).await?;
    let (attester, reference_values) = attester(config, &store, &clock).await?;
    let mut backend = None;
    let mut plugins = Vec::new();
    for plugin in config.plugins().map_err(Error::Plugins)? {
        match plugin {
            Plugin::Resource(settings) if backend.is_none() => backend = Some(settings),
            Plugin::Resource(_) => return Err(Error::Plugins("the plugin resource is there twice".to_owned())),
            Plugin::Other(settings) => plugins.push(plugins::open(settings, store.clone(), clock.clone()).await?),
        }
    }
    let backend = backend.unwrap_or_default();
    let remote = config.attestation_service.as_ref().is_some_and(|service| service.r#type == ServiceType::Grpc);
    if !config.tenants.is_empty() && (backend.by_tag() || remote) {
        return Err(Error::Shared);
    }
    let backend = resource_backends::open(backend, store.clone(), clock.clone()).await?;
    let timeout = config.attestation_service.as_ref().map_or(5, |service| service.timeout);
    let settings = Settings {
        audit: config.audit_path(),
        session_lifetime: Duration::from_secs(60 * u64::from(timeout)),
        tls,
        max_body: usize::from(config.http_server.payload_request_size) << 20,
        tee_key_paths: config.attestation_token.extra_teekey_paths.clone(),
        rsa1_5: config.attestation_token.allow_rsa1_5,
        policy_ids: config
            .attestation_service
            .as_ref()
            .map(|service| service.policy_id_map.clone())
            .unwrap_or_default(),
        metrics_for_administrators: config.http_server.require_admin_auth_metrics,
    };
    let registry = Arc::new(Mutex::new(registry));
    let parts =
        Parts { store, clock, attester, reference_values, backend, plugins, admin, tenants, registry, settings };
    Ok((Arc::new(Serving(Arc::new(Broker::assemble(parts).await?))), metrics))
}

async fn admin(config: &Config, tenants: &Tenants, clock: &Clock) -> Result<Admin, Error> {
    match config.admin.authorization_mode {
        AuthorizationMode::DenyAll => return Ok(Admin::DenyAll),
        AuthorizationMode::InsecureAllowAll => return Ok(Admin::InsecureAllowAll),
        AuthorizationMode::AuthenticatedAuthorization => {}
    }
    let mut providers = Vec::new();
    for provider in &config.admin.authentication.bearer_jwt.identity_providers {
        let keys = provider.public_key_uri.as_deref().map(pem);
        let sets = provider.jwk_set_uri.as_deref().map(|place| Ok::<_, Error>(KeySource::JwkSet(uri(place)?)));
        for source in keys.into_iter().chain(sets.transpose()?) {
            let (issuer, audience) = (provider.issuer.clone(), provider.audience.clone());
            providers.push(IdentityProvider { issuer, audience, source });
        }
    }
    let tokens = AdminTokens::new(providers, Http::new(None)?, clock.clone()).await?;
    let mut rules = Vec::new();
    for acl in &config.admin.authorization.regex_acl.acls {
        // Roles, endpoints and tenants are there: the configuration was checked.
        let (Some(role), Some(endpoints)) = (&acl.role, &acl.allowed_endpoints) else { continue };
        let tenant = acl.tenant.as_deref().and_then(|name| tenants.get(name)).cloned();
        rules.push(Rule::new(role.clone(), endpoints, &acl.methods, tenant)?.of_issuer(acl.issuer.clone()));
    }
    Ok(Admin::Authenticated(Box::new(Authenticated::new(tokens, rules)?)))
}

/// Who verifies evidence and tokens, and where reference values are.
async fn attester(config: &Config, store: &Store, clock: &Clock) -> Result<(Attester, Provider), Error> {
    let mut trust = AttestationTrust {
        certificates: config.attestation_token.trusted_certs_paths.clone(),
        jwk_sets: config.attestation_token.trusted_jwk_sets.clone(),
        insecure_header_jwk: config.attestation_token.insecure_header_jwk,
    };
    let own = || async { Ok::<_, Error>(Provider::BuiltIn(reference::load(store.clone(), &[], true).await?)) };
    let (service, values) = match &config.attestation_service {
        None => (Service::Elsewhere, own().await?),
        Some(section) => match section.r#type {
            ServiceType::BuiltIn => built_in(section, config, store).await?,
            ServiceType::Grpc => {
                let identity = section.client_certificate.clone().zip(section.client_private_key.clone());
                let time = Duration::from_secs(300);
                let settings = reference::client(&section.as_addr, section.pool_size, time, identity, &section.ca_cert);
                // The service passes reference values on to its provider, on the same socket.
                let values = Provider::Remote(ReferenceValueClient::connect(settings.clone())?);
                (Service::Grpc(AttestationClient::connect(settings)?), values)
            }
            ServiceType::Intel => {
                trust.jwk_sets.extend(section.certs_file.as_deref().map(uri).transpose()?);
                (Service::Intel(intel(section)?), own().await?)
            }
        },
    };
    let trusts = !trust.certificates.is_empty() || !trust.jwk_sets.is_empty() || trust.insecure_header_jwk;
    let trusted = match service {
        Service::BuiltIn(_) if !trusts => None,
        _ => Some(AttestationTokens::new(trust, Http::new(None)?, clock.clone()).await?),
    };
    Ok((Attester::new(service, trusted), values))
}

async fn built_in(section: &AttestationService, config: &Config, store: &Store) -> Result<(Service, Provider), Error> {
    let backend = &config.storage_backend;
    let store = match section.storage_type {
        Some(kind) if kind != backend.storage_type => {
            storage::open(backend, kind).await.map_err(reference::Error::from)?
        }
        _ => store.clone(),
    };
    let rvps: &RvpsConfig = &section.rvps_config;
    let values = Values::open(rvps, backend, &store, true).await?;
    let source = values.source()?;
    let tenants = config.tenants.iter().filter_map(|tenant| tenant.name.clone()).collect();
    let service =
        attestation_role::load(&section.attestation_token_broker, section.sample_verifier, tenants, store, source)
            .await?;
    let provider = match values {
        Values::Here(values) => Provider::BuiltIn(values),
        Values::Elsewhere(settings) => Provider::Remote(ReferenceValueClient::connect(settings)?),
    };
    Ok((Service::BuiltIn(service), provider))
}

fn intel(section: &AttestationService) -> Result<IntelTrustAuthority, Error> {
    // Both are there: the configuration was checked.
    let settings = IntelSettings {
        base_url: section.base_url.clone().unwrap_or_default(),
        api_key: section.api_key.clone().unwrap_or_default(),
        policy_ids: section.policy_ids.clone(),
        allow_unmatched_policy: section.allow_unmatched_policy,
    };
    Ok(IntelTrustAuthority::new(settings)?)
}

fn pem(place: &str) -> KeySource {
    match place.strip_prefix("file://") {
        Some(path) => KeySource::Pem(path.into()),
        None if place.contains("://") => KeySource::PemUrl(place.to_owned()),
        None => KeySource::Pem(place.into()),
    }
}

/// A path is a file's, wherever the process runs.
fn uri(place: &str) -> Result<String, Error> {
    if place.contains("://") {
        return Ok(place.to_owned());
    }
    let path = std::path::absolute(Path::new(place)).map_err(|_| Error::Place(place.to_owned()))?;
    Ok(format!("file://{}", path.display()))
}

fn build_info(registry: &mut Registry) {
    #[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
    struct Build {
        version: &'static str,
        git_hash: &'static str,
        build_date: &'static str,
    }
    let build = Build {
        version: env!("CARGO_PKG_VERSION"),
        git_hash: option_env!("TRUSTEE_GIT_HASH").unwrap_or("unknown"),
        build_date: option_env!("TRUSTEE_BUILD_DATE").unwrap_or("unknown"),
    };
    let info = Family::<Build, Gauge>::default();
    info.get_or_create(&build).set(1);
    registry.register("kbs_build_info", "Which build this is", info);
}

/// Why a broker could not be composed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("configuration: {0}; next: correct [[plugins]]")]
    Plugins(String),
    #[error(
        "configuration: [[tenants]] can't be kept apart where resources are named by their tag, or by an attestation \
         service elsewhere; next: set naming = \"path\" and coco_as_builtin, or run a Trustee for each owner"
    )]
    Shared,
    #[error("configuration: [[tenants]]: {0}")]
    Tenants(#[from] tenants::Error),
    #[error("configuration: [admin]: {0}; next: correct [admin] in the configuration")]
    Admin(#[from] key_broker::admin::Error),
    #[error("configuration: {0:?} is no path; next: write an absolute one")]
    Place(String),
    #[error("trusted keys: {0}")]
    Tokens(#[from] token_verifier::Error),
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("attestation service: {0}")]
    Attestation(#[from] attestation::Error),
    #[error("attestation service: {0}")]
    Client(#[from] attestation_api::Error),
    #[error("resources: {0}")]
    Backend(#[from] resource_backends::Error),
    #[error("plugins: {0}")]
    Plugin(#[from] plugins::Error),
    #[error(transparent)]
    Broker(#[from] key_broker::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_is_in_a_file_or_comes_over_the_network() {
        for (place, expected) in [("./k.pem", "./k.pem"), ("/k.pem", "/k.pem"), ("file:///k.pem", "/k.pem")] {
            assert!(matches!(pem(place), KeySource::Pem(path) if path == Path::new(expected)), "{place}");
        }
        let far = "https://owner.example/k.pem";
        assert!(matches!(pem(far), KeySource::PemUrl(place) if place == far));
    }
}
