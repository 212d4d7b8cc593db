//! `trustee setup`: everything that `trustee serve` needs, in one new directory.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, date_time_ymd,
};
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::admin_token;
use crate::config::{Admin, Attestation, Audit, AuthorizationMode, Config, HttpServer, Storage};

/// What to set up.
#[derive(Args)]
pub struct Arguments {
    /// Where to put it. May exist, but not hold another setup.
    #[arg(long)]
    directory: PathBuf,
    /// Names and addresses that clients reach the Trustee under, besides localhost, 127.0.0.1 and ::1.
    #[arg(long = "san", value_name = "NAME_OR_IP")]
    names: Vec<String>,
    /// Accept evidence of the sample TEE, which anyone can make: for tests only.
    #[arg(long)]
    sample_verifier: bool,
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:8080")]
    listen: String,
    /// How many hours the first administrator's token is valid.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8784))]
    admin_token_hours: u64,
}

/// Sets a directory up and says what to do with it.
///
/// # Errors
/// [`Error`]; then the directory may hold a part of the setup.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    let wanted = &arguments.directory;
    let failed = |source| Error::File { path: wanted.clone(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(wanted).map_err(failed)?;
    let directory = wanted.canonicalize().map_err(failed)?;
    if directory.join(CONFIG).exists() {
        return Err(Error::Exists(directory));
    }

    write_certificates(&directory, &arguments.names)?;
    write_admin_key(&directory)?;
    let token = admin_token::issue(&directory, arguments.admin_token_hours, ROLE, "owner")?;
    let config = directory.join(CONFIG);
    write(&config, configuration(&directory, arguments)?.as_bytes(), PUBLIC)?;

    println!("Serve with:       trustee serve --config {}", config.display());
    println!("Clients trust:    {}", directory.join("ca.pem").display());
    println!(
        "Administer with:  kbs-client --url https://{} --cert-file {} config --admin-token-file {} …",
        arguments.listen,
        directory.join("ca.pem").display(),
        token.display()
    );
    Ok(())
}

/// Why a directory could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("setup: {}: {source}", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("setup: {} is set up already: remove it, or choose another directory", .0.display())]
    Exists(PathBuf),
    #[error("setup: certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error("setup: the configuration can't be written as TOML: {0}")]
    Configuration(#[from] toml::ser::Error),
    #[error(transparent)]
    Token(#[from] admin_token::Error),
}

/// A certificate authority of its own for each Trustee: its key is kept to renew the certificate, and signs nothing
/// else.
fn write_certificates(directory: &Path, names: &[String]) -> Result<(), Error> {
    let mut authority = CertificateParams::default();
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.distinguished_name.push(DnType::CommonName, "Trustee certificate authority");
    validity(&mut authority, 10);
    let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)?;

    let always = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
    let mut leaf = CertificateParams::new([always.as_slice(), names].concat())?;
    leaf.distinguished_name.push(DnType::CommonName, "Trustee");
    leaf.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    leaf.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    leaf.use_authority_key_identifier_extension = true;
    validity(&mut leaf, 2);
    let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let leaf = leaf.signed_by(&leaf_key, &authority)?;

    write(&directory.join("ca.pem"), authority.pem().as_bytes(), PUBLIC)?;
    write(&directory.join("ca.key"), &secret(authority.key().serialize_pem()), PRIVATE)?;
    write(&directory.join("tls.pem"), leaf.pem().as_bytes(), PUBLIC)?;
    write(&directory.join("tls.key"), &secret(leaf_key.serialize_pem()), PRIVATE)
}

fn write_admin_key(directory: &Path) -> Result<(), Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    write(&directory.join(admin_token::KEY), &secret(key.serialize_pem()), PRIVATE)?;
    write(&directory.join("admin.pub"), key.public_key_pem().as_bytes(), PUBLIC)
}

fn configuration(directory: &Path, arguments: &Arguments) -> Result<String, Error> {
    let config = Config {
        http_server: HttpServer {
            sockets: vec![arguments.listen.clone()],
            insecure_http: false,
            certificate: Some(directory.join("tls.pem")),
            private_key: Some(directory.join("tls.key")),
        },
        storage: Storage { directory: directory.join("data") },
        attestation: Attestation { sample_verifier: arguments.sample_verifier, ..Attestation::default() },
        admin: Admin {
            authorization_mode: AuthorizationMode::AuthenticatedAuthorization,
            public_key: Some(directory.join("admin.pub")),
            roles: vec![ROLE.to_owned()],
        },
        audit: Audit { path: directory.join("audit.jsonl") },
    };
    Ok(toml::to_string(&config)?)
}

/// From yesterday, for clocks that are behind, to the same day in so many years.
fn validity(params: &mut CertificateParams, years: u16) {
    let day = 24 * 60 * 60;
    let yesterday = Clock::system().now().unix().saturating_sub(day);
    let date = store::clock::Timestamp::from_unix(yesterday);
    let later = date.after(Duration::from_secs(u64::from(years) * 365 * day));
    let [from, until] = [date, later].map(|date| {
        let (year, month, day) = date.date();
        date_time_ymd(i32::from(year), month, day)
    });
    params.not_before = from;
    params.not_after = until;
}

fn secret(text: String) -> Zeroizing<Vec<u8>> {
    Zeroizing::new(text.into_bytes())
}

fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), Error> {
    let open = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    open.and_then(|mut file| file.write_all(content)).map_err(|source| Error::File { path: path.to_owned(), source })
}

const CONFIG: &str = "trustee.toml";
const ROLE: &str = "admin";
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
