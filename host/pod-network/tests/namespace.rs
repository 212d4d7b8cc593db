//! A pod's network as a CNI plugin makes it, with real namespaces; the guest is played by the test, frame by frame.

#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddrV6, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, setns};
use pod_network::{Connection, Error, Model, Namespace};

#[tokio::test]
async fn a_guest_takes_the_place_of_its_pod() {
    let Some(lab) = Lab::new("place") else { return };
    lab.in_pod("ip address add fd00:77::2/64 dev eth0 nodad");
    lab.in_pod("ip route add 10.88.0.0/16 via 10.77.0.9 dev eth0 onlink mtu lock 1300");
    lab.in_pod("ip route add default via 10.77.0.1");
    lab.in_pod("ip -6 route add default via fd00:77::1");
    lab.in_pod("ip neighbour add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0 nud permanent");

    let connection = Namespace::open(&lab.pod_path()).unwrap().connect(Model::Redirect).await.unwrap();

    let [link] = &connection.links[..] else { panic!("{connection:?}") };
    let interface = &link.interface;
    assert_eq!((&*interface.name, &*interface.hwAddr, interface.mtu), ("eth0", POD_MAC, 1400));
    let addresses: Vec<_> = interface.IPAddresses.iter().map(|ip| format!("{}/{}", ip.address, ip.mask)).collect();
    assert_eq!(addresses, ["10.77.0.2/24", "fd00:77::2/64"]);
    let routes: Vec<_> = connection.routes.iter().map(|r| (&*r.dest, &*r.gateway, r.flags, r.mtu)).collect();
    assert_eq!(
        routes,
        [("", "10.77.0.1", 0, 0), ("10.88.0.0/16", "10.77.0.9", ONLINK, 1300), ("", "fd00:77::1", 0, 0)]
    );
    let [neighbour] = &connection.neighbours[..] else { panic!("{connection:?}") };
    assert_eq!((&*neighbour.toIPAddress.address, &*neighbour.lladdr), ("10.77.0.9", "02:00:00:00:00:09"));

    lab.expect_traffic(&connection);
}

#[tokio::test]
async fn a_macvtap_link_takes_the_place_just_as_well() {
    let Some(lab) = Lab::new("macvtap") else { return };
    let namespace = Namespace::open(&lab.pod_path()).unwrap();
    let before = lab.state();

    // As after a sandbox whose owner was killed: the second one takes over.
    drop(namespace.connect(Model::Macvtap).await.unwrap());
    let connection = namespace.connect(Model::Macvtap).await.unwrap();

    assert_eq!(connection.links[0].interface.hwAddr, POD_MAC);
    lab.expect_traffic(&connection);
    assert!(!Path::new("/dev/tap").exists(), "the machine's own folder of devices is not touched");
    drop(connection);
    namespace.disconnect().unwrap();
    assert_eq!(lab.state(), before);
}

#[tokio::test]
async fn taps_end_with_their_holder_and_nothing_is_left_after_disconnect() {
    let Some(lab) = Lab::new("ends") else { return };
    let namespace = Namespace::open(&lab.pod_path()).unwrap();
    let before = lab.state();

    let connection = namespace.connect(Model::Redirect).await.unwrap();
    assert!(lab.state().contains("tap0_cocoon"), "{}", lab.state());
    drop(connection);
    assert!(!lab.state().contains("tap0_cocoon"), "{}", lab.state());
    assert!(lab.state().contains("ingress"), "{}", lab.state());
    // As after a sandbox whose owner was killed: the next one takes over.
    drop(namespace.connect(Model::Redirect).await.unwrap());

    lab.in_pod("ip address flush dev eth0");
    namespace.disconnect().unwrap();
    assert_eq!(lab.state(), before);
    namespace.disconnect().unwrap();
}

#[tokio::test]
async fn a_refusal_leaves_the_namespace_as_it_was() {
    let Some(lab) = Lab::new("refused") else { return };
    lab.in_pod("ip link add eth1 type veth peer name eth1-peer");
    lab.in_pod("ip address add 10.78.0.2/24 dev eth1");
    // The second tap's name is taken.
    lab.in_pod("ip tuntap add dev tap1_cocoon mode tun");
    let before = lab.state();

    let error = Namespace::open(&lab.pod_path()).unwrap().connect(Model::Redirect).await.unwrap_err();
    assert!(matches!(&error, Error::Tap { link, .. } if link == "eth1"), "{error}");
    assert_eq!(lab.state(), before);
}

