//! The one pod of a shim: booted by its first container, gone with it.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use ::management::{Failures, Trouble};
use containerd_shim_protos::api::CreateTaskRequest;
use tokio::sync::{self, watch};

use crate::bundle::Bundle;
use crate::events::Events;
use crate::journal::Journal;
use crate::machine::Boot;
use crate::metrics::Metrics;
use crate::pod::{Pod, Reports};
use crate::request::BootRequest;
use crate::{Error, Kind, management};

/// The one pod of a shim.
pub(crate) struct Shim {
    pub(crate) id: String,
    namespace: String,
    events: Events,
    boot: Box<dyn Boot>,
    pub(crate) metrics: Metrics,
    pub(crate) journal: Journal,
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
    pub(crate) fn new(id: &str, namespace: &str, events: Events, boot: impl Boot, failures: Failures) -> Self {
        Self {
            id: id.to_owned(),
            namespace: namespace.to_owned(),
            events,
            boot: Box::new(boot),
            metrics: Metrics::new(),
            journal: Journal::new(id, failures),
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
            // What can't be ended yet is on record.
            let _ = pod.machine().stop().await;
            pod.clear_disks();
        }
        self.over.send_replace(true);
    }

    /// Waits until the shim has nothing more to do.
    pub(crate) async fn over(&self) {
        let _ = self.over.subscribe().wait_for(|over| *over).await;
        let _made = self.making.lock().await;
    }

    /// Remembers that a request failed.
    pub(crate) fn note(&self, action: &'static str, container: &str, error: &Error) -> Trouble {
        self.journal.note(action, if container == self.id { "" } else { container }, error)
    }

    /// Remembers that a request failed, and puts on record what keeps the pod or a container from running.
    pub(crate) fn failed(&self, action: &'static str, container: &str, error: &Error) {
        let trouble = self.note(action, container, error);
        let lost = matches!(action, "create" | "start") && !matches!(error, Error::Exists(_) | Error::State(_));
        if lost {
            self.journal.record(trouble);
        }
    }

    async fn create_whole(self: &Arc<Self>, request: &CreateTaskRequest) -> Result<u32, Error> {
        let bundle = Bundle::at(&request.bundle);
        let spec = tokio::task::spawn_blocking(move || bundle.spec()).await??;
        let kind = Kind::of(&spec.annotations)?;
        self.journal.know(&spec.annotations);
        if !kind.owns_machine() {
            let booted = self.pod().map_err(|_| Error::State(format!("the pod {} isn't up", self.id)))?;
            return booted.create(request, spec, kind).await;
        }
        let boot = BootRequest::of_container(&request.id, &spec, &kind, request.options.as_ref())?;
        let _making = self.making.try_lock().map_err(|_| Error::Exists(format!("the pod {}", self.id)))?;
        let pod = self.boot_whole(boot).await?;
        let created = pod.create(request, spec, kind).await;
        if created.is_err() {
            let _ = pod.machine().stop().await;
            *self.state() = State::Empty;
        }
        created
    }

    async fn boot_whole(self: &Arc<Self>, mut request: BootRequest) -> Result<Arc<Pod>, Error> {
        match &mut *self.state() {
            State::Up(..) | State::Booting => return Err(Error::Exists(format!("the pod {}", self.id))),
            empty => *empty = State::Booting,
        }
        let serving = management::serve_from_the_start(self, &mut request.sandbox);
        for error in &request.refused {
            tracing::warn!("{error}");
            self.journal.note("annotations", "", error);
        }
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
        let reports =
            Reports { events: self.events.clone(), metrics: self.metrics.clone(), journal: self.journal.clone() };
        let (id, namespace) = (self.id.clone(), self.namespace.clone());
        let pod = Pod::new(id, namespace, machine, reports, request.create_limit, request.disks, request.health);
        *self.state() = State::Up(Arc::clone(&pod), SystemTime::now());
        let ending = Arc::clone(&pod);
        tokio::spawn(async move {
            ending.machine().ended().await;
            drop(serving);
        });
        Ok(pod)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
