//! Messages and keys made by GnuPG with a clock of the test's choice, and by rPGP where there is no GnuPG.

use super::*;
use crate::fixture::{openpgp_key as key, openpgp_message, openpgp_public as public};
use pgp::composed::MessageBuilder;
use pgp::crypto::hash::HashAlgorithm;
use pgp::ser::Serialize as _;
use pgp::types::Password;
use proptest::prelude::*;
use std::process::{Command, Stdio};

const DOCUMENT: &[u8] = b"what is signed";
/// 2025-06-01 and some hours; [`Gpg`] reads the same as `20250601T120000`.
const MADE: u64 = 1_748_779_200;
const DAY: u64 = 86_400;

fn at(seconds: u64) -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(seconds)
}

fn ring(keys: &[u8]) -> Ring {
    let mut ring = Ring::default();
    ring.add(keys).unwrap();
    ring
}

/// GnuPG with an empty home, whose agent ends with it.
struct Gpg(tempfile::TempDir);

impl Gpg {
    fn new() -> Option<Self> {
        match Command::new("gpg").arg("--version").output() {
            Ok(_) => Some(Self(tempfile::tempdir().unwrap())),
            Err(e) => {
                eprintln!("skipped: gpg can't be run: {e}");
                None
            }
        }
    }

    fn run(&self, time: &str, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        use std::io::Write as _;
        let mut command = Command::new("gpg");
        command.args(["--homedir", self.0.path().to_str().unwrap(), "--batch", "--no-tty", "--yes", "--quiet"]);
        command.args(["--pinentry-mode", "loopback", "--passphrase", "", "--faked-system-time", time]).args(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    /// Makes a key whose primary key has `usage`; gives its fingerprint.
    fn key(&self, name: &str, algorithm: &str, usage: &str, expires: &str) -> String {
        self.run(TIME, &["--quick-generate-key", name, algorithm, usage, expires], b"");
        let listed = self.run(TIME, &["--list-keys", "--with-colons", name], b"");
        let listed = String::from_utf8(listed).unwrap();
        listed.lines().find_map(|line| line.strip_prefix("fpr:::::::::")).unwrap().trim_end_matches(':').to_owned()
    }

    fn export(&self) -> Vec<u8> {
        self.run(TIME, &["--export"], b"")
    }

    fn sign(&self, key: &str, more: &[&str]) -> Vec<u8> {
        self.run(TIME, &[&["--local-user", key, "--sign"], more].concat(), DOCUMENT)
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let home = self.0.path().to_str().unwrap();
        Command::new("gpgconf").args(["--homedir", home, "--kill", "gpg-agent"]).output().ok();
    }
}

const TIME: &str = "20250601T120000!";

#[test]
fn messages_of_gnupg_by_every_kind_of_key_are_accepted() {
    let Some(gpg) = Gpg::new() else { return };
    for algorithm in ["rsa2048", "ed25519", "nistp256", "nistp384", "nistp521"] {
        let fingerprint = gpg.key(algorithm, algorithm, "sign", "1y");
        let message = gpg.sign(&fingerprint, &[]);
        let signed = ring(&gpg.export()).verify(&message, at(MADE + DAY)).unwrap();
        assert_eq!((&*signed.content, signed.signer), (DOCUMENT, fingerprint), "{algorithm}");
    }
}

#[test]
fn messages_may_be_compressed_and_keys_armored() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("armored", "ed25519", "sign", "never");
    let armored = gpg.run(TIME, &["--armor", "--export"], b"");
    // As somebody makes a file of several keys.
    let ring = ring(&[&armored[..], b"\n", &armored].concat());
    for (algorithm, refused) in [("none", false), ("zip", false), ("zlib", false), ("bzip2", true)] {
        let message = gpg.sign(&fingerprint, &["--compress-algo", algorithm]);
        let verified = ring.verify(&message, at(MADE + DAY));
        assert_eq!(verified.is_err(), refused, "{algorithm}: {verified:?}");
    }
}

#[test]
fn a_subkey_signs_for_its_certificate_until_it_expires() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("subkey", "rsa2048", "cert", "never");
    gpg.run(TIME, &["--quick-add-key", &fingerprint, "ed25519", "sign", "30d"], b"");
    gpg.run(TIME, &["--quick-add-key", &fingerprint, "cv25519", "encr", "never"], b"");
    let message = gpg.sign("subkey", &[]);
    let ring = ring(&gpg.export());
    assert_eq!(ring.verify(&message, at(MADE + DAY)).unwrap().signer, fingerprint);
    let error = ring.verify(&message, at(MADE + 31 * DAY)).unwrap_err();
    assert!(matches!(error, OpenPgpError::Expired { .. }), "{error}");
}

