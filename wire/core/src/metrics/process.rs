//! What a process costs, from its files in `/proc`.

use super::{Exposition, Kind, numbers};

/// The texts of a process's files; empty where they can't be read.
#[derive(Clone, Debug, Default)]
pub struct ProcessFiles {
    /// `stat`.
    pub stat: String,
    /// `status`.
    pub status: String,
    /// `io`.
    pub io: String,
    /// `limits`.
    pub limits: String,
    /// How many descriptors it has open.
    pub descriptors: Option<u64>,
    /// `/proc/stat`, for the time at which the machine was booted.
    pub machine: String,
}

/// A process's numbers.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Process {
    /// Hundredths of a second in user mode, in the kernel, and the same of its children.
    pub times: Option<[u64; 4]>,
    /// Bytes of its address space.
    pub virtual_memory: Option<u64>,
    /// Bytes of memory that it has.
    pub resident: Option<u64>,
    /// Its threads.
    pub threads: Option<u64>,
    /// Its open descriptors.
    pub descriptors: Option<u64>,
    /// Most descriptors that it may have open.
    pub most_descriptors: Option<u64>,
    /// Seconds since 1970 at which it was started.
    pub started: Option<f64>,
    io: Vec<(String, u64)>,
    status: Vec<(String, u64)>,
}

impl Process {
    /// Reads the numbers out of the files.
    pub fn parse(files: &ProcessFiles) -> Self {
        // Behind the name, which may hold anything, the first field is the third.
        let stat = files.stat.rsplit_once(')').map(|(_, fields)| fields).unwrap_or_default();
        let fields: Vec<&str> = stat.split_ascii_whitespace().collect();
        let field = |number: usize| fields.get(number - 3).and_then(|word| word.parse::<u64>().ok());
        let times = field(14).zip(field(15)).zip(field(16).zip(field(17))).map(|((a, b), (c, d))| [a, b, c, d]);
        let booted = files.machine.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse::<u64>().ok());
        let named = |text: &str| -> Vec<(String, u64)> {
            let lines = text.lines().filter_map(|line| line.split_once(':'));
            lines.filter_map(|(name, value)| Some((item(name), numbers(value).next()?))).collect()
        };
        let status = named(&files.status);
        let of = |name: &str| status.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let limit = files.limits.lines().find_map(|line| line.strip_prefix("Max open files"));
        Self {
            times,
            virtual_memory: of("vmsize").map(|kib| kib << 10),
            resident: of("vmrss").map(|kib| kib << 10),
            threads: of("threads"),
            descriptors: files.descriptors,
            most_descriptors: limit.and_then(|values| numbers(values).next()),
            started: booted.zip(field(22)).map(|(booted, ticks)| booted as f64 + ticks as f64 / TICKS),
            io: named(&files.io),
            status: status.into_iter().filter(|(name, _)| is_of_status(name)).collect(),
        }
    }

    /// Seconds of processors that it has used.
    pub fn seconds(&self) -> Option<f64> {
        self.times.map(|[user, system, ..]| (user + system) as f64 / TICKS)
    }

    /// The families `<prefix>_io_stat`, `_proc_stat`, `_proc_status` and `_threads`.
    pub fn describe(&self, prefix: &str, text: &mut Exposition) {
        text.items(&format!("{prefix}_io_stat"), "What it read and wrote, as /proc has it.", named(&self.io));
        let times = self.times.map(|times| ["utime", "stime", "cutime", "cstime"].into_iter().zip(times));
        let help = "Hundredths of a second of processors, its own and its children's.";
        text.items(&format!("{prefix}_proc_stat"), help, times.into_iter().flatten());
        text.items(&format!("{prefix}_proc_status"), "Its status as /proc has it, memory in KiB.", named(&self.status));
        text.value(&format!("{prefix}_threads"), Kind::Gauge, "Its threads.", self.threads);
    }

    /// The families `<prefix>_process_*`, named as all clients of Prometheus name them.
    pub fn describe_as_client(&self, prefix: &str, text: &mut Exposition) {
        let name = |name: &str| format!("{prefix}_process_{name}");
        let gauge = Kind::Gauge;
        text.value(&name("cpu_seconds_total"), Kind::Counter, "Seconds of processors.", self.seconds());
        text.value(&name("max_fds"), gauge, "Most descriptors that it may open.", self.most_descriptors);
        text.value(&name("open_fds"), gauge, "Open descriptors.", self.descriptors);
        text.value(&name("resident_memory_bytes"), gauge, "Memory that it has.", self.resident);
        text.value(&name("start_time_seconds"), gauge, "When it was started, since 1970.", self.started);
        text.value(&name("virtual_memory_bytes"), gauge, "Its address space.", self.virtual_memory);
    }
}

