//! The OCI runtime specification of a container: what the request may ask for, over what a container always gets.

mod devices;
mod mounts;
mod process;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use wire_ttrpc::agent::CreateContainerRequest;
use wire_ttrpc::oci;

pub(crate) use process::{build as process, with_home};

use crate::devices::Disk;
use crate::images::ImageProcess;
use crate::user;

/// The one image that a container runs, as its request names it.
///
/// # Errors
/// [`Error::Image`] where the request does not name exactly one image to pull in the guest for this container.
pub(crate) fn image(request: &CreateContainerRequest, root: &Path) -> Result<String, Error> {
    let mut images = request.storages.iter().filter(|storage| storage.driver == GUEST_PULL);
    let image = images.next().ok_or(Error::Image("there is none"))?;
    if images.next().is_some() {
        return Err(Error::Image("there are several"));
    }
    let rootfs = root.join(&request.container_id).join("rootfs");
    if Path::new(&image.mount_point) != rootfs {
        return Err(Error::Image("its mount point is not the container's root file system"));
    }
    if image.source.is_empty() || image.source.len() > MAX_REFERENCE || image.source.contains(char::is_control) {
        return Err(Error::Image("its source is not a reference"));
    }
    Ok(image.source.clone())
}

/// What a container has in common with the others of its pod.
pub(crate) struct Pod<'a> {
    pub(crate) hostname: &'a str,
    /// Those that the agent writes for the container, as pairs of destination and source.
    pub(crate) files: &'a [(&'static str, PathBuf)],
    /// The volumes that containers may share.
    pub(crate) volumes: &'a [PathBuf],
    /// The folder that holds what the host has copied into the guest.
    pub(crate) copies: &'a Path,
    pub(crate) namespaces: Value,
}

/// Builds a container's `config.json`. `disks` are those that it gets as devices, by their paths in the container.
///
/// # Errors
/// [`Error`] for anything the request asks for that containers of this guest don't get.
pub(crate) fn build(
    request: &CreateContainerRequest,
    rootfs: &Path,
    image: &ImageProcess,
    disks: &[(String, Disk)],
    pod: Pod<'_>,
) -> Result<Value, Error> {
    let oci = request.OCI.as_ref().ok_or(Error::Unsupported("a request without OCI specification"))?;
    refuse_unsupported(request, oci)?;
    let process = oci.Process.get_or_default();
    let linux = oci.Linux.get_or_default();
    Ok(json!({
        "ociVersion": VERSION,
        "process": process::build_first(process, request.string_user.as_ref(), image, rootfs)?,
        "root": {"path": rootfs, "readonly": oci.Root.get_or_default().Readonly},
        "hostname": pod.hostname,
        "mounts": mounts::build(&oci.Mounts, &pod, termination_log(oci))?,
        "linux": {
            "namespaces": pod.namespaces,
            "cgroupsPath": Path::new(CGROUP_PARENT).join(&request.container_id),
            "resources": resources(linux.Resources.get_or_default()),
            "devices": devices::build(&linux.Devices, disks)?,
            "sysctl": sysctl(linux)?,
            "maskedPaths": union(&MASKED_PATHS, &linux.MaskedPaths)?,
            "readonlyPaths": union(&READONLY_PATHS, &linux.ReadonlyPaths)?,
        },
    }))
}

