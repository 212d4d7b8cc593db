//! The agent as its callers see it: over ttrpc, with a fake in the place of the registry.

#![allow(clippy::unwrap_used)]

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent::{
    Agent, AgentConfig, AgentEvent, ImageError, ImageProcess, Images, Policy, PulledImage, ResolvedImage, SecretError,
    Secrets,
};
use async_trait::async_trait;
use protobuf::MessageField;
use ttrpc::{Code, context};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::health::CheckRequest;
use wire_ttrpc::health_ttrpc::HealthClient;
use wire_ttrpc::oci;
use zeroize::Zeroizing;

/// A registry in which every reference has the same digest, and from which nothing can be pulled.
#[derive(Default)]
struct Registry {
    calls: Mutex<Vec<String>>,
}

#[async_trait]
impl Images for Registry {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        self.calls.lock().unwrap().push(format!("resolve {reference}"));
        if reference.contains("missing") {
            return Err(ImageError("resolve: no such image; next: check the reference".into()));
        }
        if reference.contains("silent") {
            std::future::pending::<()>().await;
        }
        let process = ImageProcess { args: vec!["/app".into(), "serve".into()], ..Default::default() };
        Ok(ResolvedImage { reference: reference.into(), digest: DIGEST.into(), process })
    }

    async fn pull(&self, image: &ResolvedImage, _: &Path) -> Result<PulledImage, ImageError> {
        self.calls.lock().unwrap().push(format!("pull {}", image.digest));
        Err(ImageError("pull: the registry is closed".into()))
    }

    async fn release(&self, bundle: &Path) {
        self.calls.lock().unwrap().push(format!("release {}", bundle.file_name().unwrap().display()));
    }
}

/// Opens what is sealed for the name of a secret.
struct Vault;

#[async_trait]
impl Secrets for Vault {
    async fn unseal(&self, sealed: &str) -> Result<Zeroizing<Vec<u8>>, SecretError> {
        match sealed {
            "sealed.unknown" => Err(SecretError("unseal: there is no such secret; next: seal it anew".into())),
            name => Ok(Zeroizing::new(name.replace("sealed.", "secret of ").into_bytes())),
        }
    }
}

struct Guest {
    folder: tempfile::TempDir,
    registry: Arc<Registry>,
    agent: AgentServiceClient,
    health: HealthClient,
    events: tokio::sync::broadcast::Receiver<AgentEvent>,
}

impl Guest {
    async fn with_policy(policy: Policy) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let registry = Arc::new(Registry::default());
        let agent = Agent::new(AgentConfig {
            policy,
            images: registry.clone(),
            secrets: Some(Arc::new(Vault)),
            disks: None,
            helper: "/bin/false".into(),
            root: folder.path().join("root"),
            resolv_conf: Some(folder.path().join("resolv.conf")),
            drivers: tokio::sync::watch::channel(agent::Drivers::All).1,
            version: "1.2.3".into(),
        });
        let agent = Arc::new(agent.unwrap());
        let mut events = agent.events();
        let address = format!("unix://{}/agent.sock", folder.path().display());
        tokio::spawn({
            let address = address.clone();
            async move { agent.serve(&address).await.unwrap() }
        });
        assert_eq!(events.recv().await.unwrap(), AgentEvent::Listening);
        let client = ttrpc::r#async::Client::connect(&address).await.unwrap();
        Self {
            folder,
            registry,
            agent: AgentServiceClient::new(client.clone()),
            health: HealthClient::new(client),
            events,
        }
    }

    async fn with_rules(rules: &str) -> Self {
        Self::with_policy(Policy::parse(&format!("package agent_policy\n{rules}")).unwrap()).await
    }

    fn calls(&self) -> Vec<String> {
        self.registry.calls.lock().unwrap().clone()
    }

    fn container(&self, image: &str) -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: "c1".into(),
            storages: vec![Storage {
                driver: "image_guest_pull".into(),
                source: image.into(),
                mount_point: self.folder.path().join("root/c1/rootfs").to_str().unwrap().into(),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec::default()),
            ..Default::default()
        }
    }
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: ttrpc::Result<T>) -> (Code, String) {
    match answer.unwrap_err() {
        ttrpc::Error::RpcStatus(status) => (status.code(), status.message),
        other => panic!("no status: {other:?}"),
    }
}

