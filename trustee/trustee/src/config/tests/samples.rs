//! Files of the shapes that other Trustees' samples and tests have, of today and of earlier releases.

use super::*;

/// A file's name, and a word of each warning, or of the error.
type Sample = (&'static str, Expected);
type Expected = Result<&'static [&'static str], &'static str>;

const SIMPLE_ADMIN: &str =
    "[admin]\ntype = \"Simple\"\n[[admin.personas]]\nid = \"owner\"\npublic_key_path = \"k.pem\"\n";
const JWT_ADMIN: &str = "[admin]\nauthorization_mode = \"AuthenticatedAuthorization\"\n[admin.authentication.bearer_jwt]\n\
                         identity_providers = [{ issuer = \"i\", audience = \"a\", public_key_uri = \"./k.pem\" }]\n\
                         [admin.authorization.regex_acl]\nacls = [{ role = \"r\", allowed_endpoints = \"^/kbs/.+$\" }]\n";
const FOLDER: &str =
    "[storage_backend]\nstorage_type = \"LocalFs\"\n[storage_backend.backends.local_fs]\ndir_path = \"./d\"\n";
const TLS: &str = "[http_server]\nsockets = [\"127.0.0.1:9080\"]\nprivate_key = \"./s.key\"\ncertificate = \"./s.crt\"\n\
                   insecure_http = false\n";
const BUILT_IN: &str = "[attestation_service]\ntype = \"coco_as_builtin\"\n[attestation_service.attestation_token_broker]\n\
                        duration_min = 6\n[attestation_service.attestation_token_broker.signer]\nkey_path = \"./t.key\"\n\
                        cert_path = \"./t.pem\"\n[attestation_service.rvps_config]\ntype = \"BuiltIn\"\n";
const RESOURCES: &str = "[[plugins]]\nname = \"resource\"\nstorage_backend_type = \"kvstorage\"\n";
const OLD_RESOURCES: &str = "[[plugins]]\nname = \"resource\"\ntype = \"LocalFs\"\ndir_path = \"/r\"\n";
const INTEL: &str = "[attestation_token]\ntrusted_jwk_sets = [\"https://portal.example\"]\n[attestation_service]\n\
                     type = \"intel_ta\"\nbase_url = \"https://api.example\"\napi_key = \"k\"\ncerts_file = \"file:///c\"\n\
                     timeout = 600\n";
const EXTERNAL: &str = "[[plugins]]\nname = \"external\"\nbackends = [{ name = \"e\", endpoint = \"https://127.0.0.1:9051\", \
                        ca_cert_path = \"./ca.pem\", timeout_ms = 4000 }]\n";
const MEMORY: &str = "everything is lost";
const ANYBODY: &str = "anybody";

