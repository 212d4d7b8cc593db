//! `trustee setup`: everything that `trustee serve` needs, in one new directory.

use std::fs::{DirBuilder, OpenOptions};
use std::io::{self, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, date_time_ymd,
};
use serde_json::json;
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::admin_token;

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
    /// Keep data in this PostgreSQL database, which replicas can share: postgres://user:password@host:port/database.
    #[arg(long, value_name = "URL", conflicts_with = "database")]
    postgres: Option<Zeroizing<String>>,
    /// Keep data in this folder. Without it, in the directory's `data`.
    #[arg(long, value_name = "FOLDER")]
    database: Option<PathBuf>,
    /// How many hours the first administrator's token is valid.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u64).range(1..=8784))]
    admin_token_hours: u64,
}

/// Sets a directory up and says what to do with it.
///
/// # Errors
/// [`Error`]; then nothing of the setup is left.
pub fn run(arguments: &Arguments) -> Result<(), Error> {
    if !is_address(&arguments.listen) {
        return Err(Error::Listen(arguments.listen.clone()));
    }
    if let Some(name) = arguments.names.iter().find(|name| !is_name(name)) {
        return Err(Error::Name(name.clone()));
    }
    if arguments
        .postgres
        .as_ref()
        .is_some_and(|url| !url.starts_with("postgres://") && !url.starts_with("postgresql://"))
    {
        return Err(Error::Postgres);
    }
    let wanted = &arguments.directory;
    let failed = |source| Error::File { path: wanted.clone(), source };
    let is_new = !wanted.exists();
    DirBuilder::new().recursive(true).mode(0o700).create(wanted).map_err(failed)?;
    let directory = wanted.canonicalize().map_err(failed)?;

    let mut files = Files { directory: directory.clone(), written: Vec::new() };
    let done = files.write_all(arguments);
    if done.is_err() {
        files.remove();
        if is_new {
            // Fails if somebody put something there meanwhile, which is then theirs.
            let _ = std::fs::remove_dir(&directory);
        }
    }
    let token = done?;

    println!("Serve with:       trustee serve --config {}", directory.join(CONFIG).display());
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
    #[error("setup: {}: {source}; next: choose a directory that you may write, and that holds no such file", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("setup: {} is set up already; next: remove it, or choose another directory", .0.display())]
    Exists(PathBuf),
    #[error("setup: --listen {0:?} is no address; next: write it as IP:PORT or NAME:PORT")]
    Listen(String),
    #[error("setup: --san {0:?} is neither a name nor an address; next: write it without scheme and port")]
    Name(String),
    #[error("setup: --postgres is no URL of a database; next: write it as postgres://user:password@host:port/database")]
    Postgres,
    #[error("setup: certificate: {0}; next: check the names given with --san")]
    Certificate(#[from] rcgen::Error),
    #[error("setup: the configuration can't be written as TOML: {0}; next: choose a directory with a name in UTF-8")]
    Configuration(#[from] toml::ser::Error),
    #[error(transparent)]
    Token(#[from] admin_token::Error),
}

/// The files of a setup, remembered so that a setup that fails takes its own away, and nothing else.
struct Files {
    directory: PathBuf,
    written: Vec<PathBuf>,
}

impl Files {
    fn write_all(&mut self, arguments: &Arguments) -> Result<PathBuf, Error> {
        if self.directory.join(CONFIG).exists() {
            return Err(Error::Exists(self.directory.clone()));
        }
        self.certificates(&arguments.names)?;
        self.admin_key()?;
        let hours = arguments.admin_token_hours;
        let token = admin_token::issue(&self.directory, hours, ROLE, "owner")?;
        self.written.push(token.clone());
        let readable = if arguments.postgres.is_some() { PRIVATE } else { PUBLIC };
        self.write(CONFIG, configuration(&self.directory, arguments)?.as_bytes(), readable)?;
        Ok(token)
    }

    /// A certificate authority of its own for each Trustee: its key is kept to renew the certificate, and signs
    /// nothing else.
    fn certificates(&mut self, names: &[String]) -> Result<(), Error> {
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

        self.write("ca.pem", authority.pem().as_bytes(), PUBLIC)?;
        self.write("ca.key", &secret(authority.key().serialize_pem()), PRIVATE)?;
        self.write("tls.pem", leaf.pem().as_bytes(), PUBLIC)?;
        self.write("tls.key", &secret(leaf_key.serialize_pem()), PRIVATE)
    }

    fn admin_key(&mut self) -> Result<(), Error> {
        let key = KeyPair::generate_for(&PKCS_ED25519)?;
        self.write(admin_token::KEY, &secret(key.serialize_pem()), PRIVATE)?;
        self.write("admin.pub", key.public_key_pem().as_bytes(), PUBLIC)
    }

    fn write(&mut self, name: &str, content: &[u8], mode: u32) -> Result<(), Error> {
        let path = self.directory.join(name);
        let failed = |source| Error::File { path: path.clone(), source };
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&path).map_err(failed)?;
        self.written.push(path.clone());
        file.write_all(content).map_err(failed)
    }

    fn remove(&self) {
        for path in &self.written {
            let _ = std::fs::remove_file(path);
        }
    }
}

/// Whether a server can be told to listen there; a name is looked up when it does.
fn is_address(listen: &str) -> bool {
    let port = |port: &str| port.parse::<u16>().is_ok();
    listen.parse::<SocketAddr>().is_ok() || listen.rsplit_once(':').is_some_and(|(name, p)| is_name(name) && port(p))
}

fn is_name(name: &str) -> bool {
    let label = |label: &str| {
        let plain = label.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        (1..=63).contains(&label.len()) && plain
    };
    name.parse::<IpAddr>().is_ok() || name.strip_prefix("*.").unwrap_or(name).split('.').all(label)
}

fn configuration(directory: &Path, arguments: &Arguments) -> Result<Zeroizing<String>, Error> {
    let storage = match &arguments.postgres {
        Some(url) => json!({
            "storage_type": "Postgres",
            "backends": { "postgres": { "url": url.as_str() } },
            // Every replica needs it: it can't lie in the database that it seals.
            "master_key": { "file": directory.join("master.key") },
        }),
        None => {
            let folder = match &arguments.database {
                Some(folder) => {
                    std::path::absolute(folder).map_err(|source| Error::File { path: folder.clone(), source })?
                }
                None => directory.join("data"),
            };
            json!({ "storage_type": "Sqlite", "backends": { "sqlite": { "directory": folder } } })
        }
    };
    let provider = json!({ "issuer": admin_token::ISSUER, "public_key_uri": directory.join("admin.pub") });
    let config = json!({
        "http_server": {
            "sockets": [arguments.listen],
            "certificate": directory.join("tls.pem"),
            "private_key": directory.join("tls.key"),
        },
        "storage_backend": storage,
        "attestation_service": { "type": "coco_as_builtin", "sample_verifier": arguments.sample_verifier },
        "admin": {
            "authorization_mode": "AuthenticatedAuthorization",
            "authentication": { "bearer_jwt": { "identity_providers": [provider] } },
            "authorization": { "regex_acl": { "acls": [{ "role": ROLE, "allowed_endpoints": "^/kbs/.*$" }] } },
        },
        "audit": { "path": directory.join("audit.jsonl") },
    });
    Ok(Zeroizing::new(toml::to_string(&config)?))
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

const CONFIG: &str = "trustee.toml";
const ROLE: &str = "admin";
const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Config, File as _};
    use std::os::unix::fs::PermissionsExt as _;

    fn arguments(directory: &Path) -> Arguments {
        Arguments {
            directory: directory.to_owned(),
            names: Vec::new(),
            sample_verifier: false,
            listen: "127.0.0.1:0".to_owned(),
            postgres: None,
            database: None,
            admin_token_hours: 1,
        }
    }

    #[test]
    fn a_setup_that_fails_leaves_nothing_of_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let wanted = folder.path().join("trustee");
        for (listen, name) in [("nonsense", "a"), ("127.0.0.1:99999", "a"), ("a:0", "bad name!"), ("a:0", "")] {
            let bad = Arguments { listen: listen.to_owned(), names: vec![name.to_owned()], ..arguments(&wanted) };
            assert!(run(&bad).unwrap_err().to_string().contains("; next: "));
            assert!(!wanted.exists());
        }

        std::fs::create_dir(&wanted).unwrap();
        for taken in ["tls.key", "admin.pub"] {
            std::fs::write(wanted.join(taken), "theirs").unwrap();
            assert!(run(&arguments(&wanted)).is_err());
            let left: Vec<_> = std::fs::read_dir(&wanted).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(left, [taken]);
            std::fs::remove_file(wanted.join(taken)).unwrap();
        }
        run(&arguments(&wanted)).unwrap();
        assert!(run(&arguments(&wanted)).is_err());
        assert!(wanted.join(CONFIG).exists(), "the first setup is untouched");
    }

    #[test]
    fn what_it_writes_can_be_served() {
        let folder = tempfile::tempdir().unwrap();
        let postgres = Some(Zeroizing::new("postgres://u:p@h/d".to_owned()));
        for (name, postgres, database) in
            [("a", None, None), ("b", postgres, None), ("c", None, Some(folder.path().join("elsewhere")))]
        {
            let directory = folder.path().join(name);
            run(&Arguments { postgres, database, ..arguments(&directory) }).unwrap();
            let read = Config::read(&directory.join(CONFIG)).unwrap();
            assert!(read.warnings.is_empty(), "{:?}", read.warnings);
            let mode = std::fs::metadata(directory.join(CONFIG)).unwrap().permissions().mode();
            assert_eq!(mode & 0o077 == 0, name == "b", "who may read a password");
        }
        let bad = Some(Zeroizing::new("mysql://u:secret@h".to_owned()));
        let error = run(&Arguments { postgres: bad, ..arguments(&folder.path().join("d")) }).unwrap_err().to_string();
        assert!(error.contains("--postgres") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn names_and_addresses_are_told_from_nonsense() {
        for good in ["127.0.0.1:0", "[::1]:8080", "localhost:1", "0.0.0.0:65535"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", ":1", "a", "a:", "a:65536", "https://a:1", "::1", "a b:1"] {
            assert!(!is_address(bad), "{bad}");
        }
        for (name, good) in
            [("::1", true), ("*.a.b", true), ("a_b", true), ("a..b", false), ("a:1", false), ("ä", false)]
        {
            assert_eq!(is_name(name), good, "{name}");
        }
    }
}
