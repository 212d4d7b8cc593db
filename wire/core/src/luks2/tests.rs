//! Headers that open, headers that must not, and headers that nobody would write.

use aws_lc_rs::digest;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::binary::{BINARY, BinaryHeader, Copy, NEW_SIZE};
use super::*;

const DEVICE: u64 = 64 << 20;
/// Not text, so that it is taken for random and costs the least.
const KEY: [u8; 32] = [0xfe; 32];

fn format(authenticated: bool) -> Format {
    Format { device_size: DEVICE, sector_size: 4096, authenticated }
}

fn volume(authenticated: bool) -> NewVolume {
    NewVolume::create(format(authenticated), &KEY).unwrap()
}

fn metadata(image: &[u8]) -> Value {
    let json = image[BINARY..NEW_SIZE].split(|byte| *byte == 0).next().unwrap();
    serde_json::from_slice(json).unwrap()
}

/// The same volume with other metadata, under right checksums.
fn with_metadata(image: &[u8], metadata: &[u8]) -> Vec<u8> {
    let uuid = "8f2c3f0e-4a55-4d3c-9d50-5fbd0a1f8a11";
    let copy = |copy| BinaryHeader::write(copy, uuid, metadata).unwrap();
    [copy(Copy::First), copy(Copy::Second), image[2 * NEW_SIZE..].to_vec()].concat()
}

fn changed(image: &[u8], change: impl FnOnce(&mut Value)) -> Vec<u8> {
    let mut metadata = metadata(image);
    change(&mut metadata);
    with_metadata(image, metadata.to_string().as_bytes())
}

fn unlock(image: &[u8], key: &[u8]) -> Result<VolumeKey, Error> {
    let header = Header::parse(image, DEVICE)?;
    let area = header.key_area();
    header.unlock(&image[area.start as usize..area.end as usize], key)
}

#[test]
fn the_owners_key_gives_the_volumes_key_back() {
    for authenticated in [false, true] {
        let volume = volume(authenticated);
        let header = Header::parse(&volume.image, DEVICE).unwrap();
        assert_eq!(*header.segment(), volume.segment);
        assert_eq!(volume.segment.offset, 16 << 20);
        assert_eq!(volume.segment.length, 48 << 20);
        assert_eq!(header.memory_cost(), 0);
        assert_eq!(volume.volume_key.len(), if authenticated { 96 } else { 64 });
        assert_eq!(unlock(&volume.image, &KEY).unwrap(), volume.volume_key);
    }
}

#[test]
fn two_volumes_share_nothing() {
    let (first, second) = (volume(false), volume(false));
    assert_ne!(first.volume_key, second.volume_key);
    let uuid = |volume: &NewVolume| Header::parse(&volume.image, DEVICE).unwrap().uuid().to_owned();
    assert_ne!(uuid(&first), uuid(&second));
}

#[test]
fn another_key_opens_nothing_and_an_empty_one_makes_nothing() {
    let volume = volume(false);
    for key in [&[0xfd; 32][..], b"", &KEY[..31]] {
        assert!(matches!(unlock(&volume.image, key), Err(Error::WrongKey)));
    }
    assert!(matches!(NewVolume::create(format(false), b""), Err(Error::EmptyKey)));
}

#[test]
fn a_changed_key_slot_gives_no_key_rather_than_another_one() {
    let volume = volume(false);
    for at in [2 * NEW_SIZE, 2 * NEW_SIZE + 100_000, volume.image.len() - 1] {
        let mut image = volume.image.clone();
        image[at] ^= 1;
        assert!(matches!(unlock(&image, &KEY), Err(Error::WrongKey)), "byte {at}");
    }
}

