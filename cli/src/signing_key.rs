//! The key that an owner signs images with: ECDSA on P-256, in PEM.

mod cosign;

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use zeroize::Zeroizing;

use crate::pem;

/// A private key on P-256.
pub struct SigningKey(EcdsaKeyPair);

impl SigningKey {
    /// Reads PKCS#8 or SEC 1 in PEM, or cosign's encrypted form with the password in `COSIGN_PASSWORD`.
    ///
    /// # Errors
    /// [`Error`] if the file can't be read or holds anything else.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let failed = |cause: String| Error { path: path.to_owned(), cause };
        let text = Zeroizing::new(fs::read(path).map_err(|e| failed(e.to_string()))?);
        let text = std::str::from_utf8(&text).map_err(|_| failed(OTHER.to_owned()))?;
        let der = match cosign::encrypted(text) {
            Some(document) => {
                let password = std::env::var("COSIGN_PASSWORD").map(Zeroizing::new);
                let password =
                    password.map_err(|_| failed("it is encrypted, and COSIGN_PASSWORD is not set".to_owned()))?;
                cosign::decrypt(&document, &password).map_err(|cause| failed(cause.to_owned()))?
            }
            None => pem::private_key(text).ok_or_else(|| failed(OTHER.to_owned()))?,
        };
        let key = EcdsaKeyPair::from_private_key_der(&ECDSA_P256_SHA256_ASN1_SIGNING, &der);
        key.map(Self).map_err(|_| failed(OTHER.to_owned()))
    }

    /// A new key, written to a file that must not exist and that nobody else may read, with its public half beside it
    /// under the same name and `.pub`.
    ///
    /// # Errors
    /// [`Error`] if a file exists already or can't be written.
    pub fn create(path: &Path) -> Result<Self, Error> {
        let failed = |path: &Path, cause: String| Error { path: path.to_owned(), cause };
        let crypto = |_| failed(path, "the system has no random numbers".to_owned());
        let key = Self(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING).map_err(crypto)?);
        let private = pem::encode("PRIVATE KEY", key.0.to_pkcs8v1().map_err(crypto)?.as_ref());
        let public = pem::encode("PUBLIC KEY", &key.public_der().map_err(crypto)?);
        let beside = path.with_added_extension("pub");
        for (path, text, mode) in [(path, private, 0o600), (&beside, public, 0o644)] {
            let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
            file.and_then(|mut file| file.write_all(text.as_bytes())).map_err(|e| failed(path, e.to_string()))?;
        }
        Ok(key)
    }

    /// The signature of a message in DER, over its SHA-256.
    ///
    /// # Errors
    /// [`Unspecified`] if the library fails, which is not expected.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Unspecified> {
        Ok(self.0.sign(&SystemRandom::new(), message)?.as_ref().to_vec())
    }

    /// Whether a signature in DER is this key's.
    pub fn made(&self, message: &[u8], signature: &[u8]) -> bool {
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, self.0.public_key());
        public.verify(message, signature).is_ok()
    }

    fn public_der(&self) -> Result<Vec<u8>, Unspecified> {
        let der: PublicKeyX509Der<'_> = self.0.public_key().as_der()?;
        Ok(der.as_ref().to_vec())
    }
}

/// A signing key can't be read or made.
#[derive(Debug, thiserror::Error)]
#[error("signing key {}: {cause}; next: give a P-256 key in PEM or of cosign, or a new file name with --generate-key", path.display())]
pub struct Error {
    /// The file.
    path: PathBuf,
    /// What is wrong with it.
    cause: String,
}

const OTHER: &str = "it is not a private key on P-256 in PKCS#8 or SEC 1 PEM";

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_created_key_is_read_again_and_openssl_reads_both_halves() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key.pem");

        let key = SigningKey::create(&path).unwrap();

        let signature = SigningKey::read(&path).unwrap().sign(b"message").unwrap();
        assert!(key.made(b"message", &signature) && !key.made(b"massage", &signature));
        let again = SigningKey::create(&path).err().unwrap().to_string();
        assert!(again.contains("exists") && again.contains("; next: "), "{again}");

        fs::write(folder.path().join("message"), b"message").unwrap();
        fs::write(folder.path().join("signature"), &signature).unwrap();
        let openssl = |arguments: &[&str]| Command::new("openssl").args(arguments).current_dir(&folder).output();
        let Ok(verified) =
            openssl(&["dgst", "-sha256", "-verify", "key.pem.pub", "-signature", "signature", "message"])
        else {
            eprintln!("skipped: there is no openssl");
            return;
        };
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stdout));
        // OpenSSL's older form has a block of parameters before the key.
        let old = openssl(&["ec", "-in", "key.pem", "-out", "old.pem", "-param_enc", "named_curve"]).unwrap();
        assert!(old.status.success());
        assert!(SigningKey::read(&folder.path().join("old.pem")).unwrap().made(b"message", &signature));
    }

    #[test]
    fn another_kind_of_file_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        for content in [&b"text"[..], b"\xff", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----"] {
            fs::write(&path, content).unwrap();
            let error = SigningKey::read(&path).err().unwrap().to_string();
            assert!(error.contains("not a private key on P-256") && error.contains("; next: "), "{error}");
        }
    }
}
