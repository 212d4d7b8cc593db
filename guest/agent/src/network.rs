//! The guest's interfaces and routes, set as the host asks: they carry nothing that is trusted.

mod neighbors;

use std::net::IpAddr;

use futures::TryStreamExt;
use protobuf::EnumOrUnknown;
use rtnetlink::packet_route::AddressFamily;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags};
use rtnetlink::packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, RouteMessageBuilder};
use wire_ttrpc::types::{IPAddress, IPFamily, Interface, Route};

/// Brings up the loopback interface.
///
/// # Errors
/// [`Error`] where the kernel refuses.
pub async fn bring_up_loopback() -> Result<(), Error> {
    let network = Network::open()?;
    network.0.link().set(LinkMessageBuilder::<LinkUnspec>::new().index(LOOPBACK).up().build()).execute().await?;
    Ok(())
}

/// A connection to the kernel. Its other half lives in a task that ends with it.
pub(crate) struct Network(Handle);

impl Network {
    pub(crate) fn open() -> Result<Self, Error> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::Socket)?;
        tokio::spawn(connection);
        Ok(Self(handle))
    }

    /// Gives the interface with the wanted hardware address its name, addresses and MTU, and brings it up.
    pub(crate) async fn update_interface(&self, wanted: &Interface) -> Result<(), Error> {
        let hardware = hardware_address(&wanted.hwAddr)?;
        let name = interface_name(&wanted.name)?;
        let addresses = wanted.IPAddresses.iter().map(parse_address).collect::<Result<Vec<_>, _>>()?;
        let mtu = match u32::try_from(wanted.mtu) {
            Ok(0) => None,
            Ok(mtu) if (MIN_MTU..=MAX_MTU).contains(&mtu) => Some(mtu),
            _ => return Err(Error::Invalid("MTU", wanted.mtu.to_string())),
        };
        let links: Vec<LinkMessage> = self.0.link().get().execute().try_collect().await?;
        let link = links
            .iter()
            .find(|link| hardware_of(link) == Some(&hardware))
            .ok_or_else(|| Error::NoLink(wanted.hwAddr.clone()))?;
        let index = link.header.index;

        let mut changes = LinkMessageBuilder::<LinkUnspec>::new().index(index);
        if name_of(link) != Some(name) {
            // Only an interface that is down can be renamed, and only to a name that is free.
            self.set(LinkMessageBuilder::<LinkUnspec>::new().index(index).down().build()).await?;
            if let Some(other) = links.iter().find(|other| name_of(other) == Some(name)) {
                let aside = format!("aside{}", other.header.index);
                self.set(LinkMessageBuilder::<LinkUnspec>::new().index(other.header.index).down().name(aside).build())
                    .await?;
            }
            changes = changes.name(name);
        }
        if let Some(mtu) = mtu {
            changes = changes.mtu(mtu);
        }
        self.set(changes.build()).await?;
        for (address, prefix) in addresses {
            let mut request = self.0.address().add(index, address, prefix);
            if address.is_ipv6() {
                // Whoever gave the pod its address has looked for duplicates: the guest would answer 2 s late.
                request.message_mut().header.flags |= AddressHeaderFlags::Nodad;
            }
            ignoring_exists(request.execute().await)?;
        }
        self.set(LinkMessageBuilder::<LinkUnspec>::new().index(index).up().build()).await
    }

    /// Adds routes; those without a gateway first, since the others may need them.
    pub(crate) async fn update_routes(&self, wanted: &[Route]) -> Result<(), Error> {
        let (direct, through): (Vec<_>, Vec<_>) = wanted.iter().partition(|route| route.gateway.is_empty());
        for route in direct.into_iter().chain(through) {
            let name = interface_name(&route.device)?;
            let link = self.0.link().get().match_name(name).execute().try_next().await;
            let link = link.ok().flatten().ok_or_else(|| Error::NoLink(name.to_owned()))?;
            ignoring_exists(self.0.route().add(route_message(route, link.header.index)?).replace().execute().await)?;
        }
        Ok(())
    }

    /// All interfaces with their addresses.
    pub(crate) async fn interfaces(&self) -> Result<Vec<Interface>, Error> {
        let links: Vec<LinkMessage> = self.0.link().get().execute().try_collect().await?;
        let addresses: Vec<_> = self.0.address().get().execute().try_collect().await?;
        let interface = |link: &LinkMessage| {
            let of_link = addresses.iter().filter(|address| address.header.index == link.header.index);
            let addresses = of_link.filter_map(|message| {
                let address = message.attributes.iter().find_map(|attribute| match attribute {
                    AddressAttribute::Address(address) => Some(*address),
                    _ => None,
                })?;
                Some(IPAddress {
                    family: family(address),
                    address: address.to_string(),
                    mask: message.header.prefix_len.to_string(),
                    ..Default::default()
                })
            });
            let name = name_of(link).unwrap_or_default().to_owned();
            Interface {
                device: name.clone(),
                name,
                IPAddresses: addresses.collect(),
                mtu: mtu_of(link).unwrap_or(0).into(),
                hwAddr: hardware_of(link).map(|octets| print_hardware(octets)).unwrap_or_default(),
                raw_flags: link.header.flags.bits(),
                ..Default::default()
            }
        };
        Ok(links.iter().map(interface).collect())
    }

    /// The routes of the main table.
    pub(crate) async fn routes(&self) -> Result<Vec<Route>, Error> {
        let links: Vec<LinkMessage> = self.0.link().get().execute().try_collect().await?;
        let mut routes = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut query = RouteMessageBuilder::<IpAddr>::new().build();
            query.header.address_family = family;
            let found: Vec<RouteMessage> = self.0.route().get(query).execute().try_collect().await?;
            routes.extend(
                found
                    .iter()
                    .filter(|route| route.header.table == RouteHeader::RT_TABLE_MAIN)
                    .map(|route| describe(route, &links)),
            );
        }
        Ok(routes)
    }

    async fn set(&self, message: LinkMessage) -> Result<(), Error> {
        Ok(self.0.link().set(message).execute().await?)
    }
}

