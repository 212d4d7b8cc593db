//! Keys of older files: renamed, left out, or refused with a word on what to write today.

mod admin;
mod storage;

use serde_json::{Map, Value, json};

use super::format::Document;
use storage::Old;

/// The file of a key broker.
pub fn of_broker(document: &mut Document) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let Some(root) = document.value_mut().as_object_mut() else { return Ok(warnings) };
    first_release(root, &mut warnings);
    if root.contains_key("policy_engine") {
        return Err("policy_engine is no key any more: a resource policy is set over the API, with kbs-client config \
                    set-resource-policy --policy-file FILE"
            .to_owned());
    }
    if let Some(admin) = table(root, "admin") {
        admin::modernize(admin, &mut warnings)?;
    }
    if let Some(token) = table(root, "attestation_token") {
        rename(token, "attestation_token", "insecure_key", "insecure_header_jwk", &mut warnings);
        remove(token, "attestation_token", &["type"], &mut warnings);
    }
    policy_selection(root, &mut warnings);
    // Resources first: where they lie, everything lies that has no place of its own.
    let mut resources = None;
    for (i, plugin) in root.get_mut("plugins").and_then(Value::as_array_mut).into_iter().flatten().enumerate() {
        let Some(plugin) = plugin.as_object_mut() else { continue };
        let place = format!("plugins[{i}]");
        if let Some(old) = self::plugin(plugin, &place, &mut warnings)? {
            resources = Some((old, place));
        }
    }
    if let Some((old, place)) = resources {
        if root.contains_key("storage_backend") {
            return Err(format!(
                "{place} keeps resources in a folder in an older form, beside [storage_backend]: write \
                 storage_backend_type = \"kvstorage\" alone, and where everything lies under storage_backend"
            ));
        }
        let mut backend = Map::new();
        old.keep(&mut backend, "storage_backend", &place, &mut warnings)?;
        backend.insert("storage_type".to_owned(), old.kind().into());
        root.insert("storage_backend".to_owned(), backend.into());
    }
    let old = match table(root, "attestation_service") {
        Some(service) => service_keys(service, "attestation_service.", &mut warnings)?,
        None => None,
    };
    keep(old, root, "attestation_service.rvps_config", &mut warnings)?;
    Ok(warnings)
}

/// The file of an attestation service.
pub fn of_attestation_service(document: &mut Document) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    if let Some(root) = document.value_mut().as_object_mut() {
        let old = service_keys(root, "", &mut warnings)?;
        keep(old, root, "rvps_config", &mut warnings)?;
    }
    Ok(warnings)
}

/// The file of a provider of reference values.
pub fn of_provider(document: &mut Document) -> Result<Vec<String>, String> {
    let mut warnings = Vec::new();
    let Some(root) = document.value_mut().as_object_mut() else { return Ok(warnings) };
    if root.remove("address").is_some() {
        warnings.push("address says nothing any more: --address says where to listen".to_owned());
    }
    let (old, place) = if root.contains_key("store_type") {
        if root.contains_key("storage") {
            return Err("store_type is no key any more: write storage alone".to_owned());
        }
        (Old::take(root, "store_type")?, "store_type")
    } else {
        match table(root, "storage").filter(|storage| !storage.contains_key("storage_type")) {
            Some(storage) => (Old::take(storage, "type")?, "storage"),
            None => (None, "storage"),
        }
    };
    if let Some(old) = old {
        // What else the section has stays, and is looked at like today's.
        let mut backend = root.remove("storage").and_then(|storage| storage.as_object().cloned()).unwrap_or_default();
        old.keep(&mut backend, "storage", place, &mut warnings)?;
        backend.insert("storage_type".to_owned(), old.kind().into());
        root.insert("storage".to_owned(), backend.into());
    }
    Ok(warnings)
}

/// The shape that `trustee setup` wrote before it had that of other key brokers.
fn first_release(root: &mut Map<String, Value>, warnings: &mut Vec<String>) {
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
    let Some(admin) = table(root, "admin") else { return };
    if let Some(key) = admin.remove("public_key") {
        warnings.push("admin.public_key is called public_key_uri, under admin.authentication.bearer_jwt".to_owned());
        let provider = json!({ "public_key_uri": key });
        admin.insert("authentication".to_owned(), json!({ "bearer_jwt": { "identity_providers": [provider] } }));
    }
    if let Some(Value::Array(roles)) = admin.remove("roles") {
        warnings.push("admin.roles are called acls, under admin.authorization.regex_acl".to_owned());
        let acls: Vec<Value> = roles.iter().map(admin::rule).collect();
        admin.insert("authorization".to_owned(), json!({ "regex_acl": { "acls": acls } }));
    }
}

