//! Sealed secrets at the owner's desk: keys to seal with, sealing, and unsealing without a guest.
//!
//! The form is that of [`wire::sealed_secret`].

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};
use tempfile::NamedTempFile;
use wire::resource::{self, ResourceUri};
use wire::sealed_secret::{
    self, Envelope, KeyId, MAX_TEXT, Payload, Provider, SealedSecret, SealingKey, Vault, VerifyingKey,
};
use zeroize::Zeroizing;

use crate::kek::{self, Kek};

/// Seals secrets with one key.
pub struct Sealer {
    key: SealingKey,
    kid: KeyId,
}

impl Sealer {
    /// Seals with the private JWK in a file; guests verify with the public one that they find as `kid`.
    ///
    /// # Errors
    /// [`Error::Key`], [`Error::File`].
    pub fn new(kid: &str, jwk_path: &Path) -> Result<Self, Error> {
        let unusable = |cause| Error::Key { what: jwk_path.display().to_string(), cause };
        let key = SealingKey::parse(&read(jwk_path)?).map_err(unusable)?;
        let kid = KeyId::parse(kid).map_err(|cause| Error::Key { what: "--signing-kid".to_owned(), cause })?;
        Ok(Self { key, kid })
    }

    /// Seals the name of a secret that a provider keeps. Settings and annotations are JSON objects.
    ///
    /// # Errors
    /// [`Error::Provider`], [`Error::Name`], [`Error::Object`], [`Error::Seal`].
    pub fn vault(
        &self,
        name: &str,
        provider: &str,
        settings: Option<&str>,
        annotations: Option<&str>,
    ) -> Result<String, Error> {
        let provider = match Provider::named(provider) {
            Provider::Other(name) => return Err(Error::Provider(name)),
            known => known,
        };
        let name = match provider {
            Provider::Kbs => ResourceUri::parse(name)?.to_string(),
            _ => name.to_owned(),
        };
        let provider_settings = object("--provider-settings", settings)?;
        let annotations = object("--annotations", annotations)?;
        self.seal(Payload::Vault(Vault { provider, name, provider_settings, annotations }))
    }

    /// Seals the content of a file, encrypted under a key that Trustee gives to guests as `key_id`.
    ///
    /// # Errors
    /// [`Error::Name`], [`Error::File`], [`Error::Kek`], [`Error::Seal`]. A key that was generated for nothing is
    /// removed again.
    pub fn envelope(&self, key_id: &str, file: &Path, key_path: &Path, generate_key: bool) -> Result<String, Error> {
        let key_id = ResourceUri::parse(key_id)?;
        let secret = read(file)?;
        let kek = match generate_key {
            true => Kek::create(key_path)?,
            false => Kek::read(key_path)?,
        };
        let sealed = Envelope::for_key_broker(&secret, kek.as_bytes(), &key_id).map_err(Error::Seal);
        let sealed = sealed.and_then(|envelope| self.seal(Payload::Envelope(envelope)));
        if sealed.is_err() && generate_key {
            let _ = fs::remove_file(key_path);
        }
        sealed
    }

    fn seal(&self, payload: Payload) -> Result<String, Error> {
        SealedSecret::seal(&payload, &self.key, &self.kid).map_err(Error::Seal)
    }
}

/// Decrypts the envelope in a file with the key in another, and returns the new file `<file>.unsealed`. The signature
/// is verified with a public JWK, or not looked at without one.
///
/// # Errors
/// [`Error`], one variant a cause; for a vault [`Error::Elsewhere`], which tells where the secret is.
pub fn unseal(file: &Path, jwk_path: Option<&Path>, key_path: Option<&Path>) -> Result<PathBuf, Error> {
    let refused = |cause| Error::Unseal { file: file.to_owned(), cause };
    let text = read(file)?;
    let text = String::from_utf8_lossy(&text);
    let payload = match jwk_path {
        Some(path) => {
            let unusable = |cause| Error::Key { what: path.display().to_string(), cause };
            let key = VerifyingKey::parse(&read(path)?).map_err(unusable)?;
            SealedSecret::parse(&text).and_then(|sealed| sealed.verify(&key)).map_err(refused)?
        }
        None => Payload::parse_unverified(&text).map_err(refused)?,
    };
    let envelope = match payload {
        Payload::Envelope(envelope) if envelope.provider == Provider::Kbs => envelope,
        Payload::Envelope(Envelope { provider, key_id, .. }) => {
            return Err(Error::Elsewhere { what: "key", provider, name: key_id });
        }
        Payload::Vault(Vault { provider, name, .. }) => {
            return Err(Error::Elsewhere { what: "secret", provider, name });
        }
    };
    let key_path = key_path.ok_or_else(|| Error::NoKek(envelope.key_id.clone()))?;
    let data_key = envelope.unwrap_key(Kek::read(key_path)?.as_bytes()).map_err(refused)?;
    let secret = envelope.open(&data_key).map_err(refused)?;

    let mut name = file.as_os_str().to_owned();
    name.push(".unsealed");
    let unsealed = PathBuf::from(name);
    let folder = unsealed.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A temporary file is its owner's only, whatever was there before.
    let written = NamedTempFile::new_in(folder).and_then(|mut draft| {
        draft.write_all(&secret)?;
        draft.persist(&unsealed).map_err(|e| e.error)
    });
    written.map_err(|source| Error::File { path: unsealed.clone(), source })?;
    Ok(unsealed)
}

