//! Pods in real virtual machines: what a user gets, and what each mistake says.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tests::{Encrypted, Image, InitDataFiles, Lab, Pod, agent_policy, try_run};

#[test]
fn an_encrypted_image_runs_and_reads_its_secret() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let script = "wget -q -O - http://127.0.0.1:8006/cdh/resource/default/demo/secret; echo; exit 7";
    let Encrypted { image, key } = Image::busybox(&lab, "app", script).encrypted("kbs:///default/key/app");
    let image = registry.push(image.layout(), "app");
    trustee.secret("default/key/app", &key);
    trustee.secret("default/demo/secret", &lab.file("secret", "the secret"));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    let pod = Pod::run("secret", &image, Some(&initdata), &[]);
    let folder = pod.folder();
    let (status, text) = pod.into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(7), "{text}");
    assert!(text.lines().any(|line| line == "the secret"), "{text}");
    assert!(!folder.exists());
    let releases = trustee.audit().iter().filter(|record| record["event"] == "release").count();
    assert_eq!(releases, 2, "the key and the secret");
}

#[test]
fn a_container_has_its_own_world() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let script = "echo pid $$; id; hostname; ls /; cat /etc/resolv.conf; echo err >&2; cat /proc/mounts; \
                  echo modules disabled $(cat /proc/sys/kernel/modules_disabled)";
    let image = registry.push(Image::busybox(&lab, "world", script).layout(), "world");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    let pod = Pod::run("world", &image, Some(&initdata), &[]);
    let name = pod.name().to_owned();
    let (status, text) = pod.into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(0), "{text}");
    for line in ["pid 1", "uid=0 gid=0", &name, "entrypoint", "nameserver 10.0.2.3", "err", "modules disabled 1"] {
        assert!(text.contains(line), "no {line:?} in {text}");
    }
    // The guest itself says on its console what it thinks of its initdata.
    assert!(!text.lines().any(|line| line.contains("initdata") && !line.contains("console:")), "{text}");
}

#[test]
fn a_guest_without_initdata_runs_no_container() {
    let lab = Lab::new();
    let registry = lab.registry();
    let image = registry.push(Image::busybox(&lab, "app", "echo never").layout(), "app");

    let (status, text) = Pod::run("bare", &image, None, &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("CreateContainerRequest is blocked by policy"), "{text}");
    assert!(!text.contains("never"), "{text}");
}

#[test]
fn an_image_other_than_the_policy_s_is_denied() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let meant = registry.push(Image::busybox(&lab, "meant", "echo meant").layout(), "meant");
    let other = registry.push(Image::busybox(&lab, "other", "echo other").layout(), "other");
    let (initdata, _) = InitDataFiles::new(agent_policy(&meant), &trustee, &registry).build(&lab, "initdata");

    let (status, text) = Pod::run("other", &other, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("CreateContainerRequest is blocked by policy"), "{text}");
}

#[test]
fn a_wrong_key_names_the_layer_and_leaves_nothing() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let Encrypted { image, .. } = Image::busybox(&lab, "app", "echo never").encrypted("kbs:///default/key/app");
    let image = registry.push(image.layout(), "app");
    trustee.secret("default/key/app", &lab.file("other-key", [7; 32]));
    trustee.config(&["set-resource-policy", "--allow-all"]);
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    let pod = Pod::run("wrong-key", &image, Some(&initdata), &[]);
    let folder = pod.folder();
    let (status, text) = pod.into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("wrapped with another key"), "{text}");
    assert!(!folder.exists());
}

#[test]
fn an_unreachable_trustee_is_named() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let Encrypted { image, .. } = Image::busybox(&lab, "app", "echo never").encrypted("kbs:///default/key/app");
    let image = registry.push(image.layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");
    let url = trustee.guest_url();
    drop(trustee);

    let (status, text) = Pod::run("no-trustee", &image, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(&url), "{text}");
}

#[test]
fn an_unreachable_registry_is_named() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo never").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");
    drop(registry);

    let (status, text) = Pod::run("no-registry", &image, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains(image.split('@').next().unwrap()) && text.contains("next:"), "{text}");
}

#[test]
fn a_layer_that_the_registry_changed_is_refused() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let app = Image::busybox(&lab, "app", "echo never");
    let image = registry.push(app.layout(), "app");
    registry.corrupt_layers(app.layout());
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    let (status, text) = Pod::run("corrupt", &image, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("layer 0") && text.contains("next:"), "{text}");
    assert!(!text.contains("never"), "{text}");
}

#[test]
fn a_zstd_image_runs() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push_as_zstd(Image::busybox(&lab, "app", "echo from zstd").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    let (status, text) = Pod::run("zstd", &image, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("from zstd"), "{text}");
}

#[test]
fn what_is_no_reference_to_an_image_is_refused() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let policy = agent_policy("image@sha256:0000000000000000000000000000000000000000000000000000000000000000");
    let (initdata, _) = InitDataFiles::new(policy, &trustee, &registry).build(&lab, "initdata");

    let (status, text) = Pod::run("no-image", "Not An Image!", Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("Not An Image!") && text.contains("next:"), "{text}");
}

