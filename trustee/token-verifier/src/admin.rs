//! Tokens of administrators, from the identity providers that the owner names.

use std::path::PathBuf;

use serde_json::Value;
use store::clock::{Clock, Timestamp};

use crate::claims;
use crate::error::Error;
use crate::http::Http;
use crate::key_set::KeySet;
use crate::live::{Form, Keeping, Live};
use crate::place::Place;
use crate::token::Token;

/// Who issues tokens, and for whom.
#[derive(Clone, Debug)]
pub struct IdentityProvider {
    /// What `iss` has to be; any if it is not given.
    pub issuer: Option<String>,
    /// What `aud` has to name; any if it is not given.
    pub audience: Option<String>,
    /// The provider's keys.
    pub source: KeySource,
}

/// Where keys come from.
#[derive(Clone, Debug)]
pub enum KeySource {
    /// A file of public keys or certificates in PEM. Of a certificate nothing counts but its key.
    Pem(PathBuf),
    /// The address of such a file (`https://...`, `file:///...`).
    PemUrl(String),
    /// A JWK set (`file:///...`, `https://...`), or an OIDC issuer that names one (`https://...`).
    JwkSet(String),
}

/// Verifies tokens of administrators.
pub struct AdminTokens {
    pub(crate) providers: Vec<Provider>,
    clock: Clock,
}

pub(crate) struct Provider {
    issuer: Option<String>,
    audience: Option<String>,
    pub keys: Live<KeySet>,
}

impl AdminTokens {
    /// Begins to keep the keys of identity providers. An address that does not answer is no error: it is asked again.
    ///
    /// # Errors
    /// Any of [`Kind::Configuration`](crate::Kind::Configuration).
    pub async fn new(providers: Vec<IdentityProvider>, http: Http, clock: Clock) -> Result<Self, Error> {
        Self::with(providers, &Keeping::new(http, clock)).await
    }

    pub(crate) async fn with(providers: Vec<IdentityProvider>, keeping: &Keeping) -> Result<Self, Error> {
        if providers.is_empty() {
            return Err(Error::NoProviders);
        }
        let mut started = Vec::new();
        for IdentityProvider { issuer, audience, source } in providers {
            let (place, form) = match source {
                KeySource::Pem(path) => (Place::File(path), Form::Pem(KeySet::from_pem)),
                KeySource::PemUrl(place) => (Place::parse(&place)?, Form::Pem(KeySet::from_pem)),
                KeySource::JwkSet(place) => (Place::parse(&place)?, Form::JwkSet(KeySet::from_jwk_set)),
            };
            let keys = Live::start(place, form, keeping).await?;
            started.push(Provider { issuer, audience, keys });
        }
        Ok(Self { providers: started, clock: keeping.clock.clone() })
    }

    /// The claims of a token that one of the providers issued and that is good now. `exp` is required and has no
    /// leeway.
    ///
    /// # Errors
    /// [`Error::Issuers`] with the refusal of the provider that came closest to accepting it.
    pub async fn verify(&self, token: &str) -> Result<Value, Error> {
        let wrapped = |e| Error::Issuers(Box::new(e));
        let token = Token::parse(token).map_err(wrapped)?;
        match self.check(&token) {
            Err(Error::UnknownKey | Error::Unavailable) if self.ask_again().await => self.check(&token),
            result => result,
        }
        .map_err(wrapped)
    }

    fn check(&self, token: &Token<'_>) -> Result<Value, Error> {
        let now = self.clock.now();
        let mut refusal = Error::UnknownKey;
        for provider in &self.providers {
            match provider.check(token, now) {
                Ok(claims) => return Ok(claims),
                Err(e) if e.progress() > refusal.progress() => refusal = e,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    async fn ask_again(&self) -> bool {
        let mut asked = false;
        for provider in &self.providers {
            asked |= provider.keys.ask_again().await;
        }
        asked
    }
}

impl Provider {
    fn check(&self, token: &Token<'_>, now: Timestamp) -> Result<Value, Error> {
        let keys = self.keys.get().ok_or(Error::Unavailable)?;
        let claims = match keys.verify(token) {
            Err(Error::UnknownKey) if self.keys.is_failing() => return Err(Error::Unavailable),
            result => result?,
        };
        claims::check_parties(&claims, self.issuer.as_deref(), self.audience.as_deref())?;
        claims::check_times(&claims, now, 0)?;
        Ok(claims)
    }
}
