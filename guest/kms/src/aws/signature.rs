//! AWS Signature Version 4 (AWS General Reference, "Signing AWS API requests"), for POST requests to the root.

use aws_lc_rs::{digest, hmac};
use zeroize::Zeroizing;

use super::Credential;
use crate::time::Utc;

/// Signs for one service in one region.
pub(super) struct Signer<'a> {
    pub(super) credential: &'a Credential,
    pub(super) region: &'a str,
    pub(super) service: &'a str,
}

impl Signer<'_> {
    /// The headers to add to a request that has `headers` besides `host`.
    pub(super) fn sign(
        &self,
        host: &str,
        headers: &[(&str, &str)],
        body: &[u8],
        now: Utc,
    ) -> Vec<(&'static str, Zeroizing<String>)> {
        let time = now.compact();
        let mut signed = headers.to_vec();
        signed.extend([("host", host), ("x-amz-date", time.as_str())]);
        if let Some(token) = &self.credential.session_token {
            signed.push(("x-amz-security-token", token.as_str()));
        }
        signed.sort_unstable();
        let lines: Zeroizing<String> =
            Zeroizing::new(signed.iter().map(|(name, value)| format!("{name}:{}\n", value.trim())).collect());
        let names = signed.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(";");
        let canonical = Zeroizing::new(format!("POST\n/\n\n{}\n{names}\n{}", *lines, sha256(body)));

        let scope = format!("{}/{}/{}/aws4_request", now.day(), self.region, self.service);
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", sha256(canonical.as_bytes()));
        let secret = Zeroizing::new([b"AWS4", self.credential.secret_access_key.as_bytes()].concat());
        let mut key = hmac_sha256(&secret, now.day().as_bytes());
        for part in [self.region, self.service, "aws4_request"] {
            key = hmac_sha256(key.as_ref(), part.as_bytes());
        }
        let signature = hex::encode(hmac_sha256(key.as_ref(), text.as_bytes()));
        let authorization = format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.credential.access_key_id
        );
        let mut added = vec![("x-amz-date", Zeroizing::new(time)), ("authorization", Zeroizing::new(authorization))];
        if let Some(token) = &self.credential.session_token {
            added.push(("x-amz-security-token", token.clone()));
        }
        added
    }
}

fn sha256(data: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, data))
}

fn hmac_sha256(key: &[u8], data: &[u8]) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), data)
}

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

#[cfg(test)]
mod tests {
    use super::*;

    /// "post-vanilla" of the suite that AWS publishes for checking implementations.
    #[test]
    fn the_published_example_is_signed_alike() {
        let credential = Credential {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: Zeroizing::new("wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".to_owned()),
            session_token: None,
        };
        let signer = Signer { credential: &credential, region: "us-east-1", service: "service" };

        let headers = signer.sign("example.amazonaws.com", &[], b"", Utc::at(1_440_938_160));

        let (_, authorization) = headers.iter().find(|(name, _)| *name == "authorization").unwrap();
        assert_eq!(
            authorization.as_str(),
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
             SignedHeaders=host;x-amz-date, \
             Signature=5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b"
        );
    }
}
