//! Keys that are kept as they are at their place: files are watched, addresses asked again.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use reqwest::Url;
use serde::Deserialize;
use store::clock::{Clock, Timestamp};
use tokio::io::AsyncReadExt as _;
use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until, timeout};

use crate::error::Error;
use crate::http::{FetchError, Http};
use crate::place::Place;

/// Keys of some form, kept up to date by a task that ends with this.
pub(crate) struct Live<T> {
    shared: Arc<Shared<T>>,
    task: AbortHandle,
}

/// What all that is kept for one verifier has in common.
#[derive(Clone)]
pub(crate) struct Keeping {
    pub http: Http,
    pub clock: Clock,
    /// Rises whenever keys have changed.
    pub generation: Arc<AtomicU64>,
    pub pace: Pace,
}

/// When an address is asked again.
#[derive(Clone, Copy)]
pub(crate) struct Pace {
    /// After an answer that doesn't say how long it is good for.
    pub usual: Duration,
    /// Whatever an answer says.
    pub shortest: Duration,
    /// Whatever an answer says.
    pub longest: Duration,
    /// After no good answer.
    pub retry: Duration,
}

struct Shared<T> {
    place: Place,
    form: Form<T>,
    keeping: Keeping,
    state: watch::Sender<State<T>>,
    /// Someone has a token whose key is not known.
    wanted: Notify,
}

struct State<T> {
    keys: Option<Arc<T>>,
    /// How often loading has ended, well or not.
    loads: u64,
    ended: Timestamp,
    failing_since: Option<Timestamp>,
}

/// How keys are written down.
pub(crate) enum Form<T> {
    Pem(Read<T>),
    /// At an address, there may be an OpenID provider instead, whose configuration names a JWK set.
    JwkSet(Read<T>),
}

/// Reads keys from the bytes of a document, or says what is wrong with it.
type Read<T> = fn(&[u8]) -> Result<T, &'static str>;

impl Keeping {
    pub fn new(http: Http, clock: Clock) -> Self {
        Self { http, clock, generation: Arc::new(AtomicU64::new(0)), pace: Pace::default() }
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            usual: Duration::from_secs(300),
            shortest: Duration::from_secs(60),
            longest: Duration::from_secs(3600),
            retry: Duration::from_secs(30),
        }
    }
}

impl<T: PartialEq + Send + Sync + 'static> Live<T> {
    /// Begins to keep the keys of a place. A file is read at once; an address is asked in the background, and whoever
    /// needs its keys before there are any waits for them.
    ///
    /// # Errors
    /// [`Error::Read`], [`Error::Keys`] and [`Error::Watch`] of a file.
    pub async fn start(place: Place, form: Form<T>, keeping: &Keeping) -> Result<Self, Error> {
        let state = State { keys: None, loads: 0, ended: Timestamp::from_unix(0), failing_since: None };
        let (state, _) = watch::channel(state);
        let shared = Arc::new(Shared { place, form, keeping: keeping.clone(), state, wanted: Notify::new() });
        let task = match &shared.place {
            Place::File(path) => {
                let watched = file_watch::watch(std::slice::from_ref(path));
                let mut changes = watched.map_err(|source| Error::Watch { path: path.clone(), source })?;
                shared.ended(Ok(shared.read_file(path).await?));
                let shared = shared.clone();
                tokio::spawn(async move {
                    loop {
                        changes.changed().await;
                        if let Place::File(path) = &shared.place {
                            shared.ended(shared.read_file(path).await);
                        }
                    }
                })
            }
            Place::Https(url) => tokio::spawn(shared.clone().ask_forever(url.clone())),
        };
        Ok(Self { shared, task: task.abort_handle() })
    }

    /// The keys, unless there never were any, or there have been no new ones for 24 hours in spite of trying.
    pub fn get(&self) -> Option<Arc<T>> {
        let state = self.shared.state.borrow();
        let stale = |since: Timestamp| self.shared.keeping.clock.now().unix() > since.unix().saturating_add(GRACE);
        if state.failing_since.is_some_and(stale) { None } else { state.keys.clone() }
    }

    /// Whether the last try to load failed, so that a key that is not known may be good all the same.
    pub fn is_failing(&self) -> bool {
        let state = self.shared.state.borrow();
        state.failing_since.is_some() || state.keys.is_none()
    }

    /// Asks an address anew, as a key is not known, and waits for the end of it, for at most 15 seconds. Whether it was
    /// asked: it is not while the last answer is younger than 30 seconds. However many call this at once, it is asked
    /// once.
    pub async fn ask_again(&self) -> bool {
        let mut state = self.shared.state.subscribe();
        let seen = {
            let state = state.borrow();
            if matches!(self.shared.place, Place::File(_)) || self.shared.is_too_soon(&state) {
                return false;
            }
            state.loads
        };
        self.shared.wanted.notify_one();
        let asked = timeout(PATIENCE, state.wait_for(|state| state.loads > seen)).await;
        asked.is_ok_and(|result| result.is_ok())
    }

    /// Waits until loading has ended so often, well or not.
    #[cfg(test)]
    pub async fn after_loads(&self, loads: u64) {
        let mut state = self.shared.state.subscribe();
        let loaded = timeout(Duration::from_secs(20), state.wait_for(|state| state.loads >= loads));
        assert!(loaded.await.is_ok(), "not loaded {loads} times in 20 seconds");
    }
}

