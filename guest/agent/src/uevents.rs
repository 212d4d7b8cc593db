//! The kernel's events about devices that come and go.

use std::io;

use rustix::net::netlink::{KOBJECT_UEVENT, SocketAddrNetlink};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, bind, recv, socket_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::watched::watched;

/// All events from the moment this value is made.
pub(crate) struct Uevents(AsyncFd<std::os::fd::OwnedFd>);

impl Uevents {
    /// Listens. Must be called inside the runtime.
    pub(crate) fn listen() -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::DGRAM, flags, Some(KOBJECT_UEVENT))?;
        bind(&socket, &SocketAddrNetlink::new(0, KERNEL))?;
        Ok(Self(watched(socket, Interest::READABLE)?))
    }

    /// Waits for the next event. What it was about shows in sysfs, which alone is believed.
    pub(crate) async fn next(&mut self) -> io::Result<()> {
        let mut event = [0; 8192];
        let receive = |socket: &std::os::fd::OwnedFd| match recv(socket, &mut event[..], RecvFlags::TRUNC) {
            // More came than fits: something has happened for certain.
            Err(rustix::io::Errno::NOBUFS) => Ok(()),
            received => received.map(drop).map_err(io::Error::from),
        };
        self.0.async_io(Interest::READABLE, receive).await
    }
}

/// The group in which the kernel itself speaks, and not a device manager.
const KERNEL: u32 = 1;
