//! What a guest's kernel tells of the whole guest.

use super::{Exposition, Kind, numbers};

/// The texts of a guest's files in `/proc`; empty where they can't be read.
#[derive(Clone, Debug, Default)]
pub struct GuestFiles {
    /// `stat`.
    pub stat: String,
    /// `diskstats`.
    pub diskstats: String,
    /// `loadavg`.
    pub loadavg: String,
    /// `meminfo`.
    pub meminfo: String,
    /// `net/dev`.
    pub network: String,
    /// `vmstat`.
    pub vmstat: String,
    /// Bytes and inodes of file systems, by the place where they are mounted.
    pub file_systems: Vec<(String, FileSystem)>,
}

/// What a file system has, and what of it is free.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct FileSystem {
    /// Bytes.
    pub bytes: [u64; 2],
    /// Inodes.
    pub inodes: [u64; 2],
}

impl GuestFiles {
    /// The families `kata_guest_*`.
    pub fn describe(&self, text: &mut Exposition) {
        self.processors(text);
        self.disks(text);
        let words: Vec<&str> = self.loadavg.split_ascii_whitespace().collect();
        let loads = words.iter().take(3).filter_map(|word| word.parse::<f64>().ok());
        text.items(
            "kata_guest_load",
            "Processes that run or wait to.",
            ["load1", "load5", "load15"].into_iter().zip(loads),
        );
        let tasks = words.get(3).and_then(|word| word.split_once('/'));
        let tasks = tasks.into_iter().flat_map(|(run, all)| [("cur", run.parse::<u64>()), ("max", all.parse::<u64>())]);
        let tasks = tasks.filter_map(|(item, value)| Some((item, value.ok()?)));
        text.items("kata_guest_tasks", "Threads that run, and all there are.", tasks);
        let memory: Vec<(String, u64)> = self.meminfo.lines().filter_map(of_memory).collect();
        let memory = memory.iter().map(|(item, value)| (item.as_str(), *value));
        text.items("kata_guest_meminfo", "Memory as /proc/meminfo has it, in bytes.", memory);
        text.interfaces("kata_guest_netdev_stat", "The guest's interfaces.", &self.network);
        let counts = self.vmstat.lines().filter_map(|line| line.split_once(' '));
        let counts = counts.filter_map(|(item, value)| Some((item, value.trim().parse::<u64>().ok()?)));
        text.items("kata_guest_vm_stat", "Pages and events as /proc/vmstat has them.", counts);
        for (name, help, of) in [
            ("kata_guest_filesystem_bytes", "Bytes of file systems.", (|it| it.bytes) as fn(&FileSystem) -> [u64; 2]),
            ("kata_guest_filesystem_inodes", "Inodes of file systems.", |it| it.inodes),
        ] {
            if !self.file_systems.is_empty() {
                text.family(name, Kind::Gauge, help);
            }
            for (mount, file_system) in &self.file_systems {
                for (item, value) in ["total", "free"].into_iter().zip(of(file_system)) {
                    text.sample(name, &[("mount", mount), ("item", item)], value);
                }
            }
        }
    }

    fn processors(&self, text: &mut Exposition) {
        let mut lines = self.stat.lines().filter_map(|line| line.strip_prefix("cpu")).peekable();
        if lines.peek().is_some() {
            text.family("kata_guest_cpu_time", Kind::Gauge, "Hundredths of a second of processors.");
        }
        for line in lines {
            let (cpu, times) = line.split_once(' ').unwrap_or((line, ""));
            let cpu = if cpu.is_empty() { "total" } else { cpu };
            for (item, value) in PROCESSOR.iter().zip(numbers(times)) {
                text.sample("kata_guest_cpu_time", &[("cpu", cpu), ("item", item)], value);
            }
        }
    }

    fn disks(&self, text: &mut Exposition) {
        let mut lines = self.diskstats.lines().peekable();
        if lines.peek().is_some() {
            text.family("kata_guest_diskstat", Kind::Gauge, "Disks as /proc/diskstats has them.");
        }
        for line in lines {
            let mut words = line.split_ascii_whitespace().skip(2);
            let Some(disk) = words.next() else { continue };
            let values = words.map_while(|word| word.parse::<u64>().ok());
            for (item, value) in DISK.iter().zip(values) {
                text.sample("kata_guest_diskstat", &[("disk", disk), ("item", item)], value);
            }
        }
    }
}

