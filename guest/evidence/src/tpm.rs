//! A TPM 2.0 whose attestation key was made persistent when the machine was set up.
//!
//! The key is as trustworthy as that set-up: the verifier must know it.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::signature::RsaPublicKeyComponents;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use tpm2_protocol::data::{TpmtPublic, TpmuPublicId, TpmuPublicParms};
use wire::evidence::{TpmEvidence, TpmQuote};
use wire::rcar::Tee;

use crate::attester::{Collector, Device, json};
use crate::machine::Machine;
use crate::pcrs::Pcrs;
use crate::tpm_device::TpmDevice;
use crate::{Binding, Error, InitDataDigest, Registers};

/// A TPM with an attestation key.
#[derive(Debug)]
pub(crate) struct Tpm {
    machine: Machine,
    key: u32,
    pcrs: Pcrs,
}

impl Tpm {
    /// The machine's TPM, if it has one with an attestation key.
    ///
    /// # Errors
    /// [`Error::Malformed`] for a handle of the environment that is none; otherwise why the TPM did not answer.
    pub(crate) fn detect(machine: &Machine) -> Result<Option<Self>, Error> {
        let Some(mut device) = TpmDevice::open(machine)? else { return Ok(None) };
        let key = match machine.variable(KEY_HANDLE) {
            None => DEFAULT_KEY,
            Some(text) => handle(text).ok_or_else(|| {
                Error::malformed("AA_TPM_AK_HANDLE", "it is not the handle of a persistent key, such as 0x81010002")
            })?,
        };
        let found = device.public(key)?;
        Ok(found.map(|_| Self { machine: machine.clone(), key, pcrs: Pcrs::new(machine) }))
    }

    fn quote(&self, report_data: &[u8]) -> Result<Value, Error> {
        let mut nonce = report_data.to_vec();
        nonce.resize(NONCE, 0);
        let mut device = TpmDevice::required(&self.machine)?;
        let public = device.public(self.key)?;
        let public = public.ok_or_else(|| Error::malformed(WHAT, format!("{:#x} is gone", self.key)))?;
        let quote = device.quote(self.key, &nonce)?;
        json(&TpmEvidence {
            tpm_quote: TpmQuote {
                signature: STANDARD.encode(quote.signature),
                message: STANDARD.encode(quote.message),
                pcrs: quote.pcrs.iter().map(hex::encode).collect(),
            },
            ak_public: STANDARD.encode(subject_public_key_info(&public)?),
        })
    }
}

impl Collector for Tpm {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn evidence(&self, report_data: &[u8], _: Option<&[u8]>) -> Result<Value, Error> {
        self.quote(report_data)
    }

    fn registers(&self) -> Option<&dyn Registers> {
        Some(&self.pcrs)
    }

    fn check_initdata(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        self.pcrs.bind(digest)
    }
}

impl Device for Tpm {
    fn tee(&self) -> Tee {
        Tee::Tpm
    }

    fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        self.quote(report_data)
    }
}

fn handle(text: &str) -> Option<u32> {
    let handle = match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok()?,
        None => text.parse().ok()?,
    };
    (handle >> 24 == PERSISTENT).then_some(handle)
}

/// An RSA key as `SubjectPublicKeyInfo` in DER.
fn subject_public_key_info(public: &TpmtPublic) -> Result<Vec<u8>, Error> {
    let (TpmuPublicParms::Rsa(parameters), TpmuPublicId::Rsa(modulus)) = (&public.parameters, &public.unique) else {
        return Err(Error::malformed(WHAT, "it is not an RSA key"));
    };
    let exponent = match parameters.exponent.value() {
        0 => DEFAULT_EXPONENT,
        exponent => exponent,
    };
    let exponent = exponent.to_be_bytes();
    let significant = &exponent[exponent.iter().take_while(|byte| **byte == 0).count()..];
    let key = RsaPublicKeyComponents { n: &modulus[..], e: significant };
    let der: PublicKeyX509Der<'_> = key.as_der().map_err(|_| Error::malformed(WHAT, "it has no DER form"))?;
    Ok(der.as_ref().to_vec())
}

