//! One container: its first process, the commands run in it, and what has to be removed with it.

mod commands;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::Value;
use tokio::sync::RwLock;
use wire_ttrpc::agent::ExecProcessRequest;
use wire_ttrpc::oci;
use zeroize::Zeroizing;

use crate::cgroup::Cgroup;
use crate::fault::Fault;
use crate::helper::{Helper, Place};
use crate::id::Id;
use crate::images::{ImageProcess, Images};
use crate::process::Process;
use crate::spec;
use crate::volumes::Held;
use commands::Commands;

/// A container whose first process has been made.
pub(crate) struct Container {
    id: Id,
    /// The name that the caller may have given the first process.
    first: String,
    home: Home,
    init: Process,
    user: RunsAs,
    copies: Vec<PathBuf>,
    volumes: Mutex<Held>,
    started: Mutex<bool>,
    commands: Commands,
    /// Held while a command enters; closed before what belongs to the container is removed.
    entrance: RwLock<Entrance>,
}

/// Who the container was asked to run as, in numbers, and who it runs as. They differ where the image says who that is.
#[derive(Default)]
pub(crate) struct RunsAs {
    asked: Option<Numbers>,
    is: Value,
}

/// User, group and further groups.
type Numbers = (u32, u32, Vec<u32>);

impl RunsAs {
    /// `is` is the user in the container's `config.json`.
    pub(crate) fn new(asked: Option<&oci::User>, is: Value) -> Self {
        Self { asked: asked.map(numbers), is }
    }

    /// Who a command runs as that asks for the same as its container. What else a message may have in it does not count: no
    /// policy has seen it.
    fn of_command(&self, asked: Option<&oci::User>) -> Option<Value> {
        (asked.map(numbers) == self.asked).then(|| self.is.clone())
    }
}

fn numbers(user: &oci::User) -> Numbers {
    (user.UID, user.GID, user.AdditionalGids.clone())
}

enum Entrance {
    Open,
    Closed,
}

/// What a container occupies in the guest, from the moment its creation begins.
#[derive(Clone)]
pub(crate) struct Home {
    id: Id,
    bundle: PathBuf,
    /// Whether it is that of the pod's own process, whose root file system is an empty folder of the bundle.
    is_pods: bool,
    cgroup: Cgroup,
    helper: Helper,
}

impl Home {
    /// Makes the bundle's folder, and an empty root file system in it for the pod's own process.
    pub(crate) fn make(id: &Id, root: &Path, helper: &Helper, is_pods: bool) -> Result<Self, Fault> {
        let bundle = root.join(id);
        let failed = |e| Fault::Io("container's folder can't be made", e);
        std::fs::create_dir(&bundle).map_err(failed)?;
        let home = Self { id: id.clone(), bundle, is_pods, cgroup: Cgroup::of(id), helper: helper.clone() };
        if is_pods && let Err(error) = std::fs::create_dir(home.rootfs()) {
            let _ = std::fs::remove_dir(&home.bundle);
            return Err(failed(error));
        }
        Ok(home)
    }

    /// The root file system, or where it will be.
    pub(crate) fn rootfs(&self) -> PathBuf {
        self.bundle.join("rootfs")
    }

    /// The folder with the container's files and root file system.
    pub(crate) fn bundle(&self) -> &Path {
        &self.bundle
    }

    /// Kills all that runs and removes all that is there. What can't be removed is logged and left.
    pub(crate) async fn clear(&self, images: &dyn Images) {
        let warn = |what: &str, error: &dyn std::fmt::Display| tracing::warn!(container = %self.id, %error, "{what}");
        if let Err(error) = self.cgroup.kill() {
            warn("control group can't be killed", &error);
        }
        if let Err(error) = self.cgroup.remove().await {
            warn("control group can't be removed", &error);
        }
        if let Err(error) = self.helper.forget(&self.id) {
            warn("runtime state can't be removed", &error);
        }
        match self.is_pods {
            true => {
                if let Err(error) = std::fs::remove_dir_all(self.rootfs()) {
                    warn("root file system can't be removed", &error);
                }
            }
            false => images.release(&self.bundle).await,
        }
        // Only the folder's own files, level by level: a root file system that is still mounted is not emptied.
        if let Err(error) = remove_bundle(&self.bundle) {
            warn("bundle can't be removed", &error);
        }
    }
}

impl Container {
    /// Makes the first process of the container whose bundle is complete; it runs once the container is started.
    pub(crate) async fn create(
        home: Home,
        first: &str,
        terminal: bool,
        user: RunsAs,
        copies: Vec<PathBuf>,
    ) -> Result<Self, Fault> {
        let uid = user.is["uid"].as_u64().and_then(|uid| u32::try_from(uid).ok()).unwrap_or(0);
        let (child, streams) = home.helper.create(&home.id, &home.bundle, terminal, uid).await?;
        let init = Process::watch(child, streams);
        Ok(Self { user, copies, ..Self::new(home, first, init) })
    }

