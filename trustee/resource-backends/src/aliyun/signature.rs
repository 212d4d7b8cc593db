//! Alibaba Cloud's signature of version 3, `ACS3-HMAC-SHA256`, for interfaces of the RPC kind.

use zeroize::Zeroizing;

use crate::canonical::{Canonical, hmac_sha256};

/// An access key to sign with.
pub(super) struct AccessKey {
    pub(super) id: String,
    pub(super) secret: Zeroizing<String>,
}

impl AccessKey {
    /// The value of the header `Authorization`; query and headers as in [`Canonical::new`].
    pub(super) fn sign(&self, query: &str, headers: &[(&str, &str)], payload_hash: &str) -> Zeroizing<String> {
        let canonical = Canonical::new("POST", "/", query, headers, payload_hash);
        let text = format!("{ALGORITHM}\n{}", canonical.hash());
        let signature = hex::encode(hmac_sha256(self.secret.as_bytes(), text.as_bytes()));
        Zeroizing::new(format!(
            "{ALGORITHM} Credential={},SignedHeaders={},Signature={signature}",
            self.id, canonical.signed_headers
        ))
    }
}

const ALGORITHM: &str = "ACS3-HMAC-SHA256";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::canonical::sha256;

    /// The example of the vendor's description of this signature.
    #[test]
    fn the_published_example_is_signed_alike() {
        let key =
            AccessKey { id: "YourAccessKeyId".to_owned(), secret: Zeroizing::new("YourAccessKeySecret".to_owned()) };
        let payload = sha256(b"");
        let headers = [
            ("host", "ecs.cn-shanghai.aliyuncs.com"),
            ("x-acs-action", "RunInstances"),
            ("x-acs-content-sha256", payload.as_str()),
            ("x-acs-date", "2023-10-26T10:22:32Z"),
            ("x-acs-signature-nonce", "3156853299f313e23d1673dc12e1703d"),
            ("x-acs-version", "2014-05-26"),
        ];
        let query = "ImageId=win2019_1809_x64_dtc_zh-cn_40G_alibase_20230811.vhd&RegionId=cn-shanghai";
        let authorization = key.sign(query, &headers, &payload);
        assert!(
            authorization.ends_with("Signature=06563a9e1b43f5dfe96b81484da74bceab24a1d853912eee15083a6f0f3283c0"),
            "{}",
            authorization.as_str()
        );
    }
}
