//! What the shim counts: how long its own answers and the guest's take, and what the pod costs the host.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use wire::metrics::{Exposition, Kind};

/// The shim's metrics. Clones share them.
#[derive(Clone)]
pub(crate) struct Metrics(Arc<Counted>);

struct Counted {
    shim: Durations,
    agent: Durations,
    registry: Registry,
    /// When the pod's processors were last looked at, and what they had done.
    processors: Mutex<(Instant, f64)>,
}

type Durations = Family<Rpc, Histogram, fn() -> Histogram>;

#[derive(Clone, Debug, EncodeLabelSet, Eq, Hash, PartialEq)]
struct Rpc {
    action: &'static str,
}

/// What a pod's containers use in their guest.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Usage {
    /// Bytes of memory.
    pub(crate) memory: u64,
    /// Seconds of processors since they began.
    pub(crate) processors: f64,
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
        Self(Arc::new(Counted { shim, agent, registry, processors: Mutex::new((Instant::now(), 0.0)) }))
    }

    /// Notes an answer of the shim's.
    pub(crate) fn answered(&self, action: &'static str, took: Duration) {
        observe(&self.0.shim, action, took);
    }

    /// Notes an answer of the guest's.
    pub(crate) fn guest_answered(&self, action: &'static str, took: Duration) {
        observe(&self.0.agent, action, took);
    }

    /// All of it in Prometheus' text form. What a pod costs beyond its containers can be told only if the guest says what
    /// those use.
    pub(crate) fn text(&self, machine: Option<u32>, containers: Option<Usage>) -> String {
        let mut counted = String::new();
        // Writing to memory can't fail.
        let _ = encode(&mut counted, &self.0.registry);
        let counted = counted.trim_end_matches("# EOF\n");

        let mut text = Exposition::default();
        let (shim, _) = management::process(std::process::id());
        shim.describe("kata_shim", &mut text);
        shim.describe_as_client("kata_shim", &mut text);
        let fds = |prefix: &str| (format!("{prefix}_fds"), "Open descriptors.");
        let (name, help) = fds("kata_shim");
        text.value(&name, Kind::Gauge, help, shim.descriptors);
        if let Some(pid) = machine {
            let (machine, network) = management::process(pid);
            machine.describe("kata_hypervisor", &mut text);
            let (name, help) = fds("kata_hypervisor");
            text.value(&name, Kind::Gauge, help, machine.descriptors);
            text.interfaces("kata_hypervisor_netdev", "The pod's network on the node.", &network);
            if let Some(containers) = containers {
                let of_both = |a: Option<f64>, b: Option<f64>| Some(a? + b?);
                let seconds = of_both(shim.seconds(), machine.seconds());
                let percent = seconds.map(|seconds| self.rate(seconds - containers.processors) * 100.0);
                let help = "Percent of a processor that the pod takes beyond its containers, since the last time.";
                text.value("kata_shim_pod_overhead_cpu", Kind::Gauge, help, percent);
                let memory =
                    shim.resident.zip(machine.resident).map(|(a, b)| (a + b).saturating_sub(containers.memory));
                let help = "Memory of the host that the pod takes beyond its containers.";
                text.value("kata_shim_pod_overhead_memory_in_bytes", Kind::Gauge, help, memory);
            }
        }
        counted.to_owned() + &text.into_text()
    }

    /// What was done each second since the last time that somebody asked.
    fn rate(&self, done: f64) -> f64 {
        let now = Instant::now();
        let mut last = self.0.processors.lock().unwrap_or_else(PoisonError::into_inner);
        let (then, before) = std::mem::replace(&mut *last, (now, done));
        ((done - before) / (now - then).as_secs_f64().max(0.001)).max(0.0)
    }
}

fn observe(durations: &Durations, action: &'static str, took: Duration) {
    durations.get_or_create(&Rpc { action }).observe(took.as_secs_f64() * 1000.0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_what_was_asked() {
        let metrics = Metrics::new();
        metrics.answered("create", Duration::from_millis(900));
        metrics.guest_answered("grpc.CopyFileRequest", Duration::from_millis(3));
        let text = metrics.text(None, None);
        assert!(text.contains("kata_shim_rpc_durations_histogram_milliseconds_count{action=\"create\"} 1\n"));
        assert!(text.contains(
            "kata_shim_agent_rpc_durations_histogram_milliseconds_bucket{le=\"4.0\",action=\"grpc.CopyFileRequest\"} 1"
        ));
        assert!(text.contains("\nkata_shim_process_resident_memory_bytes "));
        assert!(!text.contains("# EOF") && !text.contains("kata_hypervisor") && !text.contains("overhead"));
    }

    #[test]
    fn what_a_pod_costs_beyond_its_containers_is_told_where_they_are_known() {
        // This process stands for the machine.
        let machine = Some(std::process::id());
        let text = Metrics::new().text(machine, Some(Usage { memory: 1 << 20, processors: 0.0 }));
        let value = |name: &str| -> f64 {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.unwrap_or_else(|| panic!("no {name} in {text}")).parse().unwrap()
        };
        let resident = value("kata_shim_process_resident_memory_bytes");
        assert!(value("kata_shim_pod_overhead_memory_in_bytes") > resident);
        assert!(value("kata_shim_pod_overhead_cpu") >= 0.0);
        assert!(value("kata_hypervisor_threads") > 0.0 && value("kata_hypervisor_fds") > 0.0);
        assert!(text.contains("kata_hypervisor_netdev{interface=\"lo\",item=\"recv_bytes\"} "));
    }
}
