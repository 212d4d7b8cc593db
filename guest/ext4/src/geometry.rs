//! Where everything of a file system lies: groups of 32,768 blocks, each with its own bitmaps and inodes at its start.

use crate::block::Block;
use crate::{BLOCK, Error, Ext4, GROUP, RESERVED_INODES};

/// The layout of a file system.
#[derive(Debug)]
pub(crate) struct Geometry {
    /// Blocks of the file system.
    pub(crate) blocks: u64,
    pub(crate) groups: u32,
    pub(crate) inodes_per_group: u32,
    /// Blocks of the journal; 0 without one.
    pub(crate) journal: u32,
    /// The group with a second copy of superblock and descriptors.
    pub(crate) backup: Option<u32>,
    /// Blocks of all groups' descriptors.
    descriptors: u32,
    /// Blocks of a group's inodes.
    table: u32,
}

impl Geometry {
    pub(crate) fn new(wish: &Ext4, size: u64) -> Result<Self, Error> {
        wish.check()?;
        let mut blocks = (size / BLOCK as u64).min(MAX_BLOCKS);
        loop {
            let groups = blocks.div_ceil(GROUP.into()) as u32;
            if groups == 0 {
                return Err(Error::TooSmall(size));
            }
            let per_block = (BLOCK / usize::from(wish.inode_size)) as u64;
            let inodes = (blocks * BLOCK as u64 / wish.bytes_per_inode).div_ceil(groups.into());
            let inodes = inodes.next_multiple_of(per_block).clamp(per_block, GROUP.into());
            let journal = match blocks {
                _ if !wish.journal => 0,
                0..2048 => return Err(Error::TooSmall(size)),
                2048..32768 => 1024,
                32768..262_144 => 4096,
                _ => 8192,
            };
            let geometry = Self {
                blocks,
                groups,
                inodes_per_group: inodes as u32,
                journal,
                backup: (wish.journal && groups > 1).then_some(1),
                descriptors: (groups * DESCRIPTOR as u32).div_ceil(BLOCK as u32),
                table: (inodes / per_block) as u32,
            };
            let last = groups - 1;
            if geometry.size(last) >= geometry.used(last) + ROOM {
                return Ok(geometry);
            }
            // The last group is no larger than what it would have to know about itself.
            blocks = u64::from(last) * u64::from(GROUP);
        }
    }

    pub(crate) fn has_superblock(&self, group: u32) -> bool {
        group == 0 || self.backup == Some(group)
    }

    /// A group's first block.
    pub(crate) fn start(&self, group: u32) -> u64 {
        u64::from(group) * u64::from(GROUP)
    }

    pub(crate) fn block_bitmap(&self, group: u32) -> u64 {
        self.start(group) + u64::from(self.head(group))
    }

    pub(crate) fn inode_bitmap(&self, group: u32) -> u64 {
        self.block_bitmap(group) + 1
    }

    pub(crate) fn inode_table(&self, group: u32) -> u64 {
        self.block_bitmap(group) + 2
    }

    pub(crate) fn root_folder(&self) -> u64 {
        self.inode_table(0) + u64::from(self.table)
    }

    pub(crate) fn journal_start(&self) -> u64 {
        self.root_folder() + 1
    }

    pub(crate) fn free_blocks(&self, group: u32) -> u32 {
        self.size(group) - self.used(group)
    }

    /// What is taken in a group, and what its bitmap has beyond the group.
    pub(crate) fn bitmap_of_blocks(&self, group: u32) -> Block {
        let mut bitmap = Block::default();
        bitmap.mark(0..self.used(group));
        bitmap.mark(self.size(group)..GROUP);
        bitmap
    }

    /// The inodes that are taken in the first group, and what its bitmap has beyond them.
    pub(crate) fn bitmap_of_inodes(&self) -> Block {
        let mut bitmap = Block::default();
        bitmap.mark(0..RESERVED_INODES);
        bitmap.mark(self.inodes_per_group..GROUP);
        bitmap
    }

