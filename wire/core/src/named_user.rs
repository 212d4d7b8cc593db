//! Numbers that stand for the names of an image's users and groups, between the node's snapshotter and its shims.
//!
//! containerd asks for numbers before there is a guest, and only the guest has the image's `/etc/passwd`. So containerd is
//! given one of these numbers, and the shim turns it back. Nobody else has them: users of nodes and images have lower ones.

use std::ops::RangeInclusive;

/// All of them.
pub const NUMBERS: RangeInclusive<u32> = 0x6000_0000..=0x6fff_ffff;
