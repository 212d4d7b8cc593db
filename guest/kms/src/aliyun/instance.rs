//! The gateway of one KMS instance (interface `dkms-gcs-0.2`): protobuf over TLS, requests signed with an RSA key.

use std::time::SystemTime;

use aws_lc_rs::digest;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeyPair;
use aws_lc_rs::signature::RSA_PKCS1_SHA256;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prost::Message;
use reqwest::Method;
use reqwest::header::HeaderValue;
use serde::Deserialize;
use wire::pkcs12;
use zeroize::Zeroizing;

use super::{SERVICE, Version, value};
use crate::Kms;
use crate::credentials::{plain, read, read_json, read_text};
use crate::error::Error;
use crate::http::{Answer, Http};

/// A gateway, and the key that it knows this client by.
pub(super) struct Instance {
    http: Http,
    name: String,
    url: String,
    key_id: String,
    key: KeyPair,
}

impl Instance {
    /// The instance with the credentials that lie in files for it.
    pub(super) async fn open(kms: &Kms, client_key: &str, instance: &str) -> Result<Self, Error> {
        let folder = &kms.credentials.aliyun;
        let client_key = plain(SERVICE, "client_key_id", client_key)?;
        let instance = plain(SERVICE, "kms_instance_id", instance)?;
        let path = folder.join(format!("clientKey_{client_key}.json"));
        let file: ClientKey = read_json(path.clone(), "JSON with KeyId and PrivateKeyData").await?;
        let password = password(read_text(folder.join(format!("password_{client_key}.json"))).await?);
        let authority_path = folder.join(format!("PrivateKmsCA_{instance}.pem"));
        let authority = read(authority_path.clone()).await?;

        let refused = |cause: &str| Error::Credentials { path: path.clone(), cause: cause.to_owned() };
        let archive = STANDARD.decode(file.private_key_data.as_bytes()).map(Zeroizing::new);
        let archive = archive.map_err(|_| refused("PrivateKeyData is not base64"))?;
        let key = pkcs12::private_key(&archive, &password).map_err(refused)?;
        let key = KeyPair::from_pkcs8(&key).map_err(|_| refused("its key is not one of RSA"))?;
        let http = Http::new(Some(&authority)).map_err(|e| Error::Credentials {
            path: authority_path,
            cause: format!("it is not a certificate authority's PEM: {e}"),
        })?;
        let url = kms.url(&format!("{instance}.cryptoservice.kms.aliyuncs.com"));
        Ok(Self { http, name: format!("the KMS instance {instance}"), url, key_id: file.key_id, key })
    }

    pub(super) async fn decrypt(
        &self,
        key_id: &str,
        ciphertext: &[u8],
        iv: Vec<u8>,
    ) -> Result<Zeroizing<Vec<u8>>, Error> {
        let request = DecryptRequest {
            ciphertext_blob: ciphertext.to_vec(),
            key_id: key_id.to_owned(),
            algorithm: "AES_GCM".to_owned(),
            iv,
        };
        let answer = self.call("Decrypt", request.encode_to_vec()).await?;
        let response = DecryptResponse::decode(answer.body.as_slice());
        response.map(|response| Zeroizing::new(response.plaintext)).map_err(|_| answer.unusable(NOT_A_MESSAGE))
    }

    pub(super) async fn secret(&self, name: &str, version: Version) -> Result<Zeroizing<Vec<u8>>, Error> {
        let request = SecretRequest {
            secret_name: name.to_owned(),
            version_stage: version.version_stage,
            version_id: version.version_id,
        };
        let answer = self.call("GetSecretValue", request.encode_to_vec()).await?;
        let response = SecretResponse::decode(answer.body.as_slice()).map_err(|_| answer.unusable(NOT_A_MESSAGE))?;
        let secret = value(Zeroizing::new(response.secret_data), &response.secret_data_type);
        secret.ok_or_else(|| answer.unusable("the secret is not base64"))
    }

    async fn call(&self, operation: &str, body: Vec<u8>) -> Result<Answer, Error> {
        let digest = hex::encode_upper(digest::digest(&digest::SHA256, &body));
        let date = httpdate::fmt_http_date(SystemTime::now());
        // In the order of their names, as they are signed. The first one is spelled so in the interface.
        let headers = [
            ("x-kms-acccesskeyid", self.key_id.as_str()),
            ("x-kms-apiname", operation),
            ("x-kms-apiversion", "dkms-gcs-0.2"),
            ("x-kms-signaturemethod", "RSA_PKCS1_SHA_256"),
        ];
        let mut bearer = HeaderValue::try_from(format!("Bearer {}", self.sign(&digest, &date, &headers)?))
            .map_err(|e| Error::Client(e.to_string()))?;
        bearer.set_sensitive(true);
        let mut request = self
            .http
            .request(Method::POST, &format!("{}/", self.url))
            .header("accept", CONTENT_TYPE)
            .header("content-type", CONTENT_TYPE)
            .header("content-sha256", &digest)
            .header("date", &date)
            .header("authorization", bearer);
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let answer = self.http.send(&self.name, request.body(body)).await?;
        if answer.status.is_success() {
            return Ok(answer);
        }
        let code = Refusal::decode(answer.body.as_slice()).unwrap_or_default().error_code;
        Err(answer.refused(&code))
    }

    /// The gateway's signature: of the body's digest, type and date, the headers that begin with `x-kms-`, the path.
    fn sign(&self, digest: &str, date: &str, headers: &[(&str, &str)]) -> Result<String, Error> {
        let lines: String = headers.iter().map(|(name, value)| format!("{name}:{value}\n")).collect();
        let text = format!("POST\n{digest}\n{CONTENT_TYPE}\n{date}\n{lines}/");
        let mut signature = vec![0; self.key.public_modulus_len()];
        let signed = self.key.sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), text.as_bytes(), &mut signature);
        signed.map_err(|_| Error::Client("the client key can't sign".to_owned()))?;
        Ok(STANDARD.encode(signature))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ClientKey {
    key_id: String,
    private_key_data: Zeroizing<String>,
}

/// The password alone, as the console gives it out, or JSON around it.
fn password(text: Zeroizing<String>) -> Zeroizing<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Password {
        client_key_password: Zeroizing<String>,
    }
    match serde_json::from_str(&text) {
        Ok(Password { client_key_password }) => client_key_password,
        Err(_) => text,
    }
}

// Messages of the package `dkms_api`: the fields that are used.

#[derive(Clone, PartialEq, Message)]
struct DecryptRequest {
    #[prost(bytes = "vec", tag = "1")]
    ciphertext_blob: Vec<u8>,
    #[prost(string, tag = "2")]
    key_id: String,
    #[prost(string, tag = "3")]
    algorithm: String,
    #[prost(bytes = "vec", tag = "5")]
    iv: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct DecryptResponse {
    #[prost(bytes = "vec", tag = "2")]
    plaintext: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct SecretRequest {
    #[prost(string, tag = "1")]
    secret_name: String,
    #[prost(string, tag = "2")]
    version_stage: String,
    #[prost(string, tag = "3")]
    version_id: String,
}

#[derive(Clone, PartialEq, Message)]
struct SecretResponse {
    #[prost(string, tag = "3")]
    secret_data: String,
    #[prost(string, tag = "4")]
    secret_data_type: String,
}

#[derive(Clone, PartialEq, Message)]
struct Refusal {
    #[prost(string, tag = "2")]
    error_code: String,
}

const CONTENT_TYPE: &str = "application/x-protobuf";
const NOT_A_MESSAGE: &str = "it is not the message expected";
