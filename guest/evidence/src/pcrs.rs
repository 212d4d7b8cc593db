//! A TPM's PCRs as measurement registers, and PCR 8 as the initdata's.

use wire::evidence::RegisterAlgorithm;

use crate::machine::Machine;
use crate::registers::{checked_digest, checked_pcr};
use crate::tpm_device::TpmDevice;
use crate::{Binding, Error, InitDataDigest, Registers};

/// The PCRs of the SHA-256 bank.
#[derive(Debug)]
pub(crate) struct Pcrs {
    machine: Machine,
}

impl Pcrs {
    pub(crate) fn new(machine: &Machine) -> Self {
        Self { machine: machine.clone() }
    }

    /// Extends PCR 8 with the digest, unless it was before.
    ///
    /// # Errors
    /// [`Error::Digest`] for any digest but SHA-256's; [`Error::InitData`] if the PCR already holds something else, which
    /// no verifier could tell from another initdata.
    pub(crate) fn bind(&self, digest: &InitDataDigest) -> Result<Binding, Error> {
        let bytes = digest.as_bytes();
        let length = bytes.len();
        let digest: [u8; 32] =
            bytes.try_into().map_err(|_| Error::Digest { what: "PCR 8", expected: "32 (sha256)", length })?;
        let held = self.read(INIT_DATA)?;
        let bound = RegisterAlgorithm::Sha256.extended(&[0; 32], &digest);
        if held == [0; 32] {
            TpmDevice::required(&self.machine)?.extend(INIT_DATA, digest)?;
        } else if held != bound {
            let (expected, actual) = (hex::encode(held), hex::encode(bound));
            return Err(Error::InitData { register: "PCR 8", expected, actual });
        }
        Ok(Binding::Extended { pcr: INIT_DATA })
    }
}

impl Registers for Pcrs {
    fn default_pcr(&self) -> u32 {
        // 17 to 22 are for the processor's own measurement, and closed to software.
        23
    }

    fn map(&self, pcr: u32) -> Result<u32, Error> {
        checked_pcr(pcr)
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        RegisterAlgorithm::Sha256
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), Error> {
        checked_pcr(index)?;
        checked_digest(digest, RegisterAlgorithm::Sha256)?;
        TpmDevice::required(&self.machine)?.extend(index, std::array::from_fn(|i| digest[i]))
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, Error> {
        let index = checked_pcr(index)? as usize;
        let pcrs = TpmDevice::required(&self.machine)?.pcrs()?;
        Ok(pcrs[index].to_vec())
    }
}

const INIT_DATA: u32 = 8;
