//! What a request says about a new file system, and making it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use ext4::Ext4;

use crate::Error;

/// Reads options with spaces between, as a command line of `mke2fs` has them; there is no quoting.
pub(crate) fn parse(text: &str) -> Result<Ext4, Error> {
    let mut file_system = Ext4::default();
    let mut words = text.split_ascii_whitespace();
    while let Some(word) = words.next() {
        let refused = || Error::MkfsOption(word.chars().take(60).collect());
        let (option, joined) = word.split_at_checked(2).ok_or_else(refused)?;
        let value = if joined.is_empty() { words.next().ok_or_else(refused)? } else { joined };
        let number = || value.bytes().all(|byte| byte.is_ascii_digit()).then(|| value.parse().ok()).flatten();
        match option {
            // Nothing is written early here whatever they say, and nothing is thrown away.
            "-E" if value.split(',').all(|it| EARLY.contains(&it.split('=').next().unwrap_or_default())) => {}
            "-O" => {
                for feature in value.split(',') {
                    match feature {
                        "has_journal" => file_system.journal = true,
                        "^has_journal" => file_system.journal = false,
                        _ => return Err(refused()),
                    }
                }
            }
            "-I" => file_system.inode_size = number().filter(|it| [128, 256].contains(it)).ok_or_else(refused)? as u16,
            "-i" => file_system.bytes_per_inode = number().filter(|it| *it >= 4096).ok_or_else(refused)?,
            "-m" => file_system.reserved_percent = number().filter(|it| *it <= 50).ok_or_else(refused)? as u8,
            "-L" if value.len() <= 16 => file_system.label = value.to_owned(),
            _ => return Err(refused()),
        }
    }
    Ok(file_system)
}

/// Makes the file system on the whole of a device.
pub(crate) fn make(file_system: &Ext4, device: &Path) -> Result<(), Error> {
    let (file, size) = open(device).map_err(Error::io("opened", device))?;
    Ok(file_system.make(&file, size)?)
}

/// Writes the whole of a device.
pub(crate) fn wipe(device: &Path) -> io::Result<()> {
    let (file, size) = open(device)?;
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < size {
        let length = (size - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..length as usize], at)?;
        at += length;
    }
    file.sync_all()
}

fn open(device: &Path) -> io::Result<(File, u64)> {
    let file = File::options().write(true).open(device)?;
    let size = io::Seek::seek(&mut &file, io::SeekFrom::End(0))?;
    Ok((file, size))
}

/// What may follow `-E`: when something is written or thrown away.
const EARLY: [&str; 5] = ["lazy_itable_init", "lazy_journal_init", "discard", "nodiscard", "assume_storage_prezeroed"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_options_of_a_kata_agent_are_followed() {
        let scratch = parse("-O ^has_journal -m 0 -i 163840 -I 128").unwrap();
        let expected = Ext4 { journal: false, bytes_per_inode: 163_840, inode_size: 128, ..Ext4::default() };
        assert_eq!(scratch, expected);
        assert_eq!(parse("-E lazy_journal_init").unwrap(), Ext4::default());
        let labelled = parse("-E lazy_itable_init=0,nodiscard -m 5 -Ldata").unwrap();
        assert_eq!(labelled, Ext4 { label: "data".to_owned(), reserved_percent: 5, ..Ext4::default() });
    }

    #[test]
    fn options_that_would_go_unheeded_are_refused() {
        for text in [
            "-z /tmp/undo",
            "-d /run/secrets",
            "-l /etc/shadow",
            "-J device=/dev/vda",
            "-E offset=4096",
            "-E lazy_itable_init=0,test_fs",
            "-O ^has_journal,bigalloc",
            "-I 512",
            "-i 1024",
            "-m +5",
            "-m 51",
            "-b 1024",
            "-n",
            "-m",
            "-L a-name-that-is-too-long",
            "/dev/vda",
            "-ä",
        ] {
            assert!(matches!(parse(text), Err(Error::MkfsOption(_))), "{text}");
        }
    }

    #[test]
    fn a_device_that_is_too_small_is_named_with_its_size() {
        let folder = tempfile::tempdir().unwrap();
        let image = folder.path().join("image");
        File::create(&image).unwrap().set_len(8 << 10).unwrap();
        let error = make(&Ext4::default(), &image).unwrap_err().to_string();
        assert!(error.contains("8192 bytes are too few") && error.contains("next:"), "{error}");
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
