//! Makes an ext4 file system without writing what can wait: less than a MiB for each 2 TiB, and nothing is read.
//!
//! The kernel clears bitmaps and inodes by itself before it uses them, in groups of blocks that are marked for it. So a disk
//! that is sparse on its host stays so, making takes no time however large the disk is, and a disk whose sectors can't
//! be read before they were written (dm-integrity) needs no preparation. Mount it with [`MOUNT_OPTION`], or the kernel
//! clears all inodes in the background.
//!
//! A new file system is empty: there is no `lost+found`, which a check would make when it needs one.
//!
//! Source: the kernel's `Documentation/filesystems/ext4`.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used))]

mod block;
mod geometry;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::FileExt as _;
use std::time::SystemTime;

use block::Block;
use geometry::Geometry;

/// A file system to be made.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ext4 {
    /// At most 16 bytes.
    pub label: String,
    /// Whether it is whole after a crash, which takes up to 32 MiB and a second copy of where everything is.
    pub journal: bool,
    /// How much of it only root may fill, from 0 to 50.
    pub reserved_percent: u8,
    /// For so many bytes there is one inode: from 4096 on.
    pub bytes_per_inode: u64,
    /// Bytes of an inode: 256, or 128 without times after 2038.
    pub inode_size: u16,
}

impl Default for Ext4 {
    fn default() -> Self {
        Self { label: String::new(), journal: true, reserved_percent: 0, bytes_per_inode: 16 << 10, inode_size: 256 }
    }
}

impl Ext4 {
    /// Makes the file system on a device of `size` bytes, and returns when it is there. What is beyond 16 TiB is left alone.
    ///
    /// # Errors
    /// [`Error::TooSmall`]; [`Error::Options`] for values that are out of bounds; [`Error::Io`].
    pub fn make(&self, device: &File, size: u64) -> Result<(), Error> {
        let geometry = Geometry::new(self, size)?;
        let identity = Identity::new()?;
        for group in 0..geometry.groups {
            if geometry.has_superblock(group) {
                self.write_head(device, &geometry, &identity, group)?;
            }
        }
        // A bitmap that ends before its block does can't be left to the kernel.
        let last = geometry.groups - 1;
        if last > 0 {
            write(device, geometry.block_bitmap(last), &geometry.bitmap_of_blocks(last))?;
        }
        write(device, geometry.block_bitmap(0), &geometry.bitmap_of_blocks(0))?;
        write(device, geometry.inode_bitmap(0), &geometry.bitmap_of_inodes())?;
        write(device, geometry.inode_table(0), &self.first_inodes(&geometry, &identity))?;
        write(device, geometry.root_folder(), &root_folder())?;
        self.write_journal(device, &geometry, &identity)?;
        device.sync_all()?;
        Ok(())
    }

    /// The superblock and, behind it, the descriptors of all groups.
    fn write_head(&self, device: &File, geometry: &Geometry, identity: &Identity, group: u32) -> Result<(), Error> {
        let mut block = Block::default();
        let superblock = self.superblock(geometry, identity, group);
        let at = if group == 0 { SUPERBLOCK } else { 0 };
        block.copy(at, superblock.bytes(0, SUPERBLOCK));
        write(device, geometry.start(group), &block)?;
        let descriptors: Vec<u8> = (0..geometry.groups).flat_map(|it| geometry.descriptor(it, &identity.id)).collect();
        for (number, bytes) in descriptors.chunks(BLOCK).enumerate() {
            let mut block = Block::default();
            block.copy(0, bytes);
            write(device, geometry.start(group) + 1 + number as u64, &block)?;
        }
        Ok(())
    }

