//! Attesters: find out which TEE the guest runs in and collect its evidence, one module a TEE.

#![deny(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod attester;
mod detect;
mod error;
mod initdata;
mod machine;
mod registers;
mod sample;

pub use attester::{Attester, MAX_REPORT_DATA};
pub use error::Error;
pub use initdata::{Binding, InitDataDigest};
pub use registers::Registers;
pub use wire::evidence::RegisterAlgorithm;
