//! Cases of the policy: what is allowed, what is not, and what the refusal says.

use super::*;

fn decide(rules: &str, input: serde_json::Value) -> Result<(), String> {
    let policy = Policy::parse(&format!("package agent_policy\n{rules}")).map_err(|e| e.to_string())?;
    policy.decide("ExecProcessRequest", input).map_err(|denial| denial.to_string())
}

#[test]
fn the_page_about_troubles_has_these_texts() {
    let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md"));
    for (request, rules) in [
        ("CreateContainerRequest", ""),
        ("CreateContainerRequest", "CreateContainerRequest if input.images[0] == \"other\""),
        ("ExecProcessRequest", "default ExecProcessRequest := false"),
    ] {
        let policy = Policy::parse(&format!("package agent_policy\n{rules}")).unwrap();
        let denial = policy.decide(request, serde_json::json!({"images": []})).unwrap_err().to_string();
        assert!(page.contains(&format!("{denial}`")), "the page lacks: {denial}");
    }
}

#[test]
fn only_true_and_an_allowing_object_are_a_yes() {
    for (rules, refusal) in [
        ("ExecProcessRequest := true", None),
        ("default ExecProcessRequest := true", None),
        ("ExecProcessRequest if input.user == \"a\"", None),
        ("ExecProcessRequest := {\"allowed\": true, \"ops\": []}", None),
        ("ExecProcessRequest := {\"allowed\": true}", None),
        ("", Some("rule data.agent_policy.ExecProcessRequest is not defined, so it is denied by default")),
        ("ExecProcessRequestX := true", Some("is not defined")),
        ("ExecProcessRequest := false", Some("is false")),
        ("default ExecProcessRequest := false", Some("is false")),
        ("default ExecProcessRequest := false\nExecProcessRequest if input.user == \"b\"", Some("is false")),
        ("ExecProcessRequest if input.user == \"b\"", Some("is undefined")),
        ("ExecProcessRequest := 1", Some("neither a boolean")),
        ("ExecProcessRequest := \"true\"", Some("neither a boolean")),
        ("ExecProcessRequest := null", Some("neither a boolean")),
        ("ExecProcessRequest := [true]", Some("neither a boolean")),
        ("ExecProcessRequest := {\"allowed\": false}", Some("is false")),
        ("ExecProcessRequest := {\"allowed\": \"true\"}", Some("neither a boolean")),
        ("ExecProcessRequest := {\"allowed\": true, \"other\": 1}", Some("neither a boolean")),
        ("ExecProcessRequest := {\"ops\": []}", Some("neither a boolean")),
        ("ExecProcessRequest contains true", Some("neither a boolean")),
        (
            "ExecProcessRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/x\", \"value\": 1}]}",
            Some("don't apply"),
        ),
        // A member that is missing makes the body undefined, and never true.
        ("ExecProcessRequest if { x := input.missing }", Some("is undefined")),
        ("ExecProcessRequest if { not input.user }", Some("is undefined")),
        ("ExecProcessRequest if { some x in input.missing; x }", Some("is undefined")),
        ("ExecProcessRequest if { to_number(input.user) > 0 }", Some("is undefined")),
        // Two different values conflict.
        ("ExecProcessRequest := true\nExecProcessRequest := false", Some("can't be evaluated")),
        ("AllowRequestsFailingPolicy := true", Some("is not defined")),
    ] {
        match (decide(rules, json!({"user": "a"})), refusal) {
            (Ok(()), None) => {}
            (Err(text), Some(part)) => {
                assert!(text.starts_with("ExecProcessRequest is blocked by policy: "), "{text}");
                assert!(text.contains(part) && text.contains("next:"), "{rules}: {text}");
            }
            (outcome, _) => panic!("{rules}: {outcome:?}"),
        }
    }
}

#[test]
fn a_refusal_carries_what_the_policy_printed() {
    let text =
        decide("ExecProcessRequest if { print(\"user\", input.user); input.user == \"b\" }", json!({"user": "a"}));
    assert!(text.clone().unwrap_err().contains("the policy printed"), "{text:?}");
    assert!(text.clone().unwrap_err().contains("user a"), "{text:?}");
    let long = decide("ExecProcessRequest if { print(input.user); false }", json!({"user": "a".repeat(1 << 20)}));
    assert!(long.unwrap_err().len() < 4096);
}