#[tokio::test]
async fn whoever_connects_to_the_pod_s_loopback_interface_is_taken_at_any_port_and_to_no_other_s() {
    let Some(lab) = Lab::new("loopback") else { return };
    let before = lab.state();
    lab.in_pod("ip address add fd00:77::2/64 dev eth0 nodad");

    let loopback = Namespace::open(&lab.pod_path()).unwrap().loopback().await.unwrap();
    assert_eq!(loopback.addresses(), ["10.77.0.2".parse::<IpAddr>().unwrap(), "fd00:77::2".parse().unwrap()]);
    for port in [1, 8080, 65_535] {
        let mut client = lab.in_pod_itself(|| TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap());
        let caller = loopback.accept().await.unwrap();
        assert_eq!(caller.port, port);
        client.write_all(b"x").unwrap();
        caller.stream.readable().await.unwrap();
        assert_eq!(caller.stream.try_read(&mut [0; 2]).unwrap(), 1);
    }
    // What is the pod's address and what is another namespace's loopback interface is none of its matters.
    assert!(lab.in_pod_itself(|| TcpStream::connect((POD, 8080))).is_err());
    assert!(lab.in_peer(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 8080))).is_err());

    drop(loopback);
    assert!(lab.in_pod_itself(|| TcpStream::connect((Ipv4Addr::LOCALHOST, 8080))).is_err());
    assert_eq!(lab.state(), before);
}

#[test]
fn the_hosts_own_network_is_not_given_away() {
    let error = Namespace::open(Path::new("/proc/self/ns/net")).unwrap_err();
    assert!(matches!(error, Error::HostNetwork { .. }), "{error}");
    let error = Namespace::open(Path::new("/no/such/namespace")).unwrap_err();
    assert!(error.to_string().contains("/no/such/namespace"), "{error}");
}

/// Two namespaces and a link between them, removed when dropped.
struct Lab {
    pod: String,
    peer: String,
}

