//! What a pod's machine is made of, from what containerd says about the pod.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::protobuf::well_known_types::any::Any;
use sandbox::sizing::{Limits, Sizing};
use sandbox::{Directory, GuestFiles, PodNetwork, SandboxConfig, SandboxName};

use crate::annotations::Followed;
use crate::config::EmptyDirMode;
use crate::health::Health;
use crate::pod_config::{Field, PodConfig};
use crate::volumes::disks::Disks;
use crate::{Config, Error, Kind, Spec};

/// What a pod's machine is made of.
pub(crate) struct BootRequest {
    pub(crate) sandbox: SandboxConfig,
    /// How long the guest may take to create a container.
    pub(crate) create_limit: Duration,
    /// The disks that its volumes will be on.
    pub(crate) disks: Disks,
    /// Whether and how the guest's health is watched.
    pub(crate) health: Option<Health>,
    /// Annotations that are not followed.
    pub(crate) refused: Vec<Error>,
    in_pod_cgroup: bool,
}

impl BootRequest {
    /// The machine that the container `id` owns.
    ///
    /// # Errors
    /// [`Error::Config`], [`Error::Annotation`], [`Error::Sandbox`] for an id or a size that no machine has,
    /// [`Error::Unsupported`] for a pod in the host's network.
    pub(crate) fn of_container(id: &str, spec: &Spec, kind: &Kind, options: Option<&Any>) -> Result<Self, Error> {
        if *kind == Kind::Sandbox {
            for (namespace, what) in HOST_S {
                if spec.namespace(namespace).is_none() {
                    return Err(Error::Unsupported(what));
                }
            }
        }
        let network = match spec.namespace("network") {
            Some(path) if !path.is_empty() => PodNetwork::Namespace(path.into()),
            // Nobody made a network for a container alone: it still has to pull its image.
            _ => PodNetwork::User,
        };
        let limits = match kind {
            Kind::Sandbox => Limits::from_annotations(|name| spec.annotations.get(name).map(String::as_str)),
            _ => {
                let (cpu, memory) = (&spec.linux.resources.cpu, &spec.linux.resources.memory);
                Limits {
                    cpu_quota: cpu.as_ref().and_then(|it| it.quota),
                    cpu_period: cpu.as_ref().and_then(|it| it.period),
                    memory: memory.as_ref().and_then(|it| it.limit),
                }
            }
        };
        let mut request = Self::new(id, &spec.annotations, network, &limits, options)?;
        request.sandbox.hostname = Some(spec.hostname.clone()).filter(|name| !name.is_empty());
        request.sandbox.dns = resolvers(spec);
        let cgroup = Some(&spec.linux.cgroups_path).filter(|path| !path.is_empty() && request.in_pod_cgroup);
        request.sandbox.cgroup = cgroup.map(PathBuf::from);
        Ok(request)
    }

    /// The machine of a pod without a container of its own.
    ///
    /// # Errors
    /// As [`BootRequest::of_container`].
    pub(crate) fn of_pod(
        id: &str,
        annotations: &BTreeMap<String, String>,
        namespace: &str,
        pod: PodConfig,
    ) -> Result<Self, Error> {
        if namespace.is_empty() {
            return Err(Error::Unsupported(HOST_S[0].1));
        }
        let mut annotations = annotations.clone();
        // containerd tells them in either place.
        for (name, value) in pod.annotations.into_iter().chain(pod.names) {
            annotations.entry(name).or_insert(value);
        }
        let annotated = Limits::from_annotations(|name| annotations.get(name).map(String::as_str));
        let limits = if annotated == Limits::default() { pod.limits } else { annotated };
        let mut request = Self::new(id, &annotations, PodNetwork::Namespace(namespace.into()), &limits, None)?;
        request.sandbox.hostname = Some(pod.hostname).filter(|name| !name.is_empty());
        request.sandbox.dns = Some(pod.resolvers).filter(|lines| !lines.is_empty());
        Ok(request)
    }

    fn new(
        id: &str,
        annotations: &BTreeMap<String, String>,
        network: PodNetwork,
        limits: &Limits,
        options: Option<&Any>,
    ) -> Result<Self, Error> {
        let mut config = options.map_or_else(|| Config::load(None), of_options)?;
        let Followed { initdata, refused } = config.follow(annotations)?;
        let machine = config.hypervisor.qemu;
        let sizing = match &config.hypervisor.remote {
            Some(remote) => remote.sizing(),
            None => Sizing {
                default_vcpus: machine.default_vcpus.into(),
                default_memory: machine.default_memory,
                overhead_vcpus: machine.overhead_vcpus,
                overhead_memory: machine.overhead_memory,
            },
        };
        let size = sizing.size(limits).map_err(|error| Error::Size(error.to_string()))?;
        let guest = GuestFiles {
            kernel: machine.kernel,
            initramfs: machine.initrd,
            command_line: guest_image::COMMAND_LINE.to_owned(),
        };
        let mut sandbox = SandboxConfig::new(SandboxName::parse(id)?, guest);
        (sandbox.vcpus, sandbox.memory_mib) = (size.vcpus, size.memory_mib);
        sandbox.kernel_params = machine.kernel_params.split_whitespace().map(str::to_owned).collect();
        sandbox.acceleration = machine.acceleration.into();
        sandbox.tee = machine.tee.with(machine.snp_guest_policy, machine.tdx_quote_generation_service_socket_port);
        sandbox.firmware = machine.firmware;
        sandbox.remote = config.hypervisor.remote.map(|remote| remote.machine(annotations));
        sandbox.initdata = initdata.map(Into::into);
        // A machine elsewhere takes no disks and no interfaces of this node.
        let elsewhere = sandbox.remote.is_some();
        sandbox.network = if elsewhere { network } else { config.runtime.internetworking_model.of(network) };
        let empty_dirs = if elsewhere { EmptyDirMode::SharedFs } else { config.runtime.emptydir_mode };
        let disks = Disks::new(id, Directory::path_of(&sandbox.name), empty_dirs);
        let create_limit = Duration::from_secs(config.agent.kata.create_container_timeout);
        let health = Health::within(Duration::from_millis(config.agent.kata.health_check_request_timeout_ms));
        Ok(Self { sandbox, create_limit, disks, health, refused, in_pod_cgroup: config.runtime.sandbox_cgroup_only })
    }
}

