//! What comes of it: JSON for machines and a table for people.

use std::fmt;
use std::time::Duration;

use serde_json::{Value, json};

use crate::POD_COUNT;
use crate::samples::Samples;
use crate::served::Served;

/// All that was measured.
pub struct Report {
    pub rounds: u32,
    pub samples: Samples,
    /// What the registry served for the node's one pull, for the first pod after it, and for all pods after that one.
    pub for_pull: Served,
    pub for_first_pod: Served,
    pub for_later_pods: Served,
    /// How many of [`POD_COUNT`] pods ran, and when the last one did.
    pub running: usize,
    pub all_at_once: Duration,
    /// What the benchmark of the guest's policy printed, if it ran.
    pub policy: Option<Value>,
}

impl Report {
    /// Everything, with bounds beside what they hold for.
    pub fn json(&self) -> Value {
        let rows = self.rows().into_iter().map(|row| {
            json!({"what": row.what, "measured": row.measured, "unit": row.unit, "bound": row.bound, "within": row.within()})
        });
        json!({
            "rounds": self.rounds,
            "results": rows.collect::<Vec<_>>(),
            "medians": self.samples.medians(),
            "registry": {
                "bytes_for_the_nodes_pull": self.for_pull,
                "bytes_for_the_first_pod": self.for_first_pod,
                "bytes_for_later_pods": self.for_later_pods,
            },
            "policy": self.policy,
        })
    }

    fn rows(&self) -> Vec<Row> {
        let of = |name: &str| self.samples.median(name);
        let row = |what, measured, unit, bound: f64| Row { what, measured, unit, bound: Some(bound) };
        let plain = |what, measured, unit| Row { what, measured, unit, bound: None };
        let mut rows = Vec::from([
            row("RunPodSandbox, over a bare boot", self.samples.ratio("pod_ms", "bare_boot_ms"), "", 1.5),
            plain("a bare boot", of("bare_boot_ms"), "ms"),
            plain("RunPodSandbox of runc", of("runc_pod_ms"), "ms"),
            row(
                "CreateContainer and StartContainer, image in the guest, over runc's",
                of("next_container_ms") - of("runc_container_ms"),
                "ms",
                150.0,
            ),
            plain("the same, image from the node's cache", of("first_container_ms") - of("runc_container_ms"), "ms"),
            plain("runc's", of("runc_container_ms"), "ms"),
            row("the shim's resident memory, two containers", of("shim_resident_mb"), "MB", 12.0),
            plain("of it without pages of its file", of("shim_private_mb"), "MB"),
            row("ExecSync of true, over a round trip to the guest", of("exec_ms") - of("round_trip_ms"), "ms", 20.0),
            plain("the round trip", of("round_trip_ms"), "ms"),
            plain("one fork and exec by a shell in the guest", of("guest_fork_and_exec_ms"), "ms"),
            plain("ExecSync of true in runc's container", of("runc_exec_ms"), "ms"),
            row("the registry's bytes for all pods but the first", self.for_later_pods.total() as f64, "bytes", 0.0),
            plain("of them configurations and layers", self.for_later_pods.blobs as f64, "bytes"),
            row("of ten pods at once, those that do not run", (POD_COUNT - self.running) as f64, "", 0.0),
            plain("until all ten have answered", self.all_at_once.as_secs_f64(), "s"),
        ]);
        for (what, name, bound) in [
            ("the policy's decision on ReadStream", "read_stream_us", Some(20.0)),
            ("on WriteStream of 64 bytes", "write_stream_64_bytes_us", Some(20.0)),
            ("on WriteStream of 32 KiB", "write_stream_32_kib_us", None),
            ("on ReadStream where the rule reads the request", "read_stream_of_a_container_us", None),
        ] {
            let measured = self.policy.as_ref().and_then(|policy| policy[name].as_f64());
            rows.extend(measured.map(|measured| Row { what, measured, unit: "us", bound }));
        }
        rows
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<WIDTH$}{:>12}{:>12}", "medians", "measured", "at most")?;
        for row in self.rows() {
            let bound = row.bound.map(|bound| bound.to_string()).unwrap_or_default();
            let verdict = if row.within() == Some(false) { "  exceeded" } else { "" };
            writeln!(f, "{:<WIDTH$}{:>12.2}{bound:>12} {}{verdict}", row.what, row.measured, row.unit)?;
        }
        Ok(())
    }
}

/// A line of the table.
struct Row {
    what: &'static str,
    measured: f64,
    unit: &'static str,
    bound: Option<f64>,
}

impl Row {
    fn within(&self) -> Option<bool> {
        self.bound.map(|bound| self.measured <= bound)
    }
}

const WIDTH: usize = 70;
