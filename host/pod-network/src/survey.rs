//! What a namespace has: links, addresses, routes, neighbours, in the form in which a guest is told.

use std::net::IpAddr;

use futures::TryStreamExt as _;
use protobuf::EnumOrUnknown;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressMessage};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteType,
};
use wire_ttrpc::types::{ARPNeighbor, IPAddress, IPFamily, Interface, Route};

use crate::Error;
use crate::netlink::Netlink;

/// All of a namespace at one moment.
pub(crate) struct Survey {
    links: Vec<LinkMessage>,
    addresses: Vec<AddressMessage>,
    routes: Vec<RouteMessage>,
    neighbours: Vec<NeighbourMessage>,
}

impl Survey {
    pub(crate) async fn take(netlink: &Netlink) -> Result<Self, Error> {
        let failed = |what| move |source| Error::Survey { what, source };
        let handle = netlink.handle();
        let mut links: Vec<LinkMessage> = handle.link().get().execute().try_collect().await.map_err(failed("links"))?;
        let addresses = handle.address().get().execute().try_collect().await.map_err(failed("addresses"))?;
        let neighbours = handle.neighbours().get().execute().try_collect().await.map_err(failed("neighbours"))?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessageBuilder::<IpAddr>::new().build();
            query.header.address_family = family;
            let found: Vec<_> = handle.route().get(query).execute().try_collect().await.map_err(failed("routes"))?;
            routes.extend(found);
        }
        links.sort_by_key(|link| link.header.index);
        Ok(Self { links, addresses, routes, neighbours })
    }

    /// All links with an Ethernet address.
    pub(crate) fn ethernet(&self) -> impl Iterator<Item = &LinkMessage> {
        self.links.iter().filter(|link| !link.header.flags.contains(LinkFlags::Loopback) && hardware(link).is_some())
    }

    /// The links that a guest gets: those with an address of their own.
    pub(crate) fn links(&self) -> impl Iterator<Item = &LinkMessage> {
        let has_address =
            |link: &&LinkMessage| self.addresses.iter().any(|address| address.header.index == link.header.index);
        self.ethernet().filter(has_address)
    }

    /// The addresses of all of them.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let of_link = |link: &LinkMessage| {
            let index = link.header.index;
            self.addresses.iter().filter(move |it| it.header.index == index).filter_map(own_address)
        };
        self.links().flat_map(of_link).collect()
    }

    pub(crate) fn name(link: &LinkMessage) -> &str {
        let name = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::IfName(name) => Some(name.as_str()),
            _ => None,
        });
        name.unwrap_or_default()
    }

    pub(crate) fn mtu(link: &LinkMessage) -> u32 {
        let mtu = link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::Mtu(mtu) => Some(*mtu),
            _ => None,
        });
        mtu.unwrap_or(ETHERNET_MTU)
    }

    pub(crate) fn interface(&self, link: &LinkMessage) -> Interface {
        let of_link = self.addresses.iter().filter(|address| address.header.index == link.header.index);
        Interface {
            device: Self::name(link).to_owned(),
            name: Self::name(link).to_owned(),
            IPAddresses: of_link.filter_map(address).collect(),
            mtu: Self::mtu(link).into(),
            hwAddr: hardware(link).map(print_hardware).unwrap_or_default(),
            ..Interface::default()
        }
    }

    /// The main table's routes through the guest's links, but for those that come with their addresses.
    pub(crate) fn routes(&self) -> Vec<Route> {
        let wanted = |route: &&RouteMessage| {
            route.header.table == RouteHeader::RT_TABLE_MAIN
                && route.header.kind == RouteType::Unicast
                && route.header.protocol != RouteProtocol::Kernel
        };
        self.routes.iter().filter(wanted).filter_map(|route| self.route(route)).collect()
    }

    /// The permanent neighbours on the guest's links: the others the guest finds itself.
    pub(crate) fn neighbours(&self) -> Vec<ARPNeighbor> {
        let permanent = |entry: &&NeighbourMessage| entry.header.state == NeighbourState::Permanent;
        self.neighbours.iter().filter(permanent).filter_map(|entry| self.neighbour(entry)).collect()
    }

    fn route(&self, message: &RouteMessage) -> Option<Route> {
        let v6 = message.header.address_family == AddressFamily::Inet6;
        let mut route = Route {
            scope: u8::from(message.header.scope).into(),
            family: EnumOrUnknown::new(if v6 { IPFamily::v6 } else { IPFamily::v4 }),
            // Whether a gateway is out of reach of any address; the others are the kernel's notes.
            flags: message.header.flags.bits() & ONLINK,
            ..Route::default()
        };
        for attribute in &message.attributes {
            match attribute {
                RouteAttribute::Destination(address) => {
                    route.dest = format!("{}/{}", text(address)?, message.header.destination_prefix_length);
                }
                RouteAttribute::Gateway(address) => route.gateway = text(address)?,
                RouteAttribute::PrefSource(address) => route.source = text(address)?,
                RouteAttribute::Oif(index) => route.device = self.link_name(*index)?,
                RouteAttribute::Metrics(metrics) => {
                    route.mtu = metrics.iter().find_map(mtu_metric).unwrap_or_default();
                }
                _ => {}
            }
        }
        if route.device.is_empty() {
            tracing::warn!(?message, "a route with several ways, which a guest can't be told");
            return None;
        }
        Some(route)
    }

    fn neighbour(&self, entry: &NeighbourMessage) -> Option<ARPNeighbor> {
        let mut neighbour = ARPNeighbor {
            device: self.link_name(entry.header.ifindex)?,
            state: u16::from(entry.header.state).into(),
            flags: entry.header.flags.bits().into(),
            ..ARPNeighbor::default()
        };
        for attribute in &entry.attributes {
            match attribute {
                NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => {
                    neighbour.toIPAddress = Some(ip_address(IpAddr::V4(*ip), 32)).into();
                }
                NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => {
                    neighbour.toIPAddress = Some(ip_address(IpAddr::V6(*ip), 128)).into();
                }
                NeighbourAttribute::LinkLayerAddress(octets) => neighbour.lladdr = print_hardware(octets),
                _ => {}
            }
        }
        (neighbour.toIPAddress.is_some() && !neighbour.lladdr.is_empty()).then_some(neighbour)
    }

    /// The name of a link, if it is one of the guest's.
    fn link_name(&self, index: u32) -> Option<String> {
        self.links().find(|link| link.header.index == index).map(|link| Self::name(link).to_owned())
    }
}

