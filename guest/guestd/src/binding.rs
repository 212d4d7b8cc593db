//! Decides whether the initdata on the guest's disk is the one that this guest was started for.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use wire::initdata::{self, InitData};

/// Finds the initdata disk and checks it against the digest that the virtual machine was started with.
///
/// On a TEE that digest stands in a register. Without one (coco-dev) it is the kernel's command line that binds it:
/// that protects against a disk changed alone, not against a host that changes both.
///
/// # Errors
/// [`Error`] for a disk without a digest, a digest without a disk, and one that does not fit the other.
pub(crate) fn initdata() -> Result<Option<InitData>, Error> {
    let command_line = fs::read_to_string("/proc/cmdline").map_err(Error::CommandLine)?;
    let bound = bound_digest(&command_line)?;
    let disk = find_disk()?;
    match (disk, bound) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(Error::NoDisk),
        (Some(_), None) => Err(Error::NoDigest),
        (Some(initdata), Some(bound)) => check(initdata, &bound).map(Some),
    }
}

/// Why the guest does not start with this initdata. Nothing of it has been used then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error("initdata: the kernel's command line can't be read: {0}")]
    CommandLine(io::Error),
    #[error("initdata: {PARAMETER}= on the kernel's command line is not a hex digest; next: let \"cocoon run\" set it")]
    Parameter,
    #[error("initdata: the disks can't be searched: {0}")]
    Disks(io::Error),
    #[error("initdata: its disk can't be used: {0}; next: build it with \"cocoon initdata build\"")]
    Disk(initdata::Error),
    #[error("initdata: a digest was given and no disk holds a document; next: attach the initdata disk")]
    NoDisk,
    #[error("initdata: a disk holds a document and no digest was given that binds it; nothing of it was applied")]
    NoDigest,
    #[error(
        "initdata: the document on the disk has digest {found}, the guest was started for {bound}; nothing of it \
         was applied; next: start the guest with the document that its owner wrote"
    )]
    Digest { found: String, bound: String },
}

fn bound_digest(command_line: &str) -> Result<Option<Vec<u8>>, Error> {
    let Some(digest) = command_line
        .split_ascii_whitespace()
        .find_map(|word| word.strip_prefix(PARAMETER).and_then(|rest| rest.strip_prefix('=')))
    else {
        return Ok(None);
    };
    hex::decode(digest).map(Some).map_err(|_| Error::Parameter)
}

/// The first block device that starts with the initdata magic.
fn find_disk() -> Result<Option<InitData>, Error> {
    let mut names: Vec<_> =
        fs::read_dir("/sys/block").map_err(Error::Disks)?.flatten().map(|entry| entry.file_name()).collect();
    names.sort();
    for name in names {
        let device = PathBuf::from("/dev").join(name);
        let disk = File::open(device).map_err(|error| Error::Disk(error.into()))?;
        match InitData::from_disk(disk) {
            Ok(initdata) => return Ok(Some(initdata)),
            // Another disk, or one too short to hold anything.
            Err(initdata::Error::NotInitData) => {}
            Err(initdata::Error::Io(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {}
            Err(error) => return Err(Error::Disk(error)),
        }
    }
    Ok(None)
}

fn check(initdata: InitData, bound: &[u8]) -> Result<InitData, Error> {
    let found = initdata.digest();
    if found == bound {
        Ok(initdata)
    } else {
        Err(Error::Digest { found: hex::encode(found), bound: hex::encode(bound) })
    }
}

/// Prefixed, since the kernel takes parameters that it knows for its own.
const PARAMETER: &str = "cocoon.initdata";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bound_document_is_accepted() {
        let text = "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n";
        let meant = InitData::parse(text.to_owned()).unwrap();
        let changed = InitData::parse(format!("{text}\n")).unwrap();

        assert!(check(meant.clone(), &meant.digest()).is_ok());
        let error = check(changed, &meant.digest()).unwrap_err().to_string();
        assert!(error.contains("nothing of it was applied"), "{error}");
        assert!(check(meant.clone(), &meant.digest()[..31]).is_err());
    }

    #[test]
    fn the_digest_is_a_word_of_the_command_line() {
        assert_eq!(bound_digest("console=ttyS0 cocoon.initdata=00ff quiet\n").unwrap(), Some(vec![0, 255]));
        assert_eq!(bound_digest("console=ttyS0 xcocoon.initdata=00").unwrap(), None);
        assert_eq!(bound_digest("cocoon.initdatax=00").unwrap(), None);
        assert!(bound_digest("cocoon.initdata=0").is_err());
    }
}