#[test]
fn the_command_and_environment_are_the_policy_s_to_allow() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo \"who=$WHO\"").layout(), "app");
    let policy = agent_policy(&image).replace("\"env\": []", "\"env\": [\"WHO=owner\"]");
    let (initdata, _) = InitDataFiles::new(policy, &trustee, &registry).build(&lab, "initdata");

    let run = |name: &str, more: &[&str]| Pod::run(name, &image, Some(&initdata), more).into_process().wait(LIMIT);
    let (status, text) = run("env-allowed", &["--env", "WHO=owner"]);
    assert_eq!(status.code(), Some(0), "{text}");
    assert!(text.contains("who=owner"), "{text}");

    let (status, text) = run("env-denied", &["--env", "WHO=host"]);
    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("CreateContainerRequest is blocked by policy"), "{text}");
}

#[test]
fn a_signal_ends_the_pod_whenever_it_comes() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo up; exec sleep 3600").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");

    for (index, moment) in ["cocoon: init", "cocoon: ready", "cocoon: image", "up"].iter().enumerate() {
        let pod = Pod::run(&format!("signal{index}"), &image, Some(&initdata), &[]);
        pod.process().wait_for(moment, LIMIT);
        let folder = pod.folder();
        assert!(folder.exists());

        pod.process().interrupt();
        let (status, text) = pod.into_process().wait(LIMIT);

        assert_eq!(status.code(), Some(130), "{moment}: {text}");
        assert!(!folder.exists(), "{moment}: the folder stays behind");
    }
}

#[test]
fn the_end_of_the_machine_is_the_end_of_the_pod() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo up; exec sleep 3600").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");
    let pod = Pod::run("killed", &image, Some(&initdata), &[]);
    pod.process().wait_for("up", LIMIT);
    let folder = pod.folder();
    let children = std::fs::read_dir(format!("/proc/{}/task", pod.process().pid())).unwrap().flatten();
    let qemu: String =
        children.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default()).collect();

    try_run("kill", ["-KILL", qemu.trim()]);
    let (status, text) = pod.into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("signal: 9") && text.contains("next:"), "{text}");
    assert!(!folder.exists());
}

#[test]
fn exec_runs_what_the_policy_allows_and_nothing_else() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo up; exec sleep 3600").layout(), "app");
    let policy = agent_policy(&image).replace("\"exec_commands\": []", "\"exec_commands\": [[\"cat\"]]")
        + "\nWriteStreamRequest := true\nCloseStdinRequest := true\n";
    let (initdata, _) = InitDataFiles::new(policy, &trustee, &registry).build(&lab, "initdata");
    let pod = Pod::run("exec", &image, Some(&initdata), &[]);
    pod.process().wait_for("up", LIMIT);

    let denied = try_run(Lab::program("cocoon"), ["exec", pod.name(), "--", "sh", "-c", "id"]);
    let fed = std::process::Command::new("sh")
        .args(["-c", "echo fed by the host | \"$0\" exec --interactive \"$1\" -- cat"])
        .arg(Lab::program("cocoon"))
        .arg(pod.name())
        .output()
        .unwrap();

    assert!(!denied.status.success(), "{denied}");
    assert!(denied.stderr.contains("data.agent_policy.ExecProcessRequest"), "{denied}");
    // And its owner tells of it as a shim does.
    for (words, expected) in [
        (&["ps"][..], pod.name()),
        (&["logs", pod.name()], "up"),
        (&["console", pod.name()], "cocoon: ready"),
        (&["metrics", pod.name()], "kata_hypervisor_threads "),
        (&["doctor", pod.name()], "first answer"),
    ] {
        let told = try_run(Lab::program("cocoon"), words);
        assert!(told.stdout.contains(expected), "{words:?}: {told}");
    }
    assert_eq!(String::from_utf8_lossy(&fed.stdout), "fed by the host\n", "{}", String::from_utf8_lossy(&fed.stderr));
    assert!(fed.status.success());
}

#[test]
fn two_pods_do_not_share_a_name() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let image = registry.push(Image::busybox(&lab, "app", "echo up; exec sleep 3600").layout(), "app");
    let (initdata, _) = InitDataFiles::new(agent_policy(&image), &trustee, &registry).build(&lab, "initdata");
    let first = Pod::run("same", &image, Some(&initdata), &[]);
    first.process().wait_for("up", LIMIT);

    let (status, text) = Pod::run("same", &image, Some(&initdata), &[]).into_process().wait(LIMIT);

    assert_eq!(status.code(), Some(1), "{text}");
    assert!(text.contains("already running"), "{text}");
    // The first one is untouched.
    assert!(first.folder().exists());
}

/// Software emulation on a machine that also does other work.
const LIMIT: Duration = Duration::from_secs(180);
