//! `sample`: an example to start a plugin from. It tells administrators what it was configured with.

use async_trait::async_trait;
use serde::Deserialize;
use serde_json::Value;

use crate::{Access, Error, Output, Plugin, Request};

/// Settings of the plugin `sample`.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// What it answers.
    pub item: String,
}

pub(crate) struct Sample {
    item: String,
}

impl Sample {
    pub fn open(config: Config) -> Self {
        Self { item: config.item }
    }
}

#[async_trait]
impl Plugin for Sample {
    fn name(&self) -> &str {
        NAME
    }

    async fn access(&self, _request: &Request<'_>) -> Result<Access, Error> {
        Ok(Access::Administrator)
    }

    async fn handle(&self, request: &Request<'_>, _init_data_claims: Option<&Value>) -> Result<Output, Error> {
        match request.method {
            "GET" | "POST" => Ok(Output::plain(self.item.clone().into_bytes())),
            _ => Err(Error::Route(NAME)),
        }
    }
}

const NAME: &str = "sample";

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use std::collections::BTreeMap;

    #[tokio::test]
    async fn an_administrator_is_told_the_item() {
        let sample = Sample::open(Config { item: "an item".to_owned() });
        let (query, body) = (BTreeMap::new(), Bytes::new());
        let request = |method| Request { method, path: &["anything"], query: &query, body: &body };

        assert_eq!(sample.access(&request("GET")).await.unwrap(), Access::Administrator);
        let output = sample.handle(&request("GET"), None).await.unwrap();
        assert_eq!((output.body.as_slice(), output.encrypted, output.status), (&b"an item"[..], false, 200));
        assert!(matches!(sample.handle(&request("DELETE"), None).await, Err(Error::Route(_))));
    }
}
