//! The first process of a guest that tries out volumes: each case says on the console how it went.
//!
//! `tests/volumes.rs` boots it, with disks by their names: `plain`, `sealed`, `raw`, `ephemeral`, `large`, `forged`, `stock`,
//! `hub`, `layer`, `tampered-layer`; and with guestd, whose data hub is a process of its own here.

#![forbid(unsafe_code)]
#![allow(clippy::unwrap_used)]

mod disks;
mod hub;

use std::fs::{self, File};
use std::os::unix::fs::{FileExt as _, symlink};
use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};

use device_mapper::{Mapping, Target, Verity};
use erofs::VerityRoot;
use nix::kmod::{ModuleInitFlags, finit_module};
use nix::mount::{MsFlags, mount, umount};
use nix::sys::reboot::{RebootMode, reboot};
use secure_mount::{Config, Error, MountRequest, SecureMounts};
use zeroize::Zeroizing;

use disks::{
    BLOCK, KEY, KEY_FILE, assert_no_mapping, assert_nothing_left, check, cryptsetup, device_id, disk_path, fill,
    holds_plaintext, length, options_of, pattern,
};

fn main() {
    start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let phase = std::env::args().nth(1).unwrap_or_default();
    match phase.as_str() {
        "first" => {
            run("a_new_volume_is_there_again_after_it_was_released", || runtime.block_on(plain()));
            run("a_volume_with_integrity_is_there_again", || runtime.block_on(sealed()));
            run("stock_cryptsetup_opens_our_volumes", stock_opens_ours);
            run("we_open_a_volume_of_stock_cryptsetup", || runtime.block_on(ours_opens_stock()));
            run("tampered_ciphertext_reads_as_an_error_and_never_as_other_data", || runtime.block_on(tampered()));
            run("an_ephemeral_volume_leaves_nothing", || runtime.block_on(ephemeral()));
            run("a_large_volume_takes_neither_time_nor_space", || runtime.block_on(large()));
            run("a_full_volume_is_whole", || runtime.block_on(full()));
            run("a_header_with_a_null_cipher_is_refused", || runtime.block_on(forged()));
            run("a_failure_leaves_nothing_behind", || runtime.block_on(failing()));
            run("a_layer_is_read_through_dm_verity", layer);
            run("a_tampered_layer_reads_as_an_error", tampered_layer);
            run("an_image_is_mounted_through_the_tree_that_its_manifest_binds", bound_image);
            run("a_pods_agent_gets_scratch_volumes_from_the_data_hub", || {
                runtime.block_on(hub::scratch(&argument("guestd")))
            });
            run("the_data_hub_fetches_keys_and_releases_volumes_when_it_ends", || {
                runtime.block_on(hub::keyed(&argument("guestd")))
            });
            run("a_volume_in_use_goes_with_its_last_user", || runtime.block_on(hub::in_use(&argument("guestd"))));
        }
        "interrupted" => runtime.block_on(interrupted()),
        "second" => {
            run("both_volumes_are_whole_after_a_guest_was_cut_off", || runtime.block_on(reopened()));
        }
        other => println!("case {other:?}: FAILED: there is no such phase"),
    }
    println!("volumes: done");
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
}

async fn plain() {
    let mounts = SecureMounts::new(Config::default());
    let new = with_key(request("plain", "empty", "fileSystem", "/run/plain"));
    mounts.mount(new.clone()).await.unwrap();
    fill("/run/plain/file");
    assert!(options_of("/run/plain").contains("noatime"));

    // The same again changes nothing, and anything else is refused.
    mounts.mount(new.clone()).await.unwrap();
    check("/run/plain/file");
    let other = with_key(request("plain", "encrypted", "fileSystem", "/run/plain"));
    assert!(matches!(mounts.mount(other).await, Err(Error::Conflict(_))));
    let elsewhere = with_key(request("plain", "encrypted", "fileSystem", "/run/elsewhere"));
    assert!(matches!(mounts.mount(elsewhere.clone()).await, Err(Error::InUse(_))));
    assert!(!Path::new("/run/elsewhere").exists());

    let open = File::open("/run/plain/file").unwrap();
    assert!(matches!(mounts.unmount(Path::new("/run/plain")).await, Err(Error::Busy(_))));
    drop(open);
    mounts.unmount(Path::new("/run/plain")).await.unwrap();
    assert_nothing_left("/run/plain");
    assert!(!holds_plaintext("plain"));

    // A second "empty" would lose the data.
    assert!(matches!(mounts.mount(new).await, Err(Error::Occupied(_))));
    let mut wrong = elsewhere.clone();
    wrong.key = Some(Zeroizing::new(vec![0xfd; 32]));
    assert!(matches!(mounts.mount(wrong).await, Err(Error::Header(wire::luks2::Error::WrongKey))));
    assert_nothing_left("/run/elsewhere");

    let mut read_only = elsewhere;
    read_only.flags = vec!["ro,noexec".to_owned()];
    mounts.mount(read_only).await.unwrap();
    check("/run/elsewhere/file");
    assert!(fs::write("/run/elsewhere/other", "x").is_err());
    assert!(options_of("/run/elsewhere").contains("noexec"));
    mounts.unmount_all().await.unwrap();
    assert_nothing_left("/run/elsewhere");
}

