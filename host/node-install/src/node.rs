//! Operations on a node: install, go back, uninstall.

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;

use serde::Serialize;

use crate::configuration::Handlers;
use crate::containerd::{self, Containerd};
use crate::distribution::Distribution;
use crate::error::Error;
use crate::journal::{self, Change};
use crate::release::Release;
use crate::root::{CURRENT, HOME, Root, STATE, UNIT};
use crate::state::State;
use crate::systemd;
use crate::versions::{SNAPSHOTTER, User, Versions};

/// A node, by the folder that is its `/`.
#[derive(Clone, Debug)]
pub struct Node {
    pub(crate) root: Root,
}

/// What an operation has done, and what is left to do.
#[derive(Debug, Default, PartialEq, Serialize)]
pub struct Outcome {
    /// The version that new pods get.
    pub version: Option<String>,
    /// Whether any file or link was changed.
    pub changed: bool,
    /// The interrupted operation that was taken back first.
    pub taken_back: Option<String>,
    /// The handlers that containerd has, or will have.
    pub handlers: Vec<String>,
    /// Classes that this release can't offer.
    pub left_out: Vec<LeftOut>,
    /// Versions that were removed.
    pub removed: Vec<String>,
    /// Versions that stay since something runs from them.
    pub in_use: Vec<String>,
    /// What the operator has to do.
    pub next: Vec<String>,
}

/// A class that is not offered.
#[derive(Debug, Eq, PartialEq, Serialize)]
pub struct LeftOut {
    /// The class.
    pub class: &'static str,
    /// Why.
    pub reason: String,
}

