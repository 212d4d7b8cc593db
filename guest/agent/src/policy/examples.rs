//! Cases of the published example policies: what a host can do to a pod under each of them.

use std::path::PathBuf;

use protobuf::MessageField;
use wire_ttrpc::agent::{
    CopyFileRequest, CreateContainerRequest, CreateSandboxRequest, Device, ExecProcessRequest, Storage,
};
use wire_ttrpc::oci;

use super::*;
use crate::request::Gated;

const DIGEST: &str = "sha256:1111111111111111111111111111111111111111111111111111111111111111";

fn example(name: &str) -> String {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../examples/policies");
    std::fs::read_to_string(folder.join(name)).unwrap()
}

fn policy(name: &str) -> Policy {
    Policy::parse(&example(name).replace("sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE", DIGEST)).unwrap()
}

/// What containerd and its shim ask for: an image with all that its configuration says.
struct Asked {
    request: CreateContainerRequest,
    digest: String,
    pause: bool,
    /// Whom the image names.
    image_user: &'static str,
}

impl Asked {
    fn new() -> Self {
        let words = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
        let capabilities = words(&["CAP_CHOWN", "CAP_KILL", "CAP_MKNOD"]);
        let process = oci::Process {
            Args: words(&["/app", "serve"]),
            Env: words(&["PATH=/app/bin", "MODE=image", "HOSTNAME=pod-1", "KUBERNETES_SERVICE_HOST=10.0.0.1"]),
            Cwd: "/srv".into(),
            User: MessageField::some(oci::User { AdditionalGids: vec![0, 10], ..Default::default() }),
            Capabilities: MessageField::some(oci::LinuxCapabilities {
                Bounding: capabilities.clone(),
                Effective: capabilities.clone(),
                Permitted: capabilities,
                ..Default::default()
            }),
            ..Default::default()
        };
        let mount = |destination: &str, kind: &str| oci::Mount {
            destination: destination.into(),
            type_: kind.into(),
            options: words(if kind == "bind" { &["rbind", "ro"] } else { &["nosuid"] }),
            ..Default::default()
        };
        let mounts = vec![
            mount("/proc", "proc"),
            mount("/dev", "tmpfs"),
            mount("/dev/shm", "bind"),
            mount("/etc/hosts", "bind"),
            mount("/dev/termination-log", "bind"),
            mount("/var/run/secrets/kubernetes.io/serviceaccount", "bind"),
        ];
        let linux = MessageField::some(oci::Linux::default());
        let spec =
            oci::Spec { Process: MessageField::some(process), Mounts: mounts, Linux: linux, ..Default::default() };
        let request = CreateContainerRequest {
            container_id: "c1".into(),
            storages: vec![Storage { driver: "image_guest_pull".into(), source: "app:1".into(), ..Default::default() }],
            OCI: MessageField::some(spec),
            ..Default::default()
        };
        Self { request, digest: DIGEST.into(), pause: false, image_user: "" }
    }

    fn process(&mut self) -> &mut oci::Process {
        self.request.OCI.mut_or_insert_default().Process.mut_or_insert_default()
    }

    fn linux(&mut self) -> &mut oci::Linux {
        self.request.OCI.mut_or_insert_default().Linux.mut_or_insert_default()
    }

    fn ask(&self, policy: &Policy) -> Result<(), Denial> {
        let mut input = self.request.input();
        let (args, env) = (["/app", "serve"], ["PATH=/app/bin", "MODE=image"]);
        let process = json!({"args": args, "env": env, "cwd": "/srv", "user": self.image_user});
        input["images"] = if self.pause { json!({}) } else { json!({"app:1": self.digest}) };
        input["image_process"] = if self.pause { serde_json::Value::Null } else { process };
        input["guest_pause"] = json!(self.pause);
        policy.decide(CreateContainerRequest::NAME, input)
    }
}

#[test]
fn a_pod_of_containerd_s_asking_is_allowed_and_so_is_one_without_a_word() {
    for name in ["strict.rego", "exec-and-logs.rego", "debug.rego"] {
        let policy = policy(name);
        let mut sandbox = CreateSandboxRequest::new();
        sandbox.storages.push(Storage {
            driver: "ephemeral".into(),
            fstype: "tmpfs".into(),
            mount_point: "/run/kata-containers/sandbox/shm".into(),
            ..Default::default()
        });
        policy.decide(CreateSandboxRequest::NAME, sandbox.input()).unwrap();
        let mut pause = Asked::new();
        pause.pause = true;
        pause.process().Args = vec!["/pause".into()];
        pause.linux().Sysctl.insert("net.ipv4.ip_unprivileged_port_start".into(), "0".into());
        pause.ask(&policy).unwrap();
        Asked::new().ask(&policy).unwrap();

        let mut silent = Asked::new();
        *silent.process() = oci::Process::default();
        silent.ask(&policy).unwrap();
        // Again and again, as Kubernetes restarts what ends.
        for number in 0..3 {
            let removal = json!({"container_id": "c1", "timeout": 0});
            policy.decide("RemoveContainerRequest", removal).unwrap_or_else(|e| panic!("{name} {number}: {e}"));
            Asked::new().ask(&policy).unwrap();
        }
    }
}

