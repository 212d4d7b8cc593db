//! What an owner does to the storage now and then: backup, restore, other keys, an earlier layout.

use std::fs::{File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};
use store::backup::Target;
use store::{Location, MasterKey, Store};
use tokio::io::AsyncWriteExt as _;

use crate::config::attestation::{RvpsType, ServiceType};
use crate::config::storage::{StorageBackend, StorageType};
use crate::config::{self, Config, File as _, Read};
use crate::process;
use crate::reference::{self, Values};
use crate::{attestation_role, storage};

/// `trustee rotate-signing-key`
#[derive(Args)]
pub struct Configured {
    /// The configuration file.
    #[arg(long, short)]
    config: PathBuf,
}

/// `trustee backup`
#[derive(Args)]
pub struct Backup {
    /// The configuration file.
    #[arg(long, short)]
    config: PathBuf,
    /// The file to write. Must not be there.
    #[arg(long, short)]
    output: PathBuf,
    /// File with a key to seal it under. Without it, the storage's master key.
    #[arg(long)]
    key: Option<PathBuf>,
}

/// `trustee restore`
#[derive(Args)]
pub struct Restore {
    /// The configuration file.
    #[arg(long, short)]
    config: PathBuf,
    /// The file that `trustee backup` wrote.
    #[arg(long, short)]
    input: PathBuf,
    /// File with the key that it is sealed under. Without it, the storage's master key.
    #[arg(long)]
    key: Option<PathBuf>,
    /// Also where something is stored already: entries of the backup replace those of the same name.
    #[arg(long)]
    overwrite: bool,
}

/// `trustee migrate`
#[derive(Args)]
pub struct Migrate {
    /// The configuration file.
    #[arg(long, short)]
    config: PathBuf,
    /// Number of the layout that the earlier release has. The history of entries is lost.
    #[arg(long)]
    to: i64,
}

/// `trustee rotate-master-key`
#[derive(Args)]
pub struct RotateMasterKey {
    /// The configuration file.
    #[arg(long, short)]
    config: PathBuf,
    /// What to do; replicas are given the key file and started again after each step.
    #[arg(long, value_enum, default_value = "all")]
    step: Step,
}

/// One step of a rotation.
#[derive(Clone, Copy, Debug, Eq, PartialEq, ValueEnum)]
pub enum Step {
    /// Everything at once, for a Trustee on SQLite that does not run.
    All,
    /// Make the new key, so that every replica can get to know it.
    Prepare,
    /// Seal everything under the new key, and let replicas seal with it.
    Rotate,
    /// Seal what was written meanwhile, and forget the old key.
    Finish,
}

/// Writes a backup, readable to its owner alone.
///
/// # Errors
/// [`Error`]; then there is no file.
pub fn backup(arguments: Backup) -> Result<(), Error> {
    let Backup { config, output, key } = arguments;
    with_store(&config, async |store, _| {
        let key = key.as_deref().map(existing_key).transpose()?;
        let failed = |source| Error::File { path: output.clone(), source };
        let draft = output.with_extension(format!("draft-{}", std::process::id()));
        let written = async {
            let mut file = tokio::fs::OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&draft)
                .await
                .map_err(failed)?;
            let count = store.export(&mut file, key.as_ref()).await?;
            file.flush().await.map_err(failed)?;
            file.sync_all().await.map_err(failed)?;
            // Unlike a rename, a link replaces nothing.
            tokio::fs::hard_link(&draft, &output).await.map_err(failed)?;
            Ok::<_, Error>(count)
        };
        let written = written.await;
        let _ = tokio::fs::remove_file(&draft).await;
        println!("{} entries in {}", written?, output.display());
        Ok(())
    })
}

/// Reads a backup. It is checked as a whole before anything is written.
///
/// # Errors
/// [`Error`].
pub fn restore(arguments: Restore) -> Result<(), Error> {
    let Restore { config, input, key, overwrite } = arguments;
    with_store(&config, async |store, _| {
        let key = key.as_deref().map(existing_key).transpose()?;
        let target = if overwrite { Target::Any } else { Target::Empty };
        let file = tokio::fs::File::open(&input).await.map_err(|source| Error::File { path: input.clone(), source })?;
        let count = store.import(tokio::io::BufReader::new(file), key.as_ref(), target).await?;
        println!("{count} entries from {}", input.display());
        Ok(())
    })
}

/// Takes the database back to an earlier layout.
///
/// # Errors
/// [`Error`].
pub fn migrate(arguments: Migrate) -> Result<(), Error> {
    let Read { config, warnings } = Config::read(&arguments.config)?;
    process::run("trustee", Some(1), warnings, async {
        let location = config.storage_backend.location(config.storage_backend.storage_type);
        let key = storage::master_key(&config.storage_backend, &location).await?;
        Store::migrate_back(&location, key, arguments.to).await?;
        println!("the database has layout {}", arguments.to);
        Ok(())
    })
}

