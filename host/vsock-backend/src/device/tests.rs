//! A guest's driver against the whole back end, through vhost-user and shared memory: well-behaved, then hostile.

use std::fs::File;
use std::os::unix::net::UnixStream;

use nix::sys::eventfd::EfdFlags;
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent};
use vmm_sys_util::eventfd::EventFd;

use super::*;
use crate::backend::{Backend, BackendConfig};
use crate::packet::{STREAM, op};

#[test]
fn a_driver_and_a_client_talk() {
    let mut lab = Lab::new();
    assert_eq!(lab.driver.config(), 3_u64.to_le_bytes());

    let (mut client, request) = lab.connect();
    client.write_all(b"ping").unwrap();
    assert_eq!(lab.driver.receive().1, b"ping");

    // Linux puts a large packet into as many descriptors as it has pages.
    let packet = [&header(&request, op::RW, 4).encode()[..], b"pong"].concat();
    lab.driver.send(&[&packet[..10], &packet[10..45], &packet[45..]]);
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn more_data_than_the_driver_has_buffers_waits_for_them() {
    let mut lab = Lab::new();
    let (mut client, _) = lab.connect();
    let data: Vec<u8> = (0..20 * BUFFER_SIZE).map(|i| (i % 251) as u8).collect();
    let writer = std::thread::spawn({
        let data = data.clone();
        move || client.write_all(&data).map(|()| client)
    });
    let mut received = Vec::new();
    while received.len() < data.len() {
        received.extend(lab.driver.receive().1);
    }
    assert_eq!(received, data);
    writer.join().unwrap().unwrap();
}

#[test]
fn a_driver_that_goes_ends_the_clients_streams() {
    let mut lab = Lab::new();
    let (mut client, _) = lab.connect();
    lab.driver.stop();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_hostile_packet_harms_nobody_else() {
    let valid = Header { src_cid: 3, dst_cid: 2, kind: STREAM, op: op::RW, len: 64, ..Header::default() }.encode();
    let far = u64::MAX - 100;
    let cases: [(&str, Vec<Descriptor>); 8] = [
        ("an empty descriptor", vec![descriptor(BUFFERS, 0, 0, 0)]),
        ("a header cut short", vec![descriptor(BUFFERS, 43, 0, 0)]),
        ("a descriptor outside of the memory", vec![descriptor(far, 44, 0, 0)]),
        ("a descriptor that leaves the memory", vec![descriptor(MEMORY as u64 - 20, 44, 0, 0)]),
        ("a payload shorter than its header says", vec![descriptor(BUFFERS, 44 + 10, 0, 0)]),
        ("a descriptor for writing", vec![descriptor(BUFFERS, 108, WRITE, 0)]),
        ("a chain that bites its tail", vec![descriptor(BUFFERS, 44, NEXT, 0)]),
        ("a chain that leaves the table", vec![descriptor(BUFFERS, 44, NEXT, u16::MAX)]),
    ];
    for (name, chain) in cases {
        eprintln!("{name}");
        let mut lab = Lab::new();
        lab.driver.memory.write_slice(&valid, GuestAddress(BUFFERS)).unwrap();
        lab.driver.send_chain(&chain);

        lab.driver.skip_resets = true;
        let (mut client, _) = lab.connect();
        client.write_all(b"alive").unwrap();
        assert_eq!(lab.driver.receive().1, b"alive", "{name}");
    }
}

#[test]
fn useless_receive_buffers_are_given_back() {
    for useless in
        [descriptor(BUFFERS, 4096, 0, 0), descriptor(BUFFERS, 44, WRITE, 0), descriptor(1 << 40, 4096, WRITE, 0)]
    {
        let mut lab = Lab::with_first_buffer(useless);
        let client = UnixStream::connect(lab.folder.path().join("vm.vsock")).unwrap();
        (&client).write_all(b"CONNECT 1024\n").unwrap();
        assert_eq!(lab.driver.next_used(RX).1, 0);
        assert_eq!(lab.driver.receive().0.op, op::REQUEST);
    }
}

#[test]
fn a_broken_ring_does_not_keep_the_back_end_from_stopping() {
    let lab = Lab::new();
    let available = ring(TX) + AVAILABLE;
    lab.driver.memory.write_obj(5000_u16, GuestAddress(available + 2)).unwrap();
    lab.driver.queues[TX].kick.write(1).unwrap();
    lab.backend.stop();
}

/// A back end, and a driver that has just been set up.
struct Lab {
    driver: Driver,
    backend: Backend,
    folder: tempfile::TempDir,
}

impl Lab {
    fn new() -> Self {
        Self::with_first_buffer(descriptor(rx_buffer(0), BUFFER_SIZE as u32, WRITE, 0))
    }

    fn with_first_buffer(first: Descriptor) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = BackendConfig {
            socket: folder.path().join("vhost.sock"),
            uds: folder.path().join("vm.vsock"),
            guest_cid: 3,
        };
        let backend = Backend::start(config.clone()).unwrap();
        let driver = Driver::new(UnixStream::connect(config.socket).unwrap(), first);
        Self { driver, backend, folder }
    }

    /// A client that has reached port 1024, and the request that the driver got for it.
    fn connect(&mut self) -> (UnixStream, Header) {
        let mut client = UnixStream::connect(self.folder.path().join("vm.vsock")).unwrap();
        client.write_all(b"CONNECT 1024\n").unwrap();
        let (request, _) = self.driver.receive();
        assert_eq!((request.op, request.dst_port), (op::REQUEST, 1024));
        self.driver.send(&[&header(&request, op::RESPONSE, 0).encode()]);
        let mut greeting = [0; 14];
        client.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..3], b"OK ");
        (client, request)
    }
}

