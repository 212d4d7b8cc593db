//! Creates a container in a pod's guest: all of it, or nothing.

use std::path::PathBuf;
use std::time::Duration;

use containerd_shim_protos::api::CreateTaskRequest;
use hypervisor::DiskConfig;
use protobuf::MessageField;
use wire_ttrpc::agent::{CreateContainerRequest, Device, RemoveContainerRequest};
use wire_ttrpc::oci;

use crate::annotations::INITDATA;
use crate::container::{Container, Held};
use crate::copy::copy_all;
use crate::guest::Guest;
use crate::image;
use crate::io::{ProcessId, Stdio};
use crate::machine::Machine;
use crate::process::Process;
use crate::users;
use crate::volumes::Volumes;
use crate::volumes::disks::Disks;
use crate::{Error, Kind, Spec};

/// What a container is made of.
pub(crate) struct Creation<'a> {
    pub(crate) request: &'a CreateTaskRequest,
    pub(crate) spec: Spec,
    pub(crate) kind: Kind,
    pub(crate) namespace: &'a str,
    /// The pod's disks with volumes.
    pub(crate) disks: &'a Disks,
    /// As long as the guest may take, with the pull of the image.
    pub(crate) limit: Duration,
}

impl Creation<'_> {
    /// Creates the container. What it has made on the way to a failure is taken back.
    ///
    /// # Errors
    /// Any of the crate's: the first thing that failed.
    pub(crate) async fn run(self, guest: &Guest, machine: &Machine, sandbox: &str) -> Result<Container, Error> {
        let id = self.request.id.clone();
        let mut volumes = match self.kind {
            Kind::Sandbox => Volumes::of_sandbox(&self.spec),
            _ => Volumes::of(&self.spec, &id, sandbox, self.disks.mode)?,
        };
        let stdio = Stdio {
            stdin: self.request.stdin.clone(),
            stdout: self.request.stdout.clone(),
            stderr: self.request.stderr.clone(),
            terminal: self.request.terminal,
        };
        let process = ProcessId { container: id.clone(), exec: String::new() };
        let init = Process::open(process, stdio, None, self.namespace).await?;
        let mut storages = volumes.storages;
        for (mount, volume) in &volumes.disks {
            let storage = self.disks.attach(machine, volume).await?;
            volumes.mounts[*mount].source.clone_from(&storage.mount_point);
            if storages.iter().all(|known| known.mount_point != storage.mount_point) {
                storages.push(storage);
            }
        }
        let user = self.spec.process.as_ref().map_or_else(Default::default, |it| (it.user.uid, it.user.gid));
        let named = match (&self.kind, &self.spec.process) {
            (Kind::Sandbox, _) | (_, None) => None,
            (_, Some(process)) => users::by_name(&process.user, &self.request.rootfs)?,
        };
        storages.push(image::storage(&id, &self.kind, &self.spec, &self.request.rootfs)?);

        let mut held = Held::default();
        // The guest cleans up behind a request that it refuses.
        let mut is_left = true;
        let created = async {
            held.watchers = copy_all(guest, volumes.copies).await?;
            let devices = attach(machine, &self.spec, &mut held).await?;
            let wish = CreateContainerRequest {
                container_id: id.clone(),
                exec_id: id.clone(),
                string_user: named.into(),
                devices,
                storages,
                sandbox_pidns: self.spec.shares_processes(),
                OCI: MessageField::some(specification(self.spec, &self.kind, self.request, volumes.mounts)),
                ..CreateContainerRequest::default()
            };
            let created = guest.create_container(wish, self.limit).await;
            // One that was too slow may have made it by now.
            is_left = matches!(created, Err(Error::Timeout { .. }));
            created
        };
        if let Err(error) = created.await {
            undo(guest, machine, &id, held, is_left).await;
            return Err(error);
        }
        let bundle = self.request.bundle.clone();
        let container = Container::new(id, bundle, self.kind, user, init, volumes.termination_log);
        container.hold(held);
        Ok(container)
    }
}