#[test]
fn random_keys_cost_little_and_passphrases_much() {
    let iterations = |key: &[u8]| {
        let volume = NewVolume::create(format(false), key).unwrap();
        metadata(&volume.image)["keyslots"]["0"]["kdf"]["iterations"].as_u64().unwrap()
    };
    assert_eq!(iterations(&KEY), 1000);
    assert_eq!(iterations(b"correct horse battery staple, and some more"), 600_000);
    assert_eq!(iterations(&KEY[..16]), 600_000);
}

#[test]
fn a_null_cipher_and_everything_else_that_is_not_allowed_is_refused() {
    let plain = volume(false);
    let authenticated = volume(true);
    let slot =
        |m: &mut Value, path: &str, value: Value| *m.pointer_mut(&format!("/keyslots/0/{path}")).unwrap() = value;
    let segment = |m: &mut Value, key: &str, value: Value| m["segments"]["0"][key] = value;
    type Change<'a> = (&'a str, &'a NewVolume, &'a dyn Fn(&mut Value));
    let changes: &[Change] = &[
        ("the key slot's cipher is \"cipher_null-ecb\"", &plain, &|m| {
            slot(m, "area/encryption", json!("cipher_null-ecb"))
        }),
        ("the segment's cipher is \"cipher_null-ecb\"", &plain, &|m| {
            segment(m, "encryption", json!("cipher_null-ecb"))
        }),
        ("the segment's cipher is \"aes-cbc-essiv:sha256\"", &plain, &|m| {
            segment(m, "encryption", json!("aes-cbc-essiv:sha256"))
        }),
        ("the kind of the segment is \"linear\"", &plain, &|m| segment(m, "type", json!("linear"))),
        ("a flag of the segment is \"in-reencryption\"", &plain, &|m| segment(m, "flags", json!(["in-reencryption"]))),
        ("the first sector's number is \"8\"", &plain, &|m| segment(m, "iv_tweak", json!("8"))),
        ("the sector size is \"8192\"", &plain, &|m| segment(m, "sector_size", json!(8192))),
        ("starts at 16777728, amid a sector", &plain, &|m| segment(m, "offset", json!("16777728"))),
        ("key slots lie across", &plain, &|m| segment(m, "offset", json!("32768"))),
        ("no room from", &plain, &|m| segment(m, "offset", json!(DEVICE.to_string()))),
        ("\"50335744\" is none that the device has", &plain, &|m| segment(m, "size", json!("50335744"))),
        ("\"0\" is none that the device has", &plain, &|m| segment(m, "size", json!("0"))),
        ("\"-1\" is none that the device has", &plain, &|m| segment(m, "size", json!("-1"))),
        ("the volume's key is \"64 bytes\", which", &plain, &|m| {
            segment(
                m,
                "integrity",
                json!({"type": "hmac(sha256)", "journal_encryption": "none", "journal_integrity": "none"}),
            );
        }),
        ("the volume's key is \"96 bytes\", which", &authenticated, &|m| {
            m["segments"]["0"].as_object_mut().unwrap().remove("integrity");
        }),
        ("the segment's authentication is \"none\"", &authenticated, &|m| {
            m["segments"]["0"]["integrity"]["type"] = json!("none")
        }),
        ("the kind of the key slot is \"reencrypt\"", &plain, &|m| slot(m, "type", json!("reencrypt"))),
        ("the key of the key slot's cipher is \"32 bytes\"", &plain, &|m| slot(m, "area/key_size", json!(32))),
        ("stripes of 0", &plain, &|m| slot(m, "af/stripes", json!(0))),
        ("stripes of 4294967295", &plain, &|m| slot(m, "af/stripes", json!(u32::MAX))),
        ("the hash of the spreading is \"crc32c\"", &plain, &|m| slot(m, "af/hash", json!("crc32c"))),
        ("the hash of the key derivation is \"sha1\"", &plain, &|m| slot(m, "kdf/hash", json!("sha1"))),
        ("iterations of PBKDF2 of 999", &plain, &|m| slot(m, "kdf/iterations", json!(999))),
        ("iterations of PBKDF2 of 4294967295", &plain, &|m| slot(m, "kdf/iterations", json!(u32::MAX))),
        ("a salt is \"0 bytes\"", &plain, &|m| slot(m, "kdf/salt", json!(""))),
        ("KiB of memory for Argon2 of 4294967295", &plain, &|m| {
            slot(
                m,
                "kdf",
                json!({"type": "argon2id", "time": 4, "memory": u32::MAX, "cpus": 1, "salt": "AAAAAAAAAAAAAAAA"}),
            );
        }),
        ("passes of Argon2 of 1000000", &plain, &|m| {
            slot(
                m,
                "kdf",
                json!({"type": "argon2id", "time": 1_000_000, "memory": 65536, "cpus": 1, "salt": "AAAAAAAAAAAAAAAA"}),
            );
        }),
        ("lanes of Argon2 of 0", &plain, &|m| {
            slot(
                m,
                "kdf",
                json!({"type": "argon2i", "time": 4, "memory": 65536, "cpus": 0, "salt": "AAAAAAAAAAAAAAAA"}),
            );
        }),
        ("key slot lies outside", &plain, &|m| slot(m, "area/offset", json!("16384"))),
        ("key slot lies outside", &plain, &|m| slot(m, "area/offset", json!(u64::MAX.to_string()))),
        ("key slot lies outside", &plain, &|m| slot(m, "area/size", json!("4096"))),
        ("key slot lies outside", &plain, &|m| slot(m, "area/size", json!(u64::MAX.to_string()))),
        ("a requirement is \"online-reencrypt\"", &plain, &|m| {
            m["config"]["requirements"] = json!({"mandatory": ["online-reencrypt"]});
        }),
        ("the number of key slots is \"2\"", &plain, &|m| m["keyslots"]["1"] = m["keyslots"]["0"].clone()),
        ("the number of segments is \"0\"", &plain, &|m| m["segments"] = json!({})),
        ("the number of digests is \"2\"", &plain, &|m| m["digests"]["1"] = m["digests"]["0"].clone()),
        ("what the digest is of", &plain, &|m| m["digests"]["0"]["segments"] = json!(["1"])),
        ("what the digest is of", &plain, &|m| m["digests"]["0"]["keyslots"] = json!([])),
        ("the digest is \"3 bytes\"", &plain, &|m| m["digests"]["0"]["digest"] = json!("AAAA")),
        ("the digest's hash is \"sha1\"", &plain, &|m| m["digests"]["0"]["hash"] = json!("sha1")),
        ("unknown field `extra`", &plain, &|m| m["config"]["extra"] = json!(1)),
        ("unknown field `extra`", &plain, &|m| {
            slot(
                m,
                "kdf",
                json!({"type": "pbkdf2", "hash": "sha256", "iterations": 1000, "salt": "AAAAAAAAAAAAAAAA", "extra": 1}),
            )
        }),
        ("missing field `digests`", &plain, &|m| _ = m.as_object_mut().unwrap().remove("digests")),
        ("has 16384 bytes by its own word", &plain, &|m| m["config"]["json_size"] = json!("16384")),
        ("key slots lie across", &plain, &|m| m["config"]["keyslots_size"] = json!(u64::MAX.to_string())),
        ("\"+5\" is no number", &plain, &|m| m["config"]["keyslots_size"] = json!("+5")),
    ];
    for (reason, volume, change) in changes {
        let error = Header::parse(&changed(&volume.image, change), DEVICE).unwrap_err().to_string();
        assert!(error.contains(reason) && error.contains("next:"), "{reason:?} was expected, and it said {error}");
    }
}

