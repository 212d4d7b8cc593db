//! Who may administer: nobody, anybody, or holders of tokens whose role allows the request.

use std::collections::BTreeMap;

use hyper::Method;
use regex::Regex;
use serde_json::Value;
use token_verifier::AdminTokens;

use crate::excerpt::excerpt;
use crate::tenants::Tenant;

/// The rule for administrative requests.
pub enum Admin {
    /// Every one is refused.
    DenyAll,
    /// Every one is served, whoever sends it: for experiments only.
    InsecureAllowAll,
    /// A bearer token is asked for, in the form of a JWT.
    Authenticated(Box<Authenticated>),
}

/// Whose tokens are good, and what their roles may do.
pub struct Authenticated {
    tokens: AdminTokens,
    roles: BTreeMap<String, Vec<Rule>>,
}

/// What one role may do.
pub struct Rule {
    role: String,
    endpoints: Regex,
    methods: Vec<Method>,
    tenant: Option<Tenant>,
    issuer: Option<String>,
}

/// An administrator who may do what was asked for.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Administrator {
    /// The token's `sub`.
    pub subject: Option<String>,
    /// The token's `iss`.
    pub issuer: Option<String>,
    /// The token's `role`.
    pub role: String,
    /// Whose administrator this is; nobody's means the Trustee's own.
    pub tenant: Option<Tenant>,
}

impl Rule {
    /// A role that may use the endpoints whose path, with its query, matches a regular expression. No methods means
    /// all of them.
    ///
    /// # Errors
    /// [`Error::Endpoints`] unless the expression begins with `^/kbs` or `^/metrics` and ends with `$`, [`Error::Method`].
    pub fn new(role: String, endpoints: &str, methods: &[String], tenant: Option<Tenant>) -> Result<Self, Error> {
        let refused = || Error::Endpoints(excerpt(endpoints));
        let known = endpoints.starts_with("^/kbs") || endpoints.starts_with("^/metrics");
        if !known || !endpoints.ends_with('$') {
            return Err(refused());
        }
        // Grouped, so that each of several alternatives has to fit the whole.
        let endpoints = Regex::new(&format!("^(?:{endpoints})$")).map_err(|_| refused())?;
        let method = |name: &String| match name.as_str() {
            "GET" | "HEAD" | "POST" | "PUT" | "DELETE" => Method::try_from(name.as_str()).ok(),
            _ => None,
        };
        let methods = methods.iter().map(|name| method(name).ok_or_else(|| Error::Method(excerpt(name))));
        Ok(Self { role, endpoints, methods: methods.collect::<Result<_, _>>()?, tenant, issuer: None })
    }

    /// The same for tokens of one issuer alone, so that another one can't give this role to anybody.
    pub fn of_issuer(self, issuer: Option<String>) -> Self {
        Self { issuer, ..self }
    }

    /// An expression that says nothing about a query is held against the path alone: what follows it must not help.
    fn allows(&self, method: &Method, uri: &str) -> bool {
        let path = uri.split('?').next().unwrap_or_default();
        let asked = if self.endpoints.as_str().contains(r"\?") { uri } else { path };
        self.endpoints.is_match(asked) && (self.methods.is_empty() || self.methods.contains(method))
    }
}

impl Authenticated {
    /// Tokens of these issuers, with these rules.
    ///
    /// # Errors
    /// [`Error::NoRules`] if nobody could administer.
    pub fn new(tokens: AdminTokens, rules: Vec<Rule>) -> Result<Self, Error> {
        if rules.is_empty() {
            return Err(Error::NoRules);
        }
        let mut roles = BTreeMap::<String, Vec<Rule>>::new();
        for rule in rules {
            roles.entry(rule.role.clone()).or_default().push(rule);
        }
        Ok(Self { tokens, roles })
    }
}

