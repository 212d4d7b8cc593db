//! The extractor `corim`: a Concise Reference Integrity Manifest in CBOR (draft-ietf-rats-corim), plain (tag 501) or
//! signed (COSE_Sign1, tag 18), with or without the older tags 500 and 502 around it.
//!
//! Its CoMID tags give the values; see the module `comid`. The validity of the manifest and that of its signature both
//! bound them.

use ciborium::Value;
use store::clock::Timestamp;

use super::cbor::{bytes, encoded, items, member, parse, text_member};
use super::comid::References;
use super::{Curve, Extract, Signed, Validity};
use crate::Error;

/// The reference values of a manifest.
pub(super) fn extract(payload: &[u8]) -> Result<Extract, Error> {
    let mut outer = parse(payload)?;
    while let Value::Tag(500 | 502, inner) = outer {
        outer = *inner;
    }
    match outer {
        Value::Tag(501, manifest) => read(&manifest, Validity::default(), None),
        Value::Tag(18, sign1) => from_sign1(&sign1),
        _ => Err(Error::Payload("it is neither a CoRIM (CBOR tag 501) nor a signed one (tag 18)")),
    }
}

fn from_sign1(sign1: &Value) -> Result<Extract, Error> {
    let [protected, _unprotected, payload, signature] = items(sign1)? else {
        return Err(Error::Payload("its COSE_Sign1 has not four items"));
    };
    let header = parse(bytes(protected)?)?;
    if member(&header, 2)?.is_some() {
        return Err(Error::Payload("its signature has a critical header, and this Trustee knows none"));
    }
    if !text_member(&header, 3)?.is_some_and(|content| CONTENT_TYPES.contains(&content)) {
        return Err(Error::Payload("its signature is not one of the content type application/rim+cbor"));
    }
    let signed = Signed::Cose {
        covered: sig_structure(protected, payload)?,
        signature: bytes(signature)?.to_vec(),
        curve: curve_of(member(&header, 1)?)?,
    };
    match parse(bytes(payload)?)? {
        Value::Tag(501, manifest) => read(&manifest, validity_of_header(&header)?, Some(signed)),
        _ => Err(Error::Payload("its signature covers no CoRIM (CBOR tag 501)")),
    }
}

fn read(manifest: &Value, validity: Validity, signed: Option<Signed>) -> Result<Extract, Error> {
    let own = member(manifest, 4)?.map_or(Ok(Validity::default()), |map| validity_of(map, 0, 1))?;
    let mut references = References::default();
    for tag in items(member(manifest, 1)?.ok_or(Error::Payload("it has no tags"))?)? {
        if let Some(comid) = comid_of(tag)? {
            references.add(&comid)?;
        }
    }
    Ok(Extract { values: references.into_values(), validity: own.and(validity), signed })
}

/// A CoMID is bytes under the tag 506; older writers have the tag inside of the bytes, or no bytes at all. Other tags
/// (CoSWID 505, CoTL 508) hold no reference values for this extractor.
fn comid_of(tag: &Value) -> Result<Option<Value>, Error> {
    match tag {
        Value::Tag(506, comid) => match &**comid {
            Value::Bytes(comid) => parse(comid).map(Some),
            comid => Ok(Some(comid.clone())),
        },
        Value::Bytes(tagged) => match parse(tagged)? {
            Value::Tag(506, comid) => Ok(Some(*comid)),
            _ => Ok(None),
        },
        _ => Ok(None),
    }
}

/// The encoded Sig_structure of RFC 9052 section 4.4, with the protected header's bytes as they came.
fn sig_structure(protected: &Value, payload: &Value) -> Result<Vec<u8>, Error> {
    let context = Value::from("Signature1");
    encoded(&Value::Array(vec![context, protected.clone(), Value::Bytes(Vec::new()), payload.clone()]))
}

