//! What the management socket says.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::*;

#[tokio::test]
async fn metrics_are_the_shim_s_and_what_the_guest_may_say() {
    let lab = Lab::with_pod().await;
    crate::management::serve(lab.shim.pod().unwrap(), lab.shim.metrics.clone(), lab.folder.path().into()).unwrap();

    let metrics = lab.get("/metrics").await;
    assert!(metrics.starts_with("HTTP/1.1 200 OK"), "{metrics}");
    for line in [
        "kata_shim_rpc_durations_histogram_milliseconds_count{action=\"Create\"} 1",
        "kata_shim_agent_rpc_durations_histogram_milliseconds_count{action=\"CreateContainer\"} 1",
        "kata_guest_load 7",
    ] {
        assert!(metrics.lines().any(|found| found == line), "no {line:?} in {metrics}");
    }
    assert!(!metrics.contains("kata_shim_threads 99"), "the guest speaks for its host");

    fs::write(lab.path("cid"), "42").unwrap();
    assert!(lab.get("/agent-url").await.ends_with("vsock://42:1024"));
    assert!(lab.get("/other").await.starts_with("HTTP/1.1 404"));
}

impl Lab {
    async fn get(&self, path: &str) -> String {
        let mut stream = UnixStream::connect(self.path("shim-monitor.sock")).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        soon(stream.read_to_string(&mut answer)).await.unwrap();
        answer
    }
}