/// Why the network can't be set or shown.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no socket to the kernel.
    #[error("network can't be reached: no netlink socket: {0}")]
    Socket(#[source] std::io::Error),
    /// The kernel refused.
    #[error("kernel refused a change of the network: {0}")]
    Kernel(#[from] rtnetlink::Error),
    /// No interface has that hardware address or name.
    #[error("no interface is {0:?}; next: check the address of the guest's network device")]
    NoLink(String),
    /// A value is malformed.
    #[error("{0} {1:?} is malformed; next: correct it")]
    Invalid(&'static str, String),
}

fn route_message(route: &Route, index: u32) -> Result<RouteMessage, Error> {
    let mut message = RouteMessageBuilder::<IpAddr>::new().output_interface(index).protocol(RouteProtocol::Boot);
    let v6 = route.family.enum_value() == Ok(IPFamily::v6);
    message.get_mut().header.address_family = if v6 { AddressFamily::Inet6 } else { AddressFamily::Inet };
    let scope = u8::try_from(route.scope).map_err(|_| Error::Invalid("scope", route.scope.to_string()))?;
    message = message.scope(RouteScope::from(scope));
    if !matches!(route.dest.as_str(), "" | "default") {
        let (address, prefix) = parse_network("destination", &route.dest)?;
        let refused = |_| Error::Invalid("destination", route.dest.clone());
        // A prefix of no bits is the default route, which the kernel knows by having no destination.
        if prefix > 0 {
            message = message.destination_prefix(address, prefix).map_err(refused)?;
        }
    }
    if !route.gateway.is_empty() {
        let gateway = parse_ip("gateway", &route.gateway)?;
        message = message.gateway(gateway).map_err(|_| Error::Invalid("gateway", route.gateway.clone()))?;
    }
    if !route.source.is_empty() {
        let (source, _) = parse_network("source", &route.source)?;
        message = message.pref_source(source).map_err(|_| Error::Invalid("source", route.source.clone()))?;
    }
    if route.mtu > 0 {
        message.get_mut().attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(route.mtu)]));
    }
    if route.flags & ONLINK != 0 {
        message = message.onlink();
    }
    Ok(message.build())
}

