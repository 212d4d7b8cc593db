//! Makes containers in a process of its own.
//!
//! Entering namespaces takes a process with one thread, and the guest's first process has several. So it runs its
//! own binary once more for each container or command: that helper sets the process up through libcontainer,
//! reports its number in a file, and exits; whereupon the process becomes a child of the guest's first process,
//! which can wait for it.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::container::{Container, ContainerStatus};
use libcontainer::syscall::syscall::SyscallType;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::console::Console;
use crate::id::Id;
use crate::process::Streams;

/// The first argument of a helper: where the binary sees it, it calls [`run_helper`] before anything else.
pub const HELPER_ARG: &str = "container-helper";

/// Does the helper's work, given the arguments that follow [`HELPER_ARG`], and returns the exit code.
///
/// Must be called while the process has one thread. Never panics on its arguments.
pub fn run_helper(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args: Vec<OsString> = args.into_iter().collect();
    let [order] = args.as_slice() else { return BAD_ARGUMENTS };
    let Some(order) = order.to_str().and_then(|text| serde_json::from_str::<Order>(text).ok()) else {
        return BAD_ARGUMENTS;
    };
    let outcome = match order.carry_out() {
        Ok(pid) => Outcome::Pid(pid),
        Err(error) => {
            end_children();
            Outcome::Error(error)
        }
    };
    let report = serde_json::to_vec(&outcome).unwrap_or_default();
    // Written under another name first: the agent never sees half a report.
    let half = order.report.with_extension("half");
    match std::fs::write(&half, report).and_then(|()| std::fs::rename(&half, &order.report)) {
        Ok(()) => 0,
        Err(_) => NO_REPORT,
    }
}

/// Starts helpers, and starts what they prepared.
#[derive(Clone, Debug)]
pub(crate) struct Helper {
    /// The binary that is run as helper.
    pub(crate) program: PathBuf,
    /// Where libcontainer keeps its state.
    pub(crate) state: PathBuf,
}

impl Helper {
    /// Makes the container of `<bundle>/config.json`; its first process waits for [`Self::start`].
    pub(crate) async fn create(&self, id: &Id, bundle: &Path, terminal: bool) -> Result<(Pid, Streams), Error> {
        self.run(id, bundle, "create", None, terminal).await
    }

    /// Runs the process that `<bundle>/<exec_id>.process.json` describes in a container that runs.
    pub(crate) async fn exec(
        &self,
        id: &Id,
        bundle: &Path,
        exec: &Id,
        process: &[u8],
        terminal: bool,
    ) -> Result<(Pid, Streams), Error> {
        let file = bundle.join(format!("{exec}.process.json"));
        std::fs::write(&file, process).map_err(Error::Bundle)?;
        let result = self.run(id, bundle, exec.as_str(), Some(file.clone()), terminal).await;
        let _ = std::fs::remove_file(file);
        result
    }

    /// Lets the first process of a container that was made run its program.
    pub(crate) fn start(&self, id: &Id) -> Result<(), Error> {
        let folder = self.state.join(id);
        let mut container = Container::load(folder.clone()).map_err(|e| Error::Container(e.to_string()))?;
        if container.status() != ContainerStatus::Created {
            return Err(Error::Container(format!("its status is {:?}", container.status())));
        }
        // A socket's path has at most 107 bytes, an id alone may have 128.
        let folder = std::fs::File::open(&folder).map_err(Error::Bundle)?;
        let socket = format!("/proc/self/fd/{}/notify.sock", std::os::fd::AsRawFd::as_raw_fd(&folder));
        let mut socket = std::os::unix::net::UnixStream::connect(socket).map_err(Error::Start)?;
        io::Write::write_all(&mut socket, b"start").map_err(Error::Start)?;
        container.set_status(ContainerStatus::Running).save().map_err(|e| Error::Container(e.to_string()))
    }

