//! What is kept up to date, and what is verified with it, from outside.

mod admin;
mod attestation;
mod chains;
mod issuer;
mod reload;
mod signer;
mod version_one;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use store::clock::Clock;

use crate::http::Http;
use crate::live::Keeping;

/// The time at which tests begin: in 2026.
const NOW: u64 = 1_790_000_000;

/// A clock that stands until it is moved.
#[derive(Clone)]
struct Hands(Arc<AtomicU64>);

impl Hands {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(NOW)))
    }

    fn clock(&self) -> Clock {
        Clock::set_by(self.0.clone())
    }

    fn move_by(&self, seconds: u64) {
        self.0.fetch_add(seconds, Ordering::Relaxed);
    }

    /// What keeping keys takes, with the system's CAs only.
    fn keeping(&self) -> Keeping {
        Keeping::new(Http::new(None).unwrap(), self.clock())
    }
}
