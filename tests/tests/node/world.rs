//! What a container of a confidential pod sees of its pod, and what its users see of it.

use std::fs::{self, Permissions};
use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use tests::node::Pod;
use tests::run;

use crate::ground::{ECHO, Ground, LIMIT, versions};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_what_its_pod_gives_it() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("world").dns(&["10.9.8.7"], &["svc.cluster.test"]).port(8080, 30080).run().await;
        let shared = pod.volume("kubernetes.io~empty-dir", "shared");
        let token = pod.volume("kubernetes.io~projected", "kube-api-access");
        let config = ConfigMap::new(pod.volume("kubernetes.io~configmap", "config"), "first");
        fs::write(token.join("token"), "the account's token").unwrap();
        let (hosts, last_words) = (pod.folder().join("etc-hosts"), pod.folder().join("last-words"));
        fs::write(&hosts, "127.0.0.1 localhost\n10.1.2.3 database\n").unwrap();
        fs::write(&last_words, "").unwrap();
        fs::set_permissions(&last_words, Permissions::from_mode(0o666)).unwrap();

        // First what runs before the others, then two that run side by side.
        let init = pod
            .container("init", &ground.image)
            .script("echo prepared > /shared/init")
            .mount(&shared, "/shared", false);
        assert_eq!(init.start().await.ended(LIMIT).await.exit_code, 0);
        let server = pod
            .container("server", &ground.image)
            .command(&["/bin/sh", "-c", &format!("{ARGUMENTS}{ECHO}"), "server"])
            .args(&["one", "two words"])
            .env("GREETING", "hello")
            .user(1000, 2000, &[3000])
            .mount(&shared, "/shared", false)
            .mount(&token, "/var/run/secrets/kubernetes.io/serviceaccount", true)
            .mount(&config.folder, "/config", true)
            .mount(&hosts, "/etc/hosts", true)
            .mount(&last_words, "/dev/termination-log", false)
            .annotation("io.kubernetes.container.terminationMessagePath", "/dev/termination-log")
            .annotation("io.kubernetes.container.terminationMessagePolicy", "File")
            .start()
            .await;
        let beside = pod.container("beside", &ground.image).script(BESIDE).mount(&shared, "/shared", false);
        let beside = beside.mount(&config.folder, "/config", true).start().await;
        server.said("serving", LIMIT).await;

        let seen = server.exec(&["sh", "-c", LOOK]).await;
        assert_eq!((seen.code, &*seen.stderr), (0, ""), "{}", seen.stdout);
        for line in [
            "args one,two words",
            "greeting hello",
            "uid=1000 gid=2000 groups=2000,3000",
            "host world",
            "nameserver 10.9.8.7",
            "search svc.cluster.test",
            "10.1.2.3 database",
            "the account's token",
            "config first",
            "prepared",
            "read-only",
            "pid 1 is sh",
        ] {
            assert!(seen.stdout.contains(line), "no {line:?} in {}", seen.stdout);
        }

        // Its users reach it at its own addresses and at the node's; its neighbour at the loopback.
        for address in pod.addresses().await {
            assert_eq!(echo(ground.node.connect((address, 8080).into()).unwrap()), "ping\n", "{address}");
        }
        let node = pod.addresses().await[0].to_string().rsplit_once('.').unwrap().0.to_owned() + ".1:30080";
        assert_eq!(echo(ground.node.connect(node.parse().unwrap()).unwrap()), "ping\n");
        beside.said("the neighbour says ping", LIMIT).await;

        // A ConfigMap changes while containers that have it run.
        config.change("second");
        beside.said("config changed to second", LIMIT).await;

        // Lines bear their time and their stream.
        let log = beside.log();
        let (out, err) = (log.iter().find(|line| line.text == "out"), log.iter().find(|line| line.text == "err"));
        assert_eq!((&*out.unwrap().stream, &*err.unwrap().stream), ("stdout", "stderr"));
        assert!(log.is_sorted_by_key(|line| &line.time) && log[0].time.starts_with("20"), "{log:?}");

        assert_eq!(server.exec(&["sh", "-c", "echo last words > /dev/termination-log"]).await.code, 0);
        server.stop(LIMIT).await.unwrap();
        assert_eq!(fs::read_to_string(&last_words).unwrap(), "last words\n");
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_share_what_the_pod_says() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("shared").shared_processes().limits(192 << 20, 1000).run().await;
        let memory = tmpfs(&ground, &pod);
        let first = pod.container("first", &ground.image).script("echo there > /memory/file; echo up; exec sleep 1234");
        let first = first.mount(&memory, "/memory", false).start().await;
        first.said("up", LIMIT).await;
        // More than one message to the guest may hold.
        let large = ground.lab.file("large", vec![b'l'; 6_000_000]);
        let second = pod.container("second", &ground.image).script("exec sleep 3600").mount(&memory, "/memory", false);
        let second = second.mount(&large, "/large", true).start().await;

        let seen =
            second.exec(&["sh", "-c", "cat /memory/file; ps; cat /proc/mounts; echo x > /dev/shm/mark"]).await.stdout;
        assert!(seen.contains("there") && seen.contains("sleep 1234"), "{seen}");
        assert!(seen.lines().any(|line| line.starts_with("tmpfs /memory ")), "{seen}");
        assert_eq!(first.exec(&["cat", "/dev/shm/mark"]).await.stdout, "x\n");

        let sum = |text: &str| text.split(' ').next().unwrap().to_owned();
        let copied = second.exec(&["busybox", "sha256sum", "/large"]).await.stdout;
        assert_eq!(sum(&copied), sum(&run("sha256sum", [&large])));

        // The machine has what the pod may use and what the guest needs besides, and is where a node expects it.
        let size = second.exec(&["sh", "-c", "busybox nproc; busybox free -m"]).await.stdout;
        let words: Vec<&str> = size.split_whitespace().collect();
        let memory_mib: u32 = words[words.iter().position(|word| *word == "Mem:").unwrap() + 1].parse().unwrap();
        assert_eq!(words[0], "2", "one processor and 0.4 of another: {size}");
        assert!((200..320).contains(&memory_mib), "192 MiB and 128 more, of which the kernel keeps some: {size}");
        let machine = &ground.node.processes("qemu-system")[0];
        let groups = fs::read_to_string(format!("/proc/{}/cgroup", machine.pid)).unwrap();
        assert!(groups.contains("/shared-"), "{groups}");

        pod.remove().await;
        ground.node.command("umount").arg(memory).status().unwrap();
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_has_a_disk_of_the_node() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("disk").run().await;
        let file = ground.lab.file("disk", "written by the node".to_owned() + &" ".repeat((4 << 20) - 19));
        let device = run("losetup", ["--find", "--show", file.to_str().unwrap()]).trim().to_owned();
        let container = pod.container("disk", &ground.image).script("exec sleep 3600").device(&device, "/dev/xvda");
        let container = container.create().await.unwrap();
        let started = container.start().await;
        // It stays until the last who has it open is gone.
        run("losetup", ["--detach", &device]);
        started.unwrap();

        let write = "busybox head -c 19 /dev/xvda; echo -n 'written by the pod ' | busybox dd of=/dev/xvda conv=fsync 2>/dev/null";
        assert_eq!(container.exec(&["sh", "-c", write]).await.stdout, "written by the node");
        assert!(fs::read_to_string(&file).unwrap().starts_with("written by the pod "));

        pod.remove().await;
        ground.expect_clean().await;
    }
}

