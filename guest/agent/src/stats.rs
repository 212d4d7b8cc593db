//! What a container uses, read from its control group of version 2, and what the pod sends and receives.

use std::collections::HashMap;
use std::path::Path;

use protobuf::{EnumOrUnknown, MessageField};
use wire_ttrpc::agent::*;

/// The use of processor, memory, processes and disks by one group. What the kernel does not count is 0 or absent.
pub(crate) fn of_group(group: &Path) -> CgroupStats {
    let read = |file: &str| std::fs::read_to_string(group.join(file)).unwrap_or_default();
    CgroupStats {
        cpu_stats: MessageField::some(cpu(&keyed(&read("cpu.stat")))),
        memory_stats: MessageField::some(memory(read)),
        pids_stats: MessageField::some(PidsStats {
            current: number(&read("pids.current")),
            limit: limit(&read("pids.max"), 0),
            ..Default::default()
        }),
        blkio_stats: MessageField::some(disks(&read("io.stat"))),
        ..Default::default()
    }
}

/// The counters of the pod's network interfaces, from the text of `/proc/net/dev`.
pub(crate) fn of_network(text: &str) -> Vec<NetworkStats> {
    text.lines().filter_map(interface).collect()
}

/// What is free and used on the file system at `path`.
pub(crate) fn of_file_system(path: &Path) -> std::io::Result<Vec<VolumeUsage>> {
    let stat = rustix::fs::statvfs(path)?;
    let usage = |unit, total: u64, free: u64, available: u64, size: u64| VolumeUsage {
        available: available.saturating_mul(size),
        total: total.saturating_mul(size),
        used: total.saturating_sub(free).saturating_mul(size),
        unit: EnumOrUnknown::new(unit),
        ..Default::default()
    };
    Ok(vec![
        usage(volume_usage::Unit::BYTES, stat.f_blocks, stat.f_bfree, stat.f_bavail, stat.f_frsize),
        usage(volume_usage::Unit::INODES, stat.f_files, stat.f_ffree, stat.f_favail, 1),
    ])
}

fn cpu(stat: &HashMap<String, u64>) -> CpuStats {
    let nanoseconds = |name: &str| get(stat, name).saturating_mul(1000);
    let usage = CpuUsage {
        total_usage: nanoseconds("usage_usec"),
        usage_in_kernelmode: nanoseconds("system_usec"),
        usage_in_usermode: nanoseconds("user_usec"),
        ..Default::default()
    };
    let throttling = ThrottlingData {
        periods: get(stat, "nr_periods"),
        throttled_periods: get(stat, "nr_throttled"),
        throttled_time: nanoseconds("throttled_usec"),
        ..Default::default()
    };
    CpuStats {
        cpu_usage: MessageField::some(usage),
        throttling_data: MessageField::some(throttling),
        ..Default::default()
    }
}

fn memory(read: impl Fn(&str) -> String) -> MemoryStats {
    let stats = keyed(&read("memory.stat"));
    let data = |name: &str, event: &str| MemoryData {
        usage: number(&read(&format!("{name}.current"))),
        max_usage: number(&read(&format!("{name}.peak"))),
        failcnt: get(&keyed(&read(&format!("{name}.events"))), event),
        limit: limit(&read(&format!("{name}.max")), u64::MAX),
        ..Default::default()
    };
    MemoryStats {
        cache: get(&stats, "file"),
        usage: MessageField::some(data("memory", "oom")),
        swap_usage: MessageField::some(data("memory.swap", "fail")),
        kernel_usage: MessageField::some(MemoryData { usage: get(&stats, "kernel"), ..Default::default() }),
        use_hierarchy: true,
        stats,
        ..Default::default()
    }
}

fn disks(text: &str) -> BlkioStats {
    let mut stats = BlkioStats::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else { continue };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (list, op) = match name {
                "rbytes" => (&mut stats.io_service_bytes_recursive, "Read"),
                "wbytes" => (&mut stats.io_service_bytes_recursive, "Write"),
                "rios" => (&mut stats.io_serviced_recursive, "Read"),
                "wios" => (&mut stats.io_serviced_recursive, "Write"),
                _ => continue,
            };
            list.push(BlkioStatsEntry { major, minor, op: op.to_owned(), value: number(value), ..Default::default() });
        }
    }
    stats
}

