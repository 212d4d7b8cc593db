//! What a node does when parts of a confidential pod end that should not.

use std::time::Duration;

use crate::ground::{Ground, LIMIT, versions};

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

/// Long before anybody would have asked.
const PROMPTLY: Duration = Duration::from_secs(20);
