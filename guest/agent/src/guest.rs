//! The guest's kernel: its clock, its random numbers, its processors and memory, and its packet filter.

use std::io::{self, Write};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::time::{ClockId, Timespec, clock_settime};
use tokio::io::AsyncWriteExt;

use crate::uevents::Uevents;

/// Sets the clock.
///
/// # Errors
/// [`Error`] for a time that is none.
pub(crate) fn set_time(seconds: i64, microseconds: i64) -> Result<(), Error> {
    let nanoseconds = u32::try_from(microseconds).ok().filter(|it| *it < 1_000_000).map(|it| i64::from(it) * 1000);
    let (0.., Some(tv_nsec)) = (seconds, nanoseconds) else { return Err(Error::Time) };
    clock_settime(ClockId::Realtime, Timespec { tv_sec: seconds, tv_nsec })
        .map_err(|e| Error::Kernel("clock", e.into()))
}

/// Mixes data of the host into the kernel's random numbers. It counts for nothing there, since the host knows it.
///
/// # Errors
/// [`Error`] where the kernel refuses.
pub(crate) fn mix_random(data: &[u8]) -> Result<(), Error> {
    let device = std::fs::File::options().write(true).open("/dev/urandom");
    device.and_then(|mut device| device.write_all(data)).map_err(|e| Error::Kernel("random numbers", e))
}

/// Turns on processors and memory that the host has plugged in; `wait` tells how many processors to wait for.
///
/// # Errors
/// [`Error`] where the kernel refuses, or the processors don't come within 3 s.
pub(crate) async fn online(sysfs: &Path, wait: Option<u32>, processors_only: bool) -> Result<(), Error> {
    let mut events = Uevents::listen().map_err(|e| Error::Kernel("events of devices", e))?;
    let turn_on = async {
        loop {
            let cpus = sysfs.join("devices/system/cpu");
            switch_all(&cpus, "cpu", "online", "0", "1").map_err(|e| Error::Kernel("processors", e))?;
            if !processors_only {
                let memory = sysfs.join("devices/system/memory");
                switch_all(&memory, "memory", "state", "offline", "online").map_err(|e| Error::Kernel("memory", e))?;
            }
            let there = std::fs::read_to_string(cpus.join("online")).map_err(|e| Error::Kernel("processors", e))?;
            if wait.is_none_or(|wanted| count(&there) >= wanted) {
                return Ok(());
            }
            events.next().await.map_err(|e| Error::Kernel("events of devices", e))?;
        }
    };
    tokio::time::timeout(DEADLINE, turn_on).await.unwrap_or(Err(Error::NoProcessors(wait.unwrap_or_default())))
}

/// Tells the kernel of memory blocks at these addresses.
///
/// # Errors
/// [`Error`] where it has no way to be told.
pub(crate) fn probe_memory(addresses: &[u64]) -> Result<(), Error> {
    let probe = Path::new("/sys/devices/system/memory/probe");
    if !probe.exists() {
        return Err(Error::NoProbe);
    }
    for address in addresses {
        std::fs::write(probe, format!("{address:#x}")).map_err(|e| Error::Kernel("memory", e))?;
    }
    Ok(())
}

/// The packet filter's rules, as `iptables-save` prints them.
///
/// # Errors
/// [`Error`] where the guest image has no such program, or it fails.
pub(crate) async fn packet_filter(v6: bool) -> Result<Vec<u8>, Error> {
    run(if v6 { "ip6tables-save" } else { "iptables-save" }, &[]).await
}

/// Replaces the packet filter's rules, and returns what the program says.
///
/// # Errors
/// As [`packet_filter`].
pub(crate) async fn set_packet_filter(v6: bool, rules: &[u8]) -> Result<Vec<u8>, Error> {
    run(if v6 { "ip6tables-restore" } else { "iptables-restore" }, rules).await
}

