//! AWS: keys of KMS and secrets of Secrets Manager, with the credentials in `credential.json`.
//!
//! Source: AWS KMS API reference, `Decrypt`; AWS Secrets Manager API reference, `GetSecretValue`.

mod signature;

use std::collections::BTreeMap;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use reqwest::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::credentials::{plain, read_json, typed};
use crate::error::Error;
use crate::http::Answer;
use crate::time::Utc;
use crate::{Kms, Named};
use signature::Signer;

/// Decrypts with a key of KMS, whose ciphertexts carry all but their encryption context.
pub(crate) async fn decrypt(kms: &Kms, key: Named<'_>, ciphertext: &[u8]) -> Result<Zeroizing<Vec<u8>>, Error> {
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(default)]
        encryption_context: BTreeMap<String, String>,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request<'a> {
        key_id: &'a str,
        ciphertext_blob: String,
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        encryption_context: BTreeMap<String, String>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response {
        plaintext: Zeroizing<String>,
    }
    let annotations: Annotations = typed(AWS, "annotations", key.annotations)?;
    let request = Request {
        key_id: key.name,
        ciphertext_blob: STANDARD.encode(ciphertext),
        encryption_context: annotations.encryption_context,
    };
    let answer = call(kms, &key, "kms", "TrentService.Decrypt", &request).await?;
    let response: Response = answer.json()?;
    let plain = STANDARD.decode(response.plaintext.as_bytes()).map(Zeroizing::new);
    plain.map_err(|_| answer.unusable("its plaintext is not base64"))
}

/// Fetches a secret of Secrets Manager, the current version unless the annotations name another.
pub(crate) async fn secret(kms: &Kms, secret: Named<'_>) -> Result<Zeroizing<Vec<u8>>, Error> {
    #[derive(Deserialize)]
    struct Annotations {
        #[serde(default)]
        version_id: String,
        #[serde(default)]
        version_stage: String,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "PascalCase")]
    struct Request<'a> {
        secret_id: &'a str,
        #[serde(skip_serializing_if = "String::is_empty")]
        version_id: String,
        #[serde(skip_serializing_if = "String::is_empty")]
        version_stage: String,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "PascalCase")]
    struct Response {
        secret_string: Option<Zeroizing<String>>,
        secret_binary: Option<Zeroizing<String>>,
    }
    let Annotations { version_id, version_stage } = typed(AWS, "annotations", secret.annotations)?;
    let request = Request { secret_id: secret.name, version_id, version_stage };
    let answer = call(kms, &secret, "secretsmanager", "secretsmanager.GetSecretValue", &request).await?;
    match answer.json()? {
        Response { secret_string: Some(text), .. } => Ok(Zeroizing::new(text.as_bytes().to_vec())),
        Response { secret_binary: Some(binary), .. } => {
            let bytes = STANDARD.decode(binary.as_bytes()).map(Zeroizing::new);
            bytes.map_err(|_| answer.unusable("its secret is not base64"))
        }
        _ => Err(answer.unusable("there is no secret in it")),
    }
}

/// One call of the JSON protocol 1.1, signed.
async fn call(
    kms: &Kms,
    named: &Named<'_>,
    service: &'static str,
    target: &'static str,
    request: &impl Serialize,
) -> Result<Answer, Error> {
    #[derive(Deserialize)]
    struct Settings {
        region: String,
    }
    #[derive(Deserialize)]
    struct Refusal {
        #[serde(rename = "__type")]
        kind: String,
    }
    let settings: Settings = typed(AWS, "provider_settings", named.settings)?;
    let region = plain(AWS, "region", &settings.region)?;
    let credentials: Credential = read_json(
        kms.credentials.aws.join("credential.json"),
        "JSON with access_key_id, secret_access_key and perhaps session_token",
    )
    .await?;
    // The regions in China are a partition of their own.
    let domain = if region.starts_with("cn-") { "amazonaws.com.cn" } else { "amazonaws.com" };
    let url = kms.url(&format!("{service}.{region}.{domain}"));
    let host = url.split_once("://").map_or(url.as_str(), |(_, host)| host).trim_end_matches('/');
    let name = format!("AWS {service} in {region}");
    let body = serde_json::to_vec(request).map_err(|e| Error::Client(e.to_string()))?;

    let headers = [("content-type", JSON), ("x-amz-target", target)];
    let signer = Signer { credential: &credentials, region, service };
    let mut call = kms.http.request(Method::POST, &format!("{}/", url.trim_end_matches('/')));
    for (header, value) in signer.sign(host, &headers, &body, Utc::now()) {
        let mut value = HeaderValue::from_str(&value)
            .map_err(|_| Error::Client("a credential can't stand in a header".to_owned()))?;
        value.set_sensitive(true);
        call = call.header(header, value);
    }
    let call = call.header(CONTENT_TYPE, JSON).header("x-amz-target", target).body(body);
    let answer = kms.http.send(&name, call).await?;
    if answer.status.is_success() {
        return Ok(answer);
    }
    let code = answer.json().map(|refusal: Refusal| refusal.kind).unwrap_or_default();
    Err(answer.refused(code.rsplit('#').next().unwrap_or_default()))
}

/// What `credential.json` holds.
#[derive(Deserialize)]
pub(crate) struct Credential {
    access_key_id: String,
    secret_access_key: Zeroizing<String>,
    /// Keys that end come with a token that is sent along.
    #[serde(default)]
    session_token: Option<Zeroizing<String>>,
}

const AWS: &str = "AWS";
const JSON: &str = "application/x-amz-json-1.1";