#[test]
fn a_policy_that_loops_is_a_denial_within_its_time() {
    let rules = "ExecProcessRequest if { some a in input.l; some b in input.l; some c in input.l; some d in input.l; a+b+c+d < 0 }";
    let list: Vec<_> = (0..300).collect();
    let start = std::time::Instant::now();
    let text = decide(rules, json!({"l": list})).unwrap_err();
    assert!(text.contains("can't be evaluated"), "{text}");
    assert!(start.elapsed() < Duration::from_secs(30));
}

#[test]
fn what_is_not_a_policy_is_refused_with_its_reason() {
    for (text, reason) in [
        ("".to_owned(), "not Rego"),
        ("package other".to_owned(), "not in package agent_policy"),
        ("package agent_policy.inner".to_owned(), "not in package agent_policy"),
        ("package agent_policy\nallow {".to_owned(), "not Rego"),
        // Version 0 syntax is not read as something else.
        ("package agent_policy\nExecProcessRequest { true }".to_owned(), "not Rego"),
        (format!("package agent_policy\nx := {}1{}", "[".repeat(31), "]".repeat(31)), "nested too deeply"),
        (format!("package agent_policy\n# {}", "x".repeat(2 << 20)), "bytes"),
    ] {
        let error = Policy::parse(&text).unwrap_err().to_string();
        assert!(error.contains(reason), "{:?}: {error}", &text[..text.len().min(60)]);
    }
}

#[test]
fn long_lines_of_data_are_fine() {
    let long = format!("package agent_policy\nx := \"{}\"", "a".repeat(20_000));
    Policy::parse(&long).unwrap();
}

#[test]
fn data_as_deep_as_a_container_s_specification_parses_quickly() {
    let container = json!({
        "OCI": {"Process": {"Args": ["a", "b"], "Capabilities": {"Bounding": vec!["CAP_CHOWN"; 14]},
            "Env": vec!["NAME=some value of a variable"; 60]},
            "Linux": {"Resources": {"Devices": [{"Allow": false, "Access": "rwm"}]}, "MaskedPaths": vec!["/proc/kcore"; 12]},
            "Mounts": vec![json!({"destination": "/d", "options": ["a", "b"]}); 12]},
        "storages": [], "devices": []
    });
    let data = json!({"containers": vec![container; 12]});
    let text = format!("package agent_policy\npolicy_data := {}", serde_json::to_string_pretty(&data).unwrap());
    let start = std::time::Instant::now();
    Policy::parse(&text).unwrap();
    println!("{} bytes took {:?}", text.len(), start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20));
}

#[test]
fn the_deepest_text_that_the_scan_lets_through_parses_in_time() {
    for (open, close) in [
        ("[", "]"),
        ("{", "}"),
        ("(", ")"),
        ("[{", "}]"),
        ("[(", ")]"),
        ("{\"a\":[", "]}"),
        ("{\"a\":", "}"),
        ("f(", ")"),
        ("a[", "]"),
        ("[x | x := ", "]"),
        ("{x | x in ", "}"),
        ("{x: 1 | some x in ", "}"),
        ("[f({", "})]"),
        ("1 + [", "] + 1"),
        ("[", ""),
        ("{", ""),
        ("{[(", ""),
        ("{\"a\":[", ""),
    ] {
        let levels = 14 / open.matches(['[', '{', '(']).count();
        let text = format!("package agent_policy\nx := {}1{}", open.repeat(levels), close.repeat(levels));
        let start = std::time::Instant::now();
        let _ = Policy::parse(&text);
        println!("{open} {levels} levels took {:?}", start.elapsed());
        assert!(start.elapsed() < Duration::from_secs(20), "{open}");
    }
}

#[test]
fn state_is_kept_between_requests_and_decides_later_ones() {
    let policy = Policy::parse(
        "package agent_policy
        CreateSandboxRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/name\", \"value\": input.name}]} if {
            not data.pstate.name
        }
        ExecProcessRequest if { data.pstate.name == input.name }",
    )
    .unwrap();
    assert!(policy.decide("ExecProcessRequest", json!({"name": "a"})).is_err());
    policy.decide("CreateSandboxRequest", json!({"name": "a"})).unwrap();
    policy.decide("ExecProcessRequest", json!({"name": "a"})).unwrap();
    assert!(policy.decide("ExecProcessRequest", json!({"name": "b"})).is_err());
    assert!(policy.decide("CreateSandboxRequest", json!({"name": "b"})).is_err(), "the first name stays");
}

