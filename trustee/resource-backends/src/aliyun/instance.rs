//! The gateway of one KMS instance (interface `dkms-gcs-0.2`): protobuf over TLS, requests signed with an RSA key.

use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::{Method, StatusCode};
use serde::Deserialize;
use store::clock::Clock;
use wire::pkcs12;
use wire::resource::ResourcePath;
use zeroize::Zeroizing;

use super::{MAX_NAME, protobuf};
use crate::canonical::sha256;
use crate::error::Error;
use crate::http::{self, Http, Limits, Repeat, Trust};
use crate::naming::{Alphabet, Naming};
use crate::{Backend, Condition, Resource};

/// What upstream's configuration holds.
pub(super) struct Settings {
    pub(super) client_key: Zeroizing<String>,
    pub(super) password: Zeroizing<String>,
    pub(super) instance: String,
    pub(super) certificate: String,
    pub(super) endpoint: Option<String>,
    pub(super) naming: Naming,
}

/// One KMS instance.
pub(super) struct Instance {
    http: Http,
    clock: Clock,
    url: String,
    key_id: String,
    key: KeyPair,
    naming: Naming,
}

impl Instance {
    pub(super) fn new(settings: Settings, clock: &Clock, limits: Limits) -> Result<Self, Error> {
        let refused = |key, cause: &str| Error::Config { key, cause: cause.to_owned() };
        let client_key: ClientKey = serde_json::from_str(&settings.client_key)
            .map_err(|_| refused("client_key", "it is not JSON with KeyId and PrivateKeyData"))?;
        let file = STANDARD.decode(client_key.private_key_data.as_bytes()).map(Zeroizing::new);
        let file = file.map_err(|_| refused("client_key", "PrivateKeyData is not base64"))?;
        let key = pkcs12::private_key(&file, settings.password.trim_end()).map_err(|e| refused("client_key", e))?;
        let key = KeyPair::from_pkcs8(&key).map_err(|_| refused("client_key", "its key is not one of RSA"))?;

        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if settings.instance.is_empty() || !settings.instance.bytes().all(plain) {
            return Err(refused("kms_instance_id", "it has characters that no instance has"));
        }
        let url = match &settings.endpoint {
            Some(url) => http::base_url("endpoint_url", url)?,
            None => format!("https://{}.cryptoservice.kms.aliyuncs.com", settings.instance),
        };
        let trust = Trust { extra: vec![settings.certificate.into_bytes()], key: "cert_pem", ..Trust::default() };
        let http = Http::new(format!("the KMS instance at {url}"), trust, limits)?;
        settings.naming.announce(http.service());
        Ok(Self { http, clock: clock.clone(), url, key_id: client_key.key_id, key, naming: settings.naming })
    }

    /// The gateway's signature: of the body's digest, type and date, the headers that begin with `x-kms-`, the path.
    fn sign(&self, digest: &str, date: &str, headers: &[(&str, &str)]) -> Result<String, Error> {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let text = format!("POST\n{digest}\n{CONTENT_TYPE}\n{date}\n{lines}/");
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature).map_err(|_| {
            Error::Credentials {
                service: self.http.service().to_owned(),
                cause: "the client key can't sign".to_owned(),
            }
        })?;
        Ok(STANDARD.encode(signature))
    }

    fn read_only(&self, operation: &'static str) -> Error {
        let advice = "use an access key, with which the public interface can";
        Error::Unsupported { service: self.http.service().to_owned(), operation, advice }
    }
}

#[async_trait]
impl Backend for Instance {
    async fn get(&self, path: &ResourcePath) -> Result<Option<Resource>, Error> {
        let name = self.naming.name(path, Alphabet::Path, self.http.service(), MAX_NAME)?;
        let body = protobuf::get_secret_value(&name);
        let digest = sha256(&body).to_uppercase();
        let date = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(self.clock.now().unix()));
        // In the order of their names, as they are signed. The first one is spelled so in the interface.
        let headers = [
            ("x-kms-acccesskeyid", self.key_id.as_str()),
            ("x-kms-apiname", "GetSecretValue"),
            ("x-kms-apiversion", "dkms-gcs-0.2"),
            ("x-kms-signaturemethod", "RSA_PKCS1_SHA_256"),
        ];
        let signature = Zeroizing::new(format!("Bearer {}", self.sign(&digest, &date, &headers)?));
        let mut request = self
            .http
            .request(Method::POST, &format!("{}/", self.url))
            .header("Accept", CONTENT_TYPE)
            .header("Content-Type", CONTENT_TYPE)
            .header("Content-Sha256", &digest)
            .header("Date", &date)
            .header("Authorization", http::sensitive(&signature)?);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = self.http.send(request.body(body), Repeat::Always).await?;
        if answer.status != StatusCode::OK {
            let code = protobuf::text(&answer.body, ERROR_CODE).unwrap_or_default();
            let absent = answer.status == StatusCode::NOT_FOUND || code.ends_with("ResourceNotFound");
            return if absent { Ok(None) } else { Err(Error::refusal(self.http.service(), answer.status, code)) };
        }
        let data =
            protobuf::text(&answer.body, SECRET_DATA).ok_or_else(|| self.http.malformed("there is no secret in it"))?;
        let kind = protobuf::text(&answer.body, SECRET_DATA_TYPE);
        let value = super::public::value(data, kind).ok_or_else(|| self.http.malformed("the secret is not base64"))?;
        let version = protobuf::text(&answer.body, VERSION_ID).map(super::public::version);
        Ok(Some(Resource { value, version }))
    }

    async fn put(&self, _: &ResourcePath, _: &[u8], _: &Condition) -> Result<Option<String>, Error> {
        Err(self.read_only("write"))
    }

    async fn delete(&self, _: &ResourcePath, _: &Condition) -> Result<bool, Error> {
        Err(self.read_only("delete"))
    }

    async fn list(&self, _: Option<&str>) -> Result<Vec<ResourcePath>, Error> {
        Err(self.read_only("list"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ClientKey {
    key_id: String,
    private_key_data: Zeroizing<String>,
}

const CONTENT_TYPE: &str = "application/x-protobuf";
/// Fields of `GetSecretValueResponse` and of `Error`.
const SECRET_DATA: u64 = 3;
const SECRET_DATA_TYPE: u64 = 4;
const VERSION_ID: u64 = 6;
const ERROR_CODE: u64 = 2;
