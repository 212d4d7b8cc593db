//! The driver's device: the one system call that no safe wrapper exists for.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::Path;

use crate::Error;
use crate::message::{HEADER, Message};

/// `/dev/mapper/control`, open.
pub(crate) struct Control(File);

/// What the driver can be asked for; the number is that of its command.
#[derive(Clone, Copy)]
pub(crate) enum Command {
    Create = 3,
    Remove = 4,
    /// Resumes with the loaded table, unless a flag says suspend.
    Suspend = 6,
    LoadTable = 9,
    TableStatus = 12,
}

impl Control {
    pub(crate) fn open() -> Result<Self, Error> {
        let path = Path::new(PATH);
        let file = File::options().read(true).write(true).open(path);
        file.map(Self).map_err(|cause| Error::Control { path: path.to_owned(), cause })
    }

    /// Sends a request; the driver's answer is written over it.
    pub(crate) fn call(&self, command: Command, message: &mut Message) -> io::Result<()> {
        let buffer = message.buffer();
        let request = READ_WRITE | (HEADER as libc::Ioctl) << 16 | DRIVER << 8 | command as libc::Ioctl;
        // SAFETY: the driver reads and writes as many bytes as the message's size field says, which is the length of the
        // buffer, and keeps no pointer to it.
        let status = unsafe { libc::ioctl(self.0.as_raw_fd(), request, buffer.as_mut_ptr()) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

pub(crate) const FOLDER: &str = "/dev/mapper";
const PATH: &str = "/dev/mapper/control";
/// `_IOWR`
const READ_WRITE: libc::Ioctl = 3 << 30;
const DRIVER: libc::Ioctl = 0xfd;
