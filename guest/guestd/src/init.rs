//! What the first process owes its machine: file systems, a root that containers can pivot from, and the end.

use std::fs;
use std::io;
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::resource::{Resource, setrlimit};

/// Mounts what the roles need and moves to a root that `pivot_root` accepts.
///
/// The kernel's initramfs can't be pivoted from. A bind mount of it, moved onto `/`, can, and nothing is copied.
///
/// # Errors
/// [`Error`] names the mount that failed.
pub(crate) fn mount_file_systems() -> Result<(), Error> {
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    attach("proc", "/proc", "proc", plain, "")?;
    attach("sysfs", "/sys", "sysfs", plain, "")?;
    attach("devtmpfs", "/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=0755")?;

    fs::create_dir_all(NEW_ROOT).map_err(|source| Error { what: NEW_ROOT.to_owned(), source })?;
    step("/", || mount(Some("/"), NEW_ROOT, NONE, MsFlags::MS_BIND, NONE))?;
    for moved in ["/proc", "/sys", "/dev"] {
        let target = format!("{NEW_ROOT}{moved}");
        step(moved, || mount(Some(moved), target.as_str(), NONE, MsFlags::MS_MOVE, NONE))?;
    }
    step("the new root", || {
        nix::unistd::chdir(NEW_ROOT)?;
        mount(Some("."), "/", NONE, MsFlags::MS_MOVE, NONE)?;
        nix::unistd::chroot(".")?;
        nix::unistd::chdir("/")
    })?;

    let room = format!("mode=0755,size={}", room_for_files());
    attach("tmpfs", "/run", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, &room)?;
    attach("tmpfs", "/tmp", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    attach("devpts", "/dev/pts", "devpts", MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC, "mode=0620,ptmxmode=0666")?;
    attach("tmpfs", "/dev/shm", "tmpfs", MsFlags::MS_NOSUID | MsFlags::MS_NODEV, "mode=1777")?;
    attach("cgroup2", CGROUPS, "cgroup2", plain, "")?;
    enable_controllers()?;

    // From here on nothing but what is mounted can be written. A container's processes start as this program, and
    // what they reach of it through /proc is this mount, so that none of them can change it.
    step(RESOLV_CONF, || {
        fs::create_dir_all("/etc")?;
        std::os::unix::fs::symlink(RESOLV_CONF, "/etc/resolv.conf")
    })?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    step("the read-only root", || mount(NONE, "/", NONE, read_only, NONE))
}

/// Mounts the file system through which the kernel gives TSM reports, where it has one.
///
/// # Errors
/// [`Error`] if the kernel refuses.
pub(crate) fn mount_config_fs() -> Result<(), Error> {
    if !Path::new(CONFIG).is_dir() {
        return Ok(());
    }
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    step(CONFIG, || mount(Some("configfs"), CONFIG, Some("configfs"), plain, NONE))
}

/// Lets this process have as many open files as its containers may take, and containers as many as elsewhere: what the
/// kernel starts with is few for both.
///
/// # Errors
/// [`Error`] if the kernel refuses.
pub(crate) fn allow_open_files() -> Result<(), Error> {
    let most = open_files(&fs::read_to_string("/proc/sys/fs/nr_open").unwrap_or_default());
    step("the limit of open files", || setrlimit(Resource::RLIMIT_NOFILE, most, most))
}

/// What container runtimes give, as far as the kernel goes along.
fn open_files(nr_open: &str) -> u64 {
    nr_open.trim().parse().map_or(OPEN_FILES, |limit: u64| limit.min(OPEN_FILES))
}

/// How large the file system may become that images and volumes in memory are in: three quarters of what is left beside kernel
/// and initramfs. An image that does not fit then fails by itself; of the machine's whole memory it would take so much that
/// the kernel had to kill containers.
fn room_for_files() -> String {
    let left = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    left.map_or_else(|| "50%".to_owned(), |kib| format!("{}k", kib / 4 * 3))
}

/// The available memory in KiB, by the kernel's own estimate.
fn available(meminfo: &str) -> Option<u64> {
    let value = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    value.trim().strip_suffix(" kB")?.parse().ok()
}

/// Ends the virtual machine. Never returns: where the kernel refuses, PID 1 has nothing left to do but to stay.
pub(crate) fn power_off() -> ! {
    nix::unistd::sync();
    loop {
        let _ = reboot(RebootMode::RB_POWER_OFF);
        nix::unistd::pause();
    }
}

/// A step of the bring-up that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("init: {what} can't be set up: {source}; next: check that the guest image fits its kernel")]
pub(crate) struct Error {
    what: String,
    source: io::Error,
}

fn attach(source: &str, target: &str, kind: &str, flags: MsFlags, data: &str) -> Result<(), Error> {
    step(target, || fs::create_dir_all(target))?;
    step(target, || mount(Some(source), target, Some(kind), flags, Some(data)))
}

/// Runs one step and names it if it fails.
fn step<E: Into<io::Error>>(what: &str, run: impl FnOnce() -> Result<(), E>) -> Result<(), Error> {
    run().map_err(|source| Error { what: what.to_owned(), source: source.into() })
}

/// Lets children of the root cgroup be limited in all that the kernel offers.
fn enable_controllers() -> Result<(), Error> {
    let root = Path::new(CGROUPS);
    step("cgroups", || {
        let available = fs::read_to_string(root.join("cgroup.controllers"))?;
        let enabled: Vec<String> = available.split_whitespace().map(|name| format!("+{name}")).collect();
        fs::write(root.join("cgroup.subtree_control"), enabled.join(" "))
    })
}

/// Where the guest image has this program. The path leads through the read-only root, `/proc/self/exe` does not.
pub(crate) const PROGRAM: &str = "/init";
/// What `/etc/resolv.conf` leads to.
pub(crate) const RESOLV_CONF: &str = "/run/resolv.conf";
const NONE: Option<&str> = None;
const OPEN_FILES: u64 = 1 << 20;
const NEW_ROOT: &str = "/newroot";
/// Made by the kernel when it has configfs.
const CONFIG: &str = "/sys/kernel/config";
const CGROUPS: &str = "/sys/fs/cgroup";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_are_as_many_as_is_usual_and_no_more_than_can_be() {
        assert_eq!(open_files("1073741816\n"), 1 << 20);
        assert_eq!(open_files("65536\n"), 65536);
        assert_eq!(open_files(""), 1 << 20);
    }

    #[test]
    fn files_have_room_in_what_memory_is_left() {
        assert_eq!(available("MemTotal:  250000 kB\nMemFree: 9 kB\nMemAvailable:     180000 kB\n"), Some(180_000));
        for broken in ["", "MemAvailable: lots kB\n", "MemAvailable: 7\n"] {
            assert_eq!(available(broken), None, "{broken:?}");
        }
    }
}
