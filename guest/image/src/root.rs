//! A directory that nothing gets out of: names are resolved by the kernel with this directory as their root.
//!
//! `openat2` with `RESOLVE_IN_ROOT` treats `/`, `..` and absolute link targets as if the process had changed its root,
//! and no race with other writers can get around it. Everything else works on the last component alone, through the
//! descriptor of its parent, and follows no link.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawMode, ResolveFlags, XattrFlags};
use rustix::io::Errno;

/// The root of a layer.
pub(crate) struct Root {
    directory: OwnedFd,
    /// The parent of the last entry: archives list a directory's entries together.
    last: Option<(Vec<u8>, Rc<OwnedFd>)>,
}

/// A place below a root: no `.`, no `..`, no slash at either end. Empty for the root itself.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub(crate) struct Place(Vec<u8>);

impl Place {
    /// Reads a name of an archive. Leading slashes are dropped; a name with `..` or a NUL byte is none.
    pub(crate) fn parse(name: &[u8]) -> Option<Self> {
        let mut place = Vec::with_capacity(name.len());
        for component in name.split(|byte| *byte == b'/') {
            match component {
                b"" | b"." => {}
                b".." => return None,
                component if component.contains(&0) => return None,
                component => {
                    if !place.is_empty() {
                        place.push(b'/');
                    }
                    place.extend_from_slice(component);
                }
            }
        }
        Some(Self(place))
    }

    pub(crate) fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// Splits into the parent and the last component.
    pub(crate) fn split(&self) -> (&[u8], &[u8]) {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(slash) => (&self.0[..slash], &self.0[slash + 1..]),
            None => (b"", &self.0),
        }
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// This place and those above it, without the root, from the top down.
    pub(crate) fn ancestry(&self) -> impl Iterator<Item = Self> + '_ {
        let ends = (0..self.0.len()).filter(|index| self.0[*index] == b'/').chain([self.0.len()]);
        ends.filter(|end| *end > 0).map(|end| Self(self.0[..end].to_vec()))
    }
}

impl Root {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self { directory: rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty())?, last: None })
    }

    /// Opens the directory at `parent`, through links that stay inside the root.
    ///
    /// A missing directory is made, and `made` is told of each.
    pub(crate) fn parent(&mut self, parent: &[u8], made: &mut impl FnMut(Place)) -> rustix::io::Result<Rc<OwnedFd>> {
        if let Some((path, descriptor)) = &self.last
            && path == parent
        {
            return Ok(descriptor.clone());
        }
        let descriptor = match self.resolve(parent) {
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_all(&Place(parent.to_vec()), made)?,
            other => other?,
        };
        let descriptor = Rc::new(descriptor);
        self.last = Some((parent.to_vec(), descriptor.clone()));
        Ok(descriptor)
    }

    /// Must be called whenever a directory or a link was removed: the remembered parent could be gone.
    pub(crate) fn forget(&mut self) {
        self.last = None;
    }

    /// Opens a directory for its metadata; its last component is not followed if it is a link.
    pub(crate) fn directory(&self, place: &Place) -> rustix::io::Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = if place.is_root() { &b"."[..] } else { &place.0 };
        rustix::fs::openat2(&self.directory, path, flags, Mode::empty(), CONTAINED)
    }

    pub(crate) fn resolve(&self, directory: &[u8]) -> rustix::io::Result<OwnedFd> {
        let path = if directory.is_empty() { &b"."[..] } else { directory };
        rustix::fs::openat2(&self.directory, path, DIRECTORY, Mode::empty(), CONTAINED)
    }

    fn make_all(&self, path: &Place, made: &mut impl FnMut(Place)) -> rustix::io::Result<OwnedFd> {
        let mut parent = self.resolve(b"")?;
        for place in path.ancestry() {
            let name = place.split().1;
            parent = match open_below(&parent, name) {
                // A link: only from the root can the kernel keep it inside. What it leads to is not made.
                Err(Errno::NOTDIR | Errno::LOOP) if !is_whiteout(parent.as_fd(), name)? => {
                    self.resolve(&place.0).map_err(|e| if e == Errno::NOENT { Errno::NOTDIR } else { e })?
                }
                Err(Errno::NOENT | Errno::NOTDIR) => {
                    make_directory(parent.as_fd(), name)?;
                    // Whatever this process's umask is.
                    rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
                    let descriptor = open_below(&parent, name)?;
                    made(place);
                    descriptor
                }
                other => other?,
            };
        }
        Ok(parent)
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

fn open_below(parent: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    rustix::fs::openat(parent, name, DIRECTORY | OFlags::NOFOLLOW, Mode::empty())
}

/// Makes a directory. Over a whiteout of the same layer it hides what lower layers have there.
pub(crate) fn make_directory(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    match rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755)) {
        Err(Errno::EXIST) if is_whiteout(parent, name)? => {
            rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
            rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?;
            make_opaque(parent, name)
        }
        other => other,
    }
}

/// Marks a directory so that overlayfs hides what lower layers have in it.
pub(crate) fn make_opaque(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    rustix::fs::fsetxattr(&directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Makes overlayfs's form of a deletion: the character device 0:0.
pub(crate) fn make_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<()> {
    rustix::fs::mknodat(parent, name, FileType::CharacterDevice, Mode::empty(), 0)
}

pub(crate) fn is_whiteout(parent: BorrowedFd<'_>, name: &[u8]) -> rustix::io::Result<bool> {
    let stat = rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(file_type(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0)
}

pub(crate) fn file_type(mode: RawMode) -> FileType {
    FileType::from_raw_mode(mode)
}

const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);
const CONTAINED: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);
const OPAQUE: &str = "trusted.overlay.opaque";

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn names_are_put_below_the_root() {
        for (name, expected) in [
            (&b"a/b"[..], Some(&b"a/b"[..])),
            (b"./a//b/", Some(b"a/b")),
            (b"/etc/passwd", Some(b"etc/passwd")),
            (b"", Some(b"")),
            (b"./", Some(b"")),
            (b"..", None),
            (b"a/../b", None),
            (b"a\0b", None),
            (b"..a/...", Some(b"..a/...")),
            (b"\xff\xfe", Some(b"\xff\xfe")),
        ] {
            assert_eq!(Place::parse(name).as_ref().map(Place::as_bytes), expected, "{name:?}");
        }
    }

    #[test]
    fn ancestry_goes_from_the_top_down() {
        let names = |name: &[u8]| -> Vec<_> { Place::parse(name).unwrap().ancestry().map(|place| place.0).collect() };
        assert_eq!(names(b"a/bc/d"), [b"a".to_vec(), b"a/bc".to_vec(), b"a/bc/d".to_vec()]);
        assert!(names(b"").is_empty());
    }

    proptest! {
        #[test]
        fn a_place_never_leads_up(name in "[./a\\x00]{0,30}") {
            if let Some(place) = Place::parse(name.as_bytes()) {
                let bad = place.as_bytes().split(|b| *b == b'/').any(|c| c == b".." || c == b"." || c.contains(&0));
                prop_assert!(!bad && !place.as_bytes().starts_with(b"/"));
            }
        }
    }
}
