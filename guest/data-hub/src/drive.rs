//! Runs a future on a thread of its own, for futures that the compiler can't prove to be `Send`.
//!
//! Those of `image` are such: they hold async closures over references across an await.

use std::future::Future;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

/// The outcome of the future that `make` returns. If the caller stops waiting, that future is dropped as well.
///
/// `None` only if its thread panics or the runtime ends.
pub(crate) async fn drive<T, F>(make: impl FnOnce() -> F + Send + 'static) -> Option<T>
where
    T: Send + 'static,
    F: Future<Output = T>,
{
    // Dropping the sender, with this future, ends the receiver's wait.
    let (_waiting, given_up) = oneshot::channel::<()>();
    let runtime = Handle::current();
    let thread = tokio::task::spawn_blocking(move || {
        runtime.block_on(async {
            tokio::select! {
                outcome = make() => Some(outcome),
                _ = given_up => None,
            }
        })
    });
    thread.await.ok().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[tokio::test]
    async fn a_future_that_is_not_send_has_its_outcome() {
        let outcome = drive(|| async {
            let local = Rc::new(7);
            tokio::task::yield_now().await;
            *local
        });
        assert_eq!(outcome.await, Some(7));
    }

    #[tokio::test]
    async fn who_stops_to_wait_drops_the_future() {
        let (started, has_started) = oneshot::channel();
        let (alive, dropped) = oneshot::channel::<()>();
        let waiting = tokio::spawn(drive(move || async move {
            started.send(()).unwrap();
            let _alive = alive;
            std::future::pending::<()>().await;
        }));
        has_started.await.unwrap();

        waiting.abort();

        assert!(dropped.await.is_err(), "the sender inside was dropped");
    }
}
