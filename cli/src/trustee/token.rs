//! An administrator's token: read from a file, or signed with the key that Trustee knows the administrator by.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use aws_lc_rs::signature::Ed25519KeyPair;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use zeroize::Zeroizing;

use super::{Error, read};
use crate::pem;

/// Reads what can stand in a header: a token is one line of visible characters.
pub(super) fn read_file(path: &Path) -> Result<Zeroizing<String>, Error> {
    let bytes = Zeroizing::new(read(path)?);
    match bytes.trim_ascii() {
        token if !token.is_empty() && token.iter().all(u8::is_ascii_graphic) => {
            Ok(Zeroizing::new(token.iter().copied().map(char::from).collect()))
        }
        _ => Err(Error::Token(path.to_owned())),
    }
}

/// Signs a token as `trustee admin-token` does: a JWT with EdDSA, issuer and role as `trustee setup` configures them.
pub(super) fn sign(key_file: &Path) -> Result<Zeroizing<String>, Error> {
    let unusable = || Error::Key(key_file.to_owned());
    let text = Zeroizing::new(String::from_utf8(read(key_file)?).map_err(|_| unusable())?);
    let der = pem::private_key(&text).ok_or_else(unusable)?;
    let key = Ed25519KeyPair::from_pkcs8(&der).map_err(|_| unusable())?;

    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let encode = |part: serde_json::Value| URL_SAFE_NO_PAD.encode(part.to_string());
    let header = encode(json!({ "alg": "EdDSA", "typ": "JWT" }));
    let claims = encode(json!({ "iss": ISSUER, "sub": SUBJECT, "role": ROLE, "iat": now, "exp": now + SECONDS }));
    let signed = format!("{header}.{claims}");
    let signature = key.try_sign(signed.as_bytes()).map_err(|_| unusable())?;
    Ok(Zeroizing::new(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature))))
}

/// Who says who an administrator is, in the configuration that `trustee setup` writes.
const ISSUER: &str = "trustee";
const ROLE: &str = "admin";
/// Who the audit log names.
const SUBJECT: &str = "key-provider";
const SECONDS: u64 = 300;
