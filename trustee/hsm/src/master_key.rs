//! A master key that lies in a file, sealed by an AES key that never leaves the token.
//!
//! The sealed form is `1`, a nonce of 12 bytes, and AES-256-GCM of the 32 bytes with its tag. Only who may use the
//! token can make one, so nobody who can write the file can choose the key.

use std::fs::{self, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use cryptoki::context::Function;
use cryptoki::error::Error as Cause;
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::aead::GcmParams;
use cryptoki::object::{Attribute, KeyType, ObjectClass, ObjectHandle};
use cryptoki::session::Session;
use zeroize::Zeroizing;

use crate::error::doing;
use crate::sessions::find;
use crate::wrapping::is_undecryptable;
use crate::{Error, Hsm};

impl Hsm {
    /// The master key that a file holds. If there is no file, makes a random key and the file, with mode 0600.
    ///
    /// Replicas share the token and each have a copy of the file.
    ///
    /// # Errors
    /// [`Error::WrappedFile`], and those of [`Hsm::wrap_master_key`] and [`Hsm::unwrap_master_key`].
    pub fn master_key(&self, label: &str, file: &Path) -> Result<Zeroizing<[u8; MASTER_KEY_LEN]>, Error> {
        let failed = |source| Error::WrappedFile { path: file.to_owned(), source };
        let wrapped = match read(file).map_err(failed)? {
            Some(wrapped) => wrapped,
            None => {
                let mut key = Zeroizing::new([0; MASTER_KEY_LEN]);
                let random = self.random(MASTER_KEY_LEN as u32)?;
                key.copy_from_slice(&random);
                place(file, &self.wrap_master_key(label, &key)?).map_err(failed)?;
                // Another process may have been faster.
                read(file).and_then(|read| read.ok_or(io::ErrorKind::NotFound.into())).map_err(failed)?
            }
        };
        self.unwrap_master_key(label, &wrapped)
    }

    /// Seals a master key with the AES key of this label, which is made in the token if there is none.
    ///
    /// # Errors
    /// [`Error::Busy`], [`Error::Failed`].
    pub fn wrap_master_key(&self, label: &str, key: &[u8; MASTER_KEY_LEN]) -> Result<Vec<u8>, Error> {
        let nonce = self.random(NONCE as u32)?;
        self.sessions.alone(|session| {
            let sealing = match sealing_keys(session, label)?.first() {
                Some(&found) => found,
                None => make_sealing_key(session, label)?,
            };
            let mut nonce = nonce.to_vec();
            let sealed = {
                let parameters = GcmParams::new(&mut nonce, PURPOSE, TAG_BITS.into()).map_err(doing("sealing"))?;
                session.encrypt(&Mechanism::AesGcm(parameters), sealing, key).map_err(doing("sealing"))?
            };
            Ok([&[FORM], nonce.as_slice(), &sealed].concat())
        })
    }

    /// Opens what [`Hsm::wrap_master_key`] has sealed.
    ///
    /// # Errors
    /// [`Error::NotWrapped`] if no AES key of this label opens it, [`Error::NoKey`], [`Error::Busy`],
    /// [`Error::Failed`].
    pub fn unwrap_master_key(&self, label: &str, wrapped: &[u8]) -> Result<Zeroizing<[u8; MASTER_KEY_LEN]>, Error> {
        let refused = || Error::NotWrapped(label.to_owned());
        let (Some((&FORM, rest)), WRAPPED) = (wrapped.split_first(), wrapped.len()) else { return Err(refused()) };
        let (nonce, sealed) = rest.split_at_checked(NONCE).ok_or_else(refused)?;
        // Replicas that start at once for the first time may each have made a sealing key.
        self.sessions.with(|session| {
            let keys = sealing_keys(session, label)?;
            if keys.is_empty() {
                return Err(Error::NoKey { class: "AES", label: label.to_owned() });
            }
            for sealing in keys {
                let mut nonce = nonce.to_vec();
                let parameters = GcmParams::new(&mut nonce, PURPOSE, TAG_BITS.into()).map_err(doing("opening"))?;
                match session.decrypt(&Mechanism::AesGcm(parameters), sealing, sealed).map(Zeroizing::new) {
                    Ok(opened) if opened.len() == MASTER_KEY_LEN => {
                        let mut key = Zeroizing::new([0; MASTER_KEY_LEN]);
                        key.copy_from_slice(&opened);
                        return Ok(key);
                    }
                    Ok(_) => {}
                    Err(Cause::Pkcs11(code, Function::Decrypt)) if is_undecryptable(code) => {}
                    Err(source) => return Err(Error::Failed { what: "opening the master key", source }),
                }
            }
            Err(refused())
        })
    }

    fn random(&self, length: u32) -> Result<Zeroizing<Vec<u8>>, Error> {
        let random = |session: &Session| session.generate_random_vec(length).map_err(doing("getting randomness"));
        self.sessions.with(random).map(Zeroizing::new)
    }
}

fn sealing_keys(session: &Session, label: &str) -> Result<Vec<ObjectHandle>, Error> {
    let template =
        [Attribute::Class(ObjectClass::SECRET_KEY), Attribute::KeyType(KeyType::AES), Attribute::Label(label.into())];
    find(session, &template)
}

fn make_sealing_key(session: &Session, label: &str) -> Result<ObjectHandle, Error> {
    let template = [
        Attribute::Class(ObjectClass::SECRET_KEY),
        Attribute::KeyType(KeyType::AES),
        Attribute::ValueLen(32.into()),
        Attribute::Label(label.into()),
        Attribute::Token(true),
        Attribute::Private(true),
        Attribute::Sensitive(true),
        Attribute::Extractable(false),
        Attribute::Encrypt(true),
        Attribute::Decrypt(true),
    ];
    session.generate_key(&Mechanism::AesKeyGen, &template).map_err(doing("making a sealing key"))
}

fn read(file: &Path) -> io::Result<Option<Vec<u8>>> {
    let mut wrapped = Vec::new();
    match fs::File::open(file) {
        Ok(file) => file.take(WRAPPED as u64 + 1).read_to_end(&mut wrapped).map(|_| Some(wrapped)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// Puts a whole file in place, unless there is one.
fn place(file: &Path, wrapped: &[u8]) -> io::Result<()> {
    let draft = file.with_extension(format!("draft-{}", std::process::id()));
    let mut handle = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = handle.write_all(wrapped).and_then(|()| handle.sync_all());
    let placed = written.and_then(|()| match fs::hard_link(&draft, file) {
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        placed => placed,
    });
    fs::remove_file(&draft)?;
    placed?;
    let parent = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::File::open(parent)?.sync_all()
}

/// Bytes of a master key.
pub const MASTER_KEY_LEN: usize = 32;
const FORM: u8 = 1;
const NONCE: usize = 12;
const TAG_BITS: u64 = 128;
const WRAPPED: usize = 1 + NONCE + MASTER_KEY_LEN + 16;
const PURPOSE: &[u8] = b"cocoon master key";
