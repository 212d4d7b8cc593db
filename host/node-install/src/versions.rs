//! The versions on a node: added whole, used by processes, removed when nobody uses them.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::class::Class;
use crate::error::Error;
use crate::journal::{step, sync};
use crate::processes::{Process, file_of};
use crate::release::Release;
use crate::root::{CURRENT, HOME, Root, VERSIONS};

/// The versions on a node.
pub(crate) struct Versions<'a>(pub(crate) &'a Root);

/// A process that runs a version's program.
#[derive(Debug)]
pub(crate) struct User {
    pub(crate) version: String,
    pub(crate) program: String,
    pub(crate) pid: u32,
    /// The pod that a shim serves.
    pub(crate) pod: Option<String>,
}

impl Versions<'_> {
    /// The names of all, in order.
    pub(crate) fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.at(VERSIONS)).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.retain(|name| !name.starts_with('.'));
        names.sort();
        names
    }

    /// The one that new pods get.
    pub(crate) fn current(&self) -> Option<String> {
        let target = fs::read_link(self.0.at(CURRENT)).ok()?;
        target.file_name()?.to_str().map(str::to_owned)
    }

    /// The target of the link to the current one.
    pub(crate) fn target(version: &str) -> PathBuf {
        Path::new("versions").join(version)
    }

    /// Where a version is.
    pub(crate) fn folder(&self, version: &str) -> PathBuf {
        self.0.at(VERSIONS).join(version)
    }

    /// The classes that a version offers.
    pub(crate) fn classes(&self, version: &str) -> Vec<&'static Class> {
        let entries = fs::read_dir(self.folder(version).join("share/classes")).into_iter().flatten().flatten();
        let mut classes: Vec<_> = entries.filter_map(|entry| Class::named(entry.file_name().to_str()?)).collect();
        classes.sort_by_key(|class| class.name);
        classes
    }

    /// Copies a release, unless it is there.
    pub(crate) fn add(&self, release: &Release) -> Result<(), Error> {
        let target = self.folder(release.version());
        if target.exists() {
            return Ok(());
        }
        let draft = self.draft()?;
        release.copy_to(&draft)?;
        sync(&draft)?;
        step();
        fs::rename(&draft, &target).map_err(Error::file("copy", &target))?;
        sync(&self.0.at(VERSIONS))?;
        step();
        Ok(())
    }

    /// A new folder aside, in the place of one that an interrupted operation has left.
    pub(crate) fn draft(&self) -> Result<PathBuf, Error> {
        let draft = self.0.at(VERSIONS).join(DRAFT);
        self.remove_draft()?;
        fs::create_dir_all(&draft).map_err(Error::file("copy", &draft))?;
        Ok(draft)
    }

    pub(crate) fn remove_draft(&self) -> Result<(), Error> {
        remove(&self.0.at(VERSIONS).join(DRAFT))
    }

    /// Who runs programs of which version. This process is nobody.
    pub(crate) fn users(&self) -> Vec<User> {
        let mut programs = HashMap::new();
        for version in self.names() {
            for entry in fs::read_dir(self.folder(&version).join("bin")).into_iter().flatten().flatten() {
                let Some(file) = file_of(&entry.path()) else { continue };
                programs.insert(file, (version.clone(), entry.file_name().to_string_lossy().into_owned()));
            }
        }
        let others = Process::all().into_iter().filter(|process| process.pid != std::process::id());
        let users = others.filter_map(|process| {
            let (version, program) = programs.get(&process.file)?.clone();
            let pod = process.option("-id").filter(|_| program == SHIM).map(str::to_owned);
            Some(User { version, program, pid: process.pid, pod })
        });
        users.collect()
    }

    /// Removes all that nobody runs, but for these two; says which.
    pub(crate) fn prune(&self, keep: [Option<&str>; 2]) -> Result<Vec<String>, Error> {
        self.remove_draft()?;
        let users = self.users();
        let mut removed = Vec::new();
        for version in self.names() {
            let used = users.iter().any(|user| user.version == version);
            if !used && !keep.contains(&Some(version.as_str())) {
                // Aside first, so that no half of it can be taken for the whole.
                let draft = self.0.at(VERSIONS).join(DRAFT);
                fs::rename(self.folder(&version), &draft).map_err(Error::file("remove", &draft))?;
                step();
                self.remove_draft()?;
                removed.push(version);
            }
        }
        Ok(removed)
    }

    /// Removes all versions.
    pub(crate) fn remove_all(&self) -> Result<(), Error> {
        step();
        remove(&self.0.at(VERSIONS))?;
        step();
        // Programs that somebody has put there by hand stay.
        let _ = fs::remove_dir(self.0.at(HOME));
        Ok(())
    }
}

fn remove(folder: &Path) -> Result<(), Error> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::file("remove", folder)(error)),
        _ => Ok(()),
    }
}

/// The name of the shim's program.
pub(crate) const SHIM: &str = "containerd-shim-cocoon-v2";
/// The name of the snapshotter's program.
pub(crate) const SNAPSHOTTER: &str = "cocoon-snapshotter";
const DRAFT: &str = ".new";
