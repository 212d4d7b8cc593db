//! The OpenAPI document (version 3.1), made of the table that requests are dispatched by.

use serde_json::{Map, Value, json};

use crate::routes::{Access, Body, ENDPOINTS, Endpoint};

/// The document, for programs that are generated from it and for people.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = endpoint.path.replace("...}", "}");
        let operations = paths.entry(path).or_insert_with(|| json!({}));
        operations[endpoint.method.as_str().to_ascii_lowercase()] = operation(endpoint);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Trustee's key broker",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0" },
            "description": "Guests attest and fetch secrets; owners say who may have what.",
        },
        "paths": paths,
        "components": {
            "schemas": schemas(),
            "securitySchemes": {
                "session": { "type": "apiKey", "in": "cookie", "name": crate::session::NAME },
                "token": { "type": "http", "scheme": "bearer", "bearerFormat": "JWT" },
            },
        },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let open = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = open.map(|name| {
        json!({ "name": name.trim_end_matches("..."), "in": "path", "required": true, "schema": { "type": "string" } })
    });
    let in_query = endpoint
        .query
        .iter()
        .map(|name| json!({ "name": name, "in": "query", "required": false, "schema": { "type": "string" } }));
    let mut responses = json!({ "200": response(endpoint.response) });
    responses["default"] = json!({
        "description": "Refused: the status says whose fault it is, the body why.",
        "content": { "application/json": { "schema": { "$ref": "#/components/schemas/ErrorInformation" } } },
    });
    let mut operation = json!({
        "operationId": format!("{:?}{}", endpoint.route, if endpoint.path.ends_with("{id}") { "ById" } else { "" }),
        "summary": endpoint.summary,
        "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
        "responses": responses,
    });
    if let Some(content) = content(endpoint.request) {
        operation["requestBody"] = json!({ "content": content, "required": endpoint.access != Access::Plugin });
    }
    operation["security"] = match endpoint.access {
        Access::Anyone => json!([]),
        Access::Session => json!([{ "session": [] }]),
        Access::Administrator => json!([{ "token": [] }]),
        Access::Guest | Access::Plugin => json!([{ "session": [] }, { "token": [] }]),
    };
    operation
}

fn response(body: Body) -> Value {
    match content(body) {
        Some(content) => json!({ "description": "Done.", "content": content }),
        None => json!({ "description": "Done." }),
    }
}

fn content(body: Body) -> Option<Value> {
    match body {
        Body::None => None,
        Body::Binary => Some(json!({ "application/octet-stream": {} })),
        Body::Text => Some(json!({ "text/plain": { "schema": { "type": "string" } } })),
        Body::Json(name) => {
            Some(json!({ "application/json": { "schema": { "$ref": format!("#/components/schemas/{name}") } } }))
        }
    }
}

/// One schema per kind of JSON that travels; the tests hold them against what the code really reads and writes.
fn schemas() -> Value {
    let text = || json!({ "type": "string" });
    let object = |required: &[&str], properties: Value| json!({ "type": "object", "required": required, "properties": properties });
    json!({
        "Any": {},
        "Names": { "type": "array", "items": text() },
        "Request": object(&["version", "tee"], json!({ "version": text(), "tee": text(), "extra-params": {} })),
        "Challenge": object(&["nonce", "extra-params"], json!({ "nonce": text(), "extra-params": {} })),
        "Attestation": object(&["runtime-data", "tee-evidence"], json!({
            "init-data": object(&["format", "body"], json!({ "format": { "const": "toml" }, "body": text() })),
            "runtime-data": object(&["nonce", "tee-pubkey"], json!({ "nonce": text(), "tee-pubkey": { "type": "object" } })),
            "tee-evidence": object(
                &["primary_evidence", "additional_evidence"],
                json!({ "primary_evidence": {}, "additional_evidence": text() }),
            ),
        })),
        "Token": object(&["token"], json!({ "token": text() })),
        "Jwe": object(&["protected", "encrypted_key", "iv", "ciphertext", "tag"], json!({
            "protected": text(), "encrypted_key": text(), "iv": text(), "ciphertext": text(), "tag": text(),
        })),
        "Policy": object(&["policy"], json!({
            "policy_id": text(),
            "policy": { "type": "string", "description": "Rego in base64url without padding" },
        })),
        "ReferenceValueMessage": object(&["type", "payload"], json!({
            "version": text(), "type": text(), "payload": { "type": "string", "contentEncoding": "base64" },
            "signature": { "type": "object" },
        })),
        "ReferenceValues": { "type": "array", "items": object(&["name", "value", "expiration"], json!({
            "version": text(), "name": text(), "value": {}, "expiration": { "type": "string", "format": "date-time" },
            "provenance": { "type": "object" },
        })) },
        "Explanation": object(&["reference", "time", "stage", "cause", "claims"], json!({
            "reference": text(), "time": { "type": "string", "format": "date-time" }, "stage": text(),
            "resource": { "type": ["string", "null"] }, "cause": text(), "claims": { "type": "array" },
        })),
        "ErrorInformation": object(&["type", "detail"], json!({ "type": text(), "detail": text() })),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_described_once_and_every_schema_exists() {
        let document = openapi();
        let operations: usize =
            document["paths"].as_object().unwrap().values().map(|path| path.as_object().unwrap().len()).sum();
        assert_eq!(operations, ENDPOINTS.len());
        let mut ids = std::collections::BTreeSet::new();
        let text = document.to_string();
        for endpoint in ENDPOINTS {
            for body in [endpoint.request, endpoint.response] {
                if let Body::Json(name) = body {
                    assert!(!document["components"]["schemas"][name].is_null(), "{name}");
                }
            }
            let path = endpoint.path.replace("...}", "}");
            let operation = &document["paths"][path][endpoint.method.as_str().to_ascii_lowercase()];
            ids.insert(format!("{} {}", endpoint.method, operation["operationId"]));
        }
        assert_eq!(ids.len(), ENDPOINTS.len(), "{text}");
    }

    /// The members that really travel, against those that the document names.
    #[test]
    fn schemas_name_the_members_of_real_messages() {
        let key = wire::jwe::TeeKey::generate().unwrap();
        let jwk = key.public_jwk().unwrap();
        let jwe = wire::jwe::TeePublicKey::from_jwk(&jwk).unwrap().seal(b"x").unwrap();
        let attestation = json!({
            "init-data": { "format": "toml", "body": "" },
            "runtime-data": { "nonce": "", "tee-pubkey": jwk },
            "tee-evidence": { "primary_evidence": {}, "additional_evidence": "" },
        });
        let attestation: wire::rcar::Attestation = serde_json::from_value(attestation).unwrap();
        let messages = [
            ("Request", serde_json::to_value(wire::rcar::Request::new(wire::rcar::Tee::Sample)).unwrap()),
            ("Attestation", serde_json::to_value(&attestation).unwrap()),
            ("Jwe", serde_json::to_value(&jwe).unwrap()),
            ("Token", serde_json::to_value(wire::rcar::TokenResponse { token: String::new() }).unwrap()),
        ];
        let schemas = schemas();
        for (name, message) in messages {
            let described = schemas[name]["properties"].as_object().unwrap();
            for member in message.as_object().unwrap().keys() {
                assert!(described.contains_key(member), "{name} has no {member}");
            }
            for required in schemas[name]["required"].as_array().unwrap() {
                assert!(message.get(required.as_str().unwrap()).is_some(), "{name} without {required}");
            }
        }
    }
}
