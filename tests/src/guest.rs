//! A guest by itself, whose agent a case asks in a shim's place.

use std::time::Duration;

use guest_image::GuestImage;
use protobuf::MessageField;
use sandbox::{GuestFiles, Sandbox, SandboxConfig, SandboxName};
use ttrpc::context::{self, Context};
use wire_ttrpc::agent::*;
use wire_ttrpc::agent_ttrpc::AgentServiceClient;
use wire_ttrpc::oci;

use crate::{Image, InitDataFiles, Lab, Registry, Trustee, example_policy};

/// A guest that serves its agent, with busybox as its only image.
pub struct Guest {
    lab: Lab,
    image: String,
    /// The machine.
    pub sandbox: Sandbox,
    _registry: Registry,
    _trustee: Trustee,
}

impl Guest {
    /// Boots one under the debug policy.
    pub async fn boot(name: &str, change: impl FnOnce(&mut SandboxConfig)) -> Self {
        Self::boot_under("debug", name, change).await
    }

    /// Boots one under a published policy.
    pub async fn boot_under(policy: &str, name: &str, change: impl FnOnce(&mut SandboxConfig)) -> Self {
        let lab = Lab::new();
        let (trustee, registry) = (lab.trustee(), lab.registry());
        let image = registry.push(Image::busybox(&lab, "app", "sleep 3600").layout(), "app");
        let policy = example_policy(policy, &image);
        let (initdata, _) = InitDataFiles::new(policy, &trustee, &registry).build(&lab, "initdata");
        let document = wire::initdata::InitData::parse(std::fs::read_to_string(initdata).unwrap()).unwrap();

        let found = GuestImage::open(&Lab::guest_image()).unwrap();
        let files = GuestFiles {
            kernel: found.kernel.clone(),
            initramfs: found.initramfs.clone(),
            command_line: guest_image::COMMAND_LINE.to_owned(),
        };
        let name = SandboxName::parse(&format!("{name}-{}", std::process::id())).unwrap();
        let mut config = SandboxConfig { memory_mib: 384, ..SandboxConfig::new(name, files) };
        config.initdata = Some(document.into());
        change(&mut config);
        let sandbox = tokio::time::timeout(LIMIT, Sandbox::start(config)).await.expect("the guest boots").unwrap();
        Self { lab, image, sandbox, _registry: registry, _trustee: trustee }
    }

    /// The client of its agent.
    pub fn agent(&self) -> &AgentServiceClient {
        self.sandbox.agent().service()
    }

    /// Makes a container of the image, with the changes to its request.
    pub async fn create(
        &self,
        id: &str,
        args: &[&str],
        change: impl FnOnce(&mut CreateContainerRequest),
    ) -> ttrpc::Result<()> {
        let process = oci::Process {
            Args: args.iter().map(ToString::to_string).collect(),
            Env: vec!["PATH=/bin".into()],
            ..Default::default()
        };
        let mut request = CreateContainerRequest {
            container_id: id.into(),
            storages: vec![Storage {
                driver: "image_guest_pull".into(),
                source: self.image.clone(),
                fstype: "overlay".into(),
                mount_point: format!("/run/kata-containers/{id}/rootfs"),
                ..Default::default()
            }],
            OCI: MessageField::some(oci::Spec { Process: MessageField::some(process), ..Default::default() }),
            ..Default::default()
        };
        change(&mut request);
        self.agent().create_container(soon(), &request).await.map(drop)
    }

    /// Starts a container.
    pub async fn start(&self, id: &str) {
        let request = StartContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent().start_container(soon(), &request).await.unwrap();
    }

    /// Starts a container, and returns the status that it ends with.
    pub async fn run(&self, id: &str) -> i32 {
        self.start(id).await;
        let request = WaitProcessRequest { container_id: id.into(), ..Default::default() };
        self.agent().wait_process(soon(), &request).await.unwrap().status
    }

    /// Copies a file to below the folder for copies.
    pub async fn copy(&self, path: &str, data: &[u8]) {
        let request = CopyFileRequest {
            path: format!("{COPIES}/{path}"),
            file_size: data.len().try_into().unwrap(),
            file_mode: 0o100_644,
            dir_mode: 0o755,
            data: data.into(),
            ..Default::default()
        };
        self.agent().copy_file(soon(), &request).await.unwrap();
    }

    /// Statistics of a container.
    pub async fn stats(&self, id: &str) -> CgroupStats {
        let request = StatsContainerRequest { container_id: id.into(), ..Default::default() };
        self.agent().stats_container(soon(), &request).await.unwrap().cgroup_stats.unwrap()
    }

    /// The output of a command in a container, which succeeds.
    pub async fn output(&self, id: &str, args: &[&str]) -> String {
        let (status, output) = self.exec(id, args).await;
        assert_eq!(status, 0, "{args:?}: {output}");
        output
    }

    /// The status and the output of a command in a container.
    pub async fn exec(&self, id: &str, args: &[&str]) -> (i32, String) {
        let exec_id =
            format!("e{}", args.join("-").bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31) + u32::from(byte)));
        let process = oci::Process {
            Args: args.iter().map(ToString::to_string).collect(),
            Env: vec!["PATH=/bin".into()],
            ..Default::default()
        };
        let request = ExecProcessRequest {
            container_id: id.into(),
            exec_id: exec_id.clone(),
            process: MessageField::some(process),
            ..Default::default()
        };
        self.agent().exec_process(soon(), &request).await.unwrap();
        let mut output = Vec::new();
        loop {
            let read = ReadStreamRequest {
                container_id: id.into(),
                exec_id: exec_id.clone(),
                len: 4096,
                ..Default::default()
            };
            let data = self.agent().read_stdout(soon(), &read).await.unwrap().data;
            if data.is_empty() {
                break;
            }
            output.extend(data);
        }
        let wait = WaitProcessRequest { container_id: id.into(), exec_id, ..Default::default() };
        let status = self.agent().wait_process(soon(), &wait).await.unwrap().status;
        (status, String::from_utf8_lossy(&output).into_owned())
    }

    /// Ends pod and machine.
    pub async fn end(self) {
        self.agent().destroy_sandbox(soon(), &DestroySandboxRequest::new()).await.unwrap();
        self.sandbox.stop().await.unwrap();
        drop(self.lab);
    }
}

/// A deadline for whatever a guest is asked.
pub fn soon() -> Context {
    context::with_duration(LIMIT)
}

/// Where the host's copies lie in a guest.
pub const COPIES: &str = "/run/kata-containers/shared/containers";
/// Software emulation on a machine that also does other work.
const LIMIT: Duration = Duration::from_secs(180);
