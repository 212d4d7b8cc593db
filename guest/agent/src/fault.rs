//! Why a request fails, and the status code that tells so on the wire.

use std::io;

use ttrpc::Code;

use crate::disks::DiskError;
use crate::id::InvalidId;
use crate::images::ImageError;
use crate::policy::{self, Denial};
use crate::secrets::SecretError;
use crate::{copy, devices, guest, helper, network, sandbox, spec, volumes};

/// A request that was not fulfilled. Its text goes to the host.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error(transparent)]
    Denied(#[from] Denial),
    #[error(transparent)]
    Id(#[from] InvalidId),
    #[error("{0}")]
    Invalid(&'static str),
    #[error("{0} is not there; next: create it first")]
    NotFound(String),
    #[error("{0} is there already; next: remove it first, or use another id")]
    Exists(String),
    #[error("{0}")]
    State(String),
    #[error("{0}")]
    Refused(&'static str),
    #[error("{0} is not implemented by this guest")]
    Unimplemented(&'static str),
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Secret(#[from] SecretError),
    #[error("image {0:?} resolved to {1:?}, which is not a sha256 digest; next: report this as a defect")]
    Digest(String, String),
    #[error("creation was abandoned: its caller is gone")]
    Abandoned,
    #[error(transparent)]
    Spec(#[from] spec::Error),
    #[error(transparent)]
    Sandbox(#[from] sandbox::Error),
    #[error(transparent)]
    Volume(#[from] volumes::Error),
    #[error(transparent)]
    Copy(#[from] copy::Error),
    #[error(transparent)]
    Device(#[from] devices::Error),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Guest(#[from] guest::Error),
    #[error(transparent)]
    Helper(#[from] helper::Error),
    #[error(transparent)]
    Network(#[from] network::Error),
    #[error(transparent)]
    Policy(#[from] policy::Error),
    #[error("{0}: {1}")]
    Io(&'static str, #[source] io::Error),
    #[error("a task of the agent failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl Fault {
    fn code(&self) -> Code {
        match self {
            Self::Denied(_) => Code::PERMISSION_DENIED,
            Self::Id(_) | Self::Invalid(_) | Self::Spec(_) | Self::Policy(_) => Code::INVALID_ARGUMENT,
            Self::Sandbox(sandbox::Error::Folder(_)) => Code::INTERNAL,
            Self::Volume(volumes::Error::Make(..) | volumes::Error::Device(..) | volumes::Error::Disk(..)) => {
                Code::INTERNAL
            }
            Self::Guest(guest::Error::Time) => Code::INVALID_ARGUMENT,
            Self::Guest(guest::Error::NoProbe | guest::Error::NoProgram(_)) => Code::FAILED_PRECONDITION,
            Self::Copy(copy::Error::Write(_)) => Code::INTERNAL,
            Self::Copy(copy::Error::Full) => Code::RESOURCE_EXHAUSTED,
            Self::Sandbox(_) | Self::Volume(_) | Self::Copy(_) => Code::INVALID_ARGUMENT,
            Self::Network(network::Error::Invalid(..)) => Code::INVALID_ARGUMENT,
            Self::NotFound(_) | Self::Network(network::Error::NoLink(_)) => Code::NOT_FOUND,
            Self::Exists(_) => Code::ALREADY_EXISTS,
            Self::State(_) | Self::Refused(_) => Code::FAILED_PRECONDITION,
            Self::Unimplemented(_) => Code::UNIMPLEMENTED,
            Self::Abandoned => Code::CANCELLED,
            Self::Image(_)
            | Self::Secret(_)
            | Self::Digest(..)
            | Self::Device(_)
            | Self::Disk(_)
            | Self::Guest(_)
            | Self::Helper(_)
            | Self::Network(_)
            | Self::Io(..)
            | Self::Task(_) => Code::INTERNAL,
        }
    }
}

impl From<Fault> for ttrpc::Error {
    fn from(fault: Fault) -> Self {
        Self::RpcStatus(ttrpc::get_status(fault.code(), fault))
    }
}
