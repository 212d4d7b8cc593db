//! What a guest is told when it has given its first answer: its network, and that it is a sandbox.

use std::time::Instant;

use pod_network::Connection;
use wire_ttrpc::agent::{
    ARPNeighbors, AddARPNeighborsRequest, CreateSandboxRequest, Routes, Storage, UpdateInterfaceRequest,
    UpdateRoutesRequest,
};
use wire_ttrpc::types::{ARPNeighbor, IPAddress, Interface, Route};

use crate::{Agent, Error, Event, SandboxConfig};

/// A guest's network, as its agent is told.
pub(crate) struct GuestNetwork {
    interfaces: Vec<Interface>,
    routes: Vec<Route>,
    neighbours: Vec<ARPNeighbor>,
    resolver: Vec<String>,
}

impl GuestNetwork {
    /// That of QEMU's user network, where all addresses are always the same.
    pub(crate) fn user() -> Self {
        let address = IPAddress { address: ADDRESS.to_owned(), mask: PREFIX.to_owned(), ..IPAddress::default() };
        let interface = Interface {
            device: "eth0".to_owned(),
            name: "eth0".to_owned(),
            IPAddresses: vec![address],
            mtu: 1500,
            hwAddr: hypervisor::USER_MAC.to_owned(),
            ..Interface::default()
        };
        Self {
            interfaces: vec![interface],
            routes: vec![Route { device: "eth0".to_owned(), gateway: GATEWAY.to_owned(), ..Route::default() }],
            neighbours: Vec::new(),
            resolver: vec![format!("nameserver {RESOLVER}")],
        }
    }

    /// None that the guest has to be told of: somebody else gives it its addresses.
    pub(crate) fn none() -> Self {
        Self { interfaces: Vec::new(), routes: Vec::new(), neighbours: Vec::new(), resolver: Vec::new() }
    }

    /// That of a pod's namespace, which has no resolver of its own.
    pub(crate) fn of(connection: Connection) -> Self {
        Self {
            interfaces: connection.links.into_iter().map(|link| link.interface).collect(),
            routes: connection.routes,
            neighbours: connection.neighbours,
            resolver: Vec::new(),
        }
    }
}

/// Gives the guest its addresses and its sandbox, side by side: neither needs the other.
pub(crate) async fn set_up(agent: &Agent, config: &SandboxConfig, mut network: GuestNetwork) -> Result<(), Error> {
    let request = CreateSandboxRequest {
        hostname: config.hostname.clone().unwrap_or_else(|| config.name.to_string()),
        sandbox_id: config.name.to_string(),
        dns: config.dns.clone().unwrap_or_else(|| std::mem::take(&mut network.resolver)),
        storages: shared_memory(config.shm_size).into_iter().collect(),
        sandbox_pidns: config.shared_pid_namespace,
        ..CreateSandboxRequest::default()
    };
    let connected = async {
        connect(agent, network).await?;
        config.timeline.note(Event::Networked, Instant::now());
        Ok(())
    };
    let created = async {
        agent.create_sandbox(request).await?;
        config.timeline.note(Event::SandboxReady, Instant::now());
        Ok(())
    };
    tokio::try_join!(connected, created).map(drop)
}

/// Gives the guest its addresses, neighbours and routes, in this order.
async fn connect(agent: &Agent, network: GuestNetwork) -> Result<(), Error> {
    for interface in network.interfaces {
        let request = UpdateInterfaceRequest { interface: Some(interface).into(), ..UpdateInterfaceRequest::default() };
        agent.update_interface(request).await?;
    }
    if !network.neighbours.is_empty() {
        let neighbours = ARPNeighbors { ARPNeighbors: network.neighbours, ..ARPNeighbors::default() };
        let request =
            AddARPNeighborsRequest { neighbors: Some(neighbours).into(), ..AddARPNeighborsRequest::default() };
        match agent.add_arp_neighbors(request).await {
            Ok(_) => {}
            // A guest that can't be told, or does not want to be, finds its neighbours itself.
            Err(error @ (Error::Unimplemented { .. } | Error::Denied { .. })) => {
                tracing::warn!(%error, "the guest is not told of the pod's neighbours");
            }
            Err(error) => return Err(error),
        }
    }
    if !network.routes.is_empty() {
        let routes = Routes { Routes: network.routes, ..Routes::default() };
        let request = UpdateRoutesRequest { routes: Some(routes).into(), ..UpdateRoutesRequest::default() };
        agent.update_routes(request).await?;
    }
    Ok(())
}

/// The pod's `/dev/shm`.
fn shared_memory(size: u64) -> Option<Storage> {
    let options = ["noexec", "nosuid", "nodev", "mode=1777"].map(str::to_owned).into_iter();
    (size > 0).then(|| Storage {
        driver: "ephemeral".to_owned(),
        source: "shm".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: options.chain([format!("size={size}")]).collect(),
        mount_point: "/run/kata-containers/sandbox/shm".to_owned(),
        ..Storage::default()
    })
}

/// QEMU's user network always has these addresses.
const ADDRESS: &str = "10.0.2.15";
const PREFIX: &str = "24";
const GATEWAY: &str = "10.0.2.2";
const RESOLVER: &str = "10.0.2.3";