fn describe(route: &RouteMessage, links: &[LinkMessage]) -> Route {
    let mut described = Route {
        scope: u8::from(route.header.scope).into(),
        family: EnumOrUnknown::new(if route.header.address_family == AddressFamily::Inet6 {
            IPFamily::v6
        } else {
            IPFamily::v4
        }),
        flags: route.header.flags.bits(),
        ..Default::default()
    };
    let text = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    };
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                described.dest = format!("{}/{}", text(address), route.header.destination_prefix_length);
            }
            RouteAttribute::Gateway(address) => described.gateway = text(address),
            RouteAttribute::PrefSource(address) => described.source = text(address),
            RouteAttribute::Oif(index) => {
                let link = links.iter().find(|link| link.header.index == *index);
                described.device = link.and_then(name_of).unwrap_or_default().to_owned();
            }
            _ => {}
        }
    }
    described
}

fn parse_address(address: &IPAddress) -> Result<(IpAddr, u8), Error> {
    let ip = parse_ip("address", &address.address)?;
    let prefix = address.mask.parse().map_err(|_| Error::Invalid("prefix length", address.mask.clone()))?;
    let limit = if ip.is_ipv4() { 32 } else { 128 };
    if prefix > limit {
        return Err(Error::Invalid("prefix length", address.mask.clone()));
    }
    Ok((ip, prefix))
}

/// `address` or `address/prefix`.
fn parse_network(what: &'static str, text: &str) -> Result<(IpAddr, u8), Error> {
    let Some((address, mask)) = text.split_once('/') else {
        let address = parse_ip(what, text)?;
        return Ok((address, if address.is_ipv4() { 32 } else { 128 }));
    };
    let address = IPAddress { address: address.to_owned(), mask: mask.to_owned(), ..Default::default() };
    parse_address(&address).map_err(|_| Error::Invalid(what, text.to_owned()))
}

fn parse_ip(what: &'static str, text: &str) -> Result<IpAddr, Error> {
    text.parse().map_err(|_| Error::Invalid(what, text.chars().take(64).collect()))
}

/// A name that the kernel takes for an interface, and that is none of another kind.
fn interface_name(name: &str) -> Result<&str, Error> {
    let fine = (1..=15).contains(&name.len())
        && name != "lo"
        && name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'));
    if fine { Ok(name) } else { Err(Error::Invalid("interface name", name.chars().take(64).collect())) }
}

fn hardware_address(text: &str) -> Result<[u8; 6], Error> {
    let invalid = || Error::Invalid("hardware address", text.chars().take(64).collect());
    let octet = |text: &str| {
        let digits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| digits)
    };
    let octets: Vec<u8> = text.split(':').map(octet).collect::<Option<_>>().ok_or_else(invalid)?;
    octets.try_into().map_err(|_| invalid())
}

fn print_hardware(octets: &[u8]) -> String {
    octets.iter().map(|octet| format!("{octet:02x}")).collect::<Vec<_>>().join(":")
}

fn hardware_of(link: &LinkMessage) -> Option<&[u8; 6]> {
    // The loopback interface has an address of zeros, which nobody means.
    let real = !link.header.flags.contains(LinkFlags::Loopback);
    link.attributes.iter().filter(|_| real).find_map(|attribute| match attribute {
        LinkAttribute::Address(octets) => octets.as_slice().try_into().ok(),
        _ => None,
    })
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

fn mtu_of(link: &LinkMessage) -> Option<u32> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    })
}

fn family(address: IpAddr) -> EnumOrUnknown<IPFamily> {
    EnumOrUnknown::new(if address.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 })
}

fn ignoring_exists(result: Result<(), rtnetlink::Error>) -> Result<(), Error> {
    match result {
        Err(rtnetlink::Error::NetlinkError(error)) if error.to_io().kind() == std::io::ErrorKind::AlreadyExists => {
            Ok(())
        }
        result => Ok(result?),
    }
}

