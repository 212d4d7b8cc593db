//! Metrics of all pods of a node as one text: every family once, every sample with the pod that it is of.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use futures::future::join_all;
use management::Identity;
use node_install::Pod;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use wire::metrics::{Exposition, Kind, escaped};

use crate::pods::{self, Error, Known};

/// Collects metrics, and counts that it does.
pub struct Monitor {
    scrapes: AtomicU64,
    failed: AtomicU64,
    durations: Histogram,
    registry: Registry,
}

impl Monitor {
    pub fn new() -> Self {
        let durations = Histogram::new(exponential_buckets(1.0, 2.0, 12));
        let mut registry = Registry::default();
        let help = "How long it took to ask all pods";
        registry.register("kata_monitor_scrape_durations_histogram_milliseconds", help, durations.clone());
        Self { scrapes: AtomicU64::new(0), failed: AtomicU64::new(0), durations, registry }
    }

    /// The metrics of all pods, or of one alone; of all, with the monitor's own.
    pub async fn metrics(&self, sandbox: Option<&str>) -> Result<String, Error> {
        if let Some(sandbox) = sandbox {
            return Known::find(sandbox)?.text("/metrics").await;
        }
        let begun = Instant::now();
        self.scrapes.fetch_add(1, Ordering::Relaxed);
        let mut running = pods::all()?;
        running.retain(|pod| pod.metrics);
        let texts = join_all(running.iter().map(|pod| async move { Known::of(pod)?.text("/metrics").await })).await;
        let mut families = Families::default();
        for (pod, text) in running.iter().zip(&texts) {
            match text {
                Ok(text) => families.add(text, &labels(pod)),
                Err(error) => {
                    self.failed.fetch_add(1, Ordering::Relaxed);
                    tracing::warn!(pod = %pod.name, %error, "its metrics are missing");
                }
            }
        }
        self.durations.observe(begun.elapsed().as_secs_f64() * 1000.0);
        Ok(self.own(running.len()) + &families.into_text())
    }

    fn own(&self, running: usize) -> String {
        let mut histogram = String::new();
        // Writing to memory can't fail.
        let _ = encode(&mut histogram, &self.registry);
        let mut text = Exposition::default();
        let count = |count: &AtomicU64| Some(count.load(Ordering::Relaxed));
        text.value("kata_monitor_running_shim_count", Kind::Gauge, "Pods that can be asked.", Some(running));
        text.value("kata_monitor_scrape_count", Kind::Counter, "How often pods were asked.", count(&self.scrapes));
        let help = "Pods that did not answer.";
        text.value("kata_monitor_scrape_failed_count", Kind::Counter, help, count(&self.failed));
        management::process(std::process::id()).0.describe_as_client("kata_monitor", &mut text);
        histogram.trim_end_matches("# EOF\n").to_owned() + &text.into_text()
    }
}

/// What says of which pod a sample is.
fn labels(pod: &Pod) -> String {
    let of = pod.identity.clone().unwrap_or_else(|| Identity { id: pod.name.clone(), ..Identity::default() });
    let labels =
        [("sandbox_id", &of.id), ("cri_uid", &of.uid), ("cri_name", &of.name), ("cri_namespace", &of.namespace)];
    labels.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).join(",")
}

/// Samples by family, in the order of the families' names.
#[derive(Default)]
struct Families(BTreeMap<String, Family>);

#[derive(Default)]
struct Family {
    about: Vec<String>,
    samples: Vec<String>,
}

impl Families {
    /// Adds a text, its samples with further labels.
    fn add(&mut self, text: &str, labels: &str) {
        let mut current = String::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(about) = line.strip_prefix("# ") {
                let mut words = about.split_ascii_whitespace();
                if let (Some("HELP" | "TYPE"), Some(name)) = (words.next(), words.next()) {
                    current = name.to_owned();
                    let family = self.0.entry(current.clone()).or_default();
                    if !family.about.iter().any(|known| known.split(' ').nth(1) == line.split(' ').nth(1)) {
                        family.about.push(line.to_owned());
                    }
                }
                continue;
            }
            let Some(at) = line.find(['{', ' ']) else { continue };
            let (name, rest) = line.split_at(at);
            // A histogram's samples have its name and an ending.
            let family = if name.starts_with(&current) && !current.is_empty() { current.as_str() } else { name };
            let sample = match rest.strip_prefix('{') {
                Some(rest) if rest.starts_with('}') => format!("{name}{{{labels}{rest}"),
                Some(rest) => format!("{name}{{{labels},{rest}"),
                None => format!("{name}{{{labels}}}{rest}"),
            };
            self.0.entry(family.to_owned()).or_default().samples.push(sample);
        }
    }

    fn into_text(self) -> String {
        let lines = self.0.into_values().flat_map(|family| family.about.into_iter().chain(family.samples));
        lines.flat_map(|line| [line, "\n".to_owned()]).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_of_several_pods_are_told_once_with_all_their_samples() {
        let mut families = Families::default();
        let text = "# HELP a Of a.\n# TYPE a gauge\na 1\n# TYPE h histogram\nh_bucket{le=\"1.0\"} 2\nh_count{} 2\n";
        families.add(text, "sandbox_id=\"x\"");
        families.add("# HELP a Other words.\n# TYPE a gauge\na{item=\"{ \"} 3\n", "sandbox_id=\"y\"");
        assert_eq!(
            families.into_text(),
            "# HELP a Of a.\n# TYPE a gauge\na{sandbox_id=\"x\"} 1\na{sandbox_id=\"y\",item=\"{ \"} 3\n\
             # TYPE h histogram\nh_bucket{sandbox_id=\"x\",le=\"1.0\"} 2\nh_count{sandbox_id=\"x\"} 2\n"
        );
    }

    #[test]
    fn the_monitor_tells_of_itself() {
        let text = Monitor::new().own(3);
        for family in [
            "kata_monitor_running_shim_count",
            "kata_monitor_scrape_count",
            "kata_monitor_scrape_failed_count",
            "kata_monitor_scrape_durations_histogram_milliseconds",
            "kata_monitor_process_resident_memory_bytes",
        ] {
            assert!(text.contains(&format!("# TYPE {family} ")), "no {family} in {text}");
        }
        assert!(text.contains("kata_monitor_running_shim_count 3\n") && !text.contains("EOF"), "{text}");
    }
}
