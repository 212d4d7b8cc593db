//! What happens when the node has an image's blobs, and what if it misbehaves with them.

use std::collections::HashMap;
use std::time::Instant;

use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinHandle;

use super::registry_double::Fault;
use super::*;
use crate::NodeAddress;

/// How the node answers.
#[derive(Clone, Debug)]
enum Manner {
    Honest,
    /// The last byte is another.
    Lies,
    /// Nothing comes, not even a head.
    Silent,
    /// The stream stays open and silent in the middle.
    Stalls,
    /// A byte comes at a time.
    Dribbles,
    /// The stream ends in the middle.
    Closes,
    /// More is announced than the blob has, and sent.
    Surplus,
    /// It is no HTTP.
    Babbles,
    /// It says that it is sorry.
    Fails,
    /// There is nobody.
    Away,
}

/// A node that has every blob of an image.
struct Node {
    folder: TempDir,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
    server: Option<JoinHandle<()>>,
}

impl Node {
    fn new(manner: Manner, blobs: Vec<Vec<u8>>) -> Self {
        let folder = TempDir::new().unwrap();
        let asked = Arc::default();
        let blobs: HashMap<_, _> = blobs.into_iter().map(|blob| (format!("/blobs/{}", sha256(&blob)), blob)).collect();
        let server = (!matches!(manner, Manner::Away)).then(|| {
            let listener = UnixListener::bind(folder.path().join("node")).unwrap();
            let (blobs, asked) = (Arc::new(blobs), Arc::clone(&asked));
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    tokio::spawn(answer(stream, manner.clone(), Arc::clone(&blobs), Arc::clone(&asked)));
                }
            })
        });
        Self { folder, asked, server }
    }

    fn guest(&self, registry: &RegistryDouble) -> Guest {
        Guest::with(registry, |config, _| {
            config.node_cache = Some(NodeAddress::Unix(self.folder.path().join("node")));
            // One layer after the other, so that what the first has taught counts for the second.
            config.max_concurrent_layer_downloads_per_image = Some(1);
        })
    }

    fn asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(server) = &self.server {
            server.abort();
        }
    }
}

