//! A private apt: its own sources and lists, so that a package of another suite can be had with nothing of the system
//! changed.
//!
//! Which machine to ask, through which proxy and with which credentials, is what the system's apt is configured with;
//! only the suite differs. apt checks the suite's signature against Debian's keyring and the package's hash.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{Error, files};

/// An apt whose whole state lies in one folder, and which knows one suite of Debian's archive.
pub(crate) struct Apt {
    state: PathBuf,
}

impl Apt {
    /// Sets up the state in the empty folder `state` and fetches the lists of `suite`.
    ///
    /// Where apt's configuration has several archives, the first one that has the suite, signed by Debian, is taken.
    pub(crate) fn update(state: &Path, suite: &str) -> Result<Self, Error> {
        // Unlike apt's list of index targets, this works before the system's first update.
        let system = run(Command::new("apt-get").args(["--print-uris", "update"]))?;
        for folder in ["sources", "lists/partial", "cache/archives/partial"] {
            let folder = state.join(folder);
            fs::create_dir_all(&folder).map_err(files::failed("made", &folder))?;
        }
        // apt takes relative paths as relative to the system's root.
        let apt = Self { state: fs::canonicalize(state).map_err(files::failed("found", state))? };
        // Hooks after an update act on the system's own lists.
        files::write(&state.join("apt.conf"), b"#clear APT::Update;\n")?;
        files::write(&state.join("status"), b"")?;

        let mut outcome = Err(Error::NoArchive);
        for archive in archives(&system) {
            let source = format!(
                "Types: deb\nURIs: {archive}\nSuites: {suite}\nComponents: main\nArchitectures: amd64\nSigned-By: {KEYRING}\n"
            );
            files::write(&state.join("sources/archive.sources"), source.as_bytes())?;
            match run(apt.command("apt-get").args(["--error-on=any", "update"])) {
                Ok(_) => return Ok(apt),
                // The first archive is the likeliest, so that its failure says the most.
                Err(failure) if matches!(outcome, Err(Error::NoArchive)) => outcome = Err(failure),
                Err(_) => {}
            }
        }
        outcome
    }

    /// The packages on which `package` depends, empty if there is no such package.
    pub(crate) fn depends(&self, package: &str) -> Result<Vec<String>, Error> {
        let printed = match run(self.command("apt-cache").args(["depends", package])) {
            Err(Error::Download { .. }) => return Ok(Vec::new()),
            printed => printed?,
        };
        Ok(printed.lines().filter_map(|line| line.trim().strip_prefix("Depends: ")).map(str::to_owned).collect())
    }

    /// Downloads a package and unpacks it into `folder`, without running anything of it; says its name and version.
    pub(crate) fn unpack(&self, package: &str, folder: &Path) -> Result<String, Error> {
        let archives = self.state.join("cache/archives");
        run(self.command("apt-get").args(["download", package]).current_dir(&archives))?;
        let mut listed = fs::read_dir(&archives).map_err(files::failed("listed", &archives))?;
        let file = listed
            .find_map(|entry| {
                entry.ok().map(|entry| entry.path()).filter(|path| path.extension() == Some("deb".as_ref()))
            })
            .ok_or_else(|| Error::Package { package: package.to_owned(), what: "package file" })?;
        run(Command::new("dpkg-deb").arg("--extract").arg(&file).arg(folder))?;
        run(Command::new("dpkg-deb").args(["--show", "--showformat", "${Package} ${Version}"]).arg(&file))
    }

    fn command(&self, tool: &str) -> Command {
        let mut command = Command::new(tool);
        command.arg("--config-file").arg(self.state.join("apt.conf"));
        for (option, path) in [
            ("Dir::Etc::sourceparts", "sources"),
            ("Dir::State::lists", "lists"),
            ("Dir::State::status", "status"),
            ("Dir::Cache", "cache"),
        ] {
            let mut setting = std::ffi::OsString::from(format!("{option}="));
            setting.push(self.state.join(path));
            command.arg("--option").arg(setting);
        }
        for setting in SETTINGS {
            command.args(["--option", setting]);
        }
        command
    }
}

/// The archives whose releases apt would fetch, with those first that lie where Debian's mirrors have it.
fn archives(uris: &str) -> Vec<&str> {
    let mut archives: Vec<_> = uris.lines().filter_map(archive).collect();
    archives.sort_by_key(|archive| !archive.ends_with("/debian"));
    archives.dedup();
    archives
}

/// apt prints the quoted URI, the name it would store the file under, and a size.
fn archive(line: &str) -> Option<&str> {
    let (uri, _) = line.strip_prefix('\'')?.split_once('\'')?;
    let (archive, release) = uri.rsplit_once("/dists/")?;
    release.ends_with("/InRelease").then_some(archive)
}

fn run(command: &mut Command) -> Result<String, Error> {
    let tool = if command.get_program() == "dpkg-deb" { "dpkg-deb" } else { "apt" };
    let output =
        command.env("LC_ALL", "C").stdin(Stdio::null()).output().map_err(|cause| Error::Tool { tool, cause })?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let printed = [output.stdout, output.stderr].concat();
    let printed = String::from_utf8_lossy(&printed);
    let mut last: Vec<_> = printed.lines().map(str::trim).filter(|line| !line.is_empty()).rev().take(4).collect();
    last.reverse();
    let command = format!("{} {}", command.get_program().display(), action(command));
    Err(Error::Download { command, output: last.join(" / ") })
}

/// The first argument that is a verb and no option or its value.
fn action(command: &Command) -> String {
    let verbs = ["update", "download", "depends", "--extract", "--show"];
    let mut arguments = command.get_args().filter_map(|argument| argument.to_str());
    arguments.find(|argument| verbs.contains(argument)).unwrap_or_default().to_owned()
}

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const SETTINGS: [&str; 5] = [
    "Dir::Etc::sourcelist=/dev/null",
    "Dir::Etc::preferences=/dev/null",
    "Dir::Etc::preferencesparts=/dev/null",
    "Acquire::Languages=none",
    "Acquire::Retries=3",
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_archive_is_named_once_and_debians_first() {
        let uris = "'mirror://a/vendor/dists/bookworm/InRelease' a_InRelease 0 \n\
                    'mirror://b/debian/dists/bookworm/InRelease' b_InRelease 0 \n\
                    'mirror://b/debian/dists/bookworm-updates/InRelease' b_InRelease 0 \n\
                    'mirror://b/debian-security/dists/bookworm-security/InRelease' b_InRelease 0 \n\
                    'mirror://c/debian/dists/bookworm/main/binary-amd64/Packages.xz' c_Packages 0 \n\
                    'mirror://d/flat/InRelease' d_InRelease 0 \n\
                    Reading package lists\n";
        assert_eq!(archives(uris), ["mirror://b/debian", "mirror://a/vendor", "mirror://b/debian-security"]);
    }

    #[test]
    fn a_failure_says_which_command_and_what_it_printed() {
        let error = run(Command::new("dpkg-deb").args(["--show", "/nowhere.deb"])).unwrap_err().to_string();
        assert!(error.contains("`dpkg-deb --show` failed") && error.contains("/nowhere.deb"), "{error}");
    }
}
