//! The flags of a mount.

use nix::mount::MsFlags;

use crate::Error;

/// Parsed flags; access times are not kept unless a flag says so, which saves writes as upstream does.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Flags(MsFlags);

impl Flags {
    /// Reads flags as `mount -o` has them: one a string, or several with commas between. The last of two that
    /// contradict one another counts.
    pub(crate) fn parse(flags: &[String]) -> Result<Self, Error> {
        let mut parsed = Self(MsFlags::MS_NOATIME);
        for flag in flags.iter().flat_map(|flags| flags.split(',')).filter(|flag| !flag.is_empty()) {
            parsed.add(flag)?;
        }
        Ok(parsed)
    }

    /// For a raw device, which only knows whether it can be written.
    pub(crate) fn parse_for_device(flags: &[String]) -> Result<Self, Error> {
        let parsed = Self::parse(flags)?;
        let mut words = flags.iter().flat_map(|flags| flags.split(',')).filter(|flag| !flag.is_empty());
        match words.find(|flag| !["ro", "rw"].contains(flag)) {
            Some(flag) => Err(Error::Flag(flag.to_owned())),
            None => Ok(parsed),
        }
    }

    pub(crate) fn read_only(self) -> bool {
        self.0.contains(MsFlags::MS_RDONLY)
    }

    pub(crate) fn bits(self) -> MsFlags {
        self.0
    }

    fn add(&mut self, flag: &str) -> Result<(), Error> {
        let access_times = MsFlags::MS_NOATIME | MsFlags::MS_RELATIME | MsFlags::MS_STRICTATIME;
        let (clear, set) = match flag {
            "ro" => (MsFlags::empty(), MsFlags::MS_RDONLY),
            "rw" => (MsFlags::MS_RDONLY, MsFlags::empty()),
            "noexec" => (MsFlags::empty(), MsFlags::MS_NOEXEC),
            "exec" => (MsFlags::MS_NOEXEC, MsFlags::empty()),
            "nosuid" => (MsFlags::empty(), MsFlags::MS_NOSUID),
            "suid" => (MsFlags::MS_NOSUID, MsFlags::empty()),
            "nodev" => (MsFlags::empty(), MsFlags::MS_NODEV),
            "dev" => (MsFlags::MS_NODEV, MsFlags::empty()),
            "noatime" => (access_times, MsFlags::MS_NOATIME),
            "relatime" => (access_times, MsFlags::MS_RELATIME),
            "strictatime" => (access_times, MsFlags::MS_STRICTATIME),
            "nodiratime" => (MsFlags::empty(), MsFlags::MS_NODIRATIME),
            "sync" => (MsFlags::empty(), MsFlags::MS_SYNCHRONOUS),
            "dirsync" => (MsFlags::empty(), MsFlags::MS_DIRSYNC),
            "lazytime" => (MsFlags::empty(), MsFlags::MS_LAZYTIME),
            _ => return Err(Error::Flag(flag.chars().take(40).collect())),
        };
        self.0.remove(clear);
        self.0.insert(set);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flags(words: &[&str]) -> Result<Flags, Error> {
        Flags::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn flags_come_alone_or_with_commas_and_the_last_one_counts() {
        assert_eq!(flags(&[]).unwrap().bits(), MsFlags::MS_NOATIME);
        assert_eq!(
            flags(&["ro,noexec", "nosuid"]).unwrap().bits(),
            MsFlags::MS_NOATIME | MsFlags::MS_RDONLY | MsFlags::MS_NOEXEC | MsFlags::MS_NOSUID
        );
        assert!(!flags(&["ro", "rw"]).unwrap().read_only());
        assert_eq!(flags(&["strictatime", "relatime"]).unwrap().bits(), MsFlags::MS_RELATIME);
    }

    #[test]
    fn a_flag_that_would_be_lost_is_refused() {
        for word in ["bind", "remount", "noexce", "errors=panic", "ro ", "user_xattr"] {
            assert!(matches!(flags(&[word]), Err(Error::Flag(flag)) if flag == word));
        }
        assert!(Flags::parse_for_device(&["ro".to_owned()]).unwrap().read_only());
        assert!(
            matches!(Flags::parse_for_device(&["ro,noexec".to_owned()]), Err(Error::Flag(flag)) if flag == "noexec")
        );
    }
}