async fn sealed() {
    let mounts = SecureMounts::new(Config::default());
    let new = with_integrity(with_key(request("sealed", "empty", "fileSystem", "/run/sealed")), true);
    mounts.mount(new).await.unwrap();
    fill("/run/sealed/file");
    mounts.unmount_all().await.unwrap();
    assert_nothing_left("/run/sealed");
    assert!(!holds_plaintext("sealed"));

    let existing = with_key(request("sealed", "encrypted", "fileSystem", "/run/sealed"));
    let refused = mounts.mount(with_integrity(existing.clone(), false)).await;
    assert!(matches!(refused, Err(Error::Integrity { asked: false, found: true })));
    mounts.mount(with_integrity(existing, true)).await.unwrap();
    check("/run/sealed/file");
    mounts.unmount_all().await.unwrap();
    assert_nothing_left("/run/sealed");
}

fn stock_opens_ours() {
    for disk in ["plain", "sealed"] {
        cryptsetup(&["open", "--key-file", KEY_FILE, &disk_path(disk), "stock"]);
        fs::create_dir_all("/run/stock").unwrap();
        mount(Some("/dev/mapper/stock"), "/run/stock", Some("ext4"), MsFlags::empty(), None::<&str>).unwrap();
        check("/run/stock/file");
        umount("/run/stock").unwrap();
        cryptsetup(&["close", "stock"]);
    }
}

async fn ours_opens_stock() {
    let disk = disk_path("stock");
    let format = "luksFormat --type luks2 --cipher aes-xts-plain64 --key-size 512 --integrity hmac-sha256 \
         --pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 4096 --key-file";
    let format: Vec<&str> = format.split_whitespace().chain([KEY_FILE, &disk]).collect();
    cryptsetup(&format);

    let mounts = SecureMounts::new(Config::default());
    let existing = with_integrity(with_key(request("stock", "encrypted", "device", "/run/device")), true);
    mounts.mount(existing).await.unwrap();
    let device = File::options().read(true).write(true).open("/run/device").unwrap();
    device.write_all_at(&pattern(0, 1 << 20), 0).unwrap();
    device.sync_all().unwrap();
    drop(device);
    mounts.unmount_all().await.unwrap();
    assert!(fs::symlink_metadata("/run/device").is_err());

    cryptsetup(&["open", "--key-file", KEY_FILE, &disk, "stock"]);
    let mut read = vec![0; 1 << 20];
    File::open("/dev/mapper/stock").unwrap().read_exact_at(&mut read, 0).unwrap();
    assert!(read == pattern(0, 1 << 20));
    cryptsetup(&["close", "stock"]);
}

