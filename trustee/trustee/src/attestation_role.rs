//! The attestation service: a part of the key broker, or a process of its own over gRPC or REST.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::attestation::signing::SignerFiles;
use ::attestation::verifier::Enabled;
use ::attestation::{AttestationService, Settings};
use attestation_api::{Serving, grpc_attestation_service, rest_attestation_service};
use axum::Router;
use http_server::Tls;
use http_server::profile::TlsProfile;
use hyper::http::HeaderValue;
use reference_values::{ReferenceValues, Source};
use store::Store;
use store::clock::Clock;

use crate::config::attestation::TokenBroker;
use crate::config::{self, AsConfig, File as _, Read};
use crate::process::{self, Process};
use crate::reference::{self, Values};
use crate::routed::Routed;
use crate::{cli, storage};

/// `grpc-as`
///
/// # Errors
/// [`Error`] names the part that could not start.
pub fn run_grpc(arguments: cli::GrpcAs) -> Result<(), Error> {
    let cli::GrpcAs { socket, service } = arguments;
    run("grpc-as", socket, service, grpc_attestation_service)
}

/// `restful-as`
///
/// # Errors
/// [`Error`] names the part that could not start.
pub fn run_rest(arguments: cli::RestfulAs) -> Result<(), Error> {
    let cli::RestfulAs { socket, allowed_origin, service } = arguments;
    let origin =
        allowed_origin.map(|text| HeaderValue::try_from(&text).map_err(|_| Error::Origin(text))).transpose()?;
    run("restful-as", socket, service, |service, _, serving| rest_attestation_service(service, origin, serving))
}

/// An attestation service in this process.
///
/// # Errors
/// [`attestation::Error`].
pub async fn load(
    broker: &TokenBroker,
    sample: bool,
    tenants: Vec<String>,
    store: Store,
    source: Arc<dyn Source>,
) -> Result<Arc<AttestationService>, ::attestation::Error> {
    let signer = broker.signer.as_ref().and_then(|signer| {
        let (cert_path, cert_url) = (signer.cert_path.clone(), signer.cert_url.clone());
        Some(SignerFiles { key_path: signer.key_path.clone()?, cert_path, cert_url })
    });
    let settings = Settings {
        enabled: Enabled { sample },
        token_lifetime: Duration::from_secs(60 * u64::from(broker.duration_min)),
        verbose: broker.verbose_token,
        issuer: broker.issuer_name.clone(),
        developer: broker.developer_name.clone(),
        build: broker.build_name.clone().unwrap_or_else(|| BUILD.to_owned()),
        profile: broker.profile_name.clone(),
        signer,
        tenants,
        rotation: Duration::from_secs(24 * 3600 * u64::from(broker.rotation_days)),
    };
    AttestationService::load(store, source, settings, Clock::system()).await
}

/// TLS of a role that has flags for it.
///
/// # Errors
/// [`http_server::tls::Error`].
pub fn tls(flags: &cli::Tls) -> Result<Option<Tls>, http_server::tls::Error> {
    let (Some(certificate), Some(private_key)) = (&flags.https_pubkey_cert, &flags.https_prikey) else {
        return Ok(None);
    };
    let files = http_server::TlsFiles {
        certificate: certificate.clone(),
        private_key: private_key.clone(),
        client_ca: flags.client_ca.clone(),
        require_client_certificate: true,
    };
    Tls::new(files, TlsProfile::default()).map(Some)
}

/// Why an attestation service did not start.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("attestation service: {0}")]
    Attestation(#[from] ::attestation::Error),
    #[error("start: --allowed_origin {0:?} is no origin; next: write it as https://HOST")]
    Origin(String),
}

fn run(
    role: &'static str,
    socket: String,
    arguments: cli::AttestationService,
    route: impl FnOnce(Arc<AttestationService>, Option<ReferenceValues>, Serving) -> Router,
) -> Result<(), Error> {
    let Read { config, warnings } = read(arguments.config_file.as_deref())?;
    process::run(role, None, warnings, async {
        let process = Process::start(&[socket], tls(&arguments.tls).map_err(process::Error::from)?).await?;
        let backend = &config.storage_backend;
        let store = storage::open(backend, backend.storage_type).await?;
        let values = Values::open(&config.rvps_config, backend, &store, false).await?;
        let service =
            load(&config.attestation_token_broker, config.sample_verifier, Vec::new(), store.clone(), values.source()?)
                .await?;
        let health = store.clone();
        let scheme = if process.has_tls() { "https" } else { "http" };
        let serving = Serving { ready: Arc::new(move || health.healthy()), scheme };
        let values = match values {
            Values::Here(values) => Some(values),
            Values::Elsewhere(_) => None,
        };
        let (handler, metrics) = Routed::new("as", route(service, values, serving), store.clone());
        process.serve(handler, metrics).await?;
        store.close().await;
        Ok(())
    })
}

fn read(path: Option<&Path>) -> Result<Read<AsConfig>, config::Error> {
    match path {
        Some(path) => AsConfig::read(path),
        None => Ok(AsConfig::without_file()),
    }
}

const BUILD: &str = concat!(env!("CARGO_PKG_NAME"), " ", env!("CARGO_PKG_VERSION"));
