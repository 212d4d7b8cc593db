//! `[admin]`: who may administer.

use super::section::{choice, sections};

sections! {
    /// Who may administer.
    pub struct Admin {
        /// `DenyAll` refuses every administrative request, `AuthenticatedAuthorization` asks for a signed token,
        /// `InsecureAllowAll` lets anybody do everything and is for experiments only.
        pub authorization_mode: AuthorizationMode,
        /// How administrators prove who they are.
        pub authentication: Authentication,
        /// What they may do.
        pub authorization: Authorization,
    }

    /// How administrators prove who they are.
    pub struct Authentication {
        /// With a bearer token, in the form of a JWT.
        pub bearer_jwt: BearerJwt,
    }

    /// Administrators' tokens.
    pub struct BearerJwt {
        /// Whose tokens are taken; the first that verifies a token counts.
        pub identity_providers: Vec<IdentityProvider>,
    }

    /// One issuer of administrators' tokens.
    pub struct IdentityProvider {
        /// The `iss` that its tokens must have. Without it, any.
        pub issuer: Option<String>,
        /// The `aud` that its tokens must have. Without it, any.
        pub audience: Option<String>,
        /// Its public key in PEM: a path, `file://` or `https://`. It is read again when it changes.
        pub public_key_uri: Option<String>,
        /// Its JWK set, or itself as an issuer of OpenID Connect: a path, `file://` or `https://`. It is read again
        /// when it changes.
        pub jwk_set_uri: Option<String>,
    }

    /// What administrators may do.
    pub struct Authorization {
        /// By role and path.
        pub regex_acl: RegexAcl,
    }

    /// Rules by role and path.
    pub struct RegexAcl {
        /// The rules. A request is served if one of its role allows it.
        pub acls: Vec<Acl>,
    }

    /// What a role may do.
    pub struct Acl {
        /// The role, as the token's claim `role` names it.
        pub role: Option<String>,
        /// Regular expression that path and query must match as a whole. Begins with `^/kbs` or `^/metrics` and ends with `$`;
        /// one that says nothing about a query, by `\\?`, is held against the path alone.
        pub allowed_endpoints: Option<String>,
        /// Methods that are allowed, such as `["GET"]`. Empty means all.
        pub methods: Vec<String>,
        /// The `iss` that a token with this role must have. Without it, any issuer may give the role to anybody: set it
        /// where there is more than one.
        pub issuer: Option<String>,
        /// The tenant whose administrators have this role. Without it, they are the Trustee's own.
        pub tenant: Option<String>,
    }

    /// An owner who shares this Trustee: it has repository, resource policy, attestation policies and reference values
    /// of its own.
    pub struct Tenant {
        /// Its name: a-z, 0-9 and -, a letter first. Repository and policies bear it.
        pub name: Option<String>,
    }
}

choice! {
    /// Whether and how administrators are told from others.
    pub enum AuthorizationMode {
        /// There are none.
        #[default]
        DenyAll,
        /// By their tokens.
        AuthenticatedAuthorization,
        /// Everybody is one.
        InsecureAllowAll,
    }
}

impl Admin {
    pub(super) fn check(&self, tenants: &[Tenant]) -> Result<(), String> {
        if self.authorization_mode != AuthorizationMode::AuthenticatedAuthorization {
            return Ok(());
        }
        let providers = &self.authentication.bearer_jwt.identity_providers;
        if providers.is_empty() {
            return Err("[admin] AuthenticatedAuthorization needs [admin.authentication.bearer_jwt] \
                        identity_providers"
                .to_owned());
        }
        for (i, provider) in providers.iter().enumerate() {
            if provider.public_key_uri.is_none() && provider.jwk_set_uri.is_none() {
                return Err(format!(
                    "admin.authentication.bearer_jwt.identity_providers[{i}] needs public_key_uri or jwk_set_uri"
                ));
            }
        }
        let acls = &self.authorization.regex_acl.acls;
        if acls.is_empty() {
            return Err("[admin] AuthenticatedAuthorization needs [admin.authorization.regex_acl] acls".to_owned());
        }
        for (i, acl) in acls.iter().enumerate() {
            let place = format!("admin.authorization.regex_acl.acls[{i}]");
            if acl.role.is_none() || acl.allowed_endpoints.is_none() {
                return Err(format!("{place} needs role and allowed_endpoints"));
            }
            let known = |name: &String| tenants.iter().any(|tenant| tenant.name.as_ref() == Some(name));
            if let Some(name) = acl.tenant.as_ref().filter(|name| !known(name)) {
                return Err(format!("{place} names the tenant {name:.60?}, which [[tenants]] doesn't"));
            }
        }
        Ok(())
    }
}
