//! Tokens of attestation services elsewhere, which guests bring (passport mode).

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::chain::{self, Anchors};
use crate::claims;
use crate::error::Error;
use crate::http::Http;
use crate::jwk::Jwk;
use crate::key_set::KeySet;
use crate::live::{Form, Keeping, Live};
use crate::place::Place;
use crate::token::Token;
use store::clock::Clock;

/// Whose tokens are trusted.
#[derive(Clone, Debug, Default)]
pub struct AttestationTrust {
    /// Files of certificates in PEM: CAs that may vouch for signers, and signers themselves.
    pub certificates: Vec<PathBuf>,
    /// JWK sets (`file:///...`, `https://...`), or OIDC issuers that name one (`https://...`).
    pub jwk_sets: Vec<String>,
    /// Whether the key that a token brings is trusted as it is, which lets everybody issue tokens. For experiments.
    pub insecure_header_jwk: bool,
}

/// Verifies attestation tokens of any issuer that is trusted.
pub struct AttestationTokens {
    pub(crate) certificates: Vec<Live<Anchors>>,
    pub(crate) jwk_sets: Vec<Live<KeySet>>,
    insecure_header_jwk: bool,
    keeping: Keeping,
}

impl AttestationTokens {
    /// Begins to keep what is trusted. An address that does not answer is no error: it is asked again.
    ///
    /// # Errors
    /// Any of [`Kind::Configuration`](crate::Kind::Configuration).
    pub async fn new(trust: AttestationTrust, http: Http, clock: Clock) -> Result<Self, Error> {
        Self::with(trust, Keeping::new(http, clock)).await
    }

    pub(crate) async fn with(trust: AttestationTrust, keeping: Keeping) -> Result<Self, Error> {
        let AttestationTrust { certificates, jwk_sets, insecure_header_jwk } = trust;
        if certificates.is_empty() && jwk_sets.is_empty() && !insecure_header_jwk {
            return Err(Error::NoTrust);
        }
        if insecure_header_jwk {
            tracing::warn!("insecure_header_jwk is set: anybody can issue attestation tokens");
        }
        let mut tokens = Self { certificates: Vec::new(), jwk_sets: Vec::new(), insecure_header_jwk, keeping };
        for path in certificates {
            let live = Live::start(Place::File(path), Form::Pem(Anchors::from_pem), &tokens.keeping).await?;
            tokens.certificates.push(live);
        }
        for place in jwk_sets {
            let live = Live::start(Place::parse(&place)?, Form::JwkSet(KeySet::from_jwk_set), &tokens.keeping).await?;
            tokens.jwk_sets.push(live);
        }
        Ok(tokens)
    }

    /// The claims of a token that a trusted issuer signed and that is good now. `exp` is required, and stretched by a
    /// minute.
    ///
    /// A token that brings its key (`jwk`) is good if that key is in a trusted JWK set, or has a certificate chain
    /// (`x5c`) to a trusted certificate. Any other token is verified with the keys of the trusted sets that its `kid`
    /// names.
    ///
    /// # Errors
    /// Any of [`Kind::Refused`](crate::Kind::Refused), and [`Error::Unavailable`].
    pub async fn verify(&self, token: &str) -> Result<Value, Error> {
        let token = Token::parse(token)?;
        let claims = match self.check(&token) {
            Err(Error::UnknownKey | Error::Unavailable) if self.ask_again().await => self.check(&token)?,
            result => result?,
        };
        claims::check_times(&claims, self.keeping.clock.now(), LEEWAY)?;
        Ok(claims)
    }

    /// Changes when trusted keys or certificates have changed, so that what was verified before has to be again.
    pub fn generation(&self) -> u64 {
        self.keeping.generation.load(Ordering::Acquire)
    }

    fn check(&self, token: &Token<'_>) -> Result<Value, Error> {
        match &token.jwk {
            Some(jwk) => self.check_own_key(token, jwk),
            None => {
                let mut refusal = self.unknown_key();
                for keys in self.key_sets() {
                    match keys.verify(token) {
                        Ok(claims) => return Ok(claims),
                        Err(e) if e.progress() > refusal.progress() => refusal = e,
                        Err(_) => {}
                    }
                }
                Err(refusal)
            }
        }
    }

    fn check_own_key(&self, token: &Token<'_>, jwk: &Jwk) -> Result<Value, Error> {
        let own = jwk.verifying_key().ok_or(Error::HeaderKey)?;
        if self.insecure_header_jwk {
            return token.verify(&own);
        }
        if let Some(known) = self.key_sets().find_map(|keys| keys.find(&own.key).cloned()) {
            return token.verify(&known);
        }
        let Some(x5c) = jwk.x5c.as_ref().filter(|_| !self.certificates.is_empty()) else {
            return Err(self.unknown_key());
        };
        // The signature first: it costs less than a chain that a stranger thought up.
        let claims = token.verify(&own)?;
        let certificates: Vec<Arc<Anchors>> = self.certificates.iter().filter_map(Live::get).collect();
        let now = self.keeping.clock.now();
        match chain::check(x5c, &own.key, certificates.iter().map(|anchors| &**anchors), now) {
            Ok(()) => Ok(claims),
            Err(_) if certificates.len() < self.certificates.len() => Err(Error::Unavailable),
            Err(e) => Err(e),
        }
    }

    fn key_sets(&self) -> impl Iterator<Item = Arc<KeySet>> + '_ {
        self.jwk_sets.iter().filter_map(Live::get)
    }

    /// Why a key is not known: it may be in a set that could not be loaded.
    fn unknown_key(&self) -> Error {
        if self.jwk_sets.iter().any(Live::is_failing) { Error::Unavailable } else { Error::UnknownKey }
    }

    async fn ask_again(&self) -> bool {
        let mut asked = false;
        for keys in &self.jwk_sets {
            asked |= keys.ask_again().await;
        }
        asked
    }
}

/// Seconds that an attestation token is good after it has expired, as upstream has it.
const LEEWAY: u64 = 60;
