//! News of writes, for those who hold a copy of what the store has.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

/// Tells when a namespace was written to. See [`Store::changes`](crate::Store::changes).
pub struct Changes {
    heard: watch::Receiver<()>,
    /// Keeps the sender, so that waiting never ends by itself.
    _bell: Arc<Bell>,
}

impl Changes {
    /// Returns once the namespace was written to since the last call, or since this was made. Many writes are told
    /// as one, and now and then a write is told twice. Giving up waiting loses nothing.
    pub async fn changed(&mut self) {
        if self.heard.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// What writers ring.
#[derive(Default)]
pub(crate) struct Bell(Mutex<HashMap<&'static str, watch::Sender<()>>>);

impl Bell {
    pub fn changes(self: &Arc<Self>, namespace: &'static str) -> Changes {
        let mut senders = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let heard = senders.entry(namespace).or_default().subscribe();
        Changes { heard, _bell: self.clone() }
    }

    pub fn ring(&self, namespace: &str) {
        if let Some(sender) = self.0.lock().unwrap_or_else(PoisonError::into_inner).get(namespace) {
            sender.send_replace(());
        }
    }

    /// For when it is not known what has changed.
    pub fn ring_all(&self) {
        for sender in self.0.lock().unwrap_or_else(PoisonError::into_inner).values() {
            sender.send_replace(());
        }
    }
}
