//! Headers of ours read by stock cryptsetup, and headers of its making read by ours, on image files without device-mapper.

#![allow(clippy::unwrap_used)]

use std::fs::{self, File};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use wire::luks2::{Error, Format, Header, NewVolume, VolumeKey};

#[test]
fn stock_cryptsetup_opens_what_we_make() {
    let Some(lab) = Lab::new() else { return };
    for (authenticated, sector_size, key) in
        [(false, 4096, RANDOM), (false, 512, b"a passphrase" as &[u8]), (true, 4096, RANDOM)]
    {
        let volume = NewVolume::create(Format { device_size: DEVICE, sector_size, authenticated }, key).unwrap();
        let image = lab.image("ours");
        File::options().write(true).open(&image).unwrap().write_all_at(&volume.image, 0).unwrap();
        let key = lab.file("key", key);

        let dump = lab.run(&["luksDump"], &image);
        assert!(dump.contains("Version:       \t2") && dump.contains("cipher: aes-xts-plain64"), "{dump}");
        assert!(dump.contains(&format!("sector: {sector_size} [bytes]")), "{dump}");
        assert_eq!(dump.contains("integrity: hmac(sha256)"), authenticated, "{dump}");
        lab.run(&["open", "--test-passphrase", "--key-file", &key], &image);
        assert_eq!(lab.volume_key(&image, &key), *volume.volume_key);

        let wrong = lab.file("wrong", b"another");
        assert!(!lab.try_run(&["open", "--test-passphrase", "--key-file", &wrong], &image).status.success());
    }
}

#[test]
fn we_open_what_stock_cryptsetup_makes() {
    let Some(lab) = Lab::new() else { return };
    let key = lab.file("key", b"a passphrase");
    for options in [
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --sector-size 4096",
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1234 --hash sha512 --sector-size 512 --label data",
        "--pbkdf argon2id --pbkdf-memory 16384 --pbkdf-parallel 2 --pbkdf-force-iterations 4",
        "--pbkdf argon2i --pbkdf-memory 8192 --pbkdf-parallel 1 --pbkdf-force-iterations 5",
        "--pbkdf pbkdf2 --pbkdf-force-iterations 1000 --luks2-metadata-size 64k --luks2-keyslots-size 1m --offset 8192",
    ] {
        let image = lab.formatted(options, &key);
        let volume_key = unlock(&image, b"a passphrase").unwrap_or_else(|error| panic!("{options}: {error}"));
        assert_eq!(*volume_key, lab.volume_key(&image, &key), "{options}");
        assert!(matches!(unlock(&image, b"a passphrasf"), Err(Error::WrongKey)));
    }
}

#[test]
fn a_token_of_stock_cryptsetup_is_no_obstacle() {
    let Some(lab) = Lab::new() else { return };
    let key = lab.file("key", b"a passphrase");
    let image = lab.formatted(CHEAP, &key);
    lab.run(&["token", "add", "--key-description", "somewhere"], &image);
    unlock(&image, b"a passphrase").unwrap();
}

#[test]
fn what_stock_cryptsetup_makes_and_is_not_safe_here_is_refused() {
    let Some(lab) = Lab::new() else { return };
    let key = lab.file("key", b"a passphrase");
    for (options, reason) in [
        ("--cipher aes-cbc-essiv:sha256 --key-size 256", "the segment's cipher is \"aes-cbc-essiv:sha256\""),
        ("--cipher aes-xts-plain64 --key-size 256", "the key of the key slot's cipher is \"32 bytes\""),
        ("--hash sha1", "sha1"),
    ] {
        let image = lab.formatted(&format!("{CHEAP} {options}"), &key);
        let error = unlock(&image, b"a passphrase").unwrap_err().to_string();
        assert!(error.contains(reason), "{options} gave {error}");
    }
    let two_slots = lab.formatted(CHEAP, &key);
    lab.run(
        &[
            "luksAddKey",
            "--pbkdf",
            "pbkdf2",
            "--pbkdf-force-iterations",
            "1000",
            "--key-file",
            &key,
            "--new-keyfile",
            &key,
        ],
        &two_slots,
    );
    assert!(unlock(&two_slots, b"a passphrase").unwrap_err().to_string().contains("key slots is \"2\""));
    let old = lab.formatted_as("luks1", "--iter-time 1", &key);
    assert!(matches!(unlock(&old, b"a passphrase"), Err(Error::Version(1))));
}

/// As `secure-mount` does with a device.
fn unlock(image: &Path, key: &[u8]) -> Result<VolumeKey, Error> {
    let file = File::open(image).unwrap();
    let size = file.metadata().unwrap().len();
    let mut start = vec![0; Header::MAX_METADATA];
    file.read_exact_at(&mut start, 0).unwrap();
    let header = Header::parse(&start, size)?;
    let area = header.key_area();
    let mut bytes = vec![0; (area.end - area.start) as usize];
    file.read_exact_at(&mut bytes, area.start).unwrap();
    header.unlock(&bytes, key)
}

/// A folder for images, and cryptsetup.
struct Lab(TempDir);

impl Lab {
    /// `None`, with a printed reason, where cryptsetup is not installed.
    fn new() -> Option<Self> {
        if Command::new(CRYPTSETUP).arg("--version").output().is_err() {
            println!("skipped: {CRYPTSETUP} is not installed; next: cargo xtask setup");
            return None;
        }
        Some(Self(tempfile::tempdir().unwrap()))
    }

    fn image(&self, name: &str) -> PathBuf {
        let path = self.0.path().join(name);
        File::create(&path).unwrap().set_len(DEVICE).unwrap();
        path
    }

    fn file(&self, name: &str, content: &[u8]) -> String {
        let path = self.0.path().join(name);
        fs::write(&path, content).unwrap();
        path.display().to_string()
    }

    fn formatted(&self, options: &str, key: &str) -> PathBuf {
        self.formatted_as("luks2", options, key)
    }

    fn formatted_as(&self, kind: &str, options: &str, key: &str) -> PathBuf {
        let image = self.image("stock");
        let size = if options.contains("--key-size") || kind == "luks1" { "" } else { "--key-size 512" };
        let options = format!("luksFormat --type {kind} {options} {size} --key-file {key}");
        self.run(&options.split_whitespace().collect::<Vec<_>>(), &image);
        image
    }

    fn volume_key(&self, image: &Path, key: &str) -> Vec<u8> {
        let output = self.0.path().join("volume-key");
        _ = fs::remove_file(&output);
        let path = output.display().to_string();
        self.run(&["luksDump", "--dump-volume-key", "--volume-key-file", &path, "--key-file", key], image);
        fs::read(output).unwrap()
    }

    fn run(&self, arguments: &[&str], image: &Path) -> String {
        let output = self.try_run(arguments, image);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    }

    fn try_run(&self, arguments: &[&str], image: &Path) -> Output {
        Command::new(CRYPTSETUP).arg("--batch-mode").args(arguments).arg(image).output().unwrap()
    }
}

const CRYPTSETUP: &str = "/usr/sbin/cryptsetup";
const DEVICE: u64 = 32 << 20;
/// Not text, so that it costs the least.
const RANDOM: &[u8] = &[0xfe; 32];
const CHEAP: &str = "--pbkdf pbkdf2 --pbkdf-force-iterations 1000";