impl Admin {
    /// Checks the bearer token of a request to `uri`, which is its path and query.
    ///
    /// # Errors
    /// [`Error::DenyAll`], [`Error::NoToken`], [`Error::Token`], [`Error::NoRole`], [`Error::Role`].
    pub(crate) async fn authorize(
        &self,
        bearer: Option<&str>,
        method: &Method,
        uri: &str,
    ) -> Result<Administrator, Error> {
        let authenticated = match self {
            Self::DenyAll => return Err(Error::DenyAll),
            Self::InsecureAllowAll => {
                return Ok(Administrator { subject: None, issuer: None, role: "anybody".to_owned(), tenant: None });
            }
            Self::Authenticated(authenticated) => authenticated,
        };
        let claims = authenticated.tokens.verify(bearer.ok_or(Error::NoToken)?).await?;
        let role = claims["role"].as_str().ok_or(Error::NoRole)?;
        let rules = authenticated.roles.get(role).map(Vec::as_slice).unwrap_or_default();
        let issuer = claims.get("iss").and_then(Value::as_str);
        let of_issuer = |rule: &&Rule| rule.issuer.as_deref().is_none_or(|wanted| Some(wanted) == issuer);
        let rule = rules
            .iter()
            .filter(of_issuer)
            .find(|rule| rule.allows(method, uri))
            .ok_or_else(|| Error::Role(excerpt(role)))?;
        let subject = claims.get("sub").and_then(Value::as_str).map(excerpt);
        let issuer = issuer.map(excerpt);
        Ok(Administrator { subject, issuer, role: excerpt(role), tenant: rule.tenant.clone() })
    }
}

/// Why an administrative request was refused, or its rule can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("DenyAll authorization_mode is enabled; set another under [admin] in the Trustee's configuration")]
    DenyAll,
    #[error("no token: send the administrator's token as Authorization: Bearer")]
    NoToken,
    #[error(transparent)]
    Token(#[from] token_verifier::Error),
    #[error("the administrator's token has no claim role, which must be a text")]
    NoRole,
    #[error("Role {0} not allowed: no rule under [admin] in the Trustee's configuration lets it do this")]
    Role(String),
    #[error("it belongs to another tenant, or to the Trustee: an administrator of a tenant can't reach it")]
    Tenant,
    #[error("\"{0}\" is no expression for endpoints; next: begin with ^/kbs or ^/metrics and end with $")]
    Endpoints(String),
    #[error("\"{0}\" is no method; next: use GET, HEAD, POST, PUT or DELETE")]
    Method(String),
    #[error("there are no rules: nobody could administer; next: add a role under [admin]")]
    NoRules,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(endpoints: &str, methods: &[&str], method: Method, uri: &str) -> bool {
        let methods: Vec<String> = methods.iter().map(|&name| name.to_owned()).collect();
        Rule::new("r".to_owned(), endpoints, &methods, None).unwrap().allows(&method, uri)
    }

    #[test]
    fn a_rule_allows_whole_paths_and_its_methods() {
        for (endpoints, uri, expected) in [
            ("^/kbs/v0/.*$", "/kbs/v0/resource/a/b/c", true),
            ("^/kbs/v0/reference-value/[a-zA-Z0-9]+$", "/kbs/v0/reference-value/svn", true),
            ("^/kbs/v0/reference-value/[a-zA-Z0-9]+$", "/kbs/v0/reference-value/svn/x", false),
            ("^/kbs/v0/reference-value/[a-zA-Z0-9]+$", "/kbs/v0/resource-policy", false),
            ("^/kbs/v0/(auth|attest)$", "/kbs/v0/attest", true),
            ("^/kbs/.*reference-value.*$", "/kbs/v0/backup?reference-value", false),
            (r"^/kbs/v0/resource\?repository=a$", "/kbs/v0/resource?repository=a", true),
            (r"^/kbs/v0/resource\?repository=a$", "/kbs/v0/resource?repository=b", false),
        ] {
            assert_eq!(allowed(endpoints, &[], Method::POST, uri), expected, "{endpoints} {uri}");
        }
        assert!(allowed("^/kbs/.*$", &["GET", "HEAD"], Method::GET, "/kbs/v0/resource"));
        assert!(!allowed("^/kbs/.*$", &["GET", "HEAD"], Method::POST, "/kbs/v0/resource"));
    }

    #[test]
    fn an_expression_that_is_not_anchored_is_refused() {
        for bad in ["", "/kbs/v0/.*", "^/kbs/v0/.*", "/kbs$", "^/kbs/(a$", "^/other$"] {
            assert!(matches!(Rule::new("r".to_owned(), bad, &[], None), Err(Error::Endpoints(_))), "{bad:?} passed");
        }
        assert!(!allowed("^/kbs/a|/b$", &[], Method::GET, "/kbs/a/b"));
        assert!(matches!(Rule::new("r".to_owned(), "^/kbs$", &["get".to_owned()], None), Err(Error::Method(_))));
    }
}
