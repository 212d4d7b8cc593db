//! A macvtap link: a pod's interface as a device file, without a redirection.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// Opens the device of the macvtap link called `name` in the namespace of the calling thread.
///
/// The kernel names its file by a number that is unique in one namespace only, in the one `/dev` of all. So the thread
/// looks it up in a view of the system of its own, which ends with it.
pub(crate) fn open(name: &str) -> io::Result<OwnedFd> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("sysfs"), "/sys", Some("sysfs"), MsFlags::MS_RDONLY, none)?;
    mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), none)?;

    let folder = Path::new("/sys/class/net").join(name).join("macvtap");
    let device = fs::read_dir(folder)?.next().ok_or(io::ErrorKind::NotFound)??;
    let numbers = fs::read_to_string(device.path().join("dev"))?;
    let numbers =
        numbers.trim().split_once(':').and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)));
    let (major, minor) = numbers.ok_or(io::ErrorKind::InvalidData)?;
    mknod("/dev/tap", SFlag::S_IFCHR, Mode::S_IRUSR | Mode::S_IWUSR, makedev(major, minor))?;
    Ok(File::options().read(true).write(true).open("/dev/tap")?.into())
}