fn interface(line: &str) -> Option<NetworkStats> {
    let (name, counters) = line.split_once(':')?;
    let counters: Vec<u64> = counters.split_ascii_whitespace().filter_map(|count| count.parse().ok()).collect();
    let &[rx_bytes, rx_packets, rx_errors, rx_dropped, _, _, _, _, tx_bytes, tx_packets, tx_errors, tx_dropped, ..] =
        counters.as_slice()
    else {
        return None;
    };
    Some(NetworkStats {
        name: name.trim().to_owned(),
        rx_bytes,
        rx_packets,
        rx_errors,
        rx_dropped,
        tx_bytes,
        tx_packets,
        tx_errors,
        tx_dropped,
        ..Default::default()
    })
}

/// Lines of a name and a number.
fn keyed(text: &str) -> HashMap<String, u64> {
    let pair = |line: &str| {
        let (name, value) = line.split_once(' ')?;
        Some((name.to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

fn get(stats: &HashMap<String, u64>, name: &str) -> u64 {
    stats.get(name).copied().unwrap_or(0)
}

fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn limit(text: &str, none: u64) -> u64 {
    if text.trim() == "max" { none } else { number(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_read_as_the_kernel_writes_it() {
        let group = tempfile::tempdir().unwrap();
        for (file, content) in [
            (
                "cpu.stat",
                "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\nnr_periods 3\nnr_throttled 1\nthrottled_usec 7\n",
            ),
            ("memory.current", "4096\n"),
            ("memory.peak", "8192\n"),
            ("memory.max", "max\n"),
            ("memory.events", "low 0\nmax 0\noom 2\noom_kill 1\n"),
            ("memory.stat", "anon 100\nfile 200\nkernel 300\ninactive_file 50\n"),
            ("memory.swap.current", "0\n"),
            ("memory.swap.max", "1024\n"),
            ("pids.current", "3\n"),
            ("pids.max", "max\n"),
            ("io.stat", "254:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n8:0\n"),
        ] {
            std::fs::write(group.path().join(file), content).unwrap();
        }
        let stats = of_group(group.path());
        assert_eq!(stats.cpu_stats.cpu_usage.total_usage, 1_500_000);
        assert_eq!(stats.cpu_stats.throttling_data.throttled_periods, 1);
        let memory = &stats.memory_stats;
        assert_eq!((memory.cache, memory.kernel_usage.usage, memory.stats["inactive_file"]), (200, 300, 50));
        assert_eq!((memory.usage.usage, memory.usage.max_usage, memory.usage.failcnt), (4096, 8192, 2));
        assert_eq!((memory.usage.limit, memory.swap_usage.limit), (u64::MAX, 1024));
        assert_eq!((stats.pids_stats.current, stats.pids_stats.limit), (3, 0));
        let bytes: Vec<_> =
            stats.blkio_stats.io_service_bytes_recursive.iter().map(|it| (it.major, it.value)).collect();
        assert_eq!(bytes, [(254, 10), (254, 20)]);
    }

    #[test]
    fn a_group_that_counts_nothing_has_no_use() {
        let stats = of_group(Path::new("/no/such/group"));
        assert_eq!((stats.memory_stats.usage.usage, stats.cpu_stats.cpu_usage.total_usage), (0, 0));
    }

    #[test]
    fn a_file_system_has_bytes_and_inodes() {
        let usage = of_file_system(Path::new("/proc/self/..")).unwrap();
        assert_eq!(usage.len(), 2);
        let usage = of_file_system(&std::env::temp_dir()).unwrap();
        assert!(usage[0].total >= usage[0].used && usage[0].total > 0 && usage[0].unit.value() == 1);
        assert_eq!(usage[1].unit.value(), 2);
    }

    #[test]
    fn interfaces_have_counters() {
        let text = "Inter-|   Receive                |  Transmit\n face |bytes packets errs drop fifo frame compressed multicast|bytes packets\n\
                    eth0: 100 2 3 4 0 0 0 0 500 6 7 8 0 0 0 0\n  lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n";
        let stats = of_network(text);
        assert_eq!(stats.len(), 2);
        assert_eq!((stats[0].name.as_str(), stats[0].rx_bytes, stats[0].rx_dropped), ("eth0", 100, 4));
        assert_eq!((stats[0].tx_bytes, stats[0].tx_dropped), (500, 8));
        assert!(!of_network(&std::fs::read_to_string("/proc/net/dev").unwrap()).is_empty());
    }
}
