//! The kernel below a root folder.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::ioctl;
use crate::machine::{Call, Kernel, Stream};

/// Files below a root folder, which is `/` but in tests.
#[derive(Debug)]
pub(crate) struct Linux {
    root: PathBuf,
}

impl Linux {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    fn device(&self, path: &str) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).open(self.path(path))
    }
}

impl Kernel for Linux {
    fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        let mut contents = Vec::new();
        File::open(self.path(path))?.take(limit as u64 + 1).read_to_end(&mut contents)?;
        match contents.len() > limit {
            true => Err(io::Error::new(ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"))),
            false => Ok(contents),
        }
    }

    fn write(&self, path: &str, data: &[u8]) -> io::Result<()> {
        // An attribute takes its value in one write; the rest of a short one would be another value.
        match OpenOptions::new().write(true).open(self.path(path))?.write(data)? {
            written if written == data.len() => Ok(()),
            _ => Err(ErrorKind::WriteZero.into()),
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let name =
            |entry: io::Result<fs::DirEntry>| entry.map(|entry| entry.file_name().to_string_lossy().into_owned());
        let mut names = fs::read_dir(self.path(path))?.map(name).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        fs::create_dir(self.path(path))
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        fs::remove_dir(self.path(path))
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Stream>> {
        if !fs::metadata(self.path(path))?.file_type().is_socket() {
            return Ok(Box::new(self.device(path)?));
        }
        let socket = UnixStream::connect(self.path(path))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Box::new(socket))
    }

    fn call(&self, device: &str, call: Call<'_>) -> io::Result<()> {
        ioctl::perform(&self.device(device)?, call)
    }
}

/// How long a TPM may take for one answer: making a key takes seconds.
const ANSWER: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_lie_below_the_root_and_are_bounded() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("file"), "12345").unwrap();
        let kernel = Linux::new(root.path());

        assert!(kernel.exists("/file") && !kernel.exists("/other"));
        assert_eq!(kernel.list("/").unwrap(), ["file"]);
        assert_eq!(kernel.read("/file", 5).unwrap(), b"12345");
        assert_eq!(kernel.read("/file", 4).unwrap_err().kind(), ErrorKind::FileTooLarge);
    }

    #[test]
    fn an_attribute_that_is_not_there_is_not_made() {
        let root = tempfile::tempdir().unwrap();
        let kernel = Linux::new(root.path());

        assert_eq!(kernel.write("/file", b"1").unwrap_err().kind(), ErrorKind::NotFound);
        assert!(!kernel.exists("/file"));
    }

    #[test]
    fn a_file_that_is_no_device_refuses_every_call() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("device"), "").unwrap();
        let kernel = Linux::new(root.path());

        let (data, mut report) = ([0; 64], [0; 1024]);
        let calls: [Call<'_>; 6] = [
            Call::TdxReport { report_data: &data, report: &mut report },
            Call::TdxExtend { register: 2, digest: &[0; 48] },
            Call::SnpReport { report_data: &data, response: &mut [0; 4000], certificates: &mut Vec::new() },
            Call::CsvReport { page: &mut [0; 4096] },
            Call::DcuReport { device: 1, request: &[0; 4096], answer: &mut [0; 4096] },
            Call::SeAttest {
                request: &[0; 8],
                user_data: &[0; 64],
                measurement: &mut [0; 64],
                additional_data: &mut [],
                configuration: &mut [0; 16],
            },
        ];
        for call in calls {
            let name = format!("{call:?}");
            let error = kernel.call("/device", call).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ENOTTY), "{name}");
        }
    }
}
