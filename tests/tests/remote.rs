//! Peer pods: pods of a node whose machines are elsewhere, made by an adaptor.

#![allow(clippy::unwrap_used)]

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::time::Duration;

use tests::node::{Cocoon, Containerd, Node, PodSpec};
use tests::{Adaptor, Image, InitDataFiles, Lab, Registry, example_policy, run};

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_lives_in_a_machine_elsewhere() {
    for version in [Containerd::V1, Containerd::V2] {
        let Some(ground) = Ground::new(version).await else { return };
        let adaptor = Adaptor::start(&ground.lab, &ground.node);
        let pod = ground.pod("peer").limits(256 << 20, 1000).annotation(&of("machine_type"), "c6a.large").run().await;

        let asked = adaptor.annotations(pod.id()).await;
        let expected = [
            ("io.kubernetes.cri.sandbox-name", "peer"),
            ("io.kubernetes.cri.sandbox-namespace", "default"),
            (&of("machine_type"), "c6a.large"),
            (&of("default_vcpus"), "2"),
            (&of("default_memory"), "384"),
            (&of("image"), ""),
            (&of("cc_init_data"), &ground.document),
            (&of("default_gpus"), "0"),
            (&of("default_gpu_model"), ""),
        ];
        assert_eq!(asked, expected.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        // Nothing of the machine is on the node.
        assert_eq!(ground.node.processes("qemu-system"), []);

        let app = pod.container("app", &ground.image).script(ECHO).env("GREETING", "hello").start().await;
        app.said("serving", LIMIT).await;
        let executed = app.exec(&["sh", "-c", "echo $GREETING from $(hostname); echo err >&2; exit 3"]).await;
        assert_eq!((executed.code, &*executed.stdout, &*executed.stderr), (3, "hello from peer\n", "err\n"));
        let mut stream = pod.connect(8080).await.unwrap();
        stream.write_all(b"ping\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ping\n");
        assert!(app.stats().await.unwrap().memory.unwrap().working_set_bytes.unwrap().value > 0);
        let shims = ground.node.processes("containerd-shim-cocoon-v2");
        assert_eq!(shims.len(), 1, "{shims:?}");
        let listed = ground.cocoon(&["ps"]);
        assert!(listed.contains("default/peer") && listed.contains(" elsewhere "), "{listed}");
        let doctor = ground.cocoon(&["doctor", "default/peer"]);
        assert!(
            doctor.contains("it is elsewhere, made by an adaptor") && doctor.contains("it answers within"),
            "{doctor}"
        );
        let inside = ground.cocoon(&["exec", "default/peer", "app", "--", "hostname"]);
        assert_eq!(inside, "peer\n");

        // Files come by copies, disks not at all.
        let config = pod.volume("kubernetes.io~configmap", "config");
        std::fs::write(config.join("key"), "value").unwrap();
        let job = pod.container("job", &ground.image).script("cat /config/key; exit 7").mount(&config, "/config", true);
        let job = job.start().await;
        assert_eq!(job.ended(LIMIT).await.exit_code, 7);
        job.said("value", LIMIT).await;
        let file = ground.lab.file("disk", vec![0; 1 << 20]);
        let device = run("losetup", ["--find", "--show", file.to_str().unwrap()]).trim().to_owned();
        let disk = pod.container("disk", &ground.image).script("exit 0").device(&device, "/dev/xvda").create().await;
        let refused = disk.unwrap().start().await;
        run("losetup", ["--detach", &device]);
        let refused = refused.unwrap_err();
        assert!(refused.message().contains("the machine is elsewhere and gets no disk of this node"), "{refused}");
        assert!(app.is_running().await);

        app.stop(LIMIT).await.unwrap();
        let id = pod.id().to_owned();
        pod.remove().await;
        // The doctor has asked for its version, too.
        let requests: Vec<_> = adaptor.requests().into_iter().filter(|(request, _)| *request != "Version").collect();
        assert_eq!(requests, ["CreateVM", "StartVM", "StopVM"].map(|request| (request, id.clone())));
        assert_eq!(adaptor.machines().await, 0);
        ground.expect_clean().await;

        // By containerd's sandbox service, which has other words for a pod's name.
        if version == Containerd::V2 {
            let pod = ground.pod("other").handler("cocoon-sandbox").run().await;
            let asked = adaptor.annotations(pod.id()).await;
            assert_eq!(asked["io.kubernetes.cri.sandbox-name"], "other");
            assert_eq!(asked["io.kubernetes.cri.sandbox-namespace"], "default");
            let job = pod.container("job", &ground.image).script("exit 7").start().await;
            assert_eq!(job.ended(LIMIT).await.exit_code, 7);
            pod.remove().await;
            assert_eq!(adaptor.machines().await, 0);
            ground.expect_clean().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_is_not_started_is_told_of_and_nothing_of_it_stays() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let absent = ground.pod("absent").try_run().await.err().unwrap();
    assert!(absent.message().contains("/run/peerpod/hypervisor.sock can't be reached"), "{absent}");
    ground.expect_clean().await;

    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    adaptor.refuse("no quota for c6a.large");
    let refused = ground.pod("refused").try_run().await.err().unwrap();
    let told = "adaptor: StartVM was refused: creating an instance : no quota for c6a.large; next:";
    assert!(refused.message().contains(told), "{refused}");
    let requests: Vec<_> = adaptor.requests().iter().map(|(request, _)| *request).collect();
    assert_eq!(requests, ["Version", "CreateVM", "StartVM", "StopVM"]);
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ends_with_its_machine() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    let pod = ground.pod("machine").run().await;
    let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;

    adaptor.crash_machine(pod.id()).await;

    assert_ne!(app.ended(PROMPTLY).await.exit_code, 0);
    assert!(app.try_exec(&["true"]).await.is_err());
    pod.ended(PROMPTLY).await;
    assert_eq!(adaptor.asked("StopVM", PROMPTLY).await, pod.id());
    pod.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_ends_with_its_adaptor_and_is_removed_when_another_is_there() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    let pod = ground.pod("adaptor").run().await;
    let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;

    drop(adaptor);

    assert_ne!(app.ended(PROMPTLY).await.exit_code, 0);
    // Nobody has been told to end the machine yet.
    let folder = ground.node.path("/run/cocoon").join(pod.id());
    assert!(folder.join("record.json").exists());
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    assert_eq!(adaptor.asked("StopVM", LIMIT).await, pod.id());
    pod.remove().await;
    assert!(!folder.exists());
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_leaves_no_machine() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    let pod = ground.pod("shim").run().await;
    let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;

    ground.node.kill(&ground.node.processes("containerd-shim-cocoon-v2")[0]).await;

    assert_ne!(app.ended(PROMPTLY).await.exit_code, 0);
    assert_eq!(adaptor.asked("StopVM", PROMPTLY).await, pod.id());
    assert_eq!(adaptor.machines().await, 0);
    pod.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_is_ended_as_soon_as_its_adaptor_is_back_whoever_is_left_to_say_so() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    let pod = ground.pod("both").run().await;
    let id = pod.id().to_owned();

    drop(adaptor);
    ground.node.kill(&ground.node.processes("containerd-shim-cocoon-v2")[0]).await;
    pod.ended(PROMPTLY).await;
    pod.remove().await;

    assert!(ground.node.path("/run/cocoon").join(&id).join("record.json").exists());
    let doctor = ground.cocoon(&["doctor"]);
    assert!(doctor.contains("pod's machine elsewhere"), "{doctor}");
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    assert_eq!(adaptor.asked("StopVM", LIMIT).await, id);
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_does_not_start_in_time_or_whose_shim_is_killed_meanwhile_is_ended() {
    let Some(ground) =
        Ground::with(Containerd::V1, |cocoon| cocoon.with("hypervisor.remote.remote_hypervisor_timeout", 5)).await
    else {
        return;
    };
    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    adaptor.hang();
    let late = ground.pod("late").try_run().await.err().unwrap();
    assert!(late.message().contains("adaptor: no answer to StartVM within 5 s; next:"), "{late}");
    adaptor.asked("StopVM", PROMPTLY).await;
    ground.expect_clean().await;
    drop(adaptor);

    let adaptor = Adaptor::start(&ground.lab, &ground.node);
    adaptor.hang();
    let kill = async {
        adaptor.asked("StartVM", LIMIT).await;
        ground.node.kill(&ground.node.processes("containerd-shim-cocoon-v2")[0]).await;
    };
    let (run, ()) = tokio::join!(ground.pod("killed").try_run(), kill);
    assert!(run.is_err());
    adaptor.asked("StopVM", PROMPTLY).await;
    ground.expect_clean().await;
}

/// A node whose pods run elsewhere.
struct Ground {
    // Dropped in this order: first what runs, then the folder.
    node: Node,
    image: String,
    document: String,
    annotation: String,
    _registry: Registry,
    lab: Lab,
}

impl Ground {
    /// A node with this containerd; none where there can't be one.
    async fn new(version: Containerd) -> Option<Self> {
        Self::with(version, |cocoon| cocoon).await
    }

    /// The same with its configuration changed.
    async fn with(version: Containerd, change: impl FnOnce(Cocoon) -> Cocoon) -> Option<Self> {
        let lab = Lab::new();
        let registry = lab.registry();
        let image = registry.push(Image::busybox(&lab, "app", "exec sleep 3600").layout(), "app");
        let initdata = InitDataFiles::without_trustee(example_policy("debug", &image), &registry);
        let document = std::fs::read_to_string(initdata.build(&lab, "initdata").0).unwrap();
        let annotation = initdata.annotation(&lab, "initdata");
        let cocoon = change(Cocoon::new().with("hypervisor.remote.default_memory", 384));
        let node = Node::start(&lab, &registry, version, Some(&cocoon)).await;
        let node = node.inspect_err(|reason| eprintln!("skipped: there can't be a node: {reason}")).ok()?;
        node.pull(&image).await;
        Some(Self { node, image, document, annotation, _registry: registry, lab })
    }

    fn pod(&self, name: &str) -> PodSpec<'_> {
        self.node.pod(name).handler("cocoon").annotation(&of("cc_init_data"), &self.annotation)
    }

    /// What the program says on the node.
    fn cocoon(&self, arguments: &[&str]) -> String {
        let output = self.node.command(Lab::program("cocoon")).args(arguments).output().unwrap();
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8(output.stderr).unwrap()
    }

    async fn expect_clean(&self) {
        assert_eq!(self.node.leftovers().await, [""; 0]);
        assert_eq!(self.node.pods().await, [""; 0]);
    }
}

/// An annotation about a pod's machine.
fn of(name: &str) -> String {
    format!("io.katacontainers.config.hypervisor.{name}")
}

/// Says so when it answers every line with itself, at port 8080.
const ECHO: &str = "trap 'exit 0' TERM
busybox nc -ll -p 8080 -e cat &
until echo | busybox nc 127.0.0.1 8080 > /dev/null; do sleep 0.1; done
echo serving
wait";
/// Software emulation on a machine that also does other work.
const LIMIT: Duration = Duration::from_secs(120);
/// Long before anybody would have asked.
const PROMPTLY: Duration = Duration::from_secs(30);
