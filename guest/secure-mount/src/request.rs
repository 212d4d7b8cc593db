//! A request for a volume: its options read into types, so that nothing in it goes unheeded.

use std::collections::HashMap;
use std::fmt;
use std::path::{Component, Path, PathBuf};

use ext4::Ext4;
use zeroize::Zeroizing;

use crate::Error;
use crate::flags::Flags;
use crate::mkfs;

/// A request as upstream's `SecureMount` carries it, with the key fetched.
#[derive(Clone)]
pub struct MountRequest {
    /// `block-device`
    pub volume_type: String,
    /// | option | values |
    /// |---|---|
    /// | `deviceId` | `MAJ:MIN`; counts before `devicePath` |
    /// | `devicePath` | an absolute path |
    /// | `sourceType` | `empty`, `encrypted` |
    /// | `targetType` | `device`: a link to the mapping; `fileSystem`: a mount |
    /// | `encryptionType` | `luks2`, the default |
    /// | `filesystemType` | `ext4`, the default |
    /// | `dataIntegrity` | `true`, `false`; without it a new volume has none, and an existing one tells |
    /// | `mkfsOpts` | options as mke2fs has them, with spaces between: `-I`, `-i`, `-L`, `-m`, `-O [^]has_journal` |
    /// | `mapperName` | the mapping's name; random if absent |
    /// | `key` | where the key comes from: not used here, but then `key` below must be there |
    pub options: HashMap<String, String>,
    /// As `mount -o` has them.
    pub flags: Vec<String>,
    /// An absolute path; made if absent.
    pub mount_point: PathBuf,
    /// The owner's key; without one a new volume is lost with the guest.
    pub key: Option<Zeroizing<Vec<u8>>>,
}

/// A request that can be carried out. Two that are equal ask for the same.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Volume {
    pub(crate) device: DeviceName,
    pub(crate) source: Source,
    pub(crate) target: Target,
    /// `None` if the request does not care.
    pub(crate) integrity: Option<bool>,
    pub(crate) mapper_name: Option<String>,
    pub(crate) flags: Flags,
    pub(crate) mount_point: PathBuf,
}

/// How the request names the device.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum DeviceName {
    Number { major: u32, minor: u32 },
    Path(PathBuf),
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Source {
    /// Under a random key that nobody keeps.
    Ephemeral,
    /// Under the owner's key, with a header to open it by later.
    New,
    /// There already.
    Existing,
}

#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Target {
    Device,
    FileSystem(Ext4),
}

impl MountRequest {
    /// Reads the request.
    pub(crate) fn parse(&self) -> Result<Volume, Error> {
        if self.volume_type != "block-device" {
            return Err(Error::Unsupported {
                what: "the volume type",
                found: cut(&self.volume_type),
                supported: "\"block-device\"",
            });
        }
        if let Some(key) = self.options.keys().find(|key| !OPTIONS.contains(&key.as_str())) {
            return Err(Error::UnknownOption { key: cut(key), nearest: nearest(key) });
        }
        let one_of = |option, supported| match self.option(option) {
            Some(found) if format!("\"{found}\"") != supported => {
                Err(Error::Unsupported { what: option, found: cut(found), supported })
            }
            _ => Ok(()),
        };
        one_of("encryptionType", "\"luks2\"")?;
        one_of("filesystemType", "\"ext4\"")?;

        let target = self.target()?;
        let flags = match target {
            Target::Device => Flags::parse_for_device(&self.flags)?,
            Target::FileSystem(_) => Flags::parse(&self.flags)?,
        };
        let source = self.source()?;
        if target == Target::Device && source != Source::Existing && flags.read_only() {
            // Nothing could ever be on it.
            return Err(Error::Flag("ro".to_owned()));
        }
        Ok(Volume {
            device: self.device()?,
            source,
            target,
            integrity: self.integrity()?,
            mapper_name: self.option("mapperName").map(mapper_name).transpose()?,
            flags,
            mount_point: mount_point(&self.mount_point)?,
        })
    }

    fn device(&self) -> Result<DeviceName, Error> {
        match (self.option("deviceId"), self.option("devicePath")) {
            (Some(id), _) => {
                let number = |text: &str| text.parse::<u32>().ok().filter(|_| text.bytes().all(|b| b.is_ascii_digit()));
                id.split_once(':')
                    .and_then(|(major, minor)| {
                        Some(DeviceName::Number { major: number(major)?, minor: number(minor)? })
                    })
                    .ok_or_else(|| value("deviceId", id, "two numbers, such as \"8:16\""))
            }
            (None, Some(path)) if path.starts_with('/') => Ok(DeviceName::Path(path.into())),
            (None, Some(path)) => Err(value("devicePath", path, "an absolute path")),
            (None, None) => Err(Error::MissingOption("deviceId or devicePath")),
        }
    }

