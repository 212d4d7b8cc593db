//! What a node says to what is wrong: the cause and the next step, nothing left behind, and the next pod runs.

use std::fs;
use std::io::Write as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::Compression;
use flate2::write::GzEncoder;
use tests::node::{Cocoon, Containerd, Node};
use tests::{Image, InitDataFiles, Lab, example_policy, run};

use crate::ground::{Ground, INITDATA, LIMIT, expect_words, is_full, versions};

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_configuration_is_named_with_its_file() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let main = ground.node.path("/etc/cocoon/configuration.toml");
    let right = fs::read_to_string(&main).unwrap();
    let drop_in = ground.node.path("/etc/cocoon/config.d/50-site.toml");
    fs::create_dir_all(drop_in.parent().unwrap()).unwrap();
    let with = |line: &str| right.replace("[hypervisor.qemu]\n", &format!("[hypervisor.qemu]\n{line}\n"));
    let without = |file: &str| right.replace(&format!("/{file}\""), "/gone\"");
    for (text, words) in [
        ("[hypervisor.qemu\n".to_owned(), &["configuration: /etc/cocoon/configuration.toml", "next:"][..]),
        (with("default_memroy = 512"), &["/etc/cocoon/configuration.toml", "default_memroy", "next:"]),
        (without("vmlinux"), &["launch: kernel ", "/gone: No such file", "next: build or install the guest image"]),
        (
            without("initramfs"),
            &["launch: initramfs ", "/gone: No such file", "next: build or install the guest image"],
        ),
        (with("tee = \"snp\""), &["a TEE needs firmware", "next:"]),
    ] {
        fs::write(&main, text).unwrap();
        ground.expect_refused(ground.pod("configured"), words).await;
    }
    fs::write(&main, right).unwrap();
    for (text, words) in [
        ("default_memory\n", &["50-site.toml", "next:"][..]),
        ("[runtime]\ncgroup = true\n", &["/etc/cocoon/config.d/50-site.toml", "unknown field `cgroup`", "next:"]),
        ("[hypervisor.qemu]\ndefault_vcpus = \"two\"\n", &["50-site.toml", "expected u32", "next:"]),
    ] {
        fs::write(&drop_in, text).unwrap();
        ground.expect_refused(ground.pod("dropped"), words).await;
    }

    fs::remove_file(drop_in).unwrap();
    ground.expect_working().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_annotation_fails_its_pod_and_says_which() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let document = |version: &str, algorithm: &str| {
            gzip(format!("version = \"{version}\"\nalgorithm = \"{algorithm}\"\n[data]\n").as_bytes())
        };
        let bomb = gzip(&vec![b' '; 16 << 20]);
        for (name, value, words) in [
            (INITDATA, "?!", &["cc_init_data", "is no base64", "next:"][..]),
            (INITDATA, "AAAA", &["cc_init_data", "is no gzip", "next:"]),
            (INITDATA, &gzip(b"not toml"), &["cc_init_data", "is refused", "next:"]),
            (INITDATA, &document("9.9.9", "sha256"), &["cc_init_data", "version", "9.9.9", "next:"]),
            (INITDATA, &document("0.1.0", "md5"), &["cc_init_data", "md5", "next:"]),
            (INITDATA, &bomb, &["cc_init_data", "unpacks to more than", "next:"]),
            ("io.katacontainers.config.hypervisor.default_memory", "lots", &["default_memory", "lots", "next:"]),
            ("io.katacontainers.config.hypervisor.default_vcpus", "0", &["default_vcpus", "1 to 255", "next:"]),
        ] {
            // containerd itself says no more than that a message is too large to the one who sends so much.
            assert!(value.len() < 200_000);
            ground.expect_refused(ground.pod("annotated").annotation(name, value), words).await;
        }
        ground.expect_working().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn initdata_that_its_owner_does_not_know_gets_no_secret() {
    let lab = Lab::new();
    let (trustee, registry) = (lab.trustee(), lab.registry());
    let script = format!("wget -q -O - {SECRET} || echo; echo asked; exec sleep 3600");
    let image = registry.push(Image::busybox(&lab, "app", &script).layout(), "app");
    trustee.secret("default/demo/answer", &lab.file("answer", "the answer is 42"));
    let policy = example_policy("debug", &image);
    let own = InitDataFiles::new(policy.clone(), &trustee, &registry);
    let foreign = InitDataFiles::new(policy + "\n# and a line more\n", &trustee, &registry);
    let (_, digest) = own.build(&lab, "own");
    let digest = STANDARD.encode(hex::decode(digest).unwrap());
    let claim = "/submods/cpu0/ear.veraison.annotated-evidence/init_data";
    let example = include_str!("../../../examples/resource-policy.rego");
    let only = format!("expected := [{{\"claim\": \"{claim}\", \"values\": [\"{digest}\"]}}]\n");
    trustee.resource_policy(&(example.split("expected := [").next().unwrap().to_owned() + &only));
    let node = match Node::start(&lab, &registry, Containerd::V1, Some(&Cocoon::new())).await {
        Ok(node) => node,
        Err(reason) => return eprintln!("skipped: there can't be a node: {reason}"),
    };
    node.relay(trustee.port().parse().unwrap());
    node.pull(&image).await;

    for (name, files, is_own) in [("own", own, true), ("foreign", foreign, false)] {
        let pod = node.pod(name).handler("cocoon").annotation(INITDATA, files.annotation(&lab, name)).run().await;
        let app = pod.container("app", &image).start().await;
        app.said("asked", LIMIT).await;
        let log = app.log();
        assert_eq!(
            log.iter().any(|line| line.text.contains("the answer is 42")),
            is_own,
            "{name}: {log:?} {:#?}",
            trustee.audit()
        );
        assert!(app.is_running().await);
        pod.remove().await;
        assert_eq!(node.leftovers().await, [""; 0]);
    }
    let releases = trustee.audit().iter().filter(|record| record["event"] == "release").count();
    assert_eq!(releases, 1, "{:?}", trustee.audit());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_can_t_be_had_is_named_with_the_registry_s_reason() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let missing = ground.image.replace("/app@", "/nothing@");
        let refused = ground.node.try_pull(&missing, "cocoon", None).await.unwrap_err();
        expect_words(&refused, &["nothing", "not found"]);

        // The node has an image that the guest asks for in vain, since it has no account or the registry has lost it.
        let account = ground.registry.demand_account();
        let refused = ground.node.try_pull(&ground.image, "cocoon", None).await;
        expect_words(&refused.unwrap_err(), &["authorization"]);
        ground.node.try_pull(&ground.image, "cocoon", Some(account)).await.unwrap();
        let pod = ground.pod("private").run().await;
        let container = pod.container("app", &ground.image).create().await.unwrap();
        expect_words(&container.start().await.unwrap_err(), &["denies access", "none is configured", "next:"]);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_its_registry_has_lost_is_said_to_be_missing() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    ground.registry.forget("app");
    let pod = ground.pod("lost").run().await;
    let container = pod.container("app", &ground.image).create().await.unwrap();
    expect_words(
        &container.start().await.unwrap_err(),
        &["registry ", "does not have", "next: check the image's name"],
    );
    pod.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_a_part_says_which() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let node = &ground.node;

    // As if the package had been removed.
    node.shell(&covered("/usr/bin", "rm /usr/bin/qemu-system-x86_64"));
    let pod = ground.pod("machineless").try_run().await.err().unwrap();
    expect_words(&pod, &["qemu-system-x86_64 is not installed", "next: install the package"]);
    node.shell("umount --lazy /usr/bin");
    ground.expect_clean().await;

    // A device for vsock that no driver stands behind is as good as none.
    node.shell(&covered("/dev", "rm -f /dev/vhost-vsock; mknod /dev/vhost-vsock c 10 241"));
    let pod = ground.pod("vsockless").run().await;
    pod.container("app", &ground.image).start().await.said("the image", LIMIT).await;
    pod.remove().await;
    node.shell("umount --lazy /dev");
    ground.expect_clean().await;
    ground.expect_working().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_network_fails_is_not_run_and_leaves_nothing() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let plugin = |add: &str| {
            let rest = "[ \"$CNI_COMMAND\" != ADD ] && exec /usr/lib/cni/bridge";
            let script = format!("#!/bin/sh\n{rest}\n{add}\n");
            let file = ground.lab.file("plugin", script);
            ground.node.shell(&format!("install -m 755 {} {PLUGIN}", file.display()));
        };

        plugin("echo '{\"cniVersion\": \"0.4.0\", \"code\": 11, \"msg\": \"no address is free\"}'; exit 1");
        ground.expect_refused(ground.pod("refused"), &["no address is free"]).await;

        // It says that it made an interface, and did not; or gave it no address.
        let says = |made: &str| {
            format!(
                "{made}\ncat <<END\n{{\"cniVersion\": \"0.4.0\", \"interfaces\": [{{\"name\": \"eth0\", \
                 \"sandbox\": \"$CNI_NETNS\"}}], \"ips\": [{{\"version\": \"4\", \"interface\": 0, \
                 \"address\": \"10.88.0.77/24\"}}], \"dns\": {{}}}}\nEND"
            )
        };
        let bare = "ip link add eth0 netns \"$(basename $CNI_NETNS)\" type dummy >&2";
        for (name, made) in [("no-interface", ""), ("no-address", bare)] {
            plugin(&says(made));
            // Such a pod is alone in the world.
            let pod = ground.pod(name).run().await;
            let container = pod.container("app", &ground.image).create().await.unwrap();
            expect_words(&container.start().await.unwrap_err(), &["unreachable", "next:"]);
            pod.remove().await;
            ground.expect_clean().await;
        }

        ground.node.shell(&format!("ln -sf /usr/lib/cni/bridge {PLUGIN}"));
        ground.expect_working().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_that_is_run_twice_runs_once() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let spec = ground.pod("twin");
        let pod = spec.clone().run().await;

        let refused = spec.clone().try_run().await.err().unwrap();

        expect_words(&refused, &["is reserved for", pod.id()]);
        assert!(pod.is_ready().await);
        pod.container("app", &ground.image).start().await.said("the image", LIMIT).await;
        pod.remove().await;
        ground.expect_clean().await;
        // The name is free again.
        spec.run().await.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_whose_agent_hangs_is_given_up() {
    if !is_full() {
        return eprintln!("skipped: it takes two minutes of waiting; next: set COCOON_TEST_FULL=1");
    }
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let configuration = ground.node.path("/etc/cocoon/configuration.toml");
    let right = fs::read_to_string(&configuration).unwrap();
    let ready = "mount -t devtmpfs dev /dev; echo cocoon: ready > /dev/console";
    for (name, script, words) in [
        // One that never says that it is ready, and one that says so and answers nobody.
        ("silent", "", &["boot: the guest did not come up within", "next:"][..]),
        ("deaf", ready, &["the guest's agent", "next:"]),
    ] {
        let initramfs = initramfs(&ground.lab, name, script);
        let text = right.replace("/opt/cocoon/current/share/guest-image/initramfs", initramfs.to_str().unwrap());
        fs::write(&configuration, text).unwrap();
        ground.expect_refused(ground.pod(name), words).await;
    }
    fs::write(&configuration, right).unwrap();
    ground.expect_working().await;
}

/// An initramfs whose first process runs a script and then does nothing more.
fn initramfs(lab: &Lab, name: &str, script: &str) -> std::path::PathBuf {
    let (folder, archive) = (lab.path().join(name), lab.path().join(name).with_extension("cpio"));
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir_all(folder.join("dev")).unwrap();
    fs::copy("/bin/busybox", folder.join("bin/busybox")).unwrap();
    let init = format!("#!/bin/busybox sh\nalias mount='busybox mount'\n{script}\nexec /bin/busybox sleep 1000000\n");
    fs::write(folder.join("init"), init).unwrap();
    run("chmod", ["755".as_ref(), folder.join("init").as_os_str()]);
    let pack = format!("cd {} && find . | busybox cpio -o -H newc > {}", folder.display(), archive.display());
    run("sh", ["-ec", &pack]);
    archive
}

/// A script that covers a folder of the node with a changed copy, until it is unmounted.
fn covered(folder: &str, change: &str) -> String {
    let aside = format!("/run/covered{}", folder.replace('/', "-"));
    format!(
        "mkdir -p {aside}/upper {aside}/work\n\
         mount -t overlay -o lowerdir={folder},upperdir={aside}/upper,workdir={aside}/work overlay {folder}\n{change}"
    )
}

fn gzip(text: &[u8]) -> String {
    let mut packed = GzEncoder::new(Vec::new(), Compression::best());
    packed.write_all(text).unwrap();
    STANDARD.encode(packed.finish().unwrap())
}

/// Where the node has its networks' plugin.
const PLUGIN: &str = "/opt/cni/bin/bridge";
const SECRET: &str = "http://127.0.0.1:8006/cdh/resource/default/demo/answer";