async fn tampered() {
    let mounts = SecureMounts::new(Config::default());
    let mut new = with_integrity(with_key(request("raw", "empty", "device", "/run/device")), true);
    new.options.insert("mapperName".to_owned(), "raw-data".to_owned());
    mounts.mount(new).await.unwrap();
    assert_eq!(fs::read_link("/run/device").unwrap(), Path::new("/dev/mapper/raw-data"));
    let size = length("/run/device");
    let device = File::options().write(true).open("/run/device").unwrap();
    for block in 0..size / BLOCK {
        device.write_all_at(&pattern(block, BLOCK as usize), block * BLOCK).unwrap();
    }
    device.sync_all().unwrap();
    drop(device);
    mounts.unmount_all().await.unwrap();

    // As the host would: one bit of every other block, towards the end, where there is nothing but data.
    let disk = File::options().read(true).write(true).open(disk_path("raw")).unwrap();
    let end = length(&disk_path("raw")) / BLOCK * BLOCK;
    for at in (end - 64 * BLOCK..end - 32 * BLOCK).step_by(2 * BLOCK as usize) {
        let mut byte = [0];
        disk.read_exact_at(&mut byte, at).unwrap();
        disk.write_all_at(&[byte[0] ^ 1], at).unwrap();
    }
    disk.sync_all().unwrap();
    drop(disk);

    let existing = with_integrity(with_key(request("raw", "encrypted", "device", "/run/device")), true);
    mounts.mount(existing).await.unwrap();
    let device = File::open("/run/device").unwrap();
    let (mut errors, mut read) = (0, vec![0; BLOCK as usize]);
    for block in 0..size / BLOCK {
        match device.read_exact_at(&mut read, block * BLOCK) {
            Ok(()) => assert!(read == pattern(block, BLOCK as usize), "block {block} reads as something else"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::EIO as i32));
                errors += 1;
            }
        }
    }
    drop(device);
    mounts.unmount_all().await.unwrap();
    assert_eq!(errors, 16, "blocks that read as errors");
}

async fn ephemeral() {
    let mounts = SecureMounts::new(Config::default());
    for integrity in [true, false] {
        let new = with_integrity(request("ephemeral", "empty", "fileSystem", "/run/ephemeral"), integrity);
        mounts.mount(new.clone()).await.unwrap();
        fill("/run/ephemeral/file");
        mounts.unmount_all().await.unwrap();
        assert_nothing_left("/run/ephemeral");
        assert!(!holds_plaintext("ephemeral"));
        let mut start = [0; 4];
        File::open(disk_path("ephemeral")).unwrap().read_exact_at(&mut start, 0).unwrap();
        assert_ne!(&start, b"LUKS");

        mounts.mount(new).await.unwrap();
        assert!(!Path::new("/run/ephemeral/file").exists());
        mounts.unmount_all().await.unwrap();
    }
}

/// Files in many groups of blocks, read again from the disk: no block of the file system is read before it was written.
async fn large() {
    let mounts = SecureMounts::new(Config::default());
    let start = std::time::Instant::now();
    mounts.mount(scratch("large", "/run/large")).await.unwrap();
    println!("volumes: a volume of {} GiB was mounted after {:?}", length(&disk_path("large")) >> 30, start.elapsed());
    for folder in 0..FOLDERS {
        fs::create_dir(format!("/run/large/{folder}")).unwrap();
        for file in 0..8 {
            fs::write(format!("/run/large/{folder}/{file}"), pattern(folder, 5000)).unwrap();
        }
    }
    forget_caches();
    for folder in 0..FOLDERS {
        for file in 0..8 {
            assert_eq!(fs::read(format!("/run/large/{folder}/{file}")).unwrap(), pattern(folder, 5000));
        }
        fs::remove_dir_all(format!("/run/large/{folder}")).unwrap();
    }
    forget_caches();
    assert_eq!(fs::read_dir("/run/large").unwrap().count(), 0);
    mounts.unmount_all().await.unwrap();
    assert_nothing_left("/run/large");
}

/// Every block is used, and the error says that there are no more.
async fn full() {
    let mounts = SecureMounts::new(Config::default());
    mounts.mount(scratch("ephemeral", "/run/full")).await.unwrap();
    let mut written = 0;
    let error = loop {
        match fs::write(format!("/run/full/{written}"), pattern(written, 100_000)) {
            Ok(()) => written += 1,
            Err(error) => break error,
        }
    };
    assert_eq!(error.raw_os_error(), Some(nix::errno::Errno::ENOSPC as i32));
    forget_caches();
    for file in 0..written {
        assert_eq!(fs::read(format!("/run/full/{file}")).unwrap(), pattern(file, 100_000));
    }
    mounts.unmount_all().await.unwrap();
}

fn scratch(disk: &str, mount_point: &str) -> MountRequest {
    let mut request = with_integrity(request(disk, "empty", "fileSystem", mount_point), true);
    request.options.insert("mkfsOpts".to_owned(), "-O ^has_journal".to_owned());
    request
}

fn forget_caches() {
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").unwrap();
}

