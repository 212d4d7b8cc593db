//! What a container has used, in the form that containerd expects on this host.

use std::collections::BTreeMap;
use std::path::Path;

use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use protobuf::{MessageField, MessageFull};
use wire_ttrpc::agent::{BlkioStatsEntry, NetworkStats, StatsContainerResponse};

/// The guest's numbers as `io.containerd.cgroups.v2.Metrics`, or `v1` where the host has that.
pub(crate) fn metrics(stats: StatsContainerResponse) -> Any {
    // containerd looks at its host to know what to expect.
    if Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { any(&unified(stats)) } else { any(&legacy(stats)) }
}

fn any<M: MessageFull>(message: &M) -> Any {
    // Writing to memory can't fail.
    let value = message.write_to_bytes().unwrap_or_default();
    Any { type_url: M::descriptor().full_name().to_owned(), value, ..Any::default() }
}

fn unified(stats: StatsContainerResponse) -> v2::Metrics {
    let cgroup = stats.cgroup_stats.unwrap_or_default();
    let (cpu, memory) = (cgroup.cpu_stats.unwrap_or_default(), cgroup.memory_stats.unwrap_or_default());
    let of = |name: &str| memory.stats.get(name).copied().unwrap_or_default();
    let micro = |nanoseconds: u64| nanoseconds / 1000;
    let mut devices = BTreeMap::new();
    let blkio = cgroup.blkio_stats.unwrap_or_default();
    for (entries, bytes) in [(&blkio.io_service_bytes_recursive, true), (&blkio.io_serviced_recursive, false)] {
        for entry in entries {
            let (major, minor) = (entry.major, entry.minor);
            if devices.len() == DEVICES && !devices.contains_key(&(major, minor)) {
                continue;
            }
            let new = || v2::IOEntry { major, minor, ..Default::default() };
            let usage = devices.entry((major, minor)).or_insert_with(new);
            match (entry.op.to_ascii_lowercase().as_str(), bytes) {
                ("read", true) => usage.rbytes = entry.value,
                ("write", true) => usage.wbytes = entry.value,
                ("read", false) => usage.rios = entry.value,
                ("write", false) => usage.wios = entry.value,
                _ => {}
            }
        }
    }
    v2::Metrics {
        pids: MessageField::from_option(cgroup.pids_stats.into_option().map(|pids| v2::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        })),
        cpu: MessageField::some(v2::CPUStat {
            usage_usec: micro(cpu.cpu_usage.total_usage),
            user_usec: micro(cpu.cpu_usage.usage_in_usermode),
            system_usec: micro(cpu.cpu_usage.usage_in_kernelmode),
            nr_periods: cpu.throttling_data.periods,
            nr_throttled: cpu.throttling_data.throttled_periods,
            throttled_usec: micro(cpu.throttling_data.throttled_time),
            ..Default::default()
        }),
        memory: MessageField::some(v2::MemoryStat {
            anon: of("anon"),
            file: of("file"),
            kernel_stack: of("kernel_stack"),
            slab: of("slab"),
            sock: of("sock"),
            shmem: of("shmem"),
            file_mapped: of("file_mapped"),
            file_dirty: of("file_dirty"),
            file_writeback: of("file_writeback"),
            anon_thp: of("anon_thp"),
            inactive_anon: of("inactive_anon"),
            active_anon: of("active_anon"),
            inactive_file: of("inactive_file"),
            active_file: of("active_file"),
            unevictable: of("unevictable"),
            slab_reclaimable: of("slab_reclaimable"),
            slab_unreclaimable: of("slab_unreclaimable"),
            pgfault: of("pgfault"),
            pgmajfault: of("pgmajfault"),
            usage: memory.usage.usage,
            usage_limit: memory.usage.limit,
            max_usage: memory.usage.max_usage,
            swap_usage: memory.swap_usage.usage,
            swap_limit: memory.swap_usage.limit,
            ..Default::default()
        }),
        io: MessageField::some(v2::IOStat { usage: devices.into_values().collect(), ..Default::default() }),
        hugetlb: cgroup
            .hugetlb_stats
            .into_iter()
            .map(|(pagesize, it)| v2::HugeTlbStat {
                current: it.usage,
                max: it.max_usage,
                pagesize,
                failcnt: it.failcnt,
                ..Default::default()
            })
            .collect(),
        network: stats
            .network_stats
            .into_iter()
            .map(|it| v2::NetworkStat {
                name: it.name,
                rx_bytes: it.rx_bytes,
                rx_packets: it.rx_packets,
                rx_errors: it.rx_errors,
                rx_dropped: it.rx_dropped,
                tx_bytes: it.tx_bytes,
                tx_packets: it.tx_packets,
                tx_errors: it.tx_errors,
                tx_dropped: it.tx_dropped,
                ..Default::default()
            })
            .collect(),
        ..Default::default()
    }
}

