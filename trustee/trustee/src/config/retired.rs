//! Keys of older files: renamed, left out, or refused with a word on what to write today.

use serde_json::{Map, Value, json};

use super::format::Document;

/// The file of a key broker.
pub fn of_broker(document: &mut Document) -> Result<Vec<String>, String> {
    let root = document.value_mut();
    let mut warnings = Vec::new();
    first_release(root, &mut warnings);
    if root.get("policy_engine").is_some() {
        return Err("policy_engine is no key any more: a resource policy is set over the API, with kbs-client config \
                    set-resource-policy --policy-file FILE"
            .to_owned());
    }
    if let Some(admin) = table(root, &["admin"]) {
        if let Some(key) =
            ["auth_public_key", "personas", "admin_backend"].into_iter().find(|key| admin.contains_key(*key))
        {
            return Err(format!(
                "admin.{key} is no key any more: write authorization_mode = \"AuthenticatedAuthorization\", the public \
                 key's file as public_key_uri under admin.authentication.bearer_jwt.identity_providers, and the role of \
                 the tokens under admin.authorization.regex_acl.acls"
            ));
        }
        if admin.contains_key("insecure_api") {
            return Err("admin.insecure_api is no key any more: write authorization_mode".to_owned());
        }
        rename(admin, "admin", "type", "authorization_mode", &mut warnings);
    }
    if let Some(token) = table(root, &["attestation_token"]) {
        rename(token, "attestation_token", "insecure_key", "insecure_header_jwk", &mut warnings);
        remove(token, "attestation_token", &["type"], &mut warnings);
    }
    if let Some(service) = table(root, &["attestation_service"]) {
        service_keys(service, "attestation_service.", &mut warnings)?;
    }
    for (i, plugin) in root.get_mut("plugins").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let Some(plugin) = plugin.as_object_mut() else { continue };
        self::plugin(plugin, &format!("plugins[{i}]"), &mut warnings)?;
    }
    Ok(warnings)
}

/// The shape that `trustee setup` wrote before it had that of other key brokers.
fn first_release(root: &mut Value, warnings: &mut Vec<String>) {
    let Some(root) = root.as_object_mut() else { return };
    if let Some(storage) = root.remove("storage") {
        warnings.push("[storage] is called [storage_backend]".to_owned());
        let sqlite = json!({ "storage_type": "Sqlite", "backends": { "sqlite": storage } });
        root.entry("storage_backend").or_insert(sqlite);
        root.entry("attestation_service").or_insert(json!({}));
    }
    if let Some(mut attestation) = root.remove("attestation") {
        warnings.push("[attestation] is called [attestation_service]".to_owned());
        let minutes = attestation.as_object_mut().and_then(|section| section.remove("token_minutes"));
        if let Some(minutes) = minutes {
            attestation["attestation_token_broker"] = json!({ "duration_min": minutes });
        }
        root.insert("attestation_service".to_owned(), attestation);
    }
    let Some(admin) = root.get_mut("admin").and_then(Value::as_object_mut) else { return };
    if let Some(key) = admin.remove("public_key") {
        warnings.push("admin.public_key is called public_key_uri, under admin.authentication.bearer_jwt".to_owned());
        let provider = json!({ "public_key_uri": key });
        admin.insert("authentication".to_owned(), json!({ "bearer_jwt": { "identity_providers": [provider] } }));
    }
    if let Some(Value::Array(roles)) = admin.remove("roles") {
        warnings.push("admin.roles are called acls, under admin.authorization.regex_acl".to_owned());
        let rule = |role: &Value| json!({ "role": role, "allowed_endpoints": "^/kbs/.*$" });
        let acls: Vec<Value> = roles.iter().map(rule).collect();
        admin.insert("authorization".to_owned(), json!({ "regex_acl": { "acls": acls } }));
    }
}

/// The file of an attestation service.
pub fn of_attestation_service(document: &mut Document) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    if let Some(root) = document.value_mut().as_object_mut() {
        service_keys(root, "", &mut warnings)?;
    }
    Ok(warnings)
}

/// The file of a provider of reference values.
pub fn of_provider(document: &mut Document) -> Result<Vec<String>, String> {
    match table(document.value_mut(), &["storage"]) {
        Some(storage) => old_storage(storage, "storage").map(|()| Vec::new()),
        None => Ok(Vec::new()),
    }
}

fn service_keys(service: &mut Map<String, Value>, place: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    remove(service, place.trim_end_matches('.'), &["work_dir", "policy_engine"], warnings);
    if let Some(broker) = service.get_mut("attestation_token_broker").and_then(Value::as_object_mut) {
        remove(broker, &format!("{place}attestation_token_broker"), &["type", "policy_dir"], warnings);
    }
    if let Some(provider) = service.get("rvps_config")
        && (provider.get("store_type").is_some() || provider.get("storage").is_some())
    {
        return Err(format!(
            "{place}rvps_config has a storage of its own in an older form: write storage_type, and where it lies under \
             storage_backend.backends"
        ));
    }
    Ok(())
}

/// The older form of a storage, which would otherwise mean a storage in memory.
fn old_storage(storage: &Map<String, Value>, place: &str) -> Result<(), String> {
    match ["type", "file_path", "dir_path"].into_iter().find(|key| storage.contains_key(*key)) {
        Some(key) => Err(format!(
            "{place}.{key} is no key any more: write {place}.storage_type, and where it lies under {place}.backends"
        )),
        None => Ok(()),
    }
}

fn plugin(plugin: &mut Map<String, Value>, place: &str, warnings: &mut Vec<String>) -> Result<(), String> {
    match plugin.get("name").and_then(Value::as_str) {
        Some("resource") => {
            if plugin.get("type").is_some_and(|kind| kind == "LocalFs") || plugin.contains_key("dir_path") {
                return Err(format!(
                    "{place} keeps resources in a folder in an older form: write storage_backend_type = \"kvstorage\", \
                     and where it lies under storage_backend"
                ));
            }
            rename(plugin, place, "backend", "storage_backend_type", warnings);
            rename(plugin, place, "type", "storage_backend_type", warnings);
        }
        Some("nebula_ca") => {
            warnings.push(format!("{place}: the plugin nebula_ca is called nebula-ca"));
            plugin.insert("name".to_owned(), "nebula-ca".into());
        }
        Some("external") => {
            for backend in plugin.get_mut("backends").and_then(Value::as_array_mut).into_iter().flatten() {
                // The endpoint's scheme says it.
                if let Some(backend) = backend.as_object_mut() {
                    remove(backend, &format!("{place}.backends"), &["tls_mode"], warnings);
                }
            }
        }
        _ => {}
    }
    Ok(())
}

fn table<'a>(root: &'a mut Value, path: &[&str]) -> Option<&'a mut Map<String, Value>> {
    path.iter().try_fold(root, |value, key| value.get_mut(key))?.as_object_mut()
}

/// Takes a key's value to its new name, unless that is there too: then the key stays, and is an unknown one.
fn rename(table: &mut Map<String, Value>, place: &str, old: &str, new: &str, warnings: &mut Vec<String>) {
    if table.contains_key(new) {
        return;
    }
    if let Some(value) = table.remove(old) {
        warnings.push(format!("{place}.{old} is called {new}"));
        table.insert(new.to_owned(), value);
    }
}

fn remove(table: &mut Map<String, Value>, place: &str, keys: &[&str], warnings: &mut Vec<String>) {
    for key in keys {
        if table.remove(*key).is_some() {
            let place = if place.is_empty() { String::new() } else { format!("{place}.") };
            warnings.push(format!("{place}{key} says nothing any more"));
        }
    }
}
