//! The mounts of a container: ours for the system's file systems, and few of the host's asking.

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};
use wire_ttrpc::oci;

use super::{Error, Pod, TERMINATION_LOG};
use crate::volumes::PASSTHROUGH;

/// A container's mounts, in the order in which they are made.
///
/// A bind mount of the host's asking has a volume of the pod as its source, or what the host has copied into the guest,
/// and as a whole: what is inside can be changed by containers between a check and the mount.
///
/// What is asked for at `termination_log` is the agent's own file, whatever its source: the host reads what is in it.
///
/// # Errors
/// [`Error::Mount`] for a mount that is neither known nor harmless.
pub(super) fn build(requested: &[oci::Mount], pod: &Pod<'_>, termination_log: &str) -> Result<Vec<Value>, Error> {
    let mut mounts: Vec<Value> = SYSTEM
        .iter()
        .map(|(destination, kind, source, options)| {
            json!({"destination": destination, "type": kind, "source": source, "options": options})
        })
        .collect();
    mounts.extend(pod.files.iter().map(|(destination, source)| bind(destination, source, &FILE_OPTIONS)));
    let own_log = pod.files.iter().find(|(destination, _)| *destination == TERMINATION_LOG).map(|(_, source)| source);
    for mount in requested {
        let refuse = |reason: &'static str| Error::Mount { destination: shown(&mount.destination), reason };
        let destination =
            plain(&mount.destination).ok_or_else(|| refuse("its destination is not a plain absolute path"))?;
        let shared_memory = destination == Path::new("/dev/shm");
        let is_file = pod.files.iter().any(|(file, _)| Path::new(file) == destination);
        let is_system = SYSTEM.iter().any(|(system, ..)| Path::new(system) == destination);
        let is_bind = mount.options.iter().any(|option| matches!(option.as_str(), "bind" | "rbind"));
        let is_over_system =
            destination == Path::new("/") || SYSTEM_FOLDERS.iter().any(|folder| destination.starts_with(folder));
        let is_at = |place: &str| destination == Path::new(place);
        let is_log = is_bind && (is_at(TERMINATION_LOG) || is_at(termination_log) && !is_file && !is_over_system);
        let source = is_bind.then(|| source(&mount.source, pod)).flatten();

        if let Some(own_log) = own_log.filter(|_| is_log) {
            mounts.retain(|made| made["destination"] != mount.destination.as_str() && made["source"] != json!(own_log));
            mounts.push(bind(&mount.destination, own_log, &FILE_OPTIONS));
        } else if is_bind && (shared_memory || !(is_system || is_file && source.is_none())) {
            let source = source.ok_or_else(|| refuse("its source is neither a volume of the pod nor a copied file"))?;
            if !shared_memory && !is_file && is_over_system {
                return Err(refuse("nothing of the host's asking is mounted over system folders"));
            }
            // In the place of ours.
            mounts.retain(|made| made["destination"] != mount.destination.as_str());
            let options =
                bind_options(&mount.options).ok_or_else(|| refuse("it has an option that is not supported"))?;
            mounts.push(bind(&mount.destination, &source, &options));
        } else if is_system || is_file {
            // The system's file systems are always mounted our way, whatever options the host would like.
        } else if mount.type_ == "tmpfs" {
            if is_over_system {
                return Err(refuse("nothing of the host's asking is mounted over system folders"));
            }
            let options =
                tmpfs_options(&mount.options).ok_or_else(|| refuse("it has an option that is not supported"))?;
            mounts.push(
                json!({"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options}),
            );
        } else {
            return Err(refuse("it is neither a bind mount, nor a tmpfs, nor one of the system's"));
        }
    }
    Ok(mounts)
}

/// The source of a bind mount: a volume, or a copied file or folder.
fn source(path: &str, pod: &Pod<'_>) -> Option<PathBuf> {
    let path = plain(path)?;
    if pod.volumes.contains(&path) {
        return Some(path);
    }
    let holds_a_volume = pod.volumes.iter().any(|volume| volume.starts_with(&path));
    let copied = path.parent() == Some(pod.copies) && !path.ends_with(PASSTHROUGH) && !holds_a_volume;
    // Only the agent makes what lies directly in this folder, and it makes no links there.
    let is_link = || path.symlink_metadata().map_or(true, |it| it.is_symlink());
    (copied && !is_link()).then_some(path)
}

fn bind(destination: &str, source: &Path, options: &[impl AsRef<str>]) -> Value {
    let options: Vec<&str> = options.iter().map(AsRef::as_ref).collect();
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

/// The path, if it is absolute and has neither `.` nor `..` in it.
fn plain(path: &str) -> Option<PathBuf> {
    let plain = path.starts_with('/')
        && path.len() <= MAX_PATH
        && !path.contains('\0')
        && Path::new(path).components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)))
        && !path.split('/').any(|part| part == ".");
    plain.then(|| Path::new(path).components().collect())
}