#[test]
fn the_host_changes_nothing_under_the_strict_policy() {
    let policy = policy("strict.rego");
    type Change = fn(&mut Asked);
    let changes: [(&str, Change); 29] = [
        ("digest", |it| it.digest = DIGEST.replace('1', "2")),
        ("argument", |it| it.process().Args.push("--debug".into())),
        ("command", |it| it.process().Args = vec!["/bin/sh".into()]),
        ("variable", |it| it.process().Env.push("LD_PRELOAD=/x".into())),
        ("variable's value", |it| it.process().Env[1] = "MODE=host".into()),
        ("path", |it| {
            it.process().Env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into())
        }),
        ("missing variable", |it| drop(it.process().Env.remove(1))),
        ("folder", |it| it.process().Cwd = "/tmp".into()),
        ("root as folder", |it| it.process().Cwd = "/".into()),
        ("user", |it| it.process().User.mut_or_insert_default().UID = 7),
        ("group", |it| it.process().User.mut_or_insert_default().AdditionalGids.push(7)),
        ("user by name", |it| it.request.string_user.mut_or_insert_default().uid = "web".into()),
        ("user by no name", |it| {
            it.request.string_user.mut_or_insert_default().gid = String::new();
            it.process().User.mut_or_insert_default().UID = 7;
        }),
        ("capability", |it| {
            it.process().Capabilities.mut_or_insert_default().Bounding.push("CAP_SYS_ADMIN".into());
        }),
        ("ambient capability", |it| {
            it.process().Capabilities.mut_or_insert_default().Ambient.push("CAP_SYS_ADMIN".into());
        }),
        ("limit", |it| it.process().Rlimits.push(Default::default())),
        ("mount over the program", |it| {
            let mount = oci::Mount {
                destination: "/app".into(),
                type_: "bind".into(),
                options: vec!["rbind".into()],
                ..Default::default()
            };
            it.request.OCI.mut_or_insert_default().Mounts.push(mount);
        }),
        ("mount of another type", |it| {
            let mount = oci::Mount { destination: "/app".into(), options: vec!["bind".into()], ..Default::default() };
            it.request.OCI.mut_or_insert_default().Mounts.push(mount);
        }),
        ("empty folder over the program", |it| {
            let mount = oci::Mount { destination: "/app".into(), type_: "tmpfs".into(), ..Default::default() };
            it.request.OCI.mut_or_insert_default().Mounts.push(mount);
        }),
        ("device", |it| it.request.devices.push(Default::default())),
        ("OCI device", |it| it.linux().Devices.push(Default::default())),
        ("kernel parameter", |it| drop(it.linux().Sysctl.insert("net.ipv4.ip_forward".into(), "1".into()))),
        ("sandbox's kernel parameter", |it| {
            it.pause = true;
            it.linux().Sysctl.insert("net.ipv4.ip_unprivileged_port_start".into(), "1".into());
        }),
        ("shared processes", |it| it.request.sandbox_pidns = true),
        ("shared mount", |it| it.request.shared_mounts.push(Default::default())),
        ("disk", |it| it.request.storages.push(Storage { driver: "blk".into(), ..Default::default() })),
        ("second image", |it| it.request.storages.push(it.request.storages[0].clone())),
        ("no image", |it| it.request.storages.clear()),
        ("silent user", |it| {
            let user = MessageField::some(oci::User::default());
            *it.process() = oci::Process { User: user, Env: vec!["X=1".into()], ..Default::default() };
        }),
    ];
    for (what, change) in changes {
        let mut asked = Asked::new();
        change(&mut asked);
        assert!(asked.ask(&policy).is_err(), "{what}");
    }
}

/// A container as somebody, in an image that names somebody: by numbers, or by name (user, group, further groups).
enum As {
    Numbers(u32, u32),
    Name(&'static str, &'static str, &'static [&'static str]),
    Nobody,
}

