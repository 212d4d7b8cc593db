//! Stories of one connection: a scripted host on one side, a model of the guest's driver on the other.

use std::cell::RefCell;
use std::rc::Rc;

use proptest::prelude::*;

use super::*;
use crate::packet::MAX_PAYLOAD;

#[test]
fn a_connection_of_the_host_is_greeted_when_the_guest_accepts() {
    let (host, stream) = Host::new();
    let mut connection = Connection::to_guest(PORTS, stream);
    assert_eq!(ops(&mut connection), [op::REQUEST]);

    connection.receive(&packet(op::RESPONSE), &[]);
    assert_eq!(host.taken(), b"OK 1073741824\n");
    connection.receive(&packet(op::RW), b"hello");

    assert_eq!(host.taken(), b"OK 1073741824\nhello");
    // The greeting was not the guest's, so it is not credited to it.
    connection.receive(&packet(op::CREDIT_REQUEST), &[]);
    let update = connection.next_packet(&mut [0; 64]).unwrap();
    assert_eq!((update.op, update.fwd_cnt, update.buf_alloc), (op::CREDIT_UPDATE, 5, ReceiveCredit::BUFFER));
}

#[test]
fn a_connection_that_the_guest_refuses_is_closed_without_a_greeting() {
    let (host, stream) = Host::new();
    let mut connection = Connection::to_guest(PORTS, stream);
    ops(&mut connection);
    connection.receive(&packet(op::RST), &[]);
    assert!(connection.is_closed());
    assert_eq!(host.taken(), b"");
}

#[test]
fn a_host_that_gives_up_while_connecting_takes_the_request_back() {
    let hang_up = Readiness { hung_up: true, ..Readiness::default() };

    let mut unsent = Connection::to_guest(PORTS, Host::new().1);
    unsent.host_ready(hang_up);
    assert!(unsent.is_closed());

    let mut sent = Connection::to_guest(PORTS, Host::new().1);
    ops(&mut sent);
    sent.host_ready(hang_up);
    assert_eq!(ops(&mut sent), [op::RST]);
    assert!(sent.is_closed());
}

#[test]
fn data_of_the_host_waits_for_credit_and_asks_for_it_once() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4);
    host.say(b"abcdefgh");

    assert_eq!(payloads(&mut connection), b"abcd");
    assert!(!connection.has_pending(), "credit has been asked for, and nothing else can be done");
    // An answer without new credit must not start a ping-pong of requests.
    connection.receive(&Header { buf_alloc: 4, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert!(!connection.has_pending());

    connection.receive(&Header { buf_alloc: 4, fwd_cnt: 3, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(payloads(&mut connection), b"efg");
}

#[test]
fn data_of_the_guest_waits_for_the_host_and_is_credited_when_taken() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4096);
    host.accept(10);

    let sent = ReceiveCredit::BUFFER as usize / 2 + 10;
    connection.receive(&packet(op::RW), &vec![7; sent]);
    assert_eq!(connection.next_packet(&mut [0; 64]).map(|p| (p.op, p.fwd_cnt)), Some((op::CREDIT_UPDATE, 10)));
    assert!(!connection.has_pending());

    host.accept(usize::MAX);
    connection.host_ready(Readiness { writable: true, ..Readiness::default() });
    assert_eq!(host.taken().len(), sent);
    assert_eq!(connection.next_packet(&mut [0; 64]).map(|p| (p.op, p.fwd_cnt)), Some((op::CREDIT_UPDATE, sent as u32)));
}

#[test]
fn the_end_of_the_hosts_data_reaches_the_guest_after_the_data() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4096);
    host.say(b"last words");
    host.finish();

    let mut payload = [0; 64];
    assert_eq!(connection.next_packet(&mut payload).map(|p| (p.op, p.len)), Some((op::RW, 10)));
    assert_eq!(connection.next_packet(&mut payload).map(|p| (p.op, p.flags)), Some((op::SHUTDOWN, shutdown::SEND)));

    // The other direction stays open.
    connection.receive(&Header { fwd_cnt: 10, ..packet(op::RW) }, b"answer");
    assert_eq!(host.taken(), b"answer");
    connection.receive(&Header { flags: shutdown::BOTH, fwd_cnt: 10, ..packet(op::SHUTDOWN) }, &[]);
    assert_eq!(ops(&mut connection), [op::RST]);
    assert!(connection.is_closed());
}

