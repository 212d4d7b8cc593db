//! A machine as a guest's whose init only prints: what the boots of guests are measured against.

use std::time::Duration;

use guest_image::{BuildOptions, GuestImage, KernelSource};
use hypervisor::acceleration::{self, Preference};
use hypervisor::{Confinement, Console, Disk, Network, Tee, Vm, VmConfig, Vsock};
use tokio::time::Instant;
use vsock_backend::{Backend, BackendConfig};

use crate::Lab;

/// The same kernel, modules and layout as the guest image has, with an init that only prints.
pub struct BareMachine<'a> {
    lab: &'a Lab,
    image: GuestImage,
}

impl<'a> BareMachine<'a> {
    /// Builds its image.
    ///
    /// # Panics
    /// If the init or the guest image have not been built.
    pub fn new(lab: &'a Lab) -> Self {
        let options = BuildOptions {
            guestd: Lab::program("bare-init"),
            kernel: KernelSource::Debian,
            cache: Lab::guest_image().with_file_name("cache"),
            output: lab.path().join("bare"),
        };
        Self { lab, image: guest_image::build(&options).unwrap() }
    }

    /// Boots it once: the time from QEMU's start to the line that the init prints.
    ///
    /// # Panics
    /// If it does not boot.
    pub async fn boot(&self) -> Duration {
        let at = |name: &str| self.lab.path().join(name);
        // The back end has to be there, since the machine is the same.
        let config = BackendConfig { socket: at("vhost.sock"), uds: at("vsock.sock"), guest_cid: 3 };
        let _backend = Backend::start(config).unwrap();
        let acceleration = acceleration::probe(Preference::Auto).await.unwrap();
        let start = Instant::now();
        let vm = Vm::launch(VmConfig {
            name: "bare".to_owned(),
            kernel: self.image.kernel.clone(),
            initramfs: self.image.initramfs.clone(),
            command_line: guest_image::COMMAND_LINE.to_owned(),
            memory_mib: 256,
            vcpus: 1,
            acceleration,
            vsock: Vsock::UserBackend { socket: at("vhost.sock") },
            disks: vec![Disk { path: self.lab.file("disk", [0; 512]), serial: "initdata".to_owned(), read_only: true }],
            network: Network::User,
            qmp_socket: at("qmp.sock"),
            bios: hypervisor::qboot(),
            tee: Tee::None,
            initdata_digest: None,
            confinement: Confinement::default(),
            console: Console::new(),
        })
        .await
        .unwrap();
        let printed = vm.console().wait_for(|line| line.contains("bare init runs"), start + LIMIT).await;
        let time = printed.expect("a bare boot").at - start;
        vm.stop(LIMIT).await;
        time
    }
}

const LIMIT: Duration = Duration::from_secs(60);