/// Why a container can't be made as asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    #[error(
        "container needs exactly one storage image_guest_pull: {0}; next: let the guest pull the image, root file systems of the host are not run"
    )]
    Image(&'static str),
    #[error("container asks for {0}, which this guest doesn't support; next: leave it out")]
    Unsupported(&'static str),
    #[error(
        "mount at {destination:?} is refused: {reason}; next: leave it out, or share the folder through the sandbox"
    )]
    Mount { destination: String, reason: &'static str },
    #[error("process is refused: {0}; next: correct the container's process")]
    Process(&'static str),
    #[error("nothing to run: neither the request nor the image names a command; next: set the container's command")]
    NoArgs,
    #[error(transparent)]
    User(#[from] user::Error),
}

/// What a silently ignored wish would weaken or change is refused instead.
fn refuse_unsupported(request: &CreateContainerRequest, oci: &oci::Spec) -> Result<(), Error> {
    let linux = oci.Linux.get_or_default();
    let hooks = oci.Hooks.get_or_default();
    let has_hooks = [
        &hooks.Prestart,
        &hooks.Poststart,
        &hooks.Poststop,
        &hooks.CreateRuntime,
        &hooks.CreateContainer,
        &hooks.StartContainer,
    ]
    .iter()
    .any(|list| !list.is_empty());
    for (asked, what) in [
        (!request.shared_mounts.is_empty(), "mounts shared between containers"),
        (has_hooks, "hooks"),
        (!linux.UIDMappings.is_empty() || !linux.GIDMappings.is_empty(), "a user namespace"),
        (linux.Namespaces.iter().any(|namespace| namespace.Type == "user"), "a user namespace"),
        (linux.Namespaces.iter().any(|namespace| !namespace.Path.is_empty()), "a namespace of another process"),
        (linux.Seccomp.is_some(), "a seccomp filter"),
        (
            request.stdin_port.is_some() || request.stdout_port.is_some() || request.stderr_port.is_some(),
            "streams on ports",
        ),
        (oci.Mounts.len() > MAX_MOUNTS, "more mounts than fit"),
    ] {
        if asked {
            return Err(Error::Unsupported(what));
        }
    }
    Ok(())
}

/// Where a container's programs say why they end: Kubernetes lets a pod choose.
fn termination_log(oci: &oci::Spec) -> &str {
    oci.Annotations.get(TERMINATION_PATH).map_or(TERMINATION_LOG, String::as_str)
}

/// Limits as `config.json` has them. A negative one stands for none.
fn resources(requested: &oci::LinuxResources) -> Value {
    let mut resources = Map::new();
    let memory = requested.Memory.get_or_default();
    if memory.Limit != 0 {
        resources.insert("memory".into(), json!({"limit": memory.Limit.max(-1)}));
    }
    let requested_cpu = requested.CPU.get_or_default();
    let mut cpu = Map::new();
    if requested_cpu.Shares > 0 {
        cpu.insert("shares".into(), json!(requested_cpu.Shares));
    }
    if requested_cpu.Quota != 0 && requested_cpu.Period > 0 {
        cpu.insert("quota".into(), json!(requested_cpu.Quota.max(-1)));
        cpu.insert("period".into(), json!(requested_cpu.Period));
    }
    if !cpu.is_empty() {
        resources.insert("cpu".into(), cpu.into());
    }
    let pids = requested.Pids.get_or_default().Limit;
    if pids != 0 {
        resources.insert("pids".into(), json!({"limit": pids.max(-1)}));
    }
    resources.into()
}

/// The parameters of the kernel that a request sets for the network, which is the pod's alone, as files below `/proc/sys`.
///
/// # Errors
/// [`Error`] for parameters that are neither the network's nor the pod's other namespaces'.
pub(crate) fn network_parameters(request: &CreateContainerRequest) -> Result<Vec<(PathBuf, String)>, Error> {
    let linux = request.OCI.Linux.get_or_default();
    check_parameters(linux)?;
    let of_network = linux.Sysctl.iter().filter(|(name, _)| name.starts_with(NETWORK));
    Ok(of_network.map(|(name, value)| (name.replace('.', "/").into(), value.clone())).collect())
}

/// The parameters of the namespaces that the pod's containers share, by their files below `/proc/sys`.
///
/// # Errors
/// As [`network_parameters`].
pub(crate) fn shared_parameters(request: &CreateContainerRequest) -> Result<Vec<(PathBuf, String)>, Error> {
    let linux = request.OCI.Linux.get_or_default();
    check_parameters(linux)?;
    let shared = linux.Sysctl.iter().filter(|(name, _)| !name.starts_with(NETWORK));
    Ok(shared.map(|(name, value)| (name.replace('.', "/").into(), value.clone())).collect())
}

/// The same as a container's specification has them.
fn sysctl(linux: &oci::Linux) -> Result<Value, Error> {
    check_parameters(linux)?;
    let others = linux.Sysctl.iter().filter(|(name, _)| !name.starts_with(NETWORK));
    Ok(others.map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>().into())
}

fn check_parameters(linux: &oci::Linux) -> Result<(), Error> {
    let known = |name: &str| {
        let known = [NETWORK, "fs.mqueue.", "kernel.msg", "kernel.sem", "kernel.shm"];
        known.iter().any(|prefix| name.starts_with(prefix))
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
            && !name.contains("..")
            && !name.ends_with('.')
    };
    if linux.Sysctl.len() > MAX_SYSCTLS || !linux.Sysctl.iter().all(|(name, value)| known(name) && value.len() <= 256) {
        return Err(Error::Unsupported("a kernel parameter outside of its namespaces"));
    }
    Ok(())
}

fn union(ours: &[&str], requested: &[String]) -> Result<Vec<String>, Error> {
    let inside =
        |path: &String| path.starts_with('/') && path.len() <= 4096 && !path.contains('\0') && !path.contains("..");
    if requested.len() > MAX_PATHS || !requested.iter().all(inside) {
        return Err(Error::Unsupported("masked or read-only paths that are not plain"));
    }
    let mut paths: Vec<String> = ours.iter().map(ToString::to_string).collect();
    paths.extend(requested.iter().filter(|path| !ours.contains(&path.as_str())).cloned());
    Ok(paths)
}

/// The driver of the storage that stands for an image which the guest pulls itself.
pub(crate) const GUEST_PULL: &str = "image_guest_pull";
/// Below the root of the guest's control groups.
pub(crate) const CGROUP_PARENT: &str = "/containers";
const NETWORK: &str = "net.";
const VERSION: &str = "1.0.2";
const TERMINATION_PATH: &str = "io.kubernetes.container.terminationMessagePath";
/// Where a container has the file for its last words if its pod doesn't say.
const TERMINATION_LOG: &str = "/dev/termination-log";
const MASKED_PATHS: [&str; 12] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/kernel/security",
];
const READONLY_PATHS: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
const MAX_REFERENCE: usize = 1024;
const MAX_MOUNTS: usize = 128;
const MAX_SYSCTLS: usize = 64;
const MAX_PATHS: usize = 128;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use protobuf::{Message, MessageField};
    use wire_ttrpc::agent::Storage;

    fn request() -> CreateContainerRequest {
        CreateContainerRequest {
            container_id: "c1".into(),
            storages: vec![Storage {
                driver: GUEST_PULL.into(),
                source: "registry/app:1".into(),
                mount_point: "/run/kata-containers/c1/rootfs".into(),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec::default()),
            ..Default::default()
        }
    }

    fn build(request: &CreateContainerRequest) -> Result<Value, Error> {
        let process = ImageProcess { args: vec!["/app".into()], ..Default::default() };
        super::build(request, Path::new("/run/kata-containers/c1/rootfs"), &process, &[], pod())
    }

    fn pod() -> Pod<'static> {
        let namespaces = json!([{"type": "mount"}, {"type": "pid"}]);
        Pod { hostname: "pod", files: &[], volumes: &[], copies: Path::new("/run/copies"), namespaces }
    }

    #[test]
    fn a_container_has_exactly_one_image_at_its_own_root() {
        let root = Path::new("/run/kata-containers");
        assert_eq!(image(&request(), root).unwrap(), "registry/app:1");
        let mut none = request();
        none.storages[0].driver = "blk".into();
        let mut two = request();
        two.storages.push(two.storages[0].clone());
        let mut elsewhere = request();
        elsewhere.storages[0].mount_point = "/run/kata-containers/c2/rootfs".into();
        let mut nameless = request();
        nameless.storages[0].source = String::new();
        for bad in [none, two, elsewhere, nameless] {
            assert!(matches!(image(&bad, root), Err(Error::Image(_))));
        }
    }

    #[test]
    fn the_result_is_a_specification_that_the_runtime_reads() {
        let mut request = request();
        let oci = request.OCI.mut_or_insert_default();
        oci.Root = MessageField::some(oci::Root { Path: "/elsewhere".into(), Readonly: true, ..Default::default() });
        let linux = oci.Linux.mut_or_insert_default();
        linux.Sysctl.insert("net.core.somaxconn".into(), "1024".into());
        linux.Sysctl.insert("kernel.shmmni".into(), "64".into());
        linux.MaskedPaths = vec!["/proc/keys".into(), "/opt/secret".into()];
        let resources = linux.Resources.mut_or_insert_default();
        resources.Memory.mut_or_insert_default().Limit = 64 << 20;
        resources.CPU.mut_or_insert_default().Shares = 512;
        resources.Pids.mut_or_insert_default().Limit = 100;

        let config = build(&request).unwrap();
        let spec: libcontainer::oci_spec::runtime::Spec = serde_json::from_value(config.clone()).unwrap();
        assert_eq!(spec.root().as_ref().unwrap().path(), Path::new("/run/kata-containers/c1/rootfs"));
        assert_eq!(spec.root().as_ref().unwrap().readonly(), Some(true));
        let linux = spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/containers/c1")));
        // The runtime knows nothing of a network that is the pod's.
        assert_eq!(linux.sysctl().as_ref().unwrap().keys().collect::<Vec<_>>(), ["kernel.shmmni"]);
        assert_eq!(network_parameters(&request).unwrap(), [("net/core/somaxconn".into(), "1024".to_owned())]);
        assert_eq!(linux.namespaces().as_ref().unwrap().len(), 2);
        assert_eq!(linux.resources().as_ref().unwrap().memory().unwrap().limit(), Some(64 << 20));
        let masked = linux.masked_paths().as_ref().unwrap();
        assert_eq!(masked.iter().filter(|path| *path == "/proc/keys").count(), 1);
        assert!(masked.contains(&"/opt/secret".to_owned()));
        assert_eq!(spec.process().as_ref().unwrap().args().as_deref(), Some(&["/app".to_owned()][..]));
    }

    #[test]
    fn of_a_sandbox_container_only_the_pod_s_parameters_count() {
        let mut request = request();
        let parameters = &mut request.OCI.mut_or_insert_default().Linux.mut_or_insert_default().Sysctl;
        parameters.insert("kernel.shmmax".into(), "1000000".into());
        parameters.insert("net.core.somaxconn".into(), "1024".into());
        let files = |found: Result<Vec<(PathBuf, String)>, Error>| found.unwrap();
        assert_eq!(files(shared_parameters(&request)), [("kernel/shmmax".into(), "1000000".to_owned())]);
        assert_eq!(files(network_parameters(&request)), [("net/core/somaxconn".into(), "1024".to_owned())]);

        let parameters = &mut request.OCI.mut_or_insert_default().Linux.mut_or_insert_default().Sysctl;
        parameters.insert("kernel.core_pattern".into(), "|/x".into());
        assert!(shared_parameters(&request).is_err() && network_parameters(&request).is_err());
    }

    #[test]
    fn what_can_t_be_honoured_is_refused() {
        type Change = fn(&mut CreateContainerRequest);
        let cases: [(&str, Change); 9] = [
            ("devices", |r| r.OCI.as_mut().unwrap().Linux.mut_or_insert_default().Devices.push(Default::default())),
            ("hooks", |r| r.OCI.as_mut().unwrap().Hooks.mut_or_insert_default().Prestart.push(Default::default())),
            ("seccomp", |r| {
                r.OCI.as_mut().unwrap().Linux.mut_or_insert_default().Seccomp.mut_or_insert_default();
            }),
            ("user namespace", |r| {
                let user = oci::LinuxNamespace { Type: "user".into(), ..Default::default() };
                r.OCI.as_mut().unwrap().Linux.mut_or_insert_default().Namespaces.push(user);
            }),
            ("another process", |r| {
                let other =
                    oci::LinuxNamespace { Type: "mount".into(), Path: "/proc/1/ns/mnt".into(), ..Default::default() };
                r.OCI.as_mut().unwrap().Linux.mut_or_insert_default().Namespaces.push(other);
            }),
            ("kernel parameter", |r| {
                let linux = r.OCI.as_mut().unwrap().Linux.mut_or_insert_default();
                linux.Sysctl.insert("kernel.core_pattern".into(), "|/x".into());
            }),
            ("kernel parameter", |r| {
                let linux = r.OCI.as_mut().unwrap().Linux.mut_or_insert_default();
                linux.Sysctl.insert("net...kernel.core_pattern".into(), "|/x".into());
            }),
            ("ports", |r| r.stdout_port = Some(1)),
            ("OCI", |r| r.OCI = MessageField::none()),
        ];
        for (part, change) in cases {
            let mut request = request();
            change(&mut request);
            let error = build(&request).unwrap_err().to_string();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_request_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..400), text in "[/.a\\x00=,:-]{0,12}") {
            if let Ok(mut request) = CreateContainerRequest::parse_from_bytes(&bytes) {
                let _ = image(&request, Path::new("/run"));
                let _ = build(&request);
                let spec = request.OCI.mut_or_insert_default();
                let mount = oci::Mount { destination: text.clone(), source: text.clone(), options: vec!["bind".into()], ..Default::default() };
                spec.Mounts.push(mount);
                let process = spec.Process.mut_or_insert_default();
                (process.Args, process.Env, process.Cwd) = (vec![text.clone()], vec![text.clone()], text.clone());
                spec.Linux.mut_or_insert_default().Sysctl.insert(text.clone(), text);
                let _ = build(&request);
                let _ = shared_parameters(&request);
            }
        }
    }
}
