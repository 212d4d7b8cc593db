//! What a process on the node costs.

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

const MOST: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_process_costs_something() {
        let (process, network) = process(std::process::id());
        assert!(process.resident.unwrap() > 1 << 20 && process.threads.unwrap() > 0);
        assert!(process.started.unwrap() > 1e9 && process.descriptors.unwrap() > 2);
        assert!(network.contains("lo:"));
    }
}
