//! What the owner's policy keeps from the node.

use std::fs;

use tests::Image;
use tests::node::{ContainerSpec, Pod};

use crate::ground::{Ground, LIMIT, versions};

/// As a kubelet has it for every container.
#[tokio::test(flavor = "multi_thread")]
async fn the_strict_policy_lets_an_ordinary_pod_run_and_tells_nothing() {
    for version in versions() {
        let Some(ground) = Ground::with(version, "strict").await else { return };
        let pod = ground.pod("strict").run().await;
        let app = ordinary(&pod, &ground).start().await;

        let exec = app.try_exec(&["true"]).await.unwrap_err();
        assert!(exec.message().contains("ExecProcessRequest is blocked by policy"), "{exec}");
        assert!(app.is_running().await);
        assert_eq!(app.log(), [], "its output does not leave the guest");

        // What runs, with what and as whom is not the host's to choose.
        let changed = [
            ("command", ordinary(&pod, &ground).script("echo never")),
            ("environment", ordinary(&pod, &ground).env("LD_PRELOAD", "/evil.so")),
            ("user", ordinary(&pod, &ground).user(7, 7, &[])),
            ("mount", ordinary(&pod, &ground).mount(&pod.volume("kubernetes.io~configmap", "x"), "/bin", false)),
        ];
        for (attempt, (name, other)) in (1..).zip(changed) {
            let refused = other.attempt(attempt).create().await.unwrap().start().await.unwrap_err();
            let message = refused.message();
            assert!(message.contains("CreateContainerRequest is blocked by policy"), "{name}: {message}");
            assert!(message.len() < 4096, "{name}: {message}");
        }
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_container_says_why_and_harms_nobody() {
    for version in versions() {
        let Some(ground) = Ground::with(version, "exec-and-logs").await else { return };
        let other = Image::busybox(&ground.lab, "other", "echo never");
        let other = ground.registry.push(other.layout(), "other");
        ground.node.pull(&other).await;
        let pod = ground.pod("chosen").run().await;
        let app = ordinary(&pod, &ground).start().await;
        app.said("the image", LIMIT).await;

        // containerd asks the guest when it starts a container.
        let refused = pod.container("other", &other).create().await.unwrap().start().await.unwrap_err();
        let message = refused.message();
        assert!(message.contains("CreateContainerRequest is blocked by policy"), "{message}");

        assert!(app.is_running().await);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_without_initdata_does_not_run_and_says_why() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let refused = ground.node.pod("bare").handler("cocoon").try_run().await.err().unwrap();
        assert!(refused.message().contains("CreateContainerRequest is blocked by policy"), "{refused}");
        assert!(refused.message().len() < 4096, "{refused}");
        ground.expect_clean().await;
    }
}

/// A container with nothing but what a kubelet gives to all.
fn ordinary<'a>(pod: &'a Pod<'a>, ground: &Ground) -> ContainerSpec<'a> {
    let token = pod.volume("kubernetes.io~projected", "kube-api-access");
    fs::write(token.join("token"), "the account's token").unwrap();
    let (hosts, last_words) = (pod.folder().join("etc-hosts"), pod.folder().join("last-words"));
    fs::write(&hosts, "127.0.0.1 localhost\n").unwrap();
    fs::write(&last_words, "").unwrap();
    pod.container("app", &ground.image)
        .env("KUBERNETES_SERVICE_HOST", "10.96.0.1")
        .env("KUBERNETES_PORT_443_TCP", "tcp://10.96.0.1:443")
        .mount(&token, "/var/run/secrets/kubernetes.io/serviceaccount", true)
        .mount(&hosts, "/etc/hosts", false)
        .mount(&last_words, "/dev/termination-log", false)
        .annotation("io.kubernetes.container.terminationMessagePath", "/dev/termination-log")
        .annotation("io.kubernetes.container.terminationMessagePolicy", "File")
}
