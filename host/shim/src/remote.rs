//! `[hypervisor.remote]`: machines that an adaptor of the node makes elsewhere, for peer pods.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use sandbox::sizing::Sizing;
use sandbox::{Adaptor, RemoteMachine, RemoteVmConfig};
use serde::Deserialize;

use crate::Error;
use crate::annotations::number;

/// `[hypervisor.remote]`. That this table is there means that pods run elsewhere.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(default, deny_unknown_fields)]
pub struct Remote {
    /// The adaptor's socket. Default `/run/peerpod/hypervisor.sock`.
    pub remote_hypervisor_socket: PathBuf,
    /// Seconds that the adaptor may take to start a machine, and to end one. Default 600.
    pub remote_hypervisor_timeout: u64,
    /// Processors of a pod without limits. Default 1.
    pub default_vcpus: u32,
    /// Memory in MiB of a pod without limits. Default 2048.
    pub default_memory: u32,
    /// Processors that a pod with limits has beyond them. Default 0.4.
    pub overhead_vcpus: f64,
    /// Memory in MiB that a pod with limits has beyond them, for the guest itself. Default 128.
    pub overhead_memory: u32,
    /// The cloud's name for a kind of machine. Default empty: the adaptor finds one that fits.
    pub machine_type: String,
    /// The cloud's name of the guest image. Default empty: the adaptor has its own.
    pub image: String,
    /// Graphics processors of a pod. Default 0.
    pub default_gpus: u32,
    /// Which. Default empty: any.
    pub default_gpu_model: String,
    /// Names of the annotations `io.katacontainers.config.hypervisor.*` that are followed. Default `cc_init_data`,
    /// `default_gpu_model`, `default_gpus`, `default_memory`, `default_vcpus`, `machine_type`.
    pub enable_annotations: Vec<String>,
}

impl Default for Remote {
    fn default() -> Self {
        let followed =
            ["cc_init_data", "default_gpu_model", "default_gpus", "default_memory", "default_vcpus", "machine_type"];
        Self {
            remote_hypervisor_socket: "/run/peerpod/hypervisor.sock".into(),
            remote_hypervisor_timeout: 600,
            default_vcpus: 1,
            default_memory: 2048,
            overhead_vcpus: 0.4,
            overhead_memory: 128,
            machine_type: String::new(),
            image: String::new(),
            default_gpus: 0,
            default_gpu_model: String::new(),
            enable_annotations: followed.map(str::to_owned).to_vec(),
        }
    }
}

impl Remote {
    /// Follows an annotation that only machines elsewhere have, by its name behind `hypervisor.`; says whether it is one.
    ///
    /// # Errors
    /// [`Error::Annotation`] for one without a usable value.
    pub(crate) fn follow(&mut self, key: &str, name: &str, value: &str) -> Result<bool, Error> {
        match key {
            "machine_type" => self.machine_type = value.to_owned(),
            "image" => self.image = value.to_owned(),
            "default_gpus" => self.default_gpus = number(name, value, 0, MAX_GPUS)?,
            "default_gpu_model" => self.default_gpu_model = value.to_owned(),
            _ => return Ok(false),
        }
        Ok(true)
    }

    pub(crate) fn sizing(&self) -> Sizing {
        Sizing {
            default_vcpus: self.default_vcpus.into(),
            default_memory: self.default_memory,
            overhead_vcpus: self.overhead_vcpus,
            overhead_memory: self.overhead_memory,
        }
    }

    /// The machine of a pod with these annotations.
    pub(crate) fn machine(self, annotations: &BTreeMap<String, String>) -> RemoteMachine {
        let of = |name: &str| annotations.get(name).cloned().unwrap_or_default();
        RemoteMachine {
            adaptor: Adaptor {
                socket: self.remote_hypervisor_socket,
                limit: Duration::from_secs(self.remote_hypervisor_timeout.max(1)),
            },
            vm: RemoteVmConfig {
                pod_name: of(POD_NAME),
                pod_namespace: of(POD_NAMESPACE),
                machine_type: self.machine_type,
                image: self.image,
                gpus: self.default_gpus,
                gpu_model: self.default_gpu_model,
                ..RemoteVmConfig::default()
            },
        }
    }
}

/// The annotations with a pod's name and namespace in Kubernetes.
pub(crate) const POD_NAME: &str = "io.kubernetes.cri.sandbox-name";
pub(crate) const POD_NAMESPACE: &str = "io.kubernetes.cri.sandbox-namespace";
const MAX_GPUS: u32 = 64;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Config;

    #[test]
    fn a_peer_pod_s_machine_is_made_of_configuration_and_annotations() {
        // The keys of upstream's configuration that mean something here.
        let mut config = Config::parse(
            "[hypervisor.remote]\nremote_hypervisor_socket = \"/s\"\nremote_hypervisor_timeout = 900\nimage = \"ami-1\"\n\
             default_vcpus = 2\ndefault_memory = 4096\ndefault_gpus = 1\ndefault_gpu_model = \"h100\"\n\
             [runtime]\ninternetworking_model = \"none\"\ndisable_new_netns = true\n",
        )
        .unwrap();
        let annotations = [
            (POD_NAME, "web"),
            (POD_NAMESPACE, "shop"),
            ("io.katacontainers.config.hypervisor.machine_type", "c6a.large"),
            ("io.katacontainers.config.hypervisor.default_memory", "8192"),
            ("io.katacontainers.config.hypervisor.default_gpus", "2"),
            // Not without the operator's leave.
            ("io.katacontainers.config.hypervisor.image", "ami-2"),
            ("io.katacontainers.config.hypervisor.kernel_params", "debug"),
        ];
        let annotations = annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into();

        assert_eq!(config.follow(&annotations).unwrap().refused.len(), 2);

        let remote = config.hypervisor.remote.unwrap();
        assert_eq!((remote.sizing().default_vcpus, remote.sizing().default_memory), (2.0, 8192));
        let machine = remote.machine(&annotations);
        let adaptor = Adaptor { socket: "/s".into(), limit: Duration::from_secs(900) };
        let vm = RemoteVmConfig {
            pod_name: "web".into(),
            pod_namespace: "shop".into(),
            machine_type: "c6a.large".into(),
            image: "ami-1".into(),
            gpus: 2,
            gpu_model: "h100".into(),
            ..RemoteVmConfig::default()
        };
        assert_eq!(machine, RemoteMachine { adaptor, vm });
    }
}
