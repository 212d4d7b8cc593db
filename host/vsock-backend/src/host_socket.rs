//! The host's side of hybrid vsock: the line that a host client sends first, and the sockets that the guest reaches.

use std::io::{self, ErrorKind, Read};
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

/// A host client that has connected and not yet said which port it wants.
#[derive(Debug)]
pub(crate) struct Caller<S = UnixStream> {
    stream: S,
    line: Vec<u8>,
}

/// What a [`Caller`] has said so far.
#[derive(Debug)]
pub(crate) enum Call<S = UnixStream> {
    /// The line is not complete yet.
    Waiting(Caller<S>),
    /// The client wants this port of the guest's.
    Port(u32, S),
    /// The client has gone, or said something else.
    Nonsense,
}

impl<S: Read> Caller<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, line: Vec::new() }
    }

    /// Reads on, without blocking, up to the end of `CONNECT <port>\n` and not a byte further: what follows is for
    /// the guest.
    pub(crate) fn listen(mut self) -> Call<S> {
        while self.line.len() < MAX_LINE {
            let mut byte = [0];
            match self.stream.read(&mut byte) {
                Ok(0) => return Call::Nonsense,
                Ok(_) if byte == *b"\n" => {
                    return match port(&self.line) {
                        Some(port) => Call::Port(port, self.stream),
                        None => Call::Nonsense,
                    };
                }
                Ok(_) => self.line.push(byte[0]),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Call::Waiting(self),
                Err(_) => return Call::Nonsense,
            }
        }
        Call::Nonsense
    }
}

/// Where the host serves `port` for this guest: `<uds>_<port>`.
pub(crate) fn service_path(uds: &Path, port: u32) -> PathBuf {
    let mut path = uds.as_os_str().to_owned();
    path.push(format!("_{port}"));
    path.into()
}

/// Connects without ever waiting: a service whose backlog is full refuses.
pub(crate) fn connect_service(uds: &Path, port: u32) -> io::Result<UnixStream> {
    let address = UnixAddr::new(&service_path(uds, port))?;
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    let fd = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    connect(fd.as_raw_fd(), &address)?;
    Ok(fd.into())
}

fn port(line: &[u8]) -> Option<u32> {
    let (command, port) = std::str::from_utf8(line).ok()?.split_once(' ')?;
    // `str::parse` would take a plus sign.
    (command.eq_ignore_ascii_case("connect") && port.starts_with(|c: char| c.is_ascii_digit()))
        .then(|| port.parse().ok())
        .flatten()
}

/// `CONNECT 4294967295` has 18 bytes; no port needs more.
const MAX_LINE: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_the_port_and_the_rest_stays_unread() {
        let said = b"CONNECT 1024\nfor the guest";
        let Call::Port(1024, rest) = Caller::new(&said[..]).listen() else { panic!("port 1024 was named") };
        assert_eq!(rest, b"for the guest");
    }

    #[test]
    fn only_a_line_with_a_port_is_understood() {
        for (said, understood) in [
            (&b"CONNECT 1024\n"[..], Some(1024)),
            (b"connect 4294967295\n", Some(u32::MAX)),
            (b"CONNECT 4294967296\n", None),
            (b"CONNECT +5\n", None),
            (b"CONNECT -5\n", None),
            (b"CONNECT\n", None),
            (b"CONNECT 10 24\n", None),
            (b"LISTEN 1024\n", None),
            (b"CONNECT \xff\n", None),
            (b"\n", None),
            (b"CONNECT 1024", None),
            (b"CONNECT 000000000000000000000001024\n", None),
        ] {
            let port = match Caller::new(said).listen() {
                Call::Port(port, _) => Some(port),
                _ => None,
            };
            assert_eq!(port, understood, "{:?}", said.escape_ascii().to_string());
        }
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        ours.set_nonblocking(true).unwrap();

        io::Write::write_all(&mut theirs, b"CONN").unwrap();
        let Call::Waiting(caller) = Caller::new(ours).listen() else { panic!("the line is incomplete") };
        io::Write::write_all(&mut theirs, b"ECT 7\n").unwrap();
        assert!(matches!(caller.listen(), Call::Port(7, _)));
    }
}
