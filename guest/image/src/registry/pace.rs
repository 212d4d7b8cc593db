//! How fast a body must come. The client bounds silence; this bounds dribbling.

use std::time::{Duration, Instant};

use bytes::Bytes;
use oci_spec::distribution::Reference;
use reqwest::Response;
use tokio::time::timeout;

use super::{RegistryError, Session};

/// What came of a body, and how long it was waited for, since the last [`PROGRESS`] bytes were full.
#[derive(Default)]
pub(super) struct Pace {
    arrived: u64,
    waited: Duration,
}

impl Session {
    /// The next bytes of a body.
    ///
    /// Each [`PROGRESS`] bytes must come within the patience for them. Only time that is spent in here counts, so that
    /// a reader that is slow itself is not held against the registry.
    pub(super) async fn chunk(
        &self,
        reference: &Reference,
        response: &mut Response,
        pace: &mut Pace,
    ) -> Result<Option<Bytes>, RegistryError> {
        let limit = self.clients.patience.progress;
        let begun = Instant::now();
        let Ok(chunk) = timeout(limit.saturating_sub(pace.waited), response.chunk()).await else {
            return Err(RegistryError::Slow {
                registry: reference.registry().to_owned(),
                bytes: pace.arrived,
                seconds: limit.as_secs_f32(),
            });
        };
        let chunk = chunk.map_err(|e| self.classify(reference, e))?;
        pace.waited += begun.elapsed();
        pace.arrived += chunk.as_ref().map_or(0, Bytes::len) as u64;
        if pace.arrived >= PROGRESS {
            *pace = Pace::default();
        }
        Ok(chunk)
    }
}

/// What counts as getting on.
pub(super) const PROGRESS: u64 = 1 << 20;
