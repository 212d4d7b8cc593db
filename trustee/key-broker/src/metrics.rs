//! What is counted, under upstream's names; every label has a bounded set of values.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use wire::rcar::Tee;

/// Labels of one counter.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The counters of a broker, and the registry that they and others are rendered from.
pub(crate) struct Metrics {
    registry: Arc<Mutex<Registry>>,
    pub auth_requests: Counter,
    pub auth_successes: Counter,
    pub attestation_requests: Counter,
    attestation_successes: Family<Labels, Counter>,
    attestation_failures: Family<Labels, Counter>,
    pub resource_reads: Counter,
    pub resource_writes: Counter,
    pub resource_deletes: Counter,
    pub policy_evaluations: Counter,
    pub policy_approvals: Counter,
    pub policy_violations: Counter,
    pub policy_errors: Counter,
    plugin_requests: Family<Labels, Counter>,
    plugin_duration: Family<Labels, Histogram, fn() -> Histogram>,
    pub plugin_errors: Family<Labels, Counter>,
}

/// A plugin's request that is being served; its end is its duration's.
pub(crate) struct Running {
    histogram: Histogram,
    start: Instant,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.histogram.observe(self.start.elapsed().as_secs_f64());
    }
}

impl Metrics {
    /// Registers all counters.
    pub fn new(registry: Arc<Mutex<Registry>>) -> Self {
        let buckets = || Histogram::new(exponential_buckets(0.0005, 2.0, 12));
        let metrics = Self {
            registry,
            auth_requests: Counter::default(),
            auth_successes: Counter::default(),
            attestation_requests: Counter::default(),
            attestation_successes: Family::default(),
            attestation_failures: Family::default(),
            resource_reads: Counter::default(),
            resource_writes: Counter::default(),
            resource_deletes: Counter::default(),
            policy_evaluations: Counter::default(),
            policy_approvals: Counter::default(),
            policy_violations: Counter::default(),
            policy_errors: Counter::default(),
            plugin_requests: Family::default(),
            plugin_duration: Family::new_with_constructor(buckets),
            plugin_errors: Family::default(),
        };
        metrics.register();
        metrics
    }

    /// Counts how an attestation ended.
    pub fn attested(&self, tee: Tee, success: bool) {
        let family = if success { &self.attestation_successes } else { &self.attestation_failures };
        family.get_or_create(&vec![("tee_type", tee.to_string())]).inc();
    }

    /// Counts a request to a plugin that is configured.
    pub fn plugin_request(&self, name: &str) -> Running {
        let labels = vec![("plugin_name", name.to_owned())];
        self.plugin_requests.get_or_create(&labels).inc();
        let histogram = self.plugin_duration.get_or_create(&labels).clone();
        Running { histogram, start: Instant::now() }
    }

    /// Everything in the registry as OpenMetrics text.
    pub fn render(&self) -> String {
        let mut text = String::new();
        let registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        // Writing to a text in memory can't fail.
        let _ = encode(&mut text, &registry);
        text
    }

    fn register(&self) {
        let mut registry = self.registry.lock().unwrap_or_else(PoisonError::into_inner);
        for (name, help, counter) in [
            ("kbs_auth_requests", "Challenges asked for", &self.auth_requests),
            ("kbs_auth_successes", "Challenges given", &self.auth_successes),
            ("kbs_attestation_requests", "Attestations asked for", &self.attestation_requests),
            ("kbs_resource_reads", "Resources released", &self.resource_reads),
            ("kbs_resource_writes", "Resources set", &self.resource_writes),
            ("kbs_resource_deletes", "Resources deleted", &self.resource_deletes),
            ("kbs_policy_evaluations", "Evaluations of a resource policy", &self.policy_evaluations),
            ("kbs_policy_approvals", "Evaluations that allowed", &self.policy_approvals),
            ("kbs_policy_violations", "Evaluations that refused", &self.policy_violations),
            ("kbs_policy_errors", "Evaluations that failed", &self.policy_errors),
        ] {
            registry.register(name, help, counter.clone());
        }
        for (name, help, family) in [
            ("kbs_attestation_successes", "Attestations that gave a token", &self.attestation_successes),
            ("kbs_attestation_failures", "Attestations that were refused", &self.attestation_failures),
            ("kbs_plugin_requests", "Requests to plugins", &self.plugin_requests),
            ("kbs_plugin_errors", "Requests that a plugin refused", &self.plugin_errors),
        ] {
            registry.register(name, help, family.clone());
        }
        let duration = self.plugin_duration.clone();
        registry.register("kbs_plugin_request_duration_seconds", "How long plugins take", duration);
    }
}
