//! TLS as a guest speaks it: from given roots alone, since it has no certificate store.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

use crate::error::Error;

/// TLS by aws-lc alone, with Mozilla's authorities and the configured ones.
pub(super) fn client_config(extra: &[String]) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
    let refused = |cause: String| Error::Config { cause: format!("extra_root_certificates: {cause}") };
    for pem in extra {
        let certificates = CertificateDer::pem_slice_iter(pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| refused(format!("not PEM: {e}")))?;
        if certificates.is_empty() {
            return Err(refused("an entry holds no certificate".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|e| refused(e.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|e| refused(e.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_certificate_must_be_one() {
        for pem in ["", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            let error = client_config(&[pem.to_owned()]).unwrap_err().to_string();
            assert!(error.contains("extra_root_certificates"), "{error}");
        }
    }
}
