//! Disks that come and go while the guest runs.
//!
//! A disk is opened here and QEMU is passed the descriptor, so that QEMU needs no right to open anything. It becomes a
//! device behind the machine's PCI bridge, where the guest finds it by its path.

use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::PathBuf;
use std::time::Duration;

use qapi::qmp;
use serde_json::{Value, json};
use tokio::sync::Mutex;
use tokio::sync::broadcast::error::RecvError;
use tokio::time::timeout;

use crate::config::{BRIDGE_SLOT, RANDOM_SLOT};
use crate::qmp::{Qmp, QmpError};

/// A disk to attach: a raw image or a block device.
#[derive(Clone, Debug, PartialEq)]
pub struct DiskConfig {
    /// The image or device.
    pub path: PathBuf,
    /// A read-only disk may be in use elsewhere at the same time.
    pub read_only: bool,
}

/// A disk that the guest has, until it is detached or the guest ends.
#[derive(Clone, Debug, PartialEq)]
pub struct AttachedDisk {
    slot: u8,
}

impl AttachedDisk {
    /// Where the guest finds the disk: the slots of the bridge and of the device, as in `02/0a`. This is the id of an
    /// agent's device or the source of its storage, with the driver `blk`.
    pub fn pci_path(&self) -> String {
        format!("{BRIDGE_SLOT:02x}/{:02x}", self.slot)
    }

    fn device(&self) -> String {
        format!("hotplug-disk{}", self.slot)
    }

    fn node(&self) -> String {
        format!("hotplug-node{}", self.slot)
    }
}

/// The slots behind the bridge. One change at a time: QEMU takes a descriptor for the command that follows it.
#[derive(Debug, Default)]
pub(crate) struct Slots(Mutex<BTreeSet<u8>>);

impl Slots {
    pub(crate) async fn attach(&self, qmp: &Qmp, disk: DiskConfig) -> Result<AttachedDisk, Error> {
        let mut taken = self.0.lock().await;
        let slot = (FIRST_SLOT..=LAST_SLOT).find(|slot| !taken.contains(slot)).ok_or(Error::NoSlot)?;
        let attached = AttachedDisk { slot };

        let opened = File::options().read(true).write(!disk.read_only).open(&disk.path);
        let unusable = |source| Error::Open { path: disk.path.clone(), source };
        let file = opened.map_err(unusable)?;
        let kind = file.metadata().map_err(unusable)?.file_type();
        let driver = match (kind.is_file(), kind.is_block_device()) {
            (true, _) => "file",
            (_, true) => "host_device",
            _ => {
                return Err(unusable(io::Error::new(io::ErrorKind::InvalidInput, "neither a file nor a block device")));
            }
        };
        qmp.pass(&file, slot.into()).await.map_err(|source| Error::refused(&disk, "taking the file", source))?;
        if let Err(error) = plug(qmp, &attached, &disk, driver).await {
            forget(qmp, &attached).await;
            return Err(error);
        }
        taken.insert(slot);
        Ok(attached)
    }

    pub(crate) async fn detach(&self, qmp: &Qmp, disk: AttachedDisk) -> Result<(), Error> {
        let mut taken = self.0.lock().await;
        let mut events = qmp.events();
        let refused = |source| Error::Detach { path: disk.pci_path(), source };
        qmp.execute(qmp::device_del { id: disk.device() }).await.map_err(refused)?;
        let gone = async {
            loop {
                match events.recv().await {
                    Ok(qmp::Event::DEVICE_DELETED { data, .. }) if data.device == Some(disk.device()) => return true,
                    Ok(qmp::Event::DEVICE_UNPLUG_GUEST_ERROR { data, .. }) if data.device == Some(disk.device()) => {
                        return false;
                    }
                    Ok(_) | Err(RecvError::Lagged(_)) => {}
                    Err(RecvError::Closed) => return false,
                }
            }
        };
        match timeout(UNPLUG_TIME, gone).await {
            Ok(true) => {}
            Ok(false) | Err(_) => return Err(Error::InUse { path: disk.pci_path() }),
        }
        forget(qmp, &disk).await;
        taken.remove(&disk.slot);
        Ok(())
    }
}

