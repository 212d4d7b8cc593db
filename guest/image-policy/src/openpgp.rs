//! OpenPGP: rings of public keys, and messages with one signature.
//!
//! Packets are parsed and hashed by rPGP; every signature, those within keys included, is verified by aws-lc. A key
//! counts only with what it says of itself: expiry, revocation and what it may sign are read from self-signatures.
//!
//! Source: RFC 9580, with RFC 4880 for what older keys look like.

mod algorithm;
mod packets;

use std::io::Read as _;
use std::iter::once;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pgp::armor::Dearmor;
use pgp::packet::{PublicSubkey, Signature, SignatureType, SubpacketData};
use pgp::types::{KeyDetails, Tag};

use algorithm::Verified;
use packets::{Certificate, Packet};

/// Certificates, each a primary key with its subkeys.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ring(Vec<Certificate>);

impl Ring {
    /// Adds the certificates of a binary ring or of armored blocks.
    ///
    /// Keys of kinds that aren't known here are left out.
    ///
    /// # Errors
    /// [`OpenPgpError::Ring`] if that is not what `bytes` are, or there is no certificate in them.
    pub(crate) fn add(&mut self, bytes: &[u8]) -> Result<(), OpenPgpError> {
        if bytes.len() > MAX_RING {
            return Err(OpenPgpError::Ring(format!("it is larger than {MAX_RING} bytes")));
        }
        let before = self.0.len();
        match bytes.first().is_some_and(|first| first & 0x80 != 0) {
            true => self.add_binary(bytes)?,
            false => {
                let text = std::str::from_utf8(bytes)
                    .map_err(|_| OpenPgpError::Ring("it is neither binary nor armored".to_owned()))?;
                for (start, _) in text.match_indices(ARMOR) {
                    let mut binary = Vec::new();
                    Dearmor::new(&bytes[start..])
                        .read_to_end(&mut binary)
                        .map_err(|e| OpenPgpError::Ring(e.to_string()))?;
                    self.add_binary(&binary)?;
                }
            }
        }
        match self.0.len() > before {
            true => Ok(()),
            false => Err(OpenPgpError::Ring("it has no public key".to_owned())),
        }
    }

    /// Checks a signed message and gives what was signed.
    ///
    /// The key must be able to sign, and be neither expired nor revoked at `now`.
    ///
    /// # Errors
    /// Any [`OpenPgpError`] but [`OpenPgpError::Ring`].
    pub(crate) fn verify(&self, message: &[u8], now: SystemTime) -> Result<Signed, OpenPgpError> {
        let now = seconds(now);
        let (signature, content) = open(message)?;
        if signature.typ() != Some(SignatureType::Binary) {
            return Err(OpenPgpError::Message("its signature is not over a document".to_owned()));
        }
        let created = signature.created().map(|it| u64::from(it.as_secs())).ok_or(OpenPgpError::Undated)?;
        let mut refusal = OpenPgpError::UnknownKey(issuer(&signature));
        for certificate in &self.0 {
            let primary = Verified(&certificate.primary);
            let checked = if is_issuer(&signature, &certificate.primary) {
                signature
                    .verify(&primary, &content[..])
                    .map_err(|e| OpenPgpError::Bad { key: fingerprint(&primary), cause: e.to_string() })
                    .and_then(|()| certificate.primary_may_sign(now))
            } else if let Some((subkey, about)) =
                certificate.subkeys.iter().find(|(subkey, _)| is_issuer(&signature, subkey))
            {
                let key = Verified(subkey);
                signature
                    .verify(&key, &content[..])
                    .map_err(|e| OpenPgpError::Bad { key: fingerprint(&key), cause: e.to_string() })
                    .and_then(|()| certificate.subkey_may_sign(subkey, about, now))
            } else {
                continue;
            };
            match checked.and_then(|key_created| in_time(&signature, created, key_created, now)) {
                Ok(()) => return Ok(Signed { content, signer: fingerprint(&primary) }),
                Err(error) => refusal = error,
            }
        }
        Err(refusal)
    }

    fn add_binary(&mut self, bytes: &[u8]) -> Result<(), OpenPgpError> {
        let certificates = Certificate::parse_ring(bytes).map_err(|e| OpenPgpError::Ring(e.to_string()))?;
        self.0.extend(certificates);
        match self.0.len() > MAX_CERTIFICATES {
            true => Err(OpenPgpError::Ring(format!("it has more than {MAX_CERTIFICATES} certificates"))),
            false => Ok(()),
        }
    }
}

/// A message whose signature was verified.
#[derive(Debug)]
pub(crate) struct Signed {
    pub(crate) content: Vec<u8>,
    /// The fingerprint of the certificate's primary key.
    pub(crate) signer: String,
}

