//! Where and as whom QEMU runs, so that a guest that breaks out of it finds as little as possible.

use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Where and as whom QEMU runs. The default is: as its owner does.
#[derive(Clone, Debug, Default)]
pub struct Confinement {
    /// The network namespace, open.
    pub network_namespace: Option<Arc<OwnedFd>>,
    /// `cgroup.procs` of each cgroup, open for writing: on version 1 there is one for each controller.
    pub cgroups: Vec<Arc<OwnedFd>>,
    /// The user, if the owner is root.
    pub user: Option<User>,
}

/// Numbers of a user, who needs no name.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    /// User and group id.
    pub id: u32,
    /// Further groups, such as that of `/dev/kvm`.
    pub groups: Vec<u32>,
}
