//! Bounded attempts over a network that may not be up yet.

use std::time::Duration;

use crate::error::Error;

/// Repeats `call` while its error is transient: at most [`ATTEMPTS`] times, 4 seconds of pauses in total.
pub(crate) async fn transient<T, F>(mut call: impl FnMut() -> F) -> Result<T, Error>
where
    F: Future<Output = Result<T, Error>>,
{
    let mut pause = FIRST_PAUSE;
    for attempt in 1..ATTEMPTS {
        match call().await {
            Err(error) if error.is_transient() => {
                tracing::warn!(attempt, of = ATTEMPTS, %error, "trying again");
                tokio::time::sleep(pause).await;
                pause *= 3;
            }
            outcome => return outcome,
        }
    }
    call().await
}

pub(crate) const ATTEMPTS: u32 = 5;
const FIRST_PAUSE: Duration = Duration::from_millis(100);