/// Why a key ring, or a message, is not good.
#[derive(Debug, thiserror::Error)]
pub enum OpenPgpError {
    #[error("it is not a ring of OpenPGP keys: {0}")]
    Ring(String),
    #[error("it is not a signed OpenPGP message: {0}")]
    Message(String),
    #[error("its signature has no date")]
    Undated,
    #[error("it is signed by a key that the policy doesn't have: {0}")]
    UnknownKey(String),
    #[error("its signature is not by key {key}: {cause}")]
    Bad { key: String, cause: String },
    #[error("key {0} is revoked")]
    Revoked(String),
    #[error("key {key} expired at {at} seconds since 1970")]
    Expired { key: String, at: u64 },
    #[error("key {0} has no valid signature of its own, so that nothing is known of it")]
    NoSelfSignature(String),
    #[error("key {0} may not sign documents")]
    NotForSigning(String),
    #[error("its signature is dated {created}, before its key or after the clock's {now} seconds since 1970")]
    Date { created: u64, now: u64 },
    #[error("its signature expired at {0} seconds since 1970")]
    SignatureExpired(u64),
}

/// What a certificate says about itself, as of a time. Times are seconds since 1970.
impl Certificate {
    /// When the primary key was made, if it may sign at `now`.
    fn primary_may_sign(&self, now: u64) -> Result<u64, OpenPgpError> {
        let newest = self.valid(now)?;
        // Keys that don't say what they are for are for all that their algorithm can do.
        match has_flags(newest) && !newest.key_flags().sign() {
            true => Err(OpenPgpError::NotForSigning(fingerprint(&self.primary))),
            false => Ok(made(&self.primary)),
        }
    }

    /// When the subkey was made, if it may sign at `now`; `about` is what is said of it.
    fn subkey_may_sign(&self, subkey: &PublicSubkey, about: &[Signature], now: u64) -> Result<u64, OpenPgpError> {
        self.valid(now)?;
        let (primary, key) = (Verified(&self.primary), Verified(subkey));
        let by_primary = |signature: &&Signature| signature.verify_subkey_binding(&primary, &key).is_ok();
        let of_type = |typ| about.iter().filter(move |signature| signature.typ() == Some(typ));
        if of_type(SignatureType::SubkeyRevocation).any(|revocation| by_primary(&revocation)) {
            return Err(OpenPgpError::Revoked(fingerprint(&key)));
        }
        let newest = newest(of_type(SignatureType::SubkeyBinding).filter(by_primary), now)
            .ok_or_else(|| OpenPgpError::NoSelfSignature(fingerprint(&key)))?;
        unexpired(&key, newest, now)?;
        // Without the subkey's own consent anyone could bind another's signing key to a certificate.
        let consents = newest.embedded_signature().is_some_and(|back| {
            back.typ() == Some(SignatureType::KeyBinding) && back.verify_primary_key_binding(&key, &primary).is_ok()
        });
        match newest.key_flags().sign() && consents {
            true => Ok(made(&key)),
            false => Err(OpenPgpError::NotForSigning(fingerprint(&key))),
        }
    }

    /// The newest self-signature, if the primary key is neither expired nor revoked.
    fn valid(&self, now: u64) -> Result<&Signature, OpenPgpError> {
        let primary = Verified(&self.primary);
        let of_type = |typ| {
            let of_type = self.direct.iter().filter(move |signature| signature.typ() == Some(typ));
            of_type.filter(|signature| signature.verify_key(&primary).is_ok())
        };
        // What a revocation says of its reason and date doesn't matter: a stolen key can date its signatures back.
        if of_type(SignatureType::KeyRevocation).next().is_some() {
            return Err(OpenPgpError::Revoked(fingerprint(&primary)));
        }
        let of_users = self.users.iter().filter_map(|(user, about)| {
            let by_primary =
                |signature: &&Signature| signature.verify_certification(&primary, Tag::UserId, user).is_ok();
            let revoked = about.iter().filter(|it| it.typ() == Some(SignatureType::CertRevocation));
            let revoked = revoked.filter(by_primary).filter_map(date).max();
            let certified = about.iter().filter(|it| it.typ() != Some(SignatureType::CertRevocation));
            let newest = newest(certified.filter(by_primary), now)?;
            (revoked < date(newest)).then_some(newest)
        });
        let newest = newest(of_type(SignatureType::Key).chain(of_users), now)
            .ok_or_else(|| OpenPgpError::NoSelfSignature(fingerprint(&primary)))?;
        unexpired(&primary, newest, now)?;
        Ok(newest)
    }
}

