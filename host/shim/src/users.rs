//! The user that an image names, where a snapshotter has given containerd a number in its place.
//!
//! containerd finds the numbers of an image's user in the root file system on the host. A snapshotter whose images only
//! guests unpack has none to show: what it shows has a number for each name, and here the number becomes the name again.
//! The guest looks it up in the image.

use std::fs;
use std::path::Path;

use containerd_shim_protos::types::mount::Mount;
use wire::named_user::NUMBERS;
use wire_ttrpc::agent::StringUser;

use crate::Error;
use crate::image::VOLUME;
use crate::spec::User;

/// The user by its name, if it or its group has one in the root that containerd looked at.
///
/// # Errors
/// [`Error::User`] for a number that stands for a name that is not there any more.
pub(crate) fn by_name(user: &User, rootfs: &[Mount]) -> Result<Option<StringUser>, Error> {
    // In any other root the numbers are the image's own.
    let from_snapshotter = |mount: &&Mount| mount.options.iter().any(|option| option.starts_with(VOLUME));
    let Some(mount) = rootfs.iter().find(from_snapshotter) else { return Ok(None) };
    let etc = Path::new(&mount.source).join("etc");
    let (passwd, group) = (read(&etc.join("passwd")), read(&etc.join("group")));
    let account = line(&passwd, user.uid);
    // Its own group. Which one that is, the image says.
    let own = account.as_ref().and_then(|account| account.get(3)?.parse().ok()) == Some(user.gid);
    let group_line = line(&group, user.gid);
    let uid = match &account {
        Some(account) => account[0].to_owned(),
        None => number(user.uid)?,
    };
    let gid = match &group_line {
        _ if own => String::new(),
        Some(named) => named[0].to_owned(),
        None => number(user.gid)?,
    };
    if uid == user.uid.to_string() && gid == user.gid.to_string() {
        return Ok(None);
    }
    let more = user.additional_gids.iter().filter(|gid| **gid != user.gid && line(&group, **gid).is_none());
    let more = more.map(|gid| number(*gid)).collect::<Result<_, _>>()?;
    Ok(Some(StringUser { uid, gid, additionalGids: more, ..StringUser::default() }))
}

/// Refuses a command as a user by name: which numbers stand for names is known of a container's own user alone.
///
/// # Errors
/// [`Error::User`].
pub(crate) fn expect_known(asked: &User, own: (u32, u32)) -> Result<(), Error> {
    if (asked.uid, asked.gid) != own {
        number(asked.uid)?;
        number(asked.gid)?;
    }
    Ok(())
}

/// A number that is no name's.
fn number(id: u32) -> Result<String, Error> {
    match NUMBERS.contains(&id) {
        true => Err(Error::User),
        false => Ok(id.to_string()),
    }
}

/// The fields of the line that has this number; three at least.
fn line(text: &str, id: u32) -> Option<Vec<&str>> {
    let mut lines = text.lines().map(|line| line.split(':').collect::<Vec<_>>());
    lines.find(|fields| fields.get(2).is_some_and(|number| number.parse() == Ok(id)))
}

/// What can't be read has no names, and containerd has found none either.
fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_the_names_that_they_stand_for() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(
            root.path().join("etc/passwd"),
            "app:x:1610612737:1610612737:::\nweb:x:1610612738:1610612738:::\n65532:x:65532:1610612739:::\n",
        )
        .unwrap();
        fs::write(root.path().join("etc/group"), "web:x:1610612740:\n").unwrap();
        let options = vec!["bind".to_owned(), format!("{VOLUME}e30=")];
        let mount = Mount { source: root.path().display().to_string(), options, ..Mount::default() };
        let named = |uid, gid, more: &[u32]| {
            let user = User { uid, gid, additional_gids: more.to_vec(), ..User::default() };
            by_name(&user, std::slice::from_ref(&mount)).unwrap().map(|it| (it.uid, it.gid, it.additionalGids))
        };
        let text = |uid: &str, gid: &str, more: &[&str]| {
            Some((uid.to_owned(), gid.to_owned(), more.iter().map(ToString::to_string).collect()))
        };

        assert_eq!(named(1_610_612_738, 1_610_612_738, &[1_610_612_738, 3000]), text("web", "", &["3000"]));
        assert_eq!(named(1_610_612_738, 1_610_612_740, &[1_610_612_740]), text("web", "web", &[]));
        assert_eq!(named(1_610_612_737, 2000, &[2000]), text("app", "2000", &[]));
        assert_eq!(named(7, 1_610_612_740, &[]), text("7", "web", &[]));
        assert_eq!(named(65532, 1_610_612_739, &[1_610_612_739]), text("65532", "", &[]));
        for (uid, gid) in [(0, 0), (65532, 7), (1000, 1000)] {
            assert_eq!(named(uid, gid, &[gid]), None, "{uid}");
        }
        let unpacked = Mount { options: vec!["rbind".to_owned()], ..mount.clone() };
        for other in [&[][..], &[unpacked]] {
            assert!(by_name(&User { uid: 1_610_612_738, ..User::default() }, other).unwrap().is_none());
        }
        let unknown = User { uid: 1_610_612_740, ..User::default() };
        let error = by_name(&unknown, &[mount]).unwrap_err().to_string();
        assert!(error.contains("; next: "), "{error}");
        assert!(expect_known(&unknown, (0, 0)).is_err());
        expect_known(&unknown, (unknown.uid, unknown.gid)).unwrap();
        expect_known(&User { uid: 7, gid: 8, ..User::default() }, (0, 0)).unwrap();
    }
}