/// The guest's packet on the connection that `request` opened.
fn header(request: &Header, op: u16, len: u32) -> Header {
    Header {
        src_cid: 3,
        dst_cid: 2,
        src_port: request.dst_port,
        dst_port: request.src_port,
        kind: STREAM,
        op,
        len,
        buf_alloc: 1 << 20,
        ..Header::default()
    }
}

/// QEMU and the guest's driver in one.
struct Driver {
    frontend: Frontend,
    memory: GuestMemoryMmap,
    queues: Vec<DriverQueue>,
    /// Whether resets are no news.
    skip_resets: bool,
}

struct DriverQueue {
    kick: EventFd,
    call: EventFd,
    available: u16,
    used: u16,
}

impl Driver {
    fn new(stream: UnixStream, first_buffer: Descriptor) -> Self {
        let file: File = tempfile::tempfile().unwrap();
        file.set_len(MEMORY as u64).unwrap();
        let range = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let host = |address: u64| memory.get_host_address(GuestAddress(address)).unwrap() as u64;

        let mut frontend = Frontend::from_stream(stream, QUEUES as u64);
        frontend.set_owner().unwrap();
        assert_eq!(frontend.get_features().unwrap() & VIRTIO_F_VERSION_1, VIRTIO_F_VERSION_1);
        frontend.set_features(VIRTIO_F_VERSION_1 | VHOST_USER_F_PROTOCOL_FEATURES).unwrap();
        let protocol = frontend.get_protocol_features().unwrap();
        frontend.set_protocol_features(protocol).unwrap();
        assert_eq!(frontend.get_queue_num().unwrap(), QUEUES as u64);
        let region = memory.iter().next().unwrap();
        frontend.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region).unwrap()]).unwrap();

        let queues = [RX, TX].map(|queue| {
            let (kick, call) = (event(), event());
            let addresses = VringConfigData {
                queue_max_size: DRIVER_QUEUE,
                queue_size: DRIVER_QUEUE,
                flags: 0,
                desc_table_addr: host(ring(queue)),
                avail_ring_addr: host(ring(queue) + AVAILABLE),
                used_ring_addr: host(ring(queue) + USED),
                log_addr: None,
            };
            frontend.set_vring_num(queue, DRIVER_QUEUE).unwrap();
            frontend.set_vring_addr(queue, &addresses).unwrap();
            frontend.set_vring_base(queue, 0).unwrap();
            frontend.set_vring_call(queue, &call).unwrap();
            frontend.set_vring_kick(queue, &kick).unwrap();
            DriverQueue { kick, call, available: 0, used: 0 }
        });
        let mut driver = Self { frontend, memory, queues: queues.into(), skip_resets: false };
        for index in 0..DRIVER_QUEUE {
            let buffer = descriptor(rx_buffer(index), BUFFER_SIZE as u32, WRITE, 0);
            driver.describe(RX, index, if index == 0 { first_buffer } else { buffer });
            driver.offer(RX, index);
        }
        for queue in [RX, TX] {
            driver.frontend.set_vring_enable(queue, true).unwrap();
        }
        driver
    }

    fn config(&mut self) -> Vec<u8> {
        let flags = vhost::vhost_user::message::VhostUserConfigFlags::empty();
        self.frontend.get_config(0, 8, flags, &[0; 8]).unwrap().1
    }

    fn stop(&mut self) {
        for queue in [RX, TX] {
            self.frontend.get_vring_base(queue).unwrap();
        }
    }

    /// Sends one packet, a descriptor for each part, and waits until it has been taken.
    fn send(&mut self, parts: &[&[u8]]) {
        let mut address = BUFFERS;
        let mut chain = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            self.memory.write_slice(part, GuestAddress(address)).unwrap();
            let flags = if index + 1 < parts.len() { NEXT } else { 0 };
            chain.push(descriptor(address, part.len() as u32, flags, index as u16 + 1));
            address += part.len() as u64;
        }
        self.send_chain(&chain);
    }

    fn send_chain(&mut self, chain: &[Descriptor]) {
        for (index, descriptor) in chain.iter().enumerate() {
            self.describe(TX, index as u16, *descriptor);
        }
        self.offer(TX, 0);
        assert_eq!(self.next_used(TX), (0, 0));
    }

    /// The next packet; its buffer is offered again.
    fn receive(&mut self) -> (Header, Vec<u8>) {
        loop {
            let (index, length) = self.next_used(RX);
            let mut header = [0; Header::SIZE];
            self.memory.read_slice(&mut header, GuestAddress(rx_buffer(index))).unwrap();
            let header = Header::decode(&header);
            assert_eq!(length as usize, Header::SIZE + header.len as usize);
            let mut payload = vec![0; header.len as usize];
            self.memory.read_slice(&mut payload, GuestAddress(rx_buffer(index) + Header::SIZE as u64)).unwrap();
            self.offer(RX, index);
            if !(self.skip_resets && header.op == op::RST) {
                return (header, payload);
            }
        }
    }

    /// Waits for the next used descriptor: its index and the bytes written.
    fn next_used(&mut self, queue: usize) -> (u16, u32) {
        let used = ring(queue) + USED;
        let state = &mut self.queues[queue];
        loop {
            let index: u16 = self.memory.read_obj(GuestAddress(used + 2)).unwrap();
            if index != state.used {
                let entry = GuestAddress(used + 4 + u64::from(state.used % DRIVER_QUEUE) * 8);
                let [id, length]: [u32; 2] = self.memory.read_obj(entry).unwrap();
                state.used = state.used.wrapping_add(1);
                return (id as u16, length);
            }
            wait(&state.call);
        }
    }

    fn describe(&self, queue: usize, index: u16, (address, length, flags, next): Descriptor) {
        let at = ring(queue) + u64::from(index) * 16;
        self.memory.write_obj(address, GuestAddress(at)).unwrap();
        self.memory.write_obj(length, GuestAddress(at + 8)).unwrap();
        self.memory.write_obj([flags, next], GuestAddress(at + 12)).unwrap();
    }

    fn offer(&mut self, queue: usize, index: u16) {
        let available = ring(queue) + AVAILABLE;
        let state = &mut self.queues[queue];
        let slot = available + 4 + u64::from(state.available % DRIVER_QUEUE) * 2;
        self.memory.write_obj(index, GuestAddress(slot)).unwrap();
        state.available = state.available.wrapping_add(1);
        self.memory.store(state.available, GuestAddress(available + 2), Ordering::SeqCst).unwrap();
        state.kick.write(1).unwrap();
    }
}

