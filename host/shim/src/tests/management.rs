//! What the management socket says, and what is left of a pod that failed.

use ::management::{Identity, State};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;
use crate::Error;
use crate::health::Health;

#[tokio::test]
async fn metrics_are_the_shim_s_and_what_the_guest_may_say() {
    let lab = Lab::with_pod().await;

    let metrics = lab.get("/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
    for line in [
        "kata_shim_rpc_durations_histogram_milliseconds_count{action=\"create\"} 1",
        "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"grpc.CreateContainerRequest\"} 1",
        "kata_guest_load 7",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in {metrics}");
    }
    assert!(!metrics.contains("kata_shim_threads 99"), "the guest speaks for its host");
    assert!(lab.get("/other").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn the_state_names_pod_containers_and_what_went_wrong() {
    let lab = Lab::with_pod().await;
    lab.create(lab.container("c", json!([]))).await.unwrap();
    lab.start("c", "").await.unwrap();
    lab.agent.deny("ExecProcess");
    lab.exec("c", "e").await.unwrap();
    lab.start("c", "e").await.unwrap_err();

    let state = lab.look().await;

    let [container] = &state.containers[..] else { panic!("{state:?}") };
    assert_eq!((&*container.id, &*container.name, &*container.phase), ("c", "app", "running"));
    let [refused] = &state.troubles[..] else { panic!("{state:?}") };
    assert_eq!((&*refused.request, &*refused.container, refused.refused), ("start", "c", true));
    assert!(refused.error.contains("ExecProcess is blocked by policy"), "{refused:?}");
    assert_eq!((state.machine, state.ended), (Some(fake::PID), None));
    assert_eq!(Identity::read(lab.folder.path()).unwrap().id, POD);
}

#[tokio::test]
async fn what_containers_and_the_console_say_is_heard_besides() {
    let lab = Lab::with_pod().await;
    lab.create(lab.container("c", json!([]))).await.unwrap();
    lab.start("c", "").await.unwrap();
    lab.boot.console.borrow().capture(&b"a line\n"[..]).await;
    assert!(lab.get("/console").await.ends_with("\r\n\r\na line\n"));

    let (said, ()) = tokio::join!(lab.get("/output?container=app&follow=1"), async {
        lab.agent.say("c", "", "hello");
        lab.agent.exit("c", "", 3);
    });
    assert!(said.contains("hello"), "{said}");
    // Also when it is gone.
    soon(lab.wait("c", "")).await.unwrap();
    lab.delete("c", "").await.unwrap();
    assert!(lab.get("/output?container=c").await.ends_with("hello"));
    let state = lab.look().await;
    assert_eq!((&*state.containers[0].phase, state.containers[0].exit_status), ("removed", Some(3)));
}

#[tokio::test]
async fn what_keeps_a_container_from_running_goes_on_record() {
    let lab = Lab::with_pod().await;
    lab.agent.deny("CreateContainer");
    let (_, told) = code(lab.create(lab.container("c", json!([]))).await.unwrap_err());

    let recorded = Failures::at(&lab.path("failures")).all().unwrap();

    let [failure] = &recorded[..] else { panic!("{recorded:?}") };
    assert_eq!((&*failure.pod.id, &failure.trouble.error, failure.trouble.refused), (POD, &told, true));
}

#[tokio::test]
async fn a_machine_that_ends_by_itself_goes_on_record_and_one_that_is_stopped_does_not() {
    let lab = Lab::with_pod().await;
    lab.boot.crash("kernel panic: out of memory");
    assert_eq!(soon(lab.wait(POD, "")).await.unwrap(), 137);
    let recorded = Failures::at(&lab.path("failures")).all().unwrap();
    assert!(recorded[0].trouble.error.contains("kernel panic: out of memory"), "{recorded:?}");

    let lab = Lab::with_pod().await;
    lab.kill(POD, "", 9).await.unwrap();
    soon(lab.wait(POD, "")).await.unwrap();
    lab.delete(POD, "").await.unwrap();
    assert_eq!(Failures::at(&lab.path("failures")).all().unwrap(), []);
}

#[tokio::test]
async fn a_guest_that_falls_silent_hangs_and_one_that_is_only_late_does_not() {
    let lab = Lab::with_pod().await;
    let (pod, instant) = (lab.shim.pod().unwrap(), Duration::from_millis(1));
    let health = Health { interval: instant, limit: Duration::from_secs(2) };

    // It misses one answer and gives the next: the watch goes on.
    lab.agent.silent.send_replace(true);
    let agent = Arc::clone(&lab.agent);
    let guest = pod.guest().clone();
    let watch = tokio::spawn(async move { health.watch(&guest, None).await });
    let missed = async {
        while lab.checks() < 1 {
            tokio::task::yield_now().await;
        }
    };
    soon(missed).await;
    agent.silent.send_replace(false);
    let answered = async {
        while lab.checks() < 9 {
            tokio::task::yield_now().await;
        }
    };
    soon(answered).await;
    assert!(!watch.is_finished());

    agent.silent.send_replace(true);
    let error = soon(watch).await.unwrap();
    assert!(matches!(error, Error::Hung { seconds: 4, stopped: false }), "{error}");
}

impl Lab {
    /// How often the guest's health was asked for, as the metrics say.
    fn checks(&self) -> u64 {
        let name = "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"grpc.CheckRequest\"} ";
        let text = self.shim.metrics.text(None, None);
        text.lines().find_map(|line| line.strip_prefix(name)?.parse().ok()).unwrap_or_default()
    }

    async fn look(&self) -> State {
        let answer = self.get("/state").await;
        serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1)
            .unwrap_or_else(|error| panic!("{error}: {answer}"))
    }

    async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.path("shim-monitor.sock")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }
}