fn named(items: &[(String, u64)]) -> impl Iterator<Item = (&str, u64)> {
    items.iter().map(|(name, value)| (name.as_str(), *value))
}

/// `VmRSS` is `vmrss`, `read_bytes` is `readbytes`, `voluntary_ctxt_switches` stays.
fn item(name: &str) -> String {
    let name = name.trim().to_ascii_lowercase();
    if name.ends_with("_switches") { name } else { name.replace('_', "") }
}

fn is_of_status(name: &str) -> bool {
    ["vm", "rss", "hugetlb"].iter().any(|prefix| name.starts_with(prefix)) || name.ends_with("_switches")
}

/// The kernel tells hundredths of a second whatever its own clock does.
const TICKS: f64 = 100.0;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_process_is_told_under_kata_s_names() {
        let process = Process::parse(&files());
        assert_eq!((process.resident, process.seconds()), (Some(1 << 20), Some(3.5)));

        let mut text = Exposition::default();
        process.describe("kata_x", &mut text);
        process.describe_as_client("kata_x", &mut text);
        let text = text.into_text();
        for line in [
            "kata_x_io_stat{item=\"readbytes\"} 7",
            "kata_x_io_stat{item=\"cancelledwritebytes\"} 0",
            "kata_x_proc_stat{item=\"utime\"} 300",
            "kata_x_proc_stat{item=\"cstime\"} 9",
            "kata_x_proc_status{item=\"vmrss\"} 1024",
            "kata_x_proc_status{item=\"voluntary_ctxt_switches\"} 44",
            "kata_x_threads 3",
            "kata_x_process_cpu_seconds_total 3.5",
            "kata_x_process_max_fds 1024",
            "kata_x_process_open_fds 12",
            "kata_x_process_resident_memory_bytes 1048576",
            "kata_x_process_start_time_seconds 1000.5",
            "kata_x_process_virtual_memory_bytes 4194304",
        ] {
            assert!(text.lines().any(|found| found == line), "no {line} in {text}");
        }
        assert!(!text.contains("item=\"name\"") && !text.contains("item=\"threads\""), "{text}");
    }

    #[test]
    fn a_process_that_is_gone_is_not_told() {
        let mut text = Exposition::default();
        Process::parse(&ProcessFiles::default()).describe("kata_x", &mut text);
        assert_eq!(text.into_text(), "");
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(stat in "[ -~\n]{0,200}", status in "[ -~\n]{0,200}") {
            let files = ProcessFiles { stat: stat.clone(), io: status.clone(), limits: stat.clone(), status, ..files() };
            let mut text = Exposition::default();
            Process::parse(&files).describe("kata_x", &mut text);
        }
    }

    fn files() -> ProcessFiles {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 300 50 8 9 20 0 3 0 50 4194304 256 18446744073709551615";
        ProcessFiles {
            stat: stat.to_owned(),
            status: "Name:\ta\nVmSize:\t    4096 kB\nVmRSS:\t    1024 kB\nThreads:\t3\nvoluntary_ctxt_switches:\t44\n"
                .to_owned(),
            io: "rchar: 5\nread_bytes: 7\ncancelled_write_bytes: 0\n".to_owned(),
            limits: "Limit                     Soft Limit           Hard Limit           Units\n\
                     Max open files            1024                 524288               files\n"
                .to_owned(),
            descriptors: Some(12),
            machine: "cpu  1 2 3\nbtime 1000\n".to_owned(),
        }
    }
}
