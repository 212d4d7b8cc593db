//! Packets, and certificates made of them.
//!
//! Only what a signature needs is parsed, so that nothing else of rPGP is linked: no secret keys, nothing encrypted.

use std::io::Read as _;

use pgp::errors::{Error, Result};
use pgp::packet::{
    CompressedData, LiteralData, PacketParser, PublicKey, PublicSubkey, Signature, SignatureType, UserId,
};
use pgp::types::{KeyDetails, KeyVersion, Tag};

/// A packet of a kind that counts here.
pub(super) enum Packet {
    PublicKey(PublicKey),
    PublicSubkey(PublicSubkey),
    UserId(UserId),
    Signature(Signature),
    OnePassSignature,
    LiteralData(LiteralData),
    CompressedData(CompressedData),
    /// A key of a version or kind that isn't known, or what else may stand in a certificate.
    Other(Tag),
}

impl Packet {
    /// Parses at most `limit` packets.
    pub(super) fn parse(bytes: &[u8], limit: usize) -> Result<Vec<Self>> {
        let mut parser = PacketParser::new(bytes);
        let mut packets = Vec::new();
        while packets.len() < limit
            && let Some(next) = parser.next_ref()
        {
            let mut reader = next?;
            let (header, mut body) = (reader.packet_header(), Vec::new());
            reader.read_to_end(&mut body)?;
            let body = &body[..];
            let packet = match header.tag() {
                Tag::PublicKey => PublicKey::try_from_reader(header, body).map(Self::PublicKey),
                Tag::PublicSubkey => PublicSubkey::try_from_reader(header, body).map(Self::PublicSubkey),
                Tag::UserId => UserId::try_from_reader(header, body).map(Self::UserId),
                Tag::Signature => Signature::try_from_reader(header, body).map(Self::Signature),
                Tag::OnePassSignature => Ok(Self::OnePassSignature),
                Tag::LiteralData => LiteralData::try_from_reader(header, body).map(Self::LiteralData),
                Tag::CompressedData => CompressedData::try_from_reader(header, body).map(Self::CompressedData),
                // GnuPG keeps its own trust packets between those that count.
                Tag::Trust | Tag::Marker | Tag::Padding => continue,
                other => Ok(Self::Other(other)),
            };
            packets.push(match packet {
                Err(Error::Unsupported { .. }) => Self::Other(header.tag()),
                packet => packet?,
            });
        }
        Ok(packets)
    }
}

/// A primary key with all that stands behind it; nothing of it is verified.
#[derive(Clone, Debug)]
pub(super) struct Certificate {
    pub(super) primary: PublicKey,
    /// What is said of the primary key itself.
    pub(super) direct: Vec<Signature>,
    pub(super) users: Vec<(UserId, Vec<Signature>)>,
    pub(super) subkeys: Vec<(PublicSubkey, Vec<Signature>)>,
}

impl Certificate {
    /// Takes a ring of certificates apart; keys that aren't known are left out, with all that is said of them.
    pub(super) fn parse_ring(bytes: &[u8]) -> Result<Vec<Self>> {
        let mut certificates: Vec<Self> = Vec::new();
        let mut place = Place::Nowhere;
        for packet in Packet::parse(bytes, usize::MAX)? {
            match (packet, certificates.last_mut()) {
                (Packet::PublicKey(primary), _) if is_known(&primary) => {
                    let (direct, users, subkeys) = (Vec::new(), Vec::new(), Vec::new());
                    certificates.push(Self { primary, direct, users, subkeys });
                    place = Place::Primary;
                }
                (Packet::PublicKey(_) | Packet::Other(Tag::PublicKey | Tag::SecretKey), _) => place = Place::Nowhere,
                (_, None) => {}
                // Behind a primary key that isn't known nothing is of the certificate before it.
                _ if place == Place::Nowhere => {}
                (Packet::UserId(user), Some(certificate)) => {
                    certificate.users.push((user, Vec::new()));
                    place = Place::User;
                }
                (Packet::PublicSubkey(subkey), Some(certificate)) if is_known(&subkey) => {
                    certificate.subkeys.push((subkey, Vec::new()));
                    place = Place::Subkey;
                }
                (Packet::Signature(signature), Some(certificate)) => certificate.attach(signature, place),
                (_, Some(_)) => place = Place::Aside,
            }
        }
        Ok(certificates)
    }

    fn attach(&mut self, signature: Signature, place: Place) {
        // Wherever it was put, a revocation of the whole must not get lost.
        let revokes = signature.typ() == Some(SignatureType::KeyRevocation);
        let list = match place {
            _ if revokes => Some(&mut self.direct),
            Place::Primary => Some(&mut self.direct),
            Place::User => self.users.last_mut().map(|(_, signatures)| signatures),
            Place::Subkey => self.subkeys.last_mut().map(|(_, signatures)| signatures),
            Place::Aside | Place::Nowhere => None,
        };
        if let Some(list) = list {
            list.push(signature);
        }
    }
}

/// What the next signature is about.
#[derive(Clone, Copy, PartialEq)]
enum Place {
    Primary,
    User,
    Subkey,
    /// Something within a certificate that doesn't count.
    Aside,
    /// No certificate.
    Nowhere,
}

/// Older versions are named by digests that collide.
fn is_known(key: &impl KeyDetails) -> bool {
    matches!(key.version(), KeyVersion::V4 | KeyVersion::V6)
}