#[test]
fn the_user_is_the_image_s_or_the_policy_s() {
    use As::{Name, Nobody, Numbers};
    let (image, numbers) = (("\"image\"", "\"image\""), ("1000", "3000"));
    for (owner, named, asked, allowed) in [
        (image, "", Numbers(0, 0), true),
        (image, "", Nobody, true),
        (image, "web", Nobody, true),
        (image, "web", Name("web", "", &["10"]), true),
        (image, "web:staff", Name("web", "staff", &[]), true),
        // As Kubernetes asks, which drops the group.
        (image, "web:staff", Name("web", "", &[]), true),
        (image, "65532", Name("65532", "", &[]), true),
        (image, "65532:65532", Name("65532", "", &[]), true),
        (image, "web", Numbers(0, 0), false),
        (image, "web", Numbers(1000, 1000), false),
        (image, "", Numbers(1000, 0), false),
        (image, "", Numbers(0, 7), false),
        (image, "web", Name("root", "", &[]), false),
        (image, "web", Name("web", "root", &[]), false),
        (image, "web", Name("web:root", "", &[]), false),
        (image, "web", Name("web", "", &["7"]), false),
        (image, "web", Name("", "", &[]), false),
        (image, "", Name("", "", &[]), false),
        (image, "", Name("", "web", &[]), false),
        (numbers, "", Numbers(1000, 3000), true),
        (numbers, "web", Numbers(1000, 3000), true),
        (numbers, "1000", Name("1000", "3000", &[]), true),
        (numbers, "", Numbers(1000, 0), false),
        (numbers, "", Numbers(0, 0), false),
        (numbers, "root", Name("root", "", &[]), false),
        (numbers, "1000", Name("1000", "", &[]), false),
        (numbers, "root", Nobody, false),
        (numbers, "", Nobody, false),
        (("0", "0"), "", Nobody, true),
        (("0", "0"), "web", Nobody, false),
    ] {
        for name in ["strict.rego", "exec-and-logs.rego"] {
            let text = example(name).replace("sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE", DIGEST);
            let text = text.replace("\"uid\": \"image\"", &format!("\"uid\": {}", owner.0));
            let policy = Policy::parse(&text.replace("\"gid\": \"image\"", &format!("\"gid\": {}", owner.1))).unwrap();
            let mut asked_for = Asked { image_user: named, ..Asked::new() };
            let what = match asked {
                Numbers(uid, gid) => {
                    let user = asked_for.process().User.mut_or_insert_default();
                    (user.UID, user.GID) = (uid, gid);
                    format!("{uid}:{gid}")
                }
                Nobody => {
                    asked_for.process().User = MessageField::none();
                    let answer = asked_for.ask(&policy).is_ok();
                    *asked_for.process() = oci::Process::default();
                    assert_eq!(asked_for.ask(&policy).is_ok(), answer, "{name}: {owner:?}, {named:?}: without a word");
                    asked_for = Asked { image_user: named, ..Asked::new() };
                    asked_for.process().User = MessageField::none();
                    "nobody".to_owned()
                }
                Name(uid, gid, more) => {
                    // A number that stands for the name, on which the guest does not look.
                    asked_for.process().User.mut_or_insert_default().UID = 0x6000_0001;
                    let user = asked_for.request.string_user.mut_or_insert_default();
                    (user.uid, user.gid) = (uid.into(), gid.into());
                    user.additionalGids = more.iter().map(ToString::to_string).collect();
                    format!("{uid:?}:{gid:?} {more:?}")
                }
            };
            assert_eq!(asked_for.ask(&policy).is_ok(), allowed, "{name}: {owner:?}, {named:?} as {what}");
        }
    }
}

#[test]
fn a_disk_of_the_node_is_only_for_what_the_guest_encrypts() {
    let disk = |driver_options: &[&str]| Storage {
        driver: "blk".into(),
        driver_options: driver_options.iter().map(ToString::to_string).collect(),
        ..Default::default()
    };
    let device = |path: &str| Device { type_: "blk".into(), container_path: path.into(), ..Default::default() };
    let oci_device = |path: &str| oci::LinuxDevice { Path: path.into(), Type: "b".into(), ..Default::default() };
    for name in ["strict.rego", "exec-and-logs.rego"] {
        let policy = policy(name);
        let mut asked = Asked::new();
        asked.request.storages.push(disk(&["create_filesystem", "encryption_key=ephemeral"]));
        asked.request.devices.push(device("/dev/trusted_store"));
        asked.linux().Devices.push(oci_device("/dev/trusted_store"));
        asked.ask(&policy).unwrap();

        for options in
            [&[][..], &["create_filesystem"], &["create_filesystem", "discard"], &["encryption_key=ephemeral"]]
        {
            let mut asked = Asked::new();
            asked.request.storages.push(disk(options));
            assert!(asked.ask(&policy).is_err(), "{name}: {options:?}");
        }
        let mut asked = Asked::new();
        asked.request.devices.push(device("/dev/xvda"));
        assert!(asked.ask(&policy).is_err(), "{name}");
        let mut asked = Asked::new();
        asked.linux().Devices.push(oci_device("/dev/xvda"));
        assert!(asked.ask(&policy).is_err(), "{name}");
    }
}