#[test]
fn another_policy_starts_with_fresh_state() {
    let rules = "package agent_policy
        CreateSandboxRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/n\", \"value\": 1}]} if not data.pstate.n";
    let policy = Policy::parse(rules).unwrap();
    policy.decide("CreateSandboxRequest", json!({})).unwrap();
    assert!(policy.decide("CreateSandboxRequest", json!({})).is_err());
    policy.replace(Policy::parse(rules).unwrap());
    policy.decide("CreateSandboxRequest", json!({})).unwrap();
}

#[test]
fn concurrent_requests_never_lose_a_change_of_state() {
    let policy = Policy::parse(
        "package agent_policy
        count_so_far := object.get(data.pstate, \"n\", 0)
        ExecProcessRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/n\", \"value\": count_so_far + 1}]}
        StartContainerRequest if data.pstate.n == input.n",
    )
    .unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..25).for_each(|_| policy.decide("ExecProcessRequest", json!({})).unwrap()));
        }
    });
    policy.decide("StartContainerRequest", json!({"n": 100})).unwrap();
}

#[test]
fn without_a_policy_no_container_can_be_created() {
    let policy = Policy::default();
    let shm = json!({"driver": "ephemeral", "fstype": "tmpfs", "mount_point": "/run/kata-containers/sandbox/shm"});
    let other = json!({"driver": "ephemeral", "fstype": "tmpfs", "mount_point": "/run/kata-containers/c1/rootfs"});
    let sandbox = |storages: serde_json::Value, modules: serde_json::Value, hooks: &str| json!({"guest_hook_path": hooks, "kernel_modules": modules, "storages": storages, "sandbox_pidns": false});
    for (request, input, allowed) in [
        ("GuestDetailsRequest", json!({}), true),
        ("CreateSandboxRequest", sandbox(json!([shm]), json!([]), ""), true),
        ("CreateSandboxRequest", sandbox(json!([]), json!([]), ""), true),
        ("CreateSandboxRequest", sandbox(json!([shm, other]), json!([]), ""), false),
        ("CreateSandboxRequest", sandbox(json!([]), json!([{"name": "m"}]), ""), false),
        ("CreateSandboxRequest", sandbox(json!([]), json!([]), "/hooks"), false),
        ("CreateSandboxRequest", json!({}), false),
        ("UpdateInterfaceRequest", json!({"interface": {"name": "eth0"}}), true),
        ("UpdateInterfaceRequest", json!({"interface": {"name": "lo"}}), false),
        ("UpdateInterfaceRequest", json!({"interface": {"name": "eth0\nlo"}}), false),
        ("UpdateInterfaceRequest", json!({"interface": null}), false),
        ("UpdateRoutesRequest", json!({"routes": {"Routes": [{"device": "eth0"}]}}), true),
        ("UpdateRoutesRequest", json!({"routes": {"Routes": [{"device": "eth0"}, {"device": "lo"}]}}), false),
        ("UpdateRoutesRequest", json!({"routes": null}), false),
        ("StartContainerRequest", json!({}), true),
        ("WaitProcessRequest", json!({}), true),
        ("SignalProcessRequest", json!({}), true),
        ("RemoveContainerRequest", json!({}), true),
        ("DestroySandboxRequest", json!({}), true),
        ("CreateContainerRequest", json!({}), false),
        ("ExecProcessRequest", json!({}), false),
        ("SetPolicyRequest", json!({}), false),
        ("ReadStreamRequest", json!({}), false),
        ("WriteStreamRequest", json!({}), false),
        ("CopyFileRequest", json!({}), false),
    ] {
        assert_eq!(policy.decide(request, input.clone()).is_ok(), allowed, "{request} {input}");
    }
}

