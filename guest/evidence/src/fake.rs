//! A machine for tests: files in memory, a configfs that answers as the kernel's does, devices that are closures.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, ErrorKind};
use std::sync::{Arc, Mutex};

use crate::machine::{Call, Kernel, Machine, Stream};
use crate::tsm::FOLDER;

/// A kernel whose files and devices the test sets up.
#[derive(Default)]
pub(crate) struct FakeKernel {
    files: Mutex<BTreeMap<String, Vec<u8>>>,
    tsm: Option<Mutex<Tsm>>,
    devices: BTreeMap<&'static str, Device>,
}

type Device = Box<dyn Fn(Call<'_>) -> io::Result<()> + Send + Sync>;

impl FakeKernel {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    pub(crate) fn file(self, path: &str, contents: impl AsRef<[u8]>) -> Self {
        self.lock().insert(path.to_owned(), contents.as_ref().to_vec());
        self
    }

    pub(crate) fn tsm(self, tsm: Tsm) -> Self {
        Self { tsm: Some(Mutex::new(tsm)), ..self }
    }

    pub(crate) fn device(
        mut self,
        path: &'static str,
        answer: impl Fn(Call<'_>) -> io::Result<()> + Send + Sync + 'static,
    ) -> Self {
        self.devices.insert(path, Box::new(answer));
        self
    }

    /// The machine, and its kernel for a look at it later.
    pub(crate) fn machine(self) -> (Machine, Arc<Self>) {
        let kernel = Arc::new(self);
        (Machine::with_kernel(Arc::clone(&kernel) as Arc<dyn Kernel>), kernel)
    }

    /// How many entries of TSM reports there are.
    pub(crate) fn entries(&self) -> usize {
        self.lock().keys().filter(|path| path.starts_with(FOLDER) && path.ends_with("/provider")).count()
    }

    /// What a file holds now.
    pub(crate) fn contents(&self, path: &str) -> Option<Vec<u8>> {
        self.lock().get(path).cloned()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Vec<u8>>> {
        self.files.lock().unwrap()
    }

    /// The entry that an attribute is in, if it is one of TSM reports.
    fn entry<'a>(&self, path: &'a str, attribute: &str) -> Option<&'a str> {
        path.strip_suffix(attribute).filter(|entry| entry.starts_with(FOLDER))
    }
}

impl Kernel for FakeKernel {
    fn exists(&self, path: &str) -> bool {
        self.lock().contains_key(path) || self.devices.contains_key(path)
    }

    fn read(&self, path: &str, limit: usize) -> io::Result<Vec<u8>> {
        let contents = self.lock().get(path).cloned().ok_or(ErrorKind::NotFound)?;
        if self.entry(path, "/outblob").is_some() {
            let refusal = self.tsm.as_ref().and_then(|tsm| tsm.lock().unwrap().refusal);
            if let Some(errno) = refusal.or(contents.is_empty().then_some(libc::EINVAL)) {
                return Err(io::Error::from_raw_os_error(errno));
            }
        }
        if contents.len() > limit { Err(ErrorKind::FileTooLarge.into()) } else { Ok(contents) }
    }

    fn write(&self, path: &str, data: &[u8]) -> io::Result<()> {
        if let (Some(entry), Some(tsm)) = (self.entry(path, "/inblob"), &self.tsm) {
            if data.len() > 64 {
                return Err(ErrorKind::InvalidInput.into());
            }
            let mut tsm = tsm.lock().unwrap();
            let generation = if tsm.races > 0 { 2 } else { 1 };
            tsm.races = tsm.races.saturating_sub(1);
            let mut files = self.lock();
            files.insert(format!("{entry}/outblob"), (tsm.answer)(data));
            files.insert(format!("{entry}/generation"), format!("{generation}\n").into_bytes());
            return Ok(());
        }
        let mut files = self.lock();
        *files.get_mut(path).ok_or(ErrorKind::NotFound)? = data.to_vec();
        Ok(())
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let files = self.lock();
        let below = files.keys().filter_map(|file| file.strip_prefix(path)?.strip_prefix('/')?.split('/').next());
        let mut names: Vec<_> = below.map(str::to_owned).collect();
        names.dedup();
        if names.is_empty() { Err(ErrorKind::NotFound.into()) } else { Ok(names) }
    }

    fn make_folder(&self, path: &str) -> io::Result<()> {
        let tsm = self.tsm.as_ref().filter(|_| path.starts_with(FOLDER)).ok_or(ErrorKind::NotFound)?.lock().unwrap();
        let mut files = self.lock();
        files.insert(format!("{path}/provider"), format!("{}\n", tsm.provider).into_bytes());
        files.insert(format!("{path}/generation"), b"0\n".to_vec());
        files.insert(format!("{path}/outblob"), Vec::new());
        if let Some(auxblob) = &tsm.auxblob {
            files.insert(format!("{path}/auxblob"), auxblob.clone());
        }
        Ok(())
    }

    fn remove_folder(&self, path: &str) -> io::Result<()> {
        self.lock().retain(|file, _| !file.starts_with(&format!("{path}/")));
        Ok(())
    }

    fn open(&self, path: &str) -> io::Result<Box<dyn Stream>> {
        Err(io::Error::new(ErrorKind::NotFound, path.to_owned()))
    }

    fn call(&self, device: &str, call: Call<'_>) -> io::Result<()> {
        self.devices.get(device).ok_or(ErrorKind::NotFound)?(call)
    }
}

impl fmt::Debug for FakeKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FakeKernel")
    }
}

type Answer = Box<dyn Fn(&[u8]) -> Vec<u8> + Send>;

/// The kernel's TSM reports: who answers, and what.
pub(crate) struct Tsm {
    provider: &'static str,
    answer: Answer,
    auxblob: Option<Vec<u8>>,
    races: usize,
    refusal: Option<i32>,
}

impl Tsm {
    pub(crate) fn new(provider: &'static str, answer: impl Fn(&[u8]) -> Vec<u8> + Send + 'static) -> Self {
        Self { provider, answer: Box::new(answer), auxblob: None, races: 0, refusal: None }
    }

    pub(crate) fn auxblob(self, auxblob: Vec<u8>) -> Self {
        Self { auxblob: Some(auxblob), ..self }
    }

    /// At the next requests, another one comes in between.
    pub(crate) fn races(self, races: usize) -> Self {
        Self { races, ..self }
    }

    /// Every request fails.
    pub(crate) fn refuses(self, errno: i32) -> Self {
        Self { refusal: Some(errno), ..self }
    }
}
