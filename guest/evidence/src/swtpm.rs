//! A software TPM for tests: the real thing, in a process of its own.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tpm2_protocol::basic::{TpmHandle, TpmUint16, TpmUint32};
use tpm2_protocol::data::{
    Tpm2bData, Tpm2bDigest, Tpm2bPublic, Tpm2bPublicKeyRsa, Tpm2bSensitiveCreate, TpmAlgId, TpmaObject,
    TpmlPcrSelection, TpmsRsaParms, TpmsSchemeHash, TpmtPublic, TpmtRsaScheme, TpmuAsymScheme, TpmuPublicId,
    TpmuPublicParms,
};
use tpm2_protocol::frame::{
    TpmCreatePrimaryCommand, TpmCreatePrimaryResponse, TpmEvictControlCommand, TpmEvictControlResponse,
    TpmFlushContextCommand, TpmFlushContextResponse,
};

use crate::machine::Machine;
use crate::tpm_device::TpmDevice;

/// A running TPM; it ends when dropped.
pub(crate) struct Swtpm {
    process: Child,
    folder: tempfile::TempDir,
}

impl Swtpm {
    /// Starts a TPM; `None`, with a printed reason, where the program is not installed.
    pub(crate) fn start() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "startup-clear"])
            .args(["--tpmstate", &format!("dir={}", folder.path().display())])
            .args(["--server", &format!("type=unixio,path={}", path(SOCKET))])
            .args(["--ctrl", &format!("type=unixio,path={}", path("control"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(process) = process else {
            eprintln!("skipped: the program swtpm is not installed");
            return None;
        };
        let swtpm = Self { process, folder };
        let deadline = Instant::now() + Duration::from_secs(20);
        while !Path::new(&swtpm.socket()).exists() {
            assert!(Instant::now() < deadline, "swtpm does not start");
            std::thread::yield_now();
        }
        Some(swtpm)
    }

    /// A machine with this TPM.
    pub(crate) fn machine(&self) -> Machine {
        self.machine_with(&[])
    }

    pub(crate) fn machine_with(&self, variables: &[(&'static str, &str)]) -> Machine {
        let socket = self.socket();
        let variables = [&[("AA_TPM_DEVICE", socket.as_str())], variables].concat();
        Machine::new(Path::new("/")).with_variables(&variables)
    }

    pub(crate) fn device(&self) -> TpmDevice {
        TpmDevice::required(&self.machine()).unwrap()
    }

    /// Makes an attestation key and keeps it at `handle`.
    pub(crate) fn attestation_key(&self, handle: u32) {
        let scheme = TpmuAsymScheme::Hash(TpmsSchemeHash { hash_alg: TpmAlgId::Sha256 });
        let public = TpmtPublic {
            object_type: TpmAlgId::Rsa,
            name_alg: TpmAlgId::Sha256,
            object_attributes: TpmaObject::from_bits_truncate(ATTESTATION),
            auth_policy: Tpm2bDigest::default(),
            parameters: TpmuPublicParms::Rsa(TpmsRsaParms {
                scheme: TpmtRsaScheme { scheme: TpmAlgId::Rsassa, details: scheme },
                symmetric: tpm2_protocol::data::TpmtSymDefObject { algorithm: TpmAlgId::Null, ..Default::default() },
                key_bits: TpmUint16::new(2048),
                exponent: TpmUint32::new(0),
            }),
            unique: TpmuPublicId::Rsa(Tpm2bPublicKeyRsa::default()),
        };
        let create = TpmCreatePrimaryCommand {
            handles: [OWNER],
            in_sensitive: Tpm2bSensitiveCreate::default(),
            in_public: Tpm2bPublic { inner: public },
            outside_info: Tpm2bData::default(),
            creation_pcr: TpmlPcrSelection::default(),
        };
        let mut device = self.device();
        let created: TpmCreatePrimaryResponse = device.call(&create, true).unwrap();
        let [transient] = created.handles;
        let keep = TpmEvictControlCommand { handles: [OWNER, transient], persistent_handle: TpmHandle::new(handle) };
        let _: TpmEvictControlResponse = device.call(&keep, true).unwrap();
        let flush = TpmFlushContextCommand { handles: [], flush_handle: transient };
        let _: TpmFlushContextResponse = device.call(&flush, false).unwrap();
    }

    fn socket(&self) -> String {
        self.folder.path().join(SOCKET).display().to_string()
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

const SOCKET: &str = "tpm";
const OWNER: TpmHandle = TpmHandle::new(0x4000_0001);
/// Fixed to the TPM and its parent, made there, used with a password, restricted to signing.
const ATTESTATION: u32 = 0x0005_0072;