fn legacy(stats: StatsContainerResponse) -> v1::Metrics {
    let cgroup = stats.cgroup_stats.unwrap_or_default();
    let (cpu, memory) = (cgroup.cpu_stats.unwrap_or_default(), cgroup.memory_stats.unwrap_or_default());
    // The guest has the unified hierarchy, whose names differ.
    let of = |names: [&str; 2]| names.iter().find_map(|name| memory.stats.get(*name)).copied().unwrap_or_default();
    let entry = |it: &wire_ttrpc::agent::MemoryData| v1::MemoryEntry {
        limit: it.limit,
        usage: it.usage,
        max: it.max_usage,
        failcnt: it.failcnt,
        ..Default::default()
    };
    let (rss, cache) = (of(["rss", "anon"]), memory.cache.max(of(["cache", "file"])));
    let (mapped, dirty) = (of(["mapped_file", "file_mapped"]), of(["dirty", "file_dirty"]));
    let (faults, major_faults) = (of(["pgfault"; 2]), of(["pgmajfault"; 2]));
    let (inactive_anon, active_anon) = (of(["inactive_anon"; 2]), of(["active_anon"; 2]));
    let (inactive_file, active_file) = (of(["inactive_file"; 2]), of(["active_file"; 2]));
    let blkio = cgroup.blkio_stats.unwrap_or_default();
    v1::Metrics {
        hugetlb: cgroup
            .hugetlb_stats
            .into_iter()
            .map(|(pagesize, it)| v1::HugetlbStat {
                usage: it.usage,
                max: it.max_usage,
                failcnt: it.failcnt,
                pagesize,
                ..Default::default()
            })
            .collect(),
        pids: MessageField::from_option(cgroup.pids_stats.into_option().map(|pids| v1::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..Default::default()
        })),
        cpu: MessageField::some(v1::CPUStat {
            usage: MessageField::some(v1::CPUUsage {
                total: cpu.cpu_usage.total_usage,
                kernel: cpu.cpu_usage.usage_in_kernelmode,
                user: cpu.cpu_usage.usage_in_usermode,
                per_cpu: cpu.cpu_usage.percpu_usage.clone(),
                ..Default::default()
            }),
            throttling: MessageField::some(v1::Throttle {
                periods: cpu.throttling_data.periods,
                throttled_periods: cpu.throttling_data.throttled_periods,
                throttled_time: cpu.throttling_data.throttled_time,
                ..Default::default()
            }),
            ..Default::default()
        }),
        memory: MessageField::some(v1::MemoryStat {
            cache,
            rss,
            mapped_file: mapped,
            dirty,
            pg_fault: faults,
            pg_maj_fault: major_faults,
            inactive_anon,
            active_anon,
            inactive_file,
            active_file,
            total_cache: cache,
            total_rss: rss,
            total_mapped_file: mapped,
            total_dirty: dirty,
            total_pg_fault: faults,
            total_pg_maj_fault: major_faults,
            total_inactive_anon: inactive_anon,
            total_active_anon: active_anon,
            total_inactive_file: inactive_file,
            total_active_file: active_file,
            usage: MessageField::some(entry(&memory.usage)),
            swap: MessageField::some(entry(&memory.swap_usage)),
            kernel: MessageField::some(entry(&memory.kernel_usage)),
            ..Default::default()
        }),
        blkio: MessageField::some(v1::BlkIOStat {
            io_service_bytes_recursive: blkio.io_service_bytes_recursive.iter().map(block).collect(),
            io_serviced_recursive: blkio.io_serviced_recursive.iter().map(block).collect(),
            ..Default::default()
        }),
        network: stats.network_stats.into_iter().map(network).collect(),
        ..Default::default()
    }
}

