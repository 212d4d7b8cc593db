//! The JSON part of a header: read with nothing in it left unknown, checked against what is allowed, and written.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use argon2::Algorithm;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::de::{Error as _, IgnoredAny};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::area::{Hash, Kdf, KeyDigest, KeySlot, MIN_ITERATIONS};
use super::binary::{BINARY, NEW_SIZE};
use super::error::excerpt;
use super::{Error, Segment};

/// All of the metadata, in the order in which cryptsetup writes it.
#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Metadata {
    keyslots: BTreeMap<String, SlotJson>,
    tokens: Tokens,
    segments: BTreeMap<String, SegmentJson>,
    digests: BTreeMap<String, DigestJson>,
    config: ConfigJson,
}

/// Hints where a key may be had, which nobody here follows or writes.
#[derive(Debug, Deserialize, Serialize)]
#[serde(from = "BTreeMap<String, IgnoredAny>")]
struct Tokens {}

impl From<BTreeMap<String, IgnoredAny>> for Tokens {
    fn from(_: BTreeMap<String, IgnoredAny>) -> Self {
        Self {}
    }
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SlotJson {
    #[serde(rename = "type")]
    kind: String,
    key_size: u32,
    /// In which order slots are tried.
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "there is one slot")]
    priority: Option<u8>,
    af: AfJson,
    area: AreaJson,
    kdf: KdfJson,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AfJson {
    #[serde(rename = "type")]
    kind: String,
    stripes: u32,
    hash: String,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct AreaJson {
    #[serde(rename = "type")]
    kind: String,
    offset: Decimal,
    size: Decimal,
    encryption: String,
    key_size: u32,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields, tag = "type")]