/// `Active(anon):  12 kB` is `active_anon` with its bytes.
fn of_memory(line: &str) -> Option<(String, u64)> {
    let (name, value) = line.split_once(':')?;
    let number = numbers(value).next()?;
    let bytes = if value.trim_end().ends_with("kB") { number.saturating_mul(1024) } else { number };
    if let Some((_, item)) = MEMORY.iter().find(|(known, _)| *known == name) {
        return Some(((*item).to_owned(), bytes));
    }
    let mut item = String::new();
    for letter in name.chars() {
        match letter {
            '(' | ')' | '_' => {
                if letter == '(' {
                    item.push('_');
                }
            }
            _ if letter.is_ascii_uppercase() && !item.is_empty() && !item.ends_with('_') => {
                item.push('_');
                item.push(letter.to_ascii_lowercase());
            }
            _ => item.push(letter.to_ascii_lowercase()),
        }
    }
    Some((item, bytes))
}

const PROCESSOR: [&str; 10] =
    ["user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal", "guest", "guest_nice"];
const DISK: [&str; 17] = [
    "reads",
    "merged",
    "sectors_read",
    "time_reading",
    "writes",
    "writes_merged",
    "sectors_written",
    "time_writing",
    "in_progress",
    "time_in_progress",
    "weighted_time_in_progress",
    "discards",
    "discards_merged",
    "sectors_discarded",
    "time_discarding",
    "flushes",
    "time_flushing",
];
/// Where the rule of capitals doesn't give Kata's name.
const MEMORY: [(&str, &str); 13] = [
    ("AnonHugePages", "anon_hugepages"),
    ("Committed_AS", "committed_as"),
    ("DirectMap1G", "direct_map_1G"),
    ("DirectMap2M", "direct_map_2M"),
    ("DirectMap4M", "direct_map_4M"),
    ("DirectMap4k", "direct_map_4k"),
    ("HugePages_Free", "hugepages_free"),
    ("HugePages_Rsvd", "hugepages_rsvd"),
    ("HugePages_Surp", "hugepages_surp"),
    ("HugePages_Total", "hugepages_total"),
    ("NFS_Unstable", "nfs_unstable"),
    ("Percpu", "per_cpu"),
    ("ShmemHugePages", "shmem_hugepages"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_under_kata_s_names() {
        let files = GuestFiles {
            stat: "cpu  10 0 20 300 0 0 1 0 0 0\ncpu0 10 0 20 300 0 0 1 0 0 0\nintr 5\n".to_owned(),
            diskstats: " 253       0 vda 5 0 40 1 0 0 0 0 0 1 1 0 0 0 0 0 0\n".to_owned(),
            loadavg: "0.25 0.10 0.05 2/77 300\n".to_owned(),
            meminfo: "MemTotal:  241984 kB\nActive(anon):  12 kB\nSReclaimable:  4 kB\nHugePages_Total:  0\nHugepagesize:  2048 kB\n"
                .to_owned(),
            network: "Inter\n face\n  eth0: 1 2 3 4 5 6 7 8 9\n".to_owned(),
            vmstat: "nr_free_pages 100\nno number\n".to_owned(),
            file_systems: vec![("/".to_owned(), FileSystem { bytes: [100, 40], inodes: [10, 3] })],
        };
        let mut text = Exposition::default();
        files.describe(&mut text);
        let text = text.into_text();
        for line in [
            "kata_guest_cpu_time{cpu=\"total\",item=\"system\"} 20",
            "kata_guest_cpu_time{cpu=\"0\",item=\"idle\"} 300",
            "kata_guest_diskstat{disk=\"vda\",item=\"sectors_read\"} 40",
            "kata_guest_load{item=\"load1\"} 0.25",
            "kata_guest_tasks{item=\"max\"} 77",
            "kata_guest_meminfo{item=\"mem_total\"} 247791616",
            "kata_guest_meminfo{item=\"active_anon\"} 12288",
            "kata_guest_meminfo{item=\"s_reclaimable\"} 4096",
            "kata_guest_meminfo{item=\"hugepages_total\"} 0",
            "kata_guest_meminfo{item=\"hugepagesize\"} 2097152",
            "kata_guest_netdev_stat{interface=\"eth0\",item=\"sent_bytes\"} 9",
            "kata_guest_vm_stat{item=\"nr_free_pages\"} 100",
            "kata_guest_filesystem_bytes{mount=\"/\",item=\"free\"} 40",
            "kata_guest_filesystem_inodes{mount=\"/\",item=\"total\"} 10",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
    }
}
