//! The life of a confidential pod's containers: started, looked at, changed, stopped, made again.

use std::time::Duration;

use tests::node::Containerd;

use crate::ground::{ECHO, Ground, LIMIT, is_full, versions};

#[tokio::test(flavor = "multi_thread")]
async fn containers_come_and_go_while_their_pod_stays() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let image = ground.image.clone();
        let pod = ground.pod("life").run().await;

        // One that minds its stop signal, one that does not, one that ends by itself.
        let polite = pod.container("polite", &image).script(POLITE).start().await;
        let stubborn = pod.container("stubborn", &image).script(STUBBORN).start().await;
        let job = pod.container("job", &image).script("echo done; exit 7").start().await;
        polite.said("up", LIMIT).await;
        stubborn.said("up", LIMIT).await;
        assert_eq!(job.ended(LIMIT).await.exit_code, 7);

        let executed = polite.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
        assert_eq!((executed.code, &*executed.stdout, &*executed.stderr), (3, "out\n", "err\n"));
        let missing = polite.try_exec(&["/no/such/program"]).await;
        assert!(missing.is_err() || missing.is_ok_and(|executed| executed.code != 0));

        // A probe that hangs is ended, and with it what it started.
        let hangs = polite.exec_within(&["sh", "-c", "exec sleep 4321"], Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(hangs.code(), tonic::Code::DeadlineExceeded, "{hangs}");
        assert!(!polite.exec(&["ps"]).await.stdout.contains("sleep 4321"));

        // Nothing of a long output is lost, neither of a command nor of the container itself.
        assert_eq!(polite.exec(&["busybox", "seq", "100000"]).await.stdout.lines().count(), 100_000);
        let wordy = pod.container("wordy", &image).script("busybox seq 100000").start().await;
        assert_eq!(wordy.ended(LIMIT).await.exit_code, 0);
        wordy.said("100000", LIMIT).await;
        assert!(
            wordy.log().iter().map(|line| &line.text).eq(&(1..=100_000).map(|n| n.to_string()).collect::<Vec<_>>())
        );
        wordy.remove().await.unwrap();

        let stats = polite.stats().await.unwrap();
        assert!(stats.cpu.unwrap().usage_core_nano_seconds.unwrap().value > 0);
        assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
        polite.update_memory(24 << 20).await.unwrap();
        let limit = polite.exec(&["cat", "/sys/fs/cgroup/memory.max"]).await.stdout;
        assert_eq!(limit.trim(), (24 << 20).to_string());

        let old = polite.rotate_log().await;
        assert!(old.contains("up"));
        polite.exec(&["sh", "-c", "echo after > /proc/1/fd/1"]).await;
        assert_eq!(polite.said("after", LIMIT).await.stream, "stdout");

        // containerd comes back to what it left.
        let mut known = [polite.id(), stubborn.id(), job.id()].map(str::to_owned);
        known.sort();
        ground.node.restart_containerd().await;
        assert_eq!(ground.node.containers().await, known);
        assert!(pod.is_ready().await && polite.is_running().await && stubborn.is_running().await);
        assert_eq!(polite.exec(&["echo", "again"]).await.stdout, "again\n");
        assert_eq!(job.status().await.exit_code, 7);

        polite.stop(LIMIT).await.unwrap();
        assert_eq!(polite.status().await.exit_code, 9);
        polite.said("bye", LIMIT).await;
        stubborn.stop(Duration::from_secs(1)).await.unwrap();
        assert_eq!(stubborn.status().await.exit_code, 137);

        // The last container is gone, and the pod takes another of the same name.
        for container in [polite, stubborn, job] {
            container.remove().await.unwrap();
        }
        let again =
            pod.container("polite", &image).attempt(1).script("echo second life; exec sleep 3600").start().await;
        again.said("second life", LIMIT).await;
        // One that runs can be removed, too.
        again.remove().await.unwrap();
        assert_eq!(ground.node.containers().await, [""; 0]);

        pod.stop().await.unwrap();
        assert!(!pod.is_ready().await);
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_reach_a_container() {
    let versions = if is_full() { vec![Containerd::V1, Containerd::V2] } else { vec![Containerd::V2] };
    for version in versions {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("streams").run().await;
        let shell = pod.container("shell", &ground.image).command(&["/bin/sh"]).terminal().start().await;

        let mut exec = shell.exec_interactively(&["sh"], true).await.unwrap();
        exec.resize(100, 40).await;
        exec.send(b"until busybox stty size | grep '40 100'; do sleep 0.1; done; exit 5\n").await;
        let (output, _, code) = exec.finish(LIMIT).await;
        assert!(output.contains("40 100"), "{output}");
        assert_eq!(code, 5);

        let mut exec =
            shell.exec_interactively(&["sh", "-c", "read line; echo got $line; echo err >&2"], false).await.unwrap();
        exec.send(b"a line\n").await;
        assert_eq!(exec.finish(LIMIT).await, ("got a line\n".to_owned(), "err\n".to_owned(), 0));

        let mut exec =
            shell.exec_interactively(&["sh", "-c", "busybox head -c 300000 | busybox wc -c"], false).await.unwrap();
        exec.send(&vec![b'x'; 300_000]).await;
        assert_eq!(exec.finish(LIMIT).await.0, "300000\n");

        let mut attached = shell.attach(true).await.unwrap();
        attached.send(b"echo from $((40 + 2))\n").await;
        attached.until("from 42", LIMIT).await;
        attached.send(b"exit 6\n").await;
        assert_eq!(shell.ended(LIMIT).await.exit_code, 6);

        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_reach_each_other_whoever_made_them() {
    let Some(ground) = Ground::new(Containerd::V2).await else { return };
    // The one by containerd's sandbox service, the other by a container.
    let server = ground.pod("server").handler("cocoon-sandbox").run().await;
    let echo = server.container("echo", &ground.image).script(ECHO).start().await;
    echo.said("serving", LIMIT).await;
    let client = ground.pod("client").run().await;
    let shell = client.container("shell", &ground.image).script("exec sleep 3600").start().await;

    for address in server.addresses().await {
        let answer = shell.exec(&["sh", "-c", &format!("echo ping | busybox nc {address} 8080")]).await;
        assert_eq!(answer.stdout, "ping\n", "{address}");
    }
    assert_eq!(echo.exec(&["hostname"]).await.stdout, "server\n");

    server.remove().await;
    assert!(shell.is_running().await);
    client.remove().await;
    ground.expect_clean().await;
}

const POLITE: &str = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done";
const STUBBORN: &str = "trap '' TERM; echo up; while :; do sleep 0.1; done";
