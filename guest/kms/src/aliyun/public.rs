//! The public interface of version 2016-01-20: parameters in the URL, signed with an access key (HMAC-SHA1).

use std::collections::BTreeMap;

use aws_lc_rs::{hmac, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use reqwest::Method;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::{SERVICE, Version, value};
use crate::Kms;
use crate::credentials::{plain, read_json, read_text};
use crate::error::Error;
use crate::time::Utc;

/// A temporary access key, and the region that it is used in.
pub(super) struct AccessKey {
    id: String,
    secret: Zeroizing<String>,
    token: Zeroizing<String>,
    region: String,
}

impl AccessKey {
    /// The key of the virtual machine's role, `ecsRamRole.json`, from the metadata service. The host runs that one: what
    /// it gives out is as trusted as the host.
    pub(super) async fn of_role(kms: &Kms) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Role {
            ecs_ram_role_name: String,
            region_id: String,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Given {
            access_key_id: String,
            access_key_secret: Zeroizing<String>,
            security_token: Zeroizing<String>,
        }
        let path = kms.credentials.aliyun.join("ecsRamRole.json");
        let role: Role = read_json(path, "JSON with ecs_ram_role_name and region_id").await?;
        let name = plain(SERVICE, "ecs_ram_role_name", &role.ecs_ram_role_name)?;
        let base = kms.endpoint.as_deref().unwrap_or(METADATA);
        let request = kms.http.request(Method::GET, &format!("{base}/{ROLES}/{name}"));
        let answer = kms.http.send("the metadata service", request).await?;
        if !answer.status.is_success() {
            return Err(answer.refused(""));
        }
        let given: Given = answer.json()?;
        Ok(Self {
            id: given.access_key_id,
            secret: given.access_key_secret,
            token: given.security_token,
            region: role.region_id,
        })
    }

    /// The key in a file of the form `id:secret:token`.
    pub(super) async fn in_file(kms: &Kms, path: &str, region: String) -> Result<Self, Error> {
        let path = kms.credentials.named(SERVICE, path)?;
        let text = read_text(path.clone()).await?;
        let parts: Vec<&str> = text.split(':').collect();
        let [id, secret, token] = parts[..] else {
            return Err(Error::Credentials { path, cause: "it is not access key:secret:token".to_owned() });
        };
        let hidden = |text: &str| Zeroizing::new(text.to_owned());
        Ok(Self { id: id.to_owned(), secret: hidden(secret), token: hidden(token), region })
    }

    /// Fetches a secret.
    pub(super) async fn secret(&self, kms: &Kms, name: &str, version: &Version) -> Result<Zeroizing<Vec<u8>>, Error> {
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Response {
            secret_data: Zeroizing<String>,
            #[serde(default)]
            secret_data_type: String,
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "PascalCase")]
        struct Refusal {
            code: String,
        }
        let region = plain(SERVICE, "region_id", &self.region)?;
        let mut parameters = vec![("SecretName", name)];
        for (parameter, value) in [("VersionStage", &version.version_stage), ("VersionId", &version.version_id)] {
            if !value.is_empty() {
                parameters.push((parameter, value));
            }
        }
        let query = self.sign("GetSecretValue", &parameters, &random_id()?, Utc::now());
        let url = Zeroizing::new(format!("{}/?{}", kms.url(&format!("kms.{region}.aliyuncs.com")), *query));
        let request = kms.http.request(Method::POST, &url);
        let answer = kms.http.send(&format!("{SERVICE} in {region}"), request).await?;
        if !answer.status.is_success() {
            let code = answer.json().map(|refusal: Refusal| refusal.code).unwrap_or_default();
            return Err(answer.refused(&code));
        }
        let response: Response = answer.json()?;
        let secret = value(response.secret_data, &response.secret_data_type);
        secret.ok_or_else(|| answer.unusable("the secret is not base64"))
    }

    /// The query of a call, with its signature (version 1.0 of the RPC interfaces).
    fn sign(&self, action: &str, parameters: &[(&str, &str)], nonce: &str, now: Utc) -> Zeroizing<String> {
        let time = now.extended();
        let mut all: BTreeMap<&str, &str> = parameters.iter().copied().collect();
        all.extend([
            ("AccessKeyId", self.id.as_str()),
            ("Action", action),
            ("Format", "JSON"),
            ("RegionId", self.region.as_str()),
            ("SecurityToken", self.token.as_str()),
            ("SignatureMethod", "HMAC-SHA1"),
            ("SignatureNonce", nonce),
            ("SignatureVersion", "1.0"),
            ("Timestamp", time.as_str()),
            ("Version", "2016-01-20"),
        ]);
        let pairs: Vec<String> =
            all.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
        let mut query = Zeroizing::new(pairs.join("&"));
        let text = Zeroizing::new(format!("POST&%2F&{}", encode(&query)));
        let key = Zeroizing::new(format!("{}&", *self.secret));
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, key.as_bytes());
        let signature = STANDARD.encode(hmac::sign(&key, text.as_bytes()));
        query.push_str(&format!("&Signature={}", encode(&signature)));
        query
    }
}

/// Percent-encoding of RFC 3986, which leaves letters, digits and `-_.~` as they are.
fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => encoded.push(byte.into()),
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

fn random_id() -> Result<String, Error> {
    let mut id = [0; 16];
    rand::fill(&mut id).map_err(|_| Error::Client("the random generator failed".to_owned()))?;
    Ok(hex::encode(id))
}

const METADATA: &str = "http://100.100.100.200";
const ROLES: &str = "latest/meta-data/ram/security-credentials";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_encoded_and_signed_as_a_whole() {
        let key = AccessKey {
            id: "testid".to_owned(),
            secret: Zeroizing::new("testsecret".to_owned()),
            token: Zeroizing::new("a/b+c==".to_owned()),
            region: "cn-hangzhou".to_owned(),
        };

        let query = key.sign("GetSecretValue", &[("SecretName", "my secret*~")], "n1", Utc::at(1_440_938_160));

        // Computed with Python's hmac over the text that the vendor's description gives.
        assert_eq!(
            query.as_str(),
            "AccessKeyId=testid&Action=GetSecretValue&Format=JSON&RegionId=cn-hangzhou&SecretName=my%20secret%2A~\
             &SecurityToken=a%2Fb%2Bc%3D%3D&SignatureMethod=HMAC-SHA1&SignatureNonce=n1&SignatureVersion=1.0\
             &Timestamp=2015-08-30T12%3A36%3A00Z&Version=2016-01-20&Signature=6ZilBkaQQdFYR7A6KTrVWHR8rSA%3D"
        );
    }
}
