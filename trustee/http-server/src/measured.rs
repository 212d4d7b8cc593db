//! A response body that tells its size once it is over.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Frame, SizeHint};
use prometheus_client::metrics::histogram::Histogram;

use crate::{Body, BoxError};

/// A body; what was sent of it is observed when it is dropped, whole or broken off.
pub(crate) struct Measured {
    body: Body,
    sent: u64,
    sizes: Option<Histogram>,
}

impl Measured {
    pub fn new(body: Body, sizes: Option<Histogram>) -> Self {
        Self { body, sent: 0, sizes }
    }
}

impl hyper::body::Body for Measured {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, BoxError>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(Ok(frame)) = &frame {
            self.sent += frame.data_ref().map_or(0, |data| data.len() as u64);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if let Some(sizes) = &self.sizes {
            sizes.observe(self.sent as f64);
        }
    }
}