/// An address that the guest is to have.
fn address(message: &AddressMessage) -> Option<IPAddress> {
    own_address(message).map(|address| ip_address(address, message.header.prefix_len))
}

/// An address but for a link-local one, which the guest makes itself, of the same hardware address.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    // IFA_LOCAL is the own address where IFA_ADDRESS is that of the other end.
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    let any = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Address(address) => Some(*address),
        _ => None,
    });
    let address = local.or(any)?;
    let link_local = matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    (!link_local).then_some(address)
}

fn ip_address(address: IpAddr, prefix: u8) -> IPAddress {
    IPAddress {
        family: EnumOrUnknown::new(if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 }),
        address: address.to_string(),
        mask: prefix.to_string(),
        ..IPAddress::default()
    }
}

fn text(address: &RouteAddress) -> Option<String> {
    match address {
        RouteAddress::Inet(address) => Some(address.to_string()),
        RouteAddress::Inet6(address) => Some(address.to_string()),
        _ => None,
    }
}

fn mtu_metric(metric: &RouteMetric) -> Option<u32> {
    match metric {
        RouteMetric::Mtu(mtu) => Some(*mtu),
        _ => None,
    }
}

fn hardware(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(octets) if octets.len() == 6 => Some(octets.as_slice()),
        _ => None,
    })
}

fn print_hardware(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

const ETHERNET_MTU: u32 = 1500;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;
