//! Google's access tokens: for a service account's key (RFC 7523), or from the metadata server.

use std::path::PathBuf;

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use reqwest::{Method, RequestBuilder};
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::json;
use store::clock::Clock;
use zeroize::Zeroizing;

use crate::Environment;
use crate::bearer::{TokenSource, Tokens};
use crate::error::Error;
use crate::http::{self, Http, Limits, Trust};

/// Tokens for a key in a file, or of the machine.
pub(super) async fn find(
    file: Option<PathBuf>,
    environment: &Environment,
    clock: &Clock,
    limits: Limits,
) -> Result<Tokens, Error> {
    match file {
        Some(path) => {
            let key = Key::parse(&http::read_secret(&path).await?, clock)?;
            let http = Http::new(format!("Google's tokens at {}", key.url), Trust::default(), limits)?;
            Ok(Tokens::new(key, http, clock))
        }
        None => {
            let host = environment.get("GCE_METADATA_HOST").unwrap_or_else(|| METADATA.to_owned());
            let url = http::base_url("GCE_METADATA_HOST", &format!("http://{host}"))?;
            let http = Http::new("Google's metadata server".to_owned(), Trust::local(), limits)?;
            Ok(Tokens::new(Metadata { url }, http, clock))
        }
    }
}

/// The metadata server of a machine in Google's cloud.
struct Metadata {
    url: String,
}

#[async_trait]
impl TokenSource for Metadata {
    async fn request(&self, http: &Http) -> Result<RequestBuilder, Error> {
        let url = format!("{}/computeMetadata/v1/instance/service-accounts/default/token", self.url);
        Ok(http.request(Method::GET, &url).header("Metadata-Flavor", "Google"))
    }
}

/// A service account's key.
struct Key {
    email: String,
    id: Option<String>,
    url: String,
    key: KeyPair,
    clock: Clock,
}

#[async_trait]
impl TokenSource for Key {
    async fn request(&self, http: &Http) -> Result<RequestBuilder, Error> {
        let assertion = self.assertion(self.clock.now().unix())?;
        let grant = "urn:ietf:params:oauth:grant-type:jwt-bearer";
        let form = http::form(&[("grant_type", grant), ("assertion", &assertion)]);
        let request = http.request(Method::POST, &self.url);
        Ok(request.header("Content-Type", "application/x-www-form-urlencoded").body(http::body(form)))
    }
}

impl Key {
    fn parse(text: &str, clock: &Clock) -> Result<Self, Error> {
        let unusable = |cause: &str| Error::Config { key: "credentials_file", cause: cause.to_owned() };
        let file: KeyFile = serde_json::from_str(text).map_err(|_| {
            unusable("it is not a service account's key in JSON; other kinds of credentials are not read")
        })?;
        if file.kind != "service_account" {
            return Err(unusable("it is not the key of a service account"));
        }
        let der = PrivatePkcs8KeyDer::from_pem_slice(file.private_key.as_bytes());
        let der = der.map_err(|_| unusable("private_key is not PKCS #8 in PEM"))?;
        let key = KeyPair::from_pkcs8(der.secret_pkcs8_der());
        let key = key.map_err(|_| unusable("private_key is not an RSA key of 2048 bits or more"))?;
        let url = http::base_url("credentials_file", file.token_uri.as_deref().unwrap_or(TOKENS))?;
        Ok(Self { email: file.client_email, id: file.private_key_id, url, key, clock: clock.clone() })
    }

    /// What the key's holder may ask a token with, for an hour.
    fn assertion(&self, now: u64) -> Result<Zeroizing<String>, Error> {
        let mut header = json!({ "alg": "RS256", "typ": "JWT" });
        if let Some(id) = &self.id {
            header["kid"] = json!(id);
        }
        let claims = json!({ "iss": self.email, "scope": SCOPE, "aud": self.url, "iat": now, "exp": now + 3600 });
        let encode = |part: &[u8]| URL_SAFE_NO_PAD.encode(part);
        let text = format!("{}.{}", encode(header.to_string().as_bytes()), encode(claims.to_string().as_bytes()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature)
            .map_err(|_| Error::Credentials { service: self.email.clone(), cause: "its key can't sign".to_owned() })?;
        Ok(Zeroizing::new(format!("{text}.{}", encode(&signature))))
    }
}

#[derive(Deserialize)]
struct KeyFile {
    #[serde(rename = "type")]
    kind: String,
    client_email: String,
    private_key: Zeroizing<String>,
    private_key_id: Option<String>,
    token_uri: Option<String>,
}

const METADATA: &str = "metadata.google.internal";
const TOKENS: &str = "https://oauth2.googleapis.com/token";
const SCOPE: &str = "https://www.googleapis.com/auth/cloud-platform";
