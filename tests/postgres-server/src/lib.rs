//! A private PostgreSQL for tests, in a folder of its own, that ends with its owner.
//!
//! It is for tests, so what goes wrong is a panic that says what.

#![forbid(unsafe_code)]
// A test's tool fails as a test does.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;

/// A running or stopped server with one database, and as many more as are asked for.
pub struct PostgresServer {
    directory: TempDir,
    binaries: PathBuf,
    durability: Durability,
    port: u16,
    server: Option<Child>,
    databases: AtomicU32,
}

/// Whether a commit waits for the disk.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Durability {
    /// It does, as in production.
    Full,
    /// It does not: faster, for what does not stop the server.
    None,
}

impl PostgresServer {
    /// Makes and starts a server on a free port of 127.0.0.1 and on a socket in its folder.
    ///
    /// # Panics
    /// If PostgreSQL is not installed or does not start.
    pub fn start() -> Self {
        Self::start_with(Durability::Full)
    }

    /// The same with another durability.
    ///
    /// # Panics
    /// As [`PostgresServer::start`].
    pub fn start_with(durability: Durability) -> Self {
        let binaries = binaries();
        let directory = tempfile::Builder::new().prefix("postgres-").tempdir().unwrap();
        fs::write(directory.path().join("password"), PASSWORD).unwrap();
        if let Some(user) = other_user() {
            for path in [directory.path().to_owned(), directory.path().join("password")] {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        let made = as_server(&binaries.join("initdb"))
            .arg("--pgdata")
            .arg(directory.path().join("data"))
            .arg("--pwfile")
            .arg(directory.path().join("password"))
            .args(["--username", USER, "--auth-local", "trust", "--auth-host", "scram-sha-256"])
            .args(["--encoding", "UTF8", "--no-locale", "--no-sync"])
            .output()
            .expect("initdb runs");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));

        let mut server = Self { directory, binaries, durability, port: 0, server: None, databases: AtomicU32::new(0) };
        // Somebody may take the free port before the server does.
        let started = (0..5).any(|_| {
            server.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
            server.launch()
        });
        assert!(started, "PostgreSQL does not start in {}", server.directory.path().display());
        server.psql(&format!("CREATE DATABASE {DATABASE}"));
        server
    }

    /// The URL of its database, with user and password.
    pub fn url(&self) -> String {
        self.url_of(DATABASE)
    }

