//! Request bodies in memory: each is bounded, and so are all together, whoever sends them.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::HeaderMap;
use hyper::body::Body;
use hyper::header::CONTENT_LENGTH;

use crate::refusal::Refusal;

/// The memory for the bodies of all requests that are being answered.
pub(crate) struct Bodies {
    free: AtomicUsize,
    largest: usize,
}

/// What one body takes of it, given back when this is dropped.
pub(crate) struct Held {
    bodies: Arc<Bodies>,
    bytes: usize,
}

impl Bodies {
    /// Bodies of at most `largest` bytes each.
    pub fn new(largest: usize) -> Self {
        Self { free: AtomicUsize::new(MAX_BODIES), largest }
    }

    /// Reads a body to its end.
    ///
    /// What has arrived counts and not what is announced, so that nobody takes memory from others by a promise.
    ///
    /// # Errors
    /// [`Refusal::TooLarge`] beyond the largest size, [`Refusal::Busy`] if all bodies together have more than 256 MiB,
    /// [`Refusal::Body`] if the client breaks off.
    pub async fn read<B>(self: &Arc<Self>, headers: &HeaderMap, body: B) -> Result<(Bytes, Held), Refusal>
    where
        B: Body<Data = Bytes>,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let mut body = pin!(body);
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<usize>().ok());
        let mut too_large = announced.is_some_and(|length| length > self.largest);
        let (mut collected, mut discarded) = (BytesMut::new(), 0);
        let mut held = Held { bodies: self.clone(), bytes: 0 };
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|e| Refusal::Body(e.into().to_string()))?;
            let Ok(data) = frame.into_data() else { continue };
            too_large = too_large || collected.len() + data.len() > self.largest;
            if !too_large {
                held.take(data.len())?;
                collected.extend_from_slice(&data);
                continue;
            }
            // Most clients read no answer before they have written their request.
            discarded += data.len();
            if discarded > MAX_DISCARDED {
                break;
            }
        }
        if too_large { Err(Refusal::TooLarge(self.largest)) } else { Ok((collected.freeze(), held)) }
    }
}

impl Held {
    fn take(&mut self, bytes: usize) -> Result<(), Refusal> {
        let take = |free: usize| free.checked_sub(bytes);
        self.bodies.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).map_err(|_| Refusal::Busy)?;
        self.bytes += bytes;
        Ok(())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.bodies.free.fetch_add(self.bytes, Ordering::Relaxed);
    }
}

const MAX_BODIES: usize = 256 << 20;
const MAX_DISCARDED: usize = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use http_body_util::Full;

    const MAX_BODY: usize = 2 << 20;

    async fn read(bodies: &Arc<Bodies>, length: usize) -> Result<(Bytes, Held), Refusal> {
        bodies.read(&HeaderMap::new(), Full::new(Bytes::from(vec![b' '; length]))).await
    }

    #[tokio::test]
    async fn bodies_are_bounded_each_and_together() {
        let bodies = Arc::new(Bodies::new(MAX_BODY));
        let mut held = Vec::new();
        for _ in 0..MAX_BODIES / MAX_BODY {
            held.push(read(&bodies, MAX_BODY).await.unwrap());
        }
        assert!(matches!(read(&bodies, 1).await, Err(Refusal::Busy)));
        assert!(read(&bodies, 0).await.is_ok());
        assert!(matches!(read(&bodies, MAX_BODY + 1).await, Err(Refusal::TooLarge(_))));
        held.pop();
        assert!(read(&bodies, MAX_BODY).await.is_ok());
        drop(held);
        assert_eq!(bodies.free.load(Ordering::Relaxed), MAX_BODIES);
    }
}
