//! `[storage_backend]`: where data is kept, and the key it is sealed under.

use std::path::{Path, PathBuf};

use store::Location;
use zeroize::Zeroizing;

use super::section::{choice, sections};

sections! {
    /// Where data is kept.
    pub struct StorageBackend {
        /// `Sqlite` for one process, `Postgres` for any number of replicas, `Memory` for what may be lost. `LocalFs` and
        /// `LocalJson` are files in plain text, for setups that write them from outside.
        pub storage_type: StorageType,
        /// Where each kind of storage lies.
        pub backends: Backends,
        /// The key that everything in a database is sealed under.
        pub master_key: MasterKeySource,
    }

    /// Where each kind of storage lies.
    pub struct Backends {
        /// A database in a folder.
        pub sqlite: Sqlite,
        /// A PostgreSQL server.
        pub postgres: Postgres,
        /// A file for each key.
        pub local_fs: LocalFs,
        /// A file for each namespace.
        pub local_json: LocalJson,
    }

    /// SQLite.
    pub struct Sqlite {
        /// Folder of the database. Created with mode 0700.
        pub directory: PathBuf = "/var/lib/trustee".into(),
    }

    /// PostgreSQL. The variable POSTGRES_URL goes before all of it.
    pub struct Postgres {
        /// `postgres://user:password@host:port/database?sslmode=verify-full&sslrootcert=FILE`. Goes before the keys
        /// below.
        pub url: Option<Zeroizing<String>>,
        /// Name of the server.
        pub host: String = "localhost".to_owned(),
        /// Port of the server.
        pub port: u16 = 5432,
        /// Name of the database.
        pub db: String = "postgres".to_owned(),
        /// Name of the user.
        pub username: String = "postgres".to_owned(),
        /// The user's password.
        pub password: Option<Zeroizing<String>>,
        /// Most connections of this process, 1 to 200.
        pub connections: u32 = 16,
    }

    /// Files in plain text, one for each key.
    pub struct LocalFs {
        /// Folder of the namespaces' folders.
        pub dir_path: PathBuf = "/opt/confidential-containers/storage/local_fs".into(),
    }

    /// Files in plain text, one for each namespace.
    pub struct LocalJson {
        /// Folder of the namespaces' files.
        pub file_dir_path: PathBuf = "/opt/confidential-containers/storage/local_json".into(),
    }

    /// The key that a database is sealed under: one of file, env and pkcs11. Without any, SQLite has `master.key` beside
    /// the database, made at the first start; PostgreSQL needs one that all replicas share.
    pub struct MasterKeySource {
        /// File with the key: a line of 64 hexadecimal digits. Further lines are keys that only open what they have
        /// sealed. Made if it is absent.
        pub file: Option<PathBuf>,
        /// Name of a variable that holds what such a file would.
        pub env: Option<String>,
        /// A key in a hardware security module.
        pub pkcs11: Option<Pkcs11>,
    }

    /// A key in a hardware security module. It never leaves the module: the master key lies in a file, wrapped by it.
    pub struct Pkcs11 {
        /// The module's library, such as `/usr/lib/softhsm/libsofthsm2.so`.
        pub module: Option<PathBuf>,
        /// Label of the token.
        pub token_label: Option<String>,
        /// The user's PIN. Better in a file.
        pub pin: Option<Zeroizing<String>>,
        /// File with the user's PIN.
        pub pin_file: Option<PathBuf>,
        /// Label of the wrapping key: AES with 256 bits. Made in the module if it is absent.
        pub key_label: String = "trustee-master-key".to_owned(),
        /// File with the wrapped master key. Made if it is absent.
        pub wrapped_key_file: Option<PathBuf>,
    }
}

choice! {
    /// Kinds of storage.
    pub enum StorageType {
        /// Lost at the end.
        #[default]
        #[serde(alias = "memory")]
        Memory,
        /// A database for one process.
        #[serde(alias = "sqlite")]
        Sqlite,
        /// A database for replicas.
        #[serde(alias = "postgres")]
        Postgres,
        /// Plain files.
        #[serde(alias = "local_fs")]
        LocalFs,
        /// Plain JSON files.
        #[serde(alias = "local_json")]
        LocalJson,
        /// Not offered.
        #[serde(alias = "redis")]
        Redis,
    }
}

