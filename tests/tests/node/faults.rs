//! What a node does when parts of a confidential pod end that should not.

use std::fs;
use std::time::Duration;

use tests::node::Containerd;

use crate::ground::{Ground, LIMIT, is_full, versions};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_takes_too_much_memory_ends_alone() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("memory").run().await;
        let modest = pod.container("modest", &ground.image).script("exec sleep 3600").start().await;

        // A line without end, which is kept whole.
        let greedy = pod.container("greedy", &ground.image).script("exec busybox tail /dev/zero").memory(24 << 20);
        let ended = greedy.start().await.ended(LIMIT).await;

        assert_eq!((&*ended.reason, ended.exit_code), ("OOMKilled", 137));
        assert!(modest.is_running().await);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_machine_was_killed_ends_and_can_be_removed() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("machine").run().await;
        let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;
        let machines = ground.node.processes("qemu-system");
        assert_eq!(machines.len(), 1, "{machines:?}");

        ground.node.kill(&machines[0]).await;

        assert_ne!(app.ended(PROMPTLY).await.exit_code, 0);
        assert!(app.try_exec(&["true"]).await.is_err());
        pod.ended(PROMPTLY).await;
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_shim_was_killed_can_be_removed() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("shim").run().await;
        let app = pod.container("app", &ground.image).script("exec sleep 3600").start().await;
        let shims = ground.node.processes("containerd-shim-cocoon-v2");
        assert_eq!(shims.len(), 1, "one shim for a pod with all its containers: {shims:?}");

        ground.node.kill(&shims[0]).await;

        assert_ne!(app.ended(PROMPTLY).await.exit_code, 0);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_whose_machine_hangs_can_be_removed() {
    if !is_full() {
        return eprintln!("skipped: it takes half a minute of waiting; next: set COCOON_TEST_FULL=1");
    }
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let pod = ground.pod("hangs").run().await;
    pod.container("app", &ground.image).script("exec sleep 3600").start().await;

    ground.node.freeze(&ground.node.processes("qemu-system")[0]);

    // A kubelet asks again when it was refused.
    let mut refusals = Vec::new();
    while let Err(status) = pod.stop().await {
        refusals.push(status);
        assert!(refusals.len() < 4, "{refusals:?}");
    }
    pod.remove().await;
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_whose_image_is_broken_leaves_room_for_the_next() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("broken").run().await;
        // The node has the image whole, so this shows as well that the guest does not take it from there.
        let layout = ground.lab.path().join("app");
        ground.registry.corrupt_layers(&layout);

        let app = pod.container("app", &ground.image).create().await.unwrap();
        let refused = app.start().await.unwrap_err();
        let message = refused.message();
        assert!(message.contains("layer 0") && message.contains("next:") && message.len() < 4096, "{message}");

        // The same again makes it whole.
        ground.registry.corrupt_layers(&layout);
        let again = pod.container("app", &ground.image).attempt(1).start().await;
        again.said("the image", LIMIT).await;
        app.remove().await.unwrap();
        assert!(again.is_running().await);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_does_not_boot_says_why() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    let broken = ground.lab.file("initramfs", "no archive");
    let configuration = ground.node.path("/etc/cocoon/configuration.toml");
    let text = fs::read_to_string(&configuration).unwrap();
    fs::write(
        &configuration,
        text.replace("/opt/cocoon/current/share/guest-image/initramfs", broken.to_str().unwrap()),
    )
    .unwrap();

    let refused = ground.pod("broken").try_run().await.err().unwrap();

    let message = refused.message();
    assert!(message.contains("kernel panic: VFS: Unable to mount root fs") && message.contains("next:"), "{message}");
    ground.expect_clean().await;
}

/// Long before anybody would have asked.
const PROMPTLY: Duration = Duration::from_secs(20);
