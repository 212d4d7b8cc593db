//! Users and groups of a container, looked up in its own root file system.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

/// The numbers that a process runs as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) additional_gids: Vec<u32>,
}

impl User {
    /// Finds what `user[:group]` stands for in the root file system at `rootfs`.
    ///
    /// Numbers stand for themselves. A user without a group gets the group of its line in `/etc/passwd` (0 where
    /// it has none), and the groups of `/etc/group` that list it.
    ///
    /// # Errors
    /// [`Error`] where a name is not found or a file can't be read.
    pub(crate) fn resolve(rootfs: &Path, text: &str) -> Result<Self, Error> {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
            None => (text, None),
        };
        let user = if user.is_empty() { "0" } else { user };
        let account = Account::find(rootfs, user)?;
        let uid = match (&account, user.parse()) {
            (Some(account), _) => account.uid,
            (None, Ok(uid)) => uid,
            (None, Err(_)) => return Err(Error::NoUser(user.to_owned())),
        };
        let Some(group) = group else {
            let gid = account.as_ref().map_or(0, |account| account.gid);
            let mut additional_gids = match &account {
                Some(account) => groups_of(rootfs, &account.name)?,
                None => Vec::new(),
            };
            additional_gids.retain(|&other| other != gid);
            return Ok(Self { uid, gid, additional_gids });
        };
        let gid = match group.parse() {
            Ok(gid) => gid,
            Err(_) => group_id(rootfs, group)?,
        };
        Ok(Self { uid, gid, additional_gids: Vec::new() })
    }
}

/// The home folder of the user with that number, if the root file system at `rootfs` knows one.
pub(crate) fn home(rootfs: &Path, uid: u32) -> Option<String> {
    let line = |fields: &[&str]| {
        let [_, _, number, _, _, home, ..] = fields else { return None };
        (number.parse() == Ok(uid)).then(|| (*home).to_owned())
    };
    find(rootfs, PASSWD, line).ok()?
}

/// Why a user can't be looked up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("user {0:?} is not in the image's /etc/passwd; next: name a user of the image, or a number")]
    NoUser(String),
    #[error("group {0:?} is not in the image's /etc/group; next: name a group of the image, or a number")]
    NoGroup(String),
    #[error("the image's /{0} can't be read: {1}; next: use numbers for user and group")]
    Read(&'static str, std::io::Error),
}

/// A line of `/etc/passwd`.
struct Account {
    name: String,
    uid: u32,
    gid: u32,
}

impl Account {
    fn find(rootfs: &Path, user: &str) -> Result<Option<Self>, Error> {
        let number: Option<u32> = user.parse().ok();
        find(rootfs, PASSWD, |fields| {
            let [name, _, uid, gid, ..] = fields else { return None };
            let account = Self { name: (*name).to_owned(), uid: uid.parse().ok()?, gid: gid.parse().ok()? };
            (number.map_or(*name == user, |number| account.uid == number)).then_some(account)
        })
    }
}

fn group_id(rootfs: &Path, group: &str) -> Result<u32, Error> {
    let found = find(rootfs, GROUP, |fields| match fields {
        [name, _, gid, ..] if *name == group => gid.parse().ok(),
        _ => None,
    })?;
    found.ok_or_else(|| Error::NoGroup(group.to_owned()))
}

fn groups_of(rootfs: &Path, user: &str) -> Result<Vec<u32>, Error> {
    let mut gids = Vec::new();
    find(rootfs, GROUP, |fields| {
        if let [_, _, gid, members] = fields
            && members.split(',').any(|member| member == user)
            && let Ok(gid) = gid.parse()
            && gids.len() < MAX_GROUPS
        {
            gids.push(gid);
        }
        None::<()>
    })?;
    Ok(gids)
}

