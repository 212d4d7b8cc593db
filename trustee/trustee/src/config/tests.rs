//! Configuration files as owners write them, and what is said about the wrong ones.

use super::*;
use crate::config::attestation::{RvpsType, ServiceType};
use section::Nested;

mod samples;

/// Every key that a key broker's file has had before, with values of our own.
const KNOWN: &str = r#"
session_storage_type = "memory"

[http_server]
sockets = ["0.0.0.0:9443", "[::1]:9443"]
insecure_http = false
private_key = "/keys/server.key"
certificate = "/keys/server.pem"
payload_request_size = 3
worker_count = 3
tls_profile = "custom"
tls_min_version = "1.3"
tls_max_version = "1.3"
tls_ciphers = "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384"
tls_groups = "X25519MLKEM768:secp384r1"

[attestation_token]
trusted_certs_paths = ["/keys/ca.pem"]
trusted_jwk_sets = ["https://issuer.example/keys", "file:///keys/set.json"]
insecure_header_jwk = false
extra_teekey_paths = ["/guest/key"]

[attestation_service]
type = "coco_as_builtin"
timeout = 7
storage_type = "LocalJson"

[attestation_service.attestation_token_broker]
duration_min = 9
issuer_name = "appraiser"
developer_name = "https://appraiser.example"
build_name = "appraiser 7"
profile_name = "tag:appraiser.example,2026:token"
verbose_token = true

[attestation_service.attestation_token_broker.signer]
key_path = "/keys/token.key"
cert_url = "https://appraiser.example/chain"
cert_path = "/keys/token.pem"

[attestation_service.rvps_config]
type = "BuiltIn"
storage_type = "LocalFs"
extractors = { swid_extractor = {} }

[attestation_service.verifier_config.nvidia_verifier]
type = "Remote"
verifier_url = "https://gpus.example"
[attestation_service.verifier_config.tpm_verifier]
trusted_ak_keys_dir = "/keys/tpm"
max_trusted_ak_keys = 5
[attestation_service.verifier_config.snp_verifier]
vcek_sources = [{ type = "OfflineStore", path = "/keys/amd" }, { type = "KDS", base_url = "https://amd.example" }]
[attestation_service.verifier_config.dcap_verifier]
collateral_service = "https://pccs.example"
use_secure_cert = false
tcb_update_type = "standard"
[attestation_service.verifier_config.nvidia_dpu_verifier]
root_ca_cert_path = "/keys/dpu.pem"
max_cert_age_secs = 60

[storage_backend]
storage_type = "Postgres"
[storage_backend.backends.local_fs]
dir_path = "/data/files"
[storage_backend.backends.local_json]
file_dir_path = "/data/json"
[storage_backend.backends.postgres]
db = "broker"
username = "broker"
password = "p"
port = 6432
host = "database.example"

[admin]
authorization_mode = "AuthenticatedAuthorization"
[admin.authentication.bearer_jwt]
identity_providers = [
    { issuer = "owner", audience = "broker", public_key_uri = "/keys/owner.pub" },
    { jwk_set_uri = "https://people.example/keys" },
]
[admin.authorization.regex_acl]
acls = [{ role = "owner", allowed_endpoints = "^/kbs/v0/.*$" }]

[[plugins]]
name = "resource"
storage_backend_type = "kvstorage"
"#;

fn read_as<T: File>(ending: &str, text: &str) -> Result<Read<T>, String> {
    let file = tempfile::Builder::new().suffix(ending).tempfile().unwrap();
    std::fs::write(file.path(), text).unwrap();
    T::read(file.path()).map_err(|e| e.to_string())
}

fn read(text: &str) -> Result<Read<Config>, String> {
    read_as(".toml", text)
}

const PLAIN: &str = "[http_server]\ninsecure_http = true\n";