#[tokio::test]
async fn a_guest_without_a_policy_says_that_it_lives_and_refuses_the_rest() {
    let mut guest = Guest::with_policy(Policy::default()).await;

    let check = guest.health.check(context::with_timeout(0), &CheckRequest::new()).await.unwrap();
    assert_eq!(check.status.value(), 1);
    let version = guest.health.version(context::with_timeout(0), &CheckRequest::new()).await.unwrap();
    assert_eq!(version.agent_version, "1.2.3");

    let details = GuestDetailsRequest { mem_block_size: true, ..Default::default() };
    let details = guest.agent.get_guest_details(context::with_timeout(0), &details).await.unwrap();
    assert_eq!(details.agent_details.version, "1.2.3");
    assert_eq!(guest.events.recv().await.unwrap(), AgentEvent::FirstRequest);

    let exec = ExecProcessRequest { container_id: "c1".into(), ..Default::default() };
    let (code, text) = refusal(guest.agent.exec_process(context::with_timeout(0), &exec).await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert_eq!(
        text,
        "ExecProcessRequest is blocked by policy: rule data.agent_policy.ExecProcessRequest is not defined, so it is denied \
         by default; next: add the rule to policy.rego in the pod's initdata"
    );

    let sandbox = CreateSandboxRequest { hostname: "pod".into(), dns: vec!["10.0.0.10".into()], ..Default::default() };
    guest.agent.create_sandbox(context::with_timeout(0), &sandbox).await.unwrap();
    let resolver = std::fs::read_to_string(guest.folder.path().join("resolv.conf")).unwrap();
    assert_eq!(resolver, "nameserver 10.0.0.10\n");

    let create = guest.container("registry/app:1");
    let (code, _) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(guest.calls().is_empty(), "no registry was asked for a container that could not be");

    let policy =
        SetPolicyRequest { policy: "package agent_policy\nExecProcessRequest := true".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.set_policy(context::with_timeout(0), &policy).await).0, Code::PERMISSION_DENIED);
}

#[tokio::test]
async fn output_that_the_policy_keeps_inside_looks_like_an_end_of_output() {
    let guest = Guest::with_policy(Policy::default()).await;
    let read = ReadStreamRequest { container_id: "c1".into(), len: 10, ..Default::default() };
    assert!(guest.agent.read_stdout(context::with_timeout(0), &read).await.unwrap().data.is_empty());
    assert!(guest.agent.read_stderr(context::with_timeout(0), &read).await.unwrap().data.is_empty());
}

#[tokio::test]
async fn the_policy_comes_before_everything_else() {
    let guest = Guest::with_rules("").await;
    let wait = WaitProcessRequest { container_id: "../x".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.wait_process(context::with_timeout(0), &wait).await).0, Code::PERMISSION_DENIED);
    let copy = CopyFileRequest { path: "/x".into(), ..Default::default() };
    let (code, text) = refusal(guest.agent.copy_file(context::with_timeout(0), &copy).await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    assert!(text.starts_with("CopyFileRequest is blocked by policy"), "{text}");

    let guest =
        Guest::with_rules("CopyFileRequest := true\nWaitProcessRequest := true\nStartContainerRequest := true").await;
    assert_eq!(refusal(guest.agent.copy_file(context::with_timeout(0), &copy).await).0, Code::INVALID_ARGUMENT);
    assert_eq!(refusal(guest.agent.wait_process(context::with_timeout(0), &wait).await).0, Code::INVALID_ARGUMENT);
    let start = StartContainerRequest { container_id: "c1".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.start_container(context::with_timeout(0), &start).await).0, Code::NOT_FOUND);
}