fn bind_options(options: &[String]) -> Option<Vec<String>> {
    let known = ["bind", "rbind", "ro", "rw", "nosuid", "nodev", "noexec", "private", "rprivate", "slave", "rslave"];
    let mut options = allowed(options, |option| known.contains(&option))?;
    // A device of the guest is nothing that a shared folder can lend.
    options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
    options.dedup();
    Some(options)
}

fn tmpfs_options(options: &[String]) -> Option<Vec<String>> {
    let known = ["ro", "rw", "nosuid", "nodev", "noexec", "relatime", "noatime", "strictatime"];
    let number = |text: &str| !text.is_empty() && text.len() <= 12 && text.bytes().all(|b| b.is_ascii_digit());
    let mut options = allowed(options, |option| match option.split_once('=') {
        Some(("size", size)) => number(size.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', '%'])),
        Some(("mode" | "uid" | "gid" | "nr_inodes", value)) => number(value),
        Some(_) => false,
        None => known.contains(&option),
    })?;
    options.extend(["nosuid".to_owned(), "nodev".to_owned()]);
    Some(options)
}

fn allowed(options: &[String], known: impl Fn(&str) -> bool) -> Option<Vec<String>> {
    options.iter().all(|option| known(option)).then(|| options.to_vec())
}

fn shown(text: &str) -> String {
    text.chars().take(200).collect()
}

/// Destination, type, source and options.
const SYSTEM: [(&str, &str, &str, &[&str]); 7] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
    ("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", "ro"]),
];
const SYSTEM_FOLDERS: [&str; 3] = ["/proc", "/dev", "/sys"];
const FILE_OPTIONS: [&str; 4] = ["rbind", "nosuid", "nodev", "noexec"];
const MAX_PATH: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn build(requested: &[oci::Mount], pod: &Pod<'_>) -> Result<Vec<Value>, Error> {
        super::build(requested, pod, TERMINATION_LOG)
    }

    fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> oci::Mount {
        oci::Mount {
            destination: destination.into(),
            type_: kind.into(),
            source: source.into(),
            options: options.iter().map(ToString::to_string).collect(),
            ..Default::default()
        }
    }

    fn at<'a>(mounts: &'a [Value], destination: &str) -> Vec<&'a Value> {
        mounts.iter().filter(|mount| mount["destination"] == destination).collect()
    }

    fn pod<'a>(files: &'a [(&'static str, PathBuf)], volumes: &'a [PathBuf], copies: &'a Path) -> Pod<'a> {
        Pod { hostname: "pod", files, volumes, copies, namespaces: Value::Null }
    }

    #[test]
    fn the_system_s_mounts_are_ours_whatever_is_asked() {
        let asked = [
            mount("/proc", "proc", "proc", &["rw"]),
            mount("/sys", "sysfs", "sysfs", &["rw"]),
            mount("/etc/hosts", "bind", "/etc/shadow", &["bind"]),
        ];
        let mounts = build(&asked, &pod(&[("/etc/hosts", "/b/hosts".into())], &[], Path::new("/copies"))).unwrap();
        assert_eq!(at(&mounts, "/sys")[0]["options"], json!(["nosuid", "noexec", "nodev", "ro"]));
        assert_eq!(at(&mounts, "/etc/hosts").len(), 1);
        assert_eq!(at(&mounts, "/etc/hosts")[0]["source"], "/b/hosts");
    }

    #[test]
    fn what_the_pod_shares_may_be_mounted() {
        let shared = ["/root/sandbox/ephemeral/cache".into(), "/root/sandbox/shm".into()];
        let asked = [
            mount("/cache", "bind", "/root/sandbox/ephemeral/cache", &["rbind", "ro"]),
            mount("/dev/shm", "bind", "/root/sandbox/shm", &["rbind"]),
            mount("/tmp", "tmpfs", "tmpfs", &["size=64m", "mode=1777"]),
        ];
        let mounts = build(&asked, &pod(&[], &shared, Path::new("/copies"))).unwrap();
        assert_eq!(at(&mounts, "/cache")[0]["options"], json!(["rbind", "ro", "nosuid", "nodev"]));
        assert_eq!(at(&mounts, "/dev/shm").len(), 1);
        assert_eq!(at(&mounts, "/dev/shm")[0]["type"], "bind");
        assert_eq!(at(&mounts, "/tmp")[0]["type"], "tmpfs");
    }

    #[test]
    fn what_the_host_has_copied_may_be_mounted_as_a_whole() {
        let root = tempfile::tempdir().unwrap();
        let copies = root.path().join("copies");
        std::fs::create_dir_all(copies.join("c1-config/inner")).unwrap();
        std::fs::create_dir_all(copies.join("passthrough/cache")).unwrap();
        std::fs::write(copies.join("c1-hosts"), "").unwrap();
        std::os::unix::fs::symlink("/etc", copies.join("c1-link")).unwrap();
        let at_copy = |name: &str| copies.join(name).to_str().unwrap().to_owned();
        let volumes = [copies.join("passthrough/cache")];
        let files = [("/etc/hosts", "/b/hosts".into())];
        let pod = pod(&files, &volumes, &copies);

        let asked = [
            mount("/etc/config", "bind", &at_copy("c1-config"), &["rbind", "rprivate", "ro"]),
            mount("/etc/hosts", "bind", &at_copy("c1-hosts"), &["rbind"]),
        ];
        let mounts = build(&asked, &pod).unwrap();
        let options = json!(["rbind", "rprivate", "ro", "nosuid", "nodev"]);
        assert_eq!(at(&mounts, "/etc/config")[0]["options"], options);
        assert_eq!(at(&mounts, "/etc/hosts").len(), 1);
        assert_eq!(at(&mounts, "/etc/hosts")[0]["source"], json!(at_copy("c1-hosts")));
        for refused in ["c1-config/inner", "c1-link", "c1-link/x", "none", "passthrough", "../copies/c1-config", ""] {
            let asked = mount("/x", "bind", &at_copy(refused), &["rbind"]);
            assert!(build(std::slice::from_ref(&asked), &pod).is_err(), "{refused}");
        }
        for refused in ["/proc/x", "/"] {
            assert!(build(&[mount(refused, "bind", &at_copy("c1-config"), &["rbind"])], &pod).is_err(), "{refused}");
        }
        // The folder around the volumes of the pod is none of a container's, even where there are none yet.
        let asked = mount("/x", "bind", &at_copy("passthrough"), &["rbind"]);
        assert!(build(&[asked], &Pod { volumes: &[], ..pod }).is_err());
    }

    #[test]
    fn what_the_host_reads_as_last_words_is_a_file_of_the_agent_s() {
        let root = tempfile::tempdir().unwrap();
        let copy = root.path().join("c1-log");
        std::fs::write(&copy, "").unwrap();
        let copy = copy.to_str().unwrap();
        let volumes = ["/v/data".into()];
        let files = [("/etc/hosts", "/b/hosts".into()), (TERMINATION_LOG, "/b/log".into())];
        let pod = pod(&files, &volumes, root.path());
        let sources = |mounts: &[Value], destination: &str| -> Vec<Value> {
            at(mounts, destination).iter().map(|mount| mount["source"].clone()).collect()
        };
        assert_eq!(sources(&build(&[], &pod).unwrap(), TERMINATION_LOG), ["/b/log"]);
        for source in [copy, "/v/data", "/etc/shadow"] {
            let mounts = build(&[mount(TERMINATION_LOG, "bind", source, &["rbind"])], &pod).unwrap();
            assert_eq!(sources(&mounts, TERMINATION_LOG), ["/b/log"]);
        }

        // A pod may want it elsewhere, also in one of its volumes.
        let asked = [
            mount("/data", "bind", "/v/data", &["rbind"]),
            mount("/data/last-words", "bind", copy, &["rbind"]),
            mount("/other", "bind", copy, &["rbind"]),
        ];
        let mounts = super::build(&asked, &pod, "/data/last-words").unwrap();
        let destinations: Vec<_> = mounts[mounts.len() - 3..].iter().map(|mount| &mount["destination"]).collect();
        assert_eq!(destinations, ["/data", "/data/last-words", "/other"]);
        assert_eq!(sources(&mounts, "/data/last-words"), ["/b/log"]);
        assert_eq!(sources(&mounts, TERMINATION_LOG), [] as [Value; 0]);
        assert_eq!(sources(&mounts, "/other"), [copy]);
        // The place alone mounts nothing, and is none of the system's or the agent's other files.
        assert!(at(&super::build(&[], &pod, "/etc/passwd").unwrap(), "/etc/passwd").is_empty());
        for place in ["/dev/null", "/proc/1", "/"] {
            assert!(super::build(&[mount(place, "bind", copy, &["rbind"])], &pod, place).is_err(), "{place}");
        }
        let hosts = super::build(&[mount("/etc/hosts", "bind", copy, &["rbind"])], &pod, "/etc/hosts").unwrap();
        assert_eq!(sources(&hosts, "/etc/hosts"), [copy]);
    }

    #[test]
    fn mounts_that_could_change_what_runs_are_refused() {
        let volume = "/root/sandbox/ephemeral/cache";
        for asked in [
            mount("/x", "bind", "/etc", &["bind"]),
            mount("/x", "bind", "/root/c2/rootfs", &["bind"]),
            mount("/x", "bind", "/root/sandbox/ephemeral", &["bind"]),
            // What is inside a volume is up to the containers that have it: a link to /etc, say.
            mount("/x", "bind", &format!("{volume}/out"), &["bind"]),
            mount("/x", "bind", &format!("{volume}/../../../c2"), &["bind"]),
            mount("/x", "bind", volume, &["bind", "dev"]),
            mount("/proc/1", "bind", volume, &["bind"]),
            mount("/x", "ext4", "/dev/vda", &[]),
            mount("/x", "bind", volume, &[]),
            mount("/", "tmpfs", "tmpfs", &[]),
            mount("/sys/x", "tmpfs", "tmpfs", &[]),
            mount("/x", "tmpfs", "tmpfs", &["suid"]),
            mount("/x", "tmpfs", "tmpfs", &["size=1m,suid"]),
            mount("x", "tmpfs", "tmpfs", &[]),
            mount("/a/../x", "tmpfs", "tmpfs", &[]),
            mount("/a/./x", "tmpfs", "tmpfs", &[]),
            mount("", "tmpfs", "tmpfs", &[]),
        ] {
            let volumes = [volume.into()];
            let built = build(std::slice::from_ref(&asked), &pod(&[], &volumes, Path::new("/copies")));
            assert!(matches!(built, Err(Error::Mount { .. })), "{asked:?}");
        }
    }
}
