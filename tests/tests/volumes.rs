//! Volumes on real disks under a real kernel: the cases run in a guest of their own, `volume-guest`, and say how they went.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_image::{BuildOptions, GuestImage, KernelSource, build_with_programs};
use hypervisor::acceleration::{self, Preference};
use hypervisor::{Confinement, Console, Disk, Network, Tee, Vm, VmConfig, Vsock};
use tests::{Lab, run};
use tokio::time::Instant;
use vsock_backend::{Backend, BackendConfig};
use wire::luks2::{Format, NewVolume};

#[tokio::test]
async fn volumes_keep_their_promises_in_a_guest() {
    let lab = Lab::new();
    let guestd = guestd(&lab);
    let image = image(&lab, &guestd);
    for (name, mib) in
        [("plain", 40), ("sealed", 48), ("raw", 24), ("ephemeral", 32), ("large", LARGE), ("stock", 24), ("hub", 48)]
    {
        disk(&lab, name, mib);
    }
    let forged = disk(&lab, "forged", 40);
    File::options().write(true).open(forged).unwrap().write_all_at(&forged_header(40 << 20), 0).unwrap();
    let tree = layer(&lab);

    let console = boot(&lab, &image, &format!("first {tree} guestd={}", guestd.display())).await;
    expect(&console, FIRST);
    let stored = fs::metadata(lab.path().join("large")).unwrap().blocks() * 512;
    println!("a volume of {} GiB takes {} KiB of the host's disk", LARGE >> 10, stored >> 10);
    assert!(stored < 32 << 20, "{stored} bytes");
    cut_off(&lab, &image).await;
    let console = boot(&lab, &image, "second").await;
    expect(&console, SECOND);
}

const FIRST: &[&str] = &[
    "a_new_volume_is_there_again_after_it_was_released",
    "a_volume_with_integrity_is_there_again",
    "stock_cryptsetup_opens_our_volumes",
    "we_open_a_volume_of_stock_cryptsetup",
    "tampered_ciphertext_reads_as_an_error_and_never_as_other_data",
    "an_ephemeral_volume_leaves_nothing",
    "a_large_volume_takes_neither_time_nor_space",
    "a_full_volume_is_whole",
    "a_header_with_a_null_cipher_is_refused",
    "a_failure_leaves_nothing_behind",
    "a_layer_is_read_through_dm_verity",
    "a_tampered_layer_reads_as_an_error",
    "an_image_is_mounted_through_the_tree_that_its_manifest_binds",
    "a_pods_agent_gets_scratch_volumes_from_the_data_hub",
    "the_data_hub_fetches_keys_and_releases_volumes_when_it_ends",
    "a_volume_in_use_goes_with_its_last_user",
];
const SECOND: &[&str] = &["both_volumes_are_whole_after_a_guest_was_cut_off"];

/// guestd for its role of the data hub: that of the tests, without what debuggers need.
fn guestd(lab: &Lab) -> PathBuf {
    let stripped = lab.path().join("guestd");
    run("strip", ["-o".into(), stripped.clone(), Lab::program("guestd")]);
    stripped
}

/// A guest image with `volume-guest` in place of guestd, which is beside it. cryptsetup is in it for comparison; no other
/// guest has it.
fn image(lab: &Lab, guestd: &Path) -> GuestImage {
    let options = BuildOptions {
        guestd: Lab::program("volume-guest"),
        kernel: KernelSource::Debian,
        cache: Lab::guest_image().with_file_name("cache"),
        output: lab.path().join("image"),
    };
    build_with_programs(&options, &["/usr/sbin/cryptsetup".into(), guestd.to_owned()]).unwrap()
}

fn disk(lab: &Lab, name: &str, mib: u64) -> PathBuf {
    let path = lab.file(name, "");
    File::options().write(true).open(&path).unwrap().set_len(mib << 20).unwrap();
    path
}

/// What a host would write to choose the volume's key: a header whose key slot is not encrypted, under right checksums.
fn forged_header(device_size: u64) -> Vec<u8> {
    let format = Format { device_size, sector_size: 4096, authenticated: false };
    let mut image = NewVolume::create(format, &KEY).unwrap().image;
    for copy in image[..2 * COPY].chunks_mut(COPY) {
        let cipher = copy.windows(15).position(|window| window == b"aes-xts-plain64").unwrap();
        copy[cipher..cipher + 15].copy_from_slice(b"cipher_null-ecb");
        copy[448..512].fill(0);
        let sum = hex::decode(run_with_input("sha256sum", copy).split(' ').next().unwrap()).unwrap();
        copy[448..480].copy_from_slice(&sum);
    }
    image
}

fn run_with_input(program: &str, input: &[u8]) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), input).unwrap();
    run(program, [file.path()])
}

