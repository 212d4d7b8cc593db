//! The superblock of a dm-integrity area, which the kernel would follow into whatever it says.
//!
//! Source: Linux, drivers/md/dm-integrity.c (`struct superblock`).

use super::{Error, Segment};

/// A superblock that fits its segment.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct IntegritySuperblock {
    /// What the area provides, in units of 512 bytes: a multiple of the sector size.
    pub provided_sectors: u64,
}

impl IntegritySuperblock {
    /// Bytes that [`IntegritySuperblock::parse`] wants to see, from where the segment starts.
    pub const LENGTH: usize = 512;

    /// Checks the superblock of an authenticated segment.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Field`], [`Error::Forbidden`] or [`Error::Layout`].
    pub fn parse(start: &[u8], segment: &Segment) -> Result<Self, Error> {
        let start = start.get(..Self::LENGTH).ok_or(Error::Truncated)?;
        let field = |what, found: u64| Err(Error::Field { what, found: found.to_string() });
        if !start.starts_with(MAGIC) {
            return Err(Error::Layout("the segment has no area for authentication tags".to_owned()));
        }
        let (version, tag_size) = (start[8], u16::from_le_bytes([start[10], start[11]]));
        if !(1..=MAX_VERSION).contains(&version) {
            return field("the version of the authentication area", version.into());
        }
        if tag_size != TAG {
            return field("the length of an authentication tag", tag_size.into());
        }
        let flags = start[24..28].try_into().map_or(u32::MAX, u32::from_le_bytes);
        if flags & !FIXED_PADDING != 0 {
            return Err(Error::forbidden(
                "the flags of the authentication area",
                format!("{flags:#x}"),
                "fixed padding",
            ));
        }
        let sectors_per_block = segment.sector_size / 512;
        if u32::from(start[28]) != sectors_per_block.ilog2() {
            return field("the block size of the authentication area", start[28].into());
        }

        let provided_sectors = start[16..24].try_into().map_or(0, u64::from_le_bytes);
        let tags = provided_sectors / u64::from(sectors_per_block);
        let needed = provided_sectors.checked_mul(512).and_then(|it| it.checked_add(tags * u64::from(TAG)));
        let fits = needed.is_some_and(|needed| needed <= segment.length);
        if provided_sectors == 0 || !fits || !provided_sectors.is_multiple_of(sectors_per_block.into()) {
            return Err(Error::Layout(format!(
                "the authentication area says that it provides {provided_sectors} sectors, which the segment has not"
            )));
        }
        Ok(Self { provided_sectors })
    }
}

const MAGIC: &[u8] = b"integrt\0";
const MAX_VERSION: u8 = 5;
const TAG: u16 = 32;
/// The only flag that a volume of this kind may have; others mean that somebody else was at work in it.
const FIXED_PADDING: u32 = 8;
