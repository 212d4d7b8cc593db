//! The machine as attesters see it: its files, its devices and the environment.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::sync::Arc;

use crate::Error;
use crate::linux::Linux;

/// Everything that attesters touch goes through here, so that a test can be a machine. Clones are the same machine.
#[derive(Clone, Debug)]
pub(crate) struct Machine {
    kernel: Arc<dyn Kernel>,
    variables: Arc<BTreeMap<&'static str, String>>,
}

impl Machine {
    /// The machine that this process runs on, with `root` as its root folder.
    pub(crate) fn new(root: &Path) -> Self {
        let variables = VARIABLES.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?))).collect();
        Self { kernel: Arc::new(Linux::new(root)), variables: Arc::new(variables) }
    }

    /// The same machine with other variables.
    #[cfg(test)]
    pub(crate) fn with_variables(&self, variables: &[(&'static str, &str)]) -> Self {
        let variables = variables.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        Self { kernel: Arc::clone(&self.kernel), variables: Arc::new(variables) }
    }

    /// A machine with another kernel and no variables.
    #[cfg(test)]
    pub(crate) fn with_kernel(kernel: Arc<dyn Kernel>) -> Self {
        Self { kernel, variables: Arc::default() }
    }

    /// A variable of the environment, out of [`VARIABLES`].
    pub(crate) fn variable(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    pub(crate) fn kernel(&self) -> &dyn Kernel {
        &*self.kernel
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.kernel.exists(path)
    }

    /// The contents of a file that must be there.
    pub(crate) fn read(&self, path: &str, limit: usize) -> Result<Vec<u8>, Error> {
        self.kernel.read(path, limit).map_err(|e| Error::file(path, &e))
    }

    /// The contents of a file that may be there.
    pub(crate) fn find(&self, path: &str, limit: usize) -> Result<Option<Vec<u8>>, Error> {
        match self.kernel.read(path, limit) {
            Ok(contents) => Ok(Some(contents)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::file(path, &error)),
        }
    }

    /// The text of a small file, without white space around it; none if it can't be read.
    pub(crate) fn text(&self, path: &str) -> Option<String> {
        let bytes = self.kernel.read(path, MAX_TEXT).ok()?;
        Some(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    pub(crate) fn write(&self, path: &str, data: &[u8]) -> Result<(), Error> {
        self.kernel.write(path, data).map_err(|e| Error::file(path, &e))
    }
}

/// What attesters need of a kernel. Paths start with a slash.
pub(crate) trait Kernel: fmt::Debug + Send + Sync {
    fn exists(&self, path: &str) -> bool;

    /// All of a file; [`ErrorKind::FileTooLarge`] if it has more than `limit` bytes.
    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>>;

    /// Writes an attribute in one piece. No file is made.
    fn write(&self, path: &str, data: &[u8]) -> io::Result<()>;

    /// Names in a folder, sorted.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;

    fn make_folder(&self, path: &str) -> io::Result<()>;

    fn remove_folder(&self, path: &str) -> io::Result<()>;

    /// Opens a device, or a socket, that answers what is written to it.
    fn open(&self, path: &str) -> io::Result<Box<dyn Stream>>;

    /// Makes an ioctl on a device.
    fn call(&self, device: &str, call: Call<'_>) -> io::Result<()>;
}

/// An open device.
pub(crate) trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// The ioctls of TEEs' devices.
#[derive(Debug)]
pub(crate) enum Call<'a> {
    /// `/dev/tdx_guest`: a `TDREPORT`.
    TdxReport { report_data: &'a [u8; 64], report: &'a mut [u8; 1024] },
    /// `/dev/tdx_guest`: extends an RTMR, in kernels that have it.
    TdxExtend { register: u8, digest: &'a [u8; 48] },
    /// `/dev/sev-guest`: a report of VMPL 0 in the firmware's message, and the host's certificate table.
    SnpReport { report_data: &'a [u8; 64], response: &'a mut [u8; 4000], certificates: &'a mut Vec<u8> },
    /// `/dev/csv-guest`: a report, in the page of the request.
    CsvReport { page: &'a mut [u8; 4096] },
    /// `/dev/csv-guest`: a command on the RTMRs.
    CsvRegister { command: CsvRegisterCommand, buffer: &'a mut [u8] },
    /// `/dev/mkfd`: the report of an accelerator.
    DcuReport { device: u32, request: &'a [u8; 4096], answer: &'a mut [u8; 4096] },
    /// `/dev/uv`: the Ultravisor's measurement.
    SeAttest {
        request: &'a [u8],
        user_data: &'a [u8],
        measurement: &'a mut [u8],
        additional_data: &'a mut [u8],
        configuration: &'a mut [u8; 16],
    },
}

/// Commands on the RTMRs of CSV.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum CsvRegisterCommand {
    Status = 1,
    Read = 3,
    Extend = 4,
}

/// What is read of the environment, once.
const VARIABLES: &[&str] = &[
    "AAEL_PATH",
    "AA_TPM_AK_HANDLE",
    "AA_TPM_DEVICE",
    "CSV_INCLUDE_CERT_CHAIN_IN_ATTESTATION_REPORT",
    "ENABLE_SAMPLE_DEVICE",
    "OCCLUM",
];
/// What `/proc/cpuinfo` of the largest machines has.
const MAX_TEXT: usize = 4 << 20;