#[test]
fn the_end_of_the_guests_data_reaches_the_host_after_the_data() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4096);
    host.accept(3);
    connection.receive(&packet(op::RW), b"last words");
    connection.receive(&Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN) }, &[]);
    assert!(!host.saw_shutdown(Shutdown::Write), "seven bytes are still to come");

    host.accept(usize::MAX);
    connection.host_ready(Readiness { writable: true, ..Readiness::default() });
    assert_eq!(host.taken(), b"last words");
    assert!(host.saw_shutdown(Shutdown::Write));

    // The other direction stays open.
    host.say(b"answer");
    connection.host_ready(Readiness { readable: true, ..Readiness::default() });
    assert_eq!(payloads(&mut connection), b"answer");
}

#[test]
fn a_guest_that_closes_is_answered_only_when_the_host_has_everything() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4096);
    host.accept(0);
    connection.receive(&packet(op::RW), b"last words");
    connection.receive(&Header { flags: shutdown::BOTH, ..packet(op::SHUTDOWN) }, &[]);
    assert!(host.saw_shutdown(Shutdown::Read), "the host's writes must fail");
    assert_eq!(ops(&mut connection), [0; 0]);

    // A guest that is tired of waiting forgets the connection; its words still arrive.
    connection.receive(&packet(op::RST), &[]);
    assert!(!connection.is_open() && !connection.is_closed());
    host.accept(usize::MAX);
    connection.host_ready(Readiness { writable: true, ..Readiness::default() });
    assert_eq!(host.taken(), b"last words");
    assert!(connection.is_closed());
}

#[test]
fn a_host_that_hangs_up_is_heard_to_the_end_and_then_the_guest_is_told_both() {
    let (host, stream) = Host::new();
    let mut connection = established(stream, 4);
    host.accept(0);
    connection.receive(&Header { buf_alloc: 4, ..packet(op::RW) }, b"nobody will read this");
    host.say(b"bye bye");
    host.finish();
    connection.host_ready(Readiness { readable: true, writable: true, hung_up: true });

    let mut payload = [0; 64];
    assert_eq!(connection.next_packet(&mut payload).map(|p| (p.op, p.len)), Some((op::RW, 4)));
    assert_eq!(connection.next_packet(&mut payload).map(|p| p.op), Some(op::CREDIT_REQUEST));
    assert_eq!(connection.next_packet(&mut payload).map(|p| (p.op, p.flags)), Some((op::SHUTDOWN, shutdown::RECEIVE)));
    connection.receive(&Header { buf_alloc: 4, fwd_cnt: 4, ..packet(op::RW) }, b"nor this");
    assert_eq!(connection.next_packet(&mut payload).map(|p| (p.op, p.len)), Some((op::RW, 3)));
    connection.receive(&Header { buf_alloc: 4, fwd_cnt: 7, ..packet(op::CREDIT_UPDATE) }, &[]);
    assert_eq!(
        connection.next_packet(&mut payload).map(|p| (p.op, p.flags, p.fwd_cnt)),
        Some((op::SHUTDOWN, shutdown::BOTH, 29))
    );
    assert!(!connection.has_pending());
}

#[test]
fn a_guest_that_breaks_the_protocol_is_reset() {
    type Step = (Header, Vec<u8>);
    let full = vec![0; ReceiveCredit::BUFFER as usize];
    let cases: [(&str, Vec<Step>); 9] = [
        ("data beyond the credit", vec![(packet(op::RW), full), (packet(op::RW), vec![0])]),
        ("a second request", vec![(packet(op::REQUEST), vec![])]),
        ("a response to its own request", vec![(packet(op::RESPONSE), vec![])]),
        ("an unknown operation", vec![(packet(99), vec![])]),
        ("operation zero", vec![(packet(0), vec![])]),
        ("a count of bytes never sent", vec![(Header { fwd_cnt: 1, ..packet(op::CREDIT_UPDATE) }, vec![])]),
        ("a shutdown of nothing", vec![(packet(op::SHUTDOWN), vec![])]),
        ("an unknown shutdown", vec![(Header { flags: 4, ..packet(op::SHUTDOWN) }, vec![])]),
        (
            "data after the end",
            vec![(Header { flags: shutdown::SEND, ..packet(op::SHUTDOWN) }, vec![]), (packet(op::RW), vec![0])],
        ),
    ];
    for (name, steps) in cases {
        let (host, stream) = Host::new();
        host.accept(0);
        let mut connection = established(stream, 4096);
        for (header, payload) in steps {
            connection.receive(&header, &payload);
        }
        assert_eq!(ops(&mut connection), [op::RST], "{name}");
        assert!(connection.is_closed(), "{name}");
    }
}

