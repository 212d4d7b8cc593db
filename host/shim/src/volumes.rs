//! What becomes of a container's mounts: the guest's own, folders and disks of the pod, or copies of the host's files.

pub(crate) mod disks;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use direct_volume::Assignments;
use sha2::{Digest as _, Sha256};
use wire_ttrpc::agent::Storage;

use crate::config::EmptyDirMode;
use crate::spec::Mount;
use crate::{Error, Spec};
use disks::{Content, DiskVolume};

/// What a container's mounts come to.
#[derive(Debug, Default)]
pub(crate) struct Volumes {
    /// The mounts as the guest makes them.
    pub(crate) mounts: Vec<Mount>,
    /// Folders that the guest makes first.
    pub(crate) storages: Vec<Storage>,
    /// Disks that the guest needs first, and the mount that each is for.
    pub(crate) disks: Vec<(usize, DiskVolume)>,
    /// Files that the guest needs first.
    pub(crate) copies: Vec<Copied>,
    /// Where Kubernetes reads the container's last words.
    pub(crate) termination_log: Option<PathBuf>,
}

/// Files of the host that a guest has a copy of.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Copied {
    /// On the host.
    pub(crate) source: PathBuf,
    /// In the guest.
    pub(crate) target: String,
    /// Whether changes are copied too.
    pub(crate) watched: bool,
}

impl Volumes {
    /// Decides for each mount of a container.
    ///
    /// # Errors
    /// [`Error::Volume`] for one that a storage driver has assigned a device to which no guest can have.
    pub(crate) fn of(spec: &Spec, container: &str, sandbox: &str, mode: EmptyDirMode) -> Result<Self, Error> {
        let mut volumes = Self::default();
        for mount in &spec.mounts {
            volumes.add(mount.clone(), container, sandbox, spec, mode)?;
        }
        Ok(volumes)
    }

    /// The mounts of a pod's own container: the guest's, and nothing of the host's.
    pub(crate) fn of_sandbox(spec: &Spec) -> Self {
        let mounts = spec.mounts.iter().filter(|mount| !is_bind(mount) || mount.destination == SHM);
        Self { mounts: mounts.cloned().map(shared_memory).collect(), ..Self::default() }
    }

    fn add(
        &mut self,
        mount: Mount,
        container: &str,
        sandbox: &str,
        spec: &Spec,
        mode: EmptyDirMode,
    ) -> Result<(), Error> {
        let mount = shared_memory(mount);
        if !is_bind(&mount) || mount.source == GUEST_SHM || is_the_guest_s(&mount.source) {
            self.mounts.push(mount);
            return Ok(());
        }
        let source = PathBuf::from(&mount.source);
        let assigned = Assignments::default().find(&mount.source);
        let assigned = assigned.map_err(|error| Error::Volume { path: source.clone(), reason: error.to_string() })?;
        if let Some(info) = assigned {
            self.add_disk(mount, Content::Assigned(info));
            return Ok(());
        }
        if let Some(name) = empty_dir(&source) {
            let storage = match (memory_size(&source), mode) {
                (Some(size), _) => in_memory(&name, size, &source),
                (None, EmptyDirMode::SharedFs) => local(&name, sandbox, &source),
                (None, block) => {
                    let encrypted = block == EmptyDirMode::BlockEncrypted;
                    self.add_disk(mount, Content::EmptyDir { encrypted, group: group(&source) });
                    return Ok(());
                }
            };
            self.mounts.push(Mount { source: storage.mount_point.clone(), kind: "bind".to_owned(), ..mount });
            if self.storages.iter().all(|known| known.mount_point != storage.mount_point) {
                self.storages.push(storage);
            }
            return Ok(());
        }
        let annotation = |name: &str| spec.annotations.get(name).map(String::as_str);
        if annotation(TERMINATION_POLICY) == Some("File")
            && annotation(TERMINATION_PATH) == Some(mount.destination.as_str())
        {
            self.termination_log = Some(source.clone());
        }
        let target = target(container, &mount.destination);
        let watched = WATCHED.iter().any(|kind| within(&source, kind)) && source.is_dir();
        self.copies.push(Copied { source, target: target.clone(), watched });
        self.mounts.push(Mount { source: target, kind: "bind".to_owned(), ..mount });
        Ok(())
    }

    /// The mount's source follows, once the guest has the disk.
    fn add_disk(&mut self, mount: Mount, content: Content) {
        self.disks.push((self.mounts.len(), DiskVolume { source: PathBuf::from(&mount.source), content }));
        self.mounts.push(Mount { kind: "bind".to_owned(), ..mount });
    }
}

/// A pod's containers share the guest's memory.
fn shared_memory(mount: Mount) -> Mount {
    if mount.destination != SHM || !is_bind(&mount) {
        return mount;
    }
    Mount {
        source: GUEST_SHM.to_owned(),
        kind: "bind".to_owned(),
        options: vec!["rbind".to_owned()],
        destination: mount.destination,
    }
}