    /// Forgets a container.
    pub(crate) fn forget(&self, id: &Id) -> io::Result<()> {
        match std::fs::remove_dir_all(self.state.join(id)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    async fn run(
        &self,
        id: &Id,
        bundle: &Path,
        name: &str,
        process: Option<PathBuf>,
        terminal: bool,
    ) -> Result<(Pid, Streams), Error> {
        std::fs::create_dir_all(&self.state).map_err(Error::Bundle)?;
        let report = bundle.join(format!("{name}.report.json"));
        let console = if terminal { Some(Console::listen(bundle, name).map_err(Error::Streams)?) } else { None };
        let order = Order {
            id: id.as_str().to_owned(),
            state: self.state.clone(),
            bundle: bundle.to_owned(),
            process,
            console: console.as_ref().map(|console| console.path().to_owned()),
            report: report.clone(),
        };
        let order = serde_json::to_string(&order).map_err(|e| Error::Bundle(e.into()))?;
        let (mine, theirs) = Pipes::new(terminal).map_err(Error::Streams)?;

        let mut command = tokio::process::Command::new(&self.program);
        command.args([HELPER_ARG, &order]).env_clear().current_dir("/").kill_on_drop(true);
        command.stdin(theirs.stdin).stdout(theirs.stdout).stderr(theirs.stderr);
        let mut child = command.spawn().map_err(Error::Spawn)?;
        // The command holds the process' ends of the pipes: as long as it does, their ends are never seen.
        drop(command);

        let status = match tokio::time::timeout(DEADLINE, child.wait()).await {
            Ok(status) => status.map_err(Error::Spawn)?,
            Err(_) => {
                let _ = child.kill().await;
                return Err(Error::Deadline);
            }
        };
        let outcome = read_report(&report).await;
        let _ = std::fs::remove_file(&report);
        let pid = match outcome {
            Ok(Outcome::Pid(pid)) => Pid::from_raw(pid).ok_or(Error::NoReport(status.to_string()))?,
            Ok(Outcome::Error(cause)) => return Err(Error::Container(cause)),
            Err(_) => return Err(Error::NoReport(status.to_string())),
        };
        let streams = match (console, mine) {
            (Some(console), _) => Streams::terminal(console.master().await.map_err(Error::Streams)?),
            (None, Some([stdin, stdout, stderr])) => Streams::pipes(stdin, stdout, stderr),
            (None, None) => return Err(Error::Streams(io::ErrorKind::BrokenPipe.into())),
        };
        Ok((pid, streams.map_err(Error::Streams)?))
    }
}

/// Why a container or a process in it can't be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("container's files can't be written: {0}")]
    Bundle(#[source] io::Error),
    #[error("container's streams can't be made: {0}")]
    Streams(#[source] io::Error),
    #[error("container helper can't be run: {0}")]
    Spawn(#[source] io::Error),
    #[error("container helper took longer than {} s", DEADLINE.as_secs())]
    Deadline,
    #[error("container helper left no report ({0})")]
    NoReport(String),
    #[error("container runtime refused: {0}")]
    Container(String),
    #[error("container's first process does not listen: {0}")]
    Start(#[source] io::Error),
}

/// What a helper is to do, as its only argument.
#[derive(Serialize, Deserialize)]
struct Order {
    id: String,
    state: PathBuf,
    bundle: PathBuf,
    /// A process to run in the container that exists; none to make the container.
    process: Option<PathBuf>,
    /// Where to send the master of the process' terminal, if it has one.
    console: Option<PathBuf>,
    report: PathBuf,
}

impl Order {
    fn carry_out(&self) -> Result<i32, String> {
        let builder = ContainerBuilder::new(self.id.clone(), SyscallType::default())
            .with_root_path(&self.state)
            .and_then(ContainerBuilder::validate_id)
            .map_err(|e| chain(&e))?
            .with_console_socket(self.console.as_ref());
        match &self.process {
            None => {
                let init = builder.as_init(&self.bundle).with_systemd(false).with_detach(true);
                let container = init.build().map_err(|e| chain(&e))?;
                container.pid().map(|pid| pid.as_raw()).ok_or_else(|| "the container has no process".to_owned())
            }
            Some(process) => {
                let tenant = builder.as_tenant().with_detach(true).with_process(Some(process));
                tenant.build().map(|pid| pid.as_raw()).map_err(|e| chain(&e))
            }
        }
    }
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Pid(i32),
    Error(String),
}

/// The process' ends of its standard streams.
struct Pipes {
    stdin: Stdio,
    stdout: Stdio,
    stderr: Stdio,
}

impl Pipes {
    /// Makes three pipes, and returns this side's ends and the process'. A process with a terminal needs none.
    fn new(terminal: bool) -> io::Result<(Option<[OwnedFd; 3]>, Self)> {
        if terminal {
            return Ok((None, Self { stdin: Stdio::null(), stdout: Stdio::null(), stderr: Stdio::null() }));
        }
        let (stdin, stdin_end) = io::pipe()?;
        let (stdout_end, stdout) = io::pipe()?;
        let (stderr_end, stderr) = io::pipe()?;
        let theirs = Self { stdin: stdin.into(), stdout: stdout.into(), stderr: stderr.into() };
        Ok((Some([stdin_end.into(), stdout_end.into(), stderr_end.into()]), theirs))
    }
}

async fn read_report(path: &Path) -> io::Result<Outcome> {
    let mut text = Vec::new();
    tokio::fs::File::open(path).await?.take(MAX_REPORT).read_to_end(&mut text).await?;
    serde_json::from_slice(&text).map_err(Into::into)
}

/// The whole chain of causes: the outermost of libcontainer's errors alone says little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text.chars().take(MAX_CAUSE).collect()
}

/// Ends and collects what was left half made: as long as it is there, the container it entered can't end.
fn end_children() {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|number| number.parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(child, Signal::KILL);
        let _ = waitpid(Some(child), WaitOptions::empty());
    }
}

const BAD_ARGUMENTS: u8 = 2;
const NO_REPORT: u8 = 3;
const MAX_REPORT: u64 = 64 << 10;
const MAX_CAUSE: usize = 4096;
/// Far more than a slow processor takes, and far less than callers wait.
const DEADLINE: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_helper_without_an_order_does_nothing() {
        assert_eq!(run_helper([]), BAD_ARGUMENTS);
        assert_eq!(run_helper([OsString::from("{}")]), BAD_ARGUMENTS);
        assert_eq!(run_helper([OsString::from("{}"), OsString::from("{}")]), BAD_ARGUMENTS);
    }

    #[test]
    fn a_helper_reports_why_there_is_no_container() {
        let folder = tempfile::tempdir().unwrap();
        let order = Order {
            id: "c1".into(),
            state: folder.path().into(),
            bundle: folder.path().join("none"),
            process: None,
            console: None,
            report: folder.path().join("report.json"),
        };
        assert_eq!(run_helper([serde_json::to_string(&order).unwrap().into()]), 0);
        let report: serde_json::Value = serde_json::from_slice(&std::fs::read(&order.report).unwrap()).unwrap();
        assert!(report["error"].as_str().unwrap().contains("No such file"), "{report}");
    }

    #[tokio::test]
    async fn a_helper_that_leaves_no_report_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let helper = Helper { program: "/bin/false".into(), state: folder.path().join("state") };
        let result = helper.create(&Id::parse("c1").unwrap(), folder.path(), false).await;
        assert!(matches!(result, Err(Error::NoReport(status)) if status.contains('1')));
        let helper = Helper { program: "/no/such/binary".into(), ..helper };
        assert!(matches!(helper.create(&Id::parse("c1").unwrap(), folder.path(), false).await, Err(Error::Spawn(_))));
    }
}
