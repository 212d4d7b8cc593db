//! Disks that the host plugs in: found by where they are plugged in, once the kernel has seen them.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::uevents::Uevents;

/// Where the host says that a disk is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    /// Slots, from the root of the bus to the device, each with its function.
    Pci(Vec<(u8, u8)>),
    /// Target and unit on any adapter.
    Scsi { target: u32, unit: u32 },
    /// The kernel's own name.
    Name(String),
}

/// A disk of the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Disk {
    /// Below `/dev`.
    pub(crate) path: PathBuf,
    /// Major and minor number, with a colon between.
    pub(crate) number: String,
}

impl Address {
    /// Reads an address as Kata's shim writes it for this kind of device. None for what is not one.
    pub(crate) fn parse(kind: &str, text: &str) -> Option<Self> {
        let name = |text: &str| {
            let plain = (1..=32).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-');
            plain.then(|| Self::Name(text.to_owned()))
        };
        match kind {
            "blk" => match text.strip_prefix("/dev/") {
                Some(text) => name(text),
                None => {
                    let slots: Option<Vec<_>> = text.split('/').map(slot).collect();
                    slots.filter(|slots| slots.len() <= MAX_BRIDGES).map(Self::Pci)
                }
            },
            "scsi" => {
                let (target, unit) = text.split_once(':')?;
                let number = |text: &str| text.parse().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
                Some(Self::Scsi { target: number(target)?, unit: number(unit)? })
            }
            "mmioblk" | "nvdimm" => name(text.strip_prefix("/dev/").unwrap_or(text)),
            _ => None,
        }
    }

    /// Waits until the kernel has the disk.
    ///
    /// # Errors
    /// [`Error`] where it has not in time.
    pub(crate) async fn find(&self, sysfs: &Path, patience: Duration) -> Result<Disk, Error> {
        // Before looking, so that no event in between is missed.
        let mut events = Uevents::listen().map_err(Error::Events)?;
        self.scan(sysfs);
        let look = async {
            loop {
                if let Some(disk) = self.look(sysfs) {
                    return Ok(disk);
                }
                events.next().await.map_err(Error::Events)?;
            }
        };
        tokio::time::timeout(patience, look).await.unwrap_or_else(|_| Err(Error::Missing(self.clone())))
    }

    /// Tells adapters to look for the disk, where they don't by themselves.
    fn scan(&self, sysfs: &Path) {
        let Self::Scsi { target, unit } = self else { return };
        for adapter in entries(&sysfs.join("class/scsi_host")) {
            // An adapter that has no such place refuses.
            let _ = std::fs::write(adapter.join("scan"), format!("0 {target} {unit}"));
        }
    }

    fn look(&self, sysfs: &Path) -> Option<Disk> {
        let block = match self {
            Self::Pci(slots) => {
                let mut place = sysfs.join("devices/pci0000:00");
                for (slot, function) in slots {
                    let end = format!(":{slot:02x}.{function}");
                    place = entries(&place).into_iter().find(|entry| name(entry).ends_with(&end))?;
                }
                let function = entries(&place).into_iter().find(|entry| name(entry).starts_with("virtio"))?;
                entries(&function.join("block")).into_iter().next()?
            }
            Self::Scsi { target, unit } => {
                let end = format!(":0:{target}:{unit}");
                let disks = entries(&sysfs.join("class/scsi_device"));
                let disk = disks.into_iter().find(|entry| name(entry).ends_with(&end))?;
                entries(&disk.join("device/block")).into_iter().next()?
            }
            Self::Name(name) => sysfs.join("class/block").join(name),
        };
        let number = std::fs::read_to_string(block.join("dev")).ok()?.trim().to_owned();
        Some(Disk { path: Path::new("/dev").join(block.file_name()?), number })
    }
}

/// Why there is no disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("guest's kernel can't be asked for disks: {0}")]
    Events(#[source] io::Error),
    #[error("no disk is at {0:?}; next: plug it in first, and check that the guest image has its driver")]
    Missing(Address),
}

