//! Runtime measurement registers: what a guest measures after its launch.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use wire::evidence::RegisterAlgorithm;

use crate::Error;

/// The registers of a TEE. An index is that of event logs: a PCR on a TPM, the number of the measurement register
/// on other TEEs (RTMR n of TDX has index n + 1).
///
/// Every method may block on the hardware.
pub trait Registers: Send + Sync {
    /// The PCR to measure to where nobody chose one. Not every TEE lets software extend upstream's default, 17.
    fn default_pcr(&self) -> u32 {
        17
    }

    /// The index of the register that stands for this PCR.
    ///
    /// # Errors
    /// [`Error::Register`] for a number that no PCR has.
    fn map(&self, pcr: u32) -> Result<u32, Error>;

    /// The hash that the registers are extended with.
    fn algorithm(&self) -> RegisterAlgorithm;

    /// Extends the register with a digest of [`Registers::algorithm`].
    ///
    /// # Errors
    /// [`Error::Register`], [`Error::Digest`], or [`Error::NotSupported`] where the kernel can't; otherwise what the
    /// hardware refused.
    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), Error>;

    /// What the register holds, [`RegisterAlgorithm::size`] bytes.
    ///
    /// # Errors
    /// As [`Registers::extend`].
    fn read(&self, index: u32) -> Result<Vec<u8>, Error>;
}

/// Registers in memory, all zero at first. Their index is the PCR's number.
#[derive(Debug)]
pub(crate) struct SoftwareRegisters(Mutex<BTreeMap<u32, Vec<u8>>>);

impl SoftwareRegisters {
    pub(crate) const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }
}

impl Registers for SoftwareRegisters {
    fn map(&self, pcr: u32) -> Result<u32, Error> {
        checked_pcr(pcr)
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        RegisterAlgorithm::Sha384
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), Error> {
        checked_pcr(index)?;
        checked_digest(digest, self.algorithm())?;
        let mut registers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let register = registers.entry(index).or_insert_with(|| vec![0; self.algorithm().size()]);
        *register = self.algorithm().extended(register, digest);
        Ok(())
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, Error> {
        checked_pcr(index)?;
        let registers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(registers.get(&index).cloned().unwrap_or_else(|| vec![0; self.algorithm().size()]))
    }
}

/// The number itself, if a PCR has it.
pub(crate) fn checked_pcr(pcr: u32) -> Result<u32, Error> {
    match pcr <= LAST_PCR {
        true => Ok(pcr),
        false => Err(Error::Register { index: pcr, reason: format!("is beyond the last PCR, {LAST_PCR}") }),
    }
}

/// Refuses a digest of another length than the algorithm's.
pub(crate) fn checked_digest(digest: &[u8], algorithm: RegisterAlgorithm) -> Result<(), Error> {
    match digest.len() == algorithm.size() {
        true => Ok(()),
        false => Err(Error::Digest {
            what: "a runtime measurement register",
            expected: if algorithm.size() == 48 { "48" } else { "32" },
            length: digest.len(),
        }),
    }
}

/// PCs have PCRs 0 to 23.
const LAST_PCR: u32 = 23;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn software_registers_chain_digests_one_by_one() {
        let registers = SoftwareRegisters::new();
        registers.extend(17, &[1; 48]).unwrap();
        registers.extend(17, &[2; 48]).unwrap();

        let once = RegisterAlgorithm::Sha384.extended(&[0; 48], &[1; 48]);
        assert_eq!(registers.read(17).unwrap(), RegisterAlgorithm::Sha384.extended(&once, &[2; 48]));
        assert_eq!(registers.read(16).unwrap(), [0; 48]);
    }

    #[test]
    fn what_does_not_fit_a_register_is_refused() {
        let registers = SoftwareRegisters::new();
        assert!(matches!(registers.map(24), Err(Error::Register { index: 24, .. })));
        assert!(matches!(registers.extend(24, &[0; 48]), Err(Error::Register { .. })));
        assert!(matches!(registers.read(24), Err(Error::Register { .. })));
        assert!(matches!(registers.extend(0, &[0; 32]), Err(Error::Digest { length: 32, .. })));
    }
}
