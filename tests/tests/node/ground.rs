//! What the cases about confidential pods stand on: a node with the handler `cocoon`, an image, and an owner's initdata.

use std::time::Duration;

use tests::node::{Cocoon, Containerd, Node, PodSpec};
use tests::{Image, InitDataFiles, Lab, Registry, example_policy};
use tonic::Status;

/// A node for confidential pods.
pub struct Ground {
    // Dropped in this order: first what runs, then the folder.
    pub node: Node,
    pub image: String,
    pub initdata: String,
    pub registry: Registry,
    pub lab: Lab,
}

impl Ground {
    /// A node with this containerd, whose pods obey the policy that allows everything; none where there can't be a node.
    pub async fn new(version: Containerd) -> Option<Self> {
        Self::with(version, "debug").await
    }

    /// The same with another of the published policies.
    pub async fn with(version: Containerd, policy: &str) -> Option<Self> {
        Self::on(version, policy, &Cocoon::new()).await
    }

    /// The same with another configuration of the handler.
    pub async fn on(version: Containerd, policy: &str, cocoon: &Cocoon) -> Option<Self> {
        let lab = Lab::new();
        let registry = lab.registry();
        let image = registry.push(Image::busybox(&lab, "app", "echo the image; exec sleep 3600").layout(), "app");
        let initdata =
            InitDataFiles::without_trustee(example_policy(policy, &image), &registry).annotation(&lab, "initdata");
        let node = Node::start(&lab, &registry, version, Some(cocoon)).await;
        let node = node.inspect_err(|reason| eprintln!("skipped: there can't be a node: {reason}")).ok()?;
        node.pull(&image).await;
        Some(Self { node, image, initdata, registry, lab })
    }

    /// A confidential pod, to be described further.
    pub fn pod(&self, name: &str) -> PodSpec<'_> {
        self.node.pod(name).handler("cocoon").annotation(INITDATA, &self.initdata)
    }

    /// Initdata with the policy that allows everything to several images.
    pub fn initdata_for(&self, name: &str, images: &[&str]) -> String {
        let digests: Vec<_> = images.iter().map(|image| image.split_once('@').unwrap().1).collect();
        let policy = example_policy("debug", &format!("@{}", digests.join("\", \"")));
        InitDataFiles::without_trustee(policy, &self.registry).annotation(&self.lab, name)
    }

    /// Expects that a pod does not run, that the reason has these words and fits into an event, and that nothing is left.
    pub async fn expect_refused(&self, pod: PodSpec<'_>, words: &[&str]) {
        let Err(refused) = pod.try_run().await else { panic!("it runs, without {words:?}") };
        expect_words(&refused, words);
        self.expect_clean().await;
    }

    /// Expects that an ordinary pod runs and goes.
    pub async fn expect_working(&self) {
        let pod = self.pod("working").run().await;
        pod.container("app", &self.image).start().await.said("the image", LIMIT).await;
        pod.remove().await;
        self.expect_clean().await;
    }

    /// Expects that pods have left nothing on the node.
    pub async fn expect_clean(&self) {
        assert_eq!(self.node.leftovers().await, [""; 0]);
        assert_eq!(self.node.pods().await, [""; 0]);
    }
}

/// Expects these words in a refusal that fits into an event.
pub fn expect_words(refusal: &Status, words: &[&str]) {
    let message = refusal.message();
    assert!(message.len() < 4096, "{message}");
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message}");
    }
}

/// The containerd that all cases run on, and the newer one too where time is no matter.
pub fn versions() -> Vec<Containerd> {
    let mut versions = vec![Containerd::V1];
    if is_full() {
        versions.push(Containerd::V2);
    }
    versions
}

/// Whether time is no matter.
pub fn is_full() -> bool {
    std::env::var_os("COCOON_TEST_FULL").is_some()
}

/// Says so when it answers every line with itself, at port 8080.
pub const ECHO: &str = "trap 'exit 0' TERM
busybox nc -ll -p 8080 -e cat &
until echo | busybox nc 127.0.0.1 8080 > /dev/null; do sleep 0.1; done
echo serving
wait";
/// The annotation with which an owner's initdata travels.
pub const INITDATA: &str = "io.katacontainers.config.hypervisor.cc_init_data";
/// Software emulation on a machine that also does other work.
pub const LIMIT: Duration = Duration::from_secs(60);
