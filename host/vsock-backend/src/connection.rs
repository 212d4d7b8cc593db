//! One vsock connection: packets from the guest in, packets to the guest out, a host stream on the other side.
//!
//! Nothing here blocks and nothing here knows a queue: a stream that is not ready says `WouldBlock`, and whoever
//! owns the connection reports readiness with [`Connection::host_ready`].

use std::collections::VecDeque;
use std::io::{self, ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;

use crate::credit::{Overrun, ReceiveCredit, SendCredit};
use crate::packet::{Header, STREAM, op, shutdown};

/// The host's end of a connection.
pub(crate) trait HostStream: Read + Write {
    fn shut_down(&self, how: Shutdown) -> io::Result<()>;
}

/// The two ports that name a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Ports {
    pub(crate) host: u32,
    pub(crate) guest: u32,
}

/// What happened to the host's stream; several may be set at once.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Readiness {
    pub(crate) readable: bool,
    pub(crate) writable: bool,
    /// Both directions are closed: what was sent can still be read, nothing will be taken any more.
    pub(crate) hung_up: bool,
}

/// A connection's state. Bounded: it holds at most [`ReceiveCredit::BUFFER`] bytes of the guest's.
#[derive(Debug)]
pub(crate) struct Connection<S> {
    stream: S,
    ports: Ports,
    phase: Phase,
    readable: bool,
    writable: bool,
    /// Bytes on their way to the host's stream.
    inbound: VecDeque<u8>,
    /// How many bytes at the front of `inbound` are our own greeting, which is not the guest's to be credited for.
    greeting: usize,
    to_guest: SendCredit,
    from_guest: ReceiveCredit,
    /// A REQUEST or RESPONSE that has not been sent yet.
    owed_opening: Option<u16>,
    owed_credit: bool,
    asked_for_credit: bool,
    /// What the host will not do any more, and how much of that the guest has been told.
    host_shutdown: u32,
    told_shutdown: u32,
    guest_shutdown: u32,
}

impl<S: HostStream> Connection<S> {
    /// A connection that the host asks for. The host gets `OK <host port>` once the guest has accepted.
    pub(crate) fn to_guest(ports: Ports, stream: S) -> Self {
        Self::new(ports, stream, Phase::Connecting, op::REQUEST)
    }

    /// A connection that the guest asked for with `request`, and that the host's `stream` has accepted.
    pub(crate) fn from_guest(ports: Ports, stream: S, request: &Header) -> Self {
        let mut connection = Self::new(ports, stream, Phase::Established, op::RESPONSE);
        // Nothing has been sent yet, so that only a count of zero can be true.
        if connection.to_guest.update(request.buf_alloc, request.fwd_cnt).is_err() {
            connection.reset();
        }
        connection
    }

    /// Takes a packet from the guest. `payload` is what came with an RW packet, at most 64 KiB.
    ///
    /// A packet that breaks the protocol resets the connection.
    pub(crate) fn receive(&mut self, header: &Header, payload: &[u8]) {
        if !matches!(self.phase, Phase::Connecting | Phase::Established) {
            return;
        }
        if header.op == op::RST {
            return self.guest_left();
        }
        if self.to_guest.update(header.buf_alloc, header.fwd_cnt).is_err() {
            return self.reset();
        }
        if self.to_guest.available() > 0 {
            self.asked_for_credit = false;
        }
        match (self.phase, header.op) {
            (Phase::Connecting, op::RESPONSE) if self.owed_opening.is_none() => self.accepted(),
            (Phase::Established, op::RW) => match self.take(payload) {
                Ok(()) => self.flush(),
                Err(Overrun) => self.reset(),
            },
            (Phase::Established, op::SHUTDOWN) if (1..=shutdown::BOTH).contains(&header.flags) => {
                self.guest_shut_down(header.flags);
            }
            (Phase::Established, op::CREDIT_UPDATE) => {}
            (Phase::Established, op::CREDIT_REQUEST) => self.owed_credit = true,
            _ => self.reset(),
        }
    }

