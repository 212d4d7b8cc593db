//! The trustworthiness vector of an appraisal and its tiers (AR4SI, draft-ietf-rats-ar4si).

use std::fmt;

use serde_json::{Map, Value};

use crate::excerpt::excerpt;

/// How far an attester can be trusted, from the least worrying to the most.
#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Tier {
    /// Nothing is claimed: -1 to 1.
    None,
    /// As expected: 2 to 31, and -32 to -2.
    Affirming,
    /// To be looked at: 32 to 95, and -96 to -33.
    Warning,
    /// Not to be trusted: the rest.
    Contraindicated,
}

impl Tier {
    /// The tier of one trustworthiness claim.
    pub fn of(claim: i8) -> Self {
        match claim {
            -1..=1 => Self::None,
            -32..=31 => Self::Affirming,
            -96..=95 => Self::Warning,
            _ => Self::Contraindicated,
        }
    }
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "none",
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        })
    }
}

/// The eight trustworthiness claims, 0 where a policy says nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct TrustVector([i8; CLAIMS.len()]);

impl TrustVector {
    /// Reads the value of a policy's rule `trust_claims`: an object from claim name to integer.
    ///
    /// # Errors
    /// [`Error`] for another shape, an unknown name or a value that is no integer from -128 to 127.
    pub fn from_policy(claims: &Value) -> Result<Self, Error> {
        let claims = claims.as_object().ok_or(Error::Shape)?;
        let mut vector = Self::default();
        for (name, value) in claims {
            let index = CLAIMS.iter().position(|known| known == name).ok_or_else(|| Error::Name(excerpt(name)))?;
            let value = value.as_i64().and_then(|value| i8::try_from(value).ok());
            vector.0[index] = value.ok_or(Error::Value(CLAIMS[index]))?;
        }
        Ok(vector)
    }

    /// The worst tier of all claims.
    pub fn status(&self) -> Tier {
        self.0.iter().map(|claim| Tier::of(*claim)).max().unwrap_or(Tier::None)
    }

    /// The vector as a token holds it.
    pub fn to_json(self) -> Map<String, Value> {
        CLAIMS.iter().zip(self.0).map(|(name, claim)| ((*name).to_owned(), Value::from(claim))).collect()
    }
}

/// What is wrong with the value of `trust_claims`.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum Error {
    #[error("trust_claims must be an object from claim name to integer")]
    Shape,
    #[error("trust_claims names \"{0}\", which is none of {known}", known = CLAIMS.join(", "))]
    Name(String),
    #[error("trust_claims gives {0} a value that is no integer from -128 to 127")]
    Value(&'static str),
}

const CLAIMS: [&str; 8] = [
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
];

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn every_claim_has_its_tier() {
        for (range, tier) in [
            (-128..=-97, Tier::Contraindicated),
            (-96..=-33, Tier::Warning),
            (-32..=-2, Tier::Affirming),
            (-1..=1, Tier::None),
            (2..=31, Tier::Affirming),
            (32..=95, Tier::Warning),
            (96..=127, Tier::Contraindicated),
        ] {
            for claim in range {
                assert_eq!(Tier::of(claim), tier, "{claim}");
            }
        }
    }

    #[test]
    fn the_status_is_the_worst_tier() {
        for (claims, status) in [
            (json!({}), Tier::None),
            (json!({ "executables": 3, "hardware": 2 }), Tier::Affirming),
            (json!({ "executables": 33, "hardware": 2 }), Tier::Warning),
            (json!({ "executables": 33, "hardware": 97 }), Tier::Contraindicated),
        ] {
            assert_eq!(TrustVector::from_policy(&claims).unwrap().status(), status, "{claims}");
        }
    }

    #[test]
    fn a_value_that_does_not_fit_is_an_error_and_does_not_wrap() {
        assert_eq!(TrustVector::from_policy(&json!({ "hardware": 258 })), Err(Error::Value("hardware")));
        assert_eq!(TrustVector::from_policy(&json!({ "hardware": 2.5 })), Err(Error::Value("hardware")));
        assert_eq!(TrustVector::from_policy(&json!({ "hardwear": 2 })), Err(Error::Name("hardwear".to_owned())));
        assert_eq!(TrustVector::from_policy(&json!([2])), Err(Error::Shape));
    }

    proptest! {
        #[test]
        fn a_vector_survives_its_json(values in prop::array::uniform8(any::<i8>())) {
            let vector = TrustVector(values);
            prop_assert_eq!(TrustVector::from_policy(&Value::Object(vector.to_json())), Ok(vector));
        }
    }
}