/// ES256, ES384 and EdDSA, or the names of RFC 9864 for them with their curves.
fn curve_of(algorithm: Option<&Value>) -> Result<Curve, Error> {
    match algorithm.and_then(Value::as_integer).and_then(|id| i64::try_from(id).ok()) {
        Some(-7 | -9) => Ok(Curve::P256),
        Some(-35 | -51) => Ok(Curve::P384),
        Some(-8 | -19) => Ok(Curve::Ed25519),
        _ => Err(Error::Payload("its signature is none of ES256, ES384 and EdDSA")),
    }
}

/// What the protected header says: in its CoRIM meta (8), bytes of CBOR, or in its CWT claims (15).
fn validity_of_header(header: &Value) -> Result<Validity, Error> {
    let mut validity = Validity::default();
    if let Some(meta) = member(header, 8)? {
        let meta = parse(bytes(meta)?)?;
        validity = member(&meta, 1)?.map_or(Ok(validity), |map| validity_of(map, 0, 1))?;
    }
    match member(header, 15)? {
        Some(claims) => Ok(validity.and(validity_of(claims, 5, 4)?)),
        None => Ok(validity),
    }
}

fn validity_of(map: &Value, from: i64, until: i64) -> Result<Validity, Error> {
    let time = |key| member(map, key)?.map(time_of).transpose();
    Ok(Validity { from: time(from)?, until: time(until)? })
}

/// Seconds since 1970, with the tag 1 of times or without.
fn time_of(value: &Value) -> Result<Timestamp, Error> {
    let value = match value {
        Value::Tag(1, inner) => inner,
        other => other,
    };
    let seconds = match value {
        Value::Integer(seconds) => u64::try_from(*seconds).ok(),
        // A cast of a float saturates, and so does a timestamp.
        Value::Float(seconds) if *seconds >= 0.0 => Some(*seconds as u64),
        _ => None,
    };
    seconds.map(Timestamp::from_unix).ok_or(Error::Payload("its validity is not in seconds since 1970"))
}

/// The second is that of the drafts before 2023.
const CONTENT_TYPES: [&str; 2] = ["application/rim+cbor", "application/corim-unsigned+cbor"];

#[cfg(test)]
mod tests {
    use super::super::extract;
    use super::*;
    use coset::{CoseSign1Builder, HeaderBuilder, TaggedCborSerializable as _, iana};
    use proptest::prelude::*;

    fn map(members: &[(i64, Value)]) -> Value {
        Value::Map(members.iter().map(|(key, value)| (Value::from(*key), value.clone())).collect())
    }

    fn tag(tag: u64, value: Value) -> Value {
        Value::Tag(tag, Box::new(value))
    }

    fn encoded(value: &Value) -> Vec<u8> {
        super::encoded(value).unwrap()
    }

    fn comid() -> Value {
        let class = map(&[(1, "ACME".into()), (2, "RoadRunner".into())]);
        let digests = Value::Array(vec![Value::Array(vec![Value::from(1), Value::Bytes(vec![0xab; 32])])]);
        let measurement = map(&[(1, map(&[(2, digests)]))]);
        let triple = Value::Array(vec![map(&[(0, class)]), Value::Array(vec![measurement])]);
        map(&[(1, map(&[(0, "id".into())])), (4, map(&[(0, Value::Array(vec![triple]))]))])
    }

    fn manifest(tags: Vec<Value>, validity: &[(i64, Value)]) -> Value {
        tag(501, map(&[(0, "corim".into()), (1, Value::Array(tags)), (4, map(validity))]))
    }

    fn names(payload: &Value) -> Vec<String> {
        extract("corim", &encoded(payload)).unwrap().values.into_keys().collect()
    }