/// Takes back what a failed creation has made. Whatever fails here fails after the cause, which is what is told.
async fn undo(guest: &Guest, machine: &Machine, id: &str, held: Held, is_left: bool) {
    // What was copied, and maybe the container.
    if is_left {
        let request = RemoveContainerRequest { container_id: id.to_owned(), timeout: 1, ..Default::default() };
        if let Err(error) = guest.remove_container(request).await {
            tracing::debug!(container = %id, %error, "nothing is left in the guest");
        }
    }
    for disk in held.disks {
        if let Err(error) = machine.detach(disk).await {
            tracing::warn!(container = %id, %error, "a disk stays with the machine");
        }
    }
}

/// Gives the guest the container's block devices, each by its place in the machine.
async fn attach(machine: &Machine, spec: &Spec, held: &mut Held) -> Result<Vec<Device>, Error> {
    let mut devices = Vec::new();
    for device in spec.linux.devices.iter().filter(|device| device.kind == "b") {
        let number = format!("{}:{}", device.major, device.minor);
        let path = block_device(&number)?;
        let read_only = std::fs::read_to_string(format!("/sys/dev/block/{number}/ro")).is_ok_and(|ro| ro.trim() == "1");
        let disk = machine.attach(DiskConfig { path, read_only }).await?;
        devices.push(Device {
            id: disk.pci_path(),
            type_: "blk".to_owned(),
            container_path: device.path.clone(),
            ..Device::default()
        });
        held.disks.push(disk);
    }
    Ok(devices)
}

/// The host's file of a block device. The path in the specification is the container's.
fn block_device(number: &str) -> Result<PathBuf, Error> {
    let path = PathBuf::from(format!("/sys/dev/block/{number}/uevent"));
    let text = std::fs::read_to_string(&path).map_err(Error::file("block device", &path))?;
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let unnamed = || Error::Volume { path, reason: "the host gives the block device no name".to_owned() };
    name.map(|name| PathBuf::from("/dev").join(name)).ok_or_else(unnamed)
}

/// The specification as the guest's agent takes it.
fn specification(spec: Spec, kind: &Kind, request: &CreateTaskRequest, mounts: Vec<crate::spec::Mount>) -> oci::Spec {
    let mut annotations = spec.annotations;
    // The guest has it already, and from there where it counts.
    annotations.remove(INITDATA);
    annotations.insert("io.katacontainers.pkg.oci.container_type".to_owned(), kind.word().to_owned());
    annotations.insert("io.katacontainers.pkg.oci.bundle_path".to_owned(), request.bundle.clone());
    let root = oci::Root {
        Path: image::rootfs(&request.id),
        Readonly: spec.root.unwrap_or_default().readonly,
        ..oci::Root::default()
    };
    oci::Spec {
        Version: spec.oci_version,
        Process: spec.process.map(crate::spec::Process::into_wire).into(),
        Root: MessageField::some(root),
        Hostname: spec.hostname,
        Mounts: mounts.into_iter().map(crate::spec::Mount::into_wire).collect(),
        Annotations: annotations.into_iter().collect(),
        Linux: MessageField::some(spec.linux.into_wire()),
        ..oci::Spec::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_s_specification_names_its_root_and_kind_and_not_the_initdata() {
        let text = br#"{"ociVersion": "1.1.0", "root": {"path": "/host/rootfs", "readonly": true}, "hostname": "h",
            "annotations": {"io.katacontainers.config.hypervisor.cc_init_data": "x", "a": "b"}}"#;
        let request = CreateTaskRequest { id: "c".into(), bundle: "/bundle".into(), ..CreateTaskRequest::default() };
        let kind = Kind::Container { sandbox: "s".into() };
        let spec = specification(Spec::parse(text).unwrap(), &kind, &request, Vec::new());
        assert_eq!((spec.Root.Path.as_str(), spec.Root.Readonly), ("/run/kata-containers/c/rootfs", true));
        let mut annotations: Vec<_> = spec.Annotations.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        annotations.sort_unstable();
        assert_eq!(
            annotations,
            [
                ("a", "b"),
                ("io.katacontainers.pkg.oci.bundle_path", "/bundle"),
                ("io.katacontainers.pkg.oci.container_type", "pod_container"),
            ]
        );
    }
}