/// Takes a message apart: its one signature and what is signed.
fn open(message: &[u8]) -> Result<(Signature, Vec<u8>), OpenPgpError> {
    let parse = |bytes: &[u8]| Packet::parse(bytes, MAX_PACKETS).map_err(|e| OpenPgpError::Message(e.to_string()));
    let mut packets = parse(message)?;
    if let [Packet::CompressedData(compressed)] = &packets[..] {
        let broken = |cause: String| OpenPgpError::Message(format!("it can't be decompressed: {cause}"));
        let mut inner = Vec::new();
        let decompressor = compressed.decompress().map_err(|e| broken(e.to_string()))?;
        decompressor.take(MAX_MESSAGE + 1).read_to_end(&mut inner).map_err(|e| broken(e.to_string()))?;
        if inner.len() as u64 > MAX_MESSAGE {
            return Err(broken(format!("it is larger than {MAX_MESSAGE} bytes")));
        }
        packets = parse(&inner)?;
    }
    let mut packets = packets.into_iter();
    match (packets.next(), packets.next(), packets.next(), packets.next()) {
        (Some(Packet::OnePassSignature), Some(Packet::LiteralData(data)), Some(Packet::Signature(signature)), None)
        | (Some(Packet::Signature(signature)), Some(Packet::LiteralData(data)), None, None) => {
            Ok((signature, data.data().to_vec()))
        }
        _ => Err(OpenPgpError::Message("it is not one document with one signature".to_owned())),
    }
}

/// The newest signature that isn't from the future and hasn't expired; of several with one date the one that lets the
/// key expire first.
fn newest<'a>(signatures: impl Iterator<Item = &'a Signature>, now: u64) -> Option<&'a Signature> {
    let current = signatures.filter(|signature| {
        let created = date(signature);
        created.is_some_and(|created| {
            created <= now.saturating_add(TOLERANCE) && signature_end(signature, created).is_none_or(|end| end > now)
        })
    });
    current.max_by_key(|signature| {
        let lifetime = signature.key_expiration_time().map(|it| it.as_secs()).filter(|&seconds| seconds > 0);
        (date(signature), std::cmp::Reverse(lifetime.unwrap_or(u32::MAX)))
    })
}

fn unexpired(key: &impl KeyDetails, newest: &Signature, now: u64) -> Result<(), OpenPgpError> {
    let lifetime = newest.key_expiration_time().map(|it| u64::from(it.as_secs())).filter(|&seconds| seconds > 0);
    match lifetime.map(|seconds| made(key).saturating_add(seconds)) {
        Some(at) if at <= now => Err(OpenPgpError::Expired { key: fingerprint(key), at }),
        _ => Ok(()),
    }
}

fn in_time(signature: &Signature, created: u64, key_created: u64, now: u64) -> Result<(), OpenPgpError> {
    if created < key_created || created > now.saturating_add(TOLERANCE) {
        return Err(OpenPgpError::Date { created, now });
    }
    match signature_end(signature, created) {
        Some(end) if end <= now => Err(OpenPgpError::SignatureExpired(end)),
        _ => Ok(()),
    }
}

fn signature_end(signature: &Signature, created: u64) -> Option<u64> {
    let lifetime = signature.signature_expiration_time().map(|it| u64::from(it.as_secs()));
    lifetime.filter(|&seconds| seconds > 0).map(|seconds| created.saturating_add(seconds))
}

fn has_flags(signature: &Signature) -> bool {
    signature.config().is_some_and(|config| {
        config.hashed_subpackets().any(|subpacket| matches!(subpacket.data, SubpacketData::KeyFlags(_)))
    })
}

/// Whether a signature says that it is by a key; one that says nothing may be by any.
fn is_issuer(signature: &Signature, key: &impl KeyDetails) -> bool {
    let (ids, fingerprints) = (signature.issuer_key_id(), signature.issuer_fingerprint());
    match (ids.is_empty(), fingerprints.is_empty()) {
        (true, true) => true,
        (_, false) => fingerprints.contains(&&key.fingerprint()),
        (false, true) => ids.contains(&&key.legacy_key_id()),
    }
}

fn issuer(signature: &Signature) -> String {
    let fingerprints = signature.issuer_fingerprint().into_iter().map(|it| hex::encode_upper(it.as_bytes()));
    let ids = signature.issuer_key_id().into_iter().map(hex::encode_upper);
    fingerprints.chain(ids).chain(once("unnamed".to_owned())).next().unwrap_or_default()
}

fn fingerprint(key: &impl KeyDetails) -> String {
    hex::encode_upper(key.fingerprint().as_bytes())
}

fn date(signature: &Signature) -> Option<u64> {
    signature.created().map(|it| u64::from(it.as_secs()))
}

fn made(key: &impl KeyDetails) -> u64 {
    u64::from(key.created_at().as_secs())
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs()
}

const ARMOR: &str = "-----BEGIN PGP PUBLIC KEY BLOCK-----";
const MAX_RING: usize = 8 << 20;
const MAX_CERTIFICATES: usize = 1024;
/// A payload has at most 64 KiB, and little is around it.
const MAX_MESSAGE: u64 = 128 << 10;
/// One more than a message can have.
const MAX_PACKETS: usize = 4;
/// How far a signer's clock may be ahead, in seconds.
const TOLERANCE: u64 = 300;

#[cfg(test)]
mod tests;