fn is_bind(mount: &Mount) -> bool {
    mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind")
}

/// The guest has devices and a kernel of its own.
fn is_the_guest_s(source: &str) -> bool {
    ["/dev", "/proc", "/sys"].iter().any(|folder| Path::new(source).starts_with(folder))
}

/// Where a copy lies in the guest: a place of its own for each mount of each container.
fn target(container: &str, destination: &str) -> String {
    let digest = Sha256::digest(format!("{container}/{destination}"));
    let name = Path::new(destination).file_name().unwrap_or_default().to_string_lossy();
    format!("{SHARED}/{container}-{}-{name}", hex::encode(&digest[..8]))
}

/// The name of the volume that this is, if it is a folder for a pod's containers.
///
/// A part of such a folder (`subPath`) is a volume too, the same one for all who have that part.
fn empty_dir(source: &Path) -> Option<String> {
    let name = |path: &Path| Some(path.file_name()?.to_str()?.to_owned());
    if within(source, EMPTY_DIRS) {
        return name(source);
    }
    // Below the pod's folder: volume-subpaths, the volume, the container, a number.
    let (volume, parts, pod) = (source.ancestors().nth(2)?, source.ancestors().nth(3)?, source.ancestors().nth(4)?);
    let volume = name(volume).filter(|_| parts.ends_with("volume-subpaths"))?;
    let is_part = pod.join("volumes").join(EMPTY_DIRS).join(&volume).is_dir();
    let part = fs::metadata(source).ok().filter(|part| is_part && part.is_dir())?;
    Some(format!("{volume}-{}", part.ino()))
}

fn within(source: &Path, folder: &str) -> bool {
    source.components().any(|part| part.as_os_str() == folder)
}

/// Bytes of a folder that is a file system in memory.
fn memory_size(source: &Path) -> Option<u64> {
    let parent = source.parent().and_then(|parent| fs::metadata(parent).ok())?;
    let own = fs::metadata(source).ok()?;
    let statistics = rustix::fs::statfs(source).ok()?;
    let memory = statistics.f_type as u64 == TMPFS && own.dev() != parent.dev();
    memory.then(|| statistics.f_blocks.saturating_mul(statistics.f_bsize as u64))
}

fn in_memory(name: &str, size: u64, source: &Path) -> Storage {
    let size = (size > 0).then(|| format!("size={size}"));
    Storage {
        driver: "ephemeral".to_owned(),
        source: "tmpfs".to_owned(),
        fstype: "tmpfs".to_owned(),
        options: size.into_iter().chain(fsgid(source)).collect(),
        mount_point: format!("/run/kata-containers/sandbox/ephemeral/{name}"),
        ..Storage::default()
    }
}

fn local(name: &str, sandbox: &str, source: &Path) -> Storage {
    Storage {
        driver: "local".to_owned(),
        source: "local".to_owned(),
        fstype: "local".to_owned(),
        options: ["mode=0777".to_owned()].into_iter().chain(fsgid(source)).collect(),
        mount_point: format!("{SHARED}/passthrough/{sandbox}/rootfs/local/{name}"),
        ..Storage::default()
    }
}

/// The group that Kubernetes gave the folder, if not root's.
fn group(source: &Path) -> Option<u32> {
    let gid: io::Result<u32> = fs::metadata(source).map(|it| it.gid());
    gid.ok().filter(|gid| *gid != 0)
}

fn fsgid(source: &Path) -> Option<String> {
    group(source).map(|gid| format!("fsgid={gid}"))
}

/// Where a guest's agent takes files.
pub(crate) const SHARED: &str = "/run/kata-containers/shared/containers";
const SHM: &str = "/dev/shm";
const GUEST_SHM: &str = "/run/kata-containers/sandbox/shm";
const TERMINATION_POLICY: &str = "io.kubernetes.container.terminationMessagePolicy";
const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Volumes that Kubernetes changes under a running container.
const WATCHED: [&str; 4] =
    ["kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api"];
