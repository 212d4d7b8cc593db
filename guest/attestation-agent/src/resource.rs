//! Resources for tokens: one that the broker does not accept is replaced, whoever gets the tokens.

use std::sync::Arc;
use std::time::Duration;

use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::error::{Error, Stage};
use crate::kbs::Kbs;
use crate::retry;
use crate::tokens::Token;

/// Fetches a resource with a token of `token`, which is told the one that was refused if there was one.
pub(crate) async fn fetch<F>(
    kbs: &Kbs,
    uri: &ResourceUri,
    token: impl Fn(Option<Arc<Token>>) -> F,
) -> Result<Zeroizing<Vec<u8>>, Error>
where
    F: Future<Output = Result<Arc<Token>, Error>>,
{
    let fetch = async {
        let (mut refused, mut attempt) = (None, 1);
        loop {
            let token = token(refused).await?;
            match retry::transient(|| kbs.resource(uri, token.jwt())).await {
                Ok(sealed) => {
                    return token.key().open(&sealed).map_err(|e| Error::Answer {
                        stage: Stage::Resource,
                        call: format!("GET {uri}"),
                        cause: format!("it can't be opened with this guest's key: {e}"),
                    });
                }
                Err(error) if error.is_stale_token() && attempt < TOKENS => {
                    tracing::info!(%uri, attempt, "the token was not accepted, replacing it");
                    (refused, attempt) = (Some(token), attempt + 1);
                }
                Err(error) => return Err(error),
            }
        }
    };
    match tokio::time::timeout(DEADLINE, fetch).await {
        Ok(outcome) => outcome,
        Err(_) => {
            let url = kbs.url().to_owned();
            Err(Error::Deadline { stage: Stage::Resource, url, seconds: DEADLINE.as_secs() })
        }
    }
}

/// For each resource.
const TOKENS: u32 = 3;
/// Below the 50 s after which upstream's clients stop waiting, above the deadline of a handshake.
const DEADLINE: Duration = Duration::from_secs(48);
