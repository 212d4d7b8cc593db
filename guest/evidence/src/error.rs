//! Why there is no evidence, no measurement or no binding.

use std::io;

use wire::rcar::Tee;

/// Why there is no evidence, no measurement or no binding.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// Hardware was found that no attester knows.
    #[error(
        "{trace} says that this is a TEE of kind {tee}, which can't be attested: {reason}; next: run the guest elsewhere"
    )]
    NoAttester {
        /// What was found.
        tee: Tee,
        /// The file or variable that gave it away.
        trace: &'static str,
        /// Why there is no attester.
        reason: &'static str,
    },
    /// More report data than fits.
    #[error("report data of {length} bytes, where the TEE carries at most {limit}; next: send a digest of the data")]
    ReportData {
        /// What was given.
        length: usize,
        /// What fits.
        limit: usize,
    },
    /// Evidence that has no JSON form.
    #[error("evidence can't be written as JSON: {0}")]
    Json(String),
    /// A file of the kernel, the firmware or a device failed.
    #[error("{path}: {reason}; next: check that the guest's kernel has the TEE's driver and that it is loaded")]
    File {
        /// The file.
        path: String,
        /// What the kernel said.
        reason: String,
    },
    /// The hardware, the kernel or a service gave something that is not what it should be.
    #[error("{what} is malformed: {reason}; next: check the versions of the firmware and of the guest's kernel")]
    Malformed {
        /// What was read.
        what: &'static str,
        /// What is wrong with it.
        reason: String,
    },
    /// A TPM refused a command or gave a wrong answer.
    #[error(
        "TPM {device}, {command}: {reason}; next: check AA_TPM_DEVICE and AA_TPM_AK_HANDLE, and that nobody else holds the TPM"
    )]
    Tpm {
        /// Device or socket.
        device: String,
        /// The command, or what was meant for it.
        command: String,
        /// What the TPM said.
        reason: String,
    },
    /// A service of the cloud or of the hardware's vendor failed.
    #[error("{url}: {reason}; next: check that the guest's network reaches it")]
    Service {
        /// The URL.
        url: String,
        /// What happened.
        reason: String,
    },
    /// The TEE can't measure what happens at run time, or its kernel can't yet.
    #[error("this TEE has no such runtime measurement: {0}")]
    NotSupported(String),
    /// A register that the TEE does not have, or that software may not extend.
    #[error("register {index} {reason}; next: choose another with eventlog_config.init_pcr or the request's index")]
    Register {
        /// What was asked for.
        index: u32,
        /// Why it is refused.
        reason: String,
    },
    /// A digest of the wrong length.
    #[error(
        "a digest of {length} bytes for {what}, which takes {expected}; next: use initdata or events hashed with the fitting algorithm"
    )]
    Digest {
        /// What it was meant for.
        what: &'static str,
        /// The length that fits.
        expected: &'static str,
        /// The length that was given.
        length: usize,
    },
    /// The hardware was launched with another initdata than the guest was given.
    #[error(
        "initdata has digest {actual}, but {register} holds {expected}: the host changed one of them; next: launch the guest again with the owner's initdata"
    )]
    InitData {
        /// The hardware's field.
        register: &'static str,
        /// What the hardware holds, in hexadecimal.
        expected: String,
        /// What the guest's initdata has, fitted to the field, in hexadecimal.
        actual: String,
    },
}

impl Error {
    pub(crate) fn file(path: &str, error: &io::Error) -> Self {
        Self::File { path: path.to_owned(), reason: error.to_string() }
    }

    pub(crate) fn malformed(what: &'static str, reason: impl ToString) -> Self {
        Self::Malformed { what, reason: reason.to_string() }
    }
}
