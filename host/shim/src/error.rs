//! Why the shim could not do what containerd asked: stage, cause, next step, and the code that containerd acts on.

use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use ttrpc::Code;

/// Why the shim could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("command line: {0}; next: let containerd start this program, or see -help")]
    Arguments(String),
    #[error("{stage}: {path}: {source}; next: check that the file is there and may be used")]
    File { stage: &'static str, path: PathBuf, source: io::Error },
    #[error("start: the server can't be started: {0}; next: check the limits on processes and open files")]
    Spawn(io::Error),
    #[error("start: another server listens on {0}; next: remove the container of this name first")]
    Listening(PathBuf),
    #[error("serve: {0}; next: let containerd start this program")]
    Serve(String),
    #[error("bundle: config.json is not a container's specification: {0}; next: look at what wrote it")]
    Spec(String),
    #[error("configuration: {path}: {reason}; next: correct it, see docs/shim.md")]
    Config { path: PathBuf, reason: String },
    #[error("annotation: {name} {reason}; next: correct the pod's annotations")]
    Annotation { name: String, reason: String },
    #[error("annotation: {name} is not followed: {reason}")]
    NotFollowed { name: String, reason: &'static str },
    #[error("request: {0}")]
    Request(String),
    #[error("{0} not found")]
    NotFound(String),
    #[error("{0} already exists")]
    Exists(String),
    #[error("{0}")]
    State(String),
    #[error("{0} is not offered by virtual machines of this runtime")]
    Unsupported(&'static str),
    #[error("{0}")]
    Size(String),
    #[error("image: {0}")]
    Image(String),
    #[error(
        "image: the user's number stands for a name that is not known on the node any more; next: create the container \
         again, pull its image again, or set runAsUser and runAsGroup"
    )]
    User,
    #[error("volume: {path}: {reason}")]
    Volume { path: PathBuf, reason: String },
    #[error("io: {path}: {source}; next: check that containerd has made it")]
    Io { path: String, source: io::Error },
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error("{request}: {message}")]
    Denied { request: &'static str, message: String },
    #[error("{request}: the guest failed: {message}")]
    Guest { request: &'static str, code: Code, message: String },
    #[error("{request}: the guest did not answer within {seconds} s; next: {next}")]
    Timeout { request: &'static str, seconds: u64, next: &'static str },
    #[error(
        "{request}: the guest's agent closed the connection; next: see the end of the guest's console with \"cocoon doctor\""
    )]
    Closed { request: &'static str },
    #[error(
        "health: the guest has answered nothing for {seconds} s, {cause}; next: see its last lines with \"cocoon doctor\"",
        cause = if *.stopped { "and its machine's process is stopped by a signal" } else { "and the host did not keep it waiting" }
    )]
    Hung { seconds: u64, stopped: bool },
    #[error("the pod's machine has ended: {0}; next: remove the pod")]
    Ended(String),
    #[error("a task of the shim failed: {0}; next: report it as a defect")]
    Task(#[from] tokio::task::JoinError),
}

impl Error {
    /// For `map_err` around work on a file.
    pub(crate) fn file(stage: &'static str, path: impl AsRef<Path>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::File { stage, path: path.as_ref().to_owned(), source }
    }

    /// The error of an agent's answer.
    pub(crate) fn of_request(request: &'static str, limit: Duration, begun: Instant, error: ttrpc::Error) -> Self {
        let seconds = limit.as_secs();
        match error {
            ttrpc::Error::RpcStatus(status) => {
                // The guest's words end up in logs and on terminals.
                let message = status.message().replace(char::is_control, " ");
                match status.code() {
                    Code::PERMISSION_DENIED => Self::Denied { request, message },
                    Code::DEADLINE_EXCEEDED => Self::timeout(request, seconds),
                    code => Self::Guest { request, code, message },
                }
            }
            // Whichever side looks at the clock first says it in its own way.
            ttrpc::Error::Others(_) if !limit.is_zero() && begun.elapsed() >= limit => Self::timeout(request, seconds),
            ttrpc::Error::Others(message) => Self::Guest { request, code: Code::UNKNOWN, message },
            _ => Self::Closed { request },
        }
    }

    fn timeout(request: &'static str, seconds: u64) -> Self {
        let next = match request {
            "CreateContainer" => {
                "raise create_container_timeout, or the annotation \
                 io.katacontainers.config.runtime.create_container_timeout, if the image takes that long"
            }
            _ => "see the end of the guest's console with \"cocoon doctor\"",
        };
        Self::Timeout { request, seconds, next }
    }

