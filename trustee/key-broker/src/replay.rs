//! Notices attestations that were sent before.
//!
//! A sealed cookie can't make a nonce single-use. What is sent again gives a token for the same key and to no other
//! holder, so it is answered, and marked in the audit log. Each replica remembers what it has seen itself; what was
//! sent to two replicas shows in their logs, since every line of an attestation names its session.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};

/// The sessions that attested lately: at least the last [`GENERATION`], at most twice as many.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Generations>);

#[derive(Default)]
struct Generations {
    young: HashSet<u64>,
    old: HashSet<u64>,
}

/// What the audit log calls a session: 8 bytes of the nonce's hash.
#[derive(Clone, Copy)]
pub(crate) struct SessionId(u64);

impl SessionId {
    /// The id of the session with this nonce.
    pub fn of(nonce: &str) -> Self {
        let hash = digest(&SHA256, nonce.as_bytes());
        Self(hash.as_ref().iter().take(8).fold(0, |id, &byte| id << 8 | u64::from(byte)))
    }

    /// The id in hexadecimal.
    pub fn text(self) -> String {
        format!("{:016x}", self.0)
    }
}

impl Seen {
    /// Remembers that a session attested; true if it had before.
    pub fn again(&self, session: SessionId) -> bool {
        let mut generations = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if generations.old.contains(&session.0) {
            return true;
        }
        if generations.young.len() >= GENERATION {
            let capacity = HashSet::with_capacity(generations.young.len());
            generations.old = std::mem::replace(&mut generations.young, capacity);
        }
        !generations.young.insert(session.0)
    }
}

/// Ten seconds of the fastest handshakes that were measured, in a megabyte.
const GENERATION: usize = 1 << 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_is_new_once_and_what_is_remembered_is_bounded() {
        let seen = Seen::default();
        let first = SessionId::of("first");
        assert!(!seen.again(first));
        assert!(seen.again(first));
        for number in 0..GENERATION {
            assert!(!seen.again(SessionId::of(&number.to_string())));
        }
        assert!(seen.again(first));
        for number in 0..3 * GENERATION {
            seen.again(SessionId::of(&format!("other {number}")));
        }
        let generations = seen.0.lock().unwrap();
        assert!(generations.young.len() <= GENERATION && generations.old.len() <= GENERATION);
    }
}