#[test]
fn an_expired_key_is_refused_until_its_owner_prolongs_it() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("expiring", "ed25519", "sign", "30d");
    let message = gpg.sign(&fingerprint, &[]);
    let before = ring(&gpg.export());
    before.verify(&message, at(MADE + 29 * DAY)).unwrap();
    let error = before.verify(&message, at(MADE + 31 * DAY)).unwrap_err();
    assert!(matches!(error, OpenPgpError::Expired { at, .. } if at == MADE + 30 * DAY), "{error}");
    gpg.run("20250602T120000!", &["--quick-set-expire", &fingerprint, "1y"], b"");
    ring(&gpg.export()).verify(&message, at(MADE + 31 * DAY)).unwrap();
}

#[test]
fn a_revoked_key_is_refused_whatever_the_date() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("revoked", "ed25519", "sign", "never");
    let message = gpg.sign(&fingerprint, &[]);
    let before = gpg.export();
    ring(&before).verify(&message, at(MADE + DAY)).unwrap();
    // GnuPG prepares this with each key, and keeps it from being used by accident.
    let prepared = gpg.0.path().join(format!("openpgp-revocs.d/{fingerprint}.rev"));
    let prepared = std::fs::read_to_string(prepared).unwrap().replace(":-----BEGIN", "-----BEGIN");
    gpg.run(TIME, &["--import"], prepared.as_bytes());
    let error = ring(&gpg.export()).verify(&message, at(MADE + DAY)).unwrap_err();
    assert!(matches!(&error, OpenPgpError::Revoked(key) if *key == fingerprint), "{error}");
    // As somebody appends what GnuPG prepared.
    let appended = [before, gpg.run(TIME, &["--dearmor"], prepared.as_bytes())].concat();
    let error = ring(&appended).verify(&message, at(MADE + DAY)).unwrap_err();
    assert!(matches!(&error, OpenPgpError::Revoked(key) if *key == fingerprint), "{error}");
}

#[test]
fn a_revoked_subkey_is_refused() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("subkey", "ed25519", "cert", "never");
    gpg.run(TIME, &["--quick-add-key", &fingerprint, "ed25519", "sign", "never"], b"");
    let message = gpg.sign("subkey", &[]);
    let dialogue = b"key 1\nrevkey\ny\n0\n\ny\nsave\n";
    gpg.run(TIME, &["--command-fd", "0", "--no-batch", "--edit-key", &fingerprint], dialogue);
    let error = ring(&gpg.export()).verify(&message, at(MADE + DAY)).unwrap_err();
    assert!(matches!(error, OpenPgpError::Revoked(_)), "{error}");
}

#[test]
fn signatures_that_expired_or_come_from_the_future_are_refused() {
    let Some(gpg) = Gpg::new() else { return };
    let fingerprint = gpg.key("dated", "ed25519", "sign", "never");
    let ring = ring(&gpg.export());
    let message = gpg.sign(&fingerprint, &["--default-sig-expire", "2d"]);
    ring.verify(&message, at(MADE + DAY)).unwrap();
    let error = ring.verify(&message, at(MADE + 3 * DAY)).unwrap_err();
    assert!(matches!(error, OpenPgpError::SignatureExpired(_)), "{error}");
    let future = gpg.run("20250701T120000!", &["--local-user", &fingerprint, "--sign"], DOCUMENT);
    let error = ring.verify(&future, at(MADE + DAY)).unwrap_err();
    assert!(matches!(error, OpenPgpError::Date { .. }), "{error}");
}

