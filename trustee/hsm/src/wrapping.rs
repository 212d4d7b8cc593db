//! Wrapping with an RSA key of the token, by OAEP.

use cryptoki::context::Function;
use cryptoki::error::{Error as Cause, RvError};
use cryptoki::mechanism::rsa::{PkcsMgfType, PkcsOaepParams, PkcsOaepSource};
use cryptoki::mechanism::{Mechanism, MechanismType};
use cryptoki::object::{Attribute, AttributeType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::error::doing;
use crate::sessions::find;
use crate::{Error, Hsm};

/// How a value is padded before RSA, under upstream's names.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum RsaMechanism {
    /// OAEP with SHA-256 and MGF1 with SHA-256.
    #[default]
    RsaPkcsOaep,
    /// OAEP with SHA-1 and MGF1 with SHA-1, the only form that SoftHSM has.
    RsaPkcsTest,
}

impl Hsm {
    /// Encrypts a short value to the public key with this label.
    ///
    /// # Errors
    /// [`Error::NoKey`], [`Error::TooLarge`] beyond [`MAX_WRAPPED`], [`Error::TooLong`] beyond what the key can hold,
    /// [`Error::Mechanism`], [`Error::Busy`], [`Error::Failed`].
    pub fn wrap_key(&self, label: &str, mechanism: RsaMechanism, value: &[u8]) -> Result<Vec<u8>, Error> {
        bounded("the value to wrap", value)?;
        self.sessions.with(|session| {
            let key = key(session, label, ObjectClass::PUBLIC_KEY, "public")?;
            // Modules answer a value that is too long in many ways, so it is not even tried.
            if value.len() > mechanism.room(session, key)? {
                return Err(Error::TooLong(label.to_owned()));
            }
            session.encrypt(&mechanism.of_module(), key, value).map_err(|cause| mechanism.failed(cause, "wrapping"))
        })
    }

    /// Decrypts what [`Hsm::wrap_key`], or anyone with the public key, has encrypted.
    ///
    /// # Errors
    /// [`Error::NotWrapped`] whatever is wrong with the value: who sends many can't learn from it. Otherwise as
    /// [`Hsm::wrap_key`].
    pub fn unwrap_key(
        &self,
        label: &str,
        mechanism: RsaMechanism,
        wrapped: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        bounded("the wrapped value", wrapped)?;
        self.sessions.with(|session| {
            let key = key(session, label, ObjectClass::PRIVATE_KEY, "private")?;
            let value = session.decrypt(&mechanism.of_module(), key, wrapped).map_err(|cause| match cause {
                Cause::Pkcs11(code, Function::Decrypt) if is_undecryptable(code) => Error::NotWrapped(label.to_owned()),
                cause => mechanism.failed(cause, "unwrapping"),
            });
            value.map(Zeroizing::new)
        })
    }
}

impl RsaMechanism {
    fn of_module(self) -> Mechanism<'static> {
        let (hash, mask) = match self {
            Self::RsaPkcsOaep => (MechanismType::SHA256, PkcsMgfType::MGF1_SHA256),
            Self::RsaPkcsTest => (MechanismType::SHA1, PkcsMgfType::MGF1_SHA1),
        };
        Mechanism::RsaPkcsOaep(PkcsOaepParams::new(hash, mask, PkcsOaepSource::empty()))
    }

    /// Most bytes that one block of an RSA key holds.
    fn room(self, session: &Session, key: ObjectHandle) -> Result<usize, Error> {
        let attributes = session.get_attributes(key, &[AttributeType::Modulus]).map_err(doing("looking at a key"))?;
        let Some(Attribute::Modulus(modulus)) = attributes.first() else { return Ok(0) };
        let digest = match self {
            Self::RsaPkcsOaep => 32,
            Self::RsaPkcsTest => 20,
        };
        Ok(modulus.len().saturating_sub(2 * digest + 2))
    }

    fn failed(self, cause: Cause, what: &'static str) -> Error {
        use RvError::{ArgumentsBad, FunctionNotSupported, MechanismInvalid, MechanismParamInvalid};
        match cause {
            Cause::Pkcs11(
                cause @ (ArgumentsBad | FunctionNotSupported | MechanismInvalid | MechanismParamInvalid),
                Function::EncryptInit | Function::DecryptInit,
            ) => {
                let what = match self {
                    Self::RsaPkcsOaep => "RsaPkcsOaep, which is RSA-OAEP with SHA-256",
                    Self::RsaPkcsTest => "RsaPkcsTest, which is RSA-OAEP with SHA-1",
                };
                Error::Mechanism { what, cause }
            }
            source => Error::Failed { what, source },
        }
    }
}

/// The first key of a class with a label.
fn key(session: &Session, label: &str, class: ObjectClass, name: &'static str) -> Result<ObjectHandle, Error> {
    let found = find(session, &[Attribute::Class(class), Attribute::Label(label.into())])?;
    found.first().copied().ok_or_else(|| Error::NoKey { class: name, label: label.to_owned() })
}

/// What modules answer to a value that doesn't decrypt; some know only the general ones.
pub(crate) fn is_undecryptable(code: RvError) -> bool {
    use RvError::{
        DataInvalid, DataLenRange, EncryptedDataInvalid, EncryptedDataLenRange, FunctionFailed, GeneralError,
    };
    matches!(
        code,
        DataInvalid | DataLenRange | EncryptedDataInvalid | EncryptedDataLenRange | FunctionFailed | GeneralError
    )
}

fn bounded(what: &'static str, value: &[u8]) -> Result<(), Error> {
    if value.len() > MAX_WRAPPED {
        return Err(Error::TooLarge { what, size: value.len(), limit: MAX_WRAPPED });
    }
    Ok(())
}

/// Most bytes of a wrapped value: one block of an RSA key of 16,384 bits.
pub const MAX_WRAPPED: usize = 2048;
