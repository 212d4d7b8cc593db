//! The one pod of a shim: booted by its first container, gone with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use containerd_shim_protos::api::CreateTaskRequest;
use sandbox::{Directory, SandboxName};
use tokio::sync::{self, watch};

use crate::bundle::Bundle;
use crate::events::Events;
use crate::machine::Boot;
use crate::metrics::Metrics;
use crate::pod::Pod;
use crate::request::BootRequest;
use crate::{Error, Kind, management};

/// The one pod of a shim.
pub(crate) struct Shim {
    id: String,
    namespace: String,
    events: Events,
    boot: Box<dyn Boot>,
    pub(crate) metrics: Metrics,
    state: Mutex<State>,
    /// Held while a machine is booted and its first container created.
    making: sync::Mutex<()>,
    over: watch::Sender<bool>,
}

enum State {
    /// There is no machine.
    Empty,
    /// There is going to be one.
    Booting,
    /// The pod runs, or has run, since then.
    Up(Arc<Pod>, SystemTime),
}

impl Shim {
    pub(crate) fn new(id: &str, namespace: &str, events: Events, boot: impl Boot) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            events,
            boot: Box::new(boot),
            metrics: Metrics::new(),
            state: Mutex::new(State::Empty),
            making: sync::Mutex::default(),
            over: watch::Sender::new(false),
        }
    }

    /// Creates a container, and the pod's machine before if the container owns it. Goes on if the caller doesn't wait: what
    /// is half made must not stay so.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateTaskRequest) -> Result<u32, Error> {
        let shim = Arc::clone(self);
        tokio::spawn(async move { shim.create_whole(&request).await }).await?
    }

    /// Boots the pod's machine.
    pub(crate) async fn boot(self: &Arc<Self>, request: BootRequest) -> Result<Arc<Pod>, Error> {
        let shim = Arc::clone(self);
        let boot = async move {
            let _making = shim.making.try_lock().map_err(|_| Error::Exists(format!("the pod {}", shim.id)))?;
            shim.boot_whole(request).await
        };
        tokio::spawn(boot).await?
    }

    /// The pod, if it is up.
    pub(crate) fn pod(&self) -> Result<Arc<Pod>, Error> {
        match &*self.state() {
            State::Up(pod, _) => Ok(Arc::clone(pod)),
            State::Booting | State::Empty => Err(Error::NotFound(format!("the pod {}", self.id))),
        }
    }

    /// When the pod came up, if it has.
    pub(crate) fn up_since(&self) -> Option<SystemTime> {
        match &*self.state() {
            State::Up(_, since) => Some(*since),
            State::Booting | State::Empty => None,
        }
    }

    /// Ends the shim, unless containers are left and `now` doesn't say that they don't count. A machine that is being booted
    /// has none: whoever wanted it has given up.
    pub(crate) async fn shut_down(&self, now: bool) {
        if let Ok(pod) = self.pod() {
            if !now && !pod.is_empty() {
                return;
            }
            pod.machine().stop().await;
        }
        self.over.send_replace(true);
    }

    /// Waits until the shim has nothing more to do.
    pub(crate) async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
        let _made = self.making.lock().await;
    }

    async fn create_whole(&self, request: &CreateTaskRequest) -> Result<u32, Error> {
        let bundle = Bundle::at(&request.bundle);
        let spec = tokio::task::spawn_blocking(move || bundle.spec()).await??;
        let kind = Kind::of(&spec.annotations)?;
        if !kind.owns_machine() {
            let booted = self.pod().map_err(|_| Error::State(format!("the pod {} isn't up", self.id)))?;
            return booted.create(request, spec, kind).await;
        }
        let boot = BootRequest::of_container(&request.id, &spec, &kind, request.options.as_ref())?;
        let _making = self.making.try_lock().map_err(|_| Error::Exists(format!("the pod {}", self.id)))?;
        let pod = self.boot_whole(boot).await?;
        let created = pod.create(request, spec, kind).await;
        if created.is_err() {
            pod.machine().stop().await;
            *self.state() = State::Empty;
        }
        created
    }

    async fn boot_whole(&self, request: BootRequest) -> Result<Arc<Pod>, Error> {
        match &mut *self.state() {
            State::Up(..) | State::Booting => return Err(Error::Exists(format!("the pod {}", self.id))),
            empty => *empty = State::Booting,
        }
        let name = request.sandbox.name.clone();
        let mut over = self.over.subscribe();
        let booted = tokio::select! {
            booted = self.boot.boot(request.sandbox) => booted,
            _ = over.wait_for(|over| *over) => Err(Error::State("the pod was given up while it booted".to_owned())),
        };
        let machine = match booted {
            Ok(machine) => machine,
            Err(error) => {
                *self.state() = State::Empty;
                return Err(error);
            }
        };
        let pod = Pod::new(
            self.id.clone(),
            self.namespace.clone(),
            machine,
            self.events.clone(),
            self.metrics.clone(),
            request.create_limit,
        );
        *self.state() = State::Up(Arc::clone(&pod), SystemTime::now());
        self.serve_management(&pod, &name);
        Ok(pod)
    }

    fn serve_management(&self, pod: &Arc<Pod>, name: &SandboxName) {
        if let Err(error) = management::serve(Arc::clone(pod), self.metrics.clone(), Directory::path_of(name)) {
            tracing::warn!(%error, "there is no management socket");
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
