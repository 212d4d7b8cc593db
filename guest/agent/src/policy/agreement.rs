//! What the policy answers is what the interpreter says of each request by itself, whichever way it comes to be.

use wire_ttrpc::agent::*;

use super::*;
use crate::request::Gated;

/// The interpreter alone: every request is evaluated, on one thread, and nothing is kept but the state.
struct Plain(Active);

impl Plain {
    fn decide(&mut self, request: &'static str, input: serde_json::Value) -> Result<(), Denial> {
        let evaluated = with_stack(|| self.0.evaluate(request, Value::from(input))).unwrap();
        let operations = evaluated?;
        if operations.is_empty() {
            return Ok(());
        }
        self.0.update(&operations).map_err(|cause| Denial::new(request, Reason::Operations(cause)))
    }
}

/// Asks both for everything twice, as the agent asks, and expects the same each time, to the letter.
fn compare(text: &str) -> usize {
    let policy = Policy::parse(text).unwrap();
    let mut plain = Plain(with_stack(|| Active::parse(text)).unwrap().unwrap());
    let mut settled = 0;
    for _ in 0..2 {
        for (request, input) in requests() {
            let answer = match policy.settled(request) {
                Some(answer) => {
                    settled += 1;
                    answer
                }
                None => policy.decide(request, input.clone()),
            };
            let expected = plain.decide(request, input.clone());
            assert_eq!(answer, expected, "{request} {input} under {text}");
        }
    }
    settled
}

fn requests() -> Vec<(&'static str, serde_json::Value)> {
    let mut requests = Vec::new();
    for id in ["c1", "c2"] {
        let container_id = id.to_owned();
        let data = id.as_bytes().to_vec();
        let read = ReadStreamRequest { container_id: container_id.clone(), len: 7, ..Default::default() };
        let write = WriteStreamRequest { container_id: container_id.clone(), data, ..Default::default() };
        let copy = CopyFileRequest { path: format!("/{id}"), file_mode: 0o100_644, ..Default::default() };
        let mut create = CreateContainerRequest { container_id: container_id.clone(), ..Default::default() };
        create.OCI.mut_or_insert_default().Process.mut_or_insert_default().Args.push(id.to_owned());
        let mut create = (CreateContainerRequest::NAME, create.input());
        create.1["images"] = json!({id: "sha256:1"});
        create.1["guest_pause"] = json!(id == "c2");
        requests.extend([
            create,
            (ReadStreamRequest::NAME, read.input()),
            (WriteStreamRequest::NAME, write.input()),
            (CopyFileRequest::NAME, copy.input()),
            (CreateSandboxRequest::NAME, CreateSandboxRequest::new().input()),
            (ExecProcessRequest::NAME, ExecProcessRequest { container_id, ..Default::default() }.input()),
            (SignalProcessRequest::NAME, SignalProcessRequest::new().input()),
            (WaitProcessRequest::NAME, WaitProcessRequest::new().input()),
            (GetDiagnosticDataRequest::NAME, GetDiagnosticDataRequest::new().input()),
            (RemoveContainerRequest::NAME, json!({"container_id": id, "timeout": 0})),
            (SetPolicyRequest::NAME, SetPolicyRequest::new().input()),
        ]);
    }
    requests
}

#[test]
fn published_policies_answer_as_the_interpreter_does() {
    for (name, settled) in [("strict", 20), ("exec-and-logs", 20), ("debug", 20)] {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
        let text = std::fs::read_to_string(folder.join(name).with_extension("rego")).unwrap();
        assert!(compare(&text) >= settled, "{name}: the rules without the request are evaluated once");
    }
    compare(DEFAULT);
}

#[test]
fn whatever_rules_look_at_they_answer_as_the_interpreter_does() {
    for rules in [
        "",
        "ReadStreamRequest := true",
        "default ReadStreamRequest := false",
        "default ReadStreamRequest := true\nReadStreamRequest := false if input.container_id == \"c1\"",
        "default ReadStreamRequest := false\nReadStreamRequest if input.container_id == \"c1\"",
        "ReadStreamRequest if input.container_id == \"c1\"\nWriteStreamRequest if not input.container_id == \"c1\"",
        "ReadStreamRequest if 1 == 2",
        "ReadStreamRequest if { print(\"nobody\"); 1 == 2 }",
        "ReadStreamRequest if { print(input.container_id); 1 == 2 }",
        "ReadStreamRequest if { x := [\"c1\"]; allowed(x) }\nallowed(x) if input.container_id in x",
        "ReadStreamRequest if { x := [\"c1\"]; allowed(x) }\nallowed(x) if \"c1\" in x",
        "ReadStreamRequest if some_id == \"c1\"\nsome_id := input.container_id",
        "ReadStreamRequest if some_id == \"c1\"\nsome_id := other\nother := object.get(input, \"container_id\", \"\")",
        // Two values that differ, for all requests and for one.
        "ReadStreamRequest := true\nReadStreamRequest := false",
        "ReadStreamRequest := true\nReadStreamRequest := false if input.container_id == \"c1\"",
        // Errors, wrong values, and what is no rule.
        "ReadStreamRequest if to_number(\"x\") > 1",
        "ReadStreamRequest if numbers.range_step(1, 9, 0)",
        "ReadStreamRequest if bits.lsh(1, 4294967295) != 0",
        "ReadStreamRequest := \"true\"",
        "ReadStreamRequest contains \"x\"",
        "ReadStreamRequest(x) := true",
        "ReadStreamRequest := {\"allowed\": true}",
        "ReadStreamRequest := {\"allowed\": false, \"ops\": []}",
        // A state that the rule itself changes, the same way or another way each time.
        "ReadStreamRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/x\", \"value\": 1}]}
            WriteStreamRequest if data.pstate.x == 1",
        "ReadStreamRequest := {\"allowed\": true, \"ops\": [{\"op\": \"remove\", \"path\": \"/pstate/x\"}]}",
        "ReadStreamRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/x\", \"value\": n + 1}]} if n < 3
            n := object.get(data.pstate, \"x\", 0)",
        "WriteStreamRequest if count(input.data) == 2\nReadStreamRequest if { every x in [1, 2] { x > 0 } }",
        "import input.container_id as who\nReadStreamRequest if who == \"c1\"",
        "import rego.v1\nReadStreamRequest if input[\"container_id\"] == \"c1\"",
    ] {
        compare(&format!("package agent_policy\n{rules}"));
    }
}

#[test]
fn an_answer_that_is_known_is_forgotten_with_its_policy() {
    let policy = Policy::parse("package agent_policy\nReadStreamRequest := true").unwrap();
    assert_eq!(policy.settled("ReadStreamRequest"), None, "nobody has asked yet");
    policy.decide("ReadStreamRequest", json!({})).unwrap();
    assert_eq!(policy.settled("ReadStreamRequest"), Some(Ok(())));
    policy.replace(Policy::parse("package agent_policy\nReadStreamRequest := false").unwrap());
    assert_eq!(policy.settled("ReadStreamRequest"), None);
    assert!(policy.decide("ReadStreamRequest", json!({})).is_err());
    assert!(matches!(policy.settled("ReadStreamRequest"), Some(Err(_))));
    assert!(matches!(policy.settled("NoSuchRequest"), Some(Err(_))), "without a rule there is nothing to evaluate");
}