    fn superblock(&self, geometry: &Geometry, identity: &Identity, group: u32) -> Block {
        let mut block = Block::default();
        let free: u64 = (0..geometry.groups).map(|it| u64::from(geometry.free_blocks(it))).sum();
        let inodes = geometry.groups * geometry.inodes_per_group;
        let reserved = geometry.blocks * u64::from(self.reserved_percent) / 100;
        for (offset, value) in [
            (0x00, inodes),
            (0x04, geometry.blocks as u32),
            (0x08, reserved as u32),
            (0x0c, free as u32),
            (0x10, inodes - RESERVED_INODES),
            // Blocks and clusters of 4 KiB.
            (0x18, 2),
            (0x1c, 2),
            (0x20, GROUP),
            (0x24, GROUP),
            (0x28, geometry.inodes_per_group),
            (0x30, identity.time),
            (0x40, identity.time),
            // Inodes have sizes and there are features.
            (0x4c, 1),
            (0x54, RESERVED_INODES + 1),
            (0x5c, COMPATIBLE | if self.journal { HAS_JOURNAL } else { 0 }),
            (0x60, INCOMPATIBLE),
            (0x64, READ_ONLY_COMPATIBLE | if self.inode_size > 128 { EXTRA_ISIZE } else { 0 }),
            // user_xattr and acl.
            (0x100, 0x0c),
            (0x108, identity.time),
            // Names are hashed as signed characters.
            (0x160, 1),
            (0x24c, geometry.backup.unwrap_or(0)),
        ] {
            block.u32(offset, value);
        }
        for (offset, value) in [
            // Never checked for having been mounted often.
            (0x36, 0xffff),
            (0x38, 0xef53),
            // Clean, and goes on after errors.
            (0x3a, 1),
            (0x3c, 1),
            (0x58, self.inode_size),
            (0x5a, group as u16),
            // Half MD4.
            (0xfc, 1),
        ] {
            block.u16(offset, value);
        }
        block.copy(0x68, &identity.id);
        block.copy(0x78, self.label.as_bytes());
        block.copy(0xec, &identity.hash_seed);
        if self.inode_size > 128 {
            block.u16(0x15c, EXTRA);
            block.u16(0x15e, EXTRA);
        }
        if geometry.journal > 0 {
            block.u32(0xe0, JOURNAL);
            // A copy of what the journal's inode says.
            block.copy(0xfd, &[1]);
            let inode = self.journal_inode(geometry, identity);
            block.copy(0x10c, inode.bytes(0x28, 60));
            block.copy(0x10c + 64, inode.bytes(0x04, 4));
        }
        block
    }

    /// The block with the inodes that are in use.
    fn first_inodes(&self, geometry: &Geometry, identity: &Identity) -> Block {
        let mut block = Block::default();
        let mut place = |number: u32, inode: &Block| {
            let size = usize::from(self.inode_size);
            block.copy((number as usize - 1) * size, inode.bytes(0, size));
        };
        place(ROOT, &self.inode(FOLDER | 0o755, 2, geometry.root_folder(), 1, identity));
        if geometry.journal > 0 {
            place(JOURNAL, &self.journal_inode(geometry, identity));
        }
        block
    }

    fn journal_inode(&self, geometry: &Geometry, identity: &Identity) -> Block {
        self.inode(REGULAR | 0o600, 1, geometry.journal_start(), geometry.journal, identity)
    }

    /// An inode with one stretch of blocks.
    fn inode(&self, mode: u16, links: u16, start: u64, blocks: u32, identity: &Identity) -> Block {
        let mut block = Block::default();
        block.u16(0x00, mode);
        block.u32(0x04, blocks * BLOCK as u32);
        for times in [0x08, 0x0c, 0x10] {
            block.u32(times, identity.time);
        }
        block.u16(0x1a, links);
        // In units of 512 bytes.
        block.u32(0x1c, blocks * 8);
        block.u32(0x20, EXTENTS);
        // The head of a tree of extents without levels, with one entry of at most four.
        block.u16(0x28, 0xf30a);
        block.u16(0x2a, 1);
        block.u16(0x2c, 4);
        // The first entry: from the file's block 0 on.
        block.u16(0x38, blocks as u16);
        block.u32(0x3c, start as u32);
        if self.inode_size > 128 {
            block.u16(0x80, EXTRA);
            block.u32(0x90, identity.time);
        }
        block
    }

