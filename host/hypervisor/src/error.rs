//! What can go wrong with a VM: the stage, the cause, and what to do.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitStatus;
use std::time::Duration;

use crate::console::Console;
use crate::process::QEMU;
use crate::qmp::QmpError;

/// Why a VM could not be launched, or did not come up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// QEMU is not installed.
    #[error("launch: {QEMU} is not installed; next: install the package qemu-system-x86")]
    QemuMissing,
    /// A file of the VM's can't be found.
    #[error("launch: {what} {path}: {source}; next: build or install the guest image")]
    File {
        /// Its part in the VM.
        what: &'static str,
        /// Where it should be.
        path: PathBuf,
        /// Why it can't be used.
        source: io::Error,
    },
    /// A disk's serial can't be shown to the guest as it is.
    #[error("launch: {0:?} is no disk serial; next: use 1 to 20 letters, digits, '-', '_' or '.'")]
    DiskSerial(String),
    /// QEMU could not be started, or its output could not be captured.
    #[error("launch: {QEMU} can't be started: {0}; next: check the limits on processes and open files")]
    Start(#[source] io::Error),
    /// KVM was demanded and does not run guests here.
    #[error(
        "launch: KVM is not usable: {0}; next: check /dev/kvm and nested virtualisation, or use software emulation"
    )]
    KvmUnusable(String),
    /// A TEE was asked for, and the host can't run guests in hardware.
    #[error("launch: a TEE needs KVM; next: run on a host with the TEE, or choose none")]
    TeeWithoutKvm,
    /// The monitor's socket can't be created.
    #[error("launch: can't listen on {path}: {source}; next: remove the file if it is left from another VM")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// QEMU ended before it had built the machine.
    #[error("launch: QEMU refused its command line ({}): {}; next: {}", .0.status, .0.stderr_or_nothing(), .0.after_refusal())]
    Refused(Box<ExitReason>),
    /// QEMU's monitor did not work.
    #[error("launch: {0}; next: check that QEMU is version 7.2 or newer")]
    Monitor(#[source] QmpError),
    /// QEMU did not build the machine in time.
    #[error("launch: QEMU did not build the machine within {0:?}; next: check the load of the host")]
    Slow(Duration),
    /// The VM ended before the guest was ready.
    #[error("boot: the guest did not come up: {0}; next: {next}", next = .0.after_boot())]
    GuestEnded(Box<ExitReason>),
    /// The guest's kernel panicked and did not end the VM.
    #[error("boot: the guest did not come up: kernel panic: {0}; next: {next}", next = after(&[.0]))]
    GuestPanicked(String),
    /// The guest was not ready in time.
    #[error(
        "boot: the guest did not come up within {after:?}, its console says {last_line:?}; next: check the load of the host and the guest image"
    )]
    GuestSilent {
        /// How long it was waited for.
        after: Duration,
        /// The console's most telling line, if any.
        last_line: String,
    },
}

impl Error {
    pub(crate) fn starting(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::NotFound => Self::QemuMissing,
            _ => Self::Start(error),
        }
    }
}

/// How a VM ended.
#[derive(Clone, Debug)]
pub struct ExitReason {
    /// QEMU's exit status. A guest that powers off, reboots or panics ends QEMU with success.
    pub status: ExitStatus,
    /// Why the guest's kernel panicked, if it did.
    pub kernel_panic: Option<String>,
    /// The last lines of QEMU's own output.
    pub stderr: Vec<String>,
    /// The last lines of the guest's console.
    pub console: Vec<String>,
}

impl ExitReason {
    pub(crate) fn stderr_or_nothing(&self) -> String {
        if self.stderr.is_empty() { "it gave no reason".to_owned() } else { self.stderr.join("; ") }
    }
}

impl ExitReason {
    /// What to do about a machine that was not built.
    fn after_refusal(&self) -> &'static str {
        if self.stderr.iter().any(|line| line.contains("is too large")) {
            "give the guest more memory"
        } else if self
            .stderr
            .iter()
            .any(|line| line.contains("Cannot allocate memory") || line.contains("phys-bits too low"))
        {
            "give the pod less memory, or the node more"
        } else {
            "check the guest image, and that QEMU is 7.2 or newer"
        }
    }

    /// What to do about a guest that ended while it booted.
    fn after_boot(&self) -> &'static str {
        if self.status.success() && self.console.is_empty() && self.kernel_panic.is_none() {
            // A kernel that does not fit resets the machine before it has a console.
            return "give the guest more memory, or check that the guest image is whole";
        }
        after(&self.console.iter().chain(&self.kernel_panic).collect::<Vec<_>>())
    }
}

