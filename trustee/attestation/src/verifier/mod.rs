//! Verifiers: each turns the evidence of one TEE into claims, if the evidence holds.

mod sample;

use serde_json::{Map, Value};
use wire::rcar::Tee;

/// A verifier for the evidence of one TEE.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Verifier {
    Sample,
}

/// Which verifiers may be used.
#[derive(Clone, Copy, Debug, Default)]
pub struct Enabled {
    /// Accept evidence of the sample TEE, which anyone can make.
    pub sample: bool,
}

/// What evidence is checked against.
pub(crate) struct Expected<'a> {
    /// Digest of the runtime data: nonce, key and additional evidence.
    pub report_data: &'a [u8],
    /// Digest of the initdata that the guest sent, if it sent any.
    pub init_data: Option<&'a [u8]>,
}

/// What verified evidence says.
#[derive(Debug)]
pub(crate) struct Verified {
    /// The kind of part that was attested, `cpu`: submodules are named after it.
    pub class: &'static str,
    /// The claims. `report_data` and `init_data` are among them if the verifier vouches for them.
    pub claims: Map<String, Value>,
}

impl Verifier {
    /// The verifier of a TEE.
    ///
    /// # Errors
    /// [`Error::SampleDisabled`], [`Error::Unknown`].
    pub fn of(tee: Tee, enabled: Enabled) -> Result<Self, Error> {
        match tee {
            Tee::Sample if enabled.sample => Ok(Self::Sample),
            Tee::Sample => Err(Error::SampleDisabled),
            other => Err(Error::Unknown(other)),
        }
    }

    /// Checks evidence.
    ///
    /// # Errors
    /// [`Error::Malformed`] or [`Error::Mismatch`].
    pub fn verify(self, evidence: &Value, expected: &Expected<'_>) -> Result<Verified, Error> {
        match self {
            Self::Sample => sample::verify(evidence, expected),
        }
    }
}

/// The claim, as a JSON pointer into a TEE's claims, that policies usually compare with a reference value.
pub(crate) fn claim_of(tee: &str, reference_value: &str) -> String {
    match (tee, reference_value) {
        ("sample", name) => sample::claim_of(name),
        (tee, name) => {
            let prefix = format!("{}_", tee.replace('-', "_"));
            format!("/{}", name.strip_prefix(&prefix).unwrap_or(name))
        }
    }
}

/// Why evidence was refused.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error(
        "evidence of the sample TEE is not accepted, since anyone can make it; for tests, set sample_verifier = true \
         under [attestation] in the Trustee's configuration"
    )]
    SampleDisabled,
    #[error("this Trustee has no verifier for the TEE {0}")]
    Unknown(Tee),
    #[error("the evidence is malformed: {0}")]
    Malformed(&'static str),
    #[error("the evidence's {claim} is not the one of this session")]
    Mismatch { claim: &'static str, actual: String, expected: String },
}