fn block(it: &BlkioStatsEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry { op: it.op.clone(), major: it.major, minor: it.minor, value: it.value, ..Default::default() }
}

fn network(it: NetworkStats) -> v1::NetworkStat {
    v1::NetworkStat {
        name: it.name,
        rx_bytes: it.rx_bytes,
        rx_packets: it.rx_packets,
        rx_errors: it.rx_errors,
        rx_dropped: it.rx_dropped,
        tx_bytes: it.tx_bytes,
        tx_packets: it.tx_packets,
        tx_errors: it.tx_errors,
        tx_dropped: it.tx_dropped,
        ..Default::default()
    }
}

/// More disks than any guest has. What a guest says costs the host memory.
const DEVICES: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use wire_ttrpc::agent::*;

    fn stats() -> StatsContainerResponse {
        let memory = MemoryStats {
            usage: MessageField::some(MemoryData {
                usage: 4096,
                max_usage: 8192,
                limit: 1 << 20,
                ..Default::default()
            }),
            stats: [("anon", 10), ("file", 20), ("inactive_file", 5)].map(|(name, it)| (name.to_owned(), it)).into(),
            ..Default::default()
        };
        let cpu = CpuStats {
            cpu_usage: MessageField::some(CpuUsage {
                total_usage: 9_000,
                usage_in_usermode: 5_000,
                ..Default::default()
            }),
            ..Default::default()
        };
        let entry = |op: &str, value| BlkioStatsEntry { major: 8, op: op.into(), value, ..Default::default() };
        let blkio = BlkioStats {
            io_service_bytes_recursive: vec![entry("Read", 512), entry("Write", 1024)],
            io_serviced_recursive: vec![entry("Read", 1), entry("Write", 2)],
            ..Default::default()
        };
        StatsContainerResponse {
            cgroup_stats: MessageField::some(CgroupStats {
                cpu_stats: MessageField::some(cpu),
                memory_stats: MessageField::some(memory),
                pids_stats: MessageField::some(PidsStats { current: 3, ..Default::default() }),
                blkio_stats: MessageField::some(blkio),
                ..Default::default()
            }),
            network_stats: vec![NetworkStats { name: "eth0".into(), rx_bytes: 7, ..Default::default() }],
            ..Default::default()
        }
    }

    #[test]
    fn both_forms_say_the_same() {
        let new = unified(stats());
        assert_eq!((new.pids.current, new.cpu.usage_usec, new.cpu.user_usec), (3, 9, 5));
        assert_eq!((new.memory.usage, new.memory.inactive_file, new.memory.usage_limit), (4096, 5, 1 << 20));
        let io = &new.io.usage[0];
        assert_eq!((new.io.usage.len(), io.rbytes, io.wbytes, io.rios, io.wios), (1, 512, 1024, 1, 2));
        assert_eq!((new.network[0].name.as_str(), new.network[0].rx_bytes), ("eth0", 7));

        let old = legacy(stats());
        assert_eq!((old.pids.current, old.cpu.usage.total, old.cpu.usage.user), (3, 9000, 5000));
        assert_eq!((old.memory.usage.usage, old.memory.total_inactive_file, old.memory.rss), (4096, 5, 10));
        assert_eq!((old.memory.cache, old.blkio.io_service_bytes_recursive[1].value), (20, 1024));
    }

    #[test]
    fn a_guest_with_more_devices_than_any_has_is_heard_to_a_bound() {
        let entry = |minor| BlkioStatsEntry { major: 8, minor, op: "Write".into(), value: minor, ..Default::default() };
        let mut many = stats();
        let blkio = many.cgroup_stats.mut_or_insert_default().blkio_stats.mut_or_insert_default();
        blkio.io_service_bytes_recursive = (0..100_000).map(entry).collect();
        blkio.io_serviced_recursive = (0..100_000).rev().map(entry).collect();

        let io = unified(many).io.usage.clone();

        assert_eq!(io.len(), DEVICES);
        assert!(io.iter().zip(0..).all(|(it, at)| (it.minor, it.wbytes, it.wios) == (at, at, at)));
    }

    #[test]
    fn the_form_is_named_as_containerd_names_it() {
        assert_eq!(any(&unified(stats())).type_url, "io.containerd.cgroups.v2.Metrics");
        assert_eq!(any(&legacy(stats())).type_url, "io.containerd.cgroups.v1.Metrics");
    }
}
