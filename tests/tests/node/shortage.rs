//! What a node does when memory or space run out, in a guest or on the node itself.

use std::fs;

use tests::node::{Cocoon, Containerd, Snapshotter};
use tests::{Image, run};

use crate::ground::{Ground, INITDATA, LIMIT, expect_words, versions};

#[tokio::test(flavor = "multi_thread")]
async fn an_image_larger_than_the_guest_s_memory_fails_alone() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        // What compresses well, and is no hole.
        let large = image_with(&ground, "large", vec![b'x'; 320 << 20]);
        ground.node.pull(&large).await;
        let initdata = ground.initdata_for("both", &[&ground.image, &large]);
        let pod = ground.node.pod("small").handler("cocoon").annotation(INITDATA, initdata);
        let pod = pod.annotation(MEMORY, "256").run().await;
        let modest = pod.container("modest", &ground.image).start().await;
        modest.said("the image", LIMIT).await;

        let container = pod.container("large", &large).create().await.unwrap();
        let refused = container.start().await.unwrap_err();

        expect_words(&refused, &["CreateContainer", "layer 1", "No space left on device", "next:"]);
        assert!(modest.is_running().await);
        // What there was of it is gone.
        container.remove().await.unwrap();
        pod.container("second", &ground.image).start().await.said("the image", LIMIT).await;
        pod.remove().await;
        ground.expect_clean().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_that_the_node_has_no_memory_for_says_so() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        // A machine of a terabyte, and one whose pod may use less than a machine takes.
        let huge = ground.pod("huge").annotation(MEMORY, "1048576");
        ground.expect_refused(huge, &["launch: QEMU refused", "phys-bits", "next: give the pod less memory"]).await;
        let bounded = ground.pod("bounded").bounded(48 << 20);
        ground.expect_refused(bounded, &["out of memory", "the pod's limit", "next: "]).await;
        ground.expect_working().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_without_space_for_a_pod_says_where() {
    let Some(ground) = Ground::new(Containerd::V1).await else { return };
    ground.node.shell("mkdir -p /run/cocoon; mount -t tmpfs -o size=4k tmpfs /run/cocoon");
    let Err(refused) = ground.pod("full").try_run().await else { panic!("it runs without space") };
    ground.node.shell("umount /run/cocoon");
    expect_words(&refused, &["sandbox: /run/cocoon/", "No space left on device", "next: check", "free space"]);
    ground.expect_clean().await;
    ground.expect_working().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_the_node_s_cache_has_no_space_for_are_left_to_guests() {
    let Some(ground) = Ground::on(Containerd::V1, "debug", &Cocoon::new().with_snapshotter()).await else { return };
    let cache = ground.node.folder().join("snapshotter");
    fs::create_dir(&cache).unwrap();
    ground.node.shell(&format!("mount -t tmpfs -o size=6m tmpfs {}", cache.display()));
    let snapshotter = Snapshotter::start(&ground.node);
    let large = image_with(&ground, "large", std::iter::repeat_with(|| fastrand::u8(..)).take(8 << 20).collect());

    snapshotter.pull(&large).await;

    let log = snapshotter.log();
    assert!(log.contains("an image is left to the guests") && log.contains("no space left on its disk"), "{log}");
    let initdata = ground.initdata_for("large", &[&large]);
    let pod = ground.node.pod("uncached").handler("cocoon").annotation(INITDATA, initdata).run().await;
    pod.container("app", &large).start().await.said("the larger image", LIMIT).await;
    pod.remove().await;
    drop(snapshotter);
    ground.node.shell(&format!("umount {}", cache.display()));
    ground.expect_clean().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_the_node_has_no_space_for_fails_its_writer_alone() {
    for version in versions() {
        let Some(ground) = Ground::new(version).await else { return };
        let pod = ground.pod("crowded").run().await;
        let scratch = pod.volume("kubernetes.io~empty-dir", "scratch");
        // One in memory would be a medium of its own.
        let file = ground.lab.file("disk", "");
        ground.node.shell(&format!(
            "truncate -s 96M {0} && mkfs.ext4 -q {0} && mount -o loop {0} {1}",
            file.display(),
            scratch.display()
        ));
        let writer =
            pod.container("writer", &ground.image).script("exec sleep 3600").mount(&scratch, "/scratch", false);
        let writer = writer.start().await;
        assert_eq!(writer.exec(&["sh", "-c", "echo first > /scratch/first && busybox sync"]).await.code, 0);

        // Somebody else on the node takes what the disk was promised.
        ground.node.shell(&format!("head -c 96M /dev/zero > {}/other 2>/dev/null || true", scratch.display()));
        let write = "busybox dd if=/dev/urandom of=/scratch/second bs=1M count=16 conv=fsync";
        let failed = writer.exec(&["sh", "-c", write]).await;

        assert!(failed.code != 0 && failed.stderr.contains("Input/output error"), "{failed:?}");
        assert!(writer.is_running().await && pod.is_ready().await);
        assert_eq!(writer.exec(&["echo", "alive"]).await.stdout, "alive\n");
        pod.remove().await;
        ground.node.shell(&format!("umount {}", scratch.display()));
        ground.expect_clean().await;
        ground.expect_working().await;
    }
}

/// An image with a file of this content besides.
fn image_with(ground: &Ground, name: &str, content: Vec<u8>) -> String {
    let image = Image::busybox(&ground.lab, name, "echo the larger image; exec sleep 3600");
    let file = ground.lab.file("content", content);
    let layout = format!("{}:latest", image.layout().display());
    run("umoci", ["insert", "--rootless", "--image", &layout, file.to_str().unwrap(), "/content"]);
    ground.registry.push(image.layout(), name)
}

const MEMORY: &str = "io.katacontainers.config.hypervisor.default_memory";
