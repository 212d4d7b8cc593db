//! Makes a container through libcontainer, in a process that was forked for it.

use std::path::PathBuf;

use libcontainer::container::builder::ContainerBuilder;
use libcontainer::oci_spec::runtime::Spec;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::default::DefaultExecutor;
use libcontainer::workload::{Executor, ExecutorError, ExecutorValidationError};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use serde::{Deserialize, Serialize};

use super::fork;

/// The order for a container.
#[derive(Serialize, Deserialize)]
pub(super) struct Container {
    pub(super) id: String,
    /// Where libcontainer keeps its state.
    pub(super) state: PathBuf,
    pub(super) bundle: PathBuf,
    /// Where to send the master of the first process' terminal, if it has one.
    pub(super) console: Option<PathBuf>,
}

impl Container {
    pub(super) fn read(text: &[u8]) -> Result<Self, String> {
        serde_json::from_slice(text).map_err(|e| format!("its order can't be read: {e}"))
    }

    /// Makes it, and returns the number of its first process, which waits to be started. It becomes an orphan with this
    /// process' end.
    pub(super) fn create(&self) -> Result<i32, String> {
        let builder = ContainerBuilder::new(self.id.clone(), SyscallType::default())
            .with_root_path(&self.state)
            .and_then(ContainerBuilder::validate_id)
            .map_err(|e| chain(&e))?
            .with_executor(Program)
            .with_console_socket(self.console.as_ref());
        let created = builder.as_init(&self.bundle).with_systemd(false).with_detach(true).build();
        let number = match &created {
            Ok(container) => container.pid().ok_or_else(|| "the container has no process".to_owned()),
            Err(error) => Err(chain(error)),
        };
        if number.is_err() {
            end_children();
        }
        Ok(number?.as_raw())
    }
}

/// Becomes the container's program as libcontainer does, with the signals that programs expect.
#[derive(Clone)]
struct Program;

impl Executor for Program {
    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        fork::end_on_broken_pipes();
        DefaultExecutor {}.exec(spec)
    }

    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        DefaultExecutor {}.validate(spec)
    }
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

/// Ends and collects what was left half made: as long as it is there, its control group can't be removed.
fn end_children() {
    let own = std::process::id();
    let children = std::fs::read_to_string(format!("/proc/{own}/task/{own}/children")).unwrap_or_default();
    for child in children.split_whitespace().filter_map(|number| number.parse().ok()).filter_map(Pid::from_raw) {
        let _ = kill_process(child, Signal::KILL);
        let _ = waitpid(Some(child), WaitOptions::empty());
    }
}

const MAX_CAUSE: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_can_t_be_made_says_why() {
        let folder = tempfile::tempdir().unwrap();
        let container = Container {
            id: "c1".into(),
            state: folder.path().into(),
            bundle: folder.path().join("none"),
            console: None,
        };
        let cause = container.create().unwrap_err();
        assert!(cause.contains("No such file"), "{cause}");
        assert!(Container::read(b"{}").is_err());
    }
}