    /// Whether the guest's policy refused.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Denied { .. } | Self::Sandbox(sandbox::Error::Denied { .. }))
    }

    /// Its text, as long as anybody is told.
    pub(crate) fn told(&self) -> String {
        let mut text = self.to_string();
        if text.len() > MAX_MESSAGE {
            let end = (0..=MAX_MESSAGE).rev().find(|at| text.is_char_boundary(*at)).unwrap_or_default();
            text.truncate(end);
            text.push_str(" ...");
        }
        text
    }

    /// The code that containerd acts on.
    fn code(&self) -> Code {
        match self {
            Self::NotFound(_) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) | Self::Ended(_) => Code::FAILED_PRECONDITION,
            Self::Request(_) | Self::Size(_) | Self::Spec(_) | Self::Annotation { .. } => Code::INVALID_ARGUMENT,
            Self::Unsupported(_) => Code::UNIMPLEMENTED,
            Self::Denied { .. } | Self::Sandbox(sandbox::Error::Denied { .. }) => Code::PERMISSION_DENIED,
            Self::Timeout { .. } | Self::Sandbox(sandbox::Error::Timeout { .. }) => Code::DEADLINE_EXCEEDED,
            Self::Closed { .. } => Code::UNAVAILABLE,
            Self::Guest { code, .. } => *code,
            _ => Code::UNKNOWN,
        }
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.told()))
    }
}

/// Kubernetes shows it in an event, which has little room.
const MAX_MESSAGE: usize = 4000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_about_troubles_has_these_texts() {
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md"));
        let missing = || io::Error::from_raw_os_error(2);
        let kernel = || "/opt/cocoon/current/share/guest-image/vmlinux".into();
        let machine = |error: hypervisor::Error| Error::Sandbox(error.into());
        let ended = |reason| machine(hypervisor::Error::GuestEnded(Box::new(reason)));
        let panic = |cause: &str| hypervisor::ExitReason {
            status: std::process::ExitStatus::default(),
            kernel_panic: Some(cause.to_owned()),
            stderr: Vec::new(),
            console: Vec::new(),
        };
        let killed = hypervisor::ExitReason {
            status: std::os::unix::process::ExitStatusExt::from_raw(9),
            kernel_panic: None,
            ..panic("")
        };
        let wrong = "initdata: the document on the disk has digest";
        let unruly = "CreateContainerRequest is blocked by policy: rule data.agent_policy.CreateContainerRequest is not \
                      defined, so it is denied by default; next: add the rule to policy.rego in the pod's initdata";
        for error in [
            machine(hypervisor::Error::QemuMissing),
            machine(hypervisor::Error::File { what: "kernel", path: kernel(), source: missing() }),
            machine(hypervisor::Error::KvmUnusable("/dev/kvm is missing".to_owned())),
            machine(hypervisor::Error::TeeWithoutKvm),
            machine(hypervisor::Error::GuestSilent {
                after: Duration::from_secs(60),
                last_line: "random: crng init done".to_owned(),
            }),
            ended(panic("System is deadlocked on memory")),
            ended(panic("VFS: Unable to mount root fs on unknown-block(0,0)")),
            Error::Sandbox(sandbox::Error::Firmware),
            Error::Sandbox(sandbox::Error::Refused(wrong.to_owned())),
            Error::Config {
                path: "/etc/cocoon/configuration.toml".into(),
                reason: "unknown field \"default_memroy\"".to_owned(),
            },
            Error::Annotation { name: crate::annotations::INITDATA.to_owned(), reason: "is no base64".to_owned() },
            Error::Unsupported("the host's network (hostNetwork)"),
            Error::Denied { request: "CreateContainer", message: unruly.to_owned() },
            Error::timeout("CreateContainer", 300),
            Error::Closed { request: "Check" },
            Error::Ended(panic("Out of memory: compulsory panic_on_oom is enabled").to_string()),
            Error::Ended(killed.to_string()),
            Error::Hung { seconds: 180, stopped: false },
            Error::Hung { seconds: 180, stopped: true },
        ] {
            let text = error.told();
            assert!(page.contains(&format!("`{text}`")), "the page lacks: {text}");
            assert!(text.len() < 4096);
        }
    }

    #[test]
    fn a_long_message_is_cut_where_a_character_ends() {
        let error = Error::Denied { request: "CreateContainer", message: "ä".repeat(5000) };
        let ttrpc::Error::RpcStatus(status) = ttrpc::Error::from(error) else { panic!("not a status") };
        assert!(status.message().len() < 4096 && status.message().ends_with("ä ..."));
        assert_eq!(status.code(), Code::PERMISSION_DENIED);
    }
}