enum KdfJson {
    #[serde(rename = "pbkdf2")]
    Pbkdf2 { hash: String, iterations: u32, salt: Base64 },
    #[serde(rename = "argon2i")]
    Argon2i { time: u32, memory: u32, cpus: u32, salt: Base64 },
    #[serde(rename = "argon2id")]
    Argon2id { time: u32, memory: u32, cpus: u32, salt: Base64 },
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct SegmentJson {
    #[serde(rename = "type")]
    kind: String,
    offset: Decimal,
    /// A number of bytes, or `dynamic` for the rest of the device.
    size: String,
    iv_tweak: Decimal,
    encryption: String,
    sector_size: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    integrity: Option<IntegrityJson>,
    /// What reencryption and snapshots mark segments with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    flags: Option<Vec<String>>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct IntegrityJson {
    #[serde(rename = "type")]
    kind: String,
    journal_encryption: String,
    journal_integrity: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    key_size: Option<u32>,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct DigestJson {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: Base64,
    digest: Base64,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
struct ConfigJson {
    json_size: Decimal,
    keyslots_size: Decimal,
    /// How cryptsetup is to activate the volume; all of them are about speed.
    #[serde(default, skip_serializing)]
    #[expect(dead_code, reason = "the guest has its own way")]
    flags: Option<Vec<String>>,
    #[serde(default, skip_serializing)]
    requirements: Option<RequirementsJson>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RequirementsJson {
    #[serde(default)]
    mandatory: Vec<String>,
}

impl Metadata {
    pub(super) fn parse(json: &[u8]) -> Result<Self, Error> {
        // What the parser says may quote what the disk holds.
        serde_json::from_slice(json).map_err(|error| Error::Metadata(error.to_string().chars().take(200).collect()))
    }

    /// Everything that is needed of it, once it has been found to be allowed and within its bounds.
    pub(super) fn check(self, copy_size: u64, device_size: u64) -> Result<(KeySlot, Segment, KeyDigest), Error> {
        let requirements = self.config.requirements.map(|it| it.mandatory).unwrap_or_default();
        if let Some(requirement) = requirements.first() {
            return Err(Error::forbidden("a requirement", requirement, "none"));
        }
        if self.config.json_size.0 != copy_size - BINARY as u64 {
            return Err(Error::Layout(format!("the metadata has {} bytes by its own word", self.config.json_size.0)));
        }
        let (slot_name, slot) = only("the number of key slots", self.keyslots)?;
        let (segment_name, segment) = only("the number of segments", self.segments)?;
        let (_, digest) = only("the number of digests", self.digests)?;
        if digest.keyslots != [slot_name] || digest.segments != [segment_name] {
            return Err(Error::forbidden("what the digest is of", "another slot or segment", "the only one"));
        }

        let areas = 2 * copy_size;
        let areas_end = areas
            .checked_add(self.config.keyslots_size.0)
            .filter(|end| *end <= segment.offset.0)
            .ok_or_else(|| Error::Layout("the key slots lie across the segment".to_owned()))?;
        let segment = segment.check(device_size)?;
        let slot = slot.check(areas, areas_end, segment.key_length())?;
        Ok((slot, segment, digest.check()?))
    }

    /// Of a new volume, whose key slots have `keyslots_size` bytes.
    pub(super) fn new(slot: &KeySlot, segment: &Segment, digest: &KeyDigest, keyslots_size: u64) -> Self {
        let (name, cipher) = ("0".to_owned(), CIPHER.to_owned());
        let slot = SlotJson {
            kind: "luks2".to_owned(),
            key_size: slot.key_length as u32,
            priority: None,
            af: AfJson { kind: "luks1".to_owned(), stripes: slot.stripes as u32, hash: slot.hash.name() },
            area: AreaJson {
                kind: "raw".to_owned(),
                offset: Decimal(slot.offset),
                size: Decimal(slot.size),
                encryption: cipher.clone(),
                key_size: CIPHER_KEY,
            },
            kdf: KdfJson::of(&slot.kdf),
        };
        let integrity = segment.authenticated.then(|| IntegrityJson {
            kind: HMAC.to_owned(),
            journal_encryption: "none".to_owned(),
            journal_integrity: "none".to_owned(),
            key_size: None,
        });
        let segment = SegmentJson {
            kind: "crypt".to_owned(),
            offset: Decimal(segment.offset),
            size: DYNAMIC.to_owned(),
            iv_tweak: Decimal(0),
            encryption: cipher,
            sector_size: segment.sector_size,
            integrity,
            flags: None,
        };
        let digest = DigestJson {
            kind: "pbkdf2".to_owned(),
            keyslots: vec![name.clone()],
            segments: vec![name.clone()],
            hash: digest.hash.name(),
            iterations: digest.iterations.get(),
            salt: Base64(digest.salt.clone()),
            digest: Base64(digest.digest.clone()),
        };
        let json_size = Decimal((NEW_SIZE - BINARY) as u64);
        let config = ConfigJson { json_size, keyslots_size: Decimal(keyslots_size), flags: None, requirements: None };
        Self {
            keyslots: BTreeMap::from([(name.clone(), slot)]),
            tokens: Tokens {},
            segments: BTreeMap::from([(name.clone(), segment)]),
            digests: BTreeMap::from([(name, digest)]),
            config,
        }
    }

    pub(super) fn to_json(&self) -> Result<Vec<u8>, Error> {
        serde_json::to_vec(self).map_err(|error| Error::Metadata(error.to_string()))
    }
}

impl SlotJson {
    fn check(self, areas: u64, areas_end: u64, key_length: usize) -> Result<KeySlot, Error> {
        allow("the kind of the key slot", &self.kind, "luks2")?;
        allow("the spreading of the key", &self.af.kind, "luks1")?;
        allow("the kind of the key slot's area", &self.area.kind, "raw")?;
        // Under a null cipher whoever writes the disk would choose the volume's key.
        allow("the key slot's cipher", &self.area.encryption, CIPHER)?;
        allow_key("the key of the key slot's cipher", self.area.key_size, CIPHER_KEY, "64 bytes")?;
        if self.key_size as usize != key_length {
            let allowed = if key_length == CIPHER_KEY as usize { "64 bytes" } else { "96 bytes" };
            return Err(Error::forbidden("the volume's key", format!("{} bytes", self.key_size), allowed));
        }
        let stripes = cost("stripes", self.af.stripes, 1, MAX_STRIPES)?;
        let slot = KeySlot {
            offset: self.area.offset.0,
            size: self.area.size.0,
            key_length,
            stripes: stripes as usize,
            hash: Hash::parse("the hash of the spreading", &self.af.hash)?,
            kdf: self.kdf.check()?,
        };
        let fits = slot.offset >= areas
            && slot.offset.is_multiple_of(512)
            && slot.offset.checked_add(slot.size).is_some_and(|end| end <= areas_end)
            && slot.area().end <= slot.offset + slot.size;
        if fits { Ok(slot) } else { Err(Error::Layout("the key slot lies outside of its area".to_owned())) }
    }
}

impl KdfJson {
    fn check(self) -> Result<Kdf, Error> {
        match self {
            Self::Pbkdf2 { hash, iterations, salt } => Ok(Kdf::Pbkdf2 {
                hash: Hash::parse("the hash of the key derivation", &hash)?,
                iterations: iteration_count(iterations)?,
                salt: salt.check()?,
            }),
            Self::Argon2i { time, memory, cpus, salt } => argon2(Algorithm::Argon2i, time, memory, cpus, salt),
            Self::Argon2id { time, memory, cpus, salt } => argon2(Algorithm::Argon2id, time, memory, cpus, salt),
        }
    }

    fn of(kdf: &Kdf) -> Self {
        match kdf {
            Kdf::Pbkdf2 { hash, iterations, salt } => {
                Self::Pbkdf2 { hash: hash.name(), iterations: iterations.get(), salt: Base64(salt.clone()) }
            }
            Kdf::Argon2 { variant, passes: time, memory, lanes: cpus, salt } => {
                let (time, memory, cpus, salt) = (*time, *memory, *cpus, Base64(salt.clone()));
                match variant {
                    Algorithm::Argon2i => Self::Argon2i { time, memory, cpus, salt },
                    _ => Self::Argon2id { time, memory, cpus, salt },
                }
            }
        }
    }
}

fn argon2(variant: Algorithm, time: u32, memory: u32, cpus: u32, salt: Base64) -> Result<Kdf, Error> {
    let lanes = cost("lanes of Argon2", cpus, 1, MAX_LANES)?;
    let memory = cost("KiB of memory for Argon2", memory, 8 * lanes, MAX_MEMORY)?;
    let passes = cost("passes of Argon2", time, 1, MAX_WORK / memory)?;
    Ok(Kdf::Argon2 { variant, passes, memory, lanes, salt: salt.check()? })
}

impl SegmentJson {
    fn check(self, device_size: u64) -> Result<Segment, Error> {
        allow("the kind of the segment", &self.kind, "crypt")?;
        allow("the segment's cipher", &self.encryption, CIPHER)?;
        if let Some(flag) = self.flags.unwrap_or_default().first() {
            return Err(Error::forbidden("a flag of the segment", flag, "none"));
        }
        if self.iv_tweak.0 != 0 {
            return Err(Error::forbidden("the first sector's number", self.iv_tweak.0.to_string(), "0"));
        }
        if let Some(integrity) = &self.integrity {
            allow("the segment's authentication", &integrity.kind, HMAC)?;
            allow("the journal's encryption", &integrity.journal_encryption, "none")?;
            allow("the journal's authentication", &integrity.journal_integrity, "none")?;
            allow_key("the key of the authentication", integrity.key_size.unwrap_or(HMAC_KEY), HMAC_KEY, "32 bytes")?;
        }
        let rest = Segment::whole(self.offset.0, device_size, self.sector_size, self.integrity.is_some())?;
        if self.size == DYNAMIC {
            return Ok(rest);
        }
        let length = decimal(&self.size)
            .filter(|length| *length > 0 && *length <= rest.length && length.is_multiple_of(rest.sector_size.into()));
        let length = length.ok_or_else(|| {
            Error::Layout(format!("the segment's length {} is none that the device has", excerpt(&self.size)))
        })?;
        Ok(Segment { length, ..rest })
    }
}

impl DigestJson {
    fn check(self) -> Result<KeyDigest, Error> {
        allow("the kind of the digest", &self.kind, "pbkdf2")?;
        let hash = Hash::parse("the digest's hash", &self.hash)?;
        if self.digest.0.len() != hash.length() {
            return Err(Error::forbidden("the digest", format!("{} bytes", self.digest.0.len()), "one whole hash"));
        }
        let iterations = iteration_count(self.iterations)?;
        Ok(KeyDigest { hash, iterations, salt: self.salt.check()?, digest: self.digest.0 })
    }
}

impl Hash {
    fn parse(what: &'static str, name: &str) -> Result<Self, Error> {
        match name {
            "sha256" => Ok(Self::Sha256),
            "sha512" => Ok(Self::Sha512),
            _ => Err(Error::forbidden(what, name, "sha256 or sha512")),
        }
    }

    fn name(self) -> String {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
        .to_owned()
    }
}

/// A sector size that dm-crypt and LUKS2 know.
pub(super) fn check_sector_size(size: u32) -> Result<(), Error> {
    if [512, 1024, 2048, 4096].contains(&size) {
        Ok(())
    } else {
        Err(Error::forbidden("the sector size", size.to_string(), "512, 1024, 2048 or 4096"))
    }
}

fn only<T>(what: &'static str, mut entries: BTreeMap<String, T>) -> Result<(String, T), Error> {
    let count = entries.len();
    match (entries.pop_first(), count) {
        (Some(entry), 1) => Ok(entry),
        _ => Err(Error::forbidden(what, count.to_string(), "1")),
    }
}

fn allow(what: &'static str, found: &str, allowed: &'static str) -> Result<(), Error> {
    if found == allowed { Ok(()) } else { Err(Error::forbidden(what, found, allowed)) }
}

fn allow_key(what: &'static str, found: u32, allowed: u32, text: &'static str) -> Result<(), Error> {
    if found == allowed { Ok(()) } else { Err(Error::forbidden(what, format!("{found} bytes"), text)) }
}

fn cost(what: &'static str, found: u32, least: u32, most: u32) -> Result<u32, Error> {
    if (least..=most).contains(&found) {
        return Ok(found);
    }
    Err(Error::Cost { what, found: found.into(), least: least.into(), most: most.into() })
}

fn iteration_count(found: u32) -> Result<NonZeroU32, Error> {
    let count = cost("iterations of PBKDF2", found, MIN_ITERATIONS.get(), MAX_ITERATIONS)?;
    Ok(NonZeroU32::new(count).unwrap_or(MIN_ITERATIONS))
}

/// A number of bytes, which JSON holds as a string.
#[derive(Clone, Copy, Debug)]
struct Decimal(u64);

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        decimal(&text).map(Self).ok_or_else(|| D::Error::custom(format!("{} is no number", excerpt(&text))))
    }
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&self.0)
    }
}

