//! Making an ext4 file system with `mke2fs`, on a device of which no sector has been written yet.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::Error;

/// Options of `mke2fs` that shape the file system and reach for nothing beyond it.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(crate) struct MkfsOptions {
    /// What follows `-E`, one a string.
    extended: Vec<String>,
    /// Everything else.
    plain: Vec<String>,
}

impl MkfsOptions {
    /// Reads options with spaces between, as a command line has them; there is no quoting.
    ///
    /// The request comes from the host, and some options of `mke2fs` read or write files of the guest (`-d`, `-z`, `-l`).
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let mut options = Self::default();
        let mut words = text.split_ascii_whitespace();
        while let Some(word) = words.next() {
            let refused = || Error::MkfsOption(word.chars().take(60).collect());
            let (option, joined) = word.split_at_checked(2).ok_or_else(refused)?;
            let value = if joined.is_empty() { words.next().ok_or_else(refused)? } else { joined };
            let harmless = |byte: u8| byte.is_ascii_alphanumeric() || b"_^=,.:+-".contains(&byte);
            if !value.bytes().all(harmless) || value.starts_with('-') {
                return Err(refused());
            }
            match option {
                "-E" => options.extended.extend(value.split(',').map(str::to_owned)),
                "-J" if !value.split(',').all(|it| it.starts_with("size=") || it.starts_with("fast_commit_size=")) => {
                    return Err(refused());
                }
                "-I" | "-i" | "-J" | "-L" | "-m" | "-N" | "-O" | "-T" | "-U" => {
                    options.plain.extend([option.to_owned(), value.to_owned()]);
                }
                _ => return Err(refused()),
            }
        }
        let allowed = |option: &String| EXTENDED.contains(&option.split('=').next().unwrap_or_default());
        match options.extended.iter().find(|option| !allowed(option)) {
            Some(option) => Err(Error::MkfsOption(option.chars().take(60).collect())),
            None => Ok(options),
        }
    }

    /// Makes the file system on the block device `device`.
    ///
    /// Where sectors that were never written can't be read, nothing of it is left to be written later unless the options say so.
    pub(crate) fn make(&self, mke2fs: &Path, device: &Path, unwritten_is_unreadable: bool) -> Result<(), Error> {
        if unwritten_is_unreadable {
            clear_starts_of_groups(device).map_err(Error::io("prepared for a file system", device))?;
        }
        let output = Command::new(mke2fs)
            .args(self.arguments(unwritten_is_unreadable))
            .arg(device)
            .env_clear()
            .env("LC_ALL", "C")
            // A file that is not there: then it uses its own defaults, and not those of a distribution.
            .env("MKE2FS_CONFIG", "/nowhere/mke2fs.conf")
            .stdin(Stdio::null())
            .output()
            .map_err(Error::io("run", mke2fs))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr);
        let mut last: Vec<&str> = said.lines().map(str::trim).filter(|line| !line.is_empty()).rev().take(3).collect();
        last.reverse();
        Err(Error::Mkfs(format!("{}: {}", output.status, last.join(" / ").chars().take(300).collect::<String>())))
    }

    fn arguments(&self, complete: bool) -> Vec<String> {
        let mut extended = self.extended.clone();
        let mut default = |option: &str| {
            let name = option.split('=').next().unwrap_or_default();
            if !extended.iter().any(|given| given.split('=').next() == Some(name)) {
                extended.push(option.to_owned());
            }
        };
        if complete {
            default("lazy_itable_init=0");
            default("lazy_journal_init=0");
        }
        // The device throws nothing away.
        default("nodiscard");
        let fixed = ["-t", "ext4", "-q", "-F", "-b", "4096", "-E"].map(str::to_owned);
        let mut arguments = fixed.to_vec();
        arguments.push(extended.join(","));
        arguments.extend_from_slice(&self.plain);
        arguments
    }
}

/// Writes a whole block wherever `mke2fs` may put a copy of the superblock, which is smaller than a block: to write a part of
/// one, the kernel reads the rest of it first.
fn clear_starts_of_groups(device: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(device)?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    let zeros = vec![0; FIRST_BLOCKS];
    for start in (0..size).step_by(GROUP) {
        let length = if start == 0 { FIRST_BLOCKS as u64 } else { BLOCK };
        let length = length.min(size - start) as usize;
        file.write_all_at(&zeros[..length], start)?;
    }
    file.sync_all()
}

