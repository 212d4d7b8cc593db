//! The attestation token and its cache: one handshake per lifetime, shared by all who ask meanwhile.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use futures::FutureExt as _;
use futures::future::{BoxFuture, Shared};
use serde_json::Value;
use wire::jwe::TeeKey;
use zeroize::Zeroizing;

use crate::error::Error;

/// What the time is, for expiry; injected so that tests can set it.
pub type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// An attestation token with the key that opens what the broker seals for its holder.
pub struct Token {
    jwt: Zeroizing<String>,
    key: TeeKey,
    lifetime: Duration,
    expires: Instant,
}

impl Token {
    /// A token that arrived at `now`.
    ///
    /// Its life is counted from here by the guest's monotonic clock: the guest's wall clock may be off, or be set by
    /// an untrusted host, and must neither keep a dead token nor force a handshake for each use.
    pub(crate) fn new(jwt: String, key: TeeKey, now: Instant) -> Result<Self, String> {
        let jwt = Zeroizing::new(jwt);
        let claims = wire::token::unverified_claims(&jwt).map_err(|e| e.to_string())?;
        let lifetime = lifetime(&claims)?;
        Ok(Self { jwt, key, lifetime, expires: now + lifetime })
    }

    /// The compact JWS, a credential.
    pub fn jwt(&self) -> &str {
        &self.jwt
    }

    /// The private key whose public part the token names.
    pub fn key(&self) -> &TeeKey {
        &self.key
    }

    /// When the broker stops to accept it.
    pub fn expires(&self) -> Instant {
        self.expires
    }

    pub(crate) fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// From here on a successor is fetched while this one is still handed out.
    fn refresh(&self) -> Instant {
        self.expires - (self.lifetime / 5).min(MAX_MARGIN)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token").field("expires", &self.expires).finish_non_exhaustive()
    }
}

/// Holds the current token and the handshake in flight, if any.
pub(crate) struct TokenCache {
    slot: Arc<Mutex<Slot>>,
    clock: Clock,
}

impl TokenCache {
    pub(crate) fn new(clock: Clock) -> Self {
        Self { slot: Arc::default(), clock }
    }

    /// The current token; or the outcome of the handshake in flight; or that of a new one, made by `attest`.
    ///
    /// The handshake is a task of its own: it goes on, and serves the others, when a caller stops waiting.
    pub(crate) async fn get<F>(&self, attest: impl FnOnce() -> F) -> Result<Arc<Token>, Error>
    where
        F: Future<Output = Result<Token, Error>> + Send + 'static,
    {
        let flight = {
            let mut slot = lock(&self.slot);
            let now = (self.clock)();
            let usable = slot.token.clone().filter(|token| now < token.expires);
            if let Some(token) = &usable
                && now < token.refresh()
            {
                return Ok(Arc::clone(token));
            }
            let flying = slot.flight.clone().filter(|flight| flight.peek().is_none());
            let flight = flying.unwrap_or_else(|| self.take_off(attest()));
            slot.flight = Some(flight.clone());
            if let Some(token) = usable {
                return Ok(token);
            }
            flight
        };
        flight.await
    }

    /// Forgets the token `jwt` if it is still the current one.
    pub(crate) fn invalidate(&self, jwt: &str) {
        let mut slot = lock(&self.slot);
        if slot.token.as_ref().is_some_and(|current| current.jwt() == jwt) {
            slot.token = None;
        }
    }

    /// Starts the handshake. Called with the slot locked, so its end can't overtake the note that it is in flight.
    fn take_off(&self, attest: impl Future<Output = Result<Token, Error>> + Send + 'static) -> Flight {
        let slot = Arc::clone(&self.slot);
        let task = tokio::spawn(async move {
            let outcome = attest.await.map(Arc::new);
            let mut slot = lock(&slot);
            slot.flight = None;
            match &outcome {
                Ok(token) => slot.token = Some(Arc::clone(token)),
                Err(error) => tracing::warn!(%error, "no token"),
            }
            outcome
        });
        task.map(|ended| ended.unwrap_or_else(|e| Err(Error::GivenUp(e.to_string())))).boxed().shared()
    }
}

type Flight = Shared<BoxFuture<'static, Result<Arc<Token>, Error>>>;

#[derive(Default)]
struct Slot {
    token: Option<Arc<Token>>,
    flight: Option<Flight>,
}

fn lock(slot: &Mutex<Slot>) -> MutexGuard<'_, Slot> {
    slot.lock().unwrap_or_else(PoisonError::into_inner)
}

fn lifetime(claims: &Value) -> Result<Duration, String> {
    let time = |name: &str| claims.get(name).and_then(Value::as_f64);
    let expires = time("exp").ok_or("the token has no expiry (exp)")?;
    let wall_clock = || SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
    let issued = time("iat").or_else(|| time("nbf")).unwrap_or_else(wall_clock);
    match Duration::try_from_secs_f64(expires - issued) {
        Ok(lifetime) if !lifetime.is_zero() => Ok(lifetime.min(MAX_LIFETIME)),
        _ => Err("the token has already expired".to_owned()),
    }
}