    /// A journal without transactions. All of it, since the kernel reads on behind the last transaction after a crash.
    fn write_journal(&self, device: &File, geometry: &Geometry, identity: &Identity) -> Result<(), Error> {
        if geometry.journal == 0 {
            return Ok(());
        }
        let mut block = Block::default();
        for (offset, value) in [
            (0x00, 0xc03b_3998),
            // A superblock of version 2.
            (0x04, 4),
            (0x0c, BLOCK as u32),
            (0x10, geometry.journal),
            // The first block of the log, the first transaction's number, and no transaction.
            (0x14, 1),
            (0x18, 1),
            // Of one file system.
            (0x40, 1),
        ] {
            block.u32_big_endian(offset, value);
        }
        block.copy(0x30, &identity.id);
        write(device, geometry.journal_start(), &block)?;
        let zeros = vec![0; 64 * BLOCK];
        let mut left = u64::from(geometry.journal - 1) * BLOCK as u64;
        let mut at = (geometry.journal_start() + 1) * BLOCK as u64;
        while left > 0 {
            let length = left.min(zeros.len() as u64);
            device.write_all_at(&zeros[..length as usize], at)?;
            (at, left) = (at + length, left - length);
        }
        Ok(())
    }
}

/// Why there is no file system.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no room for its own data.
    #[error("{0} bytes are too few for an ext4 file system of this kind; next: give it a larger disk, or fewer inodes")]
    TooSmall(u64),
    /// A value that no file system has.
    #[error("{0}; next: correct the options of the file system")]
    Options(&'static str),
    /// The device could not be written.
    #[error("the device can't be written: {0}; next: check the disk and the kernel's log")]
    Io(#[from] io::Error),
}

/// What no other file system has.
struct Identity {
    id: [u8; 16],
    hash_seed: [u8; 16],
    /// Seconds since 1970.
    time: u32,
}

impl Identity {
    fn new() -> io::Result<Self> {
        let (mut id, mut hash_seed) = ([0; 16], [0; 16]);
        let mut random = File::open("/dev/urandom")?;
        random.read_exact(&mut id)?;
        random.read_exact(&mut hash_seed)?;
        // A random UUID (RFC 9562, version 4).
        id[6] = id[6] & 0x0f | 0x40;
        id[8] = id[8] & 0x3f | 0x80;
        let time = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Self { id, hash_seed, time: time.as_secs() as u32 })
    }
}

fn write(device: &File, number: u64, block: &Block) -> Result<(), Error> {
    Ok(device.write_all_at(block.bytes(0, BLOCK), number * BLOCK as u64)?)
}

/// The root folder, which has only itself in it.
fn root_folder() -> Block {
    let mut block = Block::default();
    for (at, length, name) in [(0, 12, "."), (12, BLOCK as u16 - 12, "..")] {
        block.u32(at, ROOT);
        block.u16(at + 4, length);
        block.copy(at + 6, &[name.len() as u8, 2]);
        block.copy(at + 8, name.as_bytes());
    }
    block
}

/// What a mount of such a file system is to have among its options.
pub const MOUNT_OPTION: &str = "noinit_itable";

const BLOCK: usize = 4096;
/// Blocks of a group: as many as a block has bits.
const GROUP: u32 = 32768;
/// Bytes, and where it is on the device.
const SUPERBLOCK: usize = 1024;
const ROOT: u32 = 2;
const JOURNAL: u32 = 8;
/// Inodes that are taken, of which only those two are anything.
const RESERVED_INODES: u32 = 10;
/// Bytes that an inode has in use beyond 128.
const EXTRA: u16 = 32;
const FOLDER: u16 = 0o040_000;
const REGULAR: u16 = 0o100_000;
/// In an inode: what it has are extents.
const EXTENTS: u32 = 0x8_0000;
const HAS_JOURNAL: u32 = 0x4;
/// ext_attr, dir_index, sparse_super2.
const COMPATIBLE: u32 = 0x8 | 0x20 | 0x200;
/// filetype, extents.
const INCOMPATIBLE: u32 = 0x2 | 0x40;
/// sparse_super, large_file, huge_file, gdt_csum, dir_nlink.
const READ_ONLY_COMPATIBLE: u32 = 0x1 | 0x2 | 0x8 | 0x10 | 0x20;
const EXTRA_ISIZE: u32 = 0x40;