/// What the guest throws away is no longer stored. An error, such as that the host has no room, is the guest's to hear of, and
/// does not stop it.
async fn plug(qmp: &Qmp, attached: &AttachedDisk, disk: &DiskConfig, driver: &str) -> Result<(), Error> {
    let file = json!({
        "driver": driver, "filename": format!("/dev/fdset/{}", attached.slot), "read-only": disk.read_only,
        "discard": "unmap",
    });
    let node = json!({
        "driver": "raw", "node-name": attached.node(), "read-only": disk.read_only, "force-share": disk.read_only,
        "discard": "unmap", "file": file,
    });
    let refused = |step| move |source| Error::refused(disk, step, source);
    qmp.execute(BlockdevAdd(node)).await.map_err(refused("adding the image"))?;
    let device = qmp::device_add::new(
        "virtio-blk-pci",
        attached.device(),
        crate::config::BRIDGE.to_owned(),
        [
            ("drive".to_owned(), attached.node().into()),
            ("addr".to_owned(), format!("{:#x}", attached.slot).into()),
            ("werror".to_owned(), "report".into()),
            ("rerror".to_owned(), "report".into()),
        ],
    );
    qmp.execute(device).await.map_err(refused("adding the device"))
}

/// Lets QEMU forget the image of a device that is not there, as far as it came.
async fn forget(qmp: &Qmp, disk: &AttachedDisk) {
    if let Err(error) = qmp.execute(qmp::blockdev_del { node_name: disk.node() }).await {
        tracing::debug!(%error, "QEMU has no image to forget");
    }
    if let Err(error) = qmp.execute(qmp::remove_fd { fdset_id: disk.slot.into(), fd: None }).await {
        tracing::debug!(%error, "QEMU has no descriptor to forget");
    }
}

/// `blockdev-add`, whose arguments have a thousand forms of which one is needed.
#[derive(Debug, serde::Serialize)]
#[serde(transparent)]
struct BlockdevAdd(Value);

impl qmp::QmpCommand for BlockdevAdd {}

impl qapi::Command for BlockdevAdd {
    const NAME: &'static str = "blockdev-add";
    const ALLOW_OOB: bool = false;

    type Ok = qapi::Empty;
}

/// Why a disk did not come or go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The image can't be used.
    #[error("attach: {path}: {source}; next: check that it is a raw image or a block device")]
    Open {
        /// The image.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// All slots of the bridge are taken.
    #[error("attach: the guest has {MAX} such disks already; next: detach one")]
    NoSlot,
    /// QEMU refused, and has forgotten the disk.
    #[error("attach: {path}: {step}: {source}; next: check that nobody else writes to it")]
    Attach {
        /// The image.
        path: PathBuf,
        /// What was refused.
        step: &'static str,
        /// In QEMU's words.
        source: QmpError,
    },
    /// QEMU refused to take the device away.
    #[error("detach: disk {path}: {source}; next: end the sandbox")]
    Detach {
        /// The guest's path to it.
        path: String,
        /// In QEMU's words.
        source: QmpError,
    },
    /// The guest does not let go.
    #[error("detach: the guest did not let go of disk {path} within {UNPLUG_TIME:?}; next: end what uses it")]
    InUse {
        /// The guest's path to it.
        path: String,
    },
}

impl Error {
    fn refused(disk: &DiskConfig, step: &'static str, source: QmpError) -> Self {
        Self::Attach { path: disk.path.clone(), step, source }
    }
}

const FIRST_SLOT: u8 = RANDOM_SLOT + 1;
const LAST_SLOT: u8 = 31;
const MAX: u8 = LAST_SLOT - RANDOM_SLOT;
/// For a guest to let go of a disk that nothing uses: Linux waits five seconds for a second press of the button where
/// the bridge has one, and ours has none.
const UNPLUG_TIME: Duration = Duration::from_secs(20);