/// Address, length, flags, next.
type Descriptor = (u64, u32, u16, u16);

fn descriptor(address: u64, length: u32, flags: u16, next: u16) -> Descriptor {
    (address, length, flags, next)
}

fn ring(queue: usize) -> u64 {
    queue as u64 * 0x1_0000
}

fn rx_buffer(index: u16) -> u64 {
    0x8_0000 + u64::from(index) * BUFFER_SIZE as u64
}

fn wait(event: &EventFd) {
    let epoll = Epoll::new().unwrap();
    epoll.ctl(ControlOperation::Add, event.as_raw_fd(), EpollEvent::new(EventSet::IN, 0)).unwrap();
    let count = epoll.wait(PATIENCE_MS, &mut [EpollEvent::default()]).unwrap();
    assert_eq!(count, 1, "the back end did not answer in time");
    event.read().unwrap();
}

fn event() -> EventFd {
    EventFd::new(EfdFlags::EFD_NONBLOCK.bits()).unwrap()
}

const PATIENCE_MS: i32 = 20_000;
const RX: usize = 0;
const TX: usize = 1;
const MEMORY: usize = 2 << 20;
const DRIVER_QUEUE: u16 = 8;
const BUFFER_SIZE: usize = 4096;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
/// Where the driver puts what it sends.
const BUFFERS: u64 = 0x10_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;