const MAX_MARGIN: Duration = Duration::from_secs(60);
/// Evidence ages; and a time far in the future must not overflow the clock.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::Notify;

    #[test]
    fn a_lifetime_comes_from_the_tokens_own_times() {
        for (claims, expected) in [
            (json!({ "iat": 1000, "exp": 1300 }), Some(300)),
            (json!({ "nbf": 1000, "exp": 1300 }), Some(300)),
            (json!({ "iat": 0, "exp": 1e300 }), None),
            (json!({ "iat": 0, "exp": 9_000_000_000_u64 }), Some(24 * 60 * 60)),
            (json!({ "iat": 1300, "exp": 1300 }), None),
            (json!({ "iat": 1300, "exp": 1000 }), None),
            (json!({ "exp": 1000 }), None),
            (json!({ "iat": 1000 }), None),
            (json!({ "iat": 1000, "exp": "1300" }), None),
        ] {
            assert_eq!(lifetime(&claims).ok(), expected.map(Duration::from_secs), "{claims}");
        }
    }

    #[tokio::test]
    async fn a_failed_handshake_fails_all_who_waited_and_none_after() {
        let (cache, _) = cache();
        let go = Arc::new(Notify::new());
        let failing = || {
            let go = Arc::clone(&go);
            async move {
                go.notified().await;
                Err(Error::NoKbs)
            }
        };
        let waiting = futures::future::join_all((0..5).map(|_| cache.get(failing)));
        go.notify_one();
        assert!(waiting.await.iter().all(|outcome| matches!(outcome, Err(Error::NoKbs))));

        let now = Instant::now();
        assert!(cache.get(|| async move { Ok(token(now)) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_panic_in_the_handshake_is_an_error_once() {
        let (cache, _) = cache();
        let outcome = cache.get(|| async { panic!("on purpose") }).await;
        assert!(matches!(outcome, Err(Error::GivenUp(_))));

        let now = Instant::now();
        assert!(cache.get(|| async move { Ok(token(now)) }).await.is_ok());
    }

    #[tokio::test]
    async fn a_token_near_its_end_is_handed_out_while_its_successor_is_fetched() {
        let (cache, time) = cache();
        let start = time.now();
        let first = cache.get(|| async move { Ok(token(start)) }).await.unwrap();

        time.advance(241);
        let (arrived, arrival) = (Arc::new(Notify::new()), time.now());
        let notify = Arc::clone(&arrived);
        let second = cache
            .get(move || async move {
                notify.notify_one();
                Ok(token(arrival))
            })
            .await
            .unwrap();
        assert!(Arc::ptr_eq(&first, &second));

        arrived.notified().await;
        let third = loop {
            // The flight lands right after the notification; no new one may start meanwhile.
            let current = cache.get(|| async { Err(Error::NoKbs) }).await.unwrap();
            if !Arc::ptr_eq(&first, &current) {
                break current;
            }
            tokio::task::yield_now().await;
        };
        assert_eq!(third.expires(), arrival + Duration::from_secs(300));
    }

    #[tokio::test]
    async fn an_expired_or_invalidated_token_is_never_handed_out() {
        let (cache, time) = cache();
        let handshakes = AtomicUsize::new(0);
        let attest = || {
            handshakes.fetch_add(1, Ordering::Relaxed);
            let now = time.now();
            async move { Ok(token(now)) }
        };
        let first = cache.get(attest).await.unwrap();
        time.advance(300);
        let second = cache.get(attest).await.unwrap();
        assert!(!Arc::ptr_eq(&first, &second));

        cache.invalidate(first.jwt());
        assert!(
            Arc::ptr_eq(&second, &cache.get(attest).await.unwrap()),
            "an old token's refusal says nothing of the new"
        );
        cache.invalidate(second.jwt());
        assert!(!Arc::ptr_eq(&second, &cache.get(attest).await.unwrap()));
        assert_eq!(handshakes.load(Ordering::Relaxed), 3);
    }

    /// A clock that stands still until it is advanced.
    #[derive(Clone)]
    struct Time(Arc<Mutex<Instant>>);

    impl Time {
        fn now(&self) -> Instant {
            *self.0.lock().unwrap()
        }

        fn advance(&self, seconds: u64) {
            *self.0.lock().unwrap() += Duration::from_secs(seconds);
        }
    }

    fn cache() -> (TokenCache, Time) {
        let time = Time(Arc::new(Mutex::new(Instant::now())));
        let clock = time.clone();
        (TokenCache::new(Arc::new(move || clock.now())), time)
    }

    /// Lives for 300 seconds, and is like no other.
    fn token(now: Instant) -> Token {
        static SIGNATURES: AtomicUsize = AtomicUsize::new(1000);
        // {"iat":1000,"exp":1300}
        let jwt = format!("e30.eyJpYXQiOjEwMDAsImV4cCI6MTMwMH0.{}", SIGNATURES.fetch_add(1, Ordering::Relaxed));
        Token::new(jwt, TeeKey::generate().unwrap(), now).unwrap()
    }
}
