//! The laboratory itself, with runc: what fails here is none of Cocoon's.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;

use tests::node::{Containerd, Node};
use tests::{Image, Lab};

use crate::ground::{ECHO, LIMIT};

#[tokio::test(flavor = "multi_thread")]
async fn the_laboratory_runs_an_ordinary_pod() {
    for version in [Containerd::V1, Containerd::V2] {
        let lab = Lab::new();
        let registry = lab.registry();
        let image = registry.push(Image::busybox(&lab, "app", "exec sleep 3600").layout(), "app");
        let node = match Node::start(&lab, &registry, version, None).await {
            Ok(node) => node,
            Err(reason) => return eprintln!("skipped: there can't be a node: {reason}"),
        };
        node.pull(&image).await;
        assert!(node.has_image(&image).await);
        assert!(node.conditions().await.contains(&("NetworkReady".to_owned(), true)));

        let pod = node.pod("ordinary").run().await;
        let server = pod.container("server", &image).script(ECHO).start().await;
        server.said("serving", LIMIT).await;
        let mut stream = pod.connect(8080).await.unwrap();
        stream.write_all(b"ping\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "ping\n");

        let mut port = pod.forward(8080).await.unwrap();
        port.send(b"pong\n").await;
        port.until("pong", LIMIT).await;

        let executed = server.exec(&["sh", "-c", "echo out; echo err >&2; exit 3"]).await;
        assert_eq!((executed.code, &*executed.stdout, &*executed.stderr), (3, "out\n", "err\n"));
        let mut shell = server.exec_interactively(&["sh"], true).await.unwrap();
        shell.send(b"busybox stty size; exit 5\n").await;
        let (output, _, code) = shell.finish(LIMIT).await;
        assert_eq!(code, 5, "{output}");

        let job = pod.container("job", &image).script("echo done; exit 7").start().await;
        assert_eq!(job.ended(LIMIT).await.exit_code, 7);
        assert_eq!(job.log()[0].text, "done");

        node.restart_containerd().await;
        assert!(pod.is_ready().await);
        assert_eq!(node.containers().await, sorted([server.id().to_owned(), job.id().to_owned()]));
        // Else the search below would find nothing whatever there is.
        let traces = node.traces();
        for kind in ["process ", "mount ", "file /run/netns/", "network interface veth", "control group "] {
            assert!(traces.iter().any(|trace| trace.starts_with(kind)), "no {kind:?} among {traces:?}");
        }
        pod.remove().await;
        assert_eq!(node.leftovers().await, [""; 0]);
    }
}

fn sorted<const N: usize>(mut words: [String; N]) -> [String; N] {
    words.sort();
    words
}