/// Every sample is the sum of these parts.
fn broker_samples() -> Vec<(Sample, String)> {
    let open = "[admin]\nauthorization_mode = \"InsecureAllowAll\"\n";
    let typed_open = "[admin]\ntype = \"InsecureAllowAll\"\n";
    let grpc =
        "[attestation_service]\ntype = \"coco_as_grpc\"\nas_addr = \"http://as.example:9004\"\npool_size = 150\n";
    let grpc_tls = "[attestation_service]\ntype = \"coco_as_grpc\"\nas_addr = \"https://as.example:9004\"\n\
                    tls_mode = \"tls\"\nca_cert_path = \"./ca.pem\"\n";
    let tpm =
        "[attestation_service.verifier_config.tpm_verifier]\ntrusted_ak_keys_dir = \"./ak\"\nmax_trusted_ak_keys = 9\n";
    let certificates = "[attestation_token]\ntrusted_certs_paths = [\"./ca.pem\"]\n";
    let old_key = "[attestation_token]\ninsecure_key = true\n";
    let old_service = "[attestation_service]\ntype = \"coco_as_builtin\"\nwork_dir = \"/w\"\npolicy_engine = \"opa\"\n\
                       attestation_token_broker = \"Simple\"\n[attestation_service.attestation_token_config]\n\
                       duration_min = 6\n[attestation_service.rvps_config]\nstore_type = \"LocalFs\"\nremote_addr = \"\"\n";
    let old_admin = "[admin]\nauth_public_key = \"./k.pem\"\n";
    let nested_admin = "[[admin.admin_backend.Simple.personas]]\nid = \"owner\"\npublic_key_path = \"./k.pem\"\n";
    let vault = "[[plugins]]\nname = \"resource\"\ntype = \"Vault\"\nvault_url = \"https://127.0.0.1:9200\"\ntoken = \"t\"\n\
                 mount_path = \"m\"\nverify_ssl = true\nca_certs = [\"./vault.pem\"]\n";
    let policy_file = "[policy_engine]\npolicy_path = \"./p.rego\"\n";
    let map = "[attestation_service.policy_id_map]\nann = [\"strict\"]\nben = [\"cpu\", \"gpu\"]\ncleo = \"loose\"\n";
    let join = |parts: &[&str]| parts.concat();
    vec![
        (("kbs-config, native TLS", Ok(&[])), join(&[TLS, certificates, BUILT_IN, FOLDER, JWT_ADMIN, RESOURCES])),
        (
            ("kbs-config, plain HTTP", Ok(&[ANYBODY])),
            join(&[PLAIN, "[attestation_token]\n", BUILT_IN, FOLDER, open, RESOURCES]),
        ),
        (("kbs-config-grpc", Ok(&["insecure_header_jwk", ANYBODY, "anyone can issue"])), {
            join(&[PLAIN, old_key, grpc, FOLDER, open, RESOURCES])
        }),
        (("kbs-config-grpc over TLS", Ok(&[])), join(&[PLAIN, certificates, grpc_tls, FOLDER, JWT_ADMIN])),
        (("kbs-config-intel-trust-authority", Ok(&["authorization_mode", ANYBODY, "LocalFs"])), {
            join(&[PLAIN, typed_open, INTEL, OLD_RESOURCES])
        }),
        (("kubernetes base", Ok(&["role", "insecure_header_jwk", "anyone can issue", "LocalFs"])), {
            let section = "[attestation_service]\ntype = \"coco_as_builtin\"\n";
            join(&[PLAIN, old_key, section, nested_admin, OLD_RESOURCES])
        }),
        (
            (
                "kubernetes base of an earlier release",
                Ok(&[
                    "role",
                    "insecure_header_jwk",
                    "anyone can issue",
                    "work_dir",
                    "policy_engine",
                    "attestation_token_broker says nothing",
                    "attestation_token_config is called",
                    "remote_addr",
                    "rvps_config has a storage in an older form",
                    MEMORY,
                ]),
            ),
            join(&[PLAIN, old_key, old_service, old_admin]),
        ),
        (("kubernetes ita", Ok(&["role", "LocalFs"])), join(&[PLAIN, INTEL, nested_admin, OLD_RESOURCES])),
        (
            ("docker-compose", Ok(&["role", "authorization_mode", "backend is called", "LocalFs"])),
            join(&[PLAIN, certificates, grpc, SIMPLE_ADMIN, OLD_RESOURCES, "backend = \"kvstorage\"\n"]),
        ),
        (("Helm chart", Ok(&["session_storage_type"])), {
            let session = "session_storage_type = \"memory\"\n";
            join(&[session, PLAIN, certificates, grpc, "timeout = 1440\n", JWT_ADMIN, RESOURCES, FOLDER])
        }),
        (("policy selection", Ok(&["ben has several", MEMORY])), join(&[PLAIN, BUILT_IN, map])),
        (("auth required for metrics", Ok(&[MEMORY])), join(&[PLAIN, "require_admin_auth_metrics = true\n"])),
        (
            ("test kbs", Ok(&["authorization_mode", "role", "backend is called", "tpm_verifier"])),
            join(&[
                TLS,
                certificates,
                BUILT_IN,
                tpm,
                FOLDER,
                SIMPLE_ADMIN,
                "[[plugins]]\nname = \"resource\"\n\
                    backend = \"kvstorage\"\n",
            ]),
        ),
        (("test kbs of an earlier release", Err("set-resource-policy")), {
            join(&[TLS, certificates, BUILT_IN, policy_file, old_admin, OLD_RESOURCES])
        }),
        (("test resource-kbs", Ok(&[])), join(&[PLAIN, JWT_ADMIN, certificates, FOLDER, RESOURCES])),
        (
            ("test resource-kbs-vault", Ok(&["role", "type is called storage_backend_type", MEMORY])),
            join(&[PLAIN, old_admin, certificates, vault]),
        ),
        (
            ("test resource-kbs-vault of an earlier release", Err("set-resource-policy")),
            join(&[PLAIN, old_admin, certificates, policy_file, vault]),
        ),
        (("test external-plugin", Ok(&[ANYBODY, "anyone can issue", MEMORY])), {
            let header = "[attestation_token]\ninsecure_header_jwk = true\n";
            join(&[PLAIN, header, open, BUILT_IN, EXTERNAL])
        }),
        (
            ("test external-plugin-tls", Ok(&["authorization_mode", ANYBODY, MEMORY])),
            join(&[PLAIN, typed_open, BUILT_IN, EXTERNAL]),
        ),
        (("test external-plugin-attest", Ok(&[MEMORY])), join(&[TLS, certificates, BUILT_IN, JWT_ADMIN, EXTERNAL])),
        (
            ("an API without administrators' keys", Ok(&["insecure_api", ANYBODY, "LocalFs"])),
            join(&[PLAIN, "[admin]\ninsecure_api = true\n", OLD_RESOURCES]),
        ),
    ]
}