#[tokio::test]
async fn a_sealed_secret_is_copied_as_what_it_stands_for() {
    let guest = Guest::with_rules("CopyFileRequest := true").await;
    let folder = guest.folder.path().join("root/shared/containers");
    let own = guest.folder.path().metadata().unwrap();
    let copy = async |data: &[u8]| {
        let request = CopyFileRequest {
            path: folder.join("c1-secret/key").to_str().unwrap().into(),
            file_size: data.len().try_into().unwrap(),
            file_mode: 0o100_400,
            dir_mode: 0o755,
            uid: own.uid().try_into().unwrap(),
            gid: own.gid().try_into().unwrap(),
            data: data.into(),
            ..Default::default()
        };
        guest.agent.copy_file(context::with_timeout(0), &request).await
    };
    copy(b"sealed.key\n").await.unwrap();
    assert_eq!(std::fs::read_to_string(folder.join("c1-secret/key")).unwrap(), "secret of key");
    // What can't be opened leaves what was there.
    let (code, text) = refusal(copy(b"sealed.unknown").await);
    assert!(code == Code::INTERNAL && text.contains("no such secret"), "{text}");
    assert_eq!(std::fs::read_to_string(folder.join("c1-secret/key")).unwrap(), "secret of key");
    assert!(std::fs::read_dir(folder.join("../incoming")).unwrap().next().is_none());
}

#[tokio::test]
async fn what_was_copied_for_a_container_that_never_came_goes() {
    let rules = ["CreateSandbox", "CopyFile", "CreateContainer", "RemoveContainer"];
    let guest = Guest::with_rules(&rules.map(|rule| format!("{rule}Request := true\n")).concat()).await;
    guest.agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::default()).await.unwrap();
    let own = guest.folder.path().metadata().unwrap();
    let path = guest.folder.path().join("root/shared/containers/c1-0123456789abcdef-key");
    let request = CopyFileRequest {
        path: path.to_str().unwrap().into(),
        file_size: 1,
        file_mode: 0o100_400,
        dir_mode: 0o755,
        uid: own.uid().try_into().unwrap(),
        gid: own.gid().try_into().unwrap(),
        data: b"x".into(),
        ..Default::default()
    };
    let copy = async || guest.agent.copy_file(context::with_timeout(0), &request).await.unwrap();

    // The caller gives up on a creation that gets nowhere.
    copy().await;
    let mut create = guest.container("registry/silent:1");
    let mount = oci::Mount { source: request.path.clone(), ..Default::default() };
    create.OCI.mut_or_insert_default().Mounts.push(mount);
    let limit = context::with_duration(Duration::from_millis(100));
    assert!(guest.agent.create_container(limit, &create).await.is_err());
    let gone = async {
        while path.exists() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), gone).await.expect("the copy is left");

    // The caller gives up before it asks.
    copy().await;
    let remove = RemoveContainerRequest { container_id: "c1".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.remove_container(context::with_timeout(0), &remove).await).0, Code::NOT_FOUND);
    assert!(!path.exists());
}