    /// Makes another, empty database and returns its URL.
    ///
    /// # Panics
    /// If the server is stopped.
    pub fn new_database(&self) -> String {
        let name = format!("{DATABASE}_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql(&format!("CREATE DATABASE {name}"));
        self.url_of(&name)
    }

    /// Stops the server as an administrator does: connections are closed.
    pub fn stop(&mut self) {
        self.end(Signal::SIGINT);
    }

    /// Stops the server as a crash does.
    pub fn crash(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Starts the server on the same port and data after [`stop`](Self::stop) or [`crash`](Self::crash).
    ///
    /// # Panics
    /// If it does not start.
    pub fn start_again(&mut self) {
        assert!(self.server.is_none(), "the server runs");
        assert!(self.launch(), "PostgreSQL does not start again in {}", self.directory.path().display());
    }

    /// Offers TLS from now on, with a certificate and its private key in PEM.
    ///
    /// # Panics
    /// If the server is stopped.
    pub fn enable_tls(&mut self, certificate: &str, private_key: &str) {
        for (name, text) in [("server.crt", certificate), ("server.key", private_key)] {
            let path = self.directory.path().join("data").join(name);
            fs::write(&path, text).unwrap();
            fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
            if let Some(user) = other_user() {
                chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
            }
        }
        self.psql("ALTER SYSTEM SET ssl = on");
        // Loading it anew would be told to nobody.
        self.stop();
        self.start_again();
    }

    /// Runs statements as the administrator of the server, outside of all databases but its own `postgres`.
    /// Returns the rows, their columns separated by `|`.
    ///
    /// # Panics
    /// If a statement fails.
    pub fn psql(&self, sql: &str) -> String {
        self.run("postgres", sql)
    }

    /// Runs statements in the database of a URL.
    ///
    /// # Panics
    /// If a statement fails.
    pub fn psql_in(&self, url: &str, sql: &str) -> String {
        self.run(url.rsplit('/').next().unwrap_or_default(), sql)
    }

    fn url_of(&self, database: &str) -> String {
        format!("postgres://{USER}:{PASSWORD}@127.0.0.1:{}/{database}", self.port)
    }

    fn run(&self, database: &str, sql: &str) -> String {
        let done = Command::new(self.binaries.join("psql"))
            .args(["--no-psqlrc", "--no-align", "--tuples-only", "--quiet", "--set", "ON_ERROR_STOP=1"])
            .args(["--username", USER, "--port", &self.port.to_string(), "--dbname", database, "--command", sql])
            .arg("--host")
            .arg(self.directory.path())
            .output()
            .expect("psql runs");
        assert!(done.status.success(), "{sql}: {}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8(done.stdout).unwrap().trim_end().to_owned()
    }

    /// Returns when the server takes connections, or false when it has ended instead.
    fn launch(&mut self) -> bool {
        let mut command = as_server(&self.binaries.join("postgres"));
        command.arg("-D").arg(self.directory.path().join("data")).arg("-k").arg(self.directory.path());
        command.args(["-h", "127.0.0.1", "-p", &self.port.to_string()]);
        // A test must not wait for the operator's languages.
        command.env("LC_MESSAGES", "C").args(["-c", "logging_collector=off", "-c", "log_destination=stderr"]);
        if self.durability == Durability::None {
            command.args(["-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off"]);
        }
        let mut server =
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("postgres runs");
        let mut log = BufReader::new(server.stderr.take().unwrap()).lines();
        let ready = log.by_ref().map_while(Result::ok).any(|line| line.contains("ready to accept connections"));
        if !ready {
            server.wait().unwrap();
            return false;
        }
        // A full pipe would stop the server. The thread ends with it.
        std::thread::spawn(move || log.map_while(Result::ok).for_each(drop));
        self.server = Some(server);
        true
    }

    fn end(&mut self, signal: Signal) {
        if let Some(mut server) = self.server.take() {
            let id = Pid::from_raw(server.id().try_into().expect("an id is small"));
            // It may have ended by itself: then there is nothing to do.
            let _ = kill(id, signal);
            let _ = server.wait();
        }
    }
}

impl Drop for PostgresServer {
    fn drop(&mut self) {
        self.crash();
    }
}

/// PostgreSQL refuses to run as root.
fn as_server(program: &Path) -> Command {
    match other_user() {
        Some(user) => {
            let mut command = Command::new("setpriv");
            command
                .arg(format!("--reuid={}", user.uid))
                .arg(format!("--regid={}", user.gid))
                .arg("--clear-groups")
                .arg("--")
                .arg(program)
                .current_dir("/");
            command
        }
        None => Command::new(program),
    }
}

fn other_user() -> Option<User> {
    geteuid().is_root().then(|| User::from_name("postgres").unwrap().expect("the package made its user"))
}

/// The folder of the newest version that is installed; otherwise programs are found by name.
fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let newest = versions
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|version| is_program(&Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin/postgres")))
        .max();
    match newest {
        Some(version) => Path::new("/usr/lib/postgresql").join(version.to_string()).join("bin"),
        None => PathBuf::new(),
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & 0o111 != 0)
}

const USER: &str = "postgres";
const PASSWORD: &str = "only-for-tests";
const DATABASE: &str = "trustee";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_outlives_a_stop_and_a_crash_but_not_the_owner() {
        let mut server = PostgresServer::start();
        let url = server.new_database();
        assert_ne!(url, server.url());
        server.psql_in(&url, "CREATE TABLE t (n int); INSERT INTO t VALUES (1)");

        server.stop();
        server.start_again();
        server.psql_in(&url, "INSERT INTO t VALUES (2)");
        server.crash();
        server.start_again();

        assert_eq!(server.psql_in(&url, "SELECT n FROM t ORDER BY n"), "1\n2");
        let (folder, id) = (server.directory.path().to_owned(), server.server.as_ref().unwrap().id());
        drop(server);
        assert!(!folder.exists());
        assert!(!Path::new(&format!("/proc/{id}")).exists());
    }
}