const LOOPBACK: u32 = 1;
const MIN_MTU: u32 = 576;
const MAX_MTU: u32 = 65_535;
/// `RTNH_F_ONLINK`.
const ONLINK: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::MessageField;
    use rtnetlink::LinkVeth;
    use wire_ttrpc::types::ARPNeighbor;

    /// `IFA_F_TENTATIVE`.
    const TENTATIVE: u8 = 0x40;

    #[test]
    fn malformed_values_are_refused() {
        for name in ["", "lo", "a/b", "..", "a b", "-x", "much-too-long-name"] {
            assert!(interface_name(name).is_err(), "{name:?}");
        }
        for hardware in
            ["", "1:2:3:4:5:6", "02:00:00:00:00", "02:00:00:00:00:01:02", "zz:00:00:00:00:01", "+2:00:00:00:00:01"]
        {
            assert!(hardware_address(hardware).is_err(), "{hardware:?}");
        }
        for network in ["10.0.0.0/33", "x/8", "10.0.0.0/", "::/129", "10.0.0.0/8/8"] {
            assert!(parse_network("destination", network).is_err(), "{network:?}");
        }
        assert_eq!(parse_network("destination", "10.1.2.3").unwrap().1, 32);
    }

    /// Runs the test below in a network namespace of its own, where it can change everything.
    #[test]
    fn interfaces_and_routes_become_what_was_asked() {
        let inner = "network::tests::inside_a_network_namespace";
        let mut command = std::process::Command::new("unshare");
        command.arg("--net").arg(std::env::current_exe().unwrap()).args(["--exact", inner, "--include-ignored"]);
        if !rustix::process::geteuid().is_root() {
            println!("skipped: a network namespace takes root");
            return;
        }
        let output = command.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }

    #[tokio::test]
    #[ignore = "changes the network: run by the test above in a namespace"]
    async fn inside_a_network_namespace() {
        bring_up_loopback().await.unwrap();
        let network = Network::open().unwrap();
        let pair = LinkVeth::new("eth0", "other").build();
        network.0.link().add(pair).execute().await.unwrap();
        for (name, last) in [("eth0", 1), ("other", 2)] {
            let address = vec![2, 0, 0, 0, 0, last];
            network.set(LinkUnspec::new_with_name(name).address(address).build()).await.unwrap();
        }
        let wanted = Interface {
            name: "eth0".into(),
            hwAddr: "02:00:00:00:00:02".into(),
            mtu: 1400,
            IPAddresses: [("10.9.0.2", "24"), ("fd00::2", "64")]
                .map(|(address, mask)| IPAddress { address: address.into(), mask: mask.into(), ..Default::default() })
                .into(),
            ..Default::default()
        };
        network.update_interface(&wanted).await.unwrap();
        network.update_interface(&wanted).await.unwrap();

        let interfaces = network.interfaces().await.unwrap();
        let eth0 = interfaces.iter().find(|interface| interface.name == "eth0").unwrap();
        assert_eq!((eth0.hwAddr.as_str(), eth0.mtu), ("02:00:00:00:00:02", 1400));
        assert!(eth0.IPAddresses.iter().any(|address| address.address == "10.9.0.2" && address.mask == "24"));
        assert_eq!(eth0.raw_flags & 1, 1, "the interface is up");
        assert!(interfaces.iter().any(|interface| interface.hwAddr == "02:00:00:00:00:01" && interface.name != "eth0"));

        let addresses = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        let flags = addresses.lines().find(|line| line.starts_with("fd00")).unwrap().split_whitespace().nth(4).unwrap();
        assert_eq!(u8::from_str_radix(flags, 16).unwrap() & TENTATIVE, 0, "the address can be used at once");

        let neighbor = ARPNeighbor {
            toIPAddress: MessageField::some(IPAddress { address: "10.9.0.9".into(), ..Default::default() }),
            device: "eth0".into(),
            lladdr: "02:00:00:00:00:07".into(),
            ..Default::default()
        };
        for _ in 0..2 {
            network.add_neighbors(std::slice::from_ref(&neighbor)).await.unwrap();
        }
        let known = std::fs::read_to_string("/proc/thread-self/net/arp").unwrap();
        assert!(
            known.lines().any(|line| line.starts_with("10.9.0.9") && line.contains("02:00:00:00:00:07")),
            "{known}"
        );

        let default = Route { gateway: "10.9.1.1".into(), device: "eth0".into(), ..Default::default() };
        let direct = Route { dest: "10.9.1.0/24".into(), device: "eth0".into(), scope: 253, ..Default::default() };
        network.update_routes(&[default.clone(), direct.clone()]).await.unwrap();
        network.update_routes(&[default, direct]).await.unwrap();
        let routes = network.routes().await.unwrap();
        assert!(
            routes.iter().any(|route| route.gateway == "10.9.1.1" && route.dest.is_empty() && route.device == "eth0"),
            "{routes:?}"
        );
        assert!(routes.iter().any(|route| route.dest == "10.9.1.0/24" && route.scope == 253));

        let missing = Interface { hwAddr: "02:00:00:00:00:09".into(), ..wanted };
        assert!(matches!(network.update_interface(&missing).await, Err(Error::NoLink(_))));
    }
}
