//! The HTTP API: every endpoint with its method, path and who may use it. Requests are dispatched by this table, and
//! the OpenAPI document is made of it.

use hyper::Method;

/// One endpoint.
pub(crate) struct Endpoint {
    pub method: Method,
    /// `{name}` stands for one segment, `{name...}` for all that follow.
    pub path: &'static str,
    pub route: Route,
    pub access: Access,
    pub summary: &'static str,
    /// Names of query parameters.
    pub query: &'static [&'static str],
    /// What the request's body is.
    pub request: Body,
    /// What the answer's body is.
    pub response: Body,
}

/// Who may use an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Access {
    Anyone,
    /// The holder of a session's cookie.
    Session,
    /// A guest with a session that attested, or with a token.
    Guest,
    /// An administrator with a token.
    Administrator,
    /// A guest or an administrator, as the plugin says.
    Plugin,
}

/// A body, by the name of its schema.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Body {
    None,
    /// Any bytes.
    Binary,
    Text,
    /// JSON of a schema.
    Json(&'static str),
}

/// What serves an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    Auth,
    Attest,
    GetResource,
    ResourceVersion,
    ListResources,
    SetResource,
    DeleteResource,
    ListResourcePolicies,
    GetResourcePolicy,
    SetResourcePolicy,
    DeleteResourcePolicy,
    ListAttestationPolicies,
    GetAttestationPolicy,
    SetAttestationPolicy,
    DeleteAttestationPolicy,
    ListReferenceValues,
    GetReferenceValue,
    RegisterReferenceValues,
    DeleteReferenceValue,
    Explain,
    Audit,
    Backup,
    Plugin,
    Healthz,
    Readyz,
    Metrics,
    Jwks,
    OpenIdConfiguration,
}

/// What a request's method and path lead to.
pub(crate) enum Found<'a> {
    /// An endpoint, and the segments that its path leaves open.
    Endpoint(Route, Vec<&'a str>),
    /// The path is there, but not with this method.
    OtherMethod,
    Nothing,
}

/// Finds the endpoint of a request by its path's segments.
pub(crate) fn find<'a>(method: &Method, segments: &[&'a str]) -> Found<'a> {
    let mut other_method = false;
    for endpoint in ENDPOINTS {
        let Some(open) = matched(endpoint.path, segments) else { continue };
        if endpoint.method == *method || endpoint.route == Route::Plugin {
            // A plugin never answers in the place of an endpoint that exists with other methods.
            return match (endpoint.route, other_method) {
                (Route::Plugin, true) => Found::OtherMethod,
                (route, _) => Found::Endpoint(route, open),
            };
        }
        other_method = true;
    }
    if other_method { Found::OtherMethod } else { Found::Nothing }
}

fn matched<'a>(path: &str, segments: &[&'a str]) -> Option<Vec<&'a str>> {
    let (mut open, mut rest) = (Vec::new(), segments);
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part.ends_with("...}") {
            open.extend_from_slice(rest);
            return (!rest.is_empty()).then_some(open);
        }
        let (first, others) = rest.split_first()?;
        if part.starts_with('{') {
            open.push(*first);
        } else if part != *first {
            return None;
        }
        rest = others;
    }
    rest.is_empty().then_some(open)
}

macro_rules! endpoints {
    ($($method:ident $path:literal $route:ident $access:ident [$($query:literal),*] $request:expr => $response:expr, $summary:literal;)*) => {
        /// All endpoints, the most used ones first; plugins last, since their path fits almost everything.
        pub(crate) const ENDPOINTS: &[Endpoint] = &[$(Endpoint {
            method: Method::$method,
            path: $path,
            route: Route::$route,
            access: Access::$access,
            summary: $summary,
            query: &[$($query),*],
            request: $request,
            response: $response,
        }),*];
    };
}

use Body::{Binary, Json, None as Nothing, Text};

