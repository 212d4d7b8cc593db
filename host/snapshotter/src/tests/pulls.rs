//! Pulls: what is in the cache after them, how often it was downloaded, and what guests get.

use std::os::unix::fs::PermissionsExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::future::join_all;
use futures::stream;
use serde_json::json;
use wire::blob::BlobDigest;

use super::registry_double::{Digests, RegistryDouble};
use super::*;
use crate::{Cache, CacheError};

/// Pulls one layer of an image with the labels that Kubernetes' pulls have.
async fn pull(node: &Node, image: &str, digests: &Digests, layer: u8) {
    let labels = [
        ("containerd.io/snapshot/cri.image-ref", image),
        ("containerd.io/snapshot/cri.manifest-digest", &digests.manifest),
    ];
    node.pull_layer(&chain_id(layer), "", &labels).await;
}

fn layers() -> Vec<Vec<u8>> {
    vec![vec![1; 300_000], vec![2; 10], vec![3; 5_000]]
}

#[tokio::test]
async fn ten_pulls_of_an_image_download_it_once_and_guests_get_every_blob() {
    let (registry, digests) = RegistryDouble::with(&layers(), None, false).await;
    let node = Node::new().await;
    let image = format!("{}/app:v1@{}", registry.host, digests.index);
    registry.open(false);

    let pulls = join_all((0..10).map(|layer| pull(&node, &image, &digests, layer)));
    let release = async {
        // All ten wait by the time that the registry has been asked for the first blob.
        while registry.count(&digests.config) == 0 {
            tokio::task::yield_now().await;
        }
        registry.open(true);
    };
    tokio::join!(pulls, release);

    for digest in digests.all() {
        assert_eq!(registry.count(digest), 1, "{digest}: {:?}", registry.requests());
        let (status, body) = node.ask_as_guest("GET", &format!("/blobs/{digest}")).await;
        assert_eq!((status, format!("sha256:{}", sha256(&body))), (200, digest.clone()));
    }
    let mode = std::fs::metadata(node.path("state")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700, "others on the node get the node's private images");
    // The next pull asks for nothing.
    let before = registry.requests().len();
    pull(&node, &image, &digests, 11).await;
    assert_eq!(registry.requests().len(), before);
}