async fn answer(
    mut stream: UnixStream,
    manner: Manner,
    blobs: Arc<HashMap<String, Vec<u8>>>,
    asked: Arc<std::sync::Mutex<Vec<String>>>,
) -> Option<()> {
    let mut lines = BufReader::new(&mut stream).lines();
    let path = lines.next_line().await.ok()??.split(' ').nth(1)?.to_owned();
    while !lines.next_line().await.ok()??.is_empty() {}
    asked.lock().unwrap().push(path.clone());
    let Some(mut blob) = blobs.get(&path).cloned() else {
        return stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n").await.ok();
    };
    let half = blob.len() / 2;
    match manner {
        Manner::Lies => *blob.last_mut()? ^= 1,
        Manner::Surplus => blob.push(0),
        _ => {}
    }
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", blob.len());
    let (sent, stay) = match manner {
        Manner::Honest | Manner::Lies | Manner::Surplus => ([head.as_bytes(), &blob].concat(), false),
        Manner::Silent | Manner::Away => (Vec::new(), true),
        Manner::Stalls | Manner::Dribbles => ([head.as_bytes(), &blob[..half]].concat(), true),
        Manner::Closes => ([head.as_bytes(), &blob[..half]].concat(), false),
        Manner::Babbles => (vec![b'x'; 1 << 20], false),
        Manner::Fails => (b"HTTP/1.1 500 Sorry\r\ncontent-length: 0\r\n\r\n".to_vec(), false),
    };
    stream.write_all(&sent).await.ok()?;
    if matches!(manner, Manner::Dribbles) {
        for byte in &blob[half..] {
            stream.write_all(&[*byte]).await.ok()?;
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    if stay { std::future::pending().await } else { Some(()) }
}

fn archives() -> [Layer; 2] {
    let noise: Vec<_> = (0..300_000_u32).flat_map(|number| number.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
    [Layer::gzip(&Archive::new().file("first", &noise).done()), Layer::tar(&Archive::new().file("second", b"2").done())]
}

fn requests_for_layers(registry: &RegistryDouble, layers: &[Layer]) -> usize {
    let is_layer = |line: &String| layers.iter().any(|layer| line.contains(&sha256(&layer.blob)));
    registry.requests().iter().filter(|line| is_layer(line)).count()
}

#[tokio::test]
async fn what_the_node_has_is_not_downloaded() {
    let layers = archives();
    let registry = RegistryDouble::with(&layers).await;
    let node = Node::new(Manner::Honest, layers.iter().map(|layer| layer.blob.clone()).collect());
    let guest = node.guest(&registry);

    let unpacked = guest.unpack(&registry).await.unwrap();

    assert_eq!(read(&unpacked[1].join("second")), "2");
    assert_eq!(requests_for_layers(&registry, &layers), 0, "{:?}", registry.requests());
    // The configuration, too, was asked for; that one it does not have.
    assert_eq!(node.asked(), 3);
}

#[tokio::test]
async fn an_encrypted_image_of_a_silent_registry_comes_from_the_node() {
    let layer = archives()[0].clone().encrypted(&KEK);
    let registry = RegistryDouble::with(std::slice::from_ref(&layer)).await.with_fault(Fault::Stall { after: 0 });
    let node = Node::new(Manner::Honest, vec![layer.blob.clone()]);
    let guest = node.guest(&registry);
    let unpacked = guest.unpack(&registry).await.unwrap();
    assert!(unpacked[0].join("first").exists());
}

#[tokio::test]
async fn an_image_named_by_its_digest_needs_no_registry() {
    let layer = archives()[1].clone();
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {}, "rootfs": { "type": "layers", "diff_ids": [&layer.diff_id] },
    });
    let config = config.to_string().into_bytes();
    let descriptor = |media_type: &str, bytes: &[u8]| json!({ "mediaType": media_type, "digest": sha256(bytes), "size": bytes.len() });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
        "layers": [descriptor(&layer.media_type, &layer.blob)],
    });
    let manifest = manifest.to_string().into_bytes();
    let digest = sha256(&manifest);
    let registry = RegistryDouble::with(&[]).await;
    let node = Node::new(Manner::Honest, vec![config, manifest, layer.blob.clone()]);
    let guest = node.guest(&registry);

    let resolved = guest.puller.resolve(&format!("{}/app@{digest}", registry.host())).await.unwrap();
    guest.puller.unpack(&resolved, &guest.bundle("bundle")).await.unwrap();

    assert_eq!((resolved.digest, registry.requests()), (digest, Vec::<String>::new()));
}

#[tokio::test]
async fn a_node_that_misbehaves_costs_a_moment_and_is_not_asked_again() {
    let layers = archives();
    for manner in [
        Manner::Lies,
        Manner::Silent,
        Manner::Stalls,
        Manner::Dribbles,
        Manner::Closes,
        Manner::Surplus,
        Manner::Babbles,
        Manner::Fails,
        Manner::Away,
    ] {
        let registry = RegistryDouble::with(&layers).await;
        let node = Node::new(manner.clone(), layers.iter().map(|layer| layer.blob.clone()).collect());
        let guest = node.guest(&registry);
        let begun = Instant::now();

        let unpacked = guest.unpack(&registry).await.unwrap();

        assert_eq!(read(&unpacked[1].join("second")), "2", "{manner:?}");
        assert_eq!(requests_for_layers(&registry, &layers), 2, "{manner:?}: {:?}", registry.requests());
        // Once for the configuration, which it does not have, and once for the first layer.
        assert!(node.asked() <= 2, "{manner:?}: {}", node.asked());
        assert!(begun.elapsed() < Duration::from_secs(30), "{manner:?}");
        assert_eq!(guest.layer_dirs(), 2, "{manner:?}");
    }
}

#[tokio::test]
async fn a_bad_layer_is_the_images_fault_and_not_the_nodes() {
    let mut layer = archives()[1].clone();
    layer.diff_id = sha256(b"other");
    let registry = RegistryDouble::with(std::slice::from_ref(&layer)).await;
    let node = Node::new(Manner::Honest, vec![layer.blob.clone()]);
    let (stage, text) = node.guest(&registry).refusal(&registry).await;
    assert_eq!((stage, requests_for_layers(&registry, &[layer])), (Stage::DiffId, 0), "{text}");
}
