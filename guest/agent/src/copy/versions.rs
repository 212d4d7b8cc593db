//! Versions of a volume: Kubernetes puts each into a folder of its own and swaps one link. What that led to before is out of use,
//! and a secret that is out of use stays nowhere.

use std::ffi::CStr;
use std::os::fd::AsFd;

use rustix::fs::{AtFlags, Dir, Mode, OFlags, ResolveFlags, openat2, unlinkat};
use rustix::io::{Errno, Result};

/// The link that leads to the version in use.
pub(super) const CURRENT: &str = "..data";

/// Removes the folder beside the link that it led to `before`. Only what has the name of a version goes: neither other files nor
/// anything elsewhere, wherever links lead.
pub(super) fn remove_outdated(around: impl AsFd, before: &CStr, now: &str) {
    let is_version = |name: &str| name.starts_with("..") && name.len() > 2 && !name.contains('/') && name != CURRENT;
    let Ok(name) = before.to_str() else { return };
    if name == now || !is_version(name) || !is_version(now) {
        return;
    }
    match remove(around, before, MAX_DEPTH) {
        // Gone already, or no folder.
        Ok(()) | Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => {}
        Err(error) => tracing::warn!(version = name, %error, "a volume's old version can't be removed"),
    }
}

fn remove(parent: impl AsFd, name: &CStr, depth: usize) -> Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = openat2(&parent, name, flags, Mode::empty(), INSIDE)?;
    for entry in Dir::read_from(&folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        match unlinkat(&folder, name, AtFlags::empty()) {
            // Deeper than anything that was copied: a container's.
            Err(Errno::ISDIR) if depth == 0 => return Err(Errno::NAMETOOLONG),
            Err(Errno::ISDIR) => remove(&folder, name, depth - 1)?,
            Err(Errno::NOENT) => {}
            removed => removed?,
        }
    }
    unlinkat(&parent, name, AtFlags::REMOVEDIR)
}

/// A mount in between belongs to somebody.
const INSIDE: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
const MAX_DEPTH: usize = super::MAX_DEPTH;
