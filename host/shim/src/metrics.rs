//! What the shim counts: how long its own answers and the guest's take, and what it costs the host.

use std::fs;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

/// The shim's metrics. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Counted>);

struct Counted {
    shim: Durations,
    agent: Durations,
    registry: Registry,
}

type Durations = Family<Rpc, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Rpc {
    action: &'static str,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let family = || Durations::new_with_constructor(|| Histogram::new(exponential_buckets(1.0, 2.0, 16)));
        let (shim, agent) = (family(), family());
        let mut registry = Registry::default();
        registry.register(
            "kata_shim_rpc_durations_histogram_milliseconds",
            "How long the shim's answers to containerd took",
            shim.clone(),
        );
        registry.register(
            "kata_shim_agent_rpc_durations_histogram_milliseconds",
            "How long the guest's answers to the shim took",
            agent.clone(),
        );
        Self(Arc::new(Counted { shim, agent, registry }))
    }

    /// Notes an answer of the shim's.
    pub(crate) fn answered(&self, action: &'static str, took: Duration) {
        observe(&self.0.shim, action, took);
    }

    /// Notes an answer of the guest's.
    pub(crate) fn guest_answered(&self, action: &'static str, took: Duration) {
        observe(&self.0.agent, action, took);
    }

    /// All of it in Prometheus' text form.
    pub(crate) fn text(&self, machine: Option<u32>) -> String {
        let mut text = String::new();
        // Writing to memory can't fail.
        let _ = encode(&mut text, &self.0.registry);
        let mut text = text.trim_end_matches("# EOF\n").to_owned();
        for (prefix, pid) in [("kata_shim", Some(std::process::id())), ("kata_hypervisor", machine)] {
            let Some(pid) = pid else { continue };
            for (name, value) in of_process(pid) {
                text.push_str(&format!("# TYPE {prefix}_{name} gauge\n{prefix}_{name} {value}\n"));
            }
        }
        text
    }
}

fn observe(durations: &Durations, action: &'static str, took: Duration) {
    durations.get_or_create(&Rpc { action }).observe(took.as_secs_f64() * 1000.0);
}

/// What a process costs, as far as `/proc` tells.
fn of_process(pid: u32) -> Vec<(&'static str, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let of = |name: &str| {
        let value = status.lines().find_map(|line| line.strip_prefix(name))?;
        value.split_whitespace().next()?.parse::<u64>().ok()
    };
    let descriptors = fs::read_dir(format!("/proc/{pid}/fd")).ok().map(|entries| entries.count() as u64);
    [
        ("process_resident_memory_bytes", of("VmRSS:").map(|kib| kib << 10)),
        ("process_virtual_memory_bytes", of("VmSize:").map(|kib| kib << 10)),
        ("threads", of("Threads:")),
        ("fds", descriptors),
    ]
    .into_iter()
    .filter_map(|(name, value)| Some((name, value?)))
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_was_asked() {
        let metrics = Metrics::new();
        metrics.answered("Create", Duration::from_millis(900));
        metrics.guest_answered("CopyFile", Duration::from_millis(3));
        let text = metrics.text(None);
        assert!(text.contains("kata_shim_rpc_durations_histogram_milliseconds_count{action=\"Create\"} 1\n"));
        assert!(
            text.contains(
                "kata_shim_agent_rpc_durations_histogram_milliseconds_bucket{le=\"4.0\",action=\"CopyFile\"} 1"
            )
        );
        assert!(text.contains("\nkata_shim_process_resident_memory_bytes "));
        assert!(!text.contains("# EOF") && !text.contains("kata_hypervisor"));
    }
}
