//! A server's certificate, and the authority of its clients' ones: read from files, and read again when they change.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use crate::ClientCertificate;
use crate::profile::{self, TlsProfile};

/// Where a server's identity lies, in PEM.
#[derive(Clone, Debug)]
pub struct TlsFiles {
    /// The certificate chain, leaf first.
    pub certificate: PathBuf,
    /// The leaf's private key: PKCS#8, PKCS#1 or SEC 1.
    pub private_key: PathBuf,
    /// The authorities that clients' certificates come from; clients are asked for one where this is set.
    pub client_ca: Option<PathBuf>,
    /// Whether a client without a certificate is turned away. Of no effect without `client_ca`.
    pub require_client_certificate: bool,
}

/// A server's identity, ready to be shown to clients.
///
/// When a file changes, connections from then on see the new one. Files that can't be used leave the old identity in
/// place, with a warning. Connections that are open stay.
#[derive(Clone)]
pub struct Tls {
    current: watch::Receiver<Arc<ServerConfig>>,
}

impl Tls {
    /// Reads the files, and watches them as long as the answer or a clone of it lives.
    ///
    /// # Errors
    /// [`Error`] for files or a profile that can't be used.
    ///
    /// # Panics
    /// Outside of a Tokio runtime.
    pub fn new(files: TlsFiles, profile: TlsProfile) -> Result<Self, Error> {
        if profile.overrules() {
            tracing::warn!("tls_profile is overruled by the other tls_* keys; say tls_profile = \"custom\"");
        }
        let watched = [Some(&files.certificate), Some(&files.private_key), files.client_ca.as_ref()];
        let watched: Vec<PathBuf> = watched.into_iter().flatten().cloned().collect();
        // Before the first reading, so that no change falls between the two.
        let mut changes = file_watch::watch(&watched)?;
        let (sender, current) = watch::channel(Arc::new(load(&files, &profile)?));
        tokio::spawn(async move {
            loop {
                tokio::select! { () = changes.changed() => {}, () = sender.closed() => return }
                match load(&files, &profile) {
                    Ok(config) => {
                        sender.send_replace(Arc::new(config));
                        tracing::info!(certificate = %files.certificate.display(), "TLS: new identity in use");
                    }
                    Err(e) => tracing::warn!("the previous TLS identity stays in use: {e}"),
                }
            }
        });
        Ok(Self { current })
    }

    pub(crate) async fn accept(
        &self,
        stream: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<ClientCertificate>>)> {
        let config = self.current.borrow().clone();
        let stream = TlsAcceptor::from(config).accept(stream).await?;
        let certificate = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let certificate = certificate.map(|leaf| ClientCertificate::read(leaf)).map(Arc::new);
        Ok((stream, certificate))
    }
}

impl ClientCertificate {
    /// What a certificate that was verified says; a name in a form that is no text is left out.
    fn read(certificate: &[u8]) -> Self {
        let Ok((_, certificate)) = X509Certificate::from_der(certificate) else { return Self::default() };
        let subject = certificate.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
        let names = certificate.subject_alternative_name().ok().flatten();
        let names = names.iter().flat_map(|extension| &extension.value.general_names);
        let alternative_names = names.filter_map(|name| match name {
            GeneralName::DNSName(name) | GeneralName::URI(name) | GeneralName::RFC822Name(name) => {
                Some((*name).to_owned())
            }
            GeneralName::IPAddress(bytes) => address(bytes),
            _ => None,
        });
        Self { subject: subject.map(str::to_owned), alternative_names: alternative_names.collect() }
    }
}

/// Why TLS can't be served.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("TLS: {}: {source}; next: check the path, and that it may be read", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("TLS: {}: {reason}; next: give certificate and private_key in PEM, which belong together", path.display())]
    Identity { path: PathBuf, reason: String },
    #[error("TLS: {}: {reason}; next: give the authorities' certificates in PEM", path.display())]
    ClientCa { path: PathBuf, reason: String },
    #[error("TLS: {0}")]
    Profile(#[from] profile::Error),
    #[error("TLS: {0}")]
    Watch(#[from] file_watch::Error),
}

fn load(files: &TlsFiles, profile: &TlsProfile) -> Result<ServerConfig, Error> {
    let (provider, versions) = profile.resolve()?;
    let provider = Arc::new(provider);
    let identity = |path: &Path, reason: String| Error::Identity { path: path.to_owned(), reason };

    let chain = certificates(&files.certificate, |reason| identity(&files.certificate, reason))?;
    let key = Zeroizing::new(read(&files.private_key)?);
    let key = PrivateKeyDer::from_pem_slice(&key).map_err(|e| identity(&files.private_key, e.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider.clone()).with_protocol_versions(&versions);
    let builder = builder.map_err(|e| identity(&files.certificate, e.to_string()))?;
    let builder = match &files.client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let refused = |reason: String| Error::ClientCa { path: path.clone(), reason };
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path, refused)? {
                roots.add(certificate).map_err(|e| refused(e.to_string()))?;
            }
            let mut verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider);
            if !files.require_client_certificate {
                verifier = verifier.allow_unauthenticated();
            }
            builder.with_client_cert_verifier(verifier.build().map_err(|e| refused(e.to_string()))?)
        }
    };
    let mut config = builder.with_single_cert(chain, key).map_err(|e| identity(&files.certificate, e.to_string()))?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}

fn certificates(path: &Path, refused: impl Fn(String) -> Error) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let chain: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let chain = chain.map_err(|e| refused(e.to_string()))?;
    if chain.is_empty() { Err(refused("no certificate in it".to_owned())) } else { Ok(chain) }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    std::fs::read(path).map_err(|source| Error::File { path: path.to_owned(), source })
}

fn address(bytes: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(bytes).map(|bytes| std::net::Ipv4Addr::from(bytes).to_string());
    v4.or_else(|_| <[u8; 16]>::try_from(bytes).map(|bytes| std::net::Ipv6Addr::from(bytes).to_string())).ok()
}