#[test]
fn what_does_not_matter_may_be_there() {
    let volume = volume(false);
    let image = changed(&volume.image, |m| {
        m["tokens"] = json!({"0": {"type": "systemd-tpm2", "keyslots": ["0"], "deep": [[[1]]]}});
        m["keyslots"]["0"]["priority"] = json!(2);
        m["config"]["flags"] = json!(["allow-discards", "no-journal"]);
        m["config"]["requirements"] = json!({"mandatory": []});
        m["segments"]["0"]["size"] = json!("4096");
    });
    assert_eq!(Header::parse(&image, DEVICE).unwrap().segment().length, 4096);
    assert_eq!(unlock(&image, &KEY).unwrap(), volume.volume_key);
}

#[test]
fn both_copies_must_be_whole_and_the_same() {
    let volume = volume(false);
    let damaged = |at: usize, to: u8| {
        let mut image = volume.image.clone();
        image[at] = to;
        Header::parse(&image, DEVICE).unwrap_err()
    };
    assert!(matches!(damaged(0, 0), Error::NotLuks));
    assert!(matches!(damaged(7, 1), Error::Version(1)));
    assert!(matches!(damaged(9, 1), Error::Field { what: "the size", .. }));
    assert!(matches!(damaged(72, b'x'), Error::Forbidden { what: "the checksum", .. }));
    assert!(matches!(damaged(BINARY + 3, 0), Error::Checksum("first")));
    assert!(matches!(damaged(NEW_SIZE - 1, 1), Error::Checksum("first")));
    assert!(matches!(damaged(NEW_SIZE, 0), Error::CopiesDiffer));
    assert!(matches!(damaged(NEW_SIZE + 200, 1), Error::Checksum("second")));
    assert!(matches!(damaged(NEW_SIZE + BINARY + 3, 0), Error::Checksum("second")));

    let mut two = volume.image.clone();
    let other = with_metadata(&volume.image, b"{}");
    two[NEW_SIZE..2 * NEW_SIZE].copy_from_slice(&other[NEW_SIZE..2 * NEW_SIZE]);
    assert!(matches!(Header::parse(&two, DEVICE), Err(Error::CopiesDiffer)));
    for length in [0, 100, BINARY, NEW_SIZE, 2 * NEW_SIZE - 1] {
        let error = Header::parse(&volume.image[..length], DEVICE).unwrap_err();
        assert!(matches!(error, Error::Truncated), "{length}: {error}");
    }
}

