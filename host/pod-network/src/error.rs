//! Why a pod's network can't be handed to its machine.

use std::io;
use std::path::PathBuf;

/// Why a pod's network can't be handed to its machine.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace can't be opened or entered.
    #[error("network: the namespace {path} can't be entered: {source}; next: check that the pod's network was set up")]
    Namespace {
        /// Where it is.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The namespace is the node's own.
    #[error(
        "network: {path} is the node's own network, which a guest can't share; next: run the pod without hostNetwork"
    )]
    HostNetwork {
        /// Where it is.
        path: PathBuf,
    },
    /// There is no socket to the kernel, or no thread to use it.
    #[error("network: the kernel can't be asked: {0}; next: check the limits on processes and open files")]
    Netlink(#[source] io::Error),
    /// The kernel can't show what the namespace has.
    #[error("network: the pod's {what} can't be read: {source}")]
    Survey {
        /// Links, addresses, routes or neighbours.
        what: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// A tap can't be made.
    #[error(
        "network: no tap device for {link}: {source}; next: check that the kernel has tun, or macvtap, and that this program may make and open devices"
    )]
    Tap {
        /// The interface that it is for.
        link: String,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refuses to connect a tap and an interface.
    #[error(
        "network: {link} can't be connected to the guest ({step}): {source}; next: check that the kernel has sch_ingress, cls_u32 and act_mirred, or macvtap"
    )]
    Connect {
        /// The interface.
        link: String,
        /// What was refused.
        step: &'static str,
        /// What the kernel said.
        source: rtnetlink::Error,
    },
    /// The kernel does not hand over what connects to the loopback interface.
    #[error(
        "network: connections to the pod's loopback interface can't be taken ({step}): {source}; next: check that the kernel is 5.9 or newer and has BPF_SYSCALL"
    )]
    Loopback {
        /// What was refused.
        step: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
}