/// Makes a new key for attestation tokens.
///
/// # Errors
/// [`Error`].
pub fn rotate_signing_key(arguments: Configured) -> Result<(), Error> {
    with_store(&arguments.config, async |store, config| {
        let section = config.attestation_service.as_ref().filter(|section| section.r#type == ServiceType::BuiltIn);
        let section = section.ok_or(Error::NoSigner)?;
        let backend = &config.storage_backend;
        let store = match section.storage_type {
            Some(kind) if kind != backend.storage_type => storage::open(backend, kind).await?,
            _ => store.clone(),
        };
        let mut values = section.rvps_config.clone();
        // Nothing is appraised here, so a provider elsewhere need not be reached.
        values.r#type = RvpsType::BuiltIn;
        let source = Values::open(&values, backend, &store, false).await?.source()?;
        let service =
            attestation_role::load(&section.attestation_token_broker, false, Vec::new(), store, source).await?;
        service.rotate_signing_key().await?;
        println!("attestation tokens have a new signing key");
        Ok(())
    })
}

/// Does one step of changing the master key, or all.
///
/// # Errors
/// [`Error`]; what was done so far stays good, and the step can be repeated.
pub fn rotate_master_key(arguments: RotateMasterKey) -> Result<(), Error> {
    let Read { config, warnings } = Config::read(&arguments.config)?;
    let backend = &config.storage_backend;
    let path = key_file(backend)?;
    let next = path.with_extension("next");
    process::run("trustee", None, warnings, async {
        if arguments.step == Step::All && backend.storage_type != StorageType::Sqlite {
            return Err(Error::Steps);
        }
        // A Trustee that runs would go on to seal under the old key. Until this is done, none can start.
        let _alone = match backend.storage_type {
            StorageType::Sqlite => lock(&config.audit_path())?,
            _ => None,
        };
        let old = existing_key(&path)?;
        if matches!(arguments.step, Step::All | Step::Prepare) {
            // A key that an earlier attempt made goes on.
            let new = MasterKey::from_file(&next).map_err(store::Error::from)?;
            old.clone().and(&new).save(&path).map_err(store::Error::from)?;
        }
        if arguments.step == Step::Prepare {
            println!("{} has both keys: start every replica again with it, then --step rotate", path.display());
            return Ok(());
        }
        let new = existing_key(&next)?;
        let both = new.clone().and(&old);
        both.save(&path).map_err(store::Error::from)?;
        let store = Store::open(&backend.location(backend.storage_type), Some(both)).await?;
        let mut count = store.rotate(new.clone()).await?;
        if arguments.step == Step::Rotate {
            store.close().await;
            println!("{count} values: start every replica again with {}, then --step finish", path.display());
            return Ok(());
        }
        // Until nothing is left under the old key, it can't be forgotten.
        loop {
            match store.rotate(new.clone()).await? {
                0 => break,
                more => count += more,
            }
        }
        store.close().await;
        new.alone().save(&path).map_err(store::Error::from)?;
        tokio::fs::remove_file(&next).await.map_err(|source| Error::File { path: next.clone(), source })?;
        println!("{count} values are sealed under the new key in {}; the old one is forgotten", path.display());
        Ok(())
    })
}

/// Why maintenance failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Config(#[from] config::Error),
    #[error(transparent)]
    Process(#[from] process::Error),
    #[error("storage: {0}")]
    Store(#[from] store::Error),
    #[error(transparent)]
    Storage(#[from] storage::Error),
    #[error(transparent)]
    Reference(#[from] reference::Error),
    #[error("attestation service: {0}")]
    Attestation(#[from] attestation::Error),
    #[error("maintenance: {}: {source}; next: check the path, its folder and its permissions", path.display())]
    File { path: PathBuf, source: io::Error },
    #[error("maintenance: no key for tokens is kept here; next: do it where the attestation service is built in")]
    NoSigner,
    #[error("maintenance: the master key is not in a file; next: put the new one where the old one is kept, before it")]
    NoKeyFile,
    #[error(
        "maintenance: a Trustee runs on this storage, and holds its audit log {}; next: stop it, and do this again",
        .0.display()
    )]
    Running(PathBuf),
    #[error(
        "maintenance: replicas must know the new key before it is used; next: --step prepare, --step rotate and \
         --step finish, and between them start every replica again with the key file"
    )]
    Steps,
}

fn with_store(path: &Path, act: impl AsyncFnOnce(&Store, &Config) -> Result<(), Error>) -> Result<(), Error> {
    let Read { config, warnings } = Config::read(path)?;
    process::run("trustee", None, warnings, async {
        let backend = &config.storage_backend;
        let store = storage::open(backend, backend.storage_type).await?;
        let done = act(&store, &config).await;
        store.close().await;
        done
    })
}

/// The lock that a running Trustee has on its audit log; none if it never ran.
fn lock(path: &Path) -> Result<Option<File>, Error> {
    let failed = |source| Error::File { path: path.to_owned(), source };
    let log = match File::open(path) {
        Ok(log) => log,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed(e)),
    };
    match log.try_lock() {
        Ok(()) => Ok(Some(log)),
        Err(TryLockError::WouldBlock) => Err(Error::Running(path.to_owned())),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// A key that is made up when its file is missing would open nothing.
fn existing_key(path: &Path) -> Result<MasterKey, Error> {
    std::fs::metadata(path).map_err(|source| Error::File { path: path.to_owned(), source })?;
    Ok(MasterKey::from_file(path).map_err(store::Error::from)?)
}

fn key_file(backend: &StorageBackend) -> Result<PathBuf, Error> {
    let source = &backend.master_key;
    match (&source.file, backend.location(backend.storage_type)) {
        (Some(path), _) => Ok(path.clone()),
        (None, Location::Sqlite { directory }) if source.env.is_none() && source.pkcs11.is_none() => {
            Ok(directory.join("master.key"))
        }
        _ => Err(Error::NoKeyFile),
    }
}
