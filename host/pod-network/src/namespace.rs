//! The namespace of a pod, and its connection to the pod's machine.

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::LinkMessage;
use wire_ttrpc::types::{ARPNeighbor, Interface, Route};

use crate::netlink::Netlink;
use crate::survey::Survey;
use crate::{Error, tap};

/// A pod's network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<OwnedFd>,
}

/// A pod's network, in the hands of whoever gives it to the pod's machine.
#[derive(Debug)]
pub struct Connection {
    /// Interfaces in the order of the namespace.
    pub links: Vec<Link>,
    /// Routes through these interfaces, without those that the guest's kernel makes itself.
    pub routes: Vec<Route>,
    /// Neighbours that somebody set.
    pub neighbours: Vec<ARPNeighbor>,
}

/// One interface.
#[derive(Debug)]
pub struct Link {
    /// What the guest is to make of its device.
    pub interface: Interface,
    /// The tap device whose other end is the guest's.
    pub device: Arc<OwnedFd>,
}

impl Namespace {
    /// Opens the namespace at `path`, which stays open whatever becomes of the path.
    ///
    /// # Errors
    /// [`Error::Namespace`], or [`Error::HostNetwork`] if this process is in it.
    pub fn open(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Namespace { path: path.to_owned(), source };
        let file = File::open(path).map_err(failed)?;
        let (own, other) = (std::fs::metadata(OWN).map_err(failed)?, file.metadata().map_err(failed)?);
        if (own.dev(), own.ino()) == (other.dev(), other.ino()) {
            return Err(Error::HostNetwork { path: path.to_owned() });
        }
        Ok(Self { path: path.to_owned(), file: Arc::new(file.into()) })
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open namespace.
    pub fn descriptor(&self) -> Arc<OwnedFd> {
        self.file.clone()
    }

    /// Makes a tap for each interface that has an address, and redirects what arrives at one to the other.
    ///
    /// # Errors
    /// Any of [`Error`]; the namespace is then as it was.
    pub async fn connect(&self) -> Result<Connection, Error> {
        let namespace = self.clone();
        // Entering a namespace is for a thread's whole life, so it is one of its own, which another waits for.
        let connecting = tokio::task::spawn_blocking(move || namespace.inside(connect));
        connecting.await.map_err(|e| Error::Netlink(io::Error::other(e)))?
    }

    /// Takes away what [`connect`](Self::connect) has left on the pod's interfaces. The taps are their holders' matter.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Netlink`] and [`Error::Survey`].
    pub fn disconnect(&self) -> Result<(), Error> {
        self.inside(async |netlink: Netlink| {
            let survey = Survey::take(&netlink).await?;
            // Also of those that have lost their address in the meantime.
            for link in survey.ethernet() {
                netlink.remove_ingress(link.header.index).await;
            }
            Ok(())
        })
    }

    /// Works with the kernel on a thread that is in the namespace.
    fn inside<T: Send, F: Future<Output = Result<T, Error>>>(
        &self,
        work: impl FnOnce(Netlink) -> F + Send,
    ) -> Result<T, Error> {
        let work = || {
            setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET)
                .map_err(|errno| Error::Namespace { path: self.path.clone(), source: errno.into() })?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Error::Netlink)?;
            runtime.block_on(async { work(Netlink::open()?).await })
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("pod-network".to_owned()).spawn_scoped(scope, work);
            let outcome = thread.map_err(Error::Netlink)?.join();
            outcome.unwrap_or_else(|_| Err(Error::Netlink(io::Error::other("its thread panicked"))))
        })
    }
}

async fn connect(netlink: Netlink) -> Result<Connection, Error> {
    let survey = Survey::take(&netlink).await?;
    let mut links = Vec::new();
    for (position, link) in survey.links().enumerate() {
        match connect_link(&netlink, link, position).await {
            Ok(device) => links.push(Link { interface: survey.interface(link), device: Arc::new(device) }),
            Err(error) => {
                // The taps that exist are closed with `links`.
                for link in survey.links().take(position + 1) {
                    netlink.remove_ingress(link.header.index).await;
                }
                return Err(error);
            }
        }
    }
    Ok(Connection { links, routes: survey.routes(), neighbours: survey.neighbours() })
}

async fn connect_link(netlink: &Netlink, link: &LinkMessage, position: usize) -> Result<OwnedFd, Error> {
    let name = Survey::name(link).to_owned();
    let refused = |step| move |source| Error::Connect { link: name.clone(), step, source };
    let tap_name = format!("tap{position}_cocoon");
    let device = tap::create(&tap_name).map_err(|source| Error::Tap { link: Survey::name(link).to_owned(), source })?;
    let tap = netlink.index_of(&tap_name).await.map_err(refused.clone()("finding the tap"))?;
    netlink.bring_up(tap, Survey::mtu(link)).await.map_err(refused.clone()("bringing the tap up"))?;
    for (from, to) in [(link.header.index, tap), (tap, link.header.index)] {
        netlink.add_ingress(from).await.map_err(refused.clone()("queueing discipline"))?;
        netlink.redirect(from, to).await.map_err(refused.clone()("redirection"))?;
    }
    Ok(device)
}

/// The namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";