#[test]
fn commands_ports_and_output_are_the_owner_s_to_allow() {
    let exec = |args: &[&str], env: &[&str]| {
        let words = |words: &[&str]| -> Vec<String> { words.iter().map(ToString::to_string).collect() };
        let user = MessageField::some(oci::User { AdditionalGids: vec![0, 10], ..Default::default() });
        let process = oci::Process { Args: words(args), Env: words(env), User: user, ..Default::default() };
        let process = MessageField::some(process);
        ExecProcessRequest { container_id: "c1".into(), process, ..Default::default() }.input()
    };
    let strict = policy("strict.rego");
    assert!(strict.decide(ExecProcessRequest::NAME, exec(&["ls"], &[])).is_err());
    for output in ["ReadStreamRequest", "GetDiagnosticDataRequest"] {
        assert!(strict.decide(output, json!({"container_id": "c1"})).is_err());
        policy("exec-and-logs.rego").decide(output, json!({"container_id": "c1"})).unwrap();
    }

    let port = json!({"port": 8080});
    assert!(strict.decide("PortForwardRequest", port.clone()).is_err());
    policy("debug.rego").decide("PortForwardRequest", port.clone()).unwrap();

    let text = example("exec-and-logs.rego").replace("sha256:REPLACE_WITH_THE_DIGEST_OF_YOUR_IMAGE", DIGEST);
    let text = text.replace("\"exec_commands\": []", "\"exec_commands\": [[\"ls\", \"-l\"]]");
    let policy = Policy::parse(&text.replace("\"forwarded_ports\": []", "\"forwarded_ports\": [8080]")).unwrap();
    policy.decide("PortForwardRequest", port).unwrap();
    assert!(policy.decide("PortForwardRequest", json!({"port": 8081})).is_err());
    assert!(
        policy.decide(ExecProcessRequest::NAME, exec(&["ls", "-l"], &["MODE=image"])).is_err(),
        "no such container"
    );
    Asked::new().ask(&policy).unwrap();
    policy.decide(ExecProcessRequest::NAME, exec(&["ls", "-l"], &["MODE=image", "PATH=/app/bin"])).unwrap();
    for (args, env) in [(&["ls"][..], &[][..]), (&["sh"], &[]), (&["ls", "-l"], &["LD_PRELOAD=/x"])] {
        assert!(policy.decide(ExecProcessRequest::NAME, exec(args, env)).is_err(), "{args:?}");
    }
    let mut other = exec(&["ls", "-l"], &["MODE=image"]);
    other["process"]["User"]["UID"] = json!(7);
    assert!(policy.decide(ExecProcessRequest::NAME, other).is_err(), "another user than the container's");
}

#[test]
fn copied_links_stay_in_their_folder() {
    let policy = policy("strict.rego");
    let copy = |mode: u32, target: &str| {
        let request = CopyFileRequest { file_mode: mode, data: target.as_bytes().into(), ..Default::default() };
        policy.decide(CopyFileRequest::NAME, request.input())
    };
    copy(0o100_644, "data").unwrap();
    copy(0o040_755, "").unwrap();
    for target in ["..data/key", "..2026_11_28", "key"] {
        copy(0o120_777, target).unwrap();
    }
    for target in ["/etc/shadow", "../x", "a/../../x", ".."] {
        assert!(copy(0o120_777, target).is_err(), "{target}");
    }
    assert!(copy(0o020_600, "").is_err());
}

#[test]
fn documents_carry_the_policies_and_rules_differ_in_their_data_alone() {
    for name in ["strict", "exec-and-logs", "debug"] {
        let document: toml::Table = example(&format!("{name}.toml")).parse().unwrap();
        assert_eq!(document["version"].as_str(), Some("0.1.0"));
        assert_eq!(document["data"]["policy.rego"].as_str(), Some(example(&format!("{name}.rego")).as_str()));
    }
    let rules = |name: &str| example(name).split_once("\n}\n").unwrap().1.to_owned();
    assert_eq!(rules("strict.rego"), rules("exec-and-logs.rego"));
}