impl Lab {
    /// `None`, with a printed reason, where namespaces can't be made.
    fn new(name: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("skipped: only root makes network namespaces");
            return None;
        }
        let id = std::process::id();
        let lab = Self { pod: format!("cocoon-{name}-pod-{id}"), peer: format!("cocoon-{name}-peer-{id}") };
        sh(&format!("ip netns add {}", lab.pod));
        sh(&format!("ip netns add {}", lab.peer));
        let (pod, peer) = (&lab.pod, &lab.peer);
        sh(&format!(
            "ip -n {pod} link add eth0 address {POD_MAC} mtu 1400 type veth peer name veth0 address {PEER_MAC} netns {peer}"
        ));
        for command in ["ip link set lo up", "ip address add 10.77.0.2/24 dev eth0", "ip link set eth0 up"] {
            lab.in_pod(command);
        }
        sh(&format!("ip -n {peer} address add {PEER}/24 dev veth0"));
        sh(&format!("ip -n {peer} address add fd00:77::1/64 dev veth0 nodad"));
        sh(&format!("ip -n {peer} link set veth0 up"));
        Some(lab)
    }

    fn in_pod(&self, command: &str) {
        sh(&command.replacen("ip ", &format!("ip -n {} ", self.pod), 1));
    }

    fn pod_path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.pod)
    }

    fn in_peer<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inside(&self.peer, work)
    }

    fn in_pod_itself<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        self.inside(&self.pod, work)
    }

    /// Runs on a thread that is in a namespace; a socket stays in the one in which it was made.
    fn inside<T: Send>(&self, name: &str, work: impl FnOnce() -> T + Send) -> T {
        let namespace = File::open(Path::new("/run/netns").join(name)).unwrap();
        thread::scope(|scope| {
            let thread = scope.spawn(|| {
                setns(namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            thread.join().unwrap()
        })
    }

    /// The number of the peer's interface.
    fn peer_link(&self) -> u32 {
        let link = sh(&format!("ip -n {} -oneline link show veth0", self.peer));
        link.split_once(':').unwrap().0.parse().unwrap()
    }

    /// The guest sends; somebody else in the network answers; the guest gets the answer.
    fn expect_traffic(&self, connection: &Connection) {
        let peer = self.in_peer(|| UdpSocket::bind((PEER, PORT)).unwrap());
        peer.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut guest = Guest::new(&connection.links[0].device);
        guest.send(&udp(b"from the guest"));
        let mut received = [0; 64];
        let (length, from) = peer.recv_from(&mut received).unwrap();
        assert_eq!((&received[..length], from.ip().to_string()), (&b"from the guest"[..], "10.77.0.2".to_owned()));
        peer.send_to(b"to the guest", from).unwrap();
        let answer = guest.receive(|frame| frame.ends_with(b"to the guest"));
        assert_eq!(answer[..6], [2, 0, 0, 0, 0, 2], "the guest's own address");

        // A group that only the guest has joined, as for its IPv6 address.
        let group = SocketAddrV6::new("ff02::1:ff00:2".parse().unwrap(), PORT, 0, self.peer_link());
        self.in_peer(|| UdpSocket::bind("[::]:0").unwrap()).send_to(b"to the group", group).unwrap();
        let heard = guest.receive(|frame| frame.ends_with(b"to the group"));
        assert_eq!(heard[..6], [0x33, 0x33, 0xff, 0, 0, 2]);
    }

    /// Links and queueing disciplines of the pod, without counters.
    fn state(&self) -> String {
        let links = sh(&format!("ip -n {} -brief link", self.pod));
        let disciplines = sh(&format!("tc -n {} qdisc", self.pod));
        format!("{links}{disciplines}")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        for name in [&self.pod, &self.peer] {
            let _ = Command::new("ip").args(["netns", "delete", name]).status();
        }
    }
}

/// The guest's end of a tap device.
struct Guest(File);

impl Guest {
    fn new(device: &Arc<OwnedFd>) -> Self {
        Self(device.try_clone().unwrap().into())
    }

    /// Sends an Ethernet frame, without anything to say to virtio.
    fn send(&mut self, frame: &[u8]) {
        self.0.write_all(&[&[0; VNET_HEADER], frame].concat()).unwrap();
    }

    /// The first frame that is `wanted`.
    fn receive(&mut self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let limit = PollTimeout::try_from(PATIENCE).unwrap();
        loop {
            let mut readable = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            assert_ne!(poll(&mut readable, limit).unwrap(), 0, "no frame came");
            let mut buffer = [0; 2048];
            let length = self.0.read(&mut buffer).unwrap();
            if wanted(&buffer[VNET_HEADER..length]) {
                return buffer[VNET_HEADER..length].to_vec();
            }
            if let Some(answer) = arp_answer(&buffer[VNET_HEADER..length]) {
                self.send(&answer);
            }
        }
    }
}

/// A datagram from the pod's address to the peer's.
fn udp(payload: &[u8]) -> Vec<u8> {
    let length = |more: usize| ((payload.len() + more) as u16).to_be_bytes();
    let mut header = [&[0x45, 0][..], &length(28), &[0, 0, 0, 0, 64, 17, 0, 0], &POD.octets(), &PEER.octets()].concat();
    let sum: u32 = header.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let checksum = !((sum & 0xffff) + (sum >> 16)) as u16;
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    let port = PORT.to_be_bytes();
    [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0], &header[..], &port, &port, &length(8), &[0, 0], payload].concat()
}

/// What a guest answers who is asked for its address.
fn arp_answer(frame: &[u8]) -> Option<Vec<u8>> {
    let asked = frame.get(12..14)? == [8, 6] && frame.get(20..22)? == [0, 1] && frame.get(38..42)? == POD.octets();
    let own = [2, 0, 0, 0, 0, 2];
    asked.then(|| [&frame[6..12], &own, &frame[12..20], &[0, 2], &own, &POD.octets(), &frame[22..32]].concat())
}

fn sh(command: &str) -> String {
    let output = Command::new("sh").args(["-c", command]).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

const POD: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
const POD_MAC: &str = "02:00:00:00:00:02";
const PEER: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const PEER_MAC: &str = "02:00:00:00:00:01";
const PORT: u16 = 7777;
const ONLINK: u32 = 4;
/// Bytes of `virtio_net_hdr` before each frame.
const VNET_HEADER: usize = 10;
const PATIENCE: Duration = Duration::from_secs(20);