const EMPTY_DIRS: &str = "kubernetes.io~empty-dir";
const TMPFS: u64 = 0x0102_1994;

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, destination: &str) -> Mount {
        Mount {
            destination: destination.to_owned(),
            kind: "bind".to_owned(),
            source: source.display().to_string(),
            options: ["rbind", "rprivate", "ro"].map(str::to_owned).to_vec(),
        }
    }

    fn spec(mounts: Vec<Mount>) -> Spec {
        let annotations = [(TERMINATION_POLICY, "File"), (TERMINATION_PATH, "/dev/termination-log")];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
        Spec { mounts, annotations, ..Spec::default() }
    }

    #[test]
    fn each_mount_goes_its_way() {
        let host = tempfile::tempdir().unwrap();
        let made = |path: &str| {
            let path = host.path().join(path);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let cache = made("pods/u/volumes/kubernetes.io~empty-dir/cache");
        let token = made("pods/u/volumes/kubernetes.io~projected/kube-api-access");
        let (hosts, log) = (host.path().join("etc-hosts"), host.path().join("log"));
        for file in [&hosts, &log] {
            fs::write(file, "x").unwrap();
        }
        let proc =
            Mount { destination: "/proc".into(), kind: "proc".into(), source: "proc".into(), ..Mount::default() };
        let spec = spec(vec![
            proc.clone(),
            bind(Path::new("/run/containerd/s/shm"), "/dev/shm"),
            bind(&cache, "/cache"),
            bind(&cache, "/cache2"),
            bind(&token, "/var/run/secrets/kubernetes.io/serviceaccount"),
            bind(&hosts, "/etc/hosts"),
            bind(&log, "/dev/termination-log"),
            bind(Path::new("/dev/fuse"), "/dev/fuse"),
        ]);

        let volumes = Volumes::of(&spec, "c1", "s1", EmptyDirMode::SharedFs).unwrap();

        let sources: Vec<_> = volumes.mounts.iter().map(|it| it.source.as_str()).collect();
        assert_eq!(volumes.mounts[0], proc);
        assert_eq!(sources[1], "/run/kata-containers/sandbox/shm");
        assert_eq!(sources[2], "/run/kata-containers/shared/containers/passthrough/s1/rootfs/local/cache");
        assert_eq!(sources[2], sources[3]);
        assert!(sources[4].starts_with("/run/kata-containers/shared/containers/c1-"), "{}", sources[4]);
        assert!(sources[4].ends_with("-serviceaccount"));
        assert_eq!(sources[7], "/dev/fuse");
        assert_eq!(volumes.mounts[5].options, ["rbind", "rprivate", "ro"]);

        assert_eq!(volumes.storages.len(), 1);
        assert_eq!(
            (volumes.storages[0].driver.as_str(), &volumes.storages[0].options[0]),
            ("local", &"mode=0777".into())
        );
        let copies: Vec<_> = volumes.copies.iter().map(|it| (it.source.as_path(), it.watched)).collect();
        assert_eq!(copies, [(token.as_path(), true), (&hosts, false), (&log, false)]);
        assert_eq!(volumes.copies[1].target, sources[5]);
        assert_eq!(volumes.termination_log, Some(log));

        // The same folder on a disk: which, is known later.
        let on_disk = Volumes::of(&spec, "c1", "s1", EmptyDirMode::BlockEncrypted).unwrap();
        let content = Content::EmptyDir { encrypted: true, group: group(&cache) };
        let disk = DiskVolume { source: cache, content };
        assert_eq!(on_disk.disks, [(2, disk.clone()), (3, disk)]);
        assert!(on_disk.storages.is_empty() && on_disk.copies == volumes.copies);
    }

    #[test]
    fn a_part_of_a_shared_folder_is_one_volume_for_all_who_have_it() {
        let pod = tempfile::tempdir().unwrap();
        let made = |path: &str| {
            let path = pod.path().join(path);
            fs::create_dir_all(&path).unwrap();
            path
        };
        made("volumes/kubernetes.io~empty-dir/scratch");
        made("volumes/kubernetes.io~configmap/settings");
        let part = made("volume-subpaths/scratch/app/0");
        let name = empty_dir(&part).unwrap();
        assert_eq!(name, format!("scratch-{}", fs::metadata(&part).unwrap().ino()));
        assert_ne!(empty_dir(&made("volume-subpaths/scratch/app/1")).unwrap(), name);
        // Parts of what Kubernetes writes are copied.
        assert_eq!(empty_dir(&made("volume-subpaths/settings/app/0")), None);
        let file = pod.path().join("volume-subpaths/scratch/app/file");
        fs::write(&file, "").unwrap();
        assert_eq!(empty_dir(&file), None);
        assert_eq!(empty_dir(Path::new("/")), None);
    }

    #[test]
    fn a_sandbox_gets_nothing_of_the_host_s() {
        let tmpfs = Mount { destination: "/tmp".into(), kind: "tmpfs".into(), ..Mount::default() };
        let mounts = vec![tmpfs, bind(Path::new("/x"), "/dev/shm"), bind(Path::new("/y"), "/etc/resolv.conf")];
        let volumes = Volumes::of_sandbox(&spec(mounts));
        let destinations: Vec<_> = volumes.mounts.iter().map(|it| it.destination.as_str()).collect();
        assert_eq!(destinations, ["/tmp", "/dev/shm"]);
        assert_eq!(volumes.mounts[1].source, GUEST_SHM);
        assert!(volumes.copies.is_empty() && volumes.termination_log.is_none());
    }
}
