//! `cocoon ps|logs|console|metrics|doctor` on pods whose owner is this test, by the real socket.

#![allow(clippy::unwrap_used)]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use management::{ContainerState, Failure, Failures, Identity, Moment, Owner, State, Trouble};
use sandbox::{Console, Directory, SandboxName};
use tokio::task::spawn_blocking;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_is_found_by_its_name_and_tells_what_it_said() {
    let pod = Pod::new("said", "web").await;
    pod.owner.output.push(b"hello from the container\n");
    let full = pod.full_name.clone();

    let listed = cocoon(&["ps"]).await;
    assert!(text(&listed.stdout).contains(&full), "{}", text(&listed.stdout));
    for words in [["logs", &full, "app"], ["logs", &pod.id[..pod.id.len() - 1], "c1"]] {
        let logs = cocoon(&words).await;
        assert_eq!(text(&logs.stdout), "hello from the container\n", "{words:?} {}", text(&logs.stderr));
    }
    let console = cocoon(&["console", &full]).await;
    assert_eq!(text(&console.stdout), "the kernel boots\nready\n");

    let nobody = cocoon(&["logs", "no/such-pod"]).await;
    assert_eq!(nobody.status.code(), Some(1));
    assert!(text(&nobody.stderr).contains("no/such-pod is not running; next:"), "{}", text(&nobody.stderr));
    let unclear = cocoon(&["logs", &full, "sidecar"]).await;
    assert!(text(&unclear.stderr).contains("there are app"), "{}", text(&unclear.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn output_is_followed_until_it_ends() {
    let pod = Pod::new("follow", "web").await;
    pod.owner.output.begin();
    pod.owner.output.push(b"first\n");
    let mut following = start(&["logs", "--follow", &pod.full_name]);
    let mut lines = BufReader::new(following.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");
    pod.owner.output.push(b"second\n");
    assert_eq!(lines.next().unwrap().unwrap(), "second");
    pod.owner.output.end();
    assert!(lines.next().is_none());
    assert!(following.wait().unwrap().success());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_monitor_tells_of_all_pods_with_their_names() {
    let (one, other) = (Pod::new("one", "a").await, Pod::new("other", "b").await);
    let mut monitor = start(&["metrics", "--listen", "127.0.0.1:0"]);
    let mut said = String::new();
    BufReader::new(monitor.stderr.take().unwrap()).read_line(&mut said).unwrap();
    let address = said.trim().rsplit_once(' ').unwrap().1.to_owned();

    let answer = get(&address, "/metrics").await;
    for pod in [&one, &other] {
        let labels = format!(
            "up{{sandbox_id=\"{}\",cri_uid=\"u-1\",cri_name=\"{}\",cri_namespace=\"{}\"}} 1",
            pod.id,
            pod.full_name.split_once('/').unwrap().1,
            pod.full_name.split_once('/').unwrap().0
        );
        assert!(answer.lines().any(|line| line == labels), "no {labels} in {answer}");
    }
    assert_eq!(answer.matches("# TYPE up gauge").count(), 1, "{answer}");
    assert!(answer.contains("\nkata_monitor_scrape_count 1\n"), "{answer}");
    assert!(get(&address, "/sandboxes").await.contains(&one.id));
    assert!(get(&address, &format!("/agent-url?sandbox={}", other.id)).await.ends_with("vsock://9:1024"));
    assert!(get(&address, &format!("/metrics?sandbox={}", one.id)).await.contains("\r\n\r\n# TYPE up gauge\nup 1\n"));
    assert!(get(&address, "/agent-url").await.starts_with("HTTP/1.1 400"));
    assert!(get(&address, "/other").await.starts_with("HTTP/1.1 404"));
    monitor.kill().unwrap();
    monitor.wait().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_doctor_finds_what_is_wrong_with_a_pod_and_what_was_with_one_that_is_gone() {
    let pod = Pod::new("ill", "web").await;
    let found = cocoon(&["doctor", &pod.full_name]).await;
    let out = text(&found.stdout);
    for words in [
        "good     boot           VMM start 0.00 s, first answer 1.50 s",
        "warning  initdata       there is none",
        "ExecProcess: ExecProcessRequest is blocked by policy",
        "next: allow it in the policy",
        "containers     app running",
    ] {
        assert!(out.contains(words), "no {words:?} in {out}");
    }

    let gone = Identity { id: format!("gone-{}", std::process::id()), ..Identity::default() };
    let trouble = Trouble {
        at: management::now(),
        request: "create".to_owned(),
        error: "boot: the guest did not come up: kernel panic: VFS; next: check the initramfs".to_owned(),
        ..Trouble::default()
    };
    let console = Console::new();
    console.capture(&b"VFS: Unable to mount root fs\n"[..]).await;
    Failures::of_node().record(&Failure::new(gone.clone(), trouble, Vec::new(), &console)).unwrap();

    let found = cocoon(&["doctor", &gone.id]).await;
    let out = text(&found.stdout);
    assert_eq!(found.status.code(), Some(1), "{out}");
    for words in ["kernel panic: VFS\n", "next: check the initramfs", "console: VFS: Unable to mount root fs"] {
        assert!(out.contains(words), "no {words:?} in {out}");
    }
    let json = cocoon(&["doctor", &gone.id, "--json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(report["failures"][0]["trouble"]["request"], "create");
    assert!(report["node"].as_array().unwrap().iter().any(|finding| finding["name"] == "KVM"));

    let unknown = cocoon(&["doctor", "nobody-knows"]).await;
    assert!(text(&unknown.stderr).contains("nothing is known of nobody-knows"), "{}", text(&unknown.stderr));
}

/// A pod with an owner, and no machine.
struct Pod {
    id: String,
    full_name: String,
    owner: Arc<Host>,
    _folder: Directory,
}

struct Host {
    identity: Identity,
    console: Console,
    output: management::Output,
}

impl Pod {
    async fn new(case: &str, name: &str) -> Self {
        // Another user, or another run, may have pods of its own.
        let namespace = format!("look-{case}-{}", std::process::id());
        let id = format!("{namespace}-id");
        let folder = Directory::create(&SandboxName::parse(&id).unwrap()).unwrap();
        let identity = Identity {
            id: id.clone(),
            namespace: namespace.clone(),
            name: name.to_owned(),
            uid: "u-1".to_owned(),
            ..Identity::default()
        };
        identity.write(folder.path()).unwrap();
        let console = Console::new();
        console.capture(&b"the kernel boots\nready\n"[..]).await;
        let owner = Arc::new(Host { identity, console, output: management::Output::default() });
        tokio::spawn(management::serve(folder.path(), Arc::clone(&owner)).unwrap());
        Self { id, full_name: format!("{namespace}/{name}"), owner, _folder: folder }
    }
}

#[async_trait::async_trait]
impl Owner for Host {
    fn state(&self) -> State {
        let app = ContainerState {
            id: "c1".to_owned(),
            name: "app".to_owned(),
            phase: "running".to_owned(),
            ..ContainerState::default()
        };
        let refused = Trouble {
            request: "start".to_owned(),
            error: "ExecProcess: ExecProcessRequest is blocked by policy".to_owned(),
            refused: true,
            ..Trouble::default()
        };
        let moment = |event: &str, seconds| Moment { event: event.to_owned(), seconds };
        State {
            pod: self.identity.clone(),
            timeline: vec![moment("VMM start", 0.0), moment("first answer", 1.5)],
            containers: vec![app],
            troubles: vec![refused],
            ..State::default()
        }
    }

    fn console(&self) -> Console {
        self.console.clone()
    }

    fn output(&self, container: &str) -> Option<management::Output> {
        (container == "c1").then(|| self.output.clone())
    }

    async fn metrics(&self) -> String {
        "# TYPE up gauge\nup 1\n".to_owned()
    }

    fn agent_url(&self) -> String {
        "vsock://9:1024".to_owned()
    }
}

async fn cocoon(words: &[&str]) -> Output {
    let words: Vec<String> = words.iter().map(|&word| word.to_owned()).collect();
    spawn_blocking(move || Command::new(env!("CARGO_BIN_EXE_cocoon")).args(words).output().unwrap()).await.unwrap()
}

fn start(words: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cocoon"));
    command.args(words).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

async fn get(address: &str, path: &str) -> String {
    let (address, path) = (address.to_owned(), path.to_owned());
    let ask = move || {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        answer
    };
    spawn_blocking(ask).await.unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}
