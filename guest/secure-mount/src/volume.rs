//! The mappings of a volume: opened by its header, or made anew.

use std::fs;

use device_mapper::{Cipher, Crypt, Integrity, IntegrityMode, Mapping, SECTOR, Target};
use wire::luks2::{Format, Header, IntegritySuperblock, NewVolume, Segment, VolumeKey};

use crate::block_device::BlockDevice;
use crate::{Error, mkfs};

/// What makes plaintext of a device. Dropping it removes both, as soon as nobody uses them.
pub(crate) struct OpenVolume {
    // Removed in this order.
    crypt: Mapping,
    integrity: Option<Mapping>,
}

/// A new volume whose header is not on the disk yet.
pub(crate) struct Uncommitted {
    pub(crate) volume: OpenVolume,
    header: Option<Vec<u8>>,
}

impl OpenVolume {
    /// Opens what is on the device.
    pub(crate) fn open(
        device: &BlockDevice,
        name: &str,
        key: &[u8],
        integrity: Option<bool>,
        read_only: bool,
    ) -> Result<Self, Error> {
        // The mapping claims it next.
        let mut disk = device.claim(false)?;
        let header = Header::parse(&disk.read(0, Header::MAX_METADATA)?, disk.size())?;
        let segment = header.segment();
        if let Some(asked) = integrity.filter(|asked| *asked != segment.authenticated) {
            return Err(Error::Integrity { asked, found: segment.authenticated });
        }
        check_memory(header.memory_cost())?;
        let area = header.key_area();
        let volume_key = header.unlock(&disk.read(area.start, (area.end - area.start) as usize)?, key)?;

        if !segment.authenticated {
            drop(disk);
            return Self::map(device, name, segment, volume_key, read_only);
        }
        let superblock = disk.read(segment.offset, IntegritySuperblock::LENGTH)?;
        let superblock = IntegritySuperblock::parse(&superblock, segment)?;
        drop(disk);
        let below = integrity_target(device, segment, superblock.provided_sectors, IntegrityMode::Journal);
        Self::map_authenticated(below, name, segment, volume_key, read_only)
    }

    /// Makes a new volume, and a header if it is to be opened again.
    pub(crate) fn create(
        device: &BlockDevice,
        name: &str,
        key: Option<&[u8]>,
        authenticated: bool,
    ) -> Result<Uncommitted, Error> {
        let mut disk = device.claim(true)?;
        let device_size = disk.size();
        let (segment, volume_key, header, mode) = match key {
            Some(_) if Header::is_present(&disk.read(0, 8)?) => return Err(Error::Occupied(device.path().to_owned())),
            Some(key) => {
                let new = NewVolume::create(Format { device_size, sector_size: SECTOR_SIZE, authenticated }, key)?;
                (new.segment, new.volume_key, Some(new.image), IntegrityMode::Journal)
            }
            None => {
                let segment = Segment::whole(0, device_size, SECTOR_SIZE, authenticated)?;
                let volume_key = segment.random_key()?;
                (segment, volume_key, None, IntegrityMode::Direct)
            }
        };
        if !authenticated {
            drop(disk);
            let volume = Self::map(device, name, &segment, volume_key, false)?;
            return Ok(Uncommitted { volume, header });
        }

        // The kernel takes zeros for an area that it is to format, and then says what it has made of it.
        disk.write(segment.offset, &[0; SECTOR_SIZE as usize])?;
        drop(disk);
        let least = u64::from(SECTOR_SIZE) / SECTOR;
        let below = |sectors| integrity_target(device, &segment, sectors, mode);
        let mut formatting = Mapping::open(&below_name(name), &[Target::Integrity(below(least))], false)?;
        let provided = provided_sectors(&formatting.status()?)?;
        formatting.remove()?;
        let volume = Self::map_authenticated(below(provided), name, &segment, volume_key, false)?;
        Ok(Uncommitted { volume, header })
    }

    pub(crate) fn mapping(&self) -> &Mapping {
        &self.crypt
    }

    /// Writes every sector once, so that each can be read.
    pub(crate) fn wipe(&self) -> Result<(), Error> {
        mkfs::wipe(self.crypt.path()).map_err(Error::io("wiped", self.crypt.path()))
    }