#[test]
fn metadata_that_nests_without_end_is_refused() {
    let volume = volume(false);
    let deep = [&b"{\"tokens\":"[..], &b"[".repeat(11_000)].concat();
    let error = Header::parse(&with_metadata(&volume.image, &deep), DEVICE).unwrap_err();
    assert!(matches!(error, Error::Metadata(_)), "{error}");
}

#[test]
fn a_device_too_small_for_a_header_is_refused() {
    for (device_size, sector_size) in [(0, 4096), (16 << 20, 4096), ((16 << 20) + 4095, 4096), (DEVICE, 513)] {
        let format = Format { device_size, sector_size, authenticated: false };
        assert!(NewVolume::create(format, &KEY).is_err());
    }
}

#[test]
fn an_authentication_area_must_fit_its_segment() {
    let segment = Segment { offset: 0, length: 1 << 20, sector_size: 4096, authenticated: true };
    let mut good = [0; IntegritySuperblock::LENGTH];
    good[..10].copy_from_slice(b"integrt\0\x04\x0f");
    good[10] = 32;
    good[16..24].copy_from_slice(&1024u64.to_le_bytes());
    good[24] = 8;
    good[28] = 3;
    assert_eq!(IntegritySuperblock::parse(&good, &segment).unwrap().provided_sectors, 1024);
    let provided = |sectors: u64| sectors.to_le_bytes();
    for (at, bytes) in [
        (0, &b"x"[..]),
        (8, &[0]),
        (8, &[6]),
        (10, &[16]),
        (16, &provided(0)),
        (16, &provided(1023)),
        (16, &provided(2048)),
        (16, &provided(u64::MAX - 7)),
        (24, &[2]),
        (24, &[4]),
        (28, &[0]),
    ] {
        let mut bad = good;
        bad[at..at + bytes.len()].copy_from_slice(bytes);
        assert!(IntegritySuperblock::parse(&bad, &segment).is_err(), "{bytes:?} at {at}");
    }
    assert!(matches!(IntegritySuperblock::parse(&good[..511], &segment), Err(Error::Truncated)));
}

