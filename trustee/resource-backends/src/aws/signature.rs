//! AWS Signature Version 4 (AWS General Reference, "Signing AWS API requests").

use store::clock::Timestamp;
use zeroize::Zeroizing;

use crate::canonical::{Canonical, hmac_sha256, sha256};

/// Keys to sign with.
pub(super) struct Credentials {
    pub(super) access_key: String,
    pub(super) secret_key: Zeroizing<String>,
    /// Keys that end come with a token that is sent along.
    pub(super) session_token: Option<Zeroizing<String>>,
}

/// Signs for one service in one region.
pub(super) struct Signer<'a> {
    pub(super) credentials: &'a Credentials,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

/// What is signed; query and headers as in [`Canonical::new`].
pub(super) struct Signed<'a> {
    pub(super) method: &'a str,
    pub(super) host: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
    pub(super) headers: &'a [(&'a str, &'a str)],
    pub(super) body: &'a [u8],
}

impl Signer<'_> {
    /// The headers to add to the request.
    pub(super) fn sign(&self, request: &Signed<'_>, now: Timestamp) -> Vec<(&'static str, Zeroizing<String>)> {
        let time: String = now.to_string().chars().filter(|c| !matches!(c, '-' | ':')).collect();
        let day = time.split('T').next().unwrap_or_default();

        let mut headers = request.headers.to_vec();
        headers.extend([("host", request.host), ("x-amz-date", time.as_str())]);
        if let Some(token) = &self.credentials.session_token {
            headers.push(("x-amz-security-token", token.as_str()));
        }
        let payload = sha256(request.body);
        let canonical = Canonical::new(request.method, request.path, request.query, &headers, &payload);

        let scope = format!("{day}/{}/{}/aws4_request", self.region, self.service);
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", canonical.hash());
        let secret = Zeroizing::new([b"AWS4", self.credentials.secret_key.as_bytes()].concat());
        let mut key = hmac_sha256(&secret, day.as_bytes());
        for part in [self.region, self.service, "aws4_request"] {
            key = hmac_sha256(key.as_ref(), part.as_bytes());
        }
        let signature = hex::encode(hmac_sha256(key.as_ref(), text.as_bytes()));
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={}, Signature={signature}",
            self.credentials.access_key, canonical.signed_headers
        );

        let mut added = vec![("x-amz-date", Zeroizing::new(time)), ("authorization", Zeroizing::new(authorization))];
        if let Some(token) = &self.credentials.session_token {
            added.push(("x-amz-security-token", token.clone()));
        }
        added
    }
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

#[cfg(test)]
mod tests {
    use super::*;

    /// The examples that AWS publishes for checking implementations.
    #[test]
    fn the_published_examples_are_signed_alike() {
        let credentials = Credentials {
            access_key: "AKIDEXAMPLE".to_owned(),
            secret_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        };
        let form = [("content-type", "application/x-www-form-urlencoded; charset=utf-8")];
        for (service, host, query, headers, signature) in [
            (
                "service",
                "example.amazonaws.com",
                "",
                &[][..],
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "iam",
                "iam.amazonaws.com",
                "Action=ListUsers&Version=2010-05-08",
                &form[..],
                "5d672d79c15b13162d9279b0855cfba6789a8edb4c82c400e06b5924a6f2b5d7",
            ),
        ] {
            let signer = Signer { credentials: &credentials, region: "us-east-1", service };
            let request = Signed { method: "GET", host, path: "/", query, headers, body: b"" };
            let headers = signer.sign(&request, "2015-08-30T12:36:00Z".parse().unwrap());
            let (_, authorization) = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
            assert!(authorization.ends_with(signature), "{service}: {}", authorization.as_str());
        }
    }
}
