//! How far a process is.

use std::time::SystemTime;

use containerd_shim_protos::api::Status;

/// How far a process is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Phase {
    /// It waits for its start.
    Created,
    /// It runs.
    Running,
    /// It is frozen.
    Paused,
    /// It is over.
    Ended(Exit),
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Exit {
    /// Its exit code, or 128 and the number of the signal that ended it.
    pub(crate) status: u32,
    /// When.
    pub(crate) at: SystemTime,
}

impl Exit {
    pub(crate) fn now(status: u32) -> Self {
        Self { status, at: SystemTime::now() }
    }
}

impl Phase {
    pub(crate) fn exit(self) -> Option<Exit> {
        match self {
            Self::Ended(exit) => Some(exit),
            _ => None,
        }
    }

    /// containerd's word for it.
    pub(crate) fn status(self) -> Status {
        match self {
            Self::Created => Status::CREATED,
            Self::Running => Status::RUNNING,
            Self::Paused => Status::PAUSED,
            Self::Ended(_) => Status::STOPPED,
        }
    }
}