#[tokio::test]
async fn a_snapshotter_that_is_killed_in_a_pull_leaves_the_next_one_nothing_to_trip_over() {
    let (registry, digests) = RegistryDouble::with(&layers(), None, false).await;
    let mut node = Node::new().await;
    let image = format!("{}/app:v1", registry.host);
    let labels = [
        ("containerd.io/snapshot/cri.image-ref", image.as_str()),
        ("containerd.io/snapshot/cri.manifest-digest", &digests.manifest),
        ("containerd.io/snapshot.ref", &chain_id(1)),
    ];
    let labels = labels.map(|(key, value)| (key.to_owned(), value.to_owned())).into();
    let mut containerd = node.containerd.clone();
    registry.open(false);
    let killed = tokio::spawn(async move {
        let key = "k8s.io/5/extract-1-a x".to_owned();
        containerd.prepare(PrepareSnapshotRequest { key, labels, ..Default::default() }).await
    });
    while registry.count(&digests.config) == 0 {
        tokio::task::yield_now().await;
    }

    node.restart().await;
    assert_ne!(killed.await.unwrap().unwrap_err().code(), Code::AlreadyExists);
    registry.open(true);
    pull(&node, &image, &digests, 1).await;

    assert_eq!(node.ask_as_guest("GET", &format!("/blobs/{}", digests.layers[0])).await.0, 200);
    assert_eq!(std::fs::read_dir(node.path("state/partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn guests_get_nothing_but_blobs() {
    let node = Node::new().await;
    let unknown = format!("/blobs/sha256:{}", "0".repeat(64));
    for (method, path, expected) in [
        ("GET", unknown.as_str(), 404),
        ("POST", &unknown, 405),
        ("GET", "/", 400),
        ("GET", "/blobs/../../etc/passwd", 400),
        ("GET", "/blobs/sha256:..%2f..%2fpasswd", 400),
        ("GET", &format!("/blobs/sha256:{}", "0".repeat(10_000)), 400),
    ] {
        let (status, _) = node.ask_as_guest(method, path).await;
        assert_eq!(status, expected, "{method} {path:.60}");
    }
}

#[tokio::test]
async fn an_image_that_can_not_be_had_holds_up_a_pull_once() {
    let (registry, digests) = RegistryDouble::with(&layers(), None, false).await;
    let node = Node::new().await;
    let image = format!("{}/other:v1", registry.host);

    for layer in 0..5 {
        pull(&node, &image, &digests, layer).await;
    }

    assert_eq!(registry.requests(), [format!("/v2/other/manifests/{}", digests.manifest)]);
}

#[tokio::test]
async fn wrong_bytes_are_not_kept() {
    let (registry, digests) = RegistryDouble::with(&layers(), None, true).await;
    let node = Node::new().await;

    pull(&node, &format!("{}/app:v1", registry.host), &digests, 0).await;

    let last = digests.layers.last().unwrap();
    assert_eq!(node.ask_as_guest("GET", &format!("/blobs/{last}")).await.0, 404);
    assert_eq!(node.ask_as_guest("GET", &format!("/blobs/{}", digests.layers[0])).await.0, 200);
    assert_eq!(std::fs::read_dir(node.path("state/partial")).unwrap().count(), 0);
}

#[tokio::test]
async fn a_node_uses_its_mirrors_and_its_own_accounts() {
    let (mirror, digests) = RegistryDouble::with(&layers(), Some("Basic bWU6c2VjcmV0"), false).await;
    let node = Node::new().await;
    std::fs::create_dir_all(node.path("certs.d/r.example:5000")).unwrap();
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.host);
    std::fs::write(node.path("certs.d/r.example:5000/hosts.toml"), hosts).unwrap();
    let accounts = json!({ "auths": { mirror.host.clone(): { "auth": STANDARD.encode("me:secret") } } });
    std::fs::write(node.path("config.json"), accounts.to_string()).unwrap();

    pull(&node, "r.example:5000/app:v1", &digests, 0).await;

    let manifest = format!("/v2/app/manifests/{}?ns=r.example%3A5000", digests.manifest);
    assert_eq!(mirror.requests()[0], manifest);
    assert_eq!(node.ask_as_guest("GET", &format!("/blobs/{}", digests.layers[0])).await.0, 200);
}

#[tokio::test]
async fn without_a_cache_a_pull_asks_no_registry() {
    let (registry, digests) = RegistryDouble::with(&layers(), None, false).await;
    let node = Node::with(0).await;
    pull(&node, &format!("{}/app:v1", registry.host), &digests, 0).await;
    assert!(registry.requests().is_empty());
}

#[tokio::test]
async fn the_cache_keeps_below_its_limit_what_was_used_last() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path().to_owned(), 250).unwrap();
    let blobs = [[1_u8; 100], [2; 100], [3; 100]];
    let digest = |blob: &[u8]| format!("sha256:{}", sha256(blob)).parse::<BlobDigest>().unwrap();
    let fill = async |blob: &[u8]| {
        let chunk = Bytes::copy_from_slice(blob);
        cache.fill(&digest(blob), blob.len() as u64, async { Ok(stream::iter([Ok(chunk)])) }).await
    };
    let has = async |blob: &[u8]| cache.blob(&digest(blob)).await.unwrap().is_some();

    fill(&blobs[0]).await.unwrap();
    fill(&blobs[1]).await.unwrap();
    assert!(has(&blobs[0]).await);
    let (mut open, length) = cache.blob(&digest(&blobs[1])).await.unwrap().unwrap();
    assert!(has(&blobs[0]).await);
    fill(&blobs[2]).await.unwrap();

    assert!(has(&blobs[0]).await && !has(&blobs[1]).await && has(&blobs[2]).await);
    // Who reads it has it to the end.
    let mut read = Vec::new();
    open.read_to_end(&mut read).await.unwrap();
    assert_eq!((length, &read[..]), (100, &blobs[1][..]));

    let refusal = fill(&[4; 251]).await.unwrap_err();
    assert!(matches!(refusal, CacheError::TooLarge { limit: 250, .. }), "{refusal}");
    assert!(has(&blobs[0]).await && has(&blobs[2]).await);
}