#[test]
fn files_of_other_key_brokers_are_read_or_refused_with_the_reason() {
    for ((name, expected), text) in broker_samples() {
        check(name, read(&text), expected);
    }
}

#[test]
fn files_of_other_attestation_services_and_providers_are_read() {
    let signer = r#""signer": { "key_path": "/k", "cert_path": "/c" }"#;
    let remote = r#""rvps_config": { "type": "GrpcRemote", "address": "http://rvps.example:9003" }"#;
    let in_folder =
        r#""storage_backend": { "storage_type": "LocalFs", "backends": { "local_fs": { "dir_path": "/s" } } }"#;
    let samples: &[(&str, String, Expected)] = &[
        ("as-config", format!(r#"{{ {in_folder}, {remote}, "attestation_token_broker": {{ {signer} }} }}"#), Ok(&[])),
        (
            "as-config of an earlier release",
            format!(
                r#"{{ "work_dir": "/w", "policy_engine": "opa", {remote},
                      "attestation_token_broker": {{ "type": "Ear", "policy_dir": "/p", "duration_min": 5, {signer} }} }}"#
            ),
            Ok(&["work_dir", "policy_engine", "attestation_token_broker.type", "policy_dir"]),
        ),
        (
            "as-config with a storage type",
            r#"{ "work_dir": "/w", "rvps_config": { "type": "BuiltIn", "storage_type": "LocalFs" } }"#.to_owned(),
            Ok(&["work_dir"]),
        ),
        (
            "as-config with a storage of reference values",
            r#"{ "rvps_config": { "type": "BuiltIn", "storage": { "type": "LocalJson", "file_path": "/v/f.json" } } }"#
                .to_owned(),
            Ok(&["file_dir_path = \"/v\""]),
        ),
        (
            "as-config with a store",
            r#"{ "rvps_config": { "type": "BuiltIn", "store_type": "LocalFs", "remote_addr": "" } }"#.to_owned(),
            Ok(&["remote_addr", "LocalFs"]),
        ),
        (
            "as-config with TPM",
            r#"{ "verifier_config": { "tpm_verifier": { "trusted_ak_keys_dir": "./a", "max_trusted_ak_keys": 4 } } }"#
                .to_owned(),
            Ok(&["tpm_verifier"]),
        ),
    ];
    for (name, text, expected) in samples {
        check(name, read_as::<AsConfig>(".json", text), *expected);
    }
    let samples: &[(&str, String, Expected)] = &[
        (
            "rvps",
            in_folder.replace("storage_backend", "storage").replacen(
                '"',
                r#"{ "extractors": { "swid_extractor": {} }, ""#,
                1,
            ) + " }",
            Ok(&[]),
        ),
        (
            "rvps of docker-compose",
            r#"{ "storage": { "type": "LocalFs", "file_path": "/v" } }"#.to_owned(),
            Ok(&["storage.backends.local_fs.dir_path = \"/v\""]),
        ),
        (
            "rvps of an earlier release",
            r#"{ "address": "0.0.0.0:9003", "store_type": "LocalJson", "store_config": { "file_path": "v.json" } }"#
                .to_owned(),
            Ok(&["--address", "file_dir_path = \".\""]),
        ),
    ];
    for (name, text, expected) in samples {
        check(name, read_as::<ProviderConfig>(".json", text), *expected);
    }
}

