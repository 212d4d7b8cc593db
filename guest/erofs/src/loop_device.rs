//! A file as a read-only block device. The one module here with system calls that nobody wraps.
//!
//! Source: Linux, include/uapi/linux/loop.h.

#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

/// A loop device. It lasts until nobody has it open any more: neither this, nor a mount, nor a mapping.
pub(crate) struct LoopDevice {
    path: PathBuf,
    _device: File,
}

impl LoopDevice {
    /// Binds a free device to `file`.
    ///
    /// # Errors
    /// What the kernel answers; `NotFound` if it has no loop devices.
    pub(crate) fn attach(file: &File) -> io::Result<Self> {
        let control = File::options().read(true).write(true).open(CONTROL)?;
        for _ in 0..ATTEMPTS {
            // SAFETY: this request takes no argument.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let device = File::open(&path)?;
            let configuration = configuration(file);
            // SAFETY: the kernel reads as many bytes as its structure has, which is the array's length, and writes none.
            let status = unsafe { libc::ioctl(device.as_raw_fd(), CONFIGURE, configuration.as_ptr()) };
            if status == 0 {
                return Ok(Self { path, _device: device });
            }
            let error = io::Error::last_os_error();
            // Somebody else took the same free device.
            if error.raw_os_error() != Some(libc::EBUSY) {
                return Err(error);
            }
        }
        Err(io::Error::from_raw_os_error(libc::EBUSY))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `struct loop_config`: the file, and the flags inside `struct loop_info64`.
fn configuration(file: &File) -> [u8; CONFIGURATION] {
    let mut bytes = [0; CONFIGURATION];
    bytes[..4].copy_from_slice(&file.as_raw_fd().to_ne_bytes());
    bytes[FLAGS..FLAGS + 4].copy_from_slice(&(READ_ONLY | AUTO_CLEAR).to_ne_bytes());
    bytes
}

const CONTROL: &str = "/dev/loop-control";
/// `LOOP_CTL_GET_FREE`
const GET_FREE: libc::Ioctl = 0x4c82;
/// `LOOP_CONFIGURE`
const CONFIGURE: libc::Ioctl = 0x4c0a;
/// Eight bytes, the information of 232 bytes, and 64 in reserve.
const CONFIGURATION: usize = 8 + 232 + 64;
/// Five numbers of eight bytes and three of four come first in the information.
const FLAGS: usize = 8 + 5 * 8 + 3 * 4;
/// `LO_FLAGS_READ_ONLY`
const READ_ONLY: u32 = 1;
/// `LO_FLAGS_AUTOCLEAR`
const AUTO_CLEAR: u32 = 4;
const ATTEMPTS: usize = 16;
