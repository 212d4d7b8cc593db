//! A credential that ends: fetched once for all who ask, renewed before its end and after a refusal.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use store::clock::Clock;
use tokio::sync::Mutex;
use tokio::time::Instant;

use crate::error::Error;

/// Holds the credential in use.
pub(crate) struct Lease<T> {
    service: String,
    clock: Clock,
    state: Mutex<State<T>>,
}

/// A credential and how long it lasts; without a time, until it is refused.
pub(crate) struct Granted<T> {
    pub(crate) credential: T,
    pub(crate) lasts: Option<Duration>,
}

struct State<T> {
    held: Option<Held<T>>,
    /// When the last login failed, and why.
    failed: Option<(Instant, String)>,
}

struct Held<T> {
    credential: Arc<T>,
    since: u64,
    /// When to look for the next one, and when this one ends.
    until: Option<(u64, u64)>,
}

impl<T> Lease<T> {
    pub(crate) fn new(service: &str, clock: &Clock) -> Self {
        let state = Mutex::new(State { held: None, failed: None });
        Self { service: service.to_owned(), clock: clock.clone(), state }
    }

    /// The credential, from `login` where none is held or the held one is near its end.
    ///
    /// Calls at the same time wait for one login. If it fails, a credential that hasn't ended yet is still used.
    ///
    /// # Errors
    /// That of `login`; [`Error::Credentials`] for a second after it, so that a queue of calls ends with the first.
    pub(crate) async fn get(
        &self,
        login: impl Future<Output = Result<Granted<T>, Error>> + Send,
    ) -> Result<Arc<T>, Error> {
        let mut state = self.state.lock().await;
        let now = self.clock.now().unix();
        let usable = state.held.as_ref().filter(|held| held.until.is_none_or(|(_, end)| now < end));
        if let Some(held) = usable
            && held.until.is_none_or(|(renew, _)| now < renew)
        {
            return Ok(held.credential.clone());
        }
        let usable = usable.map(|held| held.credential.clone());
        let recent = state.failed.as_ref().filter(|(at, _)| at.elapsed() < AFTER_FAILURE);
        let error = match recent {
            Some((_, cause)) => Error::Credentials { service: self.service.clone(), cause: cause.clone() },
            None => match login.await {
                Ok(granted) => {
                    let credential = Arc::new(granted.credential);
                    let until = granted.lasts.map(|lasts| {
                        let early = (lasts.as_secs() / 4).min(EARLY.as_secs());
                        (now + lasts.as_secs() - early, now + lasts.as_secs())
                    });
                    *state =
                        State { held: Some(Held { credential: credential.clone(), since: now, until }), failed: None };
                    return Ok(credential);
                }
                Err(error) => {
                    state.failed = Some((Instant::now(), error.to_string()));
                    error
                }
            },
        };
        match usable {
            Some(credential) => {
                tracing::warn!(service = self.service, %error, "a credential can't be renewed yet and is still used");
                Ok(credential)
            }
            None => Err(error),
        }
    }

    /// Notes that `used` was refused; true if there is, or can be, another one to try.
    ///
    /// A credential younger than 10 seconds is kept: then it is the request that isn't allowed, and requests of
    /// that kind must not become logins.
    pub(crate) async fn refused(&self, used: &Arc<T>) -> bool {
        let mut state = self.state.lock().await;
        match &state.held {
            Some(held) if Arc::ptr_eq(&held.credential, used) => {
                let old = self.clock.now().unix().saturating_sub(held.since) >= YOUNG.as_secs();
                if old {
                    state.held = None;
                }
                old
            }
            _ => true,
        }
    }
}

/// Services end sessions of a few minutes and of hours; 5 minutes is enough for several tries.
const EARLY: Duration = Duration::from_secs(300);
const YOUNG: Duration = Duration::from_secs(10);
const AFTER_FAILURE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

    use super::*;

    fn lease() -> (Arc<AtomicU64>, Lease<usize>) {
        let seconds = Arc::new(AtomicU64::new(1000));
        let lease = Lease::new("service", &Clock::set_by(seconds.clone()));
        (seconds, lease)
    }

    async fn granted(credential: usize, lasts: Option<u64>) -> Result<Granted<usize>, Error> {
        Ok(Granted { credential, lasts: lasts.map(Duration::from_secs) })
    }

    async fn failing() -> Result<Granted<usize>, Error> {
        Err(Error::Credentials { service: "service".to_owned(), cause: "down".to_owned() })
    }

    #[tokio::test]
    async fn a_credential_is_renewed_in_its_last_quarter_and_used_to_its_end() {
        let (seconds, lease) = lease();
        assert_eq!(*lease.get(granted(1, Some(100))).await.unwrap(), 1);
        seconds.store(1074, Ordering::Relaxed);
        assert_eq!(*lease.get(granted(2, Some(100))).await.unwrap(), 1);
        seconds.store(1075, Ordering::Relaxed);
        assert_eq!(*lease.get(failing()).await.unwrap(), 1);
        seconds.store(1100, Ordering::Relaxed);
        assert!(lease.get(failing()).await.unwrap_err().to_string().contains("down"));
    }

    #[tokio::test]
    async fn calls_at_the_same_time_share_one_login_even_if_it_fails() {
        let (_, lease) = lease();
        let logins = AtomicUsize::new(0);
        let login = || async {
            logins.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            failing().await
        };
        let (a, b) = tokio::join!(lease.get(login()), lease.get(login()));
        assert!(a.is_err() && b.is_err());
        assert_eq!(logins.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_refused_credential_is_replaced_unless_it_is_young() {
        let (seconds, lease) = lease();
        let first = lease.get(granted(1, None)).await.unwrap();
        assert!(!lease.refused(&first).await);
        seconds.store(1010, Ordering::Relaxed);
        assert!(lease.refused(&first).await);
        assert_eq!(*lease.get(granted(2, None)).await.unwrap(), 2);
        // Whoever used the first one meanwhile may try again with the second.
        assert!(lease.refused(&first).await);
        assert_eq!(*lease.get(granted(3, None)).await.unwrap(), 2);
    }
}