    /// Takes what happened to the host's stream, and writes to it what it will take.
    pub(crate) fn host_ready(&mut self, readiness: Readiness) {
        self.readable |= readiness.readable;
        self.writable |= readiness.writable;
        if readiness.hung_up {
            self.host_left();
        }
        self.flush();
    }

    /// Whether [`Connection::next_packet`] has something to try.
    pub(crate) fn has_pending(&self) -> bool {
        match self.phase {
            Phase::Connecting => self.owed_opening.is_some(),
            Phase::Established => {
                self.owed_opening.is_some()
                    || self.wants_to_read() && (self.to_guest.available() > 0 || !self.asked_for_credit)
                    || self.host_shutdown != self.told_shutdown
                    || self.owes_credit()
            }
            Phase::Resetting => true,
            Phase::Lingering | Phase::Closed => false,
        }
    }

    /// The next packet for the guest, its payload in the first `len` bytes of `payload`.
    ///
    /// `payload` is as long as the guest's buffer has room for. `None` if the host's stream had nothing to say.
    pub(crate) fn next_packet(&mut self, payload: &mut [u8]) -> Option<Header> {
        if self.phase == Phase::Resetting {
            self.phase = Phase::Closed;
            return Some(self.header(op::RST));
        }
        if !self.has_pending() {
            return None;
        }
        if let Some(opening) = self.owed_opening.take() {
            return Some(self.header(opening));
        }
        if self.wants_to_read() {
            let room = payload.len().min(self.to_guest.available());
            if room > 0 {
                if let Some(len) = self.read(&mut payload[..room]) {
                    self.to_guest.consume(len);
                    return Some(Header { len: len as u32, ..self.header(op::RW) });
                }
            } else if !self.asked_for_credit {
                self.asked_for_credit = true;
                return Some(self.header(op::CREDIT_REQUEST));
            }
        }
        if self.host_shutdown != self.told_shutdown {
            self.told_shutdown = self.host_shutdown;
            return Some(Header { flags: self.host_shutdown, ..self.header(op::SHUTDOWN) });
        }
        if self.owes_credit() {
            return Some(self.header(op::CREDIT_UPDATE));
        }
        None
    }