#[test]
fn every_known_key_is_read_from_toml_yaml_and_json() {
    let value: Value = toml::from_str(KNOWN).unwrap();
    let json = serde_json::to_string_pretty(&value).unwrap();
    // JSON is YAML; a hand-written file has the other style.
    let yaml = "http_server:\n  insecure_http: true\n  sockets: ['0.0.0.0:1']\nadmin:\n  authorization_mode: DenyAll\n\
                plugins:\n  - name: resource\n    storage_backend_type: kvstorage\n";
    assert_eq!(read_as::<Config>(".yml", yaml).unwrap().config.http_server.sockets, ["0.0.0.0:1"]);
    for (ending, text) in [(".toml", KNOWN), (".json", &json), (".yaml", &json)] {
        let Read { config, warnings } = read_as::<Config>(ending, text).unwrap();
        assert_eq!(config.http_server.sockets, ["0.0.0.0:9443", "[::1]:9443"]);
        assert_eq!(config.http_server.tls_profile().groups.as_deref(), Some("X25519MLKEM768:secp384r1"));
        assert_eq!(config.http_server.tls_files().unwrap().private_key, Path::new("/keys/server.key"));
        assert_eq!(config.attestation_token.extra_teekey_paths, ["/guest/key"]);
        let service = config.attestation_service.as_ref().unwrap();
        assert_eq!((service.timeout, service.attestation_token_broker.duration_min), (7, 9));
        assert_eq!(service.verifier_config.snp_verifier.vcek_sources.len(), 2);
        assert_eq!(service.rvps_config.storage_type, Some(StorageType::LocalFs));
        assert_eq!(config.storage_backend.backends.postgres.port, 6432);
        assert_eq!(config.admin.authentication.bearer_jwt.identity_providers.len(), 2);
        assert_eq!(config.plugins().unwrap().len(), 1);
        assert!(warnings.iter().any(|warning| warning.contains("snp_verifier")), "{warnings:?}");
    }
}

#[test]
fn every_key_of_the_reference_can_be_written_with_its_default() {
    fn documents(keys: &[section::Key]) -> Value {
        let known = |key: &&section::Key| !key.default.is_null() || !matches!(key.nested, Nested::Value);
        let entry = |key: &section::Key| {
            let value = match &key.nested {
                Nested::Value => key.default.clone(),
                Nested::Section(keys) => documents(keys),
                Nested::List(keys) => Value::Array(vec![documents(keys)]),
            };
            (key.name.to_owned(), value)
        };
        Value::Object(keys.iter().filter(known).map(entry).collect())
    }
    let Nested::Section(keys) = Config::nested() else { panic!() };
    let config: Result<Config, _> = serde_path_to_error::deserialize(&documents(&keys));
    config.map(|_| ()).unwrap();
    let Nested::Section(keys) = AsConfig::nested() else { panic!() };
    serde_path_to_error::deserialize::<_, AsConfig>(&documents(&keys)).map(|_| ()).unwrap();
}

#[test]
fn files_of_other_shapes_are_read_too() {
    for (text, mode) in [
        // A passport's second half: no attestation service of its own.
        (
            "[attestation_token]\ntrusted_certs_paths = [\"/ca.pem\"]\n[storage_backend]\nstorage_type = \"LocalFs\"\n\
          [storage_backend.backends.local_fs]\ndir_path = \"/d\"\n[admin]\nauthorization_mode = \"InsecureAllowAll\"\n",
            AuthorizationMode::InsecureAllowAll,
        ),
        // An attestation service elsewhere, and sessions in memory.
        (
            "session_storage_type = \"Memory\"\n[attestation_service]\ntype = \"coco_as_grpc\"\nas_addr = \"http://as:50004\"\n\
          pool_size = 200\ntimeout = 30\n[admin]\ntype = \"DenyAll\"\n[storage_backend]\nstorage_type = \"local_fs\"\n",
            AuthorizationMode::DenyAll,
        ),
        (
            "[attestation_service]\ntype = \"intel_ta\"\nbase_url = \"https://api.example\"\napi_key = \"k\"\n\
          certs_file = \"https://portal.example\"\npolicy_ids = [\"a\"]\nallow_unmatched_policy = true\n",
            AuthorizationMode::DenyAll,
        ),
        (
            "[[plugins]]\nname = \"resource\"\nstorage_backend_type = \"Vault\"\nvault_url = \"https://vault.example\"\n\
          token = \"t\"\nmount_path = \"secret\"\nverify_ssl = true\nca_certs = [\"/ca.pem\"]\n",
            AuthorizationMode::DenyAll,
        ),
    ] {
        // Root keys come first.
        let text = format!("{text}{PLAIN}");
        assert_eq!(read(&text).unwrap().config.admin.authorization_mode, mode, "{text}");
    }
}

