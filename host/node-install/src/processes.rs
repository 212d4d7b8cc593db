//! The machine's processes, by the file that each of them executes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// A process, as `/proc` has it.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    /// Device and number of the file that it executes, which a process keeps whatever becomes of the file's name.
    pub(crate) file: (u64, u64),
    pub(crate) command: Vec<String>,
}

impl Process {
    /// All processes whose file can be seen.
    pub(crate) fn all() -> Vec<Self> {
        let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
        entries.filter_map(|entry| Self::of(entry.file_name().to_str()?.parse().ok()?)).collect()
    }

    /// One that executes this file.
    pub(crate) fn running(program: &Path) -> Option<Self> {
        let file = file_of(program)?;
        Self::all().into_iter().find(|process| process.file == file)
    }

    pub(crate) fn of(pid: u32) -> Option<Self> {
        let file = file_of(Path::new(&format!("/proc/{pid}/exe")))?;
        let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let words = line.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some(Self { pid, file, command: words.collect() })
    }

    /// The word that follows this one on its command line.
    pub(crate) fn option(&self, name: &str) -> Option<&str> {
        let at = self.command.iter().position(|word| word == name)?;
        self.command.get(at + 1).map(String::as_str)
    }

    /// When it was started, give or take [`PRECISION`].
    pub(crate) fn started(&self) -> Option<SystemTime> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The name may hold anything; the 22nd field counts hundredths of a second since the machine was started.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
        let uptime = fs::read_to_string("/proc/uptime").ok()?;
        let uptime = Duration::try_from_secs_f64(uptime.split_whitespace().next()?.parse().ok()?).ok()?;
        SystemTime::now().checked_sub(uptime.checked_sub(Duration::from_millis(ticks * 10)).unwrap_or_default())
    }
}

/// What identifies a file: its device and number.
pub(crate) fn file_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Two clocks are read, one after the other, and one counts hundredths of a second.
pub(crate) const PRECISION: Duration = Duration::from_millis(100);

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_process_was_started_when_it_was() {
        let before = SystemTime::now();
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let after = SystemTime::now();
        let started = Process::of(child.id()).unwrap().started().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(started + PRECISION >= before && started <= after + PRECISION, "{before:?} {started:?} {after:?}");
    }
}
