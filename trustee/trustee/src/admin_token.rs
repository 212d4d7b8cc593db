//! `trustee admin-token`: tokens for administrators, signed with the owner's key.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;
use store::clock::Clock;
use zeroize::Zeroizing;

/// What the token says and where the key lies.
#[derive(Args)]
pub struct Arguments {
    /// Directory that `trustee setup` made.
    #[arg(long)]
    directory: PathBuf,
    /// How many hours the token is valid.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8784))]
    hours: u64,
    /// The token's role, as the configuration's acls name it.
    #[arg(long, default_value = "admin")]
    role: String,
    /// Who the token is for; the audit log names them.
    #[arg(long, default_value = "owner")]
    subject: String,
}

/// Issues a token into the directory's file `admin-token`, and prints the file's name.
///
/// # Errors
/// [`Error`] if the key can't be used or the file not be written.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let Arguments { directory, hours, role, subject } = arguments;
    let path = issue(directory, *hours, role, subject)?;
    println!("{}", path.display());
    Ok(())
}

/// Issues a token with the directory's key and writes it to the file `admin-token`, which it returns.
pub(crate) fn issue(directory: &Path, hours: u64, role: &str, subject: &str) -> Result<PathBuf, Error> {
    let key = directory.join(KEY);
    let pem = Zeroizing::new(std::fs::read(&key).map_err(|source| Error::File { path: key.clone(), source })?);
    let signing = EncodingKey::from_ed_pem(&pem).map_err(|_| Error::Key(key.clone()))?;
    let now = Clock::system().now();
    let expiry = now.after(Duration::from_secs(hours * 3600));
    let claims = json!({ "iss": ISSUER, "sub": subject, "role": role, "iat": now.unix(), "exp": expiry.unix() });
    let token = encode(&Header::new(Algorithm::EdDSA), &claims, &signing).map_err(|_| Error::Key(key))?;

    let path = directory.join("admin-token");
    replace(&path, token.as_bytes()).map_err(|source| Error::File { path: path.clone(), source })?;
    Ok(path)
}

/// Writes beside and renames, so that whoever reads gets the old token or the new one.
fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension(format!("draft-{}", std::process::id()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&draft)?;
    let written = file.write_all(content).and_then(|()| std::fs::rename(&draft, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&draft);
    }
    written
}

/// Why no token was issued.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("administrator's token: {}: {source}; next: give --directory a folder that trustee setup made, and that you may write", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("administrator's token: {} is no Ed25519 key; next: run trustee setup in a new directory", .0.display())]
    Key(PathBuf),
}

/// Who says who an administrator is: the holder of a directory's key.
pub(crate) const ISSUER: &str = "trustee";
/// Name of the signing key's file in a directory.
pub(crate) const KEY: &str = "admin.key";