#[test]
fn older_keys_move_to_their_new_places() {
    let old = "[http_server]\ninsecure_http = true\n[storage]\ndirectory = \"/d\"\n[attestation]\nsample_verifier = true\n\
               token_minutes = 7\n[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\npublic_key = \"/k\"\n\
               roles = [\"admin\"]\n[audit]\npath = \"/a\"\n";
    let Read { config, warnings } = read(old).unwrap();
    assert_eq!(config.storage_backend.directory(), Some(Path::new("/d")));
    let service = config.attestation_service.unwrap();
    assert!(service.sample_verifier && service.attestation_token_broker.duration_min == 7);
    assert_eq!(config.admin.authorization.regex_acl.acls[0].role.as_deref(), Some("admin"));
    assert!(warnings.len() >= 4, "{warnings:?}");

    let old = "[attestation_token]\ninsecure_key = true\n[attestation_service]\ntype = \"coco_as_builtin\"\nwork_dir = \"/w\"\n\
               policy_engine = \"opa\"\n[attestation_service.attestation_token_broker]\ntype = \"Ear\"\nduration_min = 5\n";
    let Read { config, warnings } = read(&format!("{PLAIN}{old}")).unwrap();
    assert!(config.attestation_token.insecure_header_jwk);
    assert!(warnings.iter().any(|warning| warning.contains("work_dir")), "{warnings:?}");
}

#[test]
fn defaults_are_the_safe_ones() {
    let Read { config, warnings } = read(PLAIN).unwrap();
    assert_eq!(config.http_server.sockets, ["127.0.0.1:8080"]);
    assert_eq!(config.admin.authorization_mode, AuthorizationMode::DenyAll);
    assert!(config.attestation_service.is_none() && !AttestationService::default().sample_verifier);
    assert!(!config.attestation_token.insecure_header_jwk && !config.attestation_token.allow_rsa1_5);
    assert!(config.http_server.require_client_certificate);
    assert_eq!(warnings.len(), 1, "only that nothing is kept: {warnings:?}");
    for (key, said) in [
        ("[admin]\nauthorization_mode = \"InsecureAllowAll\"\n", "anybody"),
        ("[attestation_service]\nsample_verifier = true\n", "anyone can make the evidence"),
        ("[attestation_token]\ninsecure_header_jwk = true\n", "anyone can issue"),
        ("[attestation_service]\nas_addr = \"http://a:1\"\n", "says nothing"),
    ] {
        let warnings = read(&format!("{PLAIN}{key}")).unwrap().warnings;
        assert!(warnings.iter().any(|warning| warning.contains(said)), "{key}: {warnings:?}");
    }
}

#[test]
fn an_unknown_key_is_named_with_its_place_and_the_nearest_known_one() {
    for (text, expected) in [
        ("[http_server]\nsokets = []\n", "http_server.sokets is no key: the nearest is http_server.sockets"),
        ("[htp_server]\n", "htp_server is no key: the nearest is http_server"),
        ("[admin]\nauthorisation_mode = \"DenyAll\"\n", "the nearest is admin.authorization_mode"),
        ("[http_server]\npool_size = 3\n", "it belongs to attestation_service.pool_size"),
        (
            "[attestation_service.attestation_token_broker.signer]\nkey_pth = \"k\"\n",
            "attestation_service.attestation_token_broker.signer.key_pth is no key: the nearest is \
             attestation_service.attestation_token_broker.signer.key_path",
        ),
        (
            "[admin.authorization.regex_acl]\nacls = [{ rle = \"a\" }]\n",
            "admin.authorization.regex_acl.acls[0].rle is no key: the nearest is admin.authorization.regex_acl.acls[0].role",
        ),
        ("[storage_backend]\nstorage_type = \"Postgress\"\n", "storage_backend.storage_type can't be \"Postgress\""),
        (
            "[http_server]\ninsecure_http = true\n[[plugins]]\nname = \"resource\"\nstorage_backend_type = \"Vault\"\n\
             vault_ulr = \"x\"\n",
            "plugins[0]: vault_ulr is no key: the nearest is vault_url",
        ),
    ] {
        let error = read(text).map(|_| ()).unwrap_err();
        assert!(error.contains(expected) && error.contains("; next: ") && !error.contains('\n'), "{text} gave {error}");
    }
}