#[test]
fn no_policy_ends_the_stack() {
    let chain = |n: usize, step: &dyn Fn(usize) -> String, end: &str| {
        (0..n).map(step).collect::<String>() + &format!("{end}\nExecProcessRequest if x0 == x0\n")
    };
    let links = " + 1".repeat(400);
    for (text, refused) in [
        // Functions that call themselves, in all ways to say so.
        ("f(x) := f(x + 1)\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) := g(x)\ng(x) := y if { y := f(x) }\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) if { data.agent_policy.f(x) }\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) if { data.agent_policy[\"f\"](x) }\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) if { data[\"agent_policy\"].f(x) }\nExecProcessRequest if f(1)".to_owned(), true),
        ("import data.agent_policy.f as g\nf(x) if { g(x) }\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) if { g(x) with g as f }\ng(x) if { x }\nExecProcessRequest if f(1)".to_owned(), true),
        ("f(x) if { x == 1 } else := f (x)\nExecProcessRequest if f(2)".to_owned(), true),
        ("f(x) if { r }\nr if f(1)\nExecProcessRequest if f(2)".to_owned(), true),
        ("ExecProcessRequest if data.agent_policy[input.name]".to_owned(), true),
        // Long ways that end: as long as they may be, and longer.
        (chain(2_000, &|i| format!("x{i} := x{}\n", i + 1), "x2000 := 1"), false),
        (chain(100_000, &|i| format!("x{i} := x{}\n", i + 1), "x100000 := 1"), true),
        (chain(70, &|i| format!("x{i} := x{}{links}\n", i + 1), "x70 := 1"), false),
        (chain(1_000, &|i| format!("x{i} := x{}{links}\n", i + 1), "x1000 := 1"), true),
        (chain(100, &|i| format!("x{i} := [x{}]\n", i + 1), "x100 := 1"), false),
        (format!("ExecProcessRequest if {{ {} }}", "some x in [1]\n".repeat(60_000)), true),
        (format!("ExecProcessRequest if 1{}", " == 1".repeat(100_000)), true),
        (format!("ExecProcessRequest if {}1", "-".repeat(100_000)), true),
        (format!("ExecProcessRequest if input{}", ".a".repeat(100_000)), true),
    ] {
        let parsed = Policy::parse(&format!("package agent_policy\n{text}"));
        let start: String = text.chars().take(120).collect();
        assert_eq!(parsed.is_err(), refused, "{start}: {:?}", parsed.err());
        if let Ok(policy) = parsed {
            policy.decide("ExecProcessRequest", json!({})).unwrap();
        }
    }
}

#[test]
fn no_builtin_ends_the_guest() {
    for rules in [
        "ExecProcessRequest if count(numbers.range(1, 1000000000000000)) > 0",
        "ExecProcessRequest if not numbers.range(1, 100001)",
        "ExecProcessRequest if count(numbers.range_step(1, 1000000000000, 1)) > 0",
        "ExecProcessRequest if not numbers.range_step(1, 9, 0)",
        "ExecProcessRequest if bits.lsh(1, 4294967295) != 0",
        "ExecProcessRequest if bits.lsh(1, 100000000000) != 0",
        "ExecProcessRequest if sprintf(\"%4000000000d\", [1]) != \"\"",
        "ExecProcessRequest if sprintf(\"%.99999f\", [1.5]) != \"\"",
        "ExecProcessRequest if sprintf(\"%1²d\", [1]) != \"\"",
        "ExecProcessRequest if sprintf(\"%²d\", [1]) != \"\"",
    ] {
        let refusal = decide(rules, json!({})).unwrap_err();
        assert!(refusal.contains("can't be evaluated"), "{rules}: {refusal}");
    }
    for rules in [
        "ExecProcessRequest if numbers.range(3, 1) == [3, 2, 1]",
        "ExecProcessRequest if bits.lsh(1, 70) == 1180591620717411303424",
        "ExecProcessRequest if sprintf(\"%s=%04d %v 100%%\", [\"a\", 7, [1]]) == \"a=0007 [1] 100%\"",
    ] {
        decide(rules, json!({})).unwrap();
    }
}

#[test]
fn a_state_that_grows_deeper_with_each_request_stops() {
    let wrapping = "package agent_policy
        before := object.get(data.pstate, \"n\", 0)
        ExecProcessRequest := {\"allowed\": true, \"ops\": [{\"op\": \"add\", \"path\": \"/pstate/n\", \"value\": {\"n\": before}}]}";
    let policy = Policy::parse(wrapping).unwrap();
    let allowed = (0..100).take_while(|_| policy.decide("ExecProcessRequest", json!({})).is_ok()).count();
    assert!((10..40).contains(&allowed), "{allowed}");
}