/// The configuration that containerd's runtime options name or carry: `runtimeoptions.v1.Options`, with a path in field 2 and
/// a text in field 3.
fn of_options(options: &Any) -> Result<Config, Error> {
    if !options.type_url.ends_with("runtimeoptions.v1.Options") {
        return Config::load(None);
    }
    let value = |wanted| Field::all(&options.value).into_iter().find(|it| it.number == wanted).map(|it| it.bytes);
    let text = |bytes| String::from_utf8(bytes).map_err(|_| Error::Request("the runtime's options are no text".into()));
    if let Some(path) = value(2).filter(|path| !path.is_empty()) {
        return Config::load(Some(&PathBuf::from(text(path)?)));
    }
    match value(3).filter(|body| !body.is_empty()) {
        Some(body) => Config::parse(&text(body)?),
        None => Config::load(None),
    }
}

/// The lines of the pod's resolv.conf, from the file that containerd made for it.
fn resolvers(spec: &Spec) -> Option<Vec<String>> {
    let mount = spec.mounts.iter().find(|mount| mount.destination == "/etc/resolv.conf")?;
    let text = fs::read_to_string(&mount.source).ok()?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', ';']));
    Some(lines.map(str::to_owned).collect())
}

/// What a pod without a namespace of its own asks for.
const HOST_S: [(&str, &str); 3] = [
    ("network", "the host's network (hostNetwork)"),
    ("pid", "the host's processes (hostPID)"),
    ("ipc", "the host's System V objects (hostIPC)"),
];

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn options(config: &str) -> (tempfile::TempDir, Any) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("c.toml");
        fs::write(&path, config).unwrap();
        let path = path.display().to_string();
        // Field 1 is a type that nobody reads, field 2 the path.
        let value = [b"\x0a\x01x\x12", &[path.len() as u8][..], path.as_bytes()].concat();
        (folder, Any { type_url: "runtimeoptions.v1.Options".into(), value, ..Any::default() })
    }

    fn spec(text: &str) -> Spec {
        Spec::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn a_pod_s_machine_is_made_of_what_containerd_says() {
        let (folder, options) = options(
            "[hypervisor.qemu]\nkernel = \"/k\"\nkernel_params = \"a b=c\"\n[agent.kata]\ncreate_container_timeout = 9\n",
        );
        let resolv = folder.path().join("resolv.conf");
        fs::write(&resolv, "# of the node\nnameserver 10.0.0.1\n\nsearch default.svc\n").unwrap();
        let spec = spec(&format!(
            r#"{{"hostname": "web", "annotations": {{"io.kubernetes.cri.sandbox-memory": "536870912",
                "io.kubernetes.cri.sandbox-cpu-quota": "150000", "io.kubernetes.cri.sandbox-cpu-period": "100000"}},
                "mounts": [{{"destination": "/etc/resolv.conf", "type": "bind", "source": "{}"}}],
                "linux": {{"cgroupsPath": "/kubepods/p", "namespaces": [{{"type": "network", "path": "/netns/x"}}, {{"type": "pid"}}, {{"type": "ipc"}}]}}}}"#,
            resolv.display()
        ));

        let request = BootRequest::of_container(&"a".repeat(63), &spec, &Kind::Sandbox, Some(&options)).unwrap();

        let sandbox = &request.sandbox;
        assert_eq!((sandbox.vcpus, sandbox.memory_mib), (2, 640));
        assert_eq!(sandbox.guest.kernel, PathBuf::from("/k"));
        assert_eq!(sandbox.kernel_params, ["a", "b=c"]);
        assert_eq!(sandbox.network, PodNetwork::Namespace("/netns/x".into()));
        assert_eq!(sandbox.hostname.as_deref(), Some("web"));
        assert_eq!(sandbox.dns.as_deref().unwrap(), ["nameserver 10.0.0.1", "search default.svc"]);
        assert_eq!(sandbox.cgroup, Some("/kubepods/p".into()));
        assert_eq!(request.create_limit, Duration::from_secs(9));
    }

    #[test]
    fn a_container_alone_pulls_through_the_host_and_a_pod_shares_nothing_with_the_host() {
        let (_folder, options) = options("");
        let alone =
            spec(r#"{"linux": {"resources": {"memory": {"limit": 268435456}}, "namespaces": [{"type": "network"}]}}"#);
        let request = BootRequest::of_container("c", &alone, &Kind::Single, Some(&options)).unwrap();
        assert_eq!((request.sandbox.network, request.sandbox.memory_mib), (PodNetwork::User, 384));
        let all = ["network", "pid", "ipc"];
        for missing in all {
            let namespaces: Vec<_> = all.iter().filter(|it| **it != missing).map(|it| json!({"type": it})).collect();
            let pod = spec(&json!({"linux": {"namespaces": namespaces}}).to_string());
            let refused = BootRequest::of_container("c", &pod, &Kind::Sandbox, Some(&options));
            assert!(matches!(refused, Err(Error::Unsupported(_))), "{missing}");
        }
    }
}
