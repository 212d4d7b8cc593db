//! How a container comes to be, step by step, and how every step is undone where one fails.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;

use futures::FutureExt;
use serde_json::json;
use tokio::sync::oneshot;
use wire_ttrpc::agent::{CreateContainerRequest, Storage};

use crate::agent::{Agent, AgentEvent};
use crate::container::{Container, Home, RunsAs};
use crate::devices::{Address, Disk};
use crate::disks::DiskError;
use crate::fault::Fault;
use crate::id::Id;
use crate::images::ResolvedImage;
use crate::request::Gated;
use crate::spec::{self, Pod};
use crate::volumes::Held;
use crate::{devices, pause, secrets};

/// What a container's root file system is.
enum Root {
    /// An image that the policy allows. What is pulled is the digest that was decided on.
    Image(ResolvedImage),
    /// The guest's own: the container is the pod's sandbox container.
    Pause,
}

impl Agent {
    /// Makes a container. Where that fails, nothing is left of it, nor of what the host has copied for it.
    pub(crate) async fn create_container(self: &Arc<Self>, request: CreateContainerRequest) -> Result<(), Fault> {
        self.note_request();
        if !self.policy.mentions(CreateContainerRequest::NAME) {
            // No digest could change the answer, so no registry has to be asked.
            return self.decide(CreateContainerRequest::NAME, serde_json::Value::Null).await;
        }
        let id = Id::parse(&request.container_id)?;
        let copies = CopiesInDoubt { agent: Arc::clone(self), id: id.clone(), paths: self.copies_for(&request) };
        self.create(&id, request, copies).await
    }

    async fn create(
        self: &Arc<Self>,
        id: &Id,
        request: CreateContainerRequest,
        copies: CopiesInDoubt,
    ) -> Result<(), Fault> {
        if !request.exec_id.is_empty() {
            Id::parse(&request.exec_id)?;
        }
        let mut input = request.input();
        let root = if pause::is_asked_for(&request) {
            self.expect_sandbox()?;
            input["images"] = json!({});
            input["image_process"] = serde_json::Value::Null;
            Root::Pause
        } else {
            let reference = spec::image(&request, &self.root)?;
            // Before any look-up: with the sandbox comes the resolver.
            self.expect_sandbox()?;
            self.network_drivers().await;
            let (image, ()) = tokio::join!(self.images.resolve(&reference), self.all_drivers());
            let image = image?;
            if !is_digest(&image.digest) {
                return Err(Fault::Digest(reference, image.digest));
            }
            input["images"] = json!({ reference: image.digest });
            input["image_process"] = json!(image.process);
            Root::Image(image)
        };
        input["guest_pause"] = json!(matches!(root, Root::Pause));
        // Before the decision: what a policy notes of a container must not come of a second request for it.
        let reservation = self.containers.reserve(id)?;
        self.decide(CreateContainerRequest::NAME, input).await?;
        let give_up = reservation.keep();

        // The work goes on in a task of its own, so that it is undone even where the caller has given up on it.
        let (caller, gone) = oneshot::channel::<()>();
        let agent = Arc::clone(self);
        let abandoned = async move {
            tokio::select! {
                _ = gone => {}
                () = give_up.notified() => {}
            }
        };
        let id = id.clone();
        let task = tokio::spawn(async move { agent.build(id, request, root, copies, abandoned).await });
        let result = task.await;
        drop(caller);
        result?
    }

    /// What the host has copied for the container that it asks for.
    fn copies_for(&self, request: &CreateContainerRequest) -> Vec<PathBuf> {
        let sources = request.OCI.Mounts.iter().map(|mount| mount.source.as_str());
        self.copies.of(&request.container_id, sources)
    }

