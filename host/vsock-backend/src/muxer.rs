//! All connections of one guest: routes its packets, accepts the host's clients, and picks the next packet for it.
//!
//! The host's streams are watched edge-triggered by an epoll instance of the muxer's own, which is itself a file
//! descriptor to wait for.

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::connection::{Connection, Ports, Readiness};
use crate::host_socket::{Call, Caller, connect_service};
use crate::packet::{HOST_CID, Header, MAX_PAYLOAD, STREAM, op};

/// The connections of one guest. Bounded: at most [`MAX_CONNECTIONS`] and [`MAX_RESETS`] resets of unknown ones.
pub(crate) struct Muxer {
    guest_cid: u64,
    uds: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    entries: HashMap<Id, Entry>,
    /// Where packets of the guest go; only connections that the guest still knows.
    routes: HashMap<Ports, Id>,
    /// Connections that have something for the guest, each at most once, in turn.
    ready: VecDeque<Id>,
    resets: VecDeque<Header>,
    next_id: Id,
    next_port: u32,
}

impl Muxer {
    /// Serves the host's clients on `listener`, whose path `uds` is the stem of the sockets the guest reaches.
    pub(crate) fn new(guest_cid: u64, uds: PathBuf, listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, LISTENER))?;
        Ok(Self {
            guest_cid,
            uds,
            listener,
            epoll,
            entries: HashMap::new(),
            routes: HashMap::new(),
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            next_id: LISTENER + 1,
            next_port: FIRST_PORT,
        })
    }

    /// Handles what has happened on the host's sockets. `true` if there may be more.
    pub(crate) fn poll_host(&mut self) -> bool {
        let mut events = [EpollEvent::empty(); 64];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(Errno::EINTR) => return true,
            Err(e) => {
                tracing::error!(error = %e, "vsock: the host's sockets can't be watched");
                return false;
            }
        };
        for event in &events[..count] {
            match event.data() {
                LISTENER => self.accept(),
                id => self.host_event(id, event.events()),
            }
        }
        count == events.len()
    }

    /// Takes a packet from the guest. `payload` is what the descriptors held behind the header.
    ///
    /// What another address sent or should get is dropped; what belongs to no connection is answered by a reset.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8]) {
        if header.src_cid != self.guest_cid || header.dst_cid != HOST_CID {
            return tracing::debug!(?header, "vsock: packet with a wrong address dropped");
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let route = if header.kind == STREAM { self.routes.get(&ports).copied() } else { None };
        let Some(id) = route else {
            return match header.op {
                op::RST => {}
                op::REQUEST if header.kind == STREAM && header.len == 0 => self.connect(ports, header),
                _ => self.resets.push_back(header.reset()),
            };
        };
        let Some(Entry::Connection { connection, .. }) = self.entries.get_mut(&id) else { return };
        // Only data has a payload, and it is as long as the header says.
        let sound = if header.op == op::RW { header.len as usize == payload.len() } else { header.len == 0 };
        if sound {
            connection.receive(header, payload);
        } else {
            connection.receive(&Header { op: 0, ..*header }, &[]);
        }
        self.settle(id);
    }

    /// Whether [`Muxer::next_packet`] has something to try.
    pub(crate) fn has_pending(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Whether packets of the guest should wait until it has taken the resets it has caused.
    pub(crate) fn is_congested(&self) -> bool {
        self.resets.len() >= MAX_RESETS
    }

    /// The next packet for the guest, its payload in the first `len` bytes of `payload`, which is as long as the
    /// guest's buffer has room for.
    pub(crate) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if let Some(reset) = self.resets.pop_front() {
            return Some(reset);
        }
        let room = payload.len().min(MAX_PAYLOAD);
        while let Some(id) = self.ready.pop_front() {
            let Some(Entry::Connection { connection, queued }) = self.entries.get_mut(&id) else { continue };
            *queued = false;
            let packet = connection.next_packet(&mut payload[..room]);
            self.settle(id);
            if let Some(packet) = packet {
                return Some(Header { src_cid: HOST_CID, dst_cid: self.guest_cid, ..packet });
            }
        }
        None
    }

    /// Forgets everything that the guest knew, because its driver has gone. Clients see the end of their streams.
    pub(crate) fn reset(&mut self) {
        self.entries.clear();
        self.routes.clear();
        self.ready.clear();
        self.resets.clear();
    }

    fn accept(&mut self) {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => match self.admit(stream) {
                    Ok(()) => {}
                    Err(e) => tracing::warn!(error = %e, "vsock: a client of the host was turned away"),
                },
                Err(e) if e.kind() == ErrorKind::WouldBlock => return,
                Err(e) if matches!(e.kind(), ErrorKind::Interrupted | ErrorKind::ConnectionAborted) => {}
                Err(e) => return tracing::warn!(error = %e, "vsock: a client of the host could not be accepted"),
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) -> io::Result<()> {
        stream.set_nonblocking(true)?;
        let id = self.watch(&stream)?;
        self.entries.insert(id, Entry::Caller(Caller::new(stream)));
        self.hear_caller(id);
        Ok(())
    }

    fn hear_caller(&mut self, id: Id) {
        let Some(Entry::Caller(caller)) = self.entries.remove(&id) else { return };
        match caller.listen() {
            Call::Waiting(caller) => _ = self.entries.insert(id, Entry::Caller(caller)),
            Call::Port(guest, stream) => {
                let ports = Ports { host: self.free_port(guest), guest };
                self.insert(id, Connection::to_guest(ports, stream));
            }
            Call::Nonsense => tracing::debug!("vsock: a client of the host did not say CONNECT and a port"),
        }
    }

    /// The guest wants a service of the host's.
    fn connect(&mut self, ports: Ports, request: &Header) {
        let stream = connect_service(&self.uds, ports.host).and_then(|stream| Ok((self.watch(&stream)?, stream)));
        match stream {
            Ok((id, stream)) => self.insert(id, Connection::from_guest(ports, stream, request)),
            Err(e) => {
                tracing::debug!(port = ports.host, error = %e, "vsock: the guest asked for a service that is not there");
                self.resets.push_back(request.reset());
            }
        }
    }

    fn host_event(&mut self, id: Id, events: EpollFlags) {
        match self.entries.get_mut(&id) {
            Some(Entry::Caller(_)) => self.hear_caller(id),
            Some(Entry::Connection { connection, .. }) => {
                connection.host_ready(Readiness {
                    readable: events.intersects(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP),
                    writable: events.intersects(EpollFlags::EPOLLOUT),
                    hung_up: events.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR),
                });
                self.settle(id);
            }
            None => {}
        }
    }

    /// Starts to watch a stream; dropping the stream ends it.
    fn watch(&mut self, stream: &UnixStream) -> io::Result<Id> {
        if self.entries.len() >= MAX_CONNECTIONS {
            return Err(io::Error::other(format!("the guest has {MAX_CONNECTIONS} connections already")));
        }
        let id = self.next_id;
        let interest = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        self.epoll.add(stream.as_fd(), EpollEvent::new(interest, id))?;
        self.next_id += 1;
        Ok(id)
    }

    fn insert(&mut self, id: Id, connection: Connection<UnixStream>) {
        self.routes.insert(connection.ports(), id);
        self.entries.insert(id, Entry::Connection { connection, queued: false });
        self.settle(id);
    }

    /// Puts the tables in order after a connection has changed.
    fn settle(&mut self, id: Id) {
        let Some(Entry::Connection { connection, queued }) = self.entries.get_mut(&id) else { return };
        if !connection.is_open() && self.routes.get(&connection.ports()) == Some(&id) {
            self.routes.remove(&connection.ports());
        }
        if connection.is_closed() {
            self.entries.remove(&id);
        } else if connection.has_pending() && !*queued {
            *queued = true;
            self.ready.push_back(id);
        }
    }

    /// A port of the host's that no connection to `guest` uses.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            self.next_port = FIRST_PORT | ((host + 1) % FIRST_PORT);
            // Ends: there are far more ports than connections.
            if !self.routes.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }
}

impl AsRawFd for Muxer {
    /// Readable when [`Muxer::poll_host`] has something to do.
    fn as_raw_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }
}

enum Entry {
    Caller(Caller),
    Connection { connection: Connection<UnixStream>, queued: bool },
}

/// Names an entry for as long as the muxer lives; never used twice, so that a late event finds nothing.
type Id = u64;

const LISTENER: Id = 0;
/// Ports from here to twice as far name the host's end of connections that the host asked for.
const FIRST_PORT: u32 = 1 << 30;
/// Connections and clients together.
pub(crate) const MAX_CONNECTIONS: usize = 1024;
const MAX_RESETS: usize = 256;

#[cfg(test)]
mod tests;