async fn forged() {
    let mounts = SecureMounts::new(Config::default());
    let refused = mounts.mount(with_key(request("forged", "encrypted", "fileSystem", "/run/forged"))).await;
    let said = refused.unwrap_err().to_string();
    assert!(said.contains("the key slot's cipher is \"cipher_null-ecb\""), "{said}");
    assert_nothing_left("/run/forged");
}

async fn failing() {
    let mounts = SecureMounts::new(Config::default());
    let mut new = with_integrity(with_key(request("forged", "empty", "fileSystem", "/run/a/b")), true);
    // It has a header, which would have to go first.
    assert!(matches!(mounts.mount(new.clone()).await, Err(Error::Occupied(_))));
    File::options().write(true).open(disk_path("forged")).unwrap().write_all_at(&[0; 4096], 0).unwrap();
    new.options.insert("mkfsOpts".to_owned(), "-O no_such_feature".to_owned());
    assert!(matches!(mounts.mount(new.clone()).await, Err(Error::MkfsOption(_))));
    let folder = Path::new("/run/a-file");
    fs::write(folder, "").unwrap();
    new.options.remove("mkfsOpts");
    new.mount_point = folder.join("b");
    for _ in 0..2 {
        assert!(mounts.mount(new.clone()).await.is_err());
        assert_nothing_left("/run/a-file/b");
    }
    // The device still counts as empty.
    new.mount_point = "/run/a".into();
    mounts.mount(new).await.unwrap();
    drop(mounts);
    assert_nothing_left("/run/a");
}

fn layer() {
    let (mapping, folder) = (open_layer("layer"), Path::new("/run/layer"));
    fs::create_dir_all(folder).unwrap();
    mount(Some(mapping.path()), folder, Some("erofs"), MsFlags::MS_RDONLY, None::<&str>).unwrap();
    check("/run/layer/file");
    assert_eq!(mapping.status().unwrap(), ["V"]);
    umount(folder).unwrap();
    drop(mapping);
    assert_no_mapping();
}

fn tampered_layer() {
    let mapping = open_layer("tampered-layer");
    let (device, size) = (File::open(mapping.path()).unwrap(), length(mapping.path().to_str().unwrap()));
    let mut block = vec![0; BLOCK as usize];
    let errors = (0..size / BLOCK).filter(|number| device.read_exact_at(&mut block, number * BLOCK).is_err()).count();
    assert_eq!(errors, 1);
    assert_eq!(mapping.status().unwrap(), ["C"]);
}

fn bound_image() {
    let target = Path::new("/run/image");
    let image = |disk: &str| PathBuf::from(disk_path(disk));
    let root = VerityRoot { hash: root_hash(), offset: argument("blocks").parse::<u64>().unwrap() * BLOCK };
    let mounted = erofs::mount(&image("layer"), Some(&root), target).unwrap();
    check("/run/image/file");
    drop(mounted);
    assert_eq!(fs::read_dir(target).unwrap().count(), 0);
    assert_no_mapping();

    let tampered = erofs::mount(&image("tampered-layer"), Some(&root), target).unwrap();
    assert!(fs::read("/run/image/file").is_err());
    drop(tampered);
    let other = VerityRoot { hash: [1; 32], ..root };
    assert!(matches!(erofs::mount(&image("layer"), Some(&other), target), Err(erofs::Error::System { .. })));
    assert_no_mapping();
}

/// What the host has put into `/proc/cmdline`: where guestd is, and the layer's hash tree.
fn argument(name: &str) -> String {
    std::env::args().find_map(|it| Some(it.strip_prefix(name)?.strip_prefix('=')?.to_owned())).unwrap()
}

fn root_hash() -> [u8; 32] {
    hex::decode(argument("root")).unwrap().try_into().unwrap()
}

fn open_layer(disk: &str) -> Mapping {
    let data_blocks = argument("blocks").parse().unwrap();
    let verity = Verity {
        data_device: disk_path(disk).into(),
        hash_device: disk_path(disk).into(),
        data_block_size: 4096,
        hash_block_size: 4096,
        data_blocks,
        // Behind the superblock.
        hash_start_block: data_blocks + 1,
        root_hash: root_hash(),
        salt: hex::decode(argument("salt")).unwrap(),
    };
    Mapping::open(disk, &[Target::Verity(verity)], true).unwrap()
}

