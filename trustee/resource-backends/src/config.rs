//! The part of a resource plugin's configuration that says where resources lie.

use serde::Deserialize;

use crate::naming::Naming;
use crate::{aliyun, aws, azure, gcp, own_store, vault};

/// Which place, and what it needs. The key `storage_backend_type` selects it; unknown keys are refused.
#[derive(Clone, Deserialize)]
#[serde(tag = "storage_backend_type")]
pub enum Config {
    /// The own store, `kvstorage`.
    #[serde(alias = "kvstorage")]
    KvStorage(own_store::Config),
    /// HashiCorp Vault or OpenBao, KV version 1 or 2.
    #[serde(alias = "vault")]
    Vault(vault::Config),
    /// AWS Secrets Manager.
    #[serde(alias = "aws")]
    Aws(aws::Config),
    /// Google Cloud Secret Manager.
    #[serde(alias = "gcp")]
    Gcp(gcp::Config),
    /// Azure Key Vault.
    #[serde(alias = "azure")]
    Azure(azure::Config),
    /// Alibaba Cloud KMS secrets.
    #[serde(alias = "aliyun")]
    Aliyun(aliyun::Config),
}

impl Config {
    /// Whether resources are told apart by their tag alone, so that repositories share what they hold.
    pub fn by_tag(&self) -> bool {
        match self {
            Self::Aws(config) => config.naming == Naming::Tag,
            Self::Gcp(config) => config.naming == Naming::Tag,
            Self::Aliyun(config) => config.naming == Naming::Tag,
            Self::KvStorage(_) | Self::Vault(_) | Self::Azure(_) => false,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::KvStorage(own_store::Config {})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_selected_by_its_name_and_its_alias() {
        let accepted = |text: &str| toml::from_str::<Config>(text).map(|_| ()).map_err(|e| e.message().to_owned());
        let azure = "vault_url = \"https://v.vault.azure.net\"";
        let aliyun = "client_key = \"{}\"\nkms_instance_id = \"k\"\npassword = \"p\"\ncert_pem = \"c\"";
        for (names, keys) in [
            (["KvStorage", "kvstorage"], ""),
            (["Vault", "vault"], "vault_url = \"https://v\"\ntoken = \"t\"\nmount_path = \"kv\"\nverify_ssl = false"),
            (["Aws", "aws"], "region = \"r\"\nendpoint_url = \"https://e\"\nnaming = \"path\""),
            (["Gcp", "gcp"], "project_id = \"p\"\nversion = \"3\"\nendpoint_url = \"https://e\""),
            (["Azure", "azure"], azure),
            (["Aliyun", "aliyun"], aliyun),
        ] {
            for name in names {
                let text = format!("storage_backend_type = \"{name}\"\n{keys}\n");
                assert_eq!(accepted(&text), Ok(()), "{text}");
                assert!(accepted(&format!("{text}typo = 1\n")).unwrap_err().contains("typo"), "{text}");
            }
        }
        assert!(accepted("storage_backend_type = \"Etcd\"").is_err());
        assert!(accepted("storage_backend_type = \"Gcp\"").unwrap_err().contains("project_id"));
        assert!(matches!(Config::default(), Config::KvStorage(_)));
    }
}