/// The first line that `pick` takes, of a file whose fields are separated by colons. A file that is not there is empty.
fn find<T>(rootfs: &Path, file: &'static str, mut pick: impl FnMut(&[&str]) -> Option<T>) -> Result<Option<T>, Error> {
    // The path is resolved as inside the container: a link in the image never leads out of it.
    let open = || {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let root = openat2(CWD, rootfs, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), ResolveFlags::empty())?;
        openat2(root, file, flags, Mode::empty(), ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS)
    };
    let opened = match open() {
        Ok(opened) => std::fs::File::from(opened),
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(None),
        Err(error) => return Err(Error::Read(file, error.into())),
    };
    if !opened.metadata().map_err(|e| Error::Read(file, e))?.is_file() {
        return Err(Error::Read(file, std::io::Error::other("it is not a regular file")));
    }
    for line in BufReader::new(opened.take(MAX_FILE)).split(b'\n') {
        let line = line.map_err(|e| Error::Read(file, e))?;
        let Ok(line) = std::str::from_utf8(&line) else { continue };
        let fields: Vec<&str> = line.trim().split(':').collect();
        if let Some(picked) = pick(&fields) {
            return Ok(Some(picked));
        }
    }
    Ok(None)
}

const PASSWD: &str = "etc/passwd";
const GROUP: &str = "etc/group";
const MAX_FILE: u64 = 1 << 20;
const MAX_GROUPS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;

    fn rootfs(passwd: &str, group: &str) -> tempfile::TempDir {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        fs::write(rootfs.path().join("etc/passwd"), passwd).unwrap();
        fs::write(rootfs.path().join("etc/group"), group).unwrap();
        rootfs
    }

    fn user(uid: u32, gid: u32, additional_gids: &[u32]) -> User {
        User { uid, gid, additional_gids: additional_gids.to_vec() }
    }

    #[test]
    fn users_and_groups_are_numbers_or_names_of_the_image() {
        let image = rootfs(
            "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102::/:/bin/sh\nbad line\nodd:x:notanumber:1::/:\n",
            "root:x:0:\nweb:x:102:\nlogs:x:200:other,web\nmail:x:201:web\nwww:x:202:webmaster\n",
        );
        for (text, expected) in [
            ("", user(0, 0, &[])),
            ("root", user(0, 0, &[])),
            ("web", user(101, 102, &[200, 201])),
            ("101", user(101, 102, &[200, 201])),
            ("web:mail", user(101, 201, &[])),
            ("web:7", user(101, 7, &[])),
            ("5000", user(5000, 0, &[])),
            ("5000:6000", user(5000, 6000, &[])),
            ("web:", user(101, 102, &[200, 201])),
            (":mail", user(0, 201, &[])),
        ] {
            assert_eq!(User::resolve(image.path(), text).unwrap(), expected, "{text:?}");
        }
        for (text, part) in
            [("nobody", "/etc/passwd"), ("web:none", "/etc/group"), ("odd", "/etc/passwd"), ("-1", "/etc/passwd")]
        {
            assert!(User::resolve(image.path(), text).unwrap_err().to_string().contains(part), "{text:?}");
        }
    }

    #[test]
    fn an_image_without_the_files_still_has_numbers() {
        let image = tempfile::tempdir().unwrap();
        assert_eq!(User::resolve(image.path(), "12:34").unwrap(), user(12, 34, &[]));
        assert!(User::resolve(image.path(), "web").is_err());
    }

    #[test]
    fn a_link_in_the_image_never_leads_out_of_it() {
        let outside = tempfile::tempdir().unwrap();
        fs::write(outside.path().join("passwd"), "spy:x:666:666::/:\n").unwrap();
        let image = tempfile::tempdir().unwrap();
        fs::create_dir(image.path().join("etc")).unwrap();
        std::os::unix::fs::symlink(outside.path().join("passwd"), image.path().join("etc/passwd")).unwrap();
        assert!(matches!(User::resolve(image.path(), "spy"), Err(Error::NoUser(_))));
    }

    #[test]
    fn only_regular_files_are_read() {
        let image = tempfile::tempdir().unwrap();
        fs::create_dir_all(image.path().join("etc/passwd")).unwrap();
        assert!(matches!(User::resolve(image.path(), "web"), Err(Error::Read(..))));
    }

    proptest! {
        #[test]
        fn no_file_makes_it_panic(passwd in "[a-c:,0-9\\n]{0,80}", group in "[a-c:,0-9\\n]{0,80}", text in "[a-c:0-9]{0,6}") {
            let image = rootfs(&passwd, &group);
            let _ = User::resolve(image.path(), &text);
        }
    }
}
