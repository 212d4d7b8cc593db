//! Stories of one guest's packets against real unix sockets, without any virtqueue.

use std::io::{Read, Write};
use std::time::{Duration, Instant};

use super::*;
use crate::credit::ReceiveCredit;
use crate::packet::shutdown;

#[test]
fn a_client_of_the_host_reaches_a_port_of_the_guest() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"CONNECT 1024\n").unwrap();

    let request = lab.expect(op::REQUEST);
    assert_eq!((request.src_cid, request.dst_cid, request.dst_port), (2, 3, 1024));
    lab.answer(&request, op::RESPONSE, b"");
    assert_eq!(read(&mut client, 14), b"OK 1073741824\n");

    client.write_all(b"ping").unwrap();
    assert_eq!(lab.expect_data(4), b"ping");
    lab.answer(&request, op::RW, b"pong");
    assert_eq!(read(&mut client, 4), b"pong");

    drop(client);
    assert_eq!(lab.expect(op::SHUTDOWN).flags & shutdown::RECEIVE, shutdown::RECEIVE);
    lab.answer(&request, op::RST, b"");
    assert!(lab.muxer.entries.is_empty() && lab.muxer.routes.is_empty());
}

#[test]
fn the_guest_reaches_a_service_of_the_host() {
    let mut lab = Lab::new();
    let service = UnixListener::bind(lab.service(1030)).unwrap();

    lab.guest_says(op::REQUEST, 5000, 1030, b"");
    let response = lab.expect(op::RESPONSE);
    assert_eq!((response.src_port, response.dst_port, response.buf_alloc), (1030, 5000, ReceiveCredit::BUFFER));

    let (mut stream, _) = service.accept().unwrap();
    lab.guest_says(op::RW, 5000, 1030, b"GET");
    assert_eq!(read(&mut stream, 3), b"GET");
    stream.write_all(b"200").unwrap();
    assert_eq!(lab.expect_data(3), b"200");
}

#[test]
fn a_service_that_is_not_there_is_a_reset() {
    let mut lab = Lab::new();
    lab.guest_says(op::REQUEST, 5000, 1030, b"");
    let reset = lab.expect(op::RST);
    assert_eq!((reset.src_port, reset.dst_port), (1030, 5000));
}

#[test]
fn a_port_that_the_guest_refuses_is_the_end_of_the_clients_stream() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    let request = lab.expect(op::REQUEST);
    lab.answer(&request, op::RST, b"");
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
}

#[test]
fn a_client_that_talks_nonsense_is_shown_the_door() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"GET / HTTP/1.1\n").unwrap();
    lab.until(|muxer| muxer.entries.is_empty());
    // The rest of the line was never read, so that the end may be a reset.
    assert!(!matches!(client.read(&mut [0; 8]), Ok(1..)));
    assert!(!lab.muxer.has_pending());
}

#[test]
fn packets_of_no_connection_are_answered_by_a_reset_and_wrong_addresses_not_at_all() {
    let good =
        Header { src_cid: 3, dst_cid: 2, src_port: 5, dst_port: 6, kind: STREAM, op: op::RW, ..Header::default() };
    for (header, answered) in [
        (good, true),
        (Header { op: op::RESPONSE, ..good }, true),
        (Header { op: op::SHUTDOWN, ..good }, true),
        (Header { op: 77, ..good }, true),
        (Header { op: op::REQUEST, kind: 2, ..good }, true),
        (Header { op: op::REQUEST, len: 1, ..good }, true),
        (Header { op: op::RST, ..good }, false),
        (Header { src_cid: 4, ..good }, false),
        (Header { src_cid: 2, ..good }, false),
        (Header { dst_cid: 3, ..good }, false),
        (Header { dst_cid: u64::MAX, ..good }, false),
    ] {
        let mut lab = Lab::new();
        lab.muxer.receive(&header, b"");
        let answer = lab.muxer.next_packet(&mut [0; 64]);
        assert_eq!(answer.map(|a| (a.op, a.kind)), answered.then_some((op::RST, header.kind)), "{header:?}");
    }
}

#[test]
fn a_payload_that_is_not_what_the_header_says_resets_the_connection() {
    for (op, len, payload) in [(op::RW, 5, &b"four"[..]), (op::RW, u32::MAX, b"four"), (op::CREDIT_UPDATE, 4, b"four")]
    {
        let mut lab = Lab::new();
        let _service = UnixListener::bind(lab.service(1030)).unwrap();
        lab.guest_says(op::REQUEST, 5000, 1030, b"");
        lab.expect(op::RESPONSE);

        let header = Header { op, len, ..lab.header(5000, 1030) };
        lab.muxer.receive(&header, payload);

        lab.expect(op::RST);
        assert!(lab.muxer.entries.is_empty());
    }
}

#[test]
fn a_flood_of_unknown_packets_is_bounded_by_what_the_guest_takes() {
    let mut lab = Lab::new();
    let mut sent = 0;
    while !lab.muxer.is_congested() {
        lab.guest_says(op::RW, sent, 1, b"");
        sent += 1;
    }
    assert_eq!(sent as usize, MAX_RESETS);
    lab.expect(op::RST);
    assert!(!lab.muxer.is_congested());
}

