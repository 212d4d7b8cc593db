//! Tenants: owners who share one Trustee and can't see each other.
//!
//! A tenant's name is all there is to it. The tenant `blue` owns the resources of repository `blue`, the resource
//! policy `blue` that decides about them, the attestation policies `blue_<class>` that its guests can ask for, and
//! the reference values `blue/…`. Its administrators are bound to it by their role and are shown nothing else.

use std::collections::BTreeSet;
use std::fmt;

use wire::resource::ResourcePath;

/// The tenants of a Trustee; whatever belongs to none of them belongs to the Trustee's own administrators.
#[derive(Clone, Debug, Default)]
pub struct Tenants(BTreeSet<Tenant>);

/// The name of a tenant: 1 to 40 of the characters `a-z 0-9 -`, beginning with a letter.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub struct Tenant(String);

impl Tenants {
    /// The tenants of these names.
    ///
    /// # Errors
    /// [`Error`] for a name that is none.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Result<Self, Error> {
        names.into_iter().map(Tenant::parse).collect::<Result<_, _>>().map(Self)
    }

    /// The tenant of a name, if there is one.
    pub fn get(&self, name: &str) -> Option<&Tenant> {
        self.0.iter().find(|tenant| tenant.as_str() == name)
    }

    /// The tenants whose attestation policies a token was appraised under.
    pub(crate) fn appraised<'a>(&'a self, policy_ids: &'a [String]) -> impl Iterator<Item = &'a Tenant> {
        policy_ids.iter().filter_map(|id| self.get(id.split('_').next().unwrap_or_default()))
    }

    /// Whose a resource is.
    pub(crate) fn owner(&self, path: &ResourcePath) -> Option<&Tenant> {
        self.get(path.segments().next().unwrap_or_default())
    }
}

impl Tenant {
    /// Checks a name. `default` is no tenant: it is the attestation policy of everybody.
    ///
    /// # Errors
    /// [`Error`] with the start of the text, escaped.
    pub fn parse(name: &str) -> Result<Self, Error> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_lowercase());
        let reserved = matches!(name, "default" | "resource-policy");
        if !first || reserved || name.len() > MAX_NAME || !name.bytes().all(allowed) {
            return Err(Error(crate::excerpt::excerpt(name)));
        }
        Ok(Self(name.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether a resource belongs to this tenant.
    pub(crate) fn owns(&self, path: &ResourcePath) -> bool {
        path.segments().next() == Some(self.as_str())
    }

    /// Whether an attestation policy belongs to this tenant. No name has an underscore, so no other's begins so.
    pub(crate) fn owns_policy(&self, id: &str) -> bool {
        id.split_once('_').is_some_and(|(owner, _)| owner == self.as_str())
    }

    /// What the names of this tenant's reference values begin with.
    pub(crate) fn prefix(&self) -> String {
        format!("{}/", self.0)
    }
}

impl fmt::Display for Tenant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The text is no name of a tenant.
#[derive(Debug, thiserror::Error)]
#[error(
    "\"{0}\" can't name a tenant; next: use 1 to {MAX_NAME} of the characters a-z 0-9 -, a letter first, and neither \
     default nor resource-policy"
)]
pub struct Error(String);

const MAX_NAME: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_owns_what_bears_its_name() {
        let tenants = Tenants::new(["blue", "blue-2"]).unwrap();
        let path = |text| ResourcePath::parse(text).unwrap();
        assert_eq!(tenants.owner(&path("blue/a/b")).map(Tenant::as_str), Some("blue"));
        assert_eq!(tenants.owner(&path("blue-2/a/b")).map(Tenant::as_str), Some("blue-2"));
        assert_eq!(tenants.owner(&path("Blue/a/b")), None);
        let blue = tenants.get("blue").unwrap();
        assert!(blue.owns_policy("blue_cpu") && !blue.owns_policy("blue-2_cpu") && !blue.owns_policy("blue"));
        for bad in ["", "Blue", "a_b", "a/b", "1a", "-a", "default", "resource-policy", &"a".repeat(41)] {
            assert!(Tenants::new([bad]).is_err(), "{bad:?} passed");
        }
    }
}