proptest! {
    /// Bulk in both directions at once, neither side reading for long stretches: everything arrives, nobody
    /// exceeds a credit, nobody is reset, and it ends.
    #[test]
    fn bulk_in_both_directions_arrives_whole(
        guest_buffer in 1_u32..5000,
        payload_room in 1_usize..5000,
        to_guest in 0_usize..10_000,
        to_host in 0_usize..400_000,
        steps in proptest::collection::vec((0_u8..6, 1_usize..70_000), 0..400),
    ) {
        let (host, stream) = Host::new();
        host.accept(0);
        let mut connection = established(stream, guest_buffer);
        let mut guest = Guest::new(guest_buffer, pattern(to_host));
        host.say(&pattern(to_guest));
        host.finish();

        // First as the script says, then fairly until nothing moves any more.
        let fairly = (0..).flat_map(|_| (0_u8..6).map(|action| (action, 50_000)));
        let mut idle = 0;
        for (action, amount) in steps.into_iter().chain(fairly) {
            let moved = match action {
                0 | 1 => guest.hear(&mut connection, payload_room),
                2 => guest.send(&mut connection, amount),
                3 => guest.read(&mut connection, amount),
                4 => host.accept(amount),
                _ => {
                    connection.host_ready(Readiness { readable: true, writable: true, hung_up: false });
                    false
                }
            };
            prop_assert!(connection.is_open());
            idle = if moved { 0 } else { idle + 1 };
            if idle > 12 && guest.read.len() == to_guest && host.0.borrow().taken.len() == to_host {
                break;
            }
            prop_assert!(idle < 5000, "stuck: {connection:?}");
        }

        prop_assert_eq!(guest.read, pattern(to_guest));
        prop_assert_eq!(host.taken(), pattern(to_host));
    }

    /// Whatever a guest sends, the connection does not panic and holds no more than its buffer.
    #[test]
    fn no_guest_breaks_a_connection(
        packets in proptest::collection::vec((0_u16..9, 0_u32..5, any::<u32>(), 0_u32..3, 0_usize..70_000), 0..50),
    ) {
        let (host, stream) = Host::new();
        host.accept(1000);
        host.say(&pattern(10_000));
        let mut connection = established(stream, 4096);
        for (op, flags, buf_alloc, fwd_cnt, len) in packets {
            let header = Header { flags, buf_alloc, fwd_cnt, ..packet(op) };
            connection.receive(&header, &vec![0; len.min(MAX_PAYLOAD)]);
            connection.next_packet(&mut [0; 100]);
            prop_assert!(connection.inbound.len() <= ReceiveCredit::BUFFER as usize);
        }
    }
}

const PORTS: Ports = Ports { host: 1 << 30, guest: 1024 };

/// A packet of a guest that has taken nothing and has room for 4096 bytes.
fn packet(op: u16) -> Header {
    Header { op, kind: STREAM, buf_alloc: 4096, ..Header::default() }
}

/// A connection that the guest asked for, its RESPONSE sent.
fn established(stream: Stream, guest_buffer: u32) -> Connection<Stream> {
    let request = Header { buf_alloc: guest_buffer, ..packet(op::REQUEST) };
    let mut connection = Connection::from_guest(PORTS, stream, &request);
    assert_eq!(connection.next_packet(&mut []).map(|p| p.op), Some(op::RESPONSE));
    connection
}

fn ops(connection: &mut Connection<Stream>) -> Vec<u16> {
    std::iter::from_fn(|| connection.next_packet(&mut [0; 4096])).map(|packet| packet.op).collect()
}