#[test]
fn errors_quote_little_of_the_disk() {
    let volume = volume(false);
    let long = "x".repeat(5000);
    let image = changed(&volume.image, |m| m["segments"]["0"]["encryption"] = json!(long));
    assert!(Header::parse(&image, DEVICE).unwrap_err().to_string().len() < 200);
    let image = changed(&volume.image, |m| m[&long] = json!(1));
    assert!(Header::parse(&image, DEVICE).unwrap_err().to_string().len() < 400);
}

/// Puts a right checksum on whatever is in the first copy, as an attacker would, and makes the second one of it.
fn signed(mut first: Vec<u8>) -> Vec<u8> {
    let mut second = first.clone();
    second[..4].copy_from_slice(b"SKUL");
    second[256..264].copy_from_slice(&(NEW_SIZE as u64).to_be_bytes());
    for copy in [&mut first, &mut second] {
        copy[448..512].fill(0);
        let sum = digest::digest(&digest::SHA256, copy);
        copy[448..480].copy_from_slice(sum.as_ref());
    }
    [first, second].concat()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_make_it_panic(start in proptest::collection::vec(any::<u8>(), 0..6000), size in any::<u64>()) {
        let _ = Header::parse(&start, size);
        let _ = Header::parse(&[b"LUKS\xba\xbe\0\x02", &start[..]].concat(), size);
    }

    #[test]
    fn damage_under_a_right_checksum_never_makes_it_panic(
        damage in proptest::collection::vec((0..700usize, any::<u8>()), 1..4),
        size in prop_oneof![any::<u64>(), 0..2 * DEVICE],
    ) {
        let image = volume(true).image;
        let mut first = image[..NEW_SIZE].to_vec();
        for (at, to) in damage {
            first[BINARY + at] = to;
        }
        if let Ok(header) = Header::parse(&signed(first), size) {
            // What is taken lies within its bounds.
            let segment = header.segment();
            prop_assert!(segment.offset.checked_add(segment.length).is_some_and(|end| end <= size));
            prop_assert!(header.key_area().end <= segment.offset);
            prop_assert!(header.key_area().start >= 2 * NEW_SIZE as u64);
        }
    }

    #[test]
    fn any_value_anywhere_is_read_or_refused(
        pointer in proptest::sample::select(vec![
            "/keyslots/0/key_size", "/keyslots/0/af/stripes", "/keyslots/0/area/offset", "/keyslots/0/area/size",
            "/keyslots/0/kdf/iterations", "/keyslots/0/kdf/salt", "/keyslots/0/kdf", "/segments/0/offset", "/segments/0/size",
            "/segments/0/sector_size", "/segments/0/integrity", "/digests/0/digest", "/digests/0/iterations",
            "/config/json_size", "/config/keyslots_size", "/tokens", "/segments", "/keyslots",
        ]),
        value in prop_oneof![
            any::<u64>().prop_map(|number| json!(number)),
            any::<u64>().prop_map(|number| json!(number.to_string())),
            any::<String>().prop_map(|text| json!(text.chars().take(100).collect::<String>())),
            Just(json!(null)), Just(json!([])), Just(json!({})), Just(json!({"0": {}})),
        ],
    ) {
        let image = volume(true).image;
        let image = changed(&image, |metadata| *metadata.pointer_mut(pointer).unwrap() = value);
        if let Ok(header) = Header::parse(&image, DEVICE) {
            prop_assert!(header.segment().offset + header.segment().length <= DEVICE);
            prop_assert!(header.key_area().end <= header.segment().offset);
        }
    }
}