/// An EROFS image with its hash tree behind it, and the same with one byte of a block changed; what the guest has to know.
fn layer(lab: &Lab) -> String {
    let files = lab.path().join("layer-files");
    fs::create_dir(&files).unwrap();
    let content: Vec<u8> = (0..512).flat_map(pattern).collect();
    fs::write(files.join("file"), content).unwrap();
    let image = lab.path().join("layer");
    run("mkfs.erofs", ["-T0", "--quiet"].map(PathBuf::from).iter().chain([&image, &files]));
    let size = fs::metadata(&image).unwrap().len().next_multiple_of(4096);
    File::options().write(true).open(&image).unwrap().set_len(size).unwrap();

    let path = image.display().to_string();
    let (offset, blocks) = (format!("--hash-offset={size}"), format!("--data-blocks={}", size / 4096));
    let printed = run("/usr/sbin/veritysetup", ["format", &offset, &blocks, &path, &path]);
    let value = |name: &str| printed.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
    let (root, salt) = (value("Root hash:"), value("Salt:"));

    let tampered = lab.path().join("tampered-layer");
    fs::copy(&image, &tampered).unwrap();
    let file = File::options().read(true).write(true).open(tampered).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, size / 2).unwrap();
    file.write_all_at(&[byte[0] ^ 1], size / 2).unwrap();
    format!("blocks={} root={root} salt={salt}", size / 4096)
}

/// Boots the guest with all disks and waits until it has powered off; its console.
async fn boot(lab: &Lab, image: &GuestImage, arguments: &str) -> Vec<String> {
    let (vm, _backend) = launch(lab, image, arguments).await;
    let done = vm.console().wait_for(|line| line.contains("volumes: done"), Instant::now() + LIMIT).await;
    let lines: Vec<String> = vm.console().lines().iter().map(|line| line.text.to_string()).collect();
    assert!(done.is_ok(), "the guest did not come to its end:\n{}", lines.join("\n"));
    tokio::time::timeout(LIMIT, vm.exited()).await.expect("the guest powers off");
    lines
}

/// Boots the guest and stops it in the midst of its writing.
async fn cut_off(lab: &Lab, image: &GuestImage) {
    let (vm, _backend) = launch(lab, image, "interrupted").await;
    let written = vm.console().wait_for(|line| line.contains("volumes: wrote 2"), Instant::now() + LIMIT).await;
    assert!(written.is_ok(), "{:?}", vm.console().tail(20));
    // Kills it: nobody asks the guest.
    drop(vm);
}

async fn launch(lab: &Lab, image: &GuestImage, arguments: &str) -> (Vm, Backend) {
    let disk = |name: &&str| Disk {
        path: lab.path().join(name),
        serial: (*name).to_owned(),
        read_only: name.ends_with("layer"),
    };
    // Every guest has one.
    let backend = BackendConfig { socket: lab.path().join("vhost.sock"), uds: lab.path().join("vsock"), guest_cid: 3 };
    let backend = Backend::start(backend).unwrap();
    let vm = Vm::launch(VmConfig {
        name: "volumes".to_owned(),
        kernel: image.kernel.clone(),
        initramfs: image.initramfs.clone(),
        command_line: format!("{} -- {arguments}", guest_image::COMMAND_LINE),
        memory_mib: 384,
        vcpus: 1,
        acceleration: acceleration::probe(Preference::Auto).await.unwrap(),
        vsock: Vsock::UserBackend { socket: lab.path().join("vhost.sock") },
        disks: DISKS.iter().map(disk).collect(),
        network: Network::None,
        qmp_socket: lab.path().join("qmp.sock"),
        bios: hypervisor::qboot(),
        tee: Tee::None,
        initdata_digest: None,
        confinement: Confinement::default(),
        console: Console::new(),
    })
    .await
    .unwrap();
    (vm, backend)
}

fn expect(console: &[String], cases: &[&str]) {
    for case in cases {
        let passed = console.iter().any(|line| line.contains(&format!("case {case}: ok")));
        assert!(passed, "{case} did not pass:\n{}", console.join("\n"));
    }
    console.iter().filter(|line| line.contains("case ") || line.contains("GiB")).for_each(|line| println!("{line}"));
}

/// As `volume-guest` has it.
fn pattern(block: u64) -> Vec<u8> {
    format!("the owner's data, block {block:8}\n").bytes().cycle().take(4096).collect()
}

const DISKS: [&str; 10] =
    ["plain", "sealed", "raw", "ephemeral", "large", "forged", "stock", "hub", "layer", "tampered-layer"];
const KEY: [u8; 32] = [0xfe; 32];
/// Bytes of one copy of a header.
const COPY: usize = 16 << 10;
/// MiB: a disk as large as the file system of a host.
const LARGE: u64 = 2 << 20;
const LIMIT: Duration = Duration::from_secs(300);