/// Makes a key to seal with: the files `<kid>-private.json` and `<kid>-public.json`, which must not exist.
///
/// # Errors
/// [`Error::KeyName`], [`Error::File`], [`Error::Seal`] if the random generator fails.
pub fn keygen(kid: &str, folder: &Path) -> Result<[PathBuf; 2], Error> {
    match KeyId::parse(kid) {
        Ok(KeyId::File(_)) => {}
        _ => return Err(Error::KeyName(kid.chars().take(80).flat_map(char::escape_default).collect())),
    }
    let key = SealingKey::generate().map_err(Error::Seal)?;
    let (private, public) = (key.to_jwk(Some(kid)).map_err(Error::Seal)?, key.public_jwk(Some(kid)));
    let paths = [folder.join(format!("{kid}-private.json")), folder.join(format!("{kid}-public.json"))];
    for (path, jwk, mode) in [(&paths[0], &private[..], 0o600), (&paths[1], &public[..], 0o644)] {
        let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
        let written = file.and_then(|mut file| file.write_all(jwk));
        written.map_err(|source| Error::File { path: path.clone(), source })?;
    }
    Ok(paths)
}

/// Why a secret was not sealed or unsealed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can't be read or written.
    #[error("sealed secret: {}: {source}; next: check the path and its permissions", path.display())]
    File { path: PathBuf, source: io::Error },
    /// A file is too large to be what it should be.
    #[error("sealed secret: {} is larger than {MAX_TEXT} bytes; next: keep it in Trustee, and seal its name as a vault", .0.display())]
    TooLarge(PathBuf),
    /// A key of JWK form, or its name, is unusable.
    #[error("sealed secret: {what}: {cause}")]
    Key { what: String, cause: sealed_secret::Error },
    /// A new key's name names its files.
    #[error(
        "sealed secret: \"{0}\" can't be the name of a key's files; next: give --kid a plain name, and the public key's URI \
         to seal's --signing-kid"
    )]
    KeyName(String),
    /// The key encryption key's file is unusable.
    #[error("sealed secret: {0}")]
    Kek(#[from] kek::Error),
    /// A name is no resource.
    #[error("sealed secret: {0}; next: name such a resource")]
    Name(#[from] resource::Error),
    /// Nobody would open it.
    #[error("sealed secret: there is no provider \"{0}\"; next: give kbs, aliyun or aws")]
    Provider(String),
    /// Settings or annotations are malformed.
    #[error("sealed secret: {0} is not a JSON object; next: write it as '{{\"name\": \"value\"}}'")]
    Object(&'static str),
    /// Sealing failed.
    #[error("seal: {0}")]
    Seal(sealed_secret::Error),
    /// Verifying or decrypting failed.
    #[error("unseal {}: {cause}", file.display())]
    Unseal { file: PathBuf, cause: sealed_secret::Error },
    /// An envelope's key was not given.
    #[error("unseal: the envelope is encrypted with the key {0}; next: give the file of that key with --key-path")]
    NoKek(String),
    /// What it takes is not here.
    #[error("unseal: the {what} is not in it but at {provider}, as {name:?}; next: let a guest unseal it")]
    Elsewhere { what: &'static str, provider: Provider, name: String },
}

fn object(option: &'static str, json: Option<&str>) -> Result<Map<String, Value>, Error> {
    json.map_or(Ok(Map::new()), |json| serde_json::from_str(json).map_err(|_| Error::Object(option)))
}

/// Reads a file that is no larger than a sealed secret may be.
fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    let length = file.metadata().map_err(failed)?.len().min(MAX_TEXT as u64) as usize;
    // Room for all of it, so that the buffer never grows and leaves a copy behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(length + 64));
    file.take(MAX_TEXT as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    match bytes.len() > MAX_TEXT {
        true => Err(Error::TooLarge(path.to_owned())),
        false => Ok(bytes),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A folder with a key to seal with, a secret and the name of a key encryption key.
    struct Lab(tempfile::TempDir);

    impl Lab {
        fn new() -> Self {
            let lab = Self(tempfile::tempdir().unwrap());
            keygen("owner", lab.0.path()).unwrap();
            lab.file("secret", "top secret");
            lab
        }

        fn path(&self, name: &str) -> PathBuf {
            self.0.path().join(name)
        }

        fn file(&self, name: &str, content: &str) -> PathBuf {
            fs::write(self.path(name), content).unwrap();
            self.path(name)
        }

        fn sealer(&self) -> Sealer {
            Sealer::new("kbs:///default/sealing/owner", &self.path("owner-private.json")).unwrap()
        }

        fn envelope(&self) -> PathBuf {
            let sealed = self.sealer().envelope("kbs:///default/kek/1", &self.path("secret"), &self.path("kek"), true);
            self.file("sealed", &format!("{}\n", sealed.unwrap()))
        }
    }

    #[test]
    fn an_envelope_is_opened_with_its_key_only() {
        let lab = Lab::new();
        let sealed = lab.envelope();
        let (public, kek) = (lab.path("owner-public.json"), lab.path("kek"));

        let unsealed = unseal(&sealed, Some(&public), Some(&kek)).unwrap();

        assert_eq!(unsealed, lab.path("sealed.unsealed"));
        assert_eq!(fs::read(&unsealed).unwrap(), b"top secret");
        assert_eq!(unsealed.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert!(unseal(&sealed, None, Some(&kek)).is_ok());
        let text = fs::read_to_string(&sealed).unwrap();
        assert!(text.starts_with("sealed.") && !text.contains("top secret"));

        keygen("mallory", lab.0.path()).unwrap();
        Kek::create(&lab.path("other")).unwrap();
        for (public, kek, reason) in [
            ("mallory-public.json", Some("kek"), "signature is not of the key"),
            ("owner-public.json", Some("other"), "another key encryption key"),
            ("owner-public.json", None, "give the file of that key"),
            ("secret", Some("kek"), "it is not a JSON object"),
        ] {
            let kek = kek.map(|name| lab.path(name));
            let error = unseal(&sealed, Some(&lab.path(public)), kek.as_deref()).unwrap_err().to_string();
            assert!(error.contains(reason) && !error.contains("top secret"), "{error}");
        }
    }

    #[test]
    fn a_vault_tells_where_its_secret_is() {
        let lab = Lab::new();
        let sealed = lab.sealer().vault("kbs://host/a/b/c", "KBS", None, None).unwrap();
        let sealed = lab.file("sealed", &sealed);

        let error = unseal(&sealed, Some(&lab.path("owner-public.json")), None).unwrap_err().to_string();

        assert!(error.contains("at kbs, as \"kbs:///a/b/c\"") && error.contains("; next: "), "{error}");
        let aws = lab.sealer().vault("name", "aws", Some(r#"{"region":"r"}"#), Some(r#"{"version":1}"#)).unwrap();
        let Payload::Vault(vault) = Payload::parse_unverified(&aws).unwrap() else { panic!("{aws}") };
        assert_eq!((vault.provider, &*vault.name), (Provider::Aws, "name"));
        assert_eq!((&vault.provider_settings["region"], &vault.annotations["version"]), (&"r".into(), &1.into()));
    }

    #[test]
    fn keys_are_their_owners_and_never_replaced() {
        let lab = Lab::new();
        let mode = |name: &str| lab.path(name).metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode("owner-private.json"), mode("owner-public.json")), (0o600, 0o644));
        let public = fs::read_to_string(lab.path("owner-public.json")).unwrap();
        assert!(public.contains(r#""kid":"owner""#) && !public.contains(r#""d""#), "{public}");
        assert!(keygen("owner", lab.0.path()).unwrap_err().to_string().contains("exists"));
        for name in ["../owner", "kbs:///a/b/c", "", ".owner"] {
            assert!(matches!(keygen(name, lab.0.path()), Err(Error::KeyName(_))), "{name:?}");
        }
    }

    #[test]
    fn what_can_t_be_sealed_is_named() {
        let lab = Lab::new();
        let (sealer, secret, kek) = (lab.sealer(), lab.path("secret"), lab.path("kek"));
        fs::write(lab.path("large"), vec![0; MAX_TEXT + 1]).unwrap();
        fs::write(lab.path("half"), vec![0; MAX_TEXT - 1]).unwrap();
        for (outcome, reason) in [
            (sealer.vault("a/b/c", "kbs", None, None), "kbs:///repository/type/tag"),
            (sealer.vault("kbs:///a/b/c", "ehsm", None, None), "no provider \"ehsm\""),
            (sealer.vault("kbs:///a/b/c", "kbs", Some("[]"), None), "--provider-settings is not a JSON object"),
            (sealer.vault("kbs:///a/b/c", "kbs", None, Some("x")), "--annotations is not a JSON object"),
            (sealer.envelope("a/b/c", &secret, &kek, true), "kbs:///repository/type/tag"),
            (sealer.envelope("kbs:///a/b/c", &lab.path("missing"), &kek, true), "missing: No such file"),
            (sealer.envelope("kbs:///a/b/c", &secret, &kek, false), "key file"),
            (sealer.envelope("kbs:///a/b/c", &lab.path("large"), &kek, true), "larger than"),
            (sealer.envelope("kbs:///a/b/c", &lab.path("half"), &kek, true), "longer than"),
        ] {
            let error = outcome.unwrap_err().to_string();
            assert!(error.contains(reason) && error.contains("next: "), "{error}");
            assert!(!kek.exists(), "{error}: the key is left");
        }
        assert!(Sealer::new("no name", &lab.path("owner-private.json")).is_err());
        assert!(Sealer::new("owner", &lab.path("owner-public.json")).is_err());
    }
}
