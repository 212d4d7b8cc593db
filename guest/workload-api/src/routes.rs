//! The table of the API: every endpoint with its method, path and feature. Requests are dispatched by it, and the
//! OpenAPI document is made of it.

use std::fmt;
use std::str::FromStr;

use hyper::Method;

/// Which part of the API a guest offers to its containers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum Features {
    /// Resources alone.
    #[default]
    Resource,
    /// Tokens, evidence and measurements alone.
    Attestation,
    /// Both.
    All,
}

impl Features {
    /// Whether endpoints of `feature` are served.
    pub(crate) fn has(self, feature: Feature) -> bool {
        match feature {
            Feature::Always => true,
            Feature::Resource => self != Self::Attestation,
            Feature::Attestation => self != Self::Resource,
        }
    }
}

impl fmt::Display for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Resource => "resource",
            Self::Attestation => "attestation",
            Self::All => "all",
        })
    }
}

impl FromStr for Features {
    type Err = UnknownFeatures;

    fn from_str(name: &str) -> Result<Self, UnknownFeatures> {
        let known = [Self::Resource, Self::Attestation, Self::All];
        known.into_iter().find(|features| features.to_string() == name).ok_or_else(|| UnknownFeatures(name.to_owned()))
    }
}

/// Not the name of a set of features.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
#[error("features {0:?} are not known; next: write resource, attestation or all")]
pub struct UnknownFeatures(String);

/// One endpoint.
pub(crate) struct Endpoint {
    pub(crate) method: Method,
    /// `{name}` stands for one segment, `{name...}` for all that follow.
    pub(crate) path: &'static str,
    pub(crate) route: Route,
    pub(crate) feature: Feature,
    pub(crate) summary: &'static str,
    /// Query parameters, and whether each is required. Without any, the whole query is passed on.
    pub(crate) query: &'static [(&'static str, bool)],
    /// The name of the schema of a JSON request.
    pub(crate) request: Option<&'static str>,
    /// The name of the schema of a JSON answer; otherwise it is bytes.
    pub(crate) response: Option<&'static str>,
}

/// What an endpoint belongs to.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Feature {
    Always,
    Resource,
    Attestation,
}

/// What serves an endpoint.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Route {
    Info,
    Token,
    Evidence,
    AdditionalEvidence,
    Measure,
    Resource,
    Plugin,
}

/// What a path leads to.
pub(crate) enum Found<'a> {
    /// An endpoint, and what its path leaves open.
    Endpoint(&'static Endpoint, Vec<&'a str>),
    /// The path is there, with this method.
    OtherMethod(&'static Method),
    Nothing,
}

/// Finds the endpoint of a request.
pub(crate) fn find<'a>(method: &Method, path: &'a str) -> Found<'a> {
    for endpoint in ENDPOINTS {
        if let Some(open) = matched(endpoint.path, path) {
            return match endpoint.method == *method {
                true => Found::Endpoint(endpoint, open),
                false => Found::OtherMethod(&endpoint.method),
            };
        }
    }
    Found::Nothing
}

/// What `pattern` leaves open in `path`, if it fits.
fn matched<'a>(pattern: &str, path: &'a str) -> Option<Vec<&'a str>> {
    let (mut open, mut rest) = (Vec::new(), path.strip_prefix('/')?);
    let mut parts = pattern.trim_start_matches('/').split('/').peekable();
    while let Some(part) = parts.next() {
        if part.ends_with("...}") {
            open.push(rest);
            return (!rest.is_empty()).then_some(open);
        }
        let (first, others) = match parts.peek() {
            Some(_) => rest.split_once('/')?,
            None => (rest, ""),
        };
        if part.starts_with('{') {
            open.push(first);
        } else if part != first {
            return None;
        }
        rest = others;
    }
    Some(open)
}