#[test]
fn what_is_not_one_document_with_one_signature_is_refused() {
    let Some(gpg) = Gpg::new() else { return };
    let (first, second) = (gpg.key("first", "ed25519", "sign", "0"), gpg.key("second", "ed25519", "sign", "0"));
    let ring = ring(&gpg.export());
    for arguments in [
        &["--local-user", &*first, "--detach-sign"][..],
        &["--local-user", &first, "--clear-sign"],
        &["--local-user", &first, "--local-user", &second, "--sign"],
        &["--local-user", &first, "--textmode", "--sign"],
        &["--store"],
    ] {
        let error = ring.verify(&gpg.run(TIME, arguments, DOCUMENT), at(MADE + DAY)).unwrap_err();
        assert!(matches!(error, OpenPgpError::Message(_)), "{arguments:?}: {error}");
    }
}

#[test]
fn keys_of_gnupg_that_are_not_known_here_leave_the_others_usable() {
    let Some(gpg) = Gpg::new() else { return };
    gpg.key("brainpool", "brainpoolP256r1", "sign", "never");
    let fingerprint = gpg.key("known", "ed25519", "sign", "never");
    let message = gpg.sign(&fingerprint, &[]);
    let ring = ring(&gpg.export());
    ring.verify(&message, at(MADE + DAY)).unwrap();
    assert!(ring.verify(&gpg.sign("brainpool", &[]), at(MADE + DAY)).is_err());
}

fn signed_by(key: &dyn pgp::types::SigningKey) -> Vec<u8> {
    openpgp_message(key, DOCUMENT)
}

/// rPGP dates signatures by the machine's clock.
fn present() -> SystemTime {
    SystemTime::now() + Duration::from_secs(1)
}

#[test]
fn a_primary_key_and_a_subkey_sign_where_their_flags_say_so() {
    for (primary, subkey) in [(true, true), (true, false), (false, true), (false, false)] {
        let key = key(primary, subkey);
        let ring = ring(&public(&key));
        let by_primary = ring.verify(&signed_by(&key.primary_key), present());
        let by_subkey = ring.verify(&signed_by(&key.secret_subkeys[0].key), present());
        for (allowed, verified) in [(primary, by_primary), (subkey, by_subkey)] {
            match verified {
                Ok(signed) => assert!(allowed && signed.content == DOCUMENT),
                Err(error) => assert!(!allowed && matches!(error, OpenPgpError::NotForSigning(_)), "{error}"),
            }
        }
    }
}

#[test]
fn a_changed_message_and_a_message_by_another_key_are_refused() {
    let (signer, other) = (key(true, false), key(true, false));
    let ring = ring(&public(&signer));
    let mut message = signed_by(&signer.primary_key);
    let place = message.windows(DOCUMENT.len()).position(|window| window == DOCUMENT).unwrap();
    message[place] ^= 1;
    let error = ring.verify(&message, present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::Bad { .. }), "{error}");
    let error = ring.verify(&signed_by(&other.primary_key), present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::UnknownKey(_)), "{error}");
}

#[test]
fn a_certificate_without_its_self_signatures_is_worth_nothing() {
    let signer = key(true, true);
    let (by_primary, by_subkey) = (signed_by(&signer.primary_key), signed_by(&signer.secret_subkeys[0].key));
    let mut bare = signer.to_public_key();
    bare.public_subkeys[0].signatures.clear();
    let error = ring(&bare.to_bytes().unwrap()).verify(&by_subkey, present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::NoSelfSignature(_)), "{error}");
    bare.details.users.clear();
    bare.details.direct_signatures.clear();
    let error = ring(&bare.to_bytes().unwrap()).verify(&by_primary, present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::NoSelfSignature(_)), "{error}");
}