/// What to do about a guest that said this while it booted.
fn after(lines: &[&String]) -> &'static str {
    let said = |words: &str| lines.iter().any(|line| line.contains(words));
    if said("Out of memory") || said("out of memory") || said("deadlocked on memory") || said("write error") {
        "give the guest more memory"
    } else if said("unable to mount root") || said("Unable to mount root") || said("No working init") {
        "check that the initramfs is the guest image's own"
    } else {
        "see the end of its console with \"cocoon doctor\""
    }
}

impl fmt::Display for ExitReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(panic) = &self.kernel_panic {
            return write!(f, "kernel panic: {panic}");
        }
        if self.status.success() {
            f.write_str("the VM was shut down")?;
        } else {
            write!(f, "QEMU ended with {}: {}", self.status, self.stderr_or_nothing())?;
        }
        match Console::telling(self.console.iter().map(String::as_str)) {
            Some(line) => write!(f, " (its console says {line:?})"),
            None => f.write_str(" (its console is empty)"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::process::ExitStatusExt;

    #[test]
    fn an_exit_names_the_most_telling_cause() {
        let off = ExitReason {
            status: ExitStatus::from_raw(0),
            kernel_panic: None,
            stderr: Vec::new(),
            console: vec!["first".into(), "reboot: Power down".into()],
        };
        let crashed =
            ExitReason { status: ExitStatus::from_raw(1 << 8), stderr: vec!["no such device".into()], ..off.clone() };
        let panicked = ExitReason { kernel_panic: Some("Attempted to kill init!".into()), ..off.clone() };
        for (reason, text) in [
            (off, "the VM was shut down (its console says \"reboot: Power down\")"),
            (crashed, "QEMU ended with exit status: 1: no such device (its console says \"reboot: Power down\")"),
            (panicked, "kernel panic: Attempted to kill init!"),
        ] {
            assert_eq!(reason.to_string(), text);
        }
    }

    #[test]
    fn a_panic_has_the_same_next_step_whether_it_ended_the_machine_or_not() {
        let reason = ExitReason {
            status: ExitStatus::from_raw(0),
            kernel_panic: Some("System is deadlocked on memory".to_owned()),
            stderr: Vec::new(),
            console: Vec::new(),
        };
        let panicked = Error::GuestPanicked("System is deadlocked on memory".to_owned()).to_string();
        assert_eq!(panicked, Error::GuestEnded(Box::new(reason)).to_string());
        assert!(panicked.ends_with("next: give the guest more memory"), "{panicked}");
    }

    #[test]
    fn a_guest_that_ran_out_of_memory_is_given_more() {
        let reason = |panic: Option<&str>, console: &[&str]| ExitReason {
            status: ExitStatus::from_raw(0),
            kernel_panic: panic.map(str::to_owned),
            stderr: Vec::new(),
            console: console.iter().copied().map(str::to_owned).collect(),
        };
        for (reason, text) in [
            (
                reason(Some("System is deadlocked on memory"), &[]),
                "kernel panic: System is deadlocked on memory; next: give the guest more memory",
            ),
            (
                reason(None, &["Initramfs unpacking failed: write error", "reboot: Power down"]),
                "the VM was shut down (its console says \"Initramfs unpacking failed: write error\"); next: give the guest more memory",
            ),
            (
                reason(None, &[]),
                "the VM was shut down (its console is empty); next: give the guest more memory, or check that the guest image is whole",
            ),
            (
                reason(None, &["hello"]),
                "the VM was shut down (its console says \"hello\"); next: see the end of its console with \"cocoon doctor\"",
            ),
        ] {
            let error = Error::GuestEnded(Box::new(reason)).to_string();
            assert_eq!(error, format!("boot: the guest did not come up: {text}"));
        }
    }
}