/// No path of it fits two entries.
pub(crate) const ENDPOINTS: &[Endpoint] = &[
    Endpoint {
        method: Method::GET,
        path: "/info",
        route: Route::Info,
        feature: Feature::Always,
        summary: "Version, TEE and features of this guest",
        query: &[],
        request: None,
        response: Some("Info"),
    },
    Endpoint {
        method: Method::GET,
        path: "/aa/token",
        route: Route::Token,
        feature: Feature::Attestation,
        summary: "A token of a key broker (kbs) or of an attestation service (coco_as)",
        query: &[("token_type", true)],
        request: None,
        response: None,
    },
    Endpoint {
        method: Method::GET,
        path: "/aa/evidence",
        route: Route::Evidence,
        feature: Feature::Attestation,
        summary: "Evidence of the TEE over runtime data; with encoding=base64 they are base64url without padding",
        query: &[("runtime_data", true), ("encoding", false)],
        request: None,
        response: None,
    },
    Endpoint {
        method: Method::GET,
        path: "/aa/additional-evidence",
        route: Route::AdditionalEvidence,
        feature: Feature::Attestation,
        summary: "Evidence of the devices beside the TEE, empty without devices",
        query: &[("runtime_data", true), ("encoding", false)],
        request: None,
        response: None,
    },
    Endpoint {
        method: Method::POST,
        path: "/aa/aael",
        route: Route::Measure,
        feature: Feature::Attestation,
        summary: "Measures an event into the runtime event log",
        query: &[],
        request: Some("Event"),
        response: Some("Measured"),
    },
    Endpoint {
        method: Method::GET,
        path: "/cdh/resource/{path...}",
        route: Route::Resource,
        feature: Feature::Resource,
        summary: "The resource kbs:///{path}; the query is passed on",
        query: &[],
        request: None,
        response: None,
    },
    Endpoint {
        method: Method::GET,
        path: "/cdh/plugin/{plugin}/{path...}",
        route: Route::Plugin,
        feature: Feature::Resource,
        summary: "What the key broker's plugin gives for kbs+{plugin}:///{path}; the query is passed on",
        query: &[],
        request: None,
        response: None,
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_leads_to_its_endpoint_and_leaves_the_rest_open() {
        for (path, route, open) in [
            ("/info", Route::Info, vec![]),
            ("/aa/token", Route::Token, vec![]),
            ("/cdh/resource/a/b/c", Route::Resource, vec!["a/b/c"]),
            ("/cdh/resource/a", Route::Resource, vec!["a"]),
            ("/cdh/plugin/nebula-ca/credential", Route::Plugin, vec!["nebula-ca", "credential"]),
        ] {
            let Some(endpoint) = ENDPOINTS.iter().find(|endpoint| endpoint.route == route) else { unreachable!() };
            let Found::Endpoint(found, rest) = find(&endpoint.method, path) else { panic!("{path}") };
            assert_eq!((found.route, rest), (route, open), "{path}");
            let other = if endpoint.method == Method::GET { Method::POST } else { Method::GET };
            assert!(matches!(find(&other, path), Found::OtherMethod(allowed) if *allowed == endpoint.method));
        }
        for path in ["", "/", "info", "/info/", "/info/x", "/aa", "/aa/token/x", "/cdh/resource", "/cdh/resource/"] {
            assert!(matches!(find(&Method::GET, path), Found::Nothing), "{path:?}");
        }
        assert!(matches!(find(&Method::GET, "/cdh/plugin/x/"), Found::Nothing));
    }

    #[test]
    fn a_set_of_features_is_read_as_it_is_written() {
        for (name, resource, attestation) in
            [("resource", true, false), ("attestation", false, true), ("all", true, true)]
        {
            let features: Features = name.parse().unwrap();
            assert_eq!(features.to_string(), name);
            assert_eq!(features.has(Feature::Resource), resource);
            assert_eq!(features.has(Feature::Attestation), attestation);
        }
        assert!("".parse::<Features>().is_err());
    }
}