#[tokio::test]
async fn a_blob_is_stored_only_as_a_whole() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path().to_owned(), 1 << 20).unwrap();
    let digest: BlobDigest = format!("sha256:{}", sha256(b"blob")).parse().unwrap();
    let fetch = |chunks: &[&'static [u8]]| {
        let chunks: Vec<_> = chunks.iter().map(|chunk| Ok(Bytes::from_static(chunk))).collect();
        async { Ok(stream::iter(chunks)) }
    };

    assert!(matches!(cache.fill(&digest, 4, fetch(&[b"blo"])).await, Err(CacheError::Length { .. })));
    assert!(matches!(cache.fill(&digest, 4, fetch(&[b"blob", b"s"])).await, Err(CacheError::Length { .. })));
    assert!(matches!(cache.fill(&digest, 4, fetch(&[b"blub"])).await, Err(CacheError::Digest { .. })));
    let broken = async { Ok(stream::iter([Ok(Bytes::from_static(b"bl")), Err("the network".to_owned())])) };
    assert!(matches!(cache.fill(&digest, 4, broken).await, Err(CacheError::Fetch { .. })));
    assert!(cache.blob(&digest).await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path().join("partial")).unwrap().count(), 0);

    // Its folder may vanish at any time.
    std::fs::remove_dir_all(folder.path()).unwrap();
    cache.fill(&digest, 4, fetch(&[b"bl", b"ob"])).await.unwrap();
    assert!(cache.blob(&digest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_download_that_is_given_up_is_taken_over() {
    let folder = TempDir::new().unwrap();
    let cache = Cache::open(folder.path().to_owned(), 1 << 20).unwrap();
    let digest: BlobDigest = format!("sha256:{}", sha256(b"blob")).parse().unwrap();
    let never = async { Ok(stream::pending()) };
    let given_up = cache.fill(&digest, 4, never);
    let second = cache.fill(&digest, 4, async { Ok(stream::iter([Ok(Bytes::from_static(b"blob"))])) });
    let mut second = std::pin::pin!(second);

    {
        let mut given_up = std::pin::pin!(given_up);
        assert!(futures::poll!(&mut given_up).is_pending() && futures::poll!(&mut second).is_pending());
    }
    second.await.unwrap();

    assert!(cache.blob(&digest).await.unwrap().is_some());
}

#[tokio::test]
async fn a_full_disk_is_a_clean_error() {
    let Ok(disk) = SmallDisk::mount() else {
        eprintln!("skipped: this user can't mount");
        return;
    };
    let cache = Cache::open(disk.0.path().to_owned(), 1 << 30).unwrap();
    let blob = Bytes::from(vec![7; 2 << 20]);
    let digest: BlobDigest = format!("sha256:{}", sha256(&blob)).parse().unwrap();

    let error = cache.fill(&digest, 2 << 20, async { Ok(stream::iter([Ok(blob)])) }).await.unwrap_err();

    assert!(error.to_string().contains("no space left"), "{error}");
    assert_eq!(std::fs::read_dir(disk.0.path().join("partial")).unwrap().count(), 0);
}

/// One MiB of memory as a disk.
struct SmallDisk(TempDir);

impl SmallDisk {
    fn mount() -> Result<Self, ()> {
        let folder = TempDir::new().unwrap();
        let mut mount = std::process::Command::new("mount");
        mount.args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(folder.path()).stderr(std::process::Stdio::null());
        if mount.status().is_ok_and(|status| status.success()) { Ok(Self(folder)) } else { Err(()) }
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(self.0.path()).status();
    }
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes))
}