    /// Whether a sector that was never written gives an error.
    pub(crate) fn is_authenticated(&self) -> bool {
        self.integrity.is_some()
    }

    /// Removes both mappings now.
    pub(crate) fn close(&mut self) -> Result<(), Error> {
        self.crypt.remove()?;
        self.integrity.as_mut().map_or(Ok(()), Mapping::remove)?;
        Ok(())
    }

    fn map(
        device: &BlockDevice,
        name: &str,
        segment: &Segment,
        key: VolumeKey,
        read_only: bool,
    ) -> Result<Self, Error> {
        let crypt = Target::Crypt(Crypt {
            device: device.path().to_owned(),
            offset: segment.offset / SECTOR,
            sectors: segment.length / SECTOR,
            cipher: Cipher::AesXts,
            key,
            sector_size: segment.sector_size,
        });
        Ok(Self { crypt: Mapping::open(name, &[crypt], read_only)?, integrity: None })
    }

    /// The mapping below is writable in any case: its journal may have something that is to be written first.
    fn map_authenticated(
        below: Integrity,
        name: &str,
        segment: &Segment,
        key: VolumeKey,
        read_only: bool,
    ) -> Result<Self, Error> {
        let sectors = below.sectors;
        let integrity = Mapping::open(&below_name(name), &[Target::Integrity(below)], false)?;
        let crypt = Target::Crypt(Crypt {
            device: integrity.path().to_owned(),
            offset: 0,
            sectors,
            cipher: Cipher::AesXtsHmacSha256,
            key,
            sector_size: segment.sector_size,
        });
        Ok(Self { crypt: Mapping::open(name, &[crypt], read_only)?, integrity: Some(integrity) })
    }
}

impl Uncommitted {
    /// Puts the header on the disk, its first copy last: from then on the volume is there.
    pub(crate) fn commit(&self, device: &BlockDevice) -> Result<(), Error> {
        if let Some(header) = &self.header {
            let disk = device.share()?;
            let (first, rest) = header.split_at(SECTOR_SIZE as usize);
            disk.write(first.len() as u64, rest)?;
            disk.write(0, first)?;
        }
        Ok(())
    }
}

fn integrity_target(device: &BlockDevice, segment: &Segment, sectors: u64, mode: IntegrityMode) -> Integrity {
    Integrity {
        device: device.path().to_owned(),
        offset: segment.offset / SECTOR,
        sectors,
        tag_size: Cipher::AesXtsHmacSha256.tag_length(),
        block_size: segment.sector_size,
        mode,
    }
}

/// As cryptsetup calls it.
fn below_name(name: &str) -> String {
    format!("{name}_dif")
}

/// The kernel's status of dm-integrity: mismatches, provided sectors, and where recalculation is.
fn provided_sectors(status: &[String]) -> Result<u64, Error> {
    let sectors = status.first().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
    sectors.ok_or_else(|| Error::io("measured", "dm-integrity")(std::io::Error::other(format!("status {status:?}"))))
}

/// Refuses to start what the kernel would end the guest for.
fn check_memory(needed: u32) -> Result<(), Error> {
    let needed = u64::from(needed);
    let text = fs::read_to_string(MEMINFO).unwrap_or_default();
    match available_memory(&text) {
        Some(available) if needed > available => Err(Error::Memory { needed, available }),
        _ => Ok(()),
    }
}

/// KiB.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse().ok()
}

const MEMINFO: &str = "/proc/meminfo";
/// Of new volumes: fewer tags and fewer calls of the cipher than with 512 bytes.
const SECTOR_SIZE: u32 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_own_numbers_are_read() {
        assert_eq!(available_memory("MemTotal: 9 kB\nMemAvailable:     123456 kB\n"), Some(123_456));
        assert_eq!(available_memory(""), None);
        assert_eq!(provided_sectors(&["0 126464 -".to_owned()]).unwrap(), 126_464);
        assert!(provided_sectors(&[]).is_err());
    }

    #[test]
    fn a_slot_that_needs_all_memory_is_not_opened() {
        assert!(check_memory(0).is_ok());
        assert!(matches!(check_memory(u32::MAX), Err(Error::Memory { .. })));
    }
}
