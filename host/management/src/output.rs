//! What a container said last, whoever else has got it: the last 64 KiB, and a way to follow it.

use std::collections::VecDeque;
use std::sync::Arc;

use futures::Stream;
use futures::stream::unfold;
use hyper::body::Bytes;
use tokio::sync::watch;

/// The end of a container's output, both of its streams in the order in which they came. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Output(Arc<watch::Sender<Tail>>);

#[derive(Debug, Default)]
struct Tail {
    kept: VecDeque<u8>,
    /// How many bytes came before those.
    forgotten: u64,
    /// How many streams are still open, once there was one.
    open: usize,
    ended: bool,
}

impl Output {
    /// A stream of it begins.
    pub fn begin(&self) {
        self.0.send_modify(|tail| (tail.open, tail.ended) = (tail.open + 1, false));
    }

    /// A stream of it has ended. With the last one the output has.
    pub fn end(&self) {
        self.0.send_modify(|tail| {
            tail.open = tail.open.saturating_sub(1);
            tail.ended = tail.open == 0;
        });
    }

    /// Something was said.
    pub fn push(&self, bytes: &[u8]) {
        self.0.send_modify(|tail| {
            tail.kept.extend(&bytes[bytes.len().saturating_sub(KEPT)..]);
            let surplus = tail.kept.len().saturating_sub(KEPT);
            tail.kept.drain(..surplus);
            tail.forgotten += (bytes.len().saturating_sub(KEPT) + surplus) as u64;
        });
    }

    /// What is kept.
    pub fn kept(&self) -> Bytes {
        self.0.borrow().from(0).0
    }

    /// What is kept and what follows, until the output ends. Who is too slow misses some of it.
    pub fn follow(&self) -> impl Stream<Item = Bytes> + Send + use<> {
        unfold((self.0.subscribe(), 0), |(mut changes, at)| async move {
            let tail = changes.wait_for(|tail| tail.end() > at || tail.ended).await.ok()?;
            let (bytes, end) = tail.from(at);
            drop(tail);
            (!bytes.is_empty()).then_some((bytes, (changes, end)))
        })
    }
}

impl Tail {
    fn end(&self) -> u64 {
        self.forgotten + self.kept.len() as u64
    }

    /// What is kept of all after `at`, and its end.
    fn from(&self, at: u64) -> (Bytes, u64) {
        let skipped = usize::try_from(at.saturating_sub(self.forgotten)).unwrap_or(usize::MAX);
        (self.kept.iter().skip(skipped).copied().collect(), self.end())
    }
}

const KEPT: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use futures::StreamExt as _;

    #[tokio::test]
    async fn a_follower_gets_what_was_said_and_what_comes() {
        let output = Output::default();
        output.begin();
        output.push(b"one ");
        let mut lines = std::pin::pin!(output.follow());
        assert_eq!(lines.next().await.unwrap(), "one ");
        output.push(b"two ");
        output.push(b"three");
        assert_eq!(lines.next().await.unwrap(), "two three");
        output.end();
        assert_eq!(lines.next().await, None);
        assert_eq!(output.kept(), "one two three");
    }

    #[tokio::test]
    async fn only_the_end_is_kept_and_a_slow_follower_misses_the_rest() {
        let output = Output::default();
        output.begin();
        let mut follower = std::pin::pin!(output.follow());
        output.push(b"first");
        assert_eq!(follower.next().await.unwrap(), "first");
        for _ in 0..10 {
            output.push(&[b'x'; 20_000]);
        }
        output.push(&vec![b'y'; 3 * KEPT]);
        output.push(b"last");
        let late = follower.next().await.unwrap();
        assert!(late.len() == KEPT && late.ends_with(b"ylast"), "{}", late.len());
        assert_eq!(output.kept(), late);
        output.push(b"!");
        assert_eq!(follower.next().await.unwrap(), "!");
    }

    #[tokio::test]
    async fn an_output_of_two_streams_ends_with_both() {
        let output = Output::default();
        output.begin();
        output.begin();
        output.end();
        output.push(b"still");
        let mut follower = std::pin::pin!(output.follow());
        assert_eq!(follower.next().await.unwrap(), "still");
        output.end();
        assert_eq!(follower.next().await, None);
    }
}
