//! Measures what the policy costs each request that moves bytes of a stream: the request as its input, and the decision.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::time::{Duration, Instant};

use agent::Policy;
use serde::Serialize;
use serde_json::json;
use wire_ttrpc::agent::{ReadStreamRequest, WriteStreamRequest};

fn main() {
    let selective = Policy::parse(SELECTIVE).unwrap();
    let (logs, debug) = (example("exec-and-logs"), example("debug"));
    let read = ReadStreamRequest { container_id: CONTAINER.into(), len: 32 << 10, ..Default::default() };
    let write =
        |bytes| WriteStreamRequest { container_id: CONTAINER.into(), data: vec![b'x'; bytes], ..Default::default() };
    let result = json!({
        "evaluations": EVALUATIONS,
        "read_stream_us": decision(&logs, "ReadStreamRequest", &read),
        "write_stream_64_bytes_us": decision(&debug, "WriteStreamRequest", &write(64)),
        "write_stream_32_kib_us": decision(&debug, "WriteStreamRequest", &write(32 << 10)),
        // Where a rule reads the request, it is evaluated each time.
        "read_stream_of_a_container_us": decision(&selective, "ReadStreamRequest", &read),
    });
    println!("{result}");
}

/// One of the published policies.
fn example(name: &str) -> Policy {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    Policy::parse(&std::fs::read_to_string(folder.join(name).with_extension("rego")).unwrap()).unwrap()
}

/// The agent asks the same way.
fn decision(policy: &Policy, name: &'static str, request: &impl Serialize) -> f64 {
    median(|| match policy.settled(name) {
        Some(decision) => decision.unwrap(),
        None => policy.decide(name, serde_json::to_value(request).unwrap()).unwrap(),
    })
}

/// The median time of many runs, in microseconds.
fn median(mut work: impl FnMut()) -> f64 {
    let mut time = || {
        let start = Instant::now();
        work();
        start.elapsed()
    };
    let mut times: Vec<Duration> = (0..EVALUATIONS).map(|_| time()).collect();
    times.sort();
    times[times.len() / 2].as_secs_f64() * 1e6
}

const EVALUATIONS: usize = 2001;
/// As containerd names containers.
const CONTAINER: &str = "4f1a7e0c5b7d4bb2a7d0c7f1e6a95d3b4f1a7e0c5b7d4bb2a7d0c7f1e6a95d3b";
const SELECTIVE: &str = "package agent_policy
    ReadStreamRequest if startswith(input.container_id, \"4f1a\")";