impl StorageBackend {
    /// Where data of one kind of storage lies.
    pub fn location(&self, kind: StorageType) -> Location {
        let Backends { sqlite, postgres, local_fs, local_json } = &self.backends;
        match kind {
            StorageType::Sqlite => Location::Sqlite { directory: sqlite.directory.clone() },
            StorageType::Postgres => Location::Postgres { url: postgres.url(), connections: postgres.connections },
            StorageType::LocalFs => Location::LocalFs { directory: local_fs.dir_path.clone() },
            StorageType::LocalJson => Location::LocalJson { directory: local_json.file_dir_path.clone() },
            // Redis does not pass the check.
            StorageType::Memory | StorageType::Redis => Location::Memory,
        }
    }

    /// The folder that data lies in, if it is this process' own.
    pub fn directory(&self) -> Option<&Path> {
        match self.storage_type {
            StorageType::Sqlite => Some(&self.backends.sqlite.directory),
            StorageType::LocalFs => Some(&self.backends.local_fs.dir_path),
            StorageType::LocalJson => Some(&self.backends.local_json.file_dir_path),
            _ => None,
        }
    }

    pub(super) fn check(&self) -> Result<(), String> {
        self.storage_type.check("storage_backend.storage_type")?;
        if !(1..=200).contains(&self.backends.postgres.connections) {
            return Err("[storage_backend.backends.postgres] connections must be 1 to 200".to_owned());
        }
        let key = &self.master_key;
        let refused = |text: &str| Err(format!("[storage_backend.master_key] {text}"));
        if usize::from(key.file.is_some()) + usize::from(key.env.is_some()) + usize::from(key.pkcs11.is_some()) > 1 {
            return refused("has more than one of file, env and pkcs11");
        }
        let Some(pkcs11) = &key.pkcs11 else { return Ok(()) };
        if pkcs11.module.is_none() || pkcs11.token_label.is_none() || pkcs11.wrapped_key_file.is_none() {
            return refused("pkcs11 needs module, token_label and wrapped_key_file");
        }
        if pkcs11.pin.is_some() == pkcs11.pin_file.is_some() {
            return refused("pkcs11 needs one of pin and pin_file");
        }
        Ok(())
    }
}

impl StorageType {
    /// Refuses what is not offered.
    pub(super) fn check(self, key: &str) -> Result<(), String> {
        match self {
            Self::Redis => Err(format!(
                "{key}: Redis is not offered, since it doesn't promise that what it has acknowledged is kept: choose \
                 Postgres, which replicas share; sessions need no storage of their own"
            )),
            _ => Ok(()),
        }
    }
}

impl Postgres {
    fn url(&self) -> Zeroizing<String> {
        if let Ok(url) = std::env::var("POSTGRES_URL") {
            return Zeroizing::new(url);
        }
        if let Some(url) = &self.url {
            return url.clone();
        }
        let mut url = Zeroizing::new(String::with_capacity(MAX_URL));
        url.push_str("postgres://");
        encode(&mut url, &self.username);
        if let Some(password) = &self.password {
            url.push(':');
            encode(&mut url, password);
        }
        url.push('@');
        // A path is a folder of sockets, and is no host that a URL can name.
        if self.host.starts_with('/') {
            encode(&mut url, &self.host)
        } else {
            url.push_str(&self.host)
        }
        url.push_str(&format!(":{}/", self.port));
        encode(&mut url, &self.db);
        url
    }
}

/// Writes what has no meaning in a URL as it is, and the rest in percent signs.
fn encode(url: &mut Zeroizing<String>, text: &str) {
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => url.push(char::from(byte)),
            _ => {
                url.push('%');
                for nibble in [byte >> 4, byte & 15] {
                    url.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
                }
            }
        }
    }
}

/// A string that grows leaves copies behind that nobody wipes.
const MAX_URL: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_keeps_its_characters_in_the_url() {
        let mut postgres =
            Postgres { password: Some(Zeroizing::new("p@ss:w/o%rd?ä".to_owned())), ..Postgres::default() };
        assert_eq!(postgres.url().as_str(), "postgres://postgres:p%40ss%3Aw%2Fo%25rd%3F%C3%A4@localhost:5432/postgres");
        postgres.password = None;
        postgres.host = "/run/postgresql".to_owned();
        assert_eq!(postgres.url().as_str(), "postgres://postgres@%2Frun%2Fpostgresql:5432/postgres");
        postgres.url = Some(Zeroizing::new("postgres://elsewhere/db".to_owned()));
        assert_eq!(postgres.url().as_str(), "postgres://elsewhere/db");
    }
}