    async fn build(
        self: Arc<Self>,
        id: Id,
        request: CreateContainerRequest,
        root: Root,
        copies: CopiesInDoubt,
        abandoned: impl Future<Output = ()> + Send,
    ) -> Result<(), Fault> {
        let home = match Home::make(&id, &self.root, &self.helper, matches!(root, Root::Pause)) {
            Ok(home) => home,
            Err(fault) => {
                copies.remove();
                self.containers.settle(&id, None);
                return Err(fault);
            }
        };
        let mut volumes = Held::default();
        let mut abandoned = std::pin::pin!(abandoned);
        let mut result = self.assemble(&home, &request, &root, &mut volumes, abandoned.as_mut()).await;
        // Making the container can't be interrupted, but it can be undone.
        if result.is_ok()
            && abandoned.now_or_never().is_some()
            && let Ok(container) = std::mem::replace(&mut result, Err(Fault::Abandoned))
        {
            container.discard().await;
        }
        match result {
            Ok(container) => {
                copies.keep();
                self.volumes.keep(&volumes, &storages(&request));
                container.take_volumes(volumes);
                let container = Arc::new(container);
                self.watch(&id, &container);
                self.containers.settle(&id, Some(container));
                let digest = match root {
                    Root::Image(image) => Some(image.digest),
                    Root::Pause => None,
                };
                self.announce(AgentEvent::ContainerCreated { id: id.to_string(), digest });
                Ok(())
            }
            Err(fault) => {
                home.clear(self.images.as_ref()).await;
                self.volumes.release(volumes).await;
                copies.remove();
                self.containers.settle(&id, None);
                Err(fault)
            }
        }
    }

    async fn assemble(
        &self,
        home: &Home,
        request: &CreateContainerRequest,
        root: &Root,
        volumes: &mut Held,
        mut abandoned: Pin<&mut impl Future<Output = ()>>,
    ) -> Result<Container, Fault> {
        let image = match root {
            Root::Pause => return self.assemble_pause(home, request).await,
            Root::Image(image) => image,
        };
        let devices = self.devices(request).await?;
        let pulled = tokio::select! {
            pulled = self.images.pull(image, home.bundle()) => pulled?,
            () = abandoned.as_mut() => return Err(Fault::Abandoned),
        };
        if pulled.digest != image.digest {
            return Err(Fault::Digest(image.reference.clone(), pulled.digest));
        }
        let mut opened = request.clone();
        if let Some(process) = opened.OCI.as_mut().and_then(|oci| oci.Process.as_mut()) {
            // Only here, after the decision: what the policy and its log see is what the host sent.
            tokio::select! {
                opened = secrets::open_all(&mut process.Env, self.secrets.as_deref()) => opened?,
                () = abandoned => return Err(Fault::Abandoned),
            }
        }
        let request = &opened;
        *volumes = self.volumes.add(&storages(request)).await?;
        set_network_parameters(request)?;
        let shared = self.volumes.paths();
        let (hostname, files, namespaces) = {
            let mut sandbox = self.sandbox();
            let sandbox = sandbox.as_mut().ok_or_else(|| Fault::State("the sandbox is gone".to_owned()))?;
            let files = sandbox.write_files(home.bundle());
            let files = files.map_err(|e| Fault::Io("container's files can't be written", e))?;
            let shares_pids = sandbox.shares_pids() || request.sandbox_pidns;
            let namespaces = sandbox.namespaces().map_err(|e| Fault::Io("pod's namespaces can't be made", e))?;
            let namespaces = namespaces.of_a_container(shares_pids);
            (sandbox.hostname().to_owned(), files, namespaces)
        };
        let pod =
            Pod { hostname: &hostname, files: &files, volumes: &shared, copies: self.copies.folder(), namespaces };
        let config = spec::build(request, &pulled.rootfs, &image.process, &devices, pod)?;
        write_config(home.bundle(), &config)?;
        let terminal = config["process"]["terminal"] == true;
        let user = RunsAs::new(request.OCI.Process.User.as_ref(), config["process"]["user"].clone());
        let copies = self.copies_for(request);
        let container = Container::create(home.clone(), &request.exec_id, terminal, user, copies).await?;
        self.share_pids(container, request).await
    }

    /// Makes the pod's own process. Of the request it takes the parameters of the kernel that a pod sets for all of its
    /// containers.
    async fn assemble_pause(&self, home: &Home, request: &CreateContainerRequest) -> Result<Container, Fault> {
        set_network_parameters(request)?;
        let shared = spec::shared_parameters(request)?;
        if !shared.is_empty() {
            let mut sandbox = self.sandbox();
            let sandbox = sandbox.as_mut().ok_or_else(|| Fault::State("the sandbox is gone".to_owned()))?;
            let set = sandbox.namespaces().and_then(|namespaces| namespaces.set(shared));
            set.map_err(|e| Fault::Io("a parameter of the pod's namespaces can't be set", e))?;
        }
        let container = Container::pause(home.clone(), &request.exec_id).await?;
        self.share_pids(container, request).await
    }