    fn source(&self) -> Result<Source, Error> {
        let named = self.option("key").is_some_and(|key| !key.is_empty());
        match (self.option("sourceType"), &self.key) {
            // A volume under a random key would be made, and its data lost.
            (_, None) if named => Err(Error::KeyNotFetched),
            (Some("empty"), None) => Ok(Source::Ephemeral),
            (Some("empty"), Some(_)) => Ok(Source::New),
            (Some("encrypted"), Some(_)) => Ok(Source::Existing),
            (Some("encrypted"), None) => Err(Error::KeyMissing),
            (Some(found), _) => Err(value("sourceType", found, "\"empty\" or \"encrypted\"")),
            (None, _) => Err(Error::MissingOption("sourceType")),
        }
    }

    fn target(&self) -> Result<Target, Error> {
        let options = mkfs::parse(self.option("mkfsOpts").unwrap_or_default())?;
        match self.option("targetType") {
            Some("device") if self.option("mkfsOpts").is_some() => {
                Err(value("targetType", "device", "\"fileSystem\" with mkfsOpts"))
            }
            Some("device") => Ok(Target::Device),
            Some("fileSystem") => Ok(Target::FileSystem(options)),
            Some(found) => Err(value("targetType", found, "\"device\" or \"fileSystem\"")),
            None => Err(Error::MissingOption("targetType")),
        }
    }

    fn integrity(&self) -> Result<Option<bool>, Error> {
        match self.option("dataIntegrity") {
            None => Ok(None),
            Some("true") => Ok(Some(true)),
            Some("false") => Ok(Some(false)),
            Some(found) => Err(value("dataIntegrity", found, "\"true\" or \"false\"")),
        }
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }
}

impl fmt::Debug for MountRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = self.key.as_ref().map(|_| "...");
        f.debug_struct("MountRequest")
            .field("volume_type", &self.volume_type)
            .field("flags", &self.flags)
            .field("mount_point", &self.mount_point)
            .field("key", &key)
            .finish_non_exhaustive()
    }
}

/// A path that means the same wherever it is looked at from.
pub(crate) fn mount_point(path: &Path) -> Result<PathBuf, Error> {
    let refused = |reason| Err(Error::MountPoint { path: path.to_owned(), reason });
    if !path.is_absolute() {
        return refused("is not absolute");
    }
    if path.components().any(|component| matches!(component, Component::ParentDir)) {
        return refused("leads upwards");
    }
    let plain: PathBuf = path.components().collect();
    if plain == Path::new("/") { refused("is the root") } else { Ok(plain) }
}

fn mapper_name(name: &str) -> Result<String, Error> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_.+-".contains(&byte);
    let valid = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(allowed) && !name.starts_with('.');
    if valid {
        Ok(name.to_owned())
    } else {
        Err(value("mapperName", name, "1 to 100 letters, digits and any of \"_.+-\""))
    }
}

fn value(option: &'static str, found: &str, allowed: &'static str) -> Error {
    Error::Value { option, found: cut(found), allowed }
}

/// What a request says, short enough for an error text.
fn cut(text: &str) -> String {
    text.chars().take(60).collect()
}

fn nearest(key: &str) -> Option<&'static str> {
    let similarity = |option: &&'static str| strsim::jaro_winkler(&key.to_lowercase(), &option.to_lowercase());
    let best = OPTIONS.iter().copied().max_by(|a, b| similarity(a).total_cmp(&similarity(b)))?;
    (similarity(&best) > 0.8).then_some(best)
}