    /// Makes the pod's own process. It has nothing to run when it is started, and uses too little to be in a control group.
    pub(crate) async fn pause(home: Home, first: &str) -> Result<Self, Fault> {
        let (child, streams) = home.helper.pause(&home.rootfs()).await?;
        Ok(Self::new(home, first, Process::watch(child, streams)))
    }

    fn new(home: Home, first: &str, init: Process) -> Self {
        Self {
            id: home.id.clone(),
            first: first.to_owned(),
            home,
            init,
            user: RunsAs::default(),
            copies: Vec::new(),
            volumes: Mutex::default(),
            started: Mutex::new(false),
            commands: Commands::default(),
            entrance: RwLock::new(Entrance::Open),
        }
    }

    /// Ends what nobody will have. [`Home::clear`] does not reach the pod's own process, which is in no control group.
    pub(crate) async fn discard(self) {
        match self.init.signal(Signal::KILL) {
            Ok(()) => drop(self.init.until_ended().await),
            Err(error) => tracing::warn!(container = %self.id, %error, "first process can't be killed"),
        }
    }

    /// The container's first process.
    pub(crate) fn init(&self) -> &Process {
        &self.init
    }

    /// What the host has copied into the guest for this container alone.
    pub(crate) fn copies(&self) -> &[PathBuf] {
        &self.copies
    }

    /// Lets the container have volumes until its end.
    pub(crate) fn take_volumes(&self, volumes: Held) {
        *self.volumes.lock().unwrap_or_else(PoisonError::into_inner) = volumes;
    }

