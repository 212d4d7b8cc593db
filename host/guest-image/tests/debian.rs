//! Builds an image from Debian's real kernel, if the project's cache holds it.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::path::Path;

use guest_image::{BuildOptions, GuestImage, KernelSource, build};

#[test]
fn debians_kernel_gives_the_same_image_twice() {
    let cache = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/cocoon/cache");
    if !cache.join("debian-kernel").exists() {
        println!("skipped: {} holds no kernel; build a guest image once to fill it", cache.display());
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let options = |name: &str| BuildOptions {
        guestd: std::env::current_exe().unwrap(),
        kernel: KernelSource::Debian,
        cache: cache.clone(),
        output: folder.path().join(name),
    };

    let (first, second) = (build(&options("first")).unwrap(), build(&options("second")).unwrap());

    assert_eq!(first.manifest, second.manifest);
    assert_eq!(GuestImage::open(&folder.path().join("first")).unwrap(), first);
    assert!(fs::read(&first.kernel).unwrap().starts_with(b"\x7fELF"));
    assert_eq!(fs::read(&first.initramfs).unwrap(), fs::read(&second.initramfs).unwrap());
    let position = |name: &str| first.manifest.modules.iter().position(|module| module == name).unwrap();
    assert!(position("vsock.ko") < position("vmw_vsock_virtio_transport_common.ko"));
    assert!(position("vmw_vsock_virtio_transport.ko") < position("virtio_blk.ko"));
    assert!(position("net_failover.ko") < position("virtio_net.ko"));
    assert!(position("configfs.ko") < position("tsm.ko"));
    assert!(position("tsm.ko") < position("sev-guest.ko"));
}
