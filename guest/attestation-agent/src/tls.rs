//! TLS towards the key broker: our own roots and crypto provider, independent of what the process installed.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};

/// A client that trusts the certificates in `pem`, and nothing else; or the public roots if there is no `pem`.
///
/// # Errors
/// What is wrong with the certificates.
pub(crate) fn client(pem: Option<&str>) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match pem {
        Some(pem) => {
            for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
                let certificate = certificate.map_err(|e| e.to_string())?;
                roots.add(certificate).map_err(|e| e.to_string())?;
            }
            if roots.is_empty() {
                return Err("no certificate in it".to_owned());
            }
        }
        None => {
            roots.add_parsable_certificates(webpki_root_certs::TLS_SERVER_ROOT_CERTS.iter().cloned());
        }
    }
    let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|e| e.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn certificates_are_checked_when_they_are_configured() {
        let ca = rcgen::generate_simple_self_signed(["kbs".to_owned()]).unwrap().cert.pem();
        assert!(client(None).is_ok());
        assert!(client(Some(&ca)).is_ok());
        assert!(client(Some(&format!("{ca}{ca}"))).is_ok());
        for bad in ["", "not PEM", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"] {
            assert!(client(Some(bad)).is_err(), "{bad:?} passed");
        }
    }
}
