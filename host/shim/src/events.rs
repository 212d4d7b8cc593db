//! What the shim tells containerd: events, in order, kept until containerd has taken them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed, TaskStart,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::EventsClient;
use containerd_shim_protos::topics;
use protobuf::{MessageField, MessageFull};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use ttrpc::asynchronous::Client;
use ttrpc::asynchronous::transport::Socket;
use ttrpc::context::with_duration;

use crate::task::timestamp;

/// The events of one pod. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Events(Arc<Queue>);

struct Queue {
    namespace: String,
    waiting: Mutex<VecDeque<Envelope>>,
    changed: Notify,
}

/// An event of containerd's.
pub(crate) trait Event: MessageFull {
    const TOPIC: &'static str;
}

macro_rules! events {
    ($($event:ty => $topic:ident;)*) => { $(impl Event for $event { const TOPIC: &'static str = topics::$topic; })* };
}

events! {
    TaskCreate => TASK_CREATE_EVENT_TOPIC;
    TaskStart => TASK_START_EVENT_TOPIC;
    TaskExecAdded => TASK_EXEC_ADDED_EVENT_TOPIC;
    TaskExecStarted => TASK_EXEC_STARTED_EVENT_TOPIC;
    TaskPaused => TASK_PAUSED_EVENT_TOPIC;
    TaskResumed => TASK_RESUMED_EVENT_TOPIC;
    TaskOOM => TASK_OOM_EVENT_TOPIC;
    TaskExit => TASK_EXIT_EVENT_TOPIC;
    TaskDelete => TASK_DELETE_EVENT_TOPIC;
}

impl Events {
    /// Starts to tell containerd at `address`, the path of its ttrpc socket; without one, events are only logged.
    pub(crate) fn start(address: String, namespace: String) -> Self {
        let events = Self(Arc::new(Queue { namespace, waiting: Mutex::default(), changed: Notify::new() }));
        if !address.is_empty() {
            tokio::spawn(events.clone().deliver(address.trim_start_matches("unix://").to_owned()));
        }
        events
    }

    /// Tells an event. What is told first arrives first.
    pub(crate) fn publish<E: Event>(&self, event: E) {
        tracing::debug!(topic = E::TOPIC, ?event, "event");
        // Writing to memory can't fail.
        let value = event.write_to_bytes().unwrap_or_default();
        let any = Any { type_url: E::descriptor().full_name().to_owned(), value, ..Any::default() };
        let envelope = Envelope {
            timestamp: MessageField::some(timestamp(SystemTime::now())),
            namespace: self.0.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: MessageField::some(any),
            ..Envelope::default()
        };
        let mut waiting = self.waiting();
        if waiting.len() == MOST {
            waiting.pop_front();
            tracing::warn!("an event is lost: containerd has taken none for too long");
        }
        waiting.push_back(envelope);
        drop(waiting);
        self.0.changed.notify_waiters();
    }

    /// Waits until containerd has taken all events, at most for `limit`.
    pub(crate) async fn flush(&self, limit: Duration) {
        let empty = async {
            loop {
                let changed = self.0.changed.notified();
                if self.waiting().is_empty() {
                    return;
                }
                changed.await;
            }
        };
        if tokio::time::timeout(limit, empty).await.is_err() {
            tracing::warn!(events = self.waiting().len(), "containerd did not take the last events");
        }
    }

    async fn deliver(self, address: String) {
        let mut client = None;
        let mut pause = FIRST_PAUSE;
        loop {
            let changed = self.0.changed.notified();
            let Some(envelope) = self.waiting().front().cloned() else {
                changed.await;
                continue;
            };
            match forward(&mut client, &address, envelope).await {
                Ok(()) => {
                    pause = FIRST_PAUSE;
                    self.waiting().pop_front();
                    self.0.changed.notify_waiters();
                }
                Err(error) => {
                    tracing::debug!(%error, "containerd doesn't take events now");
                    client = None;
                    // There is nothing to wait for but its return.
                    tokio::time::sleep(pause).await;
                    pause = LAST_PAUSE.min(pause * 2);
                }
            }
        }
    }

    fn waiting(&self) -> MutexGuard<'_, VecDeque<Envelope>> {
        self.0.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn forward(client: &mut Option<EventsClient>, address: &str, envelope: Envelope) -> Result<(), ttrpc::Error> {
    let client = match client {
        Some(client) => client,
        None => {
            let stream = UnixStream::connect(address).await;
            let stream = stream.map_err(|error| ttrpc::Error::Socket(error.to_string()))?;
            client.insert(EventsClient::new(Client::new(Socket::from(stream))))
        }
    };
    let request = ForwardRequest { envelope: MessageField::some(envelope), ..ForwardRequest::default() };
    client.forward(with_duration(LIMIT), &request).await.map(drop)
}

/// Some minutes of a busy pod's events.
const MOST: usize = 4096;
const LIMIT: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LAST_PAUSE: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;
    use async_trait::async_trait;
    use containerd_shim_protos::api::Empty;
    use containerd_shim_protos::shim_async::{self, create_events};
    use protobuf::Message as _;
    use std::path::Path;
    use tokio::sync::mpsc;
    use ttrpc::asynchronous::{Server, TtrpcContext};

    struct Containerd(mpsc::UnboundedSender<Envelope>);

    #[async_trait]
    impl shim_async::Events for Containerd {
        async fn forward(&self, _: &TtrpcContext, request: ForwardRequest) -> ttrpc::Result<Empty> {
            self.0.send(request.envelope.unwrap()).unwrap();
            Ok(Empty::new())
        }
    }

    async fn containerd(path: &Path) -> (Server, mpsc::UnboundedReceiver<Envelope>) {
        let (taken, events) = mpsc::unbounded_channel();
        let address = format!("unix://{}", path.display());
        let service = create_events(Arc::new(Containerd(taken)));
        let mut server = Server::new().bind(&address).unwrap().register_service(service);
        server.start().await.unwrap();
        (server, events)
    }

    #[tokio::test]
    async fn events_arrive_in_order_also_after_containerd_was_away() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let events = Events::start(path.display().to_string(), "k8s.io".into());
        events.publish(TaskCreate { container_id: "c".into(), pid: 7, ..TaskCreate::default() });
        events.publish(TaskStart { container_id: "c".into(), pid: 7, ..TaskStart::default() });

        let (_server, mut taken) = containerd(&path).await;
        events.flush(Duration::from_secs(20)).await;

        let (first, second) = (taken.recv().await.unwrap(), taken.recv().await.unwrap());
        assert_eq!((first.topic.as_str(), second.topic.as_str()), ("/tasks/create", "/tasks/start"));
        assert_eq!(
            (first.namespace.as_str(), first.event.type_url.as_str()),
            ("k8s.io", "containerd.events.TaskCreate")
        );
        assert_eq!(TaskCreate::parse_from_bytes(&first.event.value).unwrap().pid, 7);
    }
}
