//! Registers key encryption keys with a Trustee.

use std::path::PathBuf;

use bytes::Bytes;
use reqwest::Method;
use reqwest::header::IF_NONE_MATCH;
use tonic::Code;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use crate::kek::Kek;
use crate::trustee::{self, Trustee};

/// A Trustee and an administrator's credentials for it, which are read anew for every key.
pub struct Registrar {
    url: String,
    cert_file: Option<PathBuf>,
    credentials: Credentials,
    overwrite: bool,
}

/// How the administrator proves who they are.
#[derive(Clone, Debug)]
pub enum Credentials {
    /// A file with a token; without one, `~/.trustee/admin-token`.
    TokenFile(Option<PathBuf>),
    /// A file with the Ed25519 private key that tokens are signed with.
    PrivateKey(PathBuf),
}

impl Registrar {
    /// Registers keys at `url`. A key that is there already is left alone unless `overwrite` is set.
    ///
    /// # Errors
    /// [`trustee::Error`] if URL, certificates or credentials can't be used. Nothing is connected yet.
    pub fn new(
        url: String,
        cert_file: Option<PathBuf>,
        credentials: Credentials,
        overwrite: bool,
    ) -> Result<Self, trustee::Error> {
        let registrar = Self { url, cert_file, credentials, overwrite };
        registrar.trustee()?;
        Ok(registrar)
    }

    /// Whether a name may get another key.
    pub(super) fn overwrites(&self) -> bool {
        self.overwrite
    }

    /// Makes `key` the resource of this path.
    ///
    /// # Errors
    /// [`Error::Exists`] if there is one, [`Error::Trustee`] if Trustee can't be reached or refuses.
    pub(super) async fn register(&self, path: &ResourcePath, key: &Kek) -> Result<(), Error> {
        let condition = (!self.overwrite).then(|| (IF_NONE_MATCH, "*".to_owned()));
        let body = Bytes::from_owner(Zeroizing::new(key.as_bytes().to_vec()));
        let sent = self.trustee()?.send(Method::POST, &format!("resource/{path}"), body, condition).await;
        match sent {
            Ok(_) => Ok(()),
            Err(trustee::Error::Refused { status: 412, .. }) => Err(Error::Exists(path.to_string())),
            Err(error) => Err(error.into()),
        }
    }

    fn trustee(&self) -> Result<Trustee, trustee::Error> {
        let cert_file = self.cert_file.as_deref();
        match &self.credentials {
            Credentials::TokenFile(file) => Trustee::new(&self.url, cert_file, file.as_deref()),
            Credentials::PrivateKey(file) => Trustee::with_private_key(&self.url, cert_file, file),
        }
    }
}

/// Why a key was not registered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Trustee holds a key of that name, and shows it to nobody but guests.
    #[error(
        "Trustee holds a resource {0} already, which may be another key; next: name another keyid, or if it is the key of \
         keypath, start the key provider without --kbs; --overwrite replaces it, and what was encrypted with it is lost"
    )]
    Exists(String),
    /// Trustee can't be reached or refuses.
    #[error(transparent)]
    Trustee(#[from] trustee::Error),
}

impl Error {
    pub(super) fn code(&self) -> Code {
        match self {
            Self::Exists(_) => Code::AlreadyExists,
            Self::Trustee(trustee::Error::Refused { status: 401 | 403, .. }) => Code::PermissionDenied,
            Self::Trustee(trustee::Error::Unreachable { .. }) => Code::Unavailable,
            Self::Trustee(_) => Code::FailedPrecondition,
        }
    }
}
