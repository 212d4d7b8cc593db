//! Private keys as `cosign generate-key-pair` encrypts them: NaCl's secretbox under a key that scrypt makes of a password.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use crypto_secretbox::aead::{Aead as _, KeyInit as _};
use crypto_secretbox::{Nonce, XSalsa20Poly1305};
use scrypt::{Params, scrypt};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::pem;

/// The encrypted document, if the PEM is one of these.
pub(super) fn encrypted(text: &str) -> Option<Zeroizing<Vec<u8>>> {
    ["ENCRYPTED SIGSTORE PRIVATE KEY", "ENCRYPTED COSIGN PRIVATE KEY"]
        .into_iter()
        .find_map(|label| pem::block(text, label))
}

/// Decrypts the document: a PKCS#8 key in DER.
///
/// # Errors
/// What is wrong, in words.
pub(super) fn decrypt(document: &[u8], password: &str) -> Result<Zeroizing<Vec<u8>>, &'static str> {
    #[derive(Deserialize)]
    struct Document {
        kdf: Kdf,
        cipher: Cipher,
        ciphertext: String,
    }
    #[derive(Deserialize)]
    struct Kdf {
        name: String,
        params: Cost,
        salt: String,
    }
    #[derive(Deserialize)]
    struct Cost {
        #[serde(rename = "N")]
        n: u64,
        r: u32,
        p: u32,
    }
    #[derive(Deserialize)]
    struct Cipher {
        name: String,
        nonce: String,
    }
    let document: Document = serde_json::from_slice(document).map_err(|_| OTHER)?;
    let Kdf { name, params: Cost { n, r, p }, salt } = document.kdf;
    if name != "scrypt" || document.cipher.name != "nacl/secretbox" {
        return Err(OTHER);
    }
    if !n.is_power_of_two() || !(2..=MAX_N).contains(&n) || !(1..=MAX_R).contains(&r) || !(1..=MAX_P).contains(&p) {
        return Err("its scrypt parameters ask for more than 1 GiB of memory, or for none");
    }
    let decode = |text: &str| STANDARD.decode(text).map_err(|_| OTHER);
    let (salt, nonce, ciphertext) = (decode(&salt)?, decode(&document.cipher.nonce)?, decode(&document.ciphertext)?);
    let nonce: [u8; NONCE] = nonce.try_into().map_err(|_| OTHER)?;

    let cost = u8::try_from(n.ilog2()).ok().and_then(|log_n| Params::new(log_n, r, p).ok()).ok_or(OTHER)?;
    let mut key = Zeroizing::new([0; KEY]);
    scrypt(password.as_bytes(), &salt, &cost, &mut *key).map_err(|_| OTHER)?;
    let cipher = XSalsa20Poly1305::new((&*key).into());
    let plain = cipher.decrypt(Nonce::from_slice(&nonce), &*ciphertext);
    plain.map(Zeroizing::new).map_err(|_| "its password is another one than COSIGN_PASSWORD has")
}

const OTHER: &str = "it is not a private key that cosign encrypted";
const KEY: usize = 32;
const NONCE: usize = 24;
/// With the largest r, 1 GiB of memory.
const MAX_N: u64 = 1 << 19;
const MAX_R: u32 = 16;
const MAX_P: u32 = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(n: u64, password: &str) -> Vec<u8> {
        let (salt, nonce) = ([1; 32], [2; NONCE]);
        let mut key = [0; KEY];
        scrypt(password.as_bytes(), &salt, &Params::new(4, 8, 1).unwrap(), &mut key).unwrap();
        let ciphertext =
            XSalsa20Poly1305::new((&key).into()).encrypt(Nonce::from_slice(&nonce), &b"the key"[..]).unwrap();
        let document = json!({
            "kdf": { "name": "scrypt", "params": { "N": n, "r": 8, "p": 1 }, "salt": STANDARD.encode(salt) },
            "cipher": { "name": "nacl/secretbox", "nonce": STANDARD.encode(nonce) },
            "ciphertext": STANDARD.encode(ciphertext),
        });
        document.to_string().into_bytes()
    }

    #[test]
    fn only_the_password_opens_it() {
        let text = pem::encode("ENCRYPTED SIGSTORE PRIVATE KEY", &document(16, "password"));
        let document = encrypted(&text).unwrap();
        assert_eq!(*decrypt(&document, "password").unwrap(), b"the key");
        assert!(decrypt(&document, "pass").unwrap_err().contains("COSIGN_PASSWORD"));
        assert!(encrypted(&pem::encode("PRIVATE KEY", b"key")).is_none());
    }

    #[test]
    fn hostile_parameters_cost_nothing() {
        for n in [0, 1, 17, 1 << 20, u64::MAX, 1 << 63] {
            assert!(decrypt(&document(n, ""), "").unwrap_err().contains("scrypt parameters"), "{n}");
        }
        assert_eq!(decrypt(b"{}", ""), Err(OTHER));
    }
}
