//! Sessions without a server side: their state travels in a sealed cookie.
//!
//! Whoever floods `/auth` costs neither memory nor a write, and any replica on the same store can go on with a
//! session. A cookie can't make a nonce single-use: within its five minutes a challenge can be answered again, which
//! gives a token for the same key and no other.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use store::clock::{Clock, Timestamp};
use store::{Key, Namespace, Store};
use wire::rcar::Tee;

use crate::replay::SessionId;
use crate::session_keys::SessionKeys;

/// Makes and opens session cookies.
pub(crate) struct Sessions {
    store: Store,
    clock: Clock,
    keys: SessionKeys,
    lifetime: Duration,
    secure: bool,
}

/// Where a session stands.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) enum Session {
    /// The guest was given a nonce.
    Challenged(Challenged),
    /// The guest was given a token.
    Attested { token: String },
    /// The token is too long for a cookie: it lies in the store under this key.
    Kept { key: String },
}

/// A session that waits for its evidence.
#[derive(Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Challenged {
    pub nonce: String,
    pub tee: Tee,
    /// The attestation policy that the evidence will be appraised under.
    pub policy: String,
    pub expiry: u64,
}

impl Sessions {
    /// Sessions whose challenge can be answered for `lifetime`; `secure` keeps their cookies away from plain HTTP.
    pub fn new(store: Store, clock: Clock, lifetime: Duration, secure: bool) -> Self {
        Self { keys: SessionKeys::new(store.clone(), clock.clone()), store, clock, lifetime, secure }
    }