endpoints! {
    POST "/kbs/v0/auth" Auth Anyone [] Json("Request") => Json("Challenge"), "Asks for a challenge.";
    POST "/kbs/v0/attest" Attest Session [] Json("Attestation") => Json("Token"), "Answers a challenge with evidence, for a token.";
    GET "/kbs/v0/resource/{path...}" GetResource Guest [] Nothing => Json("Jwe"), "A resource, encrypted to the guest's key.";
    HEAD "/kbs/v0/resource/{path...}" ResourceVersion Administrator [] Nothing => Nothing, "The ETag of a resource.";
    GET "/kbs/v0/resource" ListResources Administrator ["repository"] Nothing => Json("Names"), "The paths of all resources.";
    POST "/kbs/v0/resource/{path...}" SetResource Administrator [] Binary => Nothing, "Sets a resource.";
    PUT "/kbs/v0/resource/{path...}" SetResource Administrator [] Binary => Nothing, "Sets a resource.";
    DELETE "/kbs/v0/resource/{path...}" DeleteResource Administrator [] Nothing => Nothing, "Deletes a resource.";
    GET "/kbs/v0/resource-policy" ListResourcePolicies Administrator [] Nothing => Json("Names"), "The ids of the resource policies.";
    POST "/kbs/v0/resource-policy" SetResourcePolicy Administrator [] Json("Policy") => Nothing, "Sets the resource policy of the Trustee, or of the administrator's tenant.";
    GET "/kbs/v0/resource-policy/{id}" GetResourcePolicy Administrator ["version", "history"] Nothing => Text, "A resource policy's text, or with history its versions.";
    POST "/kbs/v0/resource-policy/{id}" SetResourcePolicy Administrator ["rollback"] Json("Policy") => Nothing, "Sets a resource policy, or with rollback brings a version back.";
    DELETE "/kbs/v0/resource-policy/{id}" DeleteResourcePolicy Administrator [] Nothing => Nothing, "Deletes a resource policy; the Trustee's own becomes the default again.";
    GET "/kbs/v0/attestation-policy" ListAttestationPolicies Administrator [] Nothing => Json("Names"), "The ids of the attestation policies.";
    POST "/kbs/v0/attestation-policy" SetAttestationPolicy Administrator [] Json("Policy") => Nothing, "Sets an attestation policy.";
    GET "/kbs/v0/attestation-policy/{id}" GetAttestationPolicy Administrator ["version", "history"] Nothing => Text, "An attestation policy's text, or with history its versions.";
    POST "/kbs/v0/attestation-policy/{id}" SetAttestationPolicy Administrator ["rollback"] Json("Policy") => Nothing, "Sets an attestation policy, or with rollback brings a version back.";
    DELETE "/kbs/v0/attestation-policy/{id}" DeleteAttestationPolicy Administrator [] Nothing => Nothing, "Deletes an attestation policy; a shipped one becomes what it was.";
    GET "/kbs/v0/reference-value" ListReferenceValues Administrator [] Nothing => Json("ReferenceValues"), "All reference values.";
    POST "/kbs/v0/reference-value" RegisterReferenceValues Administrator [] Json("ReferenceValueMessage") => Nothing, "Registers reference values.";
    GET "/kbs/v0/reference-value/{name...}" GetReferenceValue Administrator ["history"] Nothing => Json("Any"), "A reference value, or with history what it was.";
    DELETE "/kbs/v0/reference-value/{name...}" DeleteReferenceValue Administrator [] Nothing => Nothing, "Deletes a reference value.";
    GET "/kbs/v0/explain/{reference}" Explain Administrator [] Nothing => Json("Explanation"), "Why a guest was refused.";
    GET "/kbs/v0/audit" Audit Administrator ["from", "limit"] Nothing => Text, "Lines of this replica's audit log.";
    GET "/kbs/v0/backup" Backup Administrator [] Nothing => Binary, "A backup of the store, encrypted under its master key.";
    GET "/healthz" Healthz Anyone [] Nothing => Nothing, "Whether the process answers.";
    GET "/readyz" Readyz Anyone [] Nothing => Nothing, "Whether it can serve: the store answers.";
    GET "/metrics" Metrics Anyone [] Nothing => Text, "Metrics in the format of OpenMetrics.";
    GET "/.well-known/jwks.json" Jwks Anyone [] Nothing => Json("Any"), "The keys that verify this Trustee's tokens.";
    GET "/.well-known/openid-configuration" OpenIdConfiguration Anyone [] Nothing => Json("Any"), "Where these keys are.";
    GET "/kbs/v0/{plugin}/{path...}" Plugin Plugin [] Binary => Binary, "A plugin, with any method.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_lead_to_their_endpoints() {
        let lead = |method: Method, path: &str| {
            let segments: Vec<&str> = path.split('/').filter(|segment| !segment.is_empty()).collect();
            match find(&method, &segments) {
                Found::Endpoint(route, open) => Ok((route, open.join("/"))),
                Found::OtherMethod => Err(405),
                Found::Nothing => Err(404),
            }
        };
        for (method, path, expected) in [
            (Method::POST, "/kbs/v0/auth", Ok((Route::Auth, ""))),
            (Method::GET, "/kbs/v0/resource/a/b/c", Ok((Route::GetResource, "a/b/c"))),
            (Method::GET, "/kbs/v0/resource", Ok((Route::ListResources, ""))),
            (Method::GET, "/kbs/v0/reference-value/a/b", Ok((Route::GetReferenceValue, "a/b"))),
            (Method::GET, "/kbs/v0/nebula-ca/credential", Ok((Route::Plugin, "nebula-ca/credential"))),
            (Method::DELETE, "/kbs/v0/provisioner/provision/x", Ok((Route::Plugin, "provisioner/provision/x"))),
            (Method::GET, "/kbs/v0/auth", Err(405)),
            (Method::PATCH, "/kbs/v0/resource/a/b/c", Err(405)),
            (Method::POST, "/kbs/v0/explain/x", Err(405)),
            (Method::POST, "/healthz", Err(405)),
            (Method::GET, "/kbs/v0", Err(404)),
            (Method::GET, "/kbs/v0/other", Err(404)),
            (Method::GET, "/kbs/v1/auth", Err(404)),
            (Method::GET, "/", Err(404)),
        ] {
            let expected = expected.map(|(route, open): (Route, &str)| (route, open.to_owned()));
            assert_eq!(lead(method.clone(), path), expected, "{method} {path}");
        }
    }
}
