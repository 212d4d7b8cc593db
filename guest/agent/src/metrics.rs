//! What guestd itself costs and how the guest fares, as Prometheus text under the names of Kata's agent.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::statvfs;
use wire::metrics::{Exposition, FileSystem, GuestFiles, Kind, Process, ProcessFiles};

/// The metrics of this process, and of the guest that it is the first process of.
///
/// # Errors
/// Where `/proc` can't be read.
pub(crate) fn of_this_process() -> io::Result<String> {
    static ASKED: AtomicU64 = AtomicU64::new(0);
    let files = ProcessFiles {
        stat: fs::read_to_string("/proc/self/stat")?,
        status: read("/proc/self/status"),
        io: read("/proc/self/io"),
        limits: read("/proc/self/limits"),
        descriptors: fs::read_dir("/proc/self/fd").ok().map(|entries| entries.count() as u64),
        machine: read("/proc/stat"),
    };
    let process = Process::parse(&files);
    let mut text = Exposition::default();
    process.describe("kata_agent", &mut text);
    process.describe_as_client("kata_agent", &mut text);
    let asked = ASKED.fetch_add(1, Ordering::Relaxed) + 1;
    text.value("kata_agent_scrape_count", Kind::Counter, "How often it was asked for this.", Some(asked));
    text.value("kata_agent_total_rss", Kind::Gauge, "Memory that it has, in bytes.", process.resident);
    text.value("kata_agent_total_vm", Kind::Gauge, "Its address space, in bytes.", process.virtual_memory);
    let ticks = process.times.map(|[user, system, ..]| user + system);
    text.value("kata_agent_total_time", Kind::Gauge, "Hundredths of a second of processors.", ticks);

    let guest = GuestFiles {
        stat: files.machine,
        diskstats: read("/proc/diskstats"),
        loadavg: read("/proc/loadavg"),
        meminfo: read("/proc/meminfo"),
        network: read("/proc/net/dev"),
        vmstat: read("/proc/vmstat"),
        file_systems: FILE_SYSTEMS.into_iter().filter_map(|path| Some((path.to_owned(), file_system(path)?))).collect(),
    };
    guest.describe(&mut text);
    Ok(text.into_text())
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn file_system(path: &str) -> Option<FileSystem> {
    let known = statvfs(Path::new(path)).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(known.f_frsize);
    Some(FileSystem { bytes: [bytes(known.f_blocks), bytes(known.f_bavail)], inodes: [known.f_files, known.f_favail] })
}

/// The guest's root, and where images and volumes lie.
const FILE_SYSTEMS: [&str; 2] = ["/", "/run"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_families_of_agent_and_guest_are_there() {
        let text = of_this_process().unwrap();
        for name in FAMILIES {
            assert!(text.contains(&format!("# TYPE {name} ")), "no {name}");
        }
        let value = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse::<f64>().ok());
        for name in ["kata_agent_process_resident_memory_bytes ", "kata_agent_threads ", "kata_agent_process_open_fds "]
        {
            assert!(value(name).unwrap() > 0.0, "{name}");
        }
    }

    /// What Kata's agent tells.
    const FAMILIES: [&str; 23] = [
        "kata_agent_io_stat",
        "kata_agent_proc_stat",
        "kata_agent_proc_status",
        "kata_agent_process_cpu_seconds_total",
        "kata_agent_process_max_fds",
        "kata_agent_process_open_fds",
        "kata_agent_process_resident_memory_bytes",
        "kata_agent_process_start_time_seconds",
        "kata_agent_process_virtual_memory_bytes",
        "kata_agent_scrape_count",
        "kata_agent_total_rss",
        "kata_agent_total_time",
        "kata_agent_total_vm",
        "kata_agent_threads",
        "kata_guest_cpu_time",
        "kata_guest_diskstat",
        "kata_guest_load",
        "kata_guest_meminfo",
        "kata_guest_netdev_stat",
        "kata_guest_tasks",
        "kata_guest_vm_stat",
        "kata_guest_filesystem_bytes",
        "kata_guest_filesystem_inodes",
    ];
}
