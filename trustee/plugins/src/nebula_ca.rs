//! `nebula-ca`: certificates for guests that join a Nebula overlay network.
//!
//! `GET credential?name=…&ip=…[&duration=…&groups=…&subnets=…]` gives a guest `{node_crt, node_key, ca_crt}`, each an
//! array of bytes. The authority's key stays in the working folder; replicas share it by sharing that folder. Which
//! guest may have which name and address is for the resource policy to say: it sees the query.

mod credential;
mod program;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use crate::{Access, Error, Output, Plugin, Request};
use credential::Credential;
use program::NebulaCert;

/// Settings of the plugin `nebula-ca`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The program `nebula-cert`. Searched in `PATH` if not set.
    pub nebula_cert_bin_path: Option<PathBuf>,
    /// Folder of the authority's certificate and key, `ca/ca.crt` and `ca/ca.key`.
    /// `/opt/confidential-containers/kbs/nebula-ca` if not set.
    pub work_dir: Option<PathBuf>,
    /// What the authority is made with if there is none.
    #[serde(default, alias = "self_signed_ca")]
    pub ca_config: Authority,
}

/// What a certificate authority is made with: the flags of `nebula-cert ca`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Authority {
    /// Its name.
    pub name: Option<String>,
    /// Argon2's iterations, for a key with a passphrase.
    pub argon_iterations: Option<u32>,
    /// Argon2's memory in KiB.
    pub argon_memory: Option<u32>,
    /// Argon2's parallelism.
    pub argon_parallelism: Option<u32>,
    /// `25519` or `P256`.
    pub curve: Option<String>,
    /// How long it is valid, such as `8760h0m0s`.
    pub duration: Option<String>,
    /// The groups that certificates may name, separated by commas.
    pub groups: Option<String>,
    /// The networks that certificates' addresses must lie in.
    pub ips: Option<String>,
    /// File for a QR code of the certificate.
    pub out_qr: Option<String>,
    /// The networks that certificates' subnets must lie in.
    pub subnets: Option<String>,
}

pub(crate) struct NebulaCa {
    program: NebulaCert,
    work_dir: PathBuf,
    turns: Semaphore,
}

impl NebulaCa {
    pub async fn open(config: Config) -> Result<Self, Error> {
        let work_dir = config.work_dir.unwrap_or_else(|| WORK_DIR.into());
        let program = NebulaCert::new(config.nebula_cert_bin_path.unwrap_or_else(|| "nebula-cert".into()));
        let version = program.version().await?;
        tracing::info!("nebula-ca uses nebula-cert {version}");
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&work_dir).map_err(file(&work_dir))?;

        let nebula = Self { program, work_dir, turns: Semaphore::new(MAX_AT_ONCE) };
        let (certificate, key) = (nebula.authority("ca.crt"), nebula.authority("ca.key"));
        match (exists(&certificate)?, exists(&key)?) {
            (true, true) => {}
            (false, false) => nebula.make_authority(&config.ca_config).await?,
            (true, false) => return Err(incomplete(&key)),
            (false, true) => return Err(incomplete(&certificate)),
        }
        Ok(nebula)
    }

    /// Makes the authority aside and puts it in place at once, so that it is never found half made.
    async fn make_authority(&self, settings: &Authority) -> Result<(), Error> {
        let draft = self.private_folder()?;
        self.program.make_authority(settings, draft.path()).await?;
        let place = self.work_dir.join("ca");
        // Moving over an empty folder is fine, over another authority it fails.
        fs::rename(draft.path(), &place).map_err(file(&place))?;
        fs::File::open(&self.work_dir).and_then(|folder| folder.sync_all()).map_err(file(&self.work_dir))?;
        tracing::info!("nebula-ca made a certificate authority in {}", place.display());
        Ok(())
    }

    async fn issue(&self, credential: &Credential) -> Result<Output, Error> {
        let turn = tokio::time::timeout(PATIENCE, self.turns.acquire()).await;
        let Ok(Ok(_turn)) = turn else { return Err(Error::Busy(NAME)) };
        let folder = self.private_folder()?;
        let (key, certificate) = (folder.path().join("node.key"), folder.path().join("node.crt"));
        let authority = self.authority("ca.crt");
        self.program.sign(credential, &authority, &self.authority("ca.key"), &certificate, &key).await?;
        self.program.verify(&authority, &certificate).await?;

        let issued = Issued { node_crt: &read(&certificate)?, node_key: &read(&key)?, ca_crt: &read(&authority)? };
        // A byte takes up to four characters, so it doesn't move while it grows.
        let size = 4 * (issued.node_crt.len() + issued.node_key.len() + issued.ca_crt.len()) + 64;
        let mut body = Zeroizing::new(Vec::with_capacity(size));
        serde_json::to_writer(&mut *body, &issued).map_err(|e| file(folder.path())(e.into()))?;
        Ok(Output::secret(body))
    }

    fn authority(&self, name: &str) -> PathBuf {
        self.work_dir.join("ca").join(name)
    }

    /// A folder that only this user sees and that is gone when dropped.
    fn private_folder(&self) -> Result<TempDir, Error> {
        use std::os::unix::fs::PermissionsExt as _;
        let mode = fs::Permissions::from_mode(0o700);
        tempfile::Builder::new().permissions(mode).tempdir_in(&self.work_dir).map_err(file(&self.work_dir))
    }
}

#[async_trait]
impl Plugin for NebulaCa {
    fn name(&self) -> &str {
        NAME
    }

    async fn access(&self, _request: &Request<'_>) -> Result<Access, Error> {
        Ok(Access::Guest)
    }

    async fn handle(&self, request: &Request<'_>, _init_data_claims: Option<&Value>) -> Result<Output, Error> {
        match (request.method, request.path) {
            ("GET", ["credential"]) => self.issue(&Credential::parse(request.query)?).await,
            _ => Err(Error::Route(NAME)),
        }
    }
}

#[derive(Serialize)]
struct Issued<'a> {
    node_crt: &'a [u8],
    node_key: &'a [u8],
    ca_crt: &'a [u8],
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(file(path))
}

fn incomplete(missing: &Path) -> Error {
    let reason =
        format!("{} is missing; next: restore it, or remove the other half of the authority", missing.display());
    Error::Config { plugin: NAME, reason }
}

fn read(path: &Path) -> Result<Zeroizing<Vec<u8>>, Error> {
    fs::read(path).map(Zeroizing::new).map_err(file(path))
}

fn file(path: &Path) -> impl Fn(std::io::Error) -> Error {
    let path = path.to_owned();
    move |source| Error::File { plugin: NAME, path: path.clone(), source }
}

const NAME: &str = "nebula-ca";
const WORK_DIR: &str = "/opt/confidential-containers/kbs/nebula-ca";
const MAX_AT_ONCE: usize = 4;
const PATIENCE: Duration = Duration::from_secs(10);
