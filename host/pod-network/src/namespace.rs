//! The namespace of a pod, and its connection to the pod's machine.

use std::fs::File;
use std::future::Future;
use std::io;
use std::net::TcpListener;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;

use nix::sched::{CloneFlags, setns};
use rtnetlink::packet_route::link::LinkMessage;
use wire_ttrpc::types::{ARPNeighbor, Interface, Route};

use crate::bpf::Steering;
use crate::loopback::{self, Loopback, Parts};
use crate::netlink::Netlink;
use crate::survey::Survey;
use crate::{Error, macvtap, tap};

/// A pod's network namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    path: PathBuf,
    file: Arc<OwnedFd>,
}

/// How a guest's device takes an interface's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Model {
    /// A tap, and redirections between it and the interface. Works with every kind of interface.
    Redirect,
    /// A macvtap link on the interface, which takes all of its traffic: one hop less.
    Macvtap,
}

/// A pod's network, in the hands of whoever gives it to the pod's machine.
#[derive(Debug, Default)]
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

    /// Makes a tap for each interface that has an address, which takes the interface's place.
    ///
    /// # Errors
    /// Any of [`Error`]; the namespace is then as it was.
    pub async fn connect(&self, model: Model) -> Result<Connection, Error> {
        let namespace = self.clone();
        // Entering a namespace is for a thread's whole life, so it is one of its own, which another waits for.
        let connecting = tokio::task::spawn_blocking(move || namespace.inside(|netlink| connect(netlink, model)));
        connecting.await.map_err(|e| Error::Netlink(io::Error::other(e)))?
    }

    /// Takes all connections to the namespace's 127.0.0.1.
    ///
    /// # Errors
    /// [`Error::Loopback`] where the kernel has no way to do so, and others of [`Error`].
    pub async fn loopback(&self) -> Result<Loopback, Error> {
        let namespace = self.clone();
        let taking = tokio::task::spawn_blocking(move || {
            namespace.inside(async |netlink: Netlink| {
                let failed = |step| move |source| Error::Loopback { step, source };
                let addresses = Survey::take(&netlink).await?.addresses();
                let listener = TcpListener::bind(loopback::ANY_PORT).map_err(failed("socket"))?;
                let steering = Steering::begin(&*namespace.file, &listener);
                let steering = steering.map_err(|(step, source)| Error::Loopback { step, source })?;
                Ok(Parts { listener, addresses, steering })
            })
        });
        let parts = taking.await.map_err(|e| Error::Netlink(io::Error::other(e)))??;
        Loopback::of(parts).map_err(|source| Error::Loopback { step: "socket", source })
    }

    /// Takes away what [`connect`](Self::connect) has left in the namespace. Taps are their holders' matter.
    ///
    /// # Errors
    /// [`Error::Namespace`], [`Error::Netlink`] and [`Error::Survey`].
    pub fn disconnect(&self) -> Result<(), Error> {
        self.inside(async |netlink: Netlink| disconnect(&netlink).await)
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

async fn connect(netlink: Netlink, model: Model) -> Result<Connection, Error> {
    // What a killed sandbox left would be in the way.
    disconnect(&netlink).await?;
    let survey = Survey::take(&netlink).await?;
    let mut links = Vec::new();
    for (position, link) in survey.links().enumerate() {
        let name = format!("tap{position}{OURS}");
        let connected = match model {
            Model::Redirect => redirect(&netlink, link, &name).await,
            Model::Macvtap => take_over(&netlink, link, &name).await,
        };
        match connected {
            Ok(device) => links.push(Link { interface: survey.interface(link), device: Arc::new(device) }),
            Err(error) => {
                drop(links);
                if let Err(error) = disconnect(&netlink).await {
                    tracing::debug!(%error, "the namespace stays as it is");
                }
                return Err(error);
            }
        }
    }
    Ok(Connection { links, routes: survey.routes(), neighbours: survey.neighbours() })
}

async fn disconnect(netlink: &Netlink) -> Result<(), Error> {
    let survey = Survey::take(netlink).await?;
    // Also of those that have lost their address in the meantime.
    for link in survey.ethernet() {
        if Survey::name(link).ends_with(OURS) {
            netlink.remove_link(link.header.index).await;
        } else {
            netlink.remove_ingress(link.header.index).await;
        }
    }
    Ok(())
}

async fn redirect(netlink: &Netlink, link: &LinkMessage, name: &str) -> Result<OwnedFd, Error> {
    let refused = refused(link);
    let device = tap::create(name).map_err(|source| Error::Tap { link: Survey::name(link).to_owned(), source })?;
    let tap = netlink.index_of(name).await.map_err(refused("finding the tap"))?;
    netlink.bring_up(tap, Survey::mtu(link)).await.map_err(refused("bringing the tap up"))?;
    for (from, to) in [(link.header.index, tap), (tap, link.header.index)] {
        netlink.add_ingress(from).await.map_err(refused("queueing discipline"))?;
        netlink.redirect(from, to).await.map_err(refused("redirection"))?;
    }
    Ok(device)
}

async fn take_over(netlink: &Netlink, link: &LinkMessage, name: &str) -> Result<OwnedFd, Error> {
    let refused = refused(link);
    netlink.add_macvtap(name, link.header.index).await.map_err(refused("macvtap link"))?;
    let tap = netlink.index_of(name).await.map_err(refused("finding the macvtap link"))?;
    netlink.bring_up(tap, Survey::mtu(link)).await.map_err(refused("bringing the macvtap link up"))?;
    macvtap::open(name).map_err(|source| Error::Tap { link: Survey::name(link).to_owned(), source })
}

fn refused(link: &LinkMessage) -> impl Fn(&'static str) -> Box<dyn FnOnce(rtnetlink::Error) -> Error> {
    let link = Survey::name(link).to_owned();
    move |step| {
        let link = link.clone();
        Box::new(move |source| Error::Connect { link, step, source })
    }
}

/// What the names of our links end with.
const OURS: &str = "_cocoon";
/// The namespace of this thread.
const OWN: &str = "/proc/thread-self/ns/net";