#[tokio::test]
async fn what_this_guest_does_not_do_it_says() {
    let rules = [
        "AddSwap",
        "AddSwapPath",
        "ResizeVolume",
        "MemHotplugByProbe",
        "VolumeStats",
        "SetGuestDateTime",
        "GetDiagnosticData",
    ];
    let rules = rules.map(|rule| format!("{rule}Request := true\n")).concat();
    let guest = Guest::with_rules(&(rules + "MemAgentMemcgConfig := true\nUpdateEphemeralMountsRequest := true")).await;
    let now = || context::with_timeout(0);

    let (code, text) = refusal(guest.agent.add_swap(now(), &AddSwapRequest::new()).await);
    assert_eq!((code, text.contains("never swaps")), (Code::FAILED_PRECONDITION, true), "{text}");
    assert_eq!(
        refusal(guest.agent.add_swap_path(now(), &AddSwapPathRequest::new()).await).0,
        Code::FAILED_PRECONDITION
    );
    assert_eq!(refusal(guest.agent.resize_volume(now(), &ResizeVolumeRequest::new()).await).0, Code::UNIMPLEMENTED);
    assert_eq!(
        refusal(guest.agent.mem_agent_memcg_set(now(), &MemAgentMemcgConfig::new()).await).0,
        Code::UNIMPLEMENTED
    );
    let probe = MemHotplugByProbeRequest { memHotplugProbeAddr: vec![1 << 40], ..Default::default() };
    assert_eq!(refusal(guest.agent.mem_hotplug_by_probe(now(), &probe).await).0, Code::FAILED_PRECONDITION);
    let stats = VolumeStatsRequest { volume_guest_path: "/etc".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.get_volume_stats(now(), &stats).await).0, Code::NOT_FOUND);
    let time = SetGuestDateTimeRequest { Sec: -1, ..Default::default() };
    assert_eq!(refusal(guest.agent.set_guest_date_time(now(), &time).await).0, Code::INVALID_ARGUMENT);
    let log = GetDiagnosticDataRequest { log_type: "other".into(), ..Default::default() };
    assert_eq!(refusal(guest.agent.get_diagnostic_data(now(), &log).await).0, Code::INVALID_ARGUMENT);
    let mount = Storage {
        driver: "ephemeral".into(),
        fstype: "tmpfs".into(),
        mount_point: "/tmp".into(),
        ..Default::default()
    };
    let mounts = UpdateEphemeralMountsRequest { storages: vec![mount], ..Default::default() };
    assert_eq!(refusal(guest.agent.update_ephemeral_mounts(now(), &mounts).await).0, Code::INVALID_ARGUMENT);
}

#[tokio::test]
async fn the_decision_sees_what_the_image_would_run_and_whose_container_it_is() {
    let rules = "CreateSandboxRequest := true\n\
        CreateContainerRequest if { input.image_process.args == [\"/app\", \"serve\"]; not input.guest_pause; input.container_id == \"c1\" }\n\
        CreateContainerRequest if { input.guest_pause; input.images == {}; input.image_process == null }";
    let guest = Guest::with_rules(rules).await;
    guest.agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::new()).await.unwrap();
    let create = guest.container("registry/app:1");
    let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
    assert!(code == Code::INTERNAL && text.contains("the registry is closed"), "{text}");

    // The sandbox container needs no image, and is not asked for one.
    let mut pause = guest.container("registry/pause:1");
    let kind = ("io.katacontainers.pkg.oci.container_type".to_owned(), "pod_sandbox".to_owned());
    pause.OCI.mut_or_insert_default().Annotations.extend([kind]);
    pause.storages.clear();
    let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &pause).await);
    assert_eq!(code, Code::INTERNAL, "{text}");
    assert!(!guest.calls().iter().any(|call| call.contains("pause")), "{:?}", guest.calls());
    assert!(!guest.folder.path().join("root/c1").exists());
}

