//! The reference of all keys, made from their doc comments: `trustee config-reference`, and docs/configuration.md.

use std::fmt::Write as _;

use serde_json::Value;

use super::section::{Documented, Key, Nested};
use super::{AsConfig, Config, ProviderConfig};

/// All keys of all files, in Markdown.
pub fn markdown() -> String {
    let mut text = INTRODUCTION.to_owned();
    file(&mut text, "The key broker: `trustee serve`, `kbs`", Config::nested());
    text.push_str(PLUGINS);
    file(&mut text, "An attestation service alone: `grpc-as`, `restful-as`", AsConfig::nested());
    file(&mut text, "A provider of reference values alone: `rvps`", ProviderConfig::nested());
    text
}

fn file(text: &mut String, title: &str, nested: Nested) {
    let Nested::Section(keys) = nested else { return };
    let _ = write!(text, "\n## {title}\n");
    section(text, "", &keys);
}

fn section(text: &mut String, path: &str, keys: &[Key]) {
    if keys.iter().any(|key| matches!(key.nested, Nested::Value)) {
        text.push_str("\n| Key | Default | Meaning |\n|---|---|---|\n");
    }
    for Key { name, doc, default, .. } in keys.iter().filter(|key| matches!(key.nested, Nested::Value)) {
        let _ = writeln!(text, "| `{name}` | {} | {} |", shown(default), sentence(doc));
    }
    for Key { name, doc, nested, .. } in keys {
        let path = if path.is_empty() { (*name).to_owned() } else { format!("{path}.{name}") };
        let (keys, heading) = match nested {
            Nested::Value => continue,
            Nested::Section(keys) => (keys, format!("[{path}]")),
            Nested::List(keys) => (keys, format!("[[{path}]]")),
        };
        let _ = write!(text, "\n### `{heading}`\n\n{}\n", sentence(doc));
        section(text, &path, keys);
    }
}

fn shown(default: &Value) -> String {
    match default {
        Value::Null => "none".to_owned(),
        Value::Object(_) => "`{}`".to_owned(),
        value => format!("`{value}`"),
    }
}

fn sentence(doc: &[&str]) -> String {
    doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ").replace('|', "\\|")
}

const INTRODUCTION: &str = "# Configuration

Files are TOML, YAML or JSON, as their name's ending says: `.toml`, `.yaml` or `.yml`, `.json`. An unknown key is an
error that names the nearest known one. This page is what `trustee config-reference` prints.

Variables: `KBS_CONFIG_FILE` names the key broker's file where no flag does; `POSTGRES_URL` goes before
`storage_backend.backends.postgres`; `TRUSTEE_SAMPLE_VERIFIER=1` turns the sample verifier on, with a warning, for tests
whose files have no key for it; `RUST_LOG` chooses what is logged (`info` if it is not set) and `LOG_FORMAT=json`
how; `OTEL_EXPORTER_OTLP_ENDPOINT` and the other variables of OpenTelemetry turn the export of traces on.

Keys of earlier releases are read where their meaning is clear, with a warning that names today's key; where it is not,
the error says what to write.

Certificates, private keys, certificate authorities, public keys and JWK sets are read again when their files change.
";

const PLUGINS: &str = r#"
### `[[plugins]]`

| `name` | Keys | Meaning |
|---|---|---|
| `resource` | `storage_backend_type` and those of the table below | Secrets, under `/kbs/v0/resource/repository/type/tag` |
| `nebula-ca` | `nebula_cert_bin_path`, `work_dir`, `ca_config` | Certificates for nodes of a Nebula network |
| `pkcs11` | `module`, `slot_index`, `pin` or `pin_file`, `lookup_label`, `rsa_mechanism` | Secrets and keys in a hardware security module |
| `external` | `backends`: `name`, `endpoint`, `ca_cert_path`, `client_cert_path`, `client_key_path`, `timeout_ms` | Plugins that are programs of their own, over gRPC |
| `provisioner` | `key_length` | Disk keys for confidential virtual machines |
| `sample` | `item` | An example |

| `storage_backend_type` | Keys | Meaning |
|---|---|---|
| `kvstorage` | none | The storage under `[storage_backend]` |
| `Vault` | `vault_url`, `token` or `token_file` or `login`, `mount_path`, `kv_version`, `namespace`, `verify_ssl`, `ca_certs` | HashiCorp Vault or OpenBao |
| `Aws` | `region`, `endpoint_url`, `naming` | AWS Secrets Manager |
| `Gcp` | `project_id`, `version`, `endpoint_url`, `credentials_file`, `naming` | Google Cloud Secret Manager |
| `Azure` | `vault_url`, `tenant_id`, `client_id`, `client_secret_file`, `federated_token_file`, `authority_url`, `audience` | Azure Key Vault |
| `Aliyun` | `client_key`, `kms_instance_id`, `password`, `cert_pem` | Alibaba Cloud KMS |
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_in_docs_is_what_the_doc_comments_say() {
        let page = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/configuration.md");
        let written = std::fs::read_to_string(page).unwrap_or_default();
        assert!(
            written == markdown(),
            "docs/configuration.md is old; next: trustee config-reference > docs/configuration.md"
        );
    }
}
