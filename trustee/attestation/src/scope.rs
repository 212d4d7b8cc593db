//! Whose reference values a policy may ask for: not those of another tenant.

use std::collections::BTreeMap;
use std::sync::Arc;

use reference_values::{Error, Source};
use serde_json::Value;

/// All reference values, and the part of them that each tenant's policies see.
pub(crate) struct Scopes {
    all: Arc<dyn Source>,
    of_tenants: BTreeMap<String, Arc<dyn Source>>,
}

impl Scopes {
    /// The scopes of these tenants.
    pub fn new(all: Arc<dyn Source>, tenants: Vec<String>) -> Self {
        let of_tenants = tenants.iter().map(|tenant| {
            let hidden = tenants.iter().filter(|other| *other != tenant).map(|other| format!("{other}/"));
            let scope = Scope { all: all.clone(), hidden: hidden.collect() };
            (tenant.clone(), Arc::new(scope) as Arc<dyn Source>)
        });
        Self { of_tenants: of_tenants.collect(), all }
    }

    /// What the policies of an id see: a tenant's policies bear its name.
    pub fn of(&self, policy_id: &str) -> &Arc<dyn Source> {
        let tenant = policy_id.split('_').next().unwrap_or_default();
        self.of_tenants.get(tenant).unwrap_or(&self.all)
    }
}

struct Scope {
    all: Arc<dyn Source>,
    /// What the hidden names begin with.
    hidden: Vec<String>,
}

impl Source for Scope {
    fn query(&self, name: &str) -> Result<Option<Value>, Error> {
        match self.hidden.iter().any(|prefix| name.starts_with(prefix)) {
            true => Ok(None),
            false => self.all.query(name),
        }
    }

    fn is_in_memory(&self) -> bool {
        self.all.is_in_memory()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Everything;

    impl Source for Everything {
        fn query(&self, name: &str) -> Result<Option<Value>, Error> {
            Ok(Some(Value::from(name)))
        }
    }

    #[test]
    fn a_tenants_policies_see_what_is_its_own_or_nobodys() {
        let scopes = Scopes::new(Arc::new(Everything), vec!["blue".to_owned(), "red".to_owned()]);
        let sees = |policy: &str, name: &str| scopes.of(policy).query(name).unwrap().is_some();
        for (policy, name, expected) in [
            ("blue", "blue/svn", true),
            ("blue", "svn", true),
            ("blue", "red/svn", false),
            ("blue_strict", "red/svn", false),
            ("red", "blue/svn", false),
            ("default", "red/svn", true),
        ] {
            assert_eq!(sees(policy, name), expected, "{policy} asks for {name}");
        }
    }
}