impl Node {
    /// The node whose `/` is this folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: Root::new(root.into()) }
    }

    /// Installs a release, beside those that are there, and makes it the one that new pods get. Pods that run go on.
    ///
    /// # Errors
    /// Any of [`Error`] but those of other operations. Whatever was done is taken back by the next operation.
    pub fn install(&self, release: &Release) -> Result<Outcome, Error> {
        let (_lock, taken_back) = self.begin()?;
        let mut plan = self.plan(&release.classes())?;
        let versions = Versions(&self.root);
        versions.add(release)?;
        let current = versions.current();
        if current.as_deref() != Some(release.version()) {
            plan.state.previous = current;
        }
        let left_out = release.left_out().into_iter();
        let left_out = left_out.map(|(class, reason)| LeftOut { class: class.name, reason }).collect();
        let outcome = self.switch("install", release.version(), plan)?;
        Ok(Outcome { taken_back, left_out, ..outcome })
    }

    /// Goes back to the version before the current one.
    ///
    /// # Errors
    /// [`Error::NoPrevious`], and those of an installation.
    pub fn rollback(&self) -> Result<Outcome, Error> {
        let (_lock, taken_back) = self.begin()?;
        let versions = Versions(&self.root);
        let previous = State::read(&self.root)?.previous.filter(|version| versions.folder(version).exists());
        let previous = previous.ok_or(Error::NoPrevious)?;
        let mut plan = self.plan(&versions.classes(&previous))?;
        plan.state.previous = versions.current();
        let outcome = self.switch("rollback", &previous, plan)?;
        Ok(Outcome { taken_back, ..outcome })
    }

    /// Removes everything but the operator's own settings in `/etc/cocoon`.
    ///
    /// # Errors
    /// [`Error::InUse`] while a pod runs from any version, and those of an installation.
    pub fn uninstall(&self) -> Result<Outcome, Error> {
        let (_lock, taken_back) = self.begin()?;
        let versions = Versions(&self.root);
        let users = versions.users().into_iter().filter(|user| user.program != SNAPSHOTTER);
        let users: Vec<String> = users.map(|user| user.to_string()).collect();
        if !users.is_empty() {
            return Err(Error::InUse(users.join(", ")));
        }
        let state = State::read(&self.root)?;
        let place = Distribution::named(state.distribution.as_deref());
        let mut changes = containerd::removal(&self.root, place, state.edits)?;
        let had_unit = self.root.at(UNIT).exists();
        if had_unit {
            systemd::control(&self.root, &["disable", "--now", "cocoon-snapshotter.service"])?;
        }
        for path in [UNIT, CURRENT, STATE] {
            changes.push(Change::removal(&self.root, path)?);
        }
        let changed = journal::carry_out(&self.root, "uninstall", changes)?;
        let removed = versions.names();
        versions.remove_all()?;
        let mut next = Vec::new();
        if had_unit && !systemd::control(&self.root, &["daemon-reload"])? {
            next.push("on the node: systemctl stop cocoon-snapshotter; systemctl daemon-reload".to_owned());
        }
        next.extend(self.restart_needed(changed));
        Ok(Outcome { changed, taken_back, removed, next, ..Outcome::default() })
    }

    /// Restarts containerd, or the service that runs it.
    ///
    /// # Errors
    /// [`Error::NoSystemd`], [`Error::Systemctl`], [`Error::Ambiguous`].
    pub fn restart_containerd(&self) -> Result<(), Error> {
        let services = Distribution::of(&self.root)?.services;
        let runs =
            |service: &&&str| systemd::control(&self.root, &["is-active", "--quiet", service]).is_ok_and(|is| is);
        let service = services.iter().find(runs).unwrap_or(&services[0]);
        match systemd::control(&self.root, &["restart", service])? {
            true => Ok(()),
            false => Err(Error::NoSystemd),
        }
    }

    /// Takes the lock, and takes back what was interrupted.
    fn begin(&self) -> Result<(Lock, Option<String>), Error> {
        let home = self.root.at(HOME);
        let lock = fs::create_dir_all(&home).and_then(|()| File::open(&home)).map_err(Error::file("lock", &home))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy),
            Err(TryLockError::Error(error)) => return Err(Error::file("lock", &home)(error)),
        }
        let lock = Lock(lock);
        let taken_back = journal::recover(&self.root)?;
        Versions(&self.root).remove_draft()?;
        Ok((lock, taken_back))
    }

    /// What has to be changed for handlers of these classes. Nothing is yet.
    fn plan(&self, classes: &[&'static crate::Class]) -> Result<Plan, Error> {
        let mut state = State::read(&self.root)?;
        let containerd = Containerd::find(&self.root)?;
        let was = Distribution::named(state.distribution.as_deref());
        if Versions(&self.root).current().is_some() && was.name != containerd.place.name {
            return Err(Error::Moved { was: was.name, is: containerd.place.name });
        }
        state.distribution = (!containerd.place.is_plain()).then(|| containerd.place.name.to_owned());
        let snapshotter = systemd::is_there(&self.root) && containerd.takes_snapshotter(&self.root)?;
        let handlers = Handlers { classes: classes.to_vec(), snapshotter };
        let mut changes = containerd.plan(&self.root, &handlers, &mut state.edits)?;
        if snapshotter {
            let place = containerd.place;
            changes.insert(0, Change::file(&self.root, UNIT, systemd::unit(place.services, place.socket))?);
        }
        Ok(Plan { state, handlers, changes })
    }

    /// Makes an installed version the current one.
    fn switch(&self, operation: &str, version: &str, plan: Plan) -> Result<Outcome, Error> {
        let Plan { state, handlers, changes: of_plan } = plan;
        // The link first: what is written into configurations leads through it.
        let mut changes =
            vec![Change::link(&self.root, CURRENT, Versions::target(version))?, state.change(&self.root)?];
        changes.extend(of_plan);
        let changed = journal::carry_out(&self.root, &format!("{operation} {version}"), changes)?;

        let mut next = Vec::new();
        if handlers.snapshotter {
            next.extend(self.run_snapshotter(version)?);
        } else {
            next.push(format!(
                "{}, so the handlers do without cocoon-snapshotter: the node unpacks images as well, and guests pull \
                     them themselves",
                match systemd::is_there(&self.root) {
                    true => "what is appended to a template of containerd's configuration can't change settings in it",
                    false => "there is no systemd to keep it running",
                }
            ));
        }
        next.extend(self.restart_needed(changed));
        let versions = Versions(&self.root);
        let removed = versions.prune([Some(version), state.previous.as_deref()])?;
        let mut in_use: Vec<String> = versions.users().into_iter().map(|user| user.version).collect();
        in_use.retain(|used| used != version);
        in_use.sort();
        in_use.dedup();
        let (version, handlers) = (Some(version.to_owned()), handlers.names());
        Ok(Outcome { version, changed, handlers, removed, in_use, next, ..Outcome::default() })
    }

    /// Has systemd run this version's snapshotter; says what the operator has to do if nobody here can.
    fn run_snapshotter(&self, version: &str) -> Result<Option<String>, Error> {
        let users = Versions(&self.root).users();
        let is_old = users.iter().any(|user| user.program == SNAPSHOTTER && user.version != version);
        if !systemd::control(&self.root, &["daemon-reload"])? {
            let next = "on the node: systemctl daemon-reload; systemctl enable cocoon-snapshotter; systemctl restart cocoon-snapshotter";
            return Ok(Some(next.to_owned()));
        }
        systemd::control(&self.root, &["enable", "--now", "cocoon-snapshotter.service"])?;
        if is_old {
            systemd::control(&self.root, &["restart", "cocoon-snapshotter.service"])?;
        }
        Ok(None)
    }

    fn restart_needed(&self, changed: bool) -> Option<String> {
        let containerd = Containerd::find(&self.root).ok()?;
        // Processes of another machine can't be seen, and one that is not running will read what is there.
        let needed = match containerd.process() {
            Some(_) => containerd.is_outdated(&self.root),
            None => changed && !self.root.is_own(),
        };
        needed.then(|| {
            let services = containerd.place.services.join(" or ");
            format!("restart containerd ({services}), which reads its configuration only then: pods that run go on")
        })
    }
}

/// The lock of a node. It is given back in so many words: a process that is being started may still have the file.
struct Lock(File);

impl Drop for Lock {
    fn drop(&mut self) {
        let _ = self.0.unlock();
    }
}

struct Plan {
    state: State,
    handlers: Handlers,
    changes: Vec<Change>,
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.pod {
            Some(pod) => write!(f, "the pod {pod} runs from {}", self.version),
            None => write!(f, "process {} runs {} from {}", self.pid, self.program, self.version),
        }
    }
}