    #[test]
    fn every_wrapping_of_a_manifest_is_read() {
        let inside = Value::Bytes(encoded(&tag(506, comid())));
        for comid in [tag(506, Value::Bytes(encoded(&comid()))), tag(506, comid()), inside] {
            let other = tag(505, Value::Bytes(vec![0xff]));
            let plain = manifest(vec![other, comid], &[]);
            for wrapped in [plain.clone(), tag(500, plain.clone()), tag(500, tag(502, plain))] {
                assert_eq!(names(&wrapped), ["ACME/RoadRunner/digests"]);
            }
        }
    }

    #[test]
    fn what_a_signature_covers_is_what_another_implementation_signs() {
        let meta =
            map(&[(0, map(&[(0, "signer".into())])), (1, map(&[(0, tag(1, 50.into())), (1, tag(1, 90.into()))]))]);
        let claims = map(&[(4, 80.into())]);
        let header = HeaderBuilder::new()
            .algorithm(iana::Algorithm::ES384)
            .content_type("application/rim+cbor".to_owned())
            .value(8, Value::Bytes(encoded(&meta)))
            .value(15, claims)
            .build();
        let plain = manifest(vec![tag(506, comid())], &[(0, tag(1, 60.into())), (1, tag(1, Value::Float(99.5)))]);
        let mut expected = Vec::new();
        let sign1 =
            CoseSign1Builder::new().protected(header).payload(encoded(&plain)).create_signature(b"", |covered| {
                expected = covered.to_vec();
                vec![7; 96]
            });
        let payload = sign1.build().to_tagged_vec().unwrap();

        let extract = extract("corim", &payload).unwrap();
        let Some(Signed::Cose { covered, signature, curve }) = extract.signed else { panic!("no signature") };
        assert_eq!((covered, signature, curve), (expected, vec![7; 96], Curve::P384));
        let (from, until) = (extract.validity.from.unwrap(), extract.validity.until.unwrap());
        assert_eq!((from.unix(), until.unix()), (60, 80));
    }

    #[test]
    fn what_is_no_manifest_is_refused_with_its_reason() {
        let good = || manifest(vec![tag(506, comid())], &[]);
        let signed = |header: HeaderBuilder, payload: &Value| {
            let sign1 =
                CoseSign1Builder::new().protected(header.build()).payload(encoded(payload)).signature(vec![0; 64]);
            parse(&sign1.build().to_tagged_vec().unwrap()).unwrap()
        };
        let header = || HeaderBuilder::new().content_type("application/rim+cbor".to_owned());
        let es256 = || header().algorithm(iana::Algorithm::ES256);
        let other_content = HeaderBuilder::new().algorithm(iana::Algorithm::ES256).content_type("a/b".to_owned());
        let critical = es256().add_critical(iana::HeaderParameter::Kid).key_id(vec![1]);
        let late = manifest(vec![tag(506, comid())], &[(1, "soon".into())]);
        for (bad, reason) in [
            (comid(), "neither a CoRIM"),
            (tag(501, map(&[(0, "id".into())])), "no tags"),
            (manifest(vec![], &[]), "no values"),
            (manifest(vec![tag(506, Value::Bytes(vec![0xff]))], &[]), "not one CBOR item"),
            (late, "seconds since 1970"),
            (tag(18, Value::Array(vec![])), "four items"),
            (signed(header().algorithm(iana::Algorithm::ES512), &good()), "none of ES256"),
            (signed(header(), &good()), "none of ES256"),
            (signed(other_content, &good()), "content type"),
            (signed(critical, &good()), "critical header"),
            (signed(es256(), &comid()), "covers no CoRIM"),
        ] {
            let error = extract("corim", &encoded(&bad)).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}, not {reason}");
        }
    }

    proptest! {
        #[test]
        fn no_change_of_a_manifest_makes_it_panic(at in 0usize..200, byte: u8) {
            let mut payload = encoded(&manifest(vec![tag(506, Value::Bytes(encoded(&comid())))], &[]));
            let at = at % payload.len();
            payload[at] = byte;
            let _ = extract("corim", &payload);
        }
    }
}