    /// Whether packets of the guest still belong to this connection.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.phase, Phase::Connecting | Phase::Established)
    }

    /// Whether nothing is left to do: the stream can be dropped.
    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    pub(crate) fn ports(&self) -> Ports {
        self.ports
    }

    fn new(ports: Ports, stream: S, phase: Phase, opening: u16) -> Self {
        Self {
            stream,
            ports,
            phase,
            readable: true,
            writable: true,
            inbound: VecDeque::new(),
            greeting: 0,
            to_guest: SendCredit::new(),
            from_guest: ReceiveCredit::new(),
            owed_opening: Some(opening),
            owed_credit: false,
            asked_for_credit: false,
            host_shutdown: 0,
            told_shutdown: 0,
            guest_shutdown: 0,
        }
    }

    /// A header of this connection; every packet tells the guest what has been forwarded. The owner adds the CIDs.
    fn header(&mut self, op: u16) -> Header {
        self.owed_credit = false;
        Header {
            src_port: self.ports.host,
            dst_port: self.ports.guest,
            kind: STREAM,
            op,
            buf_alloc: ReceiveCredit::BUFFER,
            fwd_cnt: self.from_guest.announce(),
            ..Header::default()
        }
    }

    fn accepted(&mut self) {
        self.phase = Phase::Established;
        let greeting = format!("OK {}\n", self.ports.host);
        self.greeting = greeting.len();
        self.inbound.extend(greeting.bytes());
        self.flush();
    }

    fn take(&mut self, payload: &[u8]) -> Result<(), Overrun> {
        if self.guest_shutdown & shutdown::SEND != 0 {
            return Err(Overrun);
        }
        self.from_guest.receive(payload.len())?;
        if self.host_shutdown & shutdown::RECEIVE != 0 {
            // The guest has not yet heard that nobody listens.
            self.from_guest.forward(payload.len());
        } else {
            self.inbound.extend(payload);
        }
        Ok(())
    }

    fn guest_shut_down(&mut self, flags: u32) {
        self.guest_shutdown |= flags;
        if self.guest_shutdown & shutdown::RECEIVE != 0 {
            // What the host writes from now on would be lost, so let its writes fail.
            let _ = self.stream.shut_down(Shutdown::Read);
        }
        self.flush();
    }

    /// The guest has forgotten the connection; what it sent before still belongs to the host.
    fn guest_left(&mut self) {
        self.phase = Phase::Lingering;
        self.flush();
    }

    /// The host takes nothing any more. What it has sent is still read, until its end.
    fn host_left(&mut self) {
        self.host_shutdown |= shutdown::RECEIVE;
        self.discard_inbound();
        if self.phase == Phase::Connecting {
            // A guest that has not been asked yet need not hear of it.
            self.phase = if self.owed_opening.is_some() { Phase::Closed } else { Phase::Resetting };
        }
    }

    fn reset(&mut self) {
        self.phase = Phase::Resetting;
        self.inbound = VecDeque::new();
    }

    fn wants_to_read(&self) -> bool {
        self.readable && self.host_shutdown & shutdown::SEND == 0 && self.guest_shutdown & shutdown::RECEIVE == 0
    }

    fn owes_credit(&self) -> bool {
        self.owed_credit || self.guest_shutdown & shutdown::SEND == 0 && self.from_guest.wants_update()
    }

    /// Reads from the host; `None` if there is nothing now, or never again.
    fn read(&mut self, buffer: &mut [u8]) -> Option<usize> {
        loop {
            match self.stream.read(buffer) {
                Ok(0) => {
                    self.host_shutdown |= shutdown::SEND;
                    return None;
                }
                Ok(len) => return Some(len),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.readable = false;
                    return None;
                }
                Err(_) => {
                    self.host_shutdown |= shutdown::SEND;
                    self.host_left();
                    return None;
                }
            }
        }
    }

    /// Writes to the host what it will take, and ends what has come to its end by that.
    fn flush(&mut self) {
        while self.writable && !self.inbound.is_empty() {
            match self.stream.write(self.inbound.as_slices().0) {
                Ok(0) => self.writable = false,
                Ok(len) => {
                    self.inbound.drain(..len);
                    let own = len.min(self.greeting);
                    self.greeting -= own;
                    self.from_guest.forward(len - own);
                }
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => self.writable = false,
                Err(_) => self.host_left(),
            }
        }
        if !self.inbound.is_empty() {
            return;
        }
        if self.inbound.capacity() > IDLE_CAPACITY {
            self.inbound = VecDeque::new();
        }
        match self.phase {
            Phase::Lingering => self.phase = Phase::Closed,
            Phase::Established if self.guest_shutdown == shutdown::BOTH => self.reset(),
            Phase::Established if self.guest_shutdown & shutdown::SEND != 0 => {
                let _ = self.stream.shut_down(Shutdown::Write);
            }
            _ => {}
        }
    }

    fn discard_inbound(&mut self) {
        self.from_guest.forward(self.inbound.len() - self.greeting);
        self.greeting = 0;
        self.inbound = VecDeque::new();
    }
}

impl HostStream for UnixStream {
    fn shut_down(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Phase {
    /// The host has asked, the guest has not answered.
    Connecting,
    Established,
    /// The guest is to be told that the connection is gone.
    Resetting,
    /// The guest has gone; the host has not yet taken everything.
    Lingering,
    Closed,
}

/// What an idle connection may keep allocated.
const IDLE_CAPACITY: usize = 16 << 10;

#[cfg(test)]
mod tests;