#[test]
fn what_stands_behind_an_unknown_key_is_of_no_other() {
    let (signer, other) = (key(true, true), key(true, true));
    // A public key of a version to come, and behind it what is another's.
    let unknown = [0x98, 8, 99, 0, 0, 0, 0, 0, 0, 1];
    let mut stray = other.to_public_key().to_bytes().unwrap();
    let primary_length = 2 + usize::from(stray[1]);
    stray.drain(..primary_length);
    let keys = [&public(&signer)[..], &unknown, &stray].concat();
    let error = ring(&keys).verify(&signed_by(&other.secret_subkeys[0].key), present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::UnknownKey(_)), "{error}");
    ring(&keys).verify(&signed_by(&signer.secret_subkeys[0].key), present()).unwrap();
}

#[test]
fn another_ones_subkey_gives_a_certificate_no_say() {
    let (victim, thief) = (key(true, true), key(true, true));
    let mut stolen = thief.to_public_key();
    stolen.public_subkeys = victim.to_public_key().public_subkeys;
    let message = signed_by(&victim.secret_subkeys[0].key);
    let error = ring(&stolen.to_bytes().unwrap()).verify(&message, present()).unwrap_err();
    assert!(matches!(error, OpenPgpError::NoSelfSignature(_)), "{error}");
}

#[test]
fn what_is_not_a_ring_is_refused() {
    let limit = vec![0x80; MAX_RING + 1];
    for bytes in [&b""[..], b"text", b"\x80\x01\x02", b"\xff\xff\xff\xff", &limit, ARMOR.as_bytes()] {
        assert!(
            matches!(Ring::default().add(bytes), Err(OpenPgpError::Ring(_))),
            "{:?}",
            &bytes[..bytes.len().min(20)]
        );
    }
}

#[test]
fn a_message_that_grows_without_end_stops_at_the_limit() {
    let signer = key(true, false);
    let mut message = MessageBuilder::from_bytes("", vec![b' '; 64 << 20]);
    message.compression(pgp::types::CompressionAlgorithm::ZLIB);
    message.sign(&signer.primary_key, Password::empty(), HashAlgorithm::Sha256);
    let message = message.to_vec(rand::thread_rng()).unwrap();
    assert!(message.len() < 1 << 20);
    let error = Ring::default().verify(&message, present()).unwrap_err().to_string();
    assert!(error.contains("larger than"), "{error}");
}

#[test]
fn real_signatures_of_others_verify_at_their_time() {
    let vectors = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/vectors/image-signature");
    let (Ok(keys), Ok(message)) =
        (std::fs::read(vectors.join("pubring.gpg")), std::fs::read(vectors.join("signatures/signature-1")))
    else {
        return eprintln!("skipped: {} is not there", vectors.display());
    };
    let ring = ring(&keys);
    let signed = ring.verify(&message, at(1_640_000_000)).unwrap();
    assert!(signed.signer.ends_with("7EFD4C926F9311E2"), "{}", signed.signer);
    assert!(
        String::from_utf8(signed.content)
            .unwrap()
            .contains("sha256:69704ef328d05a9f806b6b8502915e6a0a4faa4d72018dc42343f511490daf8a")
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn no_message_and_no_ring_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = Ring::default().add(&bytes);
        let _ = Ring::default().verify(&bytes, at(MADE));
    }

    #[test]
    fn no_change_to_a_message_or_ring_makes_it_panic(place: prop::sample::Index, byte: u8) {
        use std::sync::OnceLock;
        static MADE_ONCE: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
        let (keys, message) = MADE_ONCE.get_or_init(|| {
            let key = key(true, true);
            (public(&key), signed_by(&key.primary_key))
        });
        let good = ring(keys);
        let (mut keys, mut message) = (keys.clone(), message.clone());
        let place_of_keys = place.index(keys.len());
        keys[place_of_keys] = byte;
        let _ = Ring::default().add(&keys);
        let place = place.index(message.len());
        let changed = message[place] != byte;
        message[place] = byte;
        if let Ok(signed) = good.verify(&message, present()) {
            prop_assert!(!changed || signed.content == DOCUMENT);
        }
    }
}
