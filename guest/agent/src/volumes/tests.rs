//! When volumes are made, and when they go.

use super::*;
use std::os::unix::fs::PermissionsExt;

struct Guest {
    root: tempfile::TempDir,
    volumes: Volumes,
}

impl Guest {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let volumes = Volumes::below(root.path(), None);
        Self { root, volumes }
    }

    fn cache(&self) -> PathBuf {
        self.root.path().join("sandbox/ephemeral/cache")
    }

    fn local(&self, place: &str) -> Storage {
        Storage {
            driver: "local".into(),
            mount_point: self.root.path().join(place).to_str().unwrap().into(),
            options: vec!["mode=0770".into()],
            ..Default::default()
        }
    }
}

const CACHE: &str = "sandbox/ephemeral/cache";

#[tokio::test]
async fn a_volume_is_made_once_and_stays_with_what_it_holds() {
    let guest = Guest::new();
    let storages = [guest.local(CACHE)];
    let first = guest.volumes.add(&storages).await.unwrap();
    guest.volumes.keep(&first, &storages);
    assert_eq!(guest.cache().metadata().unwrap().permissions().mode() & 0o7777, 0o770);
    std::fs::write(guest.cache().join("file"), "").unwrap();

    // Another container has it too, and both end.
    let second = guest.volumes.add(&storages).await.unwrap();
    guest.volumes.release(first).await;
    guest.volumes.release(second).await;
    assert!(guest.cache().join("file").exists());
    assert_eq!(guest.volumes.paths(), [guest.cache()]);

    guest.volumes.clear().await;
    assert!(!guest.cache().exists() && guest.volumes.paths().is_empty());
}

#[tokio::test]
async fn a_creation_that_fails_takes_its_volumes_along_unless_another_waits_for_them() {
    let guest = Guest::new();
    let storages = [guest.local(CACHE)];
    let (first, second) = (guest.volumes.add(&storages).await.unwrap(), guest.volumes.add(&storages).await.unwrap());
    guest.volumes.release(first).await;
    assert!(guest.cache().exists());
    guest.volumes.release(second).await;
    assert!(!guest.cache().exists());

    let bad = Storage { driver: "9p".into(), ..guest.local("sandbox/ephemeral/other") };
    assert!(guest.volumes.add(&[guest.local(CACHE), bad]).await.is_err());
    assert!(!guest.cache().exists());
}

#[tokio::test]
async fn no_volume_lies_in_another_or_behind_a_link() {
    let guest = Guest::new();
    let storages = [guest.local(CACHE)];
    let cache = guest.volumes.add(&storages).await.unwrap();
    guest.volumes.keep(&cache, &storages);
    // What a container that has the volume could do.
    std::os::unix::fs::symlink(guest.root.path(), guest.cache().join("out")).unwrap();
    for place in ["sandbox/ephemeral/cache/out/c2", "sandbox/ephemeral/cache/inner", "sandbox/ephemeral"] {
        assert!(guest.volumes.add(&[guest.local(place)]).await.is_err(), "{place}");
    }
    let same = guest.volumes.add(&[guest.local("sandbox/ephemeral/cache/.")]).await.unwrap();
    guest.volumes.release(same).await;
    let volumes = guest.root.path().join("shared/containers/passthrough");
    std::fs::create_dir_all(&volumes).unwrap();
    std::os::unix::fs::symlink(guest.root.path(), volumes.join("link")).unwrap();
    assert!(guest.volumes.add(&[guest.local("shared/containers/passthrough/link/c2")]).await.is_err());
    assert!(!guest.root.path().join("c2").exists() && !guest.cache().join("inner").exists());
    assert_eq!(guest.volumes.paths(), [guest.cache()]);
    // Only what is there and in memory has another size.
    assert!(guest.volumes.resize(&[guest.local("sandbox/ephemeral/none")]).is_err());
}

#[tokio::test]
async fn no_volume_is_made_where_a_container_or_the_host_could_lead_elsewhere() {
    let guest = Guest::new();
    let copied = guest.root.path().join("shared/containers/c1-x");
    std::fs::create_dir_all(copied.join("a")).unwrap();
    // A container that has the folder could put a link in the place of one on the way, once the volume is made.
    for place in ["c1-x/a/root", "c1-x", "passthrough", "passthrough-1/cache", "c1/passthrough/cache", ""] {
        let add = guest.volumes.add(&[guest.local(&format!("shared/containers/{place}"))]).await;
        assert!(matches!(add, Err(Error::Refused { .. })), "{place}");
    }
    assert!(!copied.join("a/root").exists());
    let storages = [guest.local("shared/containers/passthrough/s1/rootfs/local/cache")];
    let held = guest.volumes.add(&storages).await.unwrap();
    guest.volumes.release(held).await;
}

#[tokio::test]
async fn who_asks_for_another_volume_in_the_same_place_is_refused() {
    let guest = Guest::new();
    let local = guest.local(CACHE);
    let storages = [local.clone()];
    let first = guest.volumes.add(&storages).await.unwrap();
    let disk = Storage {
        driver: "blk".into(),
        source: "02/03".into(),
        fstype: "ext4".into(),
        options: Vec::new(),
        driver_options: vec!["create_filesystem".into(), "encryption_key=ephemeral".into()],
        ..local.clone()
    };
    let options = |options: &[&str]| options.iter().map(ToString::to_string).collect();
    for other in [
        disk,
        Storage { driver: "ephemeral".into(), fstype: "tmpfs".into(), ..local.clone() },
        Storage { options: options(&["mode=0777"]), ..local.clone() },
        Storage { options: options(&["mode=0770", "fsgid=7"]), ..local.clone() },
        Storage { options: options(&["mode=0770", "noexec"]), ..local.clone() },
    ] {
        let add = guest.volumes.add(std::slice::from_ref(&other)).await;
        assert!(matches!(add, Err(Error::Refused { .. })), "{other:?}");
    }
    // Whoever was refused holds nothing of it.
    let second = guest.volumes.add(&storages).await.unwrap();
    guest.volumes.release(first).await;
    assert!(guest.cache().exists());
    guest.volumes.release(second).await;
    assert!(!guest.cache().exists() && guest.volumes.entries().is_empty());
}
