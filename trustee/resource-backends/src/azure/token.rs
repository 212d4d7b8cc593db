//! Microsoft Entra's access tokens: for an application, or for the machine's managed identity.

use std::path::PathBuf;

use async_trait::async_trait;
use reqwest::{Method, RequestBuilder};
use store::clock::Clock;
use zeroize::Zeroizing;

use super::Config;
use crate::Environment;
use crate::bearer::{TokenSource, Tokens};
use crate::error::Error;
use crate::http::{self, Http, Limits, Trust};

/// Tokens for an application that the configuration or the environment describes, otherwise for the machine.
pub(super) fn find(config: &Config, environment: &Environment, clock: &Clock, limits: Limits) -> Result<Tokens, Error> {
    let client_id = config.client_id.clone().or_else(|| environment.get("AZURE_CLIENT_ID"));
    let audience = config.audience.trim_end_matches('/').to_owned();
    let Some(proof) = Proof::find(config, environment)? else {
        let url = environment.get("AZURE_POD_IDENTITY_AUTHORITY_HOST").unwrap_or_else(|| INSTANCE.to_owned());
        let url = http::base_url("AZURE_POD_IDENTITY_AUTHORITY_HOST", &url)?;
        let http = Http::new("the machine's managed identity".to_owned(), Trust::local(), limits)?;
        return Ok(Tokens::new(ManagedIdentity { url, audience, client_id }, http, clock));
    };
    let absent = |key| Error::Config { key, cause: "it is needed to log in as an application".to_owned() };
    let tenant = config.tenant_id.clone().or_else(|| environment.get("AZURE_TENANT_ID"));
    let tenant = tenant.ok_or_else(|| absent("tenant_id"))?;
    if !tenant.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.')) {
        return Err(Error::Config { key: "tenant_id", cause: "it is neither an id nor a domain".to_owned() });
    }
    let authority = config.authority_url.clone().or_else(|| environment.get("AZURE_AUTHORITY_HOST"));
    let authority = http::base_url("authority_url", authority.as_deref().unwrap_or(AUTHORITY))?;
    let url = format!("{authority}/{tenant}/oauth2/v2.0/token");
    let client_id = client_id.ok_or_else(|| absent("client_id"))?;
    let http = Http::new(format!("Microsoft Entra at {url}"), Trust::default(), limits)?;
    Ok(Tokens::new(Application { url, audience, client_id, proof }, http, clock))
}

/// The identity that Azure gave to the machine.
struct ManagedIdentity {
    url: String,
    audience: String,
    client_id: Option<String>,
}

#[async_trait]
impl TokenSource for ManagedIdentity {
    async fn request(&self, http: &Http) -> Result<RequestBuilder, Error> {
        let mut pairs = vec![("api-version", "2018-02-01"), ("resource", self.audience.as_str())];
        pairs.extend(self.client_id.as_deref().map(|client_id| ("client_id", client_id)));
        let url = http::with_query(&format!("{}/metadata/identity/oauth2/token", self.url), &pairs);
        Ok(http.request(Method::GET, &url).header("Metadata", "true"))
    }
}

/// An application that is registered with Entra.
struct Application {
    url: String,
    audience: String,
    client_id: String,
    proof: Proof,
}

#[async_trait]
impl TokenSource for Application {
    async fn request(&self, http: &Http) -> Result<RequestBuilder, Error> {
        let scope = format!("{}/.default", self.audience);
        let mut pairs = vec![("grant_type", "client_credentials"), ("client_id", &*self.client_id), ("scope", &*scope)];
        let proof = match &self.proof {
            Proof::Secret(secret) => secret.clone(),
            Proof::SecretFile(path) | Proof::FederatedTokenFile(path) => http::read_secret(path).await?,
        };
        match self.proof {
            Proof::Secret(_) | Proof::SecretFile(_) => pairs.push(("client_secret", &proof)),
            Proof::FederatedTokenFile(_) => {
                pairs.extend([("client_assertion_type", ASSERTION), ("client_assertion", &proof)]);
            }
        }
        let request = http.request(Method::POST, &self.url);
        Ok(request.header("Content-Type", "application/x-www-form-urlencoded").body(http::body(http::form(&pairs))))
    }
}

/// How an application proves that it is itself.
enum Proof {
    SecretFile(PathBuf),
    Secret(Zeroizing<String>),
    FederatedTokenFile(PathBuf),
}

impl Proof {
    fn find(config: &Config, environment: &Environment) -> Result<Option<Self>, Error> {
        match (&config.client_secret_file, &config.federated_token_file) {
            (Some(_), Some(_)) => {
                let cause = "give either this or federated_token_file".to_owned();
                Err(Error::Config { key: "client_secret_file", cause })
            }
            (Some(path), None) => Ok(Some(Self::SecretFile(path.clone()))),
            (None, Some(path)) => Ok(Some(Self::FederatedTokenFile(path.clone()))),
            (None, None) => {
                let secret = environment.get("AZURE_CLIENT_SECRET").map(|secret| Self::Secret(Zeroizing::new(secret)));
                let file = || environment.get("AZURE_FEDERATED_TOKEN_FILE").map(PathBuf::from);
                Ok(secret.or_else(|| file().map(Self::FederatedTokenFile)))
            }
        }
    }
}

const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
const AUTHORITY: &str = "https://login.microsoftonline.com";
const INSTANCE: &str = "http://169.254.169.254";