/// What guests may ask for was said outside the section of the service that appraises them.
fn policy_selection(root: &mut Map<String, Value>, warnings: &mut Vec<String>) {
    for key in ["attestation_policies", "policy_id_map"] {
        let Some(map) = root.remove(key) else { continue };
        match table(root, "attestation_service") {
            // It stays where it is, and is an unknown key.
            Some(service) if service.contains_key("policy_id_map") => _ = root.insert(key.to_owned(), map),
            Some(service) => {
                warnings.push(format!("{key} is called attestation_service.policy_id_map"));
                service.insert("policy_id_map".to_owned(), map);
            }
            // Such a section would turn an attestation service on.
            None => warnings.push(format!("{key} says nothing without [attestation_service]")),
        }
    }
}

fn service_keys(
    service: &mut Map<String, Value>,
    place: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<Old>, String> {
    remove(service, place.trim_end_matches('.'), &["work_dir", "policy_engine"], warnings);
    if service.get("attestation_token_broker").is_some_and(Value::is_string) {
        remove(service, place.trim_end_matches('.'), &["attestation_token_broker"], warnings);
    }
    if let Some(Value::Object(settings)) = service.remove("attestation_token_config") {
        warnings.push(format!("{place}attestation_token_config is called attestation_token_broker"));
        let broker = service.entry("attestation_token_broker").or_insert(json!({}));
        for (key, value) in settings {
            if let Some(broker) = broker.as_object_mut() {
                broker.entry(key).or_insert(value);
            }
        }
    }
    if let Some(broker) = table(service, "attestation_token_broker") {
        remove(broker, &format!("{place}attestation_token_broker"), &["type", "policy_dir"], warnings);
    }
    match table(service, "rvps_config") {
        Some(provider) => reference_values(provider, &format!("{place}rvps_config"), warnings),
        None => Ok(None),
    }
}

fn reference_values(
    provider: &mut Map<String, Value>,
    place: &str,
    warnings: &mut Vec<String>,
) -> Result<Option<Old>, String> {
    if let Some(address) = provider.remove("remote_addr") {
        if address == "" {
            warnings.push(format!("{place}.remote_addr says nothing any more"));
        } else {
            warnings.push(format!("{place}.remote_addr is called address, with type = \"GrpcRemote\""));
            provider.entry("type").or_insert("GrpcRemote".into());
            provider.entry("address").or_insert(address);
        }
    }
    let old = match provider.remove("storage") {
        Some(Value::Object(mut storage)) => {
            let old = Old::take(&mut storage, "type")?;
            if let Some(key) = storage.keys().next() {
                return Err(format!("{place}.storage.{key:.60} is no key any more: write {place}.storage_type"));
            }
            old
        }
        Some(_) => return Err(format!("{place}.storage is no key any more: write {place}.storage_type")),
        None => Old::take(provider, "store_type")?,
    };
    if let Some(old) = &old {
        if provider.contains_key("storage_type") {
            return Err(format!("{place} says twice where it keeps values: write storage_type alone"));
        }
        provider.insert("storage_type".to_owned(), old.kind().into());
    }
    Ok(old)
}

/// Puts the place of reference values where those of all storages are.
fn keep(
    old: Option<Old>,
    root: &mut Map<String, Value>,
    place: &str,
    warnings: &mut Vec<String>,
) -> Result<(), String> {
    let Some(old) = old else { return Ok(()) };
    match root.entry("storage_backend").or_insert(json!({})).as_object_mut() {
        Some(backend) => old.keep(backend, "storage_backend", place, warnings),
        // What it is instead will be refused.
        None => Ok(()),
    }
}

fn plugin(plugin: &mut Map<String, Value>, place: &str, warnings: &mut Vec<String>) -> Result<Option<Old>, String> {
    match plugin.get("name").and_then(Value::as_str) {
        Some("resource") => {
            rename(plugin, place, "backend", "storage_backend_type", warnings);
            if plugin.get("type").is_some_and(|kind| kind == "LocalFs") {
                let old = Old::take(plugin, "type")?;
                plugin.entry("storage_backend_type").or_insert("kvstorage".into());
                return Ok(old);
            }
            if plugin.contains_key("dir_path") {
                return Err(format!(
                    "{place}.dir_path is no key any more: write storage_backend_type = \"kvstorage\", and where it lies \
                     under storage_backend"
                ));
            }
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
    Ok(None)
}

fn table<'a>(parent: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    parent.get_mut(key)?.as_object_mut()
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