fn payloads(connection: &mut Connection<Stream>) -> Vec<u8> {
    let mut payload = [0; 4096];
    let mut all = Vec::new();
    while let Some(packet) = connection.next_packet(&mut payload) {
        all.extend_from_slice(&payload[..packet.len as usize]);
    }
    all
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// The guest's driver, as far as credit goes: it never sends beyond its credit and checks that it gets no more
/// than it has room for.
struct Guest {
    buffer: u32,
    unread: VecDeque<u8>,
    read: Vec<u8>,
    forwarded: u32,
    to_send: VecDeque<u8>,
    sent: u32,
    host_buffer: u32,
    host_forwarded: u32,
}

impl Guest {
    fn new(buffer: u32, to_send: Vec<u8>) -> Self {
        Self {
            buffer,
            unread: VecDeque::new(),
            read: Vec::new(),
            forwarded: 0,
            to_send: to_send.into(),
            sent: 0,
            host_buffer: ReceiveCredit::BUFFER,
            host_forwarded: 0,
        }
    }

    fn hear(&mut self, connection: &mut Connection<Stream>, room: usize) -> bool {
        let mut payload = vec![0; room];
        let Some(packet) = connection.next_packet(&mut payload) else { return false };
        assert_ne!(packet.op, op::RST);
        self.host_buffer = packet.buf_alloc;
        self.host_forwarded = packet.fwd_cnt;
        self.unread.extend(&payload[..packet.len as usize]);
        assert!(self.unread.len() <= self.buffer as usize, "the host exceeded the guest's buffer");
        if packet.op == op::CREDIT_REQUEST {
            self.tell(connection, op::CREDIT_UPDATE, &[]);
        }
        true
    }

    fn send(&mut self, connection: &mut Connection<Stream>, amount: usize) -> bool {
        let credit = self.host_buffer - self.sent.wrapping_sub(self.host_forwarded);
        let len = amount.min(MAX_PAYLOAD).min(credit as usize).min(self.to_send.len());
        let payload: Vec<u8> = self.to_send.drain(..len).collect();
        self.sent += len as u32;
        if len > 0 {
            self.tell(connection, op::RW, &payload);
        }
        len > 0
    }

    fn read(&mut self, connection: &mut Connection<Stream>, amount: usize) -> bool {
        let len = amount.min(self.unread.len());
        self.read.extend(self.unread.drain(..len));
        self.forwarded += len as u32;
        if len > 0 {
            self.tell(connection, op::CREDIT_UPDATE, &[]);
        }
        len > 0
    }

    fn tell(&self, connection: &mut Connection<Stream>, op: u16, payload: &[u8]) {
        let header = Header { buf_alloc: self.buffer, fwd_cnt: self.forwarded, ..packet(op) };
        connection.receive(&header, payload);
    }
}

/// The test's grip on a scripted host.
struct Host(Rc<RefCell<Script>>);
/// The connection's end of a scripted host.
#[derive(Debug)]
struct Stream(Rc<RefCell<Script>>);

#[derive(Debug)]
struct Script {
    says: VecDeque<u8>,
    finished: bool,
    taken: Vec<u8>,
    will_take: usize,
    shutdowns: Vec<Shutdown>,
}

impl Host {
    /// A host that says nothing and takes everything.
    fn new() -> (Self, Stream) {
        let script = Script {
            says: VecDeque::new(),
            finished: false,
            taken: Vec::new(),
            will_take: usize::MAX,
            shutdowns: Vec::new(),
        };
        let script = Rc::new(RefCell::new(script));
        (Self(script.clone()), Stream(script))
    }

    fn say(&self, bytes: &[u8]) {
        self.0.borrow_mut().says.extend(bytes);
    }

    fn finish(&self) {
        self.0.borrow_mut().finished = true;
    }

    /// Takes at most `amount` bytes from now on.
    fn accept(&self, amount: usize) -> bool {
        self.0.borrow_mut().will_take = amount;
        false
    }

    fn taken(&self) -> Vec<u8> {
        self.0.borrow().taken.clone()
    }

    fn saw_shutdown(&self, how: Shutdown) -> bool {
        self.0.borrow().shutdowns.contains(&how)
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut script = self.0.borrow_mut();
        if script.says.is_empty() && !script.finished {
            return Err(ErrorKind::WouldBlock.into());
        }
        script.says.read(buffer)
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut script = self.0.borrow_mut();
        let len = bytes.len().min(script.will_take);
        if len == 0 {
            return Err(ErrorKind::WouldBlock.into());
        }
        script.will_take -= len;
        script.taken.extend_from_slice(&bytes[..len]);
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl HostStream for Stream {
    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        self.0.borrow_mut().shutdowns.push(how);
        Ok(())
    }
}
