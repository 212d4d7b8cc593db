//! Snapshots: what containerd is told about layers and containers, with and without memory.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::*;
use crate::proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Kind, RemoveSnapshotRequest, UpdateSnapshotRequest, UsageRequest,
    ViewSnapshotRequest,
};

/// The order in a container's mount.
fn order(mounts: &[Mount]) -> Value {
    let [mount] = mounts else { panic!("{mounts:?}") };
    assert_eq!((mount.r#type.as_str(), &mount.options[..2]), ("bind", &["bind".to_owned(), "ro".to_owned()][..]));
    // Nothing of an image: two links that lead nowhere.
    let root = Path::new(&mount.source);
    let names =
        |folder: &Path| std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect::<Vec<_>>();
    assert_eq!((names(root), names(&root.join("etc")).len()), (vec!["etc".into()], 2));
    for file in ["etc/passwd", "etc/group"] {
        let target = std::fs::read_link(root.join(file)).unwrap();
        assert!(!root.join(file).exists() && target.to_str().unwrap().contains("; next: "), "{target:?}");
    }
    let option = mount.options[2].strip_prefix("io.katacontainers.volume=").unwrap();
    serde_json::from_slice(&STANDARD.decode(option).unwrap()).unwrap()
}

#[tokio::test]
async fn a_pull_finds_every_layer_there_and_a_container_gets_its_order() {
    let node = Node::new().await;
    let (first, second) = (chain_id(1), chain_id(2));
    let labels = [("containerd.io/snapshot/cri.image-ref", "r.example/app:v1")];

    let bottom = node.pull_layer(&first, "", &labels).await;
    let top = node.pull_layer(&second, &bottom.name, &labels).await;
    let mounts = node.prepare("k8s.io/7/container", &top.name, &[]).await.unwrap();

    assert_eq!((bottom.kind(), top.kind()), (Kind::Committed, Kind::Committed));
    let order = order(&mounts);
    assert_eq!((&order["volume_type"], &order["source"]), (&json!("image_guest_pull"), &json!("r.example/app:v1")));
    assert_eq!(node.mounts("k8s.io/7/container").await, mounts);
    assert_eq!(node.stat("k8s.io/7/container").await.kind(), Kind::Active);
}

#[tokio::test]
async fn without_memory_containers_still_start() {
    let mut node = Node::new().await;
    let layer = node.pull_layer(&chain_id(1), "", &[]).await;
    node.prepare("k8s.io/7/old", &layer.name, &[]).await.unwrap();

    node.wipe_and_restart().await;

    assert_eq!(node.stat(&layer.name).await.kind(), Kind::Committed);
    assert_eq!(order(&node.mounts("k8s.io/7/old").await)["volume_type"], "image_guest_pull");
    let mounts = node.prepare("k8s.io/8/new", &layer.name, &[]).await.unwrap();
    assert_eq!(order(&mounts)["source"], "dummy-image-reference");
    // A layer above one of before.
    node.pull_layer(&chain_id(2), &layer.name, &[]).await;
    // What containerd removes it finds from the top of the list on.
    let names: Vec<_> = node.list().await.into_iter().map(|info| (info.name, info.parent)).collect();
    assert_eq!(names[0], (layer.name, String::new()));
}

#[tokio::test]
async fn a_cleaned_up_run_folder_stops_nothing() {
    let node = Node::new().await;
    std::fs::remove_dir_all(node.path("run")).unwrap();
    order(&node.prepare("k8s.io/7/container", "", &[]).await.unwrap());
}

#[tokio::test]
async fn what_containerd_unpacks_on_its_own_is_not_kept() {
    let mut node = Node::new().await;
    let key = format!("k8s.io/9/extract-1-x {}", chain_id(3));

    let mounts = node.prepare(&key, "", &[]).await.unwrap();
    let [mount] = &mounts[..] else { panic!("{mounts:?}") };
    assert_eq!((mount.r#type.as_str(), &*mount.options.join(",")), ("bind", "rbind,rw"));
    std::fs::create_dir(Path::new(&mount.source).join("etc")).unwrap();
    assert_eq!(node.mounts(&key).await, mounts);

    let name = format!("k8s.io/10/{}", chain_id(3));
    let commit = |key: &str| CommitSnapshotRequest { name: name.clone(), key: key.to_owned(), ..Default::default() };
    node.containerd.commit(commit(&key)).await.unwrap();
    assert!(!Path::new(&mount.source).exists());
    assert_eq!(node.stat(&name).await.kind(), Kind::Committed);

    // One that fails is removed by containerd, and is gone after a restart in any case.
    let left = node.prepare(&format!("{key}2"), "", &[]).await.unwrap().remove(0).source;
    node.containerd.remove(RemoveSnapshotRequest { key: format!("{key}2"), ..Default::default() }).await.unwrap();
    assert!(!Path::new(&left).exists());

    node.prepare("k8s.io/11/container", &name, &[]).await.unwrap();
    let refusal = node.containerd.commit(commit("k8s.io/11/container")).await.unwrap_err();
    assert!(refusal.code() == Code::FailedPrecondition && refusal.message().contains("stays in its guest"));
}

#[tokio::test]
async fn containerd_may_ask_the_rest_too() {
    let mut node = Node::new().await;
    node.pull_layer(&chain_id(1), "", &[]).await;
    let view = ViewSnapshotRequest { key: "k8s.io/7/view".to_owned(), parent: chain_id(1), ..Default::default() };
    order(&node.containerd.view(view).await.unwrap().into_inner().mounts);
    assert_eq!(node.stat("k8s.io/7/view").await.kind(), Kind::View);

    let labels = [("a", "1"), ("b", "2")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    let info = |labels: &[(String, String)]| {
        Some(Info { name: chain_id(1), labels: labels.iter().cloned().collect(), ..Default::default() })
    };
    let whole = UpdateSnapshotRequest { info: info(&labels), ..Default::default() };
    node.containerd.update(whole).await.unwrap();
    let mask = prost_types::FieldMask { paths: vec!["labels.a".to_owned()] };
    let part = UpdateSnapshotRequest { info: info(&[]), update_mask: Some(mask), ..Default::default() };
    let info = node.containerd.update(part).await.unwrap().into_inner().info.unwrap();
    assert_eq!(info.labels, HashMap::from([labels[1].clone()]));

    let usage = UsageRequest { key: chain_id(1), ..Default::default() };
    assert_eq!(node.containerd.usage(usage).await.unwrap().into_inner().size, 0);
    node.containerd.cleanup(CleanupRequest::default()).await.unwrap();
    for key in ["k8s.io/7/view".to_owned(), chain_id(1), "k8s.io/99/unknown".to_owned()] {
        node.containerd.remove(RemoveSnapshotRequest { key, ..Default::default() }).await.unwrap();
    }
    assert!(node.list().await.is_empty());
}

#[tokio::test]
async fn only_one_snapshotter_serves_a_folder() {
    let node = Node::new().await;
    let config = Config { run_dir: node.path("run"), state_dir: node.path("state"), ..Config::default() };
    let error = Daemon::open(config).err().unwrap().to_string();
    assert!(error.contains("another process serves it"), "{error}");
}
