//! Waiting for what files say, by the kernel's notifications.

use std::path::Path;
use std::time::Duration;

use notify::{RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// Looks at a folder's files after every change of them until `look` finds something.
///
/// # Errors
/// `limit` has passed.
pub(super) async fn found<T>(folder: &Path, limit: Duration, look: impl Fn() -> Option<T>) -> Result<T, ()> {
    let deadline = Instant::now() + limit;
    let (changed, mut changes) = mpsc::unbounded_channel();
    let mut watcher = notify::recommended_watcher(move |_| _ = changed.send(())).unwrap();
    watcher.watch(folder, RecursiveMode::NonRecursive).unwrap();
    loop {
        if let Some(found) = look() {
            return Ok(found);
        }
        match tokio::time::timeout_at(deadline, changes.recv()).await {
            // Many changes may have come at once.
            Ok(_) => while changes.try_recv().is_ok() {},
            Err(_) => return Err(()),
        }
    }
}