/// Writes the whole of a device.
pub(crate) fn wipe(device: &Path) -> io::Result<()> {
    let file = File::options().write(true).open(device)?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..length as usize], at)?;
        at += length;
    }
    file.sync_all()
}

/// What may follow `-E`: layout and speed.
const EXTENDED: [&str; 14] = [
    "lazy_itable_init",
    "lazy_journal_init",
    "discard",
    "nodiscard",
    "stride",
    "stripe_width",
    "stripe-width",
    "packed_meta_blocks",
    "num_backup_sb",
    "root_owner",
    "resize",
    "quotatype",
    "hash_seed",
    "assume_storage_prezeroed",
];
const BLOCK: u64 = 4096;
/// Bytes of a group of 32,768 blocks, which is as many as a block has bits.
const GROUP: usize = 128 << 20;
/// What `mke2fs` itself clears at the start, in pieces smaller than a block.
const FIRST_BLOCKS: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn arguments(text: &str, complete: bool) -> String {
        MkfsOptions::parse(text).unwrap().arguments(complete).join(" ")
    }

    #[test]
    fn what_the_caller_chose_stays_and_the_rest_is_complete() {
        assert_eq!(arguments("", false), "-t ext4 -q -F -b 4096 -E nodiscard");
        assert_eq!(arguments("", true), "-t ext4 -q -F -b 4096 -E lazy_itable_init=0,lazy_journal_init=0,nodiscard");
        assert_eq!(
            arguments("-E lazy_journal_init -m 0 -Ldata", true),
            "-t ext4 -q -F -b 4096 -E lazy_journal_init,lazy_itable_init=0,nodiscard -m 0 -L data"
        );
    }

    #[test]
    fn the_options_of_a_kata_agent_are_allowed() {
        assert_eq!(
            arguments("-O ^has_journal -m 0 -i 163840 -I 128", false),
            "-t ext4 -q -F -b 4096 -E nodiscard -O ^has_journal -m 0 -i 163840 -I 128"
        );
        assert!(MkfsOptions::parse("-E lazy_journal_init").is_ok());
    }

    #[test]
    fn options_that_reach_beyond_the_volume_are_refused() {
        for text in [
            "-z /tmp/undo",
            "-d /run/secrets",
            "-l /etc/shadow",
            "-J device=/dev/vda",
            "-E offset=4096",
            "-E lazy_itable_init=0,test_fs",
            "-b 1024",
            "-n",
            "-S",
            "-m",
            "-L $(id)",
            "-L ../x",
            "-L -z",
            "/dev/vda",
            "-ä",
        ] {
            assert!(matches!(MkfsOptions::parse(text), Err(Error::MkfsOption(_))), "{text}");
        }
    }

    #[test]
    fn a_file_system_is_made_where_mke2fs_is_there() {
        let Some(mke2fs) = crate::Config::default().mke2fs() else {
            return println!("skipped: there is no mke2fs; next: install e2fsprogs");
        };
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(256 << 20).unwrap();

        MkfsOptions::parse("-L data").unwrap().make(&mke2fs, &image, true).unwrap();

        let mut superblock = [0; 1024];
        File::open(&image).unwrap().read_exact_at(&mut superblock, 1024).unwrap();
        assert_eq!(superblock[56..58], 0xef53_u16.to_le_bytes());
        assert_eq!(&superblock[120..125], b"data\0");
        let (has_journal, extents) = (superblock[92] & 4 != 0, superblock[96] & 0x40 != 0);
        assert!(has_journal && extents);
    }

    #[test]
    fn what_mke2fs_says_against_a_device_is_passed_on() {
        let Some(mke2fs) = crate::Config::default().mke2fs() else {
            return println!("skipped: there is no mke2fs; next: install e2fsprogs");
        };
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(8 << 10).unwrap();
        let error = MkfsOptions::default().make(&mke2fs, &image, false).unwrap_err();
        assert!(matches!(&error, Error::Mkfs(said) if said.contains("Not enough space")), "{error}");
    }

    #[test]
    fn every_byte_of_a_device_is_wiped() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        std::fs::write(&image, vec![0xff; (1 << 20) + 4096]).unwrap();
        wipe(&image).unwrap();
        assert!(std::fs::read(&image).unwrap().iter().all(|byte| *byte == 0));
    }
}
