//! How a confidential pod is reached, and how it reaches others.

use std::fs;

use tests::node::{Cocoon, Pod, Snapshotter};
use tests::{InitDataFiles, Registry, example_policy};

use crate::ground::{ECHO, Ground, INITDATA, LIMIT, versions};
use crate::world::echo;

#[tokio::test(flavor = "multi_thread")]
async fn ports_are_forwarded_as_far_as_the_policy_goes() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let open = ground.pod("open").run().await;
        let policy = example_policy("debug", &ground.image).replace("PortForwardRequest := true\n", "");
        let policy = InitDataFiles::without_trustee(policy, &ground.registry).annotation(&ground.lab, "closed");
        let closed = ground.pod("closed").annotation(INITDATA, policy).run().await;
        for (pod, gives_loopback) in [(&open, true), (&closed, false)] {
            let server = pod.container("server", &ground.image).script(&format!("{WITHIN}{ECHO}")).start().await;
            server.said("serving", LIMIT).await;

            // Whoever listens on all addresses is reached in any case, and by more than one at once.
            let mut ports = [pod.forward(8080).await.unwrap(), pod.forward(8080).await.unwrap()];
            for port in &mut ports {
                port.send(&vec![b'x'; 300_000]).await;
                port.send(b"that is all\n").await;
                let output = port.until("that is all", LIMIT).await;
                assert_eq!(output.matches('x').count(), 300_000);
            }
            // Whoever listens on the loopback interface alone is the policy's matter.
            let mut within = pod.forward(8081).await.unwrap();
            if gives_loopback {
                within.send(b"GET /page HTTP/1.0\r\n\r\n").await;
                within.until("within", LIMIT).await;
            } else {
                let refusal = within.closed(LIMIT).await;
                assert!(refusal.contains("reset"), "{refusal}");
            }
            // Nobody listens there, and there the guest itself does, which no policy opens.
            for port in [8082, 8006] {
                let refusal = pod.forward(port).await.unwrap().closed(LIMIT).await;
                assert!(refusal.contains("reset"), "{port}: {refusal}");
            }
        }
        open.remove().await;
        closed.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_has_its_network_in_the_way_that_it_asks_for() {
    for version in versions() {
        let cocoon = Cocoon::new().with_snapshotter();
        let Some(ground) = Ground::on(version, "debug", &cocoon).await else { return };
        let snapshotter = Snapshotter::start(&ground.node);
        snapshotter.pull(&ground.image).await;

        let linked = ground.pod("linked").annotation(MODEL, "macvtap").run().await;
        let server = linked.container("server", &ground.image).script(ECHO).start().await;
        server.said("serving", LIMIT).await;
        expect_reached(&ground, &linked).await;
        let links = ground.node.command("sh").args(["-c", LINKS]).output().unwrap().stdout;
        let links = String::from_utf8(links).unwrap();
        assert!(links.contains("macvtap mode passthru"), "{links}");

        // Without any interface there is still the node's cache for images, and the way in for forwarded ports.
        let isolated = ground.pod("isolated").annotation(MODEL, "none").run().await;
        let server = isolated.container("server", &ground.image).script(ECHO).start().await;
        server.said("serving", LIMIT).await;
        assert_eq!(server.exec(&["ls", "/sys/class/net"]).await.stdout, "lo\n");
        let mut port = isolated.forward(8080).await.unwrap();
        port.send(b"ping\n").await;
        port.until("ping", LIMIT).await;

        let refused = ground.pod("other").annotation(MODEL, "bridge").try_run().await.err().unwrap();
        assert!(
            refused.message().contains("internetworking_model") && refused.message().contains("`macvtap`"),
            "{refused}"
        );

        linked.remove().await;
        isolated.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_has_all_that_a_plugin_gave_its_pod_and_nothing_more() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let network = network(&ground.registry);
        fs::write(ground.node.folder().join("cni/10-lab.conflist"), network).unwrap();
        ground.node.shell(&format!("cd /opt/cni/bin; cat > edges <<'END'\n{PLUGIN}END\nchmod 755 edges"));
        ground.node.restart_containerd().await;

        let pod = ground.pod("edges").run().await;
        let server = pod.container("server", &ground.image).script(ECHO).start().await;
        server.said("serving", LIMIT).await;

        expect_reached(&ground, &pod).await;
        assert_eq!(echo(ground.node.connect("10.99.0.2:8080".parse().unwrap()).unwrap()), "ping\n");
        let seen = server.exec(&["sh", "-c", LOOK]).await.stdout;
        for line in ["eth0 eth1 lo", "mtu 1300 1280", "10.77.0.0/16 dev eth1 scope link", "10.99.0.9 02:00:00:00:00:09"]
        {
            assert!(seen.contains(line), "no {line:?} in {seen}");
        }
        assert!(!seen.contains("default"), "{seen}");

        pod.remove().await;
        ground.expect_clean().await;
    }
}

/// Expects that a pod that echoes is reached at each of its addresses.
async fn expect_reached(ground: &Ground, pod: &Pod<'_>) {
    for address in pod.addresses().await {
        assert_eq!(echo(ground.node.connect((address, 8080).into()).unwrap()), "ping\n", "{address}");
    }
}

/// A bridge whose pods have a small MTU, no default route, and what the plugin below adds.
fn network(registry: &Registry) -> String {
    let host = registry.host();
    let (registry, _) = host.rsplit_once(':').unwrap();
    serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "lab",
        "plugins": [{
            "type": "edges", "bridge": "cni0", "isGateway": true, "mtu": 1300,
            "ipam": {
                "type": "host-local", "dataDir": "/run/edges",
                "ranges": [[{"subnet": "10.88.0.0/24"}]], "routes": [{"dst": format!("{registry}/32")}],
            },
        }],
    })
    .to_string()
}

const MODEL: &str = "io.katacontainers.config.runtime.internetworking_model";
/// What pods have on the node.
const LINKS: &str = "for name in $(ip netns list | cut -d' ' -f1); do ip -details -netns $name link; done";
/// A second interface with a route and a neighbour, and a third without an address.
const PLUGIN: &str = r#"#!/bin/sh
result=$(sed 's/"edges"/"bridge"/' | /opt/cni/bin/bridge) || { echo "$result"; exit 1; }
if [ "$CNI_COMMAND" = ADD ]; then {
    pod=${CNI_NETNS##*/}
    ip link add edge1 mtu 1280 type veth peer name eth1 mtu 1280 netns "$pod"
    ip address add 10.99.0.1/24 dev edge1
    ip link set edge1 up
    ip -netns "$pod" address add 10.99.0.2/24 dev eth1
    ip -netns "$pod" link set eth1 up
    ip -netns "$pod" route add 10.77.0.0/16 dev eth1 scope link
    ip -netns "$pod" neighbour add 10.99.0.9 lladdr 02:00:00:00:00:09 dev eth1 nud permanent
    ip -netns "$pod" link add bare type dummy
} >&2; fi
echo "$result"
"#;
const LOOK: &str = "
echo $(ls /sys/class/net)
echo mtu $(cat /sys/class/net/eth0/mtu /sys/class/net/eth1/mtu)
busybox ip route
busybox awk '{print $1, $4}' /proc/net/arp";
/// Answers at port 8081, and there within the pod only.
const WITHIN: &str = "echo within > /tmp/page
busybox httpd -p 127.0.0.1:8081 -h /tmp
until busybox wget -q -O - http://127.0.0.1:8081/page > /tmp/seen; do sleep 0.1; done
";
