//! What a process on the node costs, and what a guest may say of itself.

use std::fs;
use std::io::Read as _;

use wire::metrics::{Process, ProcessFiles};

/// A process's numbers, and the text of its network's interfaces.
pub fn process(pid: u32) -> (Process, String) {
    let read = |name: &str| {
        let mut text = String::new();
        // A process may end meanwhile; a file in /proc is as large as it likes.
        let file = fs::File::open(format!("/proc/{pid}/{name}")).ok();
        let _ = file.map(|file| file.take(MOST).read_to_string(&mut text));
        text
    };
    let files = ProcessFiles {
        stat: read("stat"),
        status: read("status"),
        io: read("io"),
        limits: read("limits"),
        descriptors: fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|entries| entries.count() as u64),
        machine: fs::read_to_string("/proc/stat").unwrap_or_default(),
    };
    (Process::parse(&files), read("net/dev"))
}

/// The guest's metrics without those that only the host can know, whoever says them.
pub fn of_guest(text: &str) -> String {
    let name = |line: &str| line.trim_start_matches("# TYPE ").trim_start_matches("# HELP ").to_owned();
    let guests = |line: &str| GUESTS.iter().any(|prefix| name(line).starts_with(prefix));
    text.lines().filter(|line| guests(line)).flat_map(|line| [line, "\n"]).collect()
}

const GUESTS: [&str; 2] = ["kata_guest_", "kata_agent_"];
const MOST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_speaks_for_itself_alone() {
        let said =
            "# TYPE kata_shim_threads gauge\nkata_shim_threads 99\n# HELP kata_guest_load x\nkata_guest_load 7\nup 1\n";
        assert_eq!(of_guest(said), "# HELP kata_guest_load x\nkata_guest_load 7\n");
    }

    #[test]
    fn this_process_costs_something() {
        let (process, network) = process(std::process::id());
        assert!(process.resident.unwrap() > 1 << 20 && process.threads.unwrap() > 0);
        assert!(process.started.unwrap() > 1e9 && process.descriptors.unwrap() > 2);
        assert!(network.contains("lo:"));
    }
}
