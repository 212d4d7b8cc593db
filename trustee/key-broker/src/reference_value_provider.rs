//! Where reference values are: in this process, or at a provider elsewhere.

use attestation_api::ReferenceValueClient;
use aws_lc_rs::digest::SHA256;
use reference_values::{PastRecord, Record, ReferenceValues};
use serde_json::{Value, json};
use wire::reference_value::Message;

use crate::precondition::Precondition;
use crate::refusal::Refusal;

/// The provider of reference values that administrators reach through the broker.
pub enum Provider {
    /// In this process.
    BuiltIn(ReferenceValues),
    /// A service with upstream's gRPC interface, which can only register, query and list.
    Remote(ReferenceValueClient),
}

impl Provider {
    /// Registers the values of a message whose names begin with `prefix`.
    ///
    /// # Errors
    /// [`Refusal::ReferenceValue`], [`Refusal::Service`]; [`Refusal::Changed`] if the values are not those that the
    /// condition names, [`Refusal::Condition`] where that can't be known.
    pub(crate) async fn register(
        &self,
        message: &Message,
        prefix: &str,
        condition: &Precondition,
    ) -> Result<(), Refusal> {
        match (self, condition) {
            (Self::BuiltIn(values), Precondition::None) => _ = values.register_scoped(message, prefix).await?,
            (Self::BuiltIn(values), Precondition::Version(version)) => {
                let unchanged = values.register_if(message, prefix, |records| digest(records) == *version).await?;
                unchanged.ok_or(Refusal::Changed)?;
            }
            (Self::BuiltIn(values), Precondition::Absent) => {
                values.register_if(message, prefix, <[_]>::is_empty).await?.ok_or(Refusal::Changed)?;
            }
            (Self::Remote(client), Precondition::None) if prefix.is_empty() => {
                client.register(message).await.map_err(Refusal::Service)?;
            }
            (Self::Remote(_), _) => return Err(Refusal::Condition),
        }
        Ok(())
    }

    /// The value of a name.
    ///
    /// # Errors
    /// [`Refusal::Service`].
    pub(crate) async fn query(&self, name: &str) -> Result<Option<Value>, Refusal> {
        match self {
            Self::BuiltIn(values) => Ok(values.query(name)),
            Self::Remote(client) => client.query(name).await.map_err(Refusal::Service),
        }
    }

    /// All records whose names begin with `prefix`, and what to name in a condition.
    ///
    /// # Errors
    /// [`Refusal::Service`].
    pub(crate) async fn list(&self, prefix: &str) -> Result<(Value, Option<String>), Refusal> {
        match self {
            Self::BuiltIn(values) => {
                let records = values.list(prefix);
                Ok((json!(records), Some(digest(&records))))
            }
            Self::Remote(client) => {
                let mut names = client.list().await.map_err(Refusal::Service)?;
                names.retain(|name| name.starts_with(prefix));
                Ok((json!(names), None))
            }
        }
    }

    /// What a name's value was, newest first.
    ///
    /// # Errors
    /// [`Refusal::ReferenceValue`]; [`Refusal::Elsewhere`] where the provider keeps that to itself.
    pub(crate) async fn history(&self, name: &str) -> Result<Vec<PastRecord>, Refusal> {
        match self {
            Self::BuiltIn(values) => Ok(values.history(name).await?),
            Self::Remote(_) => Err(Refusal::Elsewhere),
        }
    }

    /// Removes a name; false if it was unknown.
    ///
    /// # Errors
    /// As [`Provider::history`].
    pub(crate) async fn delete(&self, name: &str) -> Result<bool, Refusal> {
        match self {
            Self::BuiltIn(values) => Ok(values.delete(name).await?),
            Self::Remote(_) => Err(Refusal::Elsewhere),
        }
    }
}

/// Names a set of records: the first 8 bytes of their hash.
fn digest(records: &[Record]) -> String {
    let text = serde_json::to_vec(records).unwrap_or_default();
    hex::encode(&aws_lc_rs::digest::digest(&SHA256, &text).as_ref()[..8])
}