fn decimal(text: &str) -> Option<u64> {
    text.parse().ok().filter(|_| text.bytes().all(|byte| byte.is_ascii_digit()))
}

#[derive(Debug)]
struct Base64(Vec<u8>);

impl Base64 {
    /// As a salt.
    fn check(self) -> Result<Vec<u8>, Error> {
        if (8..=64).contains(&self.0.len()) {
            return Ok(self.0);
        }
        Err(Error::forbidden("a salt", format!("{} bytes", self.0.len()), "8 to 64 bytes"))
    }
}

impl<'de> Deserialize<'de> for Base64 {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(&text).map(Self).map_err(|_| D::Error::custom(format!("{} is no base64", excerpt(&text))))
    }
}

impl Serialize for Base64 {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

const CIPHER: &str = "aes-xts-plain64";
const CIPHER_KEY: u32 = 64;
const HMAC: &str = "hmac(sha256)";
const HMAC_KEY: u32 = 32;
const DYNAMIC: &str = "dynamic";
/// cryptsetup's own number is 4000.
const MAX_STRIPES: u32 = 5000;
/// About a minute under software emulation; cryptsetup sets what takes two seconds on its machine.
const MAX_ITERATIONS: u32 = 20_000_000;
const MAX_LANES: u32 = 16;
/// KiB; also what cryptsetup chooses at most.
const MAX_MEMORY: u32 = 1 << 20;
/// KiB that all passes together may go over: what takes cryptsetup two seconds on a fast machine, many times.
const MAX_WORK: u32 = 32 << 20;