    /// What the file system has about a group, with a checksum that the file system's id is part of.
    pub(crate) fn descriptor(&self, group: u32, id: &[u8; 16]) -> [u8; DESCRIPTOR] {
        let mut block = Block::default();
        let (taken, folders) = if group == 0 { (RESERVED_INODES, 1) } else { (0, 0) };
        let free_inodes = (self.inodes_per_group - taken) as u16;
        let mut flags = 0;
        if group != 0 {
            flags |= INODES_UNWRITTEN;
            if group != self.groups - 1 {
                flags |= BLOCKS_UNWRITTEN;
            }
        }
        block.u32(0x00, self.block_bitmap(group) as u32);
        block.u32(0x04, self.inode_bitmap(group) as u32);
        block.u32(0x08, self.inode_table(group) as u32);
        block.u16(0x0c, self.free_blocks(group) as u16);
        block.u16(0x0e, free_inodes);
        block.u16(0x10, folders);
        block.u16(0x12, flags);
        // Inodes at the end that were never used.
        block.u16(0x1c, free_inodes);
        let sum = [&id[..], &group.to_le_bytes(), block.bytes(0, 0x1e)].into_iter().flatten().fold(0xffff, crc16);
        block.u16(0x1e, sum);
        let mut bytes = [0; DESCRIPTOR];
        bytes.copy_from_slice(block.bytes(0, DESCRIPTOR));
        bytes
    }

    /// Blocks of a group.
    fn size(&self, group: u32) -> u32 {
        (self.blocks - self.start(group)).min(GROUP.into()) as u32
    }

    /// Blocks of a group that are taken, all at its start.
    fn used(&self, group: u32) -> u32 {
        let contents = if group == 0 { 1 + self.journal } else { 0 };
        self.head(group) + 2 + self.table + contents
    }

    /// Blocks of the superblock's copy and the descriptors in a group.
    fn head(&self, group: u32) -> u32 {
        if self.has_superblock(group) { 1 + self.descriptors } else { 0 }
    }
}

impl Ext4 {
    fn check(&self) -> Result<(), Error> {
        let wrong = |reason| Err(Error::Options(reason));
        if self.label.len() > 16 {
            return wrong("a label has at most 16 bytes");
        }
        if self.reserved_percent > 50 {
            return wrong("at most 50 percent can be reserved");
        }
        if self.bytes_per_inode < BLOCK as u64 {
            return wrong("there is at most one inode for each 4096 bytes");
        }
        if ![128, 256].contains(&self.inode_size) {
            return wrong("inodes have 128 or 256 bytes");
        }
        Ok(())
    }
}

/// One step of CRC-16 (polynomial 0x8005, lowest bit first), as the kernel's `crc16`.
fn crc16(sum: u16, byte: &u8) -> u16 {
    (0..8).fold(sum ^ u16::from(*byte), |sum, _| if sum & 1 == 1 { sum >> 1 ^ 0xa001 } else { sum >> 1 })
}

/// Bytes of a group's descriptor.
const DESCRIPTOR: usize = 32;
/// Numbers of blocks have 32 bits.
const MAX_BLOCKS: u64 = u32::MAX as u64;
/// Blocks that a group has to have to spare.
const ROOM: u32 = 50;
const INODES_UNWRITTEN: u16 = 1;
const BLOCKS_UNWRITTEN: u16 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_the_kernels() {
        // The check value of CRC-16/MODBUS, which starts with 0xffff as well.
        assert_eq!(b"123456789".iter().fold(0xffff, crc16), 0x4b37);
    }

    #[test]
    fn a_rest_that_could_not_describe_itself_is_left_alone() {
        let group = u64::from(GROUP) * BLOCK as u64;
        let geometry = Geometry::new(&Ext4::default(), 2 * group + (100 << 12)).unwrap();
        assert_eq!((geometry.groups, geometry.blocks), (2, 2 * u64::from(GROUP)));
        let geometry = Geometry::new(&Ext4::default(), 2 * group + (10_000 << 12)).unwrap();
        assert_eq!((geometry.groups, geometry.size(2)), (3, 10_000));
    }

    #[test]
    fn what_no_file_system_has_is_refused() {
        let small = Ext4 { journal: false, ..Ext4::default() };
        assert!(matches!(Geometry::new(&small, 100 << 10), Err(Error::TooSmall(_))));
        assert!(matches!(Geometry::new(&Ext4::default(), 4 << 20), Err(Error::TooSmall(_))));
        assert!(Geometry::new(&small, 4 << 20).is_ok());
        for wrong in [
            Ext4 { label: "a".repeat(17), ..Ext4::default() },
            Ext4 { reserved_percent: 51, ..Ext4::default() },
            Ext4 { bytes_per_inode: 1024, ..Ext4::default() },
            Ext4 { inode_size: 512, ..Ext4::default() },
        ] {
            assert!(matches!(Geometry::new(&wrong, 1 << 30), Err(Error::Options(_))), "{wrong:?}");
        }
    }
}
