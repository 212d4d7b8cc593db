//! A signing key in files, with the certificates of the owner's certification authority.

use std::fs::File;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer as _, X509Certificate};
use zeroize::Zeroizing;

use super::key::{Certificates, SigningKey};

/// Where an owner's own signing key lies. The files are read again whenever they change.
#[derive(Clone, Debug, PartialEq)]
pub struct SignerFiles {
    /// The private key: EC P-256 in PEM, PKCS#8 or SEC 1.
    pub key_path: PathBuf,
    /// Its certificate in PEM, followed by those of the authorities above it.
    pub cert_path: Option<PathBuf>,
    /// Where others can get the certificates: the JWK's `x5u`.
    pub cert_url: Option<String>,
}

impl SignerFiles {
    /// The files to watch.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        self.cert_path.iter().chain([&self.key_path]).cloned().collect()
    }

    /// Reads the files.
    ///
    /// # Errors
    /// [`FileError`] for what can't be read, is no key or certificate, or doesn't fit together.
    pub(super) fn read(&self) -> Result<SigningKey, FileError> {
        let chain = self.cert_path.as_deref().map(chain).transpose()?.unwrap_or_default();
        let not_a_key = || FileError::NotAKey(self.key_path.clone());
        let text = read(&self.key_path)?;
        let key = Pem::iter_from_buffer(&text)
            .filter_map(Result::ok)
            .find(|pem| matches!(pem.label.as_str(), "PRIVATE KEY" | "EC PRIVATE KEY"))
            .ok_or_else(not_a_key)?;
        let document = Zeroizing::new(key.contents);
        let certificates = Certificates { chain, url: self.cert_url.clone() };
        let key = SigningKey::from_der(&document, &certificates).ok_or_else(not_a_key)?;
        if let Some(leaf) = certificates.chain.first() {
            let other = || FileError::OtherKey { certificate: self.cert_path.clone().unwrap_or_default() };
            let (_, leaf) = X509Certificate::from_der(leaf).map_err(|_| other())?;
            if leaf.public_key().subject_public_key.data.as_ref() != key.public().point() {
                return Err(other());
            }
        }
        Ok(key)
    }
}

/// Why a signing key can't be had from files.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("{}: {source}; next: check the path and its permissions", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{} is larger than {MAX_FILE} bytes", .0.display())]
    TooLarge(PathBuf),
    #[error("{} holds no EC P-256 private key in PEM (PKCS#8 or SEC 1)", .0.display())]
    NotAKey(PathBuf),
    #[error("{} holds no certificates in PEM", .0.display())]
    NotCertificates(PathBuf),
    #[error(
        "{}: certificate {number} is not signed by the one after it; next: order them from the key's own",
        path.display()
    )]
    Chain { path: PathBuf, number: usize },
    #[error("the first certificate in {} is not the one of the signing key", certificate.display())]
    OtherKey { certificate: PathBuf },
    #[error(transparent)]
    Watch(#[from] file_watch::Error),
}

fn chain(path: &Path) -> Result<Vec<Vec<u8>>, FileError> {
    let none = || FileError::NotCertificates(path.to_owned());
    let text = read(path)?;
    let pems: Result<Vec<_>, _> = Pem::iter_from_buffer(&text).collect();
    let chain: Vec<_> = pems.map_err(|_| none())?.into_iter().filter(|pem| pem.label == "CERTIFICATE").collect();
    let certificates: Result<Vec<_>, _> = chain.iter().map(Pem::parse_x509).collect();
    let certificates = certificates.map_err(|_| none())?;
    if certificates.is_empty() {
        return Err(none());
    }
    for (at, pair) in certificates.windows(2).enumerate() {
        if pair[0].issuer() != pair[1].subject() || pair[0].verify_signature(Some(pair[1].public_key())).is_err() {
            return Err(FileError::Chain { path: path.to_owned(), number: at + 1 });
        }
    }
    drop(certificates);
    Ok(chain.into_iter().map(|pem| pem.contents).collect())
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, FileError> {
    let failed = |source| FileError::Read { path: path.to_owned(), source };
    let mut text = Zeroizing::new(Vec::new());
    File::open(path).map_err(failed)?.take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    if text.len() as u64 > MAX_FILE { Err(FileError::TooLarge(path.to_owned())) } else { Ok(text) }
}

const MAX_FILE: u64 = 256 << 10;
