//! The OpenAPI document (version 3.1), made of the table that requests are dispatched by.

use serde_json::{Map, Value, json};

use crate::routes::{ENDPOINTS, Endpoint, Feature};

/// The document, for programs that are generated from it and for people.
pub fn openapi() -> Value {
    let mut paths = Map::new();
    for endpoint in ENDPOINTS {
        let path = endpoint.path.replace("...}", "}");
        paths.insert(path, json!({ (endpoint.method.as_str().to_ascii_lowercase()): operation(endpoint) }));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Workload API",
            "version": env!("CARGO_PKG_VERSION"),
            "license": { "name": "Apache-2.0" },
            "description": "Secrets and attestation for the containers of a confidential pod, on its loopback interface.",
        },
        "servers": [{ "url": "http://127.0.0.1:8006" }],
        "paths": paths,
        "components": { "schemas": schemas() },
    })
}

fn operation(endpoint: &Endpoint) -> Value {
    let text = json!({ "type": "string" });
    let open = endpoint.path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let in_path = open
        .map(|name| json!({ "name": name.trim_end_matches("..."), "in": "path", "required": true, "schema": text }));
    let in_query = endpoint
        .query
        .iter()
        .map(|(name, required)| json!({ "name": name, "in": "query", "required": required, "schema": text }));
    let content = match endpoint.response {
        Some(schema) => json!({ "application/json": { "schema": reference(schema) } }),
        None => json!({ "application/octet-stream": {} }),
    };
    let mut responses = json!({ "200": { "description": "Done.", "content": content } });
    let mut refusals = vec![
        ("403", "Forbidden: the caller is not of this pod, or attestation or policy says no."),
        ("500", "Why it failed."),
        ("502", "Who can't be reached."),
        ("504", "Who did not answer in time."),
    ];
    if endpoint.feature != Feature::Always {
        refusals.push(("400", "BAD REQUEST, and why."));
        refusals.push(("404", "The feature is not enabled, or there is no such resource."));
    }
    for (status, description) in refusals {
        responses[status] = json!({ "description": description, "content": { "text/plain": { "schema": text } } });
    }
    let mut operation = json!({
        "operationId": format!("{:?}", endpoint.route),
        "summary": endpoint.summary,
        "parameters": in_path.chain(in_query).collect::<Vec<_>>(),
        "responses": responses,
    });
    if let Some(schema) = endpoint.request {
        operation["requestBody"] =
            json!({ "required": true, "content": { "application/json": { "schema": reference(schema) } } });
    }
    operation
}

fn reference(schema: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{schema}") })
}

fn schemas() -> Value {
    let text = json!({ "type": "string" });
    json!({
        "Info": { "type": "object", "required": ["version", "feature"], "properties": {
            "version": text, "tee": text, "additional_tees": { "type": "array", "items": text },
            "feature": { "enum": ["resource", "attestation", "all"] },
        } },
        "Event": { "type": "object", "required": ["domain", "operation", "content"], "properties": {
            "domain": text, "operation": text, "content": text,
        } },
        "Measured": { "type": "object", "required": ["success"], "properties": {
            "success": { "enum": ["true", "false"] }, "message": text,
        } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_endpoint_is_described_and_every_schema_exists() {
        let document = openapi();
        assert_eq!(document["paths"].as_object().unwrap().len(), ENDPOINTS.len());
        for endpoint in ENDPOINTS {
            let path = endpoint.path.replace("...}", "}");
            let operation = &document["paths"][&path][endpoint.method.as_str().to_ascii_lowercase()];
            assert_eq!(operation["summary"], endpoint.summary);
            for name in path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}')) {
                let parameters = operation["parameters"].as_array().unwrap();
                assert!(parameters.iter().any(|parameter| parameter["name"] == name && parameter["in"] == "path"));
            }
            for schema in [endpoint.request, endpoint.response].into_iter().flatten() {
                assert!(!document["components"]["schemas"][schema].is_null(), "{schema}");
            }
        }
    }
}
