//! Whom the data owner trusts to name reference values, and the check of their signatures.

use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_ASN1, ECDSA_P384_SHA384_FIXED, ED25519,
    ParsedPublicKey, UnparsedPublicKey, VerificationAlgorithm,
};
use store::clock::Timestamp;
use wire::reference_value::{Message, key_id};
use x509_parser::pem::Pem;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::Error;
use crate::error::excerpt;
use crate::extractor::{Curve, Signed};

/// The trusted signers.
pub(crate) struct Signers(Vec<Signer>);

struct Signer {
    id: String,
    curve: Curve,
    /// DER SubjectPublicKeyInfo.
    key: Vec<u8>,
    /// What its certificate says, in seconds since 1970; a bare key has no end.
    validity: Option<(i64, i64)>,
}

impl Signers {
    /// Reads PEM files, each with one or more public keys or certificates.
    pub(crate) fn parse(files: &[Vec<u8>]) -> Result<Self, Error> {
        let mut signers = Vec::new();
        for (number, file) in files.iter().enumerate() {
            let refused = |cause| Error::TrustedSigner(number + 1, cause);
            let before = signers.len();
            for block in Pem::iter_from_buffer(file) {
                let block = block.map_err(|_| refused("its PEM is damaged"))?;
                signers.push(Signer::from_pem(&block).map_err(refused)?);
            }
            if signers.len() == before {
                return Err(refused("it holds no PEM"));
            }
            if signers.len() > MAX_SIGNERS {
                return Err(refused("there are more than 64 keys"));
            }
        }
        Ok(Self(signers))
    }

    /// The id of the key that signed a message; nothing if it is not signed.
    pub(crate) fn of_message(&self, message: &Message, payload: &[u8], now: Timestamp) -> Result<Option<&str>, Error> {
        let Some(signature) = &message.signature else { return Ok(None) };
        let mut candidates = self.valid(now).filter(|signer| signer.id == signature.keyid).peekable();
        if candidates.peek().is_none() {
            return Err(Error::UnknownSigner(excerpt(&signature.keyid)));
        }
        let bytes = crate::decoded(&signature.sig).ok_or(Error::Signature)?;
        let covered = message.signed_bytes(payload);
        let signer = candidates.find(|signer| signer.verifies(signer.curve.der(), &covered, &bytes));
        signer.map(|signer| Some(signer.id.as_str())).ok_or(Error::Signature)
    }

    /// The id of a key that made one of the signatures a payload brings along.
    pub(crate) fn of_payload(&self, signed: &Signed, now: Timestamp) -> Result<&str, Error> {
        let verifies = |signer: &&Signer| match signed {
            Signed::Dsse { covered, signatures } => {
                signatures.iter().any(|signature| signer.verifies(signer.curve.der(), covered, signature))
            }
            Signed::Cose { covered, signature, curve } => {
                signer.curve == *curve && signer.verifies(curve.fixed(), covered, signature)
            }
        };
        self.valid(now).find(verifies).map(|signer| signer.id.as_str()).ok_or(Error::Signature)
    }

    fn valid(&self, now: Timestamp) -> impl Iterator<Item = &Signer> {
        let now = now.unix().cast_signed();
        self.0.iter().filter(move |signer| signer.validity.is_none_or(|(from, until)| (from..=until).contains(&now)))
    }
}

impl Signer {
    fn from_pem(block: &Pem) -> Result<Self, &'static str> {
        match block.label.as_str() {
            "PUBLIC KEY" => Self::new(&block.contents, None),
            "CERTIFICATE" => {
                let (_, certificate) =
                    X509Certificate::from_der(&block.contents).map_err(|_| "its certificate is damaged")?;
                let validity = certificate.validity();
                let validity = (validity.not_before.timestamp(), validity.not_after.timestamp());
                Self::new(certificate.public_key().raw, Some(validity))
            }
            _ => Err("it is neither a public key nor a certificate"),
        }
    }

    fn new(key: &[u8], validity: Option<(i64, i64)>) -> Result<Self, &'static str> {
        let curve = [Curve::Ed25519, Curve::P256, Curve::P384]
            .into_iter()
            .find(|curve| ParsedPublicKey::new(curve.der(), key).is_ok())
            .ok_or("its key is on none of the three curves")?;
        Ok(Self { id: key_id(key), curve, key: key.to_vec(), validity })
    }

    fn verifies(&self, algorithm: &'static dyn VerificationAlgorithm, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(algorithm, &self.key).verify(message, signature).is_ok()
    }
}

