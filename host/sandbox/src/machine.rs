//! A sandbox's machine: QEMU on this host, or one that an adaptor has made elsewhere.

use std::fmt;

use hypervisor::{AttachedDisk, DiskConfig, ExitReason, Vm};
use tokio::task::JoinHandle;
use vsock_backend::Backend;

use crate::Error;
use crate::remote::Remote;

/// A sandbox's machine. Dropping one that is here kills it.
pub(crate) enum Machine {
    /// QEMU on this host.
    Here {
        // In the order in which they must end: the machine, then what it is connected to.
        vm: Box<Vm>,
        _backend: Option<Backend>,
        watcher: JoinHandle<()>,
    },
    /// An adaptor's.
    Elsewhere(Remote),
}

/// How a sandbox's machine ended.
#[derive(Clone, Debug)]
pub enum End {
    /// QEMU has ended.
    Exited(ExitReason),
    /// QEMU was killed since the pod may not use more memory of the node.
    Starved(ExitReason),
    /// The adaptor has closed the agent's connection, which is all that this host knows of a machine elsewhere.
    HungUp,
}

impl Machine {
    /// QEMU's process id, if it is here.
    pub(crate) fn pid(&self) -> Option<u32> {
        match self {
            Self::Here { vm, .. } => Some(vm.pid()),
            Self::Elsewhere(_) => None,
        }
    }

    /// How it ended, once it has.
    pub(crate) async fn ended(&self) -> End {
        match self {
            Self::Here { vm, .. } => End::Exited(vm.exited().await),
            Self::Elsewhere(remote) => {
                remote.hung_up().await;
                End::HungUp
            }
        }
    }

    /// Gives it a further disk.
    pub(crate) async fn attach_disk(&self, disk: DiskConfig) -> Result<AttachedDisk, Error> {
        match self {
            Self::Here { vm, .. } => Ok(vm.attach_disk(disk).await?),
            Self::Elsewhere(_) => Err(Error::DiskElsewhere(disk.path)),
        }
    }

    /// Takes a disk from it.
    pub(crate) async fn detach_disk(&self, disk: AttachedDisk) -> Result<(), Error> {
        match self {
            Self::Here { vm, .. } => Ok(vm.detach_disk(disk).await?),
            // It has none.
            Self::Elsewhere(_) => Ok(()),
        }
    }
}

impl End {
    /// What to do about it.
    pub(crate) fn next(&self) -> &'static str {
        match self {
            Self::Exited(_) => "see the end of its console with \"cocoon doctor\"",
            Self::Starved(_) => "raise the pod's limit of memory, or the overhead in its RuntimeClass",
            Self::HungUp => "look at the adaptor's log, and at the machine where it is",
        }
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exited(reason) => reason.fmt(f),
            Self::Starved(reason) => write!(f, "out of memory, by the pod's limit on the node: {reason}"),
            Self::HungUp => {
                f.write_str("its adaptor closed the agent's connection: the machine or the adaptor has ended")
            }
        }
    }
}
