//! Secrets that lie in the token as objects, found by their labels.

use cryptoki::error::{Error as Cause, RvError};
use cryptoki::object::{Attribute, AttributeInfo, AttributeType, KeyType, ObjectClass};
use cryptoki::session::Session;
use zeroize::{Zeroize as _, Zeroizing};

use crate::error::doing;
use crate::sessions::find;
use crate::{Error, Hsm};

impl Hsm {
    /// The value of the secret with this label: a generic secret or, as other programs write it, a data object.
    ///
    /// # Errors
    /// [`Error::Sensitive`] if the token keeps the value to itself, [`Error::TooLarge`] beyond [`MAX_OBJECT`],
    /// [`Error::Busy`], [`Error::Failed`].
    pub fn read(&self, label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
        self.sessions.with(|session| {
            let mut value = read(session, label);
            for _ in 1..ATTEMPTS {
                match &value {
                    // Replaced between finding and reading it.
                    Err(Error::Failed { source: Cause::Pkcs11(RvError::ObjectHandleInvalid, _), .. }) => {
                        value = read(session, label);
                    }
                    _ => break,
                }
            }
            value
        })
    }

    /// Stores a generic secret in place of those that bore its label. Whoever reads meanwhile gets the old or the new
    /// value.
    ///
    /// # Errors
    /// [`Error::TooLarge`] beyond [`MAX_OBJECT`] or beyond what the token takes, [`Error::Busy`], [`Error::Failed`].
    pub fn write(&self, label: &str, value: &[u8]) -> Result<(), Error> {
        if value.len() > MAX_OBJECT {
            return Err(Error::TooLarge { what: "the secret", size: value.len(), limit: MAX_OBJECT });
        }
        // Two writers at once would leave both values there.
        self.sessions.alone(|session| write(session, label, value))
    }
}

fn read(session: &Session, label: &str) -> Result<Option<Zeroizing<Vec<u8>>>, Error> {
    let mut found = find(session, &[Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into())])?;
    if found.is_empty() {
        found = find(session, &[Attribute::Class(ObjectClass::DATA), Attribute::Label(label.into())])?;
    }
    let Some(&object) = found.first() else { return Ok(None) };

    let info = session.get_attribute_info(object, &[AttributeType::Value]).map_err(doing("looking at a secret"))?;
    let Some(AttributeInfo::Available(size)) = info.first() else { return Err(Error::Sensitive(label.to_owned())) };
    if *size > MAX_OBJECT {
        return Err(Error::TooLarge { what: "the secret", size: *size, limit: MAX_OBJECT });
    }
    let mut attributes = session.get_attributes(object, &[AttributeType::Value]).map_err(doing("reading a secret"))?;
    match attributes.pop() {
        Some(Attribute::Value(value)) => Ok(Some(Zeroizing::new(value))),
        _ => Err(Error::Sensitive(label.to_owned())),
    }
}

fn write(session: &Session, label: &str, value: &[u8]) -> Result<(), Error> {
    let bearing = [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::Label(label.into())];
    let before = find(session, &bearing)?;
    let mut template = [
        Attribute::Value(value.to_vec()),
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::GENERIC_SECRET),
        Attribute::Label(label.into()),
        // Otherwise it would be gone with the session.
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(false),
        Attribute::Extractable(true),
    ];
    let created = session.create_object(&template);
    if let [Attribute::Value(copy), ..] = &mut template {
        copy.zeroize();
    }
    created.map_err(doing("storing a secret"))?;
    for object in before {
        session.destroy_object(object).map_err(doing("removing an old secret"))?;
    }
    Ok(())
}

/// Largest secret in bytes. Most tokens take less.
pub const MAX_OBJECT: usize = 1 << 20;
const ATTEMPTS: usize = 3;