impl<T> Drop for Live<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl<T: PartialEq + Send + Sync + 'static> Shared<T> {
    async fn ask_forever(self: Arc<Self>, url: Url) {
        let pace = self.keeping.pace;
        loop {
            let result = self.fetch(&url).await;
            let pause = match &result {
                Ok((_, max_age)) => max_age.map_or(pace.usual, |age| age.clamp(pace.shortest, pace.longest)),
                Err(_) => pace.retry,
            };
            self.ended(result.map(|(keys, _)| keys));
            let due = Instant::now() + pause;
            loop {
                tokio::select! {
                    () = sleep_until(due) => break,
                    () = self.wanted.notified() => {}
                }
                // Those who asked while an answer was on its way have got it.
                if !self.is_too_soon(&self.state.borrow()) {
                    break;
                }
            }
        }
    }

    fn is_too_soon(&self, state: &State<T>) -> bool {
        state.loads > 0 && self.keeping.clock.now().unix().abs_diff(state.ended.unix()) < SHORTEST_PAUSE
    }

    /// Takes over what was loaded, or goes on with what there is.
    fn ended(&self, result: Result<T, Error>) {
        let now = self.keeping.clock.now();
        self.state.send_modify(|state| {
            state.loads += 1;
            state.ended = now;
            match result {
                Ok(keys) => {
                    state.failing_since = None;
                    if state.keys.as_deref() != Some(&keys) {
                        state.keys = Some(Arc::new(keys));
                        self.keeping.generation.fetch_add(1, Ordering::AcqRel);
                        tracing::info!(place = %self.place, "keys for tokens loaded");
                    }
                }
                Err(e) => {
                    let since = *state.failing_since.get_or_insert(now);
                    let until = since.after(Duration::from_secs(GRACE));
                    let left = if state.keys.is_some() { "the old ones go on being used" } else { "there are none" };
                    tracing::warn!(place = %self.place, error = %e, %since, %until, "keys can't be loaded: {left}");
                }
            }
        });
    }

    async fn read_file(&self, path: &Path) -> Result<T, Error> {
        let failed = |source| Error::Read { path: path.to_owned(), source };
        let file = tokio::fs::File::open(path).await.map_err(failed)?;
        let mut text = Vec::new();
        file.take(MAX_FILE + 1).read_to_end(&mut text).await.map_err(failed)?;
        let wrong = |cause| Error::Keys { place: self.place.to_string(), cause };
        if text.len() as u64 > MAX_FILE {
            return Err(wrong("it has more than 1 MiB"));
        }
        self.form.read(&text).map_err(wrong)
    }

    /// Asks for keys, and for an OpenID provider's configuration (OpenID Connect Discovery 1.0) where one may be.
    async fn fetch(&self, url: &Url) -> Result<(T, Option<Duration>), Error> {
        let failed = |cause: String| Error::Fetch { url: url.to_string(), cause };
        let direct = match self.fetch_keys(url.clone()).await {
            Ok(loaded) => return Ok(loaded),
            Err(FetchCause::Fetch(e @ FetchError::NoAnswer(_))) => return Err(failed(e.to_string())),
            Err(e) => e,
        };
        if let Form::Pem(_) = self.form {
            return Err(failed(direct.to_string()));
        }
        match self.discover(url).await {
            Ok(loaded) => Ok(loaded),
            Err(e) => Err(failed(format!("as a JWK set: {direct}; as an issuer: {e}"))),
        }
    }

    async fn discover(&self, issuer: &Url) -> Result<(T, Option<Duration>), FetchCause> {
        let mut url = issuer.clone();
        url.set_path(&format!("{}/.well-known/openid-configuration", issuer.path().trim_end_matches('/')));
        let configuration = self.keeping.http.get(url, JSON).await?;
        let configuration: Configuration =
            serde_json::from_slice(&configuration.body).map_err(|_| FetchCause::Document("it has no jwks_uri"))?;
        match Place::parse(&configuration.jwks_uri) {
            Ok(Place::Https(url)) => self.fetch_keys(url).await,
            _ => Err(FetchCause::Document("its jwks_uri is not HTTPS")),
        }
    }

    async fn fetch_keys(&self, url: Url) -> Result<(T, Option<Duration>), FetchCause> {
        let fetched = self.keeping.http.get(url, self.form.media_types()).await?;
        Ok((self.form.read(&fetched.body).map_err(FetchCause::Document)?, fetched.max_age))
    }
}

impl<T> Form<T> {
    fn read(&self, text: &[u8]) -> Result<T, &'static str> {
        let (Self::Pem(read) | Self::JwkSet(read)) = self;
        read(text)
    }

    /// What an address is asked for.
    fn media_types(&self) -> &'static str {
        match self {
            Self::Pem(_) => PEM,
            Self::JwkSet(_) => JSON,
        }
    }
}

#[derive(Debug, thiserror::Error)]
enum FetchCause {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("{0}")]
    Document(&'static str),
}

/// What matters here of an OpenID provider's configuration.
#[derive(Deserialize)]
struct Configuration {
    jwks_uri: String,
}

const JSON: &str = "application/jwk-set+json, application/json";
/// Servers know PEM by many names.
const PEM: &str = "application/x-pem-file, */*";
const MAX_FILE: u64 = 1 << 20;
/// How long whoever has a token waits for keys at most.
const PATIENCE: Duration = Duration::from_secs(15);
/// Seconds for which keys are used while new ones can't be loaded.
const GRACE: u64 = 24 * 3600;
/// Seconds between two times that an address is asked because of tokens.
const SHORTEST_PAUSE: u64 = 30;
