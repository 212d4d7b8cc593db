//! Blobs as streams that go on where they broke, at the same source or at the next one.

use bytes::Bytes;
use oci_spec::image::Digest;
use reqwest::StatusCode;
use reqwest::header::{CONTENT_RANGE, RANGE};
use tokio::sync::mpsc;

use super::error::Attempt;
use super::pace::{PROGRESS, Pace};
use super::{RegistryError, Session, TRIES, header};
use crate::registries::Source;

/// What became of a blob.
pub(crate) struct Delivery<'s> {
    /// Whose bytes were handed on, or were too many, each once.
    pub(crate) from: Vec<&'s Source>,
    pub(crate) outcome: Result<(), RegistryError>,
}

impl Session {
    /// Streams exactly `size` bytes of a blob into `sink`.
    ///
    /// The blob is its digest, so any source may continue what another one began; whoever reads from `sink` hashes
    /// what arrives and never sees a byte twice. A source that refuses is not asked again, one that fails is asked
    /// after the others, and after a pause once all have failed. Patience begins anew with each [`PROGRESS`].
    ///
    /// Ends early and without an error once nobody reads from `sink` any more.
    pub(crate) async fn blob<'s>(
        &self,
        sources: &'s [Source],
        digest: &Digest,
        size: u64,
        sink: mpsc::Sender<Bytes>,
    ) -> Delivery<'s> {
        let mut from = Vec::new();
        let outcome = self.joined(sources, digest, size, &sink, &mut from).await;
        Delivery { from, outcome }
    }

    async fn joined<'s>(
        &self,
        sources: &'s [Source],
        digest: &Digest,
        size: u64,
        sink: &mpsc::Sender<Bytes>,
        from: &mut Vec<&'s Source>,
    ) -> Result<(), RegistryError> {
        let mut said: Vec<Option<RegistryError>> = vec![None; sources.len()];
        let (mut offset, mut mark, mut round) = (0, 0, 0);
        loop {
            for (source, last) in sources.iter().zip(&mut said) {
                if last.as_ref().is_some_and(|error| !error.is_transient()) {
                    continue;
                }
                let before = offset;
                let outcome = self.stream(source, digest, size, &mut offset, sink).await;
                let too_long = matches!(outcome, Err(RegistryError::TooLong { .. }));
                if (offset > before || too_long) && !from.iter().any(|known| std::ptr::eq(*known, source)) {
                    from.push(source);
                }
                let Err(error) = outcome else { return Ok(()) };
                tracing::warn!(blob = %digest, offset, %error, "blob stream broke");
                if too_long {
                    // What has been handed on can't be taken back.
                    return Err(error);
                }
                *last = Some(error);
            }
            // A stream that got on deserves new patience; one that only dribbles does not.
            round = if offset - mark >= PROGRESS { 1 } else { round + 1 };
            mark = offset;
            let hopeful = || said.iter().flatten().filter(|error| error.is_transient());
            if round >= TRIES || hopeful().next().is_none() {
                let told = sources.iter().zip(said);
                let told =
                    told.filter_map(|(source, said)| Some(Attempt { source: source.reference.whole(), cause: said? }));
                return Err(RegistryError::of(told.collect()));
            }
            let asked = hopeful().filter_map(RegistryError::retry_after).min();
            tokio::time::sleep(self.clients.patience.pause(round, asked)).await;
        }
    }

    /// One answer, from `offset` on, which moves with what is handed to `sink`.
    async fn stream(
        &self,
        source: &Source,
        digest: &Digest,
        size: u64,
        offset: &mut u64,
        sink: &mpsc::Sender<Bytes>,
    ) -> Result<(), RegistryError> {
        let reference = &source.reference;
        let registry = || reference.registry().to_owned();
        let range = format!("bytes={offset}-");
        let headers: &[_] = if *offset > 0 { &[(RANGE, range.as_str())] } else { &[] };
        let mut response = self.get(source, &format!("blobs/{digest}"), headers).await?;

        let mut skip = 0;
        if response.status() == StatusCode::PARTIAL_CONTENT {
            let start = header(response.headers(), &CONTENT_RANGE).and_then(range_start);
            if start != Some(*offset) {
                return Err(RegistryError::Range { registry: registry() });
            }
        } else {
            // Without ranges it comes from its start; what has been handed on is passed over.
            skip = *offset;
        }

        let mut pace = Pace::default();
        while let Some(mut chunk) = self.chunk(reference, &mut response, &mut pace).await? {
            if skip > 0 {
                let count = skip.min(chunk.len() as u64);
                skip -= count;
                drop(chunk.split_to(count as usize));
            }
            if chunk.len() as u64 > size - *offset {
                return Err(RegistryError::TooLong { registry: registry(), limit: size });
            }
            *offset += chunk.len() as u64;
            if !chunk.is_empty() && sink.send(chunk).await.is_err() {
                return Ok(());
            }
        }
        match *offset == size {
            true => Ok(()),
            false => Err(RegistryError::Broken {
                registry: registry(),
                cause: format!("the stream ended after {offset} of {size} bytes"),
            }),
        }
    }
}

/// The first byte's place in a `Content-Range` such as `bytes 100-199/200`.
fn range_start(value: &str) -> Option<u64> {
    value.trim().strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_starts_where_it_says() {
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes 0-0/*"), Some(0));
        assert_eq!(range_start("bytes */200"), None);
        assert_eq!(range_start("100-199"), None);
    }
}
