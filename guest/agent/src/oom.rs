//! Tells the host which container ran out of memory.

use std::io;
use std::path::Path;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::{Mutex, mpsc};

use crate::container::Container;
use crate::watched::watched;

/// What happened and was not told yet. Each event is told to one caller.
pub(crate) struct OomEvents {
    sender: mpsc::Sender<String>,
    receiver: Mutex<mpsc::Receiver<String>>,
}

impl OomEvents {
    pub(crate) fn new() -> Self {
        let (sender, receiver) = mpsc::channel(MAX_PENDING);
        Self { sender, receiver: Mutex::new(receiver) }
    }

    /// The next container of which a process was killed for want of memory.
    pub(crate) async fn next(&self) -> String {
        match self.receiver.lock().await.recv().await {
            Some(container) => container,
            // The sender lives as long as this value.
            None => std::future::pending().await,
        }
    }

    /// Watches over a container until its end.
    pub(crate) fn watch(&self, id: String, container: Arc<Container>) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let path = container.cgroup().path().join("memory.events");
            let outcome = tell_kills(&path, &id, &sender, container.init().ended()).await;
            // Without the memory controller there is nothing to watch.
            if let Err(error) = outcome
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(container = id, %error, "memory can't be watched");
            }
        });
    }
}

/// Sends the name whenever the count of kills has grown, until the container has ended and once more then: its first
/// process may have been the one that was killed.
async fn tell_kills(
    path: &Path,
    id: &str,
    sender: &mpsc::Sender<String>,
    ended: impl Future<Output = i32>,
) -> io::Result<()> {
    let events = watched(std::fs::File::open(path)?.into(), Interest::PRIORITY)?;
    let mut ended = std::pin::pin!(ended);
    let (mut known, mut last) = (0, false);
    while !last {
        tokio::select! {
            changed = events.ready(Interest::PRIORITY) => changed?.clear_ready(),
            _ = ended.as_mut() => last = true,
        }
        let kills = kills(&std::fs::read_to_string(path)?);
        if kills > known {
            // A host that does not listen misses the newest.
            let _ = sender.try_send(id.to_owned());
        }
        known = kills;
    }
    Ok(())
}

fn kills(events: &str) -> u64 {
    let count = events.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

const MAX_PENDING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_kills_count() {
        assert_eq!(kills("low 0\nhigh 0\nmax 19\noom 2\noom_kill 1\noom_group_kill 0\n"), 1);
        assert_eq!(kills("low 0\n"), 0);
        assert_eq!(kills("oom_kill x\n"), 0);
    }

    #[tokio::test]
    async fn each_event_is_told_once() {
        let events = OomEvents::new();
        events.sender.try_send("c1".to_owned()).unwrap();
        events.sender.try_send("c2".to_owned()).unwrap();
        assert_eq!((events.next().await, events.next().await), ("c1".to_owned(), "c2".to_owned()));
    }
}
