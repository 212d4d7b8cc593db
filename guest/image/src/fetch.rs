//! One layer on its way into the work directory, from whichever source has its bytes.

use std::slice;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;

use crate::encryption::LayerSecrets;
use crate::error::{Failure, Stage};
use crate::layer_dir::LayerDir;
use crate::manifest::{LayerPlan, Resolved};
use crate::pipeline::Pipeline;
use crate::registries::Source;
use crate::registry::error::Attempt;
use crate::registry::{Delivery, RegistryError};
use crate::store::Store;
use crate::zstd::Windows;

/// A layer that is to be fetched.
pub(crate) struct LayerFetch<'a> {
    pub(crate) resolved: &'a Resolved,
    pub(crate) plan: &'a LayerPlan,
    pub(crate) store: &'a Store,
    pub(crate) windows: &'a Arc<Windows>,
    pub(crate) secrets: Option<Arc<LayerSecrets>>,
    /// Held until every thread that works on the layer has ended.
    pub(crate) working: mpsc::Sender<Never>,
}

/// The message of a channel whose only message is its end.
pub(crate) enum Never {}

impl LayerFetch<'_> {
    /// Fetches and unpacks the layer: the network here, everything else on a thread of its own.
    ///
    /// All sources together make one stream, in which each goes on where another broke. If its bytes were wrong, nobody
    /// knows whose they were: then each source must deliver the whole blob alone. The node's cache is asked before all.
    pub(crate) async fn run(self) -> Result<LayerDir, Failure> {
        if let Some(outcome) = self.by_node().await {
            return outcome;
        }
        let sources = &self.resolved.from.sources;
        let (from, wrong) = match self.attempt(sources).await {
            Err(Refusal::Wrong { from, error }) if sources.len() > 1 => (from, error),
            outcome => return outcome.map_err(Failure::from),
        };
        tracing::warn!(blob = %self.plan.blob.digest(), error = %wrong, "the other sources are asked for the whole blob");
        let mut attempts = Vec::new();
        for source in sources {
            let cause = match from[..] {
                [only] if std::ptr::eq(only, source) => wrong.clone(),
                _ => match self.attempt(slice::from_ref(source)).await {
                    Err(Refusal::Wrong { error, .. } | Refusal::Undelivered(error)) => error,
                    outcome => return outcome.map_err(Failure::from),
                },
            };
            attempts.push(Attempt { source: source.reference.whole(), cause });
        }
        Err(Refusal::Undelivered(RegistryError::of(attempts)).into())
    }

    /// The layer, if the node has it; nothing if it is the registry's turn.
    async fn by_node(&self) -> Option<Result<LayerDir, Failure>> {
        let (digest, size) = (self.plan.blob.digest(), self.plan.blob.size());
        let node = self.resolved.session.node()?;
        let blob = node.blob(digest, size).await?;
        let broken = |cause| RegistryError::Broken { registry: "of the node".to_owned(), cause };
        let fetch = |sink| async { Delivery { from: Vec::new(), outcome: blob.send(sink).await.map_err(broken) } };
        match self.unpacked(fetch).await {
            Err(Refusal::Wrong { error, .. } | Refusal::Undelivered(error)) => {
                node.give_up(digest, &error);
                None
            }
            outcome => Some(outcome.map_err(Failure::from)),
        }
    }

    async fn attempt<'s>(&self, sources: &'s [Source]) -> Result<LayerDir, Refusal<'s>> {
        let (digest, size) = (self.plan.blob.digest(), self.plan.blob.size());
        self.unpacked(|sink| self.resolved.session.blob(sources, digest, size, sink)).await
    }

    async fn unpacked<'s, F>(&self, fetch: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Result<LayerDir, Refusal<'s>>
    where
        F: Future<Output = Delivery<'s>>,
    {
        let directory = self.store.new_layer_dir();
        let directory = directory
            .map_err(|e| Failure::new(Stage::Unpack, format!("{}: {e}", self.store.root().display())))
            .map_err(Refusal::Layer)?;
        let (sink, chunks) = mpsc::channel(CHUNKS);
        let work = {
            let (plan, secrets) = (self.plan.clone(), self.secrets.clone());
            let (windows, working) = (self.windows.clone(), self.working.clone());
            spawn_blocking(move || {
                let pipeline = Pipeline { plan: &plan, secrets: secrets.as_deref(), windows: &windows };
                (pipeline.run(chunks, directory), working)
            })
        };
        let (delivery, work) = tokio::join!(fetch(sink), work);
        let from = delivery.from;
        match (delivery.outcome, work) {
            (Err(error @ RegistryError::TooLong { .. }), _) => Err(Refusal::Wrong { from, error }),
            // If the network failed, the pipeline only saw a short stream.
            (Err(error), _) => Err(Refusal::Undelivered(error)),
            (Ok(()), Err(e)) => Err(Refusal::Layer(Failure::new(Stage::Unpack, e))),
            (Ok(()), Ok((Err(failure), _))) if failure.stage == Stage::Digest => {
                let registries: Vec<_> = from.iter().map(|source| source.reference.registry()).collect();
                let error = RegistryError::Digest { registry: registries.join(" and "), cause: failure.cause };
                Err(Refusal::Wrong { from, error })
            }
            (Ok(()), Ok((outcome, _))) => outcome.map_err(Refusal::Layer),
        }
    }
}

/// Why there is no layer.
enum Refusal<'s> {
    /// What came from these sources is not the blob.
    Wrong { from: Vec<&'s Source>, error: RegistryError },
    /// The blob did not come.
    Undelivered(RegistryError),
    /// The blob came and is no layer that can be had here.
    Layer(Failure),
}

impl From<Refusal<'_>> for Failure {
    fn from(refusal: Refusal<'_>) -> Self {
        match refusal {
            Refusal::Layer(failure) => failure,
            Refusal::Wrong { error, .. } | Refusal::Undelivered(error) => {
                let stage = if error.is_wrong_digest() { Stage::Digest } else { Stage::Fetch };
                Self::advised(stage, error)
            }
        }
    }
}

/// A chunk is what one read of the connection gave: 16 KiB from afar, and up to 400 KiB from a registry that is close.
const CHUNKS: usize = 2;
