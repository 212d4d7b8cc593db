//! What guestd itself costs, as Prometheus text under the names of Kata's agent.

use std::fmt::Write as _;
use std::fs;
use std::io;

/// The metrics of this process.
///
/// # Errors
/// Where `/proc` can't be read.
pub(crate) fn of_this_process() -> io::Result<String> {
    let status = fs::read_to_string("/proc/self/status")?;
    let field = |name: &str| -> Option<u64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse().ok()
    };
    let descriptors = fs::read_dir("/proc/self/fd")?.count();
    let rows = [
        ("process_resident_memory_bytes", "Resident memory.", field("VmRSS").unwrap_or_default() * 1024),
        ("process_virtual_memory_bytes", "Virtual memory.", field("VmSize").unwrap_or_default() * 1024),
        ("process_open_fds", "Open file descriptors.", descriptors as u64),
        ("threads_total", "Threads.", field("Threads").unwrap_or_default()),
    ];
    let mut text = String::new();
    for (name, help, value) in rows {
        // Writing to a string can't fail.
        let _ = writeln!(text, "# HELP {PREFIX}{name} {help}\n# TYPE {PREFIX}{name} gauge\n{PREFIX}{name} {value}");
    }
    Ok(text)
}

const PREFIX: &str = "kata_agent_";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_has_memory_threads_and_descriptors() {
        let text = of_this_process().unwrap();
        for name in ["process_resident_memory_bytes", "threads_total", "process_open_fds"] {
            let line = text.lines().find_map(|line| line.strip_prefix(&format!("{PREFIX}{name} "))).unwrap();
            assert!(line.parse::<u64>().unwrap() > 0, "{name} {line}");
        }
    }
}
