//! Layers that are EROFS images, made by mkfs.erofs and mounted by this machine's kernel.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::process::Command;

use super::*;

const OFFSET: &str = "dev.containerd.erofs.dmverity.offset";
const ROOT_DIGEST: &str = "dev.containerd.erofs.dmverity.root_digest";

/// An image of what `fill` puts into a folder; nothing, with the reason printed, without mkfs.erofs.
fn image(fill: impl FnOnce(&Path)) -> Option<Vec<u8>> {
    let folder = TempDir::new().unwrap();
    let (tree, file) = (folder.path().join("tree"), folder.path().join("image"));
    std::fs::create_dir(&tree).unwrap();
    fill(&tree);
    run("mkfs.erofs", &["-zlz4hc", file.to_str().unwrap(), tree.to_str().unwrap()])?;
    Some(std::fs::read(file).unwrap())
}

fn run(tool: &str, arguments: &[&str]) -> Option<String> {
    match Command::new(tool).args(arguments).output() {
        Ok(output) if output.status.success() => Some(String::from_utf8(output.stdout).unwrap()),
        Ok(output) => panic!("{tool} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr)),
        Err(e) => {
            eprintln!("skipped: {tool} can't be run: {e}");
            None
        }
    }
}

fn layer(image: &[u8], suffix: &str) -> Layer {
    Layer { media_type: format!("application/vnd.erofs.layer.v1{suffix}"), ..Layer::tar(image) }
}

/// Whether this machine can mount images.
fn mountable() -> bool {
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap();
    let able = filesystems.contains("\terofs\n") && Path::new("/dev/loop-control").exists();
    if !able {
        eprintln!("skipped: this kernel has no erofs or no loop devices");
    }
    able && privileged()
}

fn mounts_below(folder: &Path) -> usize {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    mounts.lines().filter(|line| line.contains(folder.to_str().unwrap())).count()
}

#[tokio::test]
async fn images_stack_with_archives_and_hide_what_is_below() {
    let Some(top) = image(|tree| {
        std::fs::create_dir(tree.join("etc")).unwrap();
        std::fs::write(tree.join("etc/motd"), "from the image".repeat(1000)).unwrap();
        std::fs::set_permissions(tree.join("etc"), std::fs::Permissions::from_mode(0o711)).unwrap();
        symlink("motd", tree.join("etc/link")).unwrap();
        let whiteout = rustix::fs::FileType::CharacterDevice;
        rustix::fs::mknodat(rustix::fs::CWD, tree.join("etc/gone"), whiteout, rustix::fs::Mode::empty(), 0).ok();
    }) else {
        return;
    };
    if !mountable() {
        return;
    }
    let base = Archive::new().directory("etc", 0o755).file("etc/motd", b"base").file("etc/gone", b"base").done();
    let over = Archive::new().file("etc/over", b"over").done();
    let zstd = Layer { media_type: layer(&top, "+zstd").media_type, ..Layer::zstd(&top) };
    for middle in [layer(&top, ""), layer(&top, "").encrypted(&KEK), zstd] {
        let registry = RegistryDouble::with(&[Layer::gzip(&base), middle.clone(), Layer::gzip(&over)]).await;
        let guest = Guest::new(&registry);
        let resolved = guest.puller.resolve(&registry.reference()).await.unwrap();

        let pulled = guest.puller.pull(&resolved, &guest.bundle("one")).await.unwrap();

        let path = |name: &str| pulled.rootfs.join(name);
        assert_eq!(read(&path("etc/motd")), "from the image".repeat(1000), "{}", middle.media_type);
        assert_eq!(std::fs::read_link(path("etc/link")).unwrap(), Path::new("motd"));
        assert_eq!(read(&path("etc/over")), "over");
        assert!(!path("etc/gone").exists());
        // The directory that the top layer only implies is the image's.
        assert_eq!(std::fs::metadata(path("etc")).unwrap().mode() & 0o7777, 0o711);
        // An image is not unpacked, and has no name any more.
        let layers = guest.folder.path().join("work/layers");
        assert!(std::fs::read_dir(&layers).unwrap().all(|layer| !layer.unwrap().path().join("image").exists()));
        std::fs::write(path("etc/motd"), "written").unwrap();

        guest.puller.release(&guest.bundle("one")).await.unwrap();
        assert_eq!((guest.layer_dirs(), mounts_below(guest.folder.path())), (0, 0));
    }
}

#[tokio::test]
async fn what_is_no_image_is_refused_and_leaves_nothing() {
    for content in [&b""[..], &[0; 2000], &Archive::new().file("file", &[7; 3000]).done()] {
        let registry = RegistryDouble::with(&[layer(content, "")]).await;
        let guest = Guest::new(&registry);
        let (stage, text) = guest.refusal(&registry).await;
        assert_eq!(stage, Stage::Unpack, "{text}");
        assert!(text.contains("no EROFS image; next: convert"), "{text}");
        assert_eq!(mounts_below(guest.folder.path()), 0);
    }
}

#[tokio::test]
async fn an_image_counts_only_when_its_digests_are_right() {
    let Some(image) = image(|tree| std::fs::write(tree.join("file"), "x").unwrap()) else { return };
    let mut other = layer(&image, "");
    other.diff_id = sha256(b"other");
    let mut spoilt = layer(&image, "").encrypted(&KEK);
    spoilt.blob[1500] ^= 1;
    for (layer, expected) in [(other, Stage::DiffId), (spoilt, Stage::Decrypt)] {
        let registry = RegistryDouble::with(&[layer]).await;
        assert_eq!(Guest::new(&registry).refusal(&registry).await.0, expected);
    }
}

#[tokio::test]
async fn a_hash_tree_that_the_manifest_binds_is_never_left_out() {
    let image = [vec![0; 1024], 0xe0f5_e1e2_u32.to_le_bytes().to_vec(), vec![0; 8192]].concat();
    let root = format!("sha256:{}", "00".repeat(32));
    let bound = json!({ ROOT_DIGEST: root, OFFSET: "4096" });
    for (suffix, annotations, expected) in [
        ("", bound.clone(), "the superblock of its hash tree is not where"),
        ("", json!({ ROOT_DIGEST: root }), "dmverity.offset is missing"),
        ("", json!({ ROOT_DIGEST: "sha1:00", OFFSET: "0" }), "is no SHA-256 digest"),
        ("+zstd", bound, "a hash tree in a compressed layer is not supported"),
    ] {
        let plain = if suffix.is_empty() { Layer::tar(&image) } else { Layer::zstd(&image) };
        let layer = Layer { annotations, media_type: layer(&image, suffix).media_type, ..plain };
        let registry = RegistryDouble::with(&[layer]).await;
        let guest = Guest::new(&registry);
        let (stage, text) = guest.refusal(&registry).await;
        // Without loop devices it ends before the superblock.
        let able = mountable() || !expected.contains("superblock");
        assert!(stage == Stage::Unpack && (text.contains(expected) || !able), "{text}");
        assert_eq!((text.matches("next: ").count(), mounts_below(guest.folder.path())), (1, 0), "{text}");
    }
}