    /// The `Set-Cookie` header of a guest that was challenged.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn challenged(&self, nonce: String, tee: Tee, policy: String) -> Result<String, Error> {
        let expiry = self.clock.now().after(self.lifetime).unix();
        let session = Session::Challenged(Challenged { nonce, tee, policy, expiry });
        self.cookie(&session, self.lifetime.as_secs()).await
    }

    /// The `Set-Cookie` header of a guest that was given a token.
    ///
    /// # Errors
    /// [`Error::Store`].
    pub async fn attested(&self, token: &str, expiry: Timestamp, challenge: &Challenged) -> Result<String, Error> {
        let now = self.clock.now();
        let session = if token.len() <= MAX_TOKEN_IN_COOKIE {
            Session::Attested { token: token.to_owned() }
        } else {
            // The key starts with the expiry, so that the expired ones are a range.
            self.store.delete_before(NAMESPACE, &Key::parse(&format!("{:012}", now.unix()))?).await?;
            // Sent again, an attestation takes the place of its first row, and not one more.
            let lifetime = expiry.unix().saturating_sub(now.unix());
            let end = challenge.expiry.saturating_add(lifetime);
            let key = Key::parse(&format!("{end:012}-{}", SessionId::of(&challenge.nonce).text()))?;
            self.store.put(NAMESPACE, &key, token.as_bytes()).await?;
            Session::Kept { key: key.as_str().to_owned() }
        };
        self.cookie(&session, expiry.unix().saturating_sub(now.unix())).await
    }

    /// The `Set-Cookie` header that tells a guest to keep the cookie that it has.
    pub fn again(&self, cookie: &str, expiry: Timestamp) -> String {
        self.set_cookie(cookie, expiry.unix().saturating_sub(self.clock.now().unix()))
    }

    /// The session of a cookie's value; a kept token is fetched.
    ///
    /// # Errors
    /// [`Error::Forged`], [`Error::Expired`], [`Error::Store`].
    pub async fn open(&self, cookie: &str) -> Result<Session, Error> {
        if cookie.len() > MAX_COOKIE {
            return Err(Error::Forged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(cookie).map_err(|_| Error::Forged)?;
        let (week, sealed) = bytes.split_first_chunk::<4>().ok_or(Error::Forged)?;
        let key = self.keys.of(u32::from_be_bytes(*week)).await?.ok_or(Error::Forged)?;
        let opened = key.open(NAME.as_bytes(), sealed).map_err(|_| Error::Forged)?;
        match serde_json::from_slice(&opened).map_err(|_| Error::Forged)? {
            Session::Challenged(Challenged { expiry, .. }) if self.clock.now().unix() >= expiry => Err(Error::Expired),
            Session::Kept { key } => {
                let entry = self.store.get(NAMESPACE, &Key::parse(&key)?).await?.ok_or(Error::Expired)?;
                Ok(Session::Attested { token: String::from_utf8_lossy(&entry.value).into_owned() })
            }
            session => Ok(session),
        }
    }

    async fn cookie(&self, session: &Session, max_age: u64) -> Result<String, Error> {
        let (week, key) = self.keys.current().await?;
        let plain = serde_json::to_vec(session).map_err(|_| Error::Forged)?;
        let mut bytes = week.to_be_bytes().to_vec();
        bytes.extend(key.seal(NAME.as_bytes(), &plain).map_err(store::Error::from)?);
        Ok(self.set_cookie(&URL_SAFE_NO_PAD.encode(bytes), max_age))
    }

    fn set_cookie(&self, value: &str, max_age: u64) -> String {
        let secure = if self.secure { "; Secure" } else { "" };
        format!("{NAME}={value}; Path=/; Max-Age={max_age}; HttpOnly; SameSite=Strict{secure}")
    }
}

/// Why a cookie opens no session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the cookie was not made by this Trustee, or is too old: start again with POST /kbs/v0/auth")]
    Forged,
    #[error("it has expired: start again with POST /kbs/v0/auth")]
    Expired,
    #[error("the store does not answer: try again later")]
    Store(#[from] store::Error),
}

impl From<store::seal::Error> for Error {
    fn from(error: store::seal::Error) -> Self {
        Self::Store(error.into())
    }
}

/// Name of the cookie, as upstream's guests know it.
pub(crate) const NAME: &str = "kbs-session-id";
const NAMESPACE: Namespace = Namespace::quiet("session");
/// Sealed and in base64 this stays below the 4,096 bytes that clients keep of a cookie.
const MAX_TOKEN_IN_COOKIE: usize = 2_900;
const MAX_COOKIE: usize = 8_192;

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};

    const DAY: u64 = 86_400;

    async fn sessions() -> (Sessions, Arc<AtomicU64>) {
        let seconds = Arc::new(AtomicU64::new(100 * 7 * DAY + 10));
        let store = Store::memory().await.unwrap();
        (Sessions::new(store, Clock::set_by(seconds.clone()), Duration::from_secs(300), true), seconds)
    }

    fn challenge(nonce: &str) -> Challenged {
        Challenged { nonce: nonce.to_owned(), tee: Tee::Sample, policy: "default".to_owned(), expiry: 100 * 7 * DAY }
    }

    fn value(set_cookie: &str) -> &str {
        set_cookie.strip_prefix("kbs-session-id=").unwrap().split(';').next().unwrap()
    }

    #[tokio::test]
    async fn a_challenge_comes_back_until_it_expires() {
        let (sessions, seconds) = sessions().await;
        let cookie = sessions.challenged("bm9uY2U=".to_owned(), Tee::Sample, "default".to_owned()).await.unwrap();
        assert!(cookie.ends_with("; Path=/; Max-Age=300; HttpOnly; SameSite=Strict; Secure"), "{cookie}");
        let Session::Challenged(Challenged { nonce, tee, .. }) = sessions.open(value(&cookie)).await.unwrap() else {
            panic!()
        };
        assert_eq!((nonce.as_str(), tee), ("bm9uY2U=", Tee::Sample));

        seconds.fetch_add(300, Ordering::Relaxed);
        assert!(matches!(sessions.open(value(&cookie)).await, Err(Error::Expired)));
    }

    #[tokio::test]
    async fn a_changed_cookie_opens_nothing() {
        let (sessions, _) = sessions().await;
        let cookie = sessions.challenged("n".to_owned(), Tee::Sample, "default".to_owned()).await.unwrap();
        let bytes = URL_SAFE_NO_PAD.decode(value(&cookie)).unwrap();
        for i in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[i] ^= 1;
            let changed = URL_SAFE_NO_PAD.encode(&changed);
            assert!(matches!(sessions.open(&changed).await, Err(Error::Forged)), "byte {i} is not protected");
        }
        let last_week_of_all = URL_SAFE_NO_PAD.encode([0xff; 40]);
        for nonsense in ["", "*", "AAAA", &last_week_of_all, &"A".repeat(MAX_COOKIE + 1)] {
            assert!(matches!(sessions.open(nonsense).await, Err(Error::Forged)));
        }
    }

    #[tokio::test]
    async fn keys_change_by_the_week_and_the_last_one_still_opens() {
        let (sessions, seconds) = sessions().await;
        let token = "t".repeat(100);
        let expiry = Timestamp::from_unix(u64::MAX);
        let first = sessions.attested(&token, expiry, &challenge("a")).await.unwrap();

        seconds.fetch_add(7 * DAY, Ordering::Relaxed);
        let second = sessions.attested(&token, expiry, &challenge("a")).await.unwrap();
        assert_eq!(sessions.open(value(&first)).await.unwrap(), Session::Attested { token: token.clone() });
        assert_eq!(sessions.open(value(&second)).await.unwrap(), Session::Attested { token });
        assert_ne!(value(&first)[..6], value(&second)[..6]);

        seconds.fetch_add(7 * DAY, Ordering::Relaxed);
        assert!(matches!(sessions.open(value(&first)).await, Err(Error::Forged)));
    }

    #[tokio::test]
    async fn another_replica_opens_the_cookie_and_a_long_token_lies_in_the_store() {
        let (sessions, seconds) = sessions().await;
        let replica = Sessions::new(sessions.store.clone(), sessions.clock.clone(), Duration::from_secs(300), true);
        let expiry = Timestamp::from_unix(seconds.load(Ordering::Relaxed) + 300);
        for length in [10, MAX_TOKEN_IN_COOKIE, MAX_TOKEN_IN_COOKIE + 1, 20_000] {
            let token = "t".repeat(length);
            let cookie = sessions.attested(&token, expiry, &challenge("a")).await.unwrap();
            assert!(value(&cookie).len() < 4_000);
            assert_eq!(replica.open(value(&cookie)).await.unwrap(), Session::Attested { token });
        }
        // An attestation that is sent again takes no second row.
        assert_eq!(sessions.store.list(NAMESPACE, "").await.unwrap().len(), 1);

        seconds.fetch_add(301, Ordering::Relaxed);
        let later = Timestamp::from_unix(seconds.load(Ordering::Relaxed) + 300);
        sessions.attested(&"t".repeat(20_000), later, &challenge("b")).await.unwrap();
        assert_eq!(sessions.store.list(NAMESPACE, "").await.unwrap().len(), 1);
    }
}