#[test]
fn connections_are_bounded_and_a_closed_one_makes_room() {
    let mut lab = Lab::new();
    let service = UnixListener::bind(lab.service(1030)).unwrap();
    for port in 0..MAX_CONNECTIONS as u32 {
        lab.guest_says(op::REQUEST, port, 1030, b"");
        assert_eq!(lab.skip_to(op::RESPONSE).dst_port, port);
        // Keep the backlog empty, or the service itself would refuse. That the service hangs up does not end a
        // connection: the guest has to agree.
        drop(service.accept().unwrap());
    }

    lab.guest_says(op::REQUEST, 5000, 1030, b"");
    assert_eq!(lab.skip_to(op::RST).dst_port, 5000);
    let mut client = lab.client();
    assert_eq!(lab.drain_until_closed(&mut client), 0);

    lab.guest_says(op::RST, 17, 1030, b"");
    lab.guest_says(op::REQUEST, 5000, 1030, b"");
    assert_eq!(lab.skip_to(op::RESPONSE).dst_port, 5000);
}

#[test]
fn connections_take_turns() {
    let mut lab = Lab::new();
    let service = UnixListener::bind(lab.service(1030)).unwrap();
    let mut streams = Vec::new();
    for port in [1, 2, 3] {
        lab.guest_says(op::REQUEST, port, 1030, b"");
        lab.expect(op::RESPONSE);
        streams.push(service.accept().unwrap().0);
    }
    assert!(lab.muxer.next_packet(&mut [0; 100]).is_none());
    for stream in &mut streams {
        stream.write_all(&[0; 1000]).unwrap();
    }
    lab.until(|muxer| muxer.ready.len() == 3);

    let mut payload = [0; 100];
    let turns: Vec<_> = (0..6).map(|_| lab.muxer.next_packet(&mut payload).unwrap().dst_port).collect();
    let mut first = turns[..3].to_vec();
    first.sort();
    assert_eq!(first, [1, 2, 3]);
    assert_eq!(turns[..3], turns[3..]);
}

#[test]
fn a_driver_that_goes_takes_its_connections_along() {
    let mut lab = Lab::new();
    let mut client = lab.client();
    client.write_all(b"CONNECT 1024\n").unwrap();
    lab.expect(op::REQUEST);
    lab.muxer.reset();
    assert_eq!(client.read(&mut [0; 8]).unwrap(), 0);
    assert!(!lab.muxer.has_pending());
}

#[test]
fn ports_of_the_host_are_not_used_twice() {
    let mut lab = Lab::new();
    lab.muxer.next_port = 2 * FIRST_PORT - 1;
    for expected in [2 * FIRST_PORT - 1, FIRST_PORT, FIRST_PORT + 1] {
        let mut client = lab.client();
        client.write_all(b"CONNECT 1024\n").unwrap();
        assert_eq!(lab.expect(op::REQUEST).src_port, expected);
        std::mem::forget(client);
        lab.muxer.next_port = if expected == FIRST_PORT { FIRST_PORT } else { lab.muxer.next_port };
    }
}

/// A muxer in a folder of its own, and a guest of address 3 that says what a test wants.
struct Lab {
    folder: tempfile::TempDir,
    muxer: Muxer,
}

impl Lab {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let uds = folder.path().join("vm.vsock");
        let listener = UnixListener::bind(&uds).unwrap();
        let muxer = Muxer::new(3, uds, listener).unwrap();
        Self { folder, muxer }
    }

    fn client(&self) -> UnixStream {
        UnixStream::connect(self.folder.path().join("vm.vsock")).unwrap()
    }

    fn service(&self, port: u32) -> PathBuf {
        self.folder.path().join(format!("vm.vsock_{port}"))
    }

    fn header(&self, guest: u32, host: u32) -> Header {
        Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: guest,
            dst_port: host,
            kind: STREAM,
            buf_alloc: 64 << 10,
            ..Header::default()
        }
    }

    fn guest_says(&mut self, op: u16, guest: u32, host: u32, payload: &[u8]) {
        let header = Header { op, len: payload.len() as u32, ..self.header(guest, host) };
        self.muxer.receive(&header, payload);
    }

    fn answer(&mut self, packet: &Header, op: u16, payload: &[u8]) {
        self.guest_says(op, packet.dst_port, packet.src_port, payload);
    }

    /// The next packet, which must be this operation.
    fn expect(&mut self, op: u16) -> Header {
        let packet = self.next(&mut [0; 4096]);
        assert_eq!(packet.op, op, "{packet:?}");
        packet
    }

    /// The next packet of this operation.
    fn skip_to(&mut self, op: u16) -> Header {
        loop {
            let packet = self.next(&mut [0; 4096]);
            if packet.op == op {
                return packet;
            }
        }
    }

    fn expect_data(&mut self, len: usize) -> Vec<u8> {
        let mut payload = vec![0; len];
        let packet = self.next(&mut payload);
        assert_eq!((packet.op, packet.len as usize), (op::RW, len));
        payload
    }

    fn next(&mut self, payload: &mut [u8]) -> Header {
        let mut packet = None;
        self.until(|muxer| {
            packet = muxer.next_packet(payload);
            packet.is_some()
        });
        packet.unwrap()
    }

    /// Handles events of the host's sockets until something is so.
    fn until(&mut self, mut so: impl FnMut(&mut Muxer) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            while self.muxer.poll_host() {}
            if so(&mut self.muxer) {
                return;
            }
            assert!(Instant::now() < deadline, "nothing happened in time");
            let fd = self.muxer.epoll.0.as_fd();
            let mut fds = [nix::poll::PollFd::new(fd, nix::poll::PollFlags::POLLIN)];
            nix::poll::poll(&mut fds, 1000_u16).unwrap();
        }
    }

    fn drain_until_closed(&mut self, client: &mut UnixStream) -> usize {
        while self.muxer.poll_host() {}
        client.read(&mut [0; 8]).unwrap()
    }
}

fn read(stream: &mut UnixStream, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    stream.read_exact(&mut bytes).unwrap();
    bytes
}