const WHAT: &str = "the TPM's attestation key";
/// Names the attestation key.
const KEY_HANDLE: &str = "AA_TPM_AK_HANDLE";
const DEFAULT_KEY: u32 = 0x8101_0002;
/// The first byte of a persistent handle.
const PERSISTENT: u32 = 0x81;
/// What verifiers expect in the quote: report data is cut off or padded.
const NONCE: usize = 32;
/// A TPM says 0 for it.
const DEFAULT_EXPONENT: u32 = 65537;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::swtpm::Swtpm;
    use aws_lc_rs::signature::{RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey};
    use wire::evidence::RegisterAlgorithm;

    #[test]
    fn a_quote_is_signed_by_the_key_and_covers_nonce_and_pcrs() {
        let Some(swtpm) = Swtpm::start() else { return };
        swtpm.attestation_key(DEFAULT_KEY);
        let tpm = Tpm::detect(&swtpm.machine()).unwrap().unwrap();

        for report_data in [&[7; 48][..], &[7; 20]] {
            let evidence: TpmEvidence = serde_json::from_value(tpm.quote(report_data).unwrap()).unwrap();

            let [message, signature, key] =
                [evidence.tpm_quote.message, evidence.tpm_quote.signature, evidence.ak_public]
                    .map(|t| STANDARD.decode(t).unwrap());
            assert_eq!(signature[..6], [0, 0x14, 0, 0x0b, 1, 0], "RSASSA, SHA-256, 256 bytes");
            UnparsedPublicKey::new(&RSA_PKCS1_2048_8192_SHA256, &key).verify(&message, &signature[6..]).unwrap();
            let mut nonce = report_data.to_vec();
            nonce.resize(32, 0);
            assert!(message.starts_with(&[0xff, b'T', b'C', b'G', 0x80, 0x18]));
            assert!(message.windows(34).any(|window| window == [&[0, 32][..], &nonce].concat()));
            let pcrs: Vec<_> = evidence.tpm_quote.pcrs.iter().map(|pcr| hex::decode(pcr).unwrap()).collect();
            assert_eq!(pcrs.len(), 24);
            assert!(message.ends_with(&RegisterAlgorithm::Sha256.digest(&pcrs.concat())));
        }
    }

    #[test]
    fn a_tpm_without_the_key_is_not_used() {
        let Some(swtpm) = Swtpm::start() else { return };
        swtpm.attestation_key(0x8101_0007);
        assert!(Tpm::detect(&swtpm.machine()).unwrap().is_none());

        let machine = swtpm.machine_with(&[("AA_TPM_AK_HANDLE", "0x81010007")]);
        assert!(Tpm::detect(&machine).unwrap().is_some());
        let machine = swtpm.machine_with(&[("AA_TPM_AK_HANDLE", "0x40000001")]);
        assert!(matches!(Tpm::detect(&machine), Err(Error::Malformed { .. })));
    }

    #[test]
    fn a_pcr_is_extended_and_a_closed_one_says_why_not() {
        let Some(swtpm) = Swtpm::start() else { return };
        let pcrs = Pcrs::new(&swtpm.machine());
        let index = pcrs.map(pcrs.default_pcr()).unwrap();
        assert_eq!(pcrs.read(index).unwrap(), [0; 32]);

        pcrs.extend(index, &[5; 32]).unwrap();

        assert_eq!(pcrs.read(index).unwrap(), RegisterAlgorithm::Sha256.extended(&[0; 32], &[5; 32]));
        let error = pcrs.extend(17, &[5; 32]).unwrap_err().to_string();
        assert!(error.contains("register 17") && error.contains("23"), "{error}");
        assert!(matches!(pcrs.extend(24, &[5; 32]), Err(Error::Register { .. })));
        assert!(matches!(pcrs.extend(23, &[5; 48]), Err(Error::Digest { .. })));
    }

    #[test]
    fn initdata_is_extended_once_and_another_is_refused() {
        let Some(swtpm) = Swtpm::start() else { return };
        let pcrs = Pcrs::new(&swtpm.machine());
        let digest = InitDataDigest::new(&[5; 32]).unwrap();

        for _ in 0..2 {
            assert_eq!(pcrs.bind(&digest).unwrap(), Binding::Extended { pcr: 8 });
            assert_eq!(pcrs.read(8).unwrap(), RegisterAlgorithm::Sha256.extended(&[0; 32], &[5; 32]));
        }
        let other = pcrs.bind(&InitDataDigest::new(&[6; 32]).unwrap());
        assert!(matches!(other, Err(Error::InitData { register: "PCR 8", .. })));
        let long = pcrs.bind(&InitDataDigest::new(&[5; 48]).unwrap());
        assert!(matches!(long, Err(Error::Digest { length: 48, .. })));
    }

    #[test]
    fn handles_are_those_of_persistent_keys() {
        assert_eq!(handle("0x81010002"), Some(0x8101_0002));
        assert_eq!(handle("2164326402"), Some(0x8101_0002));
        for text in ["", "0x", "0x40000001", "81010002", "0x181010002"] {
            assert_eq!(handle(text), None, "{text}");
        }
    }
}
