//! The pods on a node: each has a folder, whose lock its owner holds, with a record of its machine.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use management::{Identity, SOCKET};
use serde::Serialize;

use crate::error::Error;
use crate::processes::Process;

/// A pod's folder and whoever belongs to it.
#[derive(Debug, PartialEq, Serialize)]
pub struct Pod {
    /// The pod's name: the sandbox's id, as containerd has it.
    pub name: String,
    /// Whose it is, and what it was made of, if its owner has come so far.
    pub identity: Option<Identity>,
    /// Who owns it; nobody if its owner was killed.
    pub owner: Option<Owner>,
    /// The process id of its machine.
    pub machine: Option<u32>,
    /// Whether its machine is elsewhere, made by an adaptor.
    pub elsewhere: bool,
    /// Bytes of the host's memory that owner and machine have.
    pub memory: u64,
    /// Seconds since it was made.
    pub age: u64,
    /// Whether its owner has brought initdata.
    pub initdata: bool,
    /// Whether its metrics can be asked for.
    pub metrics: bool,
}

/// The process that owns a pod.
#[derive(Debug, PartialEq, Serialize)]
pub struct Owner {
    /// Its id.
    pub pid: u32,
    /// The file that it executes.
    pub program: String,
}

impl Pod {
    /// The pods whose folders are in this one, by name.
    ///
    /// # Errors
    /// [`Error::File`] if it can't be read; that it is not there means that there is no pod.
    pub fn in_folder(folder: &Path) -> Result<Vec<Self>, Error> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(Error::file("pods", folder))?,
        };
        let locks = fs::read_to_string("/proc/locks").map_err(Error::file("pods", "/proc/locks"))?;
        let pods = entries
            .flatten()
            .filter_map(|entry| Self::of(&entry.path(), &entry.file_name().into_string().ok()?, &locks));
        let mut pods: Vec<Self> = pods.collect();
        pods.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(pods)
    }

    fn of(folder: &Path, name: &str, locks: &str) -> Option<Self> {
        // Whatever else is there has no lock.
        let lock = fs::metadata(folder.join("lock")).ok()?;
        let owner = holder(locks, lock.dev(), lock.ino()).map(|pid| {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            Owner { pid, program: program.to_string_lossy().into_owned() }
        });
        let machine = machine(folder);
        let processes = owner.as_ref().map(|owner| owner.pid).into_iter().chain(machine);
        Some(Self {
            name: name.to_owned(),
            identity: Identity::read(folder),
            memory: processes.map(resident).sum(),
            owner,
            machine,
            // A link, which stays when what it leads to has ended.
            elsewhere: folder.join("agent.sock").is_symlink(),
            age: lock.modified().ok().and_then(|time| time.elapsed().ok()).map_or(0, |age| age.as_secs()),
            initdata: folder.join("initdata.image").exists(),
            metrics: folder.join(SOCKET).exists(),
        })
    }

    /// The name of the socket in a pod's folder where its owner answers.
    pub const MANAGEMENT: &str = SOCKET;

    /// Namespace and name, where it has them.
    pub fn full_name(&self) -> Option<String> {
        self.identity.as_ref().and_then(Identity::full_name)
    }

    /// Whether somebody who says `word` may mean it: its id, the beginning of that, or namespace and name.
    pub fn is_meant_by(&self, word: &str) -> bool {
        self.name.starts_with(word) || self.full_name().as_deref() == Some(word)
    }
}

/// The process that holds a file's lock. Trying to take it would disturb an owner that is about to.
fn holder(locks: &str, device: u64, file: u64) -> Option<u32> {
    // "1: FLOCK  ADVISORY  WRITE 1234 00:1a:567 0 EOF"
    let major = ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff);
    let minor = (device & 0xff) | ((device >> 12) & !0xff);
    let identity = format!("{major:02x}:{minor:02x}:{file}");
    locks.lines().find_map(|line| {
        let words: Vec<&str> = line.split_ascii_whitespace().collect();
        let at = words.iter().position(|word| *word == "FLOCK")?;
        (words.get(at + 4) == Some(&identity.as_str())).then(|| words[at + 3].parse().ok())?
    })
}

/// The machine's process, if it is the one that the record means.
fn machine(folder: &Path) -> Option<u32> {
    let record: serde_json::Value = serde_json::from_slice(&fs::read(folder.join("record.json")).ok()?).ok()?;
    let pid = u32::try_from(record.get("vmm")?.get("pid")?.as_u64()?).ok()?;
    let process = Process::of(pid)?;
    process.command.first()?.contains("qemu").then_some(pid)
}

fn resident(pid: u32) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or_default() << 10
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn a_pod_is_owned_by_whoever_holds_its_lock() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["left", "owned"] {
            fs::create_dir(folder.path().join(name)).unwrap();
            fs::write(folder.path().join(name).join("lock"), "").unwrap();
        }
        fs::create_dir(folder.path().join("no-pod")).unwrap();
        fs::write(folder.path().join("owned/shim-monitor.sock"), "").unwrap();
        let identity = Identity { namespace: "shop".into(), name: "web".into(), ..Identity::default() };
        identity.write(&folder.path().join("owned")).unwrap();
        let lock = File::open(folder.path().join("owned/lock")).unwrap();
        lock.lock().unwrap();

        let pods = Pod::in_folder(folder.path()).unwrap();

        let [left, owned] = &pods[..] else { panic!("{pods:?}") };
        assert_eq!((left.name.as_str(), &left.owner, left.memory, left.metrics), ("left", &None, 0, false));
        let owner = owned.owner.as_ref().unwrap();
        assert_eq!(owner.pid, std::process::id());
        assert_eq!(Path::new(&owner.program), std::env::current_exe().unwrap());
        assert!(owned.is_meant_by("shop/web") && owned.is_meant_by("own") && !left.is_meant_by("shop/web"));
        assert!(owned.memory > 0 && owned.metrics && !owned.initdata && owned.age < 60);

        lock.unlock().unwrap();
        assert_eq!(Pod::in_folder(folder.path()).unwrap()[1].owner, None);
        assert_eq!(Pod::in_folder(&folder.path().join("nowhere")).unwrap(), []);
    }
}