/// A volume as a kubelet writes it: a link to a folder with what is current, swapped at each change.
pub struct ConfigMap {
    pub folder: PathBuf,
}

impl ConfigMap {
    pub fn new(folder: PathBuf, value: &str) -> Self {
        let this = Self { folder };
        this.change(value);
        symlink("..data/key", this.folder.join("key")).unwrap();
        this
    }

    pub fn change(&self, value: &str) {
        let name = format!("..{value}");
        fs::create_dir(self.folder.join(&name)).unwrap();
        fs::write(self.folder.join(&name).join("key"), value).unwrap();
        symlink(&name, self.folder.join("..data_tmp")).unwrap();
        let before = fs::read_link(self.folder.join("..data"));
        fs::rename(self.folder.join("..data_tmp"), self.folder.join("..data")).unwrap();
        if let Ok(before) = before {
            fs::remove_dir_all(self.folder.join(before)).unwrap();
        }
    }
}

/// An emptyDir of medium Memory, as a kubelet mounts one.
fn tmpfs(ground: &Ground, pod: &Pod<'_>) -> PathBuf {
    let folder = pod.volume("kubernetes.io~empty-dir", "memory");
    let mut mount = ground.node.command("mount");
    let status = mount.args(["-t", "tmpfs", "-o", "size=16m", "tmpfs"]).arg(&folder).status().unwrap();
    assert!(status.success());
    Path::new(&folder).to_owned()
}

pub fn echo(mut stream: TcpStream) -> String {
    stream.set_read_timeout(Some(LIMIT)).unwrap();
    stream.write_all(b"ping\n").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Keeps its arguments and goes on as what follows.
const ARGUMENTS: &str = "printf 'args %s,%s\n' \"$1\" \"$2\" > /tmp/args\n";
const LOOK: &str = "
cat /tmp/args /etc/resolv.conf /etc/hosts /shared/init /var/run/secrets/kubernetes.io/serviceaccount/token
echo
echo greeting $GREETING
id
echo host $(hostname)
echo config $(cat /config/key)
echo x 2>&- > /config/key || echo read-only
echo pid 1 is $(cat /proc/1/comm)";
const BESIDE: &str = "
echo out; echo err >&2
until answer=$(echo ping | busybox nc 127.0.0.1 8080) && [ -n \"$answer\" ]; do sleep 0.1; done
echo the neighbour says $answer
until grep -q second /config/key; do sleep 0.1; done
echo config changed to $(cat /config/key)
exec sleep 3600";