/// Why the guest's kernel can't be changed or asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("time is none that a clock can show; next: send seconds since 1970 and microseconds below a million")]
    Time,
    #[error("{0} of the guest can't be changed: {1}")]
    Kernel(&'static str, #[source] io::Error),
    #[error("guest has not got {0} processors; next: plug them in first")]
    NoProcessors(u32),
    #[error("kernel of the guest finds memory by itself; next: leave it out")]
    NoProbe,
    #[error("guest image has no {0}; next: use a guest image with it, or leave the packet filter alone")]
    NoProgram(&'static str),
    #[error("{0} failed: {1}")]
    Program(&'static str, String),
}

/// Writes `on` to the file of every numbered folder that has `off` in it.
fn switch_all(folder: &Path, prefix: &str, file: &str, off: &str, on: &str) -> io::Result<()> {
    for entry in std::fs::read_dir(folder)?.flatten() {
        let name = entry.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
        if number.is_some_and(|number| number.parse::<u32>().is_ok()) {
            let switch = entry.path().join(file);
            // The first processor can't be switched, and has no such file.
            if std::fs::read_to_string(&switch).is_ok_and(|state| state.trim() == off) {
                std::fs::write(switch, on)?;
            }
        }
    }
    Ok(())
}

/// How many numbers a list such as `0-2,5` has.
fn count(list: &str) -> u32 {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.saturating_add(1))
    };
    list.trim().split(',').filter_map(range).fold(0, u32::saturating_add)
}

async fn run(program: &'static str, input: &[u8]) -> Result<Vec<u8>, Error> {
    let found = ["/usr/sbin", "/sbin"].iter().map(|folder| Path::new(folder).join(program)).find(|path| path.is_file());
    let failed = |e: io::Error| Error::Program(program, e.to_string());
    let mut command = tokio::process::Command::new(found.ok_or(Error::NoProgram(program))?);
    command.env_clear().stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let stdin = child.stdin.take();
    let feed = async {
        if let Some(mut stdin) = stdin {
            // It may end without having read all: its status says why.
            let _ = stdin.write_all(input).await;
        }
    };
    let (output, ()) = tokio::join!(child.wait_with_output(), feed);
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    let said: String = String::from_utf8_lossy(&output.stderr).chars().take(300).collect();
    Err(Error::Program(program, format!("{}: {}", output.status, said.trim())))
}

/// As long as Kata's agent waits for what is plugged in.
const DEADLINE: Duration = Duration::from_secs(3);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_times_are_set() {
        for (seconds, microseconds) in [(-1, 0), (0, -1), (0, 1_000_000)] {
            assert!(matches!(set_time(seconds, microseconds), Err(Error::Time)));
        }
    }

    #[test]
    fn lists_of_processors_are_counted() {
        for (list, expected) in [("0\n", 1), ("0-3\n", 4), ("0-2,5", 4), ("", 0), ("x", 0), ("3-1", 0)] {
            assert_eq!(count(list), expected, "{list:?}");
        }
    }

    #[tokio::test]
    async fn what_is_off_is_turned_on_and_nothing_else_is_touched() {
        let sysfs = tempfile::tempdir().unwrap();
        let file = |path: &str, content: &str| {
            let path = sysfs.path().join("devices/system").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        };
        file("cpu/online", "0-1\n");
        file("cpu/cpu0/other", "");
        file("cpu/cpu1/online", "0\n");
        file("cpu/cpufreq/online", "0\n");
        file("memory/memory7/state", "offline\n");
        file("memory/memory8/state", "online\n");
        let read = |path: &str| std::fs::read_to_string(sysfs.path().join("devices/system").join(path)).unwrap();

        online(sysfs.path(), Some(2), true).await.unwrap();
        assert_eq!((read("cpu/cpu1/online"), read("cpu/cpufreq/online")), ("1".into(), "0\n".into()));
        assert_eq!(read("memory/memory7/state"), "offline\n");
        online(sysfs.path(), None, false).await.unwrap();
        assert_eq!(read("memory/memory7/state"), "online");
    }

    #[tokio::test]
    async fn a_program_that_is_not_there_is_named() {
        let error = run("no-such-tables", &[]).await.unwrap_err().to_string();
        assert!(error.contains("no-such-tables") && error.contains("next:"), "{error}");
    }
}
