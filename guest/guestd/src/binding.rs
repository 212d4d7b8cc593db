//! Decides whether the initdata on the guest's disk is the one that this guest was started for.

use std::fs::{self, File};
use std::io;
use std::path::PathBuf;

use evidence::{Attester, Binding, InitDataDigest};
use wire::initdata::{self, InitData};

/// Finds the initdata disk and checks it against the digest that the virtual machine was started with.
///
/// On a TEE that digest stands in a register, or is extended into one. Without one (coco-dev) it is the kernel's command
/// line that binds it: that protects against a disk changed alone, not against a host that changes both.
///
/// # Errors
/// [`Error`] for a disk without a digest, a digest without a disk, and one that does not fit the other.
pub(crate) fn initdata(attester: &Attester) -> Result<Option<InitData>, Error> {
    let command_line = fs::read_to_string("/proc/cmdline").map_err(Error::CommandLine)?;
    let bound = bound_digest(&command_line)?;
    let disk = find_disk()?;
    bind(disk, bound, |digest| attester.check_initdata(&digest))
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
    #[error("{0}; nothing of it was applied")]
    Hardware(#[from] evidence::Error),
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

/// Decides on what was found. `hardware` asks the TEE.
fn bind(
    disk: Option<InitData>,
    command_line: Option<Vec<u8>>,
    hardware: impl FnOnce(InitDataDigest) -> Result<Binding, evidence::Error>,
) -> Result<Option<InitData>, Error> {
    let Some(initdata) = disk else {
        return if command_line.is_some() { Err(Error::NoDisk) } else { Ok(None) };
    };
    let found = initdata.digest();
    // Where both are there, both have to fit.
    match &command_line {
        Some(bound) if *bound != found => {
            return Err(Error::Digest { found: hex::encode(found), bound: hex::encode(bound) });
        }
        _ => {}
    }
    match hardware((&initdata).into())? {
        Binding::Matched { .. } | Binding::Extended { .. } => Ok(Some(initdata)),
        Binding::Unsupported if command_line.is_some() => Ok(Some(initdata)),
        Binding::Unsupported => Err(Error::NoDigest),
    }
}

/// Prefixed, since the kernel takes parameters that it knows for its own.
const PARAMETER: &str = "cocoon.initdata";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_bound_document_is_accepted() {
        let (meant, changed) = (document(""), document("\n"));
        let by_command_line = |disk: &InitData, bound: Option<&[u8]>| {
            bind(Some(disk.clone()), bound.map(<[u8]>::to_vec), |_| Ok(Binding::Unsupported))
        };
        assert_eq!(by_command_line(&meant, Some(&meant.digest())).unwrap(), Some(meant.clone()));
        let error = by_command_line(&changed, Some(&meant.digest())).unwrap_err().to_string();
        assert!(error.contains("nothing of it was applied"), "{error}");
        // As the page about troubles has it, but for the digests.
        let page = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/troubleshooting.md"));
        let (begin, end) =
            (error.split_once(&hex::encode(changed.digest())).unwrap().0, error.rsplit_once("; nothing").unwrap().1);
        assert!(
            page.contains(begin.trim_end()) && page.contains(&format!("`nothing{end}`")),
            "the page lacks: {error}"
        );
        assert!(by_command_line(&meant, Some(&meant.digest()[..31])).is_err());
        assert!(matches!(by_command_line(&meant, None), Err(Error::NoDigest)));
        assert!(matches!(bind(None, Some(meant.digest()), |_| unreachable!()), Err(Error::NoDisk)));
        assert_eq!(bind(None, None, |_| unreachable!()).unwrap(), None);
    }

    #[test]
    fn the_hardware_decides_where_it_can() {
        let meant = document("");
        let refusal =
            || evidence::Error::InitData { register: "HOST_DATA", expected: "00".to_owned(), actual: "01".to_owned() };
        for binding in [Binding::Matched { register: "HOST_DATA" }, Binding::Extended { pcr: 8 }] {
            let bound = bind(Some(meant.clone()), None, |digest| {
                assert_eq!(digest.as_bytes(), meant.digest());
                Ok(binding)
            });
            assert_eq!(bound.unwrap(), Some(meant.clone()));
        }
        // Whatever the host writes on the command line.
        let error = bind(Some(meant.clone()), Some(meant.digest()), |_| Err(refusal())).unwrap_err().to_string();
        assert!(error.contains("HOST_DATA") && error.contains("nothing of it was applied"), "{error}");
    }

    fn document(more: &str) -> InitData {
        InitData::parse(format!("version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n{more}")).unwrap()
    }

    #[test]
    fn the_digest_is_a_word_of_the_command_line() {
        assert_eq!(bound_digest("console=ttyS0 cocoon.initdata=00ff quiet\n").unwrap(), Some(vec![0, 255]));
        assert_eq!(bound_digest("console=ttyS0 xcocoon.initdata=00").unwrap(), None);
        assert_eq!(bound_digest("cocoon.initdatax=00").unwrap(), None);
        assert!(bound_digest("cocoon.initdata=0").is_err());
    }
}