#[test]
fn what_can_t_be_is_refused_with_what_to_do() {
    let redis = "Redis is not offered";
    for (text, expected) in [
        ("[storage_backend]\nstorage_type = \"Redis\"\n", redis),
        ("session_storage_type = \"Redis\"\n", redis),
        ("[attestation_service]\nstorage_type = \"redis\"\n", redis),
        ("[attestation_service.rvps_config]\nstorage_type = \"Redis\"\n", redis),
        ("[admin]\ntype = \"Simple\"\n", "identity_providers"),
        ("[admin]\ntype = \"Simple\"\npersonas = [{ id = \"a\" }]\n", "identity_providers"),
        ("[admin]\nauth_public_key = \"/k\"\nauthorization_mode = \"DenyAll\"\n", "identity_providers"),
        ("[admin]\nauth_public_key = \"/k\"\nauthorization = {}\n", "identity_providers"),
        ("[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n", "identity_providers"),
        ("[policy_engine]\npolicy_path = \"/p\"\n", "set-resource-policy"),
        (
            "[storage_backend]\nstorage_type = \"Sqlite\"\n[[plugins]]\nname = \"resource\"\ntype = \"LocalFs\"\n",
            "beside [storage_backend]",
        ),
        ("[[plugins]]\nname = \"resource\"\ndir_path = \"/d\"\n", "under storage_backend"),
        ("[attestation_service.rvps_config]\nstore_type = \"Sled\"\n", "storage_type"),
        (
            "[attestation_service.rvps_config]\nstore_type = \"LocalFs\"\nstore_config = { file_path = \"/a\" }\n\
             [storage_backend.backends.local_fs]\ndir_path = \"/b\"\n",
            "write that folder once",
        ),
        ("[attestation_service.rvps_config]\nstorage_type = \"LocalFs\"\nstorage = { type = \"LocalFs\" }\n", "twice"),
        ("[attestation_service]\ntype = \"coco_as_grpc\"\ntls_mode = \"tls\"\n", "write https://"),
        ("[attestation_service.policy_id_map]\na = []\n", "\"a\" has no policy"),
        ("[attestation_service.policy_id_map]\na = 1\n", "the id of a policy, or a list of ids"),
        (
            "[attestation_policies]\na = \"x\"\n[attestation_service.policy_id_map]\na = \"y\"\n",
            "attestation_policies is no key",
        ),
        ("[attestation_service]\ntimeout = 1441\n", "timeout"),
        ("[attestation_service.rvps_config]\nextractors = { typo = {} }\n", "swid_extractor"),
        ("[attestation_service]\ntype = \"intel_ta\"\n", "base_url"),
        ("[attestation_service]\ntimeout = 0\n", "timeout"),
        ("[attestation_service.attestation_token_broker]\nduration_min = 0\n", "duration_min"),
        ("[storage_backend.master_key]\nfile = \"/k\"\nenv = \"K\"\n", "more than one"),
        ("[storage_backend.master_key.pkcs11]\nmodule = \"/m\"\n", "token_label"),
        ("[[tenants]]\n", "tenants[0] needs name"),
        ("[[plugins]]\nstorage_backend_type = \"Vault\"\n", "plugins[0] needs name"),
    ] {
        let error = read(&format!("{text}{PLAIN}")).map(|_| ()).unwrap_err();
        assert!(error.contains(expected) && error.contains("; next: ") && !error.contains('\n'), "{text} gave {error}");
    }
    for (text, expected) in [
        ("", "needs certificate and private_key"),
        ("[http_server]\ninsecure_http = true\nprivate_key = \"/k\"\n", "remove one"),
        ("[http_server]\ninsecure_http = true\nsockets = []\n", "sockets is empty"),
        ("[http_server]\ninsecure_http = true\npayload_request_size = 65\n", "payload_request_size"),
        ("[http_server\n", "line 1"),
    ] {
        assert!(read(text).map(|_| ()).unwrap_err().contains(expected), "{text}");
    }
}