/// Every option of a block device.
pub(crate) const OPTIONS: [&str; 10] = [
    "deviceId",
    "devicePath",
    "sourceType",
    "targetType",
    "encryptionType",
    "filesystemType",
    "dataIntegrity",
    "mkfsOpts",
    "mapperName",
    "key",
];
/// The kernel's limit with room for the name of the mapping beneath.
const MAX_NAME: usize = 100;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(options: &[(&str, &str)]) -> MountRequest {
        MountRequest {
            volume_type: "block-device".to_owned(),
            options: options.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            flags: Vec::new(),
            mount_point: "/run/volume".into(),
            key: None,
        }
    }

    const EMPTY: [(&str, &str); 3] = [("deviceId", "254:16"), ("sourceType", "empty"), ("targetType", "fileSystem")];

    #[test]
    fn the_request_of_a_kata_agent_is_understood() {
        let options = [
            ("deviceId", "254:16"),
            ("sourceType", "empty"),
            ("targetType", "fileSystem"),
            ("filesystemType", "ext4"),
            ("mkfsOpts", "-E lazy_journal_init"),
            ("encryptionType", "luks2"),
            ("dataIntegrity", "false"),
        ];
        let volume = request(&options).parse().unwrap();
        assert_eq!(volume.device, DeviceName::Number { major: 254, minor: 16 });
        assert_eq!(volume.source, Source::Ephemeral);
        assert_eq!(volume.integrity, Some(false));
        assert!(matches!(volume.target, Target::FileSystem(_)));
    }

    #[test]
    fn the_key_decides_what_becomes_of_an_empty_device() {
        let with_key = MountRequest { key: Some(Zeroizing::new(vec![1])), ..request(&EMPTY) };
        assert_eq!(with_key.parse().unwrap().source, Source::New);
        assert_eq!(request(&EMPTY).parse().unwrap().source, Source::Ephemeral);
        let named = [&EMPTY[..], &[("key", "kbs:///default/key/1")]].concat();
        assert!(matches!(request(&named).parse(), Err(Error::KeyNotFetched)));
        let encrypted = [("devicePath", "/dev/vdb"), ("sourceType", "encrypted"), ("targetType", "device")];
        assert!(matches!(request(&encrypted).parse(), Err(Error::KeyMissing)));
    }

    #[test]
    fn what_is_not_understood_is_refused_with_what_would_be() {
        for (option, found, text) in [
            ("dataIntegrty", "true", "did you mean \"dataIntegrity\"?"),
            ("devicepath", "/dev/vdb", "did you mean \"devicePath\"?"),
            ("zpool", "tank", "use those of: deviceId"),
            ("encryptionType", "zfs", "\"zfs\" is not supported; next: use \"luks2\""),
            ("filesystemType", "xfs", "\"xfs\" is not supported; next: use \"ext4\""),
            ("dataIntegrity", "yes", "\"true\" or \"false\""),
            ("deviceId", "254", "two numbers"),
            ("deviceId", "+1:2", "two numbers"),
            ("sourceType", "full", "\"empty\" or \"encrypted\""),
            ("targetType", "fs", "\"device\" or \"fileSystem\""),
            ("mapperName", "../vda", "1 to 100 letters"),
            ("mkfsOpts", "-z /etc/passwd", "-z"),
        ] {
            let options: Vec<_> =
                EMPTY.into_iter().filter(|(key, _)| *key != option).chain([(option, found)]).collect();
            let error = request(&options).parse().unwrap_err().to_string();
            assert!(error.contains(text) && error.contains("next:"), "{option}={found} gave {error}");
        }
        let oss = MountRequest { volume_type: "alibaba-cloud-oss".to_owned(), ..request(&EMPTY) };
        let error = oss.parse().unwrap_err().to_string();
        assert!(error.contains("\"alibaba-cloud-oss\" is not supported; next: use \"block-device\""), "{error}");
    }

    #[test]
    fn what_is_missing_is_named() {
        for (missing, named) in
            [("deviceId", "deviceId or devicePath"), ("sourceType", "sourceType"), ("targetType", "targetType")]
        {
            let options: Vec<_> = EMPTY.into_iter().filter(|(key, _)| *key != missing).collect();
            assert!(matches!(request(&options).parse(), Err(Error::MissingOption(option)) if option == named));
        }
    }

    #[test]
    fn a_mount_point_is_a_plain_path() {
        for (path, plain) in
            [("/a//b/", Some("/a/b")), ("/a/./b", Some("/a/b")), ("a", None), ("/a/../b", None), ("/", None)]
        {
            let parsed = mount_point(Path::new(path)).ok();
            assert_eq!(parsed.as_deref(), plain.map(Path::new), "{path}");
        }
    }

    #[test]
    fn a_key_is_not_in_the_debug_form() {
        let request = MountRequest { key: Some(Zeroizing::new(b"secret".to_vec())), ..request(&EMPTY) };
        assert!(!format!("{request:?}").contains("115"));
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(options in proptest::collection::hash_map("[a-zA-Z]{0,16}", ".{0,40}", 0..8), path in ".{0,40}") {
            let request = MountRequest { options, mount_point: path.into(), ..request(&[]) };
            let _ = request.parse();
        }
    }
}
