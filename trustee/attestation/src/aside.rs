//! Work away from the threads that serve requests: verification and policies may take their time.

use std::sync::Arc;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

/// Does a piece of work on a thread that may block; at most eight are done at once in a process, and 4096 wait.
///
/// # Errors
/// [`Busy`] if more would wait, or the process ends.
///
/// # Panics
/// Where the work panics.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
    let waiting = Waiting::begin()?;
    let permit = RUNNING.clone().acquire_owned().await.map_err(|_| Busy)?;
    drop(waiting);
    let working = tokio::task::spawn_blocking(move || {
        let _until_done = permit;
        work()
    });
    match working.await {
        Ok(value) => Ok(value),
        Err(ended) => match ended.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(Busy),
        },
    }
}

/// There is more to do than can be done.
#[derive(Clone, Copy, Debug, Eq, PartialEq, thiserror::Error)]
#[error("too much is being verified at once: try again later")]
pub struct Busy;

/// One that waits.
struct Waiting;

impl Waiting {
    fn begin() -> Result<Self, Busy> {
        let waiting = Self;
        if WAITING.fetch_add(1, Ordering::Relaxed) < MAX_WAITING { Ok(waiting) } else { Err(Busy) }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        WAITING.fetch_sub(1, Ordering::Relaxed);
    }
}

static RUNNING: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(MAX_RUNNING)));
static WAITING: AtomicUsize = AtomicUsize::new(0);
/// Some more than there are processors, since reference values may have to be fetched; each thread takes memory.
const MAX_RUNNING: usize = 8;
const MAX_WAITING: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_gives_its_value_and_its_panic() {
        assert_eq!(aside(|| 7).await, Ok(7));
        let panicking = tokio::spawn(aside(|| -> u8 { panic!("as expected by this test") }));
        assert!(panicking.await.unwrap_err().is_panic());
        assert_eq!(WAITING.load(Ordering::Relaxed), 0);
    }
}
