//! Programs of a newer Debian than the machine's, in a folder of their own: skopeo with the key provider protocol and
//! cosign, which run with their own libraries, and containerd, which needs none.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The unpacked packages.
pub struct NewerDebian {
    root: PathBuf,
}

impl NewerDebian {
    /// Debian 13's skopeo and cosign with their libraries.
    ///
    /// # Errors
    /// As [`Self::unpack`] has.
    pub fn get() -> Result<Self, String> {
        Self::unpack(SUITE, PACKAGES)
    }

    /// Unpacks packages of a suite into the build's folder, unless they are there. Nothing of the system is changed.
    ///
    /// # Errors
    /// Why they can't be had, such as that there is no network.
    pub fn unpack(suite: &str, packages: &[&str]) -> Result<Self, String> {
        let own = std::env::current_exe().map_err(|e| e.to_string())?;
        let target = own.ancestors().find(|folder| folder.ends_with("target")).ok_or("there is no target folder")?;
        let root = target.join("cocoon").join(format!("{suite}-{}", packages[0]));
        if !root.exists() {
            fs::create_dir_all(target.join("cocoon")).map_err(|e| e.to_string())?;
            let staging = tempfile::tempdir_in(target.join("cocoon")).map_err(|e| e.to_string())?;
            fetch(staging.path(), suite, packages)?;
            match fs::rename(staging.path().join("root"), &root) {
                // Another test was faster.
                Err(_) if root.exists() => {}
                renamed => renamed.map_err(|e| e.to_string())?,
            }
        }
        Ok(Self { root })
    }

    /// Where the packages' files are.
    pub fn path(&self) -> &Path {
        &self.root
    }

    /// A command with its own libraries.
    pub fn command(&self, program: &str) -> Command {
        let libraries = self.root.join("usr/lib/x86_64-linux-gnu");
        let mut command = Command::new(libraries.join("ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(&libraries).arg(self.root.join("usr/bin").join(program));
        command
    }

    /// Makes a script that runs the program with these arguments before all others.
    ///
    /// # Panics
    /// If it can't be written.
    pub fn script(&self, program: &str, arguments: &str, path: &Path) {
        use std::os::unix::fs::PermissionsExt as _;
        let command = self.command(program);
        let words: Vec<_> = std::iter::once(command.get_program()).chain(command.get_args()).map(quoted).collect();
        fs::write(path, format!("#!/bin/sh\nexec {} {arguments} \"$@\"\n", words.join(" "))).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn quoted(word: &OsStr) -> String {
    format!("'{}'", word.to_str().unwrap())
}

/// Which machine to ask is what the system's apt is configured with; only the suite differs.
fn fetch(folder: &Path, suite: &str, packages: &[&str]) -> Result<(), String> {
    for name in ["sources", "lists/partial", "cache/archives/partial", "root"] {
        fs::create_dir_all(folder.join(name)).map_err(|e| e.to_string())?;
    }
    fs::write(folder.join("status"), "").map_err(|e| e.to_string())?;
    let uris = run(Command::new("apt-get").args(["--print-uris", "update"]))?;
    let archive = uris.lines().find_map(|line| {
        let (archive, release) = line.strip_prefix('\'')?.split_once('\'')?.0.split_once("/dists/")?;
        (release.ends_with("/InRelease") && archive.ends_with("/debian")).then_some(archive)
    });
    let archive = archive.ok_or("apt knows no archive of Debian")?;
    let source = format!(
        "Types: deb\nURIs: {archive}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\n\
         Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    );
    fs::write(folder.join("sources/archive.sources"), source).map_err(|e| e.to_string())?;

    // Hooks after an update act on the system's own lists.
    fs::write(folder.join("apt.conf"), "#clear APT::Update;\n").map_err(|e| e.to_string())?;

    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("--config-file").arg(folder.join("apt.conf"));
        for (option, path) in [
            ("Dir::Etc::sourceparts", "sources"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            command.arg("--option").arg(format!("{option}={}", folder.join(path).display()));
        }
        command.args(["--option", "Dir::Etc::sourcelist=/dev/null", "--option", "Dir::Etc::preferences=/dev/null"]);
        command.args(["--option", "Acquire::Languages=none"]);
        command.arg("--quiet=2").args(arguments).current_dir(folder.join("cache/archives"));
        run(&mut command)
    };
    apt(&["--error-on=any", "update"])?;
    apt(&[&["download"], packages].concat())?;
    for package in fs::read_dir(folder.join("cache/archives")).map_err(|e| e.to_string())?.flatten() {
        if package.path().extension() == Some("deb".as_ref()) {
            run(Command::new("dpkg-deb").arg("--extract").arg(package.path()).arg(folder.join("root")))?;
        }
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<String, String> {
    let output = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let output = output.map_err(|e| format!("{} can't be run: {e}", command.get_program().display()))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

const SUITE: &str = "trixie";
const PACKAGES: &[&str] =
    &["skopeo", "cosign", "libc6", "libgpgme11t64", "libassuan9", "libgpg-error0", "libsqlite3-0"];
