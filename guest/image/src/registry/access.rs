//! How a registry is convinced: tokens of its token service, passwords, and nothing for anybody else.

use std::sync::{Arc, PoisonError};

use oci_spec::distribution::Reference;
use reqwest::header::{CONTENT_TYPE, WWW_AUTHENTICATE};
use reqwest::{RequestBuilder, Response, Url};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::client::is_inside;
use super::{RegistryError, Session};
use crate::auth::{Account, Challenge};
use crate::registries::Source;

/// What is sent with each request to a repository.
#[derive(Clone)]
pub(super) enum Authorization {
    Token(Arc<Zeroizing<String>>),
    Login { user: String, password: Zeroizing<String> },
}

impl Authorization {
    pub(super) fn apply(&self, request: RequestBuilder) -> RequestBuilder {
        match self {
            Self::Token(token) => request.bearer_auth(token.as_str()),
            Self::Login { user, password } => request.basic_auth(user, Some(password.as_str())),
        }
    }
}

impl Session {
    /// What the registry accepted last for this repository.
    pub(super) fn authorization(&self, source: &Source) -> Option<Authorization> {
        self.authorizations.lock().unwrap_or_else(PoisonError::into_inner).get(&scope(source)).cloned()
    }

    /// Answers a 401: fetches a token, anonymously if there is no account, or falls back to the password.
    pub(super) async fn authorize(&self, source: &Source, response: &Response) -> Result<Authorization, RegistryError> {
        let registry = source.reference.registry();
        let denied = |cause: String| RegistryError::Denied { registry: registry.to_owned(), cause };
        // What only a helper knows is as good as nothing, which is enough for public images.
        let account = self.credentials.find(&source.reference).filter(|it| !matches!(it, Account::Helper(_)));
        let challenges = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let fresh = match (Challenge::pick(challenges), account) {
            (_, Some(Account::Token(token))) => Authorization::Token(Arc::new(token)),
            (Some(Challenge::Bearer { realm, service }), account) => {
                let url =
                    Url::parse(&realm).map_err(|_| denied(format!("its token service {realm:?} is not a URL")))?;
                if is_inside(&url) && !is_inside(response.url()) {
                    return Err(denied(format!("its token service {realm:?} would be inside the guest")));
                }
                if url.scheme() != "https" && !source.insecure {
                    return Err(denied(format!("its token service {realm:?} has no TLS")));
                }
                Authorization::Token(Arc::new(self.token(source, url, service, account).await?))
            }
            (Some(Challenge::Basic), Some(Account::Login { user, password })) => {
                Authorization::Login { user, password }
            }
            (Some(Challenge::Basic), Some(_)) => {
                return Err(denied("it wants a password, and only an identity token is configured for it".to_owned()));
            }
            (Some(Challenge::Basic), None) => {
                return Err(denied("it wants a password and none is configured for it".to_owned()));
            }
            (None, _) => return Err(denied("it asks for a kind of authentication that is not supported".to_owned())),
        };
        let mut authorizations = self.authorizations.lock().unwrap_or_else(PoisonError::into_inner);
        authorizations.insert(scope(source), fresh.clone());
        Ok(fresh)
    }

    /// Adds what the accounts have to do with a refusal.
    pub(super) fn explained(&self, source: &Source, error: RegistryError) -> RegistryError {
        match (error, self.credentials.find(&source.reference)) {
            (RegistryError::Denied { registry, cause }, Some(Account::Helper(name))) => RegistryError::Denied {
                registry,
                cause: format!(
                    "{cause}; its account is kept by the credential helper {name:?}, which can't run inside a guest: \
                     write the account itself into the auth.json"
                ),
            },
            (error, _) => error,
        }
    }

    /// Asks the token service: by GET, or by POST with an identity token (OAuth2).
    async fn token(
        &self,
        source: &Source,
        url: Url,
        service: Option<String>,
        account: Option<Account>,
    ) -> Result<Zeroizing<String>, RegistryError> {
        let reference = &source.reference;
        let wanted = format!("repository:{}:pull", reference.repository());
        let clients = &*self.clients;
        let request = match account {
            Some(Account::Identity(identity)) => {
                // The body is a secret and would follow a redirect.
                let client = if source.insecure { &clients.straight.1 } else { &clients.straight.0 };
                let form = form_urlencoded::Serializer::new(String::new())
                    .append_pair("grant_type", "refresh_token")
                    .append_pair("service", service.as_deref().unwrap_or_default())
                    .append_pair("client_id", "cocoon")
                    .append_pair("scope", &wanted)
                    .append_pair("refresh_token", &identity)
                    .finish();
                client.post(url).header(CONTENT_TYPE, "application/x-www-form-urlencoded").body(form)
            }
            account => {
                let client = if source.insecure { &clients.unverified } else { &clients.verified };
                let mut url = url;
                url.query_pairs_mut()
                    .extend_pairs(service.map(|service| ("service", service)))
                    .append_pair("scope", &wanted);
                match account {
                    Some(Account::Login { user, password }) => {
                        client.get(url).basic_auth(&user, Some(password.as_str()))
                    }
                    _ => client.get(url),
                }
            }
        };
        let denied = |cause: &str| RegistryError::Denied {
            registry: reference.registry().to_owned(),
            cause: format!("its token service {cause}"),
        };
        let response = request.send().await.map_err(|e| self.classify(reference, e))?;
        if response.status().is_redirection() {
            return Err(denied("leads elsewhere, where the identity token must not go"));
        }
        let response = self.accept(reference, response).await?;
        let bytes = Zeroizing::new(self.bounded(reference, response, MAX_TOKEN).await?.to_vec());
        let answer: TokenResponse = serde_json::from_slice(&bytes).map_err(|_| denied("answered no token"))?;
        let token = answer.token.or(answer.access_token).filter(|token| !token.is_empty());
        token.ok_or_else(|| denied("gave no token"))
    }
}

#[derive(Deserialize)]
struct TokenResponse {
    token: Option<Zeroizing<String>>,
    access_token: Option<Zeroizing<String>>,
}

/// A token is good for one repository of one registry.
fn scope(source: &Source) -> (String, String) {
    let reference: &Reference = &source.reference;
    (reference.registry().to_owned(), reference.repository().to_owned())
}

const MAX_TOKEN: u64 = 256 << 10;