/// Writes until the machine is stopped.
async fn interrupted() {
    let mounts = SecureMounts::new(Config::default());
    for disk in ["plain", "sealed"] {
        let mount = with_key(request(disk, "encrypted", "fileSystem", &format!("/run/{disk}")));
        mounts.mount(mount).await.unwrap();
        fill(&format!("/run/{disk}/synced"));
    }
    for round in 0.. {
        for disk in ["plain", "sealed"] {
            fs::write(format!("/run/{disk}/{}", round % 8), pattern(round, 1 << 20)).unwrap();
            let folder = File::open(format!("/run/{disk}")).unwrap();
            nix::unistd::syncfs(std::os::fd::AsRawFd::as_raw_fd(&folder)).unwrap();
        }
        println!("volumes: wrote {round}");
    }
}

async fn reopened() {
    let mounts = SecureMounts::new(Config::default());
    for disk in ["plain", "sealed"] {
        let path = format!("/run/{disk}");
        mounts.mount(with_key(request(disk, "encrypted", "fileSystem", &path))).await.unwrap();
        check(&format!("{path}/file"));
        check(&format!("{path}/synced"));
        // No sector was lost to the interruption.
        for entry in fs::read_dir(&path).unwrap() {
            let entry = entry.unwrap();
            assert!(entry.path().is_dir() || fs::read(entry.path()).is_ok(), "{entry:?}");
        }
        fs::write(format!("{path}/more"), "more").unwrap();
    }
    mounts.unmount_all().await.unwrap();
    assert_nothing_left("/run/plain");
}

/// Runs a case and says how it went.
fn run(name: &str, case: impl FnOnce()) {
    let start = std::time::Instant::now();
    match std::panic::catch_unwind(AssertUnwindSafe(case)) {
        Ok(()) => println!("case {name}: ok in {:?}", start.elapsed()),
        // The panic has said why.
        Err(_) => println!("case {name}: FAILED"),
    }
}

/// What PID 1 has to do before anything else.
fn start() {
    for (kind, target) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run")] {
        mount(Some(kind), target, Some(kind), MsFlags::empty(), None::<&str>).unwrap();
    }
    for name in fs::read_to_string("/etc/cocoon/modules").unwrap().lines().filter(|name| !name.is_empty()) {
        let module = File::open(Path::new("/lib/modules").join(name)).unwrap();
        if let Err(errno) = finit_module(&module, c"", ModuleInitFlags::empty()) {
            println!("{name}: {errno}");
        }
    }
    // As guestd leaves the kernel: nothing that is missing could be loaded later.
    fs::write("/proc/sys/kernel/modules_disabled", "1").unwrap();
    mount(Some("securityfs"), "/sys/kernel/security", Some("securityfs"), MsFlags::empty(), None::<&str>).unwrap();
    fs::write("/sys/kernel/security/lockdown", "integrity").unwrap();
    fs::create_dir_all("/run/disks").unwrap();
    for entry in fs::read_dir("/sys/block").unwrap() {
        let entry = entry.unwrap();
        if let Ok(serial) = fs::read_to_string(entry.path().join("serial")) {
            let device = Path::new("/dev").join(entry.file_name());
            symlink(device, Path::new("/run/disks").join(serial.trim())).unwrap();
        }
    }
    fs::write(KEY_FILE, KEY).unwrap();
}

fn request(disk: &str, source: &str, target: &str, mount_point: &str) -> MountRequest {
    let id = device_id(disk);
    let options =
        [("deviceId", id.as_str()), ("sourceType", source), ("targetType", target), ("encryptionType", "luks2")];
    MountRequest {
        volume_type: "block-device".to_owned(),
        options: options.map(|(key, value)| (key.to_owned(), value.to_owned())).into(),
        flags: Vec::new(),
        mount_point: mount_point.into(),
        key: None,
    }
}

fn with_key(mut request: MountRequest) -> MountRequest {
    request.options.insert("key".to_owned(), "kbs:///default/volume/1".to_owned());
    request.key = Some(Zeroizing::new(KEY.to_vec()));
    request
}

fn with_integrity(mut request: MountRequest, integrity: bool) -> MountRequest {
    request.options.insert("dataIntegrity".to_owned(), integrity.to_string());
    request
}

const FOLDERS: u64 = 40;