/// Two hexadecimal digits, and a function after a dot.
fn slot(text: &str) -> Option<(u8, u8)> {
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let hexadecimal = |text: &str, length| {
        let digits = text.len() == length && text.bytes().all(|b| b.is_ascii_hexdigit());
        u8::from_str_radix(text, 16).ok().filter(|_| digits)
    };
    let slot = hexadecimal(slot, 2).filter(|slot| *slot < 32)?;
    Some((slot, hexadecimal(function, 1).filter(|function| *function < 8)?))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// As long as Kata's agent waits for what is plugged in.
pub(crate) const PATIENCE: Duration = Duration::from_secs(3);
const MAX_BRIDGES: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn sysfs(disks: &[&str]) -> tempfile::TempDir {
        let sysfs = tempfile::tempdir().unwrap();
        for (minor, disk) in disks.iter().enumerate() {
            let place = sysfs.path().join(disk);
            std::fs::create_dir_all(&place).unwrap();
            std::fs::write(place.join("dev"), format!("254:{minor}\n")).unwrap();
        }
        sysfs
    }

    #[test]
    fn addresses_are_what_the_shim_writes() {
        for (kind, text, address) in [
            ("blk", "02/03", Address::Pci(vec![(2, 0), (3, 0)])),
            ("blk", "1f.7", Address::Pci(vec![(0x1f, 7)])),
            ("blk", "/dev/vdb", Address::Name("vdb".into())),
            ("scsi", "1:17", Address::Scsi { target: 1, unit: 17 }),
            ("mmioblk", "vda", Address::Name("vda".into())),
            ("nvdimm", "/dev/pmem0", Address::Name("pmem0".into())),
        ] {
            assert_eq!(Address::parse(kind, text), Some(address), "{kind} {text}");
        }
        for (kind, text) in [
            ("blk", ""),
            ("blk", "2"),
            ("blk", "20"),
            ("blk", "02/"),
            ("blk", "02.8"),
            ("blk", "+2/03"),
            ("blk", "/dev/../etc/x"),
            ("blk", "/dev/mapper/x"),
            ("blk", "00/00/00/00/00/00/00/00/00"),
            ("scsi", "1"),
            ("scsi", "1:+2"),
            ("scsi", "1:2:3"),
            ("mmioblk", "a/b"),
            ("nvdimm", ""),
            ("vfio-pci", "02"),
        ] {
            assert_eq!(Address::parse(kind, text), None, "{kind} {text}");
        }
    }

    #[tokio::test]
    async fn disks_are_found_where_they_are_plugged_in() {
        let sysfs = sysfs(&[
            "devices/pci0000:00/0000:00:02.0/0000:01:03.0/virtio5/block/vdb",
            "devices/pci0000:00/0000:00:03.0/virtio1/block/vda",
            "class/scsi_device/2:0:1:17/device/block/sda",
            "class/block/pmem0",
        ]);
        std::fs::create_dir_all(sysfs.path().join("class/scsi_host/host2")).unwrap();
        std::fs::write(sysfs.path().join("class/scsi_host/host2/scan"), "").unwrap();
        for (kind, text, disk, number) in [
            ("blk", "02/03", "/dev/vdb", "254:0"),
            ("blk", "03", "/dev/vda", "254:1"),
            ("scsi", "1:17", "/dev/sda", "254:2"),
            ("nvdimm", "pmem0", "/dev/pmem0", "254:3"),
        ] {
            let found = Address::parse(kind, text).unwrap().find(sysfs.path(), PATIENCE).await.unwrap();
            assert_eq!((found.path.to_str().unwrap(), found.number.as_str()), (disk, number));
        }
        let scan = std::fs::read_to_string(sysfs.path().join("class/scsi_host/host2/scan")).unwrap();
        assert_eq!(scan, "0 1 17");
    }

    #[tokio::test]
    async fn a_disk_that_never_comes_is_an_error_that_names_its_place() {
        let sysfs = sysfs(&[]);
        let address = Address::parse("blk", "02/03").unwrap();
        let error = address.find(sysfs.path(), Duration::from_millis(10)).await.unwrap_err().to_string();
        assert!(error.contains("Pci([(2, 0), (3, 0)])") && error.contains("next:"), "{error}");
    }
}
