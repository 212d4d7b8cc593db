//! The program `nebula-cert`, run with nothing of this process but its user.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::process::Command;

use super::credential::Credential;
use super::{Authority, NAME};
use crate::Error;
use crate::error::excerpt;

pub(super) struct NebulaCert {
    path: PathBuf,
}

impl NebulaCert {
    pub fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// What the program says its version is.
    pub async fn version(&self) -> Result<String, Error> {
        let text = self.run("-version", Vec::new()).await?;
        match text.trim().strip_prefix("Version: ") {
            Some(version) => Ok(excerpt(version)),
            None => Err(self.failed(format!("it does not tell its version but \"{}\"", excerpt(&text)))),
        }
    }

    /// Makes `ca.crt` and `ca.key` in a folder.
    pub async fn make_authority(&self, settings: &Authority, folder: &Path) -> Result<(), Error> {
        let number = |number: Option<u32>| number.map(|number| number.to_string());
        let members = [
            ("name", Some(settings.name.clone().unwrap_or_else(|| AUTHORITY.to_owned()))),
            ("argon-iterations", number(settings.argon_iterations)),
            ("argon-memory", number(settings.argon_memory)),
            ("argon-parallelism", number(settings.argon_parallelism)),
            ("curve", settings.curve.clone()),
            ("duration", settings.duration.clone()),
            ("groups", settings.groups.clone()),
            ("ips", settings.ips.clone()),
            ("out-qr", settings.out_qr.clone()),
            ("subnets", settings.subnets.clone()),
        ];
        let given = members.into_iter().filter_map(|(name, value)| Some(flag(name, value?.as_ref())));
        let files = [flag("out-crt", &folder.join("ca.crt")), flag("out-key", &folder.join("ca.key"))];
        self.run("ca", given.chain(files).collect()).await?;
        Ok(())
    }

    /// Signs a new key pair.
    pub async fn sign(
        &self,
        credential: &Credential,
        ca_crt: &Path,
        ca_key: &Path,
        out_crt: &Path,
        out_key: &Path,
    ) -> Result<(), Error> {
        let files =
            [flag("ca-crt", ca_crt), flag("ca-key", ca_key), flag("out-crt", out_crt), flag("out-key", out_key)];
        self.run("sign", credential.flags().into_iter().chain(files).collect()).await?;
        Ok(())
    }

    /// Checks a certificate against its authority and the clock.
    pub async fn verify(&self, ca: &Path, crt: &Path) -> Result<(), Error> {
        self.run("verify", vec![flag("ca", ca), flag("crt", crt)]).await?;
        Ok(())
    }

    /// Runs a subcommand and gives what it prints.
    async fn run(&self, subcommand: &str, flags: Vec<OsString>) -> Result<String, Error> {
        let mut command = Command::new(&self.path);
        command.arg(subcommand).args(flags).stdin(Stdio::null()).kill_on_drop(true);
        // PATH alone, which the program itself was searched in.
        command.env_clear().envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
        let output = tokio::time::timeout(LONGEST, command.output()).await;
        let output = output.map_err(|_| self.failed(format!("it takes more than {} s", LONGEST.as_secs())))?;
        let output = output.map_err(|e| self.failed(e.to_string()))?;
        if !output.status.success() {
            let text = excerpt(&String::from_utf8_lossy(&output.stderr));
            return Err(Error::Declined { plugin: NAME, program: "nebula-cert", text });
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    fn failed(&self, reason: String) -> Error {
        Error::Program { plugin: NAME, program: self.path.clone(), reason }
    }
}

fn flag(name: &str, value: &Path) -> OsString {
    let mut flag = OsString::from(format!("-{name}="));
    flag.push(value);
    flag
}

const AUTHORITY: &str = "Trustee Nebula CA plugin";
const LONGEST: Duration = Duration::from_secs(10);