#[test]
fn no_error_repeats_a_secret() {
    for (ending, text) in [
        (".toml", "[storage_backend.backends.postgres]\npassword = [\"hunter2\"]\n"),
        (".toml", "[attestation_service]\napi_key = { k = \"hunter2\" }\n"),
        (".toml", "[storage_backend.backends.postgres]\npassword = \"hunter2\n"),
        (".yaml", "storage_backend:\n  backends:\n    postgres:\n      password: \"hunter2\n  x: [\n"),
        (".json", "{\"storage_backend\": {\"backends\": {\"postgres\": {\"password\": \"hunter2"),
        (
            ".toml",
            "[[plugins]]\nname = \"resource\"\nstorage_backend_type = \"Vault\"\nvault_url = \"u\"\ntoken = 1702\n",
        ),
    ] {
        let error = read_as::<Config>(ending, text).map(|_| ()).unwrap_err();
        assert!(!error.contains("hunter2") && !error.contains("1702") && error.contains("; next: "), "{error}");
    }
}

#[test]
fn the_other_roles_have_files_of_their_own() {
    let text = r#"{ "work_dir": "/w", "policy_engine": "opa",
        "storage_backend": { "storage_type": "Postgres", "backends": { "postgres": {} } },
        "rvps_config": { "type": "GrpcRemote", "address": "http://rvps:50003" },
        "attestation_token_broker": { "type": "Ear", "duration_min": 6, "signer": { "key_path": "/k", "cert_path": "/c" } },
        "verifier_config": { "tpm_verifier": { "max_trusted_ak_keys": 3 } } }"#;
    let Read { config, warnings } = read_as::<AsConfig>(".json", text).unwrap();
    assert_eq!(config.rvps_config.r#type, RvpsType::GrpcRemote);
    assert_eq!(config.attestation_token_broker.duration_min, 6);
    assert_eq!(warnings.len(), 4, "{warnings:?}");
    assert!(read_as::<AsConfig>(".json", "{ \"rvps_confg\": {} }").is_err());

    let text = r#"{ "storage": { "storage_type": "LocalFs", "backends": { "local_fs": { "dir_path": "/d" },
        "local_json": { "file_dir_path": "/j" }, "postgres": {} } }, "extractors": { "swid_extractor": {} } }"#;
    let config = read_as::<ProviderConfig>(".json", text).unwrap().config;
    assert_eq!(config.storage.directory(), Some(Path::new("/d")));
    assert!(!config.allow_unsigned, "whoever reaches the port could register");
    // A file in the older form once meant a storage in memory.
    for text in [
        r#"{ "storage": { "type": "Sled", "file_path": "/f" } }"#,
        r#"{ "storage": { "type": "LocalFs", "storage_type": "Memory" } }"#,
        r#"{ "storage": {}, "store_type": "LocalFs" }"#,
        "{",
        "[]",
        r#"{ "storag": {} }"#,
    ] {
        assert!(read_as::<ProviderConfig>(".json", text).is_err(), "{text}");
    }
    assert!(ProviderConfig::read(Path::new("/nowhere/rvps.json")).is_err());
    assert!(read_as::<Config>(".conf", PLAIN).map(|_| ()).unwrap_err().contains(".toml, .yaml or .json"));
    let section = read(&format!("{PLAIN}[attestation_service]\ntype = \"coco_as_builtin\"\n")).unwrap().config;
    assert_eq!(section.attestation_service.unwrap().r#type, ServiceType::BuiltIn);
}
