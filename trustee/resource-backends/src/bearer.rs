//! Calls to a service that takes bearer tokens (OAuth 2.0), with tokens that another service gives out.

use std::time::Duration;

use async_trait::async_trait;
use reqwest::{Method, RequestBuilder, StatusCode};
use serde::{Deserialize, Deserializer};
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::error::Error;
use crate::http::{self, Answer, Http, Repeat};
use crate::lease::{Granted, Lease};

/// How a token is asked for.
#[async_trait]
pub(crate) trait TokenSource: Send + Sync {
    /// The request whose answer holds the token.
    async fn request(&self, http: &Http) -> Result<RequestBuilder, Error>;
}

/// A source of tokens, and the token in use.
pub(crate) struct Tokens {
    source: Box<dyn TokenSource>,
    http: Http,
    lease: Lease<Zeroizing<String>>,
}

impl Tokens {
    pub(crate) fn new(source: impl TokenSource + 'static, http: Http, clock: &Clock) -> Self {
        let lease = Lease::new(http.service(), clock);
        Self { source: Box::new(source), http, lease }
    }

    /// Sends a request with the token in use, and once more with a new one if that is refused.
    pub(crate) async fn call(
        &self,
        service: &Http,
        method: Method,
        url: &str,
        body: Option<&Zeroizing<Vec<u8>>>,
        repeat: Repeat,
    ) -> Result<Answer, Error> {
        loop {
            let token = self.lease.get(self.fetch()).await?;
            let bearer = Zeroizing::new(format!("Bearer {}", token.as_str()));
            let mut request = service.request(method.clone(), url).header("Authorization", http::sensitive(&bearer)?);
            if let Some(body) = body {
                request = request.header("Content-Type", "application/json").body(http::body(body.clone()));
            }
            let answer = service.send(request, repeat).await?;
            if answer.status != StatusCode::UNAUTHORIZED || !self.lease.refused(&token).await {
                return Ok(answer);
            }
        }
    }

    async fn fetch(&self) -> Result<Granted<Zeroizing<String>>, Error> {
        let answer = self.http.send(self.source.request(&self.http).await?, Repeat::Always).await?;
        match answer.status {
            StatusCode::OK => {
                let token: Token = self.http.parse(&answer)?;
                Ok(Granted { credential: token.access_token, lasts: Some(Duration::from_secs(token.expires_in)) })
            }
            status if status.is_server_error() => Err(Error::refusal(self.http.service(), status, "")),
            status => Err(Error::Credentials {
                service: self.http.service().to_owned(),
                cause: format!("no token was given ({})", status.as_u16()),
            }),
        }
    }
}

#[derive(Deserialize)]
struct Token {
    access_token: Zeroizing<String>,
    #[serde(deserialize_with = "seconds")]
    expires_in: u64,
}

/// OAuth writes a number, Azure's metadata service the same as a text.
fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u64),
        Text(String),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(number),
        Either::Text(text) => text.parse().map_err(serde::de::Error::custom),
    }
}