#[tokio::test]
async fn a_policy_that_the_policy_allows_takes_its_place() {
    let mut guest = Guest::with_rules("SetPolicyRequest if { contains(input.policy, \"owner\") }").await;
    let set = |policy: &str| SetPolicyRequest { policy: policy.into(), ..Default::default() };

    let (code, _) = refusal(guest.agent.set_policy(context::with_timeout(0), &set("package agent_policy")).await);
    assert_eq!(code, Code::PERMISSION_DENIED);
    let (code, text) = refusal(guest.agent.set_policy(context::with_timeout(0), &set("# owner\npackage x")).await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");

    let next = "# owner\npackage agent_policy\nListRoutesRequest := true";
    guest.agent.set_policy(context::with_timeout(0), &set(next)).await.unwrap();
    assert_eq!(guest.events.recv().await.unwrap(), AgentEvent::FirstRequest);
    assert_eq!(guest.events.recv().await.unwrap(), AgentEvent::PolicyReplaced);
    guest.agent.list_routes(context::with_timeout(0), &ListRoutesRequest::new()).await.unwrap();
    let (code, text) = refusal(guest.agent.set_policy(context::with_timeout(0), &set(next)).await);
    assert_eq!(code, Code::PERMISSION_DENIED, "{text}");
}

#[tokio::test]
async fn the_decision_is_about_the_digest_and_so_is_the_pull() {
    let rule = |digest: &str| {
        format!(
            "CreateSandboxRequest := true\nCreateContainerRequest if {{ input.images[input.storages[0].source] == \"{digest}\" }}"
        )
    };
    let sandbox = CreateSandboxRequest::new();

    // Another digest than the one that the owner allowed is denied, and nothing is pulled.
    let guest = Guest::with_rules(&rule(&DIGEST.replace('0', "1"))).await;
    guest.agent.create_sandbox(context::with_timeout(0), &sandbox).await.unwrap();
    let create = guest.container("registry/app:1");
    let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
    assert_eq!((code, guest.calls()), (Code::PERMISSION_DENIED, vec!["resolve registry/app:1".to_owned()]), "{text}");

    // The digest that is allowed is the one that is pulled. Where that fails, nothing is left.
    let guest = Guest::with_rules(&rule(DIGEST)).await;
    guest.agent.create_sandbox(context::with_timeout(0), &sandbox).await.unwrap();
    let create = guest.container("registry/app:1");
    for _ in 0..2 {
        let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
        assert_eq!(code, Code::INTERNAL, "{text}");
        assert!(text.contains("the registry is closed"), "{text}");
        assert!(!guest.folder.path().join("root/c1").exists());
    }
    let once = ["resolve registry/app:1".to_owned(), format!("pull {DIGEST}"), "release c1".to_owned()];
    assert_eq!(guest.calls(), [once.clone(), once].concat());

    let (code, text) =
        refusal(guest.agent.create_container(context::with_timeout(0), &guest.container("registry/missing:1")).await);
    assert!(code == Code::INTERNAL && text.contains("no such image"), "{text}");
}

#[tokio::test]
async fn a_container_is_an_image_that_the_guest_pulls() {
    let guest = Guest::with_rules("CreateSandboxRequest := true\nCreateContainerRequest := true").await;
    let create = guest.container("registry/app:1");
    let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
    assert!(guest.calls().is_empty(), "no name is looked up before the sandbox has brought a resolver");

    for change in [
        (|r| r.storages.clear()) as fn(&mut CreateContainerRequest),
        |r| r.storages.push(r.storages[0].clone()),
        |r| r.storages[0].mount_point = "/".into(),
        |r| r.container_id = "../c1".into(),
        |r| r.exec_id = "a/b".into(),
    ] {
        let mut create = create.clone();
        change(&mut create);
        let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &create).await);
        assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    }

    guest.agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::new()).await.unwrap();
    // Without a name server in it, the guest's client would ask public ones.
    let resolver = std::fs::read_to_string(guest.folder.path().join("resolv.conf")).unwrap();
    assert!(resolver.contains("nameserver 127.0.0.1\n"), "{resolver}");
    let mut sandbox = create.clone();
    sandbox.container_id = "sandbox".into();
    sandbox.storages[0].mount_point = guest.folder.path().join("root/sandbox/rootfs").to_str().unwrap().into();
    let (code, text) = refusal(guest.agent.create_container(context::with_timeout(0), &sandbox).await);
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    let (code, _) = refusal(guest.agent.create_sandbox(context::with_timeout(0), &CreateSandboxRequest::new()).await);
    assert_eq!(code, Code::ALREADY_EXISTS);
}

#[tokio::test]
async fn more_data_than_a_decision_can_carry_is_refused() {
    let guest = Guest::with_rules("WriteStreamRequest := true").await;
    let write = WriteStreamRequest { container_id: "c1".into(), data: vec![0; 300 << 10], ..Default::default() };
    assert_eq!(refusal(guest.agent.write_stdin(context::with_timeout(0), &write).await).0, Code::INVALID_ARGUMENT);
}

const DIGEST: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";