impl Curve {
    /// With signatures as DSSE has them: ECDSA in DER.
    fn der(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &ED25519,
            Self::P256 => &ECDSA_P256_SHA256_ASN1,
            Self::P384 => &ECDSA_P384_SHA384_ASN1,
        }
    }

    /// With signatures as COSE has them: ECDSA as two integers of fixed size.
    fn fixed(self) -> &'static dyn VerificationAlgorithm {
        match self {
            Self::Ed25519 => &ED25519,
            Self::P256 => &ECDSA_P256_SHA256_FIXED,
            Self::P384 => &ECDSA_P384_SHA384_FIXED,
        }
    }
}

const MAX_SIGNERS: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::Owner;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, date_time_ymd};
    use wire::reference_value::sign_message;

    #[test]
    fn keys_of_every_kind_are_told_apart() {
        for owner in [Owner::ed25519(), Owner::p256(), Owner::p384()] {
            let signers = Signers::parse(&[Owner::p256().public, owner.public.clone()]).unwrap();
            let message = sign_message(&Message::new("sample", b"{}"), &owner.private).unwrap();
            let signer = signers.of_message(&message, b"{}", Timestamp::from_unix(0)).unwrap();
            assert_eq!(signer.map(str::to_owned), message.signature.clone().map(|signature| signature.keyid));

            let other = signers.of_message(&message, b"{ }", Timestamp::from_unix(0));
            assert!(matches!(other, Err(Error::Signature)));
            let stranger = Signers::parse(&[Owner::p256().public]).unwrap();
            let unknown = stranger.of_message(&message, b"{}", Timestamp::from_unix(0));
            assert!(matches!(unknown, Err(Error::UnknownSigner(_))));
        }
    }

    #[test]
    fn a_certificate_counts_while_it_is_valid() {
        for algorithm in [&PKCS_ED25519, &PKCS_ECDSA_P384_SHA384] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let mut parameters = CertificateParams::new(vec!["signer".to_owned()]).unwrap();
            (parameters.not_before, parameters.not_after) = (date_time_ymd(2026, 1, 1), date_time_ymd(2027, 1, 1));
            let certificate = parameters.self_signed(&key).unwrap().pem();

            let signers = Signers::parse(&[certificate.into_bytes()]).unwrap();
            let message = sign_message(&Message::new("sample", b"{}"), &key.serialize_pem()).unwrap();
            let at = |time: &str| signers.of_message(&message, b"{}", time.parse().unwrap());
            assert!(at("2026-06-01T00:00:00Z").unwrap().is_some());
            for outside in ["2025-12-31T23:59:59Z", "2027-01-01T00:00:01Z"] {
                assert!(matches!(at(outside), Err(Error::UnknownSigner(_))));
            }
        }
    }

    #[test]
    fn what_is_no_signer_is_named() {
        let rsa = "-----BEGIN PUBLIC KEY-----\nMAA=\n-----END PUBLIC KEY-----\n";
        for bad in
            ["", "text", rsa, &Owner::p256().private, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
        {
            let files = [Owner::ed25519().public, bad.as_bytes().to_vec()];
            assert!(matches!(Signers::parse(&files), Err(Error::TrustedSigner(2, _))), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(body in "[A-Za-z0-9+/=\n-]{0,200}", label in "PUBLIC KEY|CERTIFICATE") {
            let _ = Signers::parse(&[format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n").into_bytes()]);
        }
    }
}