    /// Waits for the disks that the container gets as devices. One of them may be there for images instead.
    async fn devices(&self, request: &CreateContainerRequest) -> Result<Vec<(String, Disk)>, Fault> {
        let mut devices = Vec::new();
        for device in &request.devices {
            let address = if device.id.is_empty() { &device.vm_path } else { &device.id };
            let address = Address::parse(&device.type_, address);
            let address =
                address.ok_or(spec::Error::Unsupported("a device that is no disk at an address of the guest"))?;
            let disk = address.find(Path::new("/sys"), devices::PATIENCE).await?;
            if device.container_path == TRUSTED_STORE {
                let none = || DiskError("this guest encrypts no disks; next: leave /dev/trusted_store out".to_owned());
                self.disks.as_ref().ok_or_else(none)?.store_images(&disk.number).await?;
            } else {
                devices.push((device.container_path.clone(), disk));
            }
        }
        Ok(devices)
    }

    /// As [`Self::keep_pids`], and ends the container where that fails.
    async fn share_pids(&self, container: Container, request: &CreateContainerRequest) -> Result<Container, Fault> {
        match self.keep_pids(&container, request) {
            Ok(()) => Ok(container),
            Err(fault) => {
                container.discard().await;
                Err(fault)
            }
        }
    }

    /// Lets the pod's later containers have the processes of this one, if they share them and have no others yet.
    fn keep_pids(&self, container: &Container, request: &CreateContainerRequest) -> Result<(), Fault> {
        let mut sandbox = self.sandbox();
        let Some(sandbox) = sandbox.as_mut() else { return Ok(()) };
        if !sandbox.shares_pids() && !request.sandbox_pidns {
            return Ok(());
        }
        let is_pause = pause::is_asked_for(request);
        let mut share = || -> std::io::Result<()> {
            let namespaces = sandbox.namespaces()?;
            if is_pause || !namespaces.has_pids() {
                namespaces.share_pids_of(container.init().pid())?;
            }
            Ok(())
        };
        share().map_err(|e| Fault::Io("pod's process namespace can't be kept", e))
    }

    fn watch(self: &Arc<Self>, id: &Id, container: &Arc<Container>) {
        self.oom.watch(id.to_string(), Arc::clone(container));
        let (agent, container, id) = (Arc::downgrade(self), Arc::clone(container), id.to_string());
        tokio::spawn(async move {
            let status = container.init().ended().await;
            // In a process namespace that the pod shares, nobody else ends what the first process leaves behind.
            if let Err(error) = container.cgroup().kill() {
                tracing::warn!(container = id, %error, "the container's other processes can't be killed");
            }
            if let Some(agent) = agent.upgrade() {
                agent.announce(AgentEvent::ContainerEnded { id, status });
            }
        });
    }
}

/// What the host has copied for a container that may never come to be. It goes with this, wherever the creation ends: a caller
/// that has no patience left takes the handler of its request away in the middle.
struct CopiesInDoubt {
    agent: Arc<Agent>,
    id: Id,
    paths: Vec<PathBuf>,
}

impl CopiesInDoubt {
    /// They are the container's.
    fn keep(mut self) {
        self.paths.clear();
    }

    /// There will be no container of this name, though it still has the name.
    fn remove(mut self) {
        self.agent.copies.remove(&std::mem::take(&mut self.paths));
    }
}

impl Drop for CopiesInDoubt {
    fn drop(&mut self) {
        // Another container of this name may have them.
        if !self.paths.is_empty() && !self.agent.containers.has(&self.id) {
            self.agent.copies.remove(&self.paths);
        }
    }
}

/// Where Kubernetes has a disk that images are to be unpacked to.
pub(crate) const TRUSTED_STORE: &str = "/dev/trusted_store";

/// The storages that are volumes.
fn storages(request: &CreateContainerRequest) -> Vec<Storage> {
    request.storages.iter().filter(|storage| storage.driver != spec::GUEST_PULL).cloned().collect()
}

/// The network is the guest's, and so are its parameters.
fn set_network_parameters(request: &CreateContainerRequest) -> Result<(), Fault> {
    for (file, value) in spec::network_parameters(request)? {
        std::fs::write(Path::new("/proc/sys").join(file), value)
            .map_err(|e| Fault::Io("a parameter of the pod's network can't be set", e))?;
    }
    Ok(())
}

fn write_config(bundle: &Path, config: &serde_json::Value) -> Result<(), Fault> {
    std::fs::write(bundle.join("config.json"), config.to_string())
        .map_err(|e| Fault::Io("container's configuration can't be written", e))
}

/// `sha256:` and 64 hexadecimal digits.
fn is_digest(text: &str) -> bool {
    let digits = text.strip_prefix("sha256:").unwrap_or_default();
    digits.len() == 64 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
