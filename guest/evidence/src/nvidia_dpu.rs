//! NVIDIA's BlueField-3 data processing units, from the inside: the unit's Linux signs with the DICE key that its
//! firmware's measurements gave.

use aws_lc_rs::agreement::{self, ECDH_P384};
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use wire::evidence::{NvidiaDpuDevice, NvidiaDpuEvidence};
use wire::rcar::Tee;
use zeroize::Zeroizing;

use crate::Error;
use crate::attester::{Device, json, padded};
use crate::machine::Machine;

/// The unit that the machine is part of.
#[derive(Debug)]
pub(crate) struct NvidiaDpu {
    machine: Machine,
}

impl NvidiaDpu {
    /// The unit, if one of the machine's PCI functions is a BlueField-3's.
    pub(crate) fn detect(machine: &Machine) -> Option<Self> {
        let functions = machine.kernel().list(FUNCTIONS).unwrap_or_default();
        let is_unit = |function: &String| {
            let id = |name| machine.text(&format!("{FUNCTIONS}/{function}/{name}"));
            id("vendor").as_deref() == Some(VENDOR) && id("device").is_some_and(|id| UNITS.contains(&id.as_str()))
        };
        functions.iter().any(is_unit).then(|| Self { machine: machine.clone() })
    }

    /// Signs with the DICE key; the signature has both numbers, 48 bytes each.
    fn sign(&self, data: &[u8]) -> Result<Vec<u8>, Error> {
        let key = Zeroizing::new(self.machine.read(KEY, MAX_KEY)?);
        let unusable = |_| Error::malformed("the unit's DICE key", "it is not a P-384 key of 48 bytes");
        let public = agreement::PrivateKey::from_private_key(&ECDH_P384, &key).map_err(|_| ());
        let public = public.and_then(|key| key.compute_public_key().map_err(|_| ())).map_err(unusable)?;
        let algorithm = &ECDSA_P384_SHA384_FIXED_SIGNING;
        let pair = EcdsaKeyPair::from_private_key_and_public_key(algorithm, &key, public.as_ref());
        let signature = pair.map_err(|_| ()).and_then(|pair| pair.sign(&SystemRandom::new(), data).map_err(|_| ()));
        Ok(signature.map_err(unusable)?.as_ref().to_vec())
    }
}

impl Device for NvidiaDpu {
    fn tee(&self) -> Tee {
        Tee::NvidiaDpu
    }

    fn evidence(&self, report_data: &[u8]) -> Result<Value, Error> {
        let certificate = |name| {
            let der = self.machine.read(&format!("{CERTIFICATES}/{name}"), MAX_CERTIFICATE)?;
            Ok::<_, Error>(STANDARD.encode(der))
        };
        let device = NvidiaDpuDevice {
            architecture: "bluefield3".to_owned(),
            alias_cert: certificate("alias_cert")?,
            device_id_cert: certificate("device_id_cert")?,
            report_data_signature: STANDARD.encode(self.sign(&padded(report_data))?),
        };
        json(&NvidiaDpuEvidence { version: 1, devices: vec![device] })
    }
}

const FUNCTIONS: &str = "/sys/bus/pci/devices";
const VENDOR: &str = "0x15b3";
/// The unit's network function, and its bridge.
const UNITS: [&str; 2] = ["0xa2dc", "0xa2da"];
const CERTIFICATES: &str = "/sys/class/infiniband/mlx5_0/device/attestation";
const KEY: &str = "/sys/kernel/security/tee/dice/alias_private_key";
const MAX_CERTIFICATE: usize = 64 << 10;
const MAX_KEY: usize = 1 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fake::FakeKernel;
    use aws_lc_rs::encoding::{AsBigEndian as _, EcPrivateKeyBin};
    use aws_lc_rs::signature::{ECDSA_P384_SHA384_FIXED, KeyPair as _, UnparsedPublicKey};

    fn unit(key: &[u8]) -> FakeKernel {
        FakeKernel::new()
            .file(&format!("{FUNCTIONS}/0000:03:00.0/vendor"), "0x15b3\n")
            .file(&format!("{FUNCTIONS}/0000:03:00.0/device"), "0xa2dc\n")
            .file(&format!("{CERTIFICATES}/alias_cert"), [0x30, 1])
            .file(&format!("{CERTIFICATES}/device_id_cert"), [0x30, 2])
            .file(KEY, key)
    }

    #[test]
    fn the_dice_key_signs_the_padded_data() {
        let pair = EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).unwrap();
        let key: EcPrivateKeyBin<'_> = pair.private_key().as_be_bytes().unwrap();
        let dpu = NvidiaDpu::detect(&unit(key.as_ref()).machine().0).unwrap();

        let evidence: NvidiaDpuEvidence = serde_json::from_value(dpu.evidence(&[7; 48]).unwrap()).unwrap();

        let [device] = &evidence.devices[..] else { panic!("{evidence:?}") };
        assert_eq!((evidence.version, &*device.architecture), (1, "bluefield3"));
        assert_eq!((&*device.alias_cert, &*device.device_id_cert), ("MAE=", "MAI="));
        let signature = STANDARD.decode(&device.report_data_signature).unwrap();
        let public = UnparsedPublicKey::new(&ECDSA_P384_SHA384_FIXED, pair.public_key().as_ref());
        public.verify(&padded(&[7; 48]), &signature).unwrap();
    }

    #[test]
    fn a_key_of_another_length_is_refused_without_a_word_of_it() {
        let dpu = NvidiaDpu::detect(&unit(&[0xab; 47]).machine().0).unwrap();
        let error = dpu.evidence(&[7; 48]).unwrap_err().to_string();
        assert!(error.contains("48 bytes") && !error.contains("ab, ab"), "{error}");
    }

    #[test]
    fn other_functions_are_no_unit() {
        let kernel = FakeKernel::new()
            .file(&format!("{FUNCTIONS}/0000:03:00.0/vendor"), "0x15b3\n")
            .file(&format!("{FUNCTIONS}/0000:03:00.0/device"), "0x1021\n");
        assert!(NvidiaDpu::detect(&kernel.machine().0).is_none());
        assert!(NvidiaDpu::detect(&FakeKernel::new().machine().0).is_none());
    }
}
