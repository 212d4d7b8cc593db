//! Older forms of `[admin]`: one public key, personas with a key each, or nobody at all.

use serde_json::{Map, Value, json};

use super::rename;

/// Puts them into today's.
pub fn modernize(admin: &mut Map<String, Value>, warnings: &mut Vec<String>) -> Result<(), String> {
    match admin.remove("admin_backend") {
        Some(Value::String(mode)) => _ = admin.entry("type").or_insert(mode.into()),
        Some(Value::Object(mut backend)) => match backend.remove("Simple") {
            Some(Value::Object(simple)) if backend.is_empty() => admin.extend(simple),
            _ => return Err(refused("admin_backend")),
        },
        Some(_) => return Err(refused("admin_backend")),
        None => {}
    }
    rename(admin, "admin", "type", MODE, warnings);
    let keys = keys(admin)?;
    let open = match admin.remove("insecure_api") {
        Some(Value::Bool(open)) => open,
        Some(_) => return Err("admin.insecure_api is no key any more: write authorization_mode".to_owned()),
        None => false,
    };
    if open {
        warnings.push("admin.insecure_api is read as authorization_mode = \"InsecureAllowAll\"".to_owned());
        admin.insert(MODE.to_owned(), "InsecureAllowAll".into());
        return Ok(());
    }
    let simple = admin.get(MODE).is_some_and(|mode| mode == "Simple");
    if keys.is_empty() {
        return if simple { Err(refused("type = \"Simple\"")) } else { Ok(()) };
    }
    let modern = ["authentication", "authorization"].into_iter().any(|key| admin.contains_key(key));
    if modern || !simple && admin.contains_key(MODE) {
        return Err(refused("auth_public_key or personas, beside today's keys,"));
    }
    for (role, _) in &keys {
        warnings.push(format!(
            "admin has its keys in an older form, read as an identity provider each: tokens need the claim role = \
             {role:.60?}"
        ));
    }
    let providers: Vec<Value> = keys.iter().map(|(_, path)| json!({ "public_key_uri": path })).collect();
    let acls: Vec<Value> = keys.iter().map(|(role, _)| rule(role)).collect();
    admin.insert(MODE.to_owned(), "AuthenticatedAuthorization".into());
    admin.insert("authentication".to_owned(), json!({ "bearer_jwt": { "identity_providers": providers } }));
    admin.insert("authorization".to_owned(), json!({ "regex_acl": { "acls": acls } }));
    Ok(())
}

/// A role that may do everything.
pub fn rule(role: &Value) -> Value {
    json!({ "role": role, "allowed_endpoints": "^/kbs/.*$" })
}

/// Roles and the public keys of those who have them.
fn keys(admin: &mut Map<String, Value>) -> Result<Vec<(Value, Value)>, String> {
    let mut keys = Vec::new();
    if let Some(path) = admin.remove("auth_public_key") {
        keys.push(("admin".into(), path));
    }
    match admin.remove("personas") {
        Some(Value::Array(personas)) => {
            for persona in personas {
                let member = |key| persona.get(key).filter(|value| value.is_string()).cloned();
                let (Some(id), Some(path)) = (member("id"), member("public_key_path")) else {
                    return Err(refused("personas"));
                };
                keys.push((id, path));
            }
        }
        Some(_) => return Err(refused("personas")),
        None => {}
    }
    Ok(keys)
}

fn refused(key: &str) -> String {
    format!(
        "admin.{key} is no key any more: write authorization_mode = \"AuthenticatedAuthorization\", the public key's \
         file as public_key_uri under admin.authentication.bearer_jwt.identity_providers, and the role of the tokens \
         under admin.authorization.regex_acl.acls"
    )
}

const MODE: &str = "authorization_mode";
