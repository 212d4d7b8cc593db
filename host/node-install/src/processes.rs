//! The machine's processes, by the file that each of them executes.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

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

    /// When it was started, in seconds since 1970.
    pub(crate) fn started(&self) -> Option<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).ok()?;
        // The name may hold anything; the 22nd field counts hundredths of a second since the machine was started.
        let (_, fields) = stat.rsplit_once(')')?;
        let ticks: u64 = fields.split_ascii_whitespace().nth(19)?.parse().ok()?;
        let system = fs::read_to_string("/proc/stat").ok()?;
        let boot: u64 = system.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
        Some(boot + ticks / 100)
    }
}

/// What identifies a file: its device and number.
pub(crate) fn file_of(path: &Path) -> Option<(u64, u64)> {
    fs::metadata(path).ok().map(|file| (file.dev(), file.ino()))
}