    /// The volumes that it had, once it has ended.
    pub(crate) fn give_back_volumes(&self) -> Held {
        std::mem::take(&mut *self.volumes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The container's control group.
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.home.cgroup
    }

    /// The end of what the container's programs wrote to say why they end, up to 4 KiB; nothing if there is no such file.
    ///
    /// It is always the agent's own file: any other may hold what is not the host's to read.
    pub(crate) fn termination_message(&self) -> std::io::Result<String> {
        use rustix::fs::{CWD, Mode, OFlags, openat};
        use rustix::io::Errno;
        let path = self.home.bundle.join("termination-log");
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let mut file = match openat(CWD, path, flags, Mode::empty()) {
            Err(Errno::NOENT) => return Ok(String::new()),
            opened => std::fs::File::from(opened?),
        };
        let length = file.metadata()?.len();
        std::io::Seek::seek(&mut file, std::io::SeekFrom::Start(length.saturating_sub(MAX_MESSAGE)))?;
        let mut text = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(file, MAX_MESSAGE), &mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Lets the first process run its program.
    pub(crate) fn start(&self) -> Result<(), Fault> {
        let mut started = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        if *started {
            return Err(Fault::State(format!("container {} has been started already", self.id)));
        }
        if !self.home.is_pods {
            self.home.helper.start(&self.id)?;
        }
        *started = true;
        Ok(())
    }

    /// Runs a command in the container.
    pub(crate) async fn exec(&self, request: &ExecProcessRequest) -> Result<(), Fault> {
        let exec = Id::parse(&request.exec_id)?;
        if self.is_first(exec.as_str()) {
            return Err(Fault::Exists(format!("process {exec} of container {}", self.id)));
        }
        let process = request.process.as_ref().ok_or(Fault::Invalid("the request has no process; next: set it"))?;
        if request.stdin_port.is_some() || request.stdout_port.is_some() || request.stderr_port.is_some() {
            return Err(spec::Error::Unsupported("streams on ports").into());
        }
        let rootfs = self.home.rootfs();
        let mut described = spec::process(process, request.string_user.as_ref(), &ImageProcess::default(), &rootfs)?;
        if request.string_user.is_none()
            && let Some(user) = self.user.of_command(process.User.as_ref())
        {
            described["user"] = user;
        }
        // The environment may have secrets in it.
        let described = Zeroizing::new(described.to_string().into_bytes());
        let entrance = self.entrance.read().await;
        if let Entrance::Closed = *entrance {
            return Err(Fault::State(format!("container {} is being removed", self.id)));
        }
        self.expect_running()?;
        self.commands.reserve(&exec, &self.id)?;
        let place = Place { first: self.init.descriptor(), group: self.home.cgroup.path() };
        match self.home.helper.enter(place, &described, process.Terminal).await {
            Ok((child, streams)) => {
                self.commands.settle(&exec, Some(Process::watch(child, streams)));
                Ok(())
            }
            Err(error) => {
                self.commands.settle(&exec, None);
                Err(error.into())
            }
        }
    }

    /// Calls for the process of that name. The first process has the container's name, the one its creation gave it, or none.
    pub(crate) fn process(&self, name: &str) -> Result<Named<'_>, Fault> {
        if self.is_first(name) {
            return Ok(Named::First(&self.init));
        }
        match self.commands.get(name) {
            Some(process) => Ok(Named::Other(process)),
            None => Err(Fault::NotFound(format!(
                "process {:?} of container {}",
                name.chars().take(128).collect::<String>(),
                self.id
            ))),
        }
    }

    /// Sends a signal to a process; SIGKILL to the first one kills all that runs in the container.
    pub(crate) fn signal(&self, name: &str, signal: Signal) -> Result<(), Fault> {
        let failed = |e| Fault::Io("signal can't be sent", e);
        match self.process(name)? {
            Named::First(init) => {
                // Meant to end the container, and the kernel would keep it from the process.
                let ends = signal == Signal::KILL || (signal == Signal::TERM && init.ignores(signal));
                if ends {
                    self.home.cgroup.kill().and_then(|()| init.signal(Signal::KILL))
                } else {
                    init.signal(signal)
                }
                .map_err(failed)
            }
            Named::Other(process) => process.signal(signal).map_err(failed),
        }
    }

    /// Kills all that runs in the container and waits for its end, then removes what belongs to it.
    ///
    /// # Errors
    /// [`Fault::State`] where that takes longer than `limit`: then the container is still there.
    pub(crate) async fn remove(&self, images: &dyn Images, limit: Option<Duration>) -> Result<(), Fault> {
        let failed = |e| Fault::Io("container can't be killed", e);
        self.home.cgroup.kill().map_err(failed)?;
        self.init.signal(Signal::KILL).map_err(failed)?;
        match limit {
            Some(limit) => tokio::time::timeout(limit, self.init.ended())
                .await
                .map_err(|_| Fault::State(format!("container {} did not end within {} s", self.id, limit.as_secs())))?,
            None => self.init.ended().await,
        };
        // A command that is about to enter may do so after the others were killed, and would outlive them.
        *self.entrance.write().await = Entrance::Closed;
        self.home.clear(images).await;
        Ok(())
    }

    /// Whether a command would run in it, and end.
    fn expect_running(&self) -> Result<(), Fault> {
        let refused = |why: &str| Err(Fault::State(format!("container {} {why}", self.id)));
        if self.home.is_pods {
            return refused("is the pod's own, in which nothing runs; next: run the command in another one");
        }
        if !*self.started.lock().unwrap_or_else(PoisonError::into_inner) {
            return refused("has not been started; next: start it");
        }
        if self.init.has_ended() {
            return refused("has ended; next: create and start another one");
        }
        match self.home.cgroup.is_frozen() {
            true => refused("is paused; next: resume it"),
            false => Ok(()),
        }
    }

    fn is_first(&self, name: &str) -> bool {
        name.is_empty() || name == self.id.as_str() || name == self.first
    }
}

/// A process of a container, found by its name.
pub(crate) enum Named<'a> {
    First(&'a Process),
    Other(Arc<Process>),
}

impl std::ops::Deref for Named<'_> {
    type Target = Process;

    fn deref(&self) -> &Process {
        match self {
            Self::First(process) => process,
            Self::Other(process) => process,
        }
    }
}

fn remove_bundle(bundle: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(bundle)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_dir(bundle)
}

/// What Kubernetes keeps of a message.
const MAX_MESSAGE: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message as _;
    use serde_json::json;

    #[test]
    fn a_command_that_asks_as_its_container_did_gets_its_user() {
        let asked = oci::User { UID: 0x6000_0001, AdditionalGids: vec![3], ..Default::default() };
        let is = json!({"uid": 1000, "gid": 1000, "additionalGids": [3]});
        let user = RunsAs::new(Some(&asked), is.clone());

        // What the policy does not see must change nothing: field 15 is nobody's.
        let mut bytes = asked.write_to_bytes().unwrap();
        bytes.extend([0x78, 0x01]);
        let decorated = oci::User::parse_from_bytes(&bytes).unwrap();
        assert_ne!(decorated, asked);
        for same in [&asked, &decorated] {
            assert_eq!(user.of_command(Some(same)), Some(is.clone()));
        }
        for other in [None, Some(oci::User::default()), Some(oci::User { GID: 1, ..asked.clone() })] {
            assert_eq!(user.of_command(other.as_ref()), None);
        }
        assert_eq!(RunsAs::new(None, is.clone()).of_command(None), Some(is));
    }
}