#[test]
fn what_older_keys_say_is_kept() {
    let old = "[admin]\ntype = \"Simple\"\npersonas = [{ id = \"ann\", public_key_path = \"/a\" }, { id = \"ben\", \
               public_key_path = \"/b\" }]\n[attestation_service.rvps_config]\nstorage = { type = \"LocalJson\", \
               file_path = \"/v/values.json\" }\n";
    let config = read(&[PLAIN, old, OLD_RESOURCES].concat()).unwrap().config;
    assert_eq!(config.admin.authorization_mode, AuthorizationMode::AuthenticatedAuthorization);
    let providers = &config.admin.authentication.bearer_jwt.identity_providers;
    assert_eq!(providers.iter().map(|it| it.public_key_uri.as_deref()).collect::<Vec<_>>(), [Some("/a"), Some("/b")]);
    let roles = config.admin.authorization.regex_acl.acls.iter().map(|acl| acl.role.as_deref());
    assert_eq!(roles.collect::<Vec<_>>(), [Some("ann"), Some("ben")]);
    assert_eq!(config.storage_backend.directory(), Some(Path::new("/r")));
    assert_eq!(config.storage_backend.backends.local_json.file_dir_path, Path::new("/v"));
    assert_eq!(config.attestation_service.unwrap().rvps_config.storage_type, Some(StorageType::LocalJson));

    let map = "attestation_policies = { ann = \"strict\" }\n";
    let Read { config, warnings } = read(&[map, PLAIN, BUILT_IN].concat()).unwrap();
    assert_eq!(config.attestation_service.unwrap().policy_id_map["ann"], "strict");
    assert!(warnings.iter().any(|warning| warning.contains("attestation_service.policy_id_map")), "{warnings:?}");
    // A Trustee that appraises nothing does not begin to.
    assert!(read(&[map, PLAIN].concat()).unwrap().config.attestation_service.is_none());
    let map = "policy_id_map = { ben = [\"cpu\", \"gpu\"] }\n";
    let config = read(&[map, PLAIN, BUILT_IN].concat()).unwrap().config;
    assert_eq!(config.attestation_service.unwrap().policy_id_map["ben"], "cpu");
}

fn check<T: File>(name: &str, read: Result<Read<T>, String>, expected: Expected) {
    match (read, expected) {
        (Ok(Read { warnings, .. }), Ok(words)) => {
            let said = |word: &&str| warnings.iter().any(|warning| warning.contains(*word));
            assert!(words.iter().all(said) && warnings.len() == words.len(), "{name}: {warnings:#?}");
        }
        (Err(error), Err(word)) => assert!(error.contains(word) && error.contains("; next: "), "{name}: {error}"),
        (Ok(_), Err(word)) => panic!("{name} was read, {word} was expected"),
        (Err(error), Ok(_)) => panic!("{name}: {error}"),
    }
}
