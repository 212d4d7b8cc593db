//! The thread on which policies are evaluated: one, with the stack that [`depth`] counts on.
//!
//! A policy that takes its time delays other decisions, and nothing else of the guest.

use std::sync::{Mutex, PoisonError};

use tokio::sync::{mpsc, oneshot};

use super::{Denial, depth};

/// Evaluates one after the other. The thread starts with the first, and ends with this value.
#[derive(Default)]
pub(super) struct Decider(Mutex<Option<mpsc::Sender<Job>>>);

type Answer = Result<(), Denial>;

struct Job {
    work: Box<dyn FnOnce() -> Answer + Send>,
    answer: oneshot::Sender<Answer>,
}

impl Decider {
    /// Waits for the answer. None where there is no thread, or where it ended over this.
    pub(super) async fn decide(&self, work: impl FnOnce() -> Answer + Send + 'static) -> Option<Answer> {
        let (answer, decided) = oneshot::channel();
        self.queue()?.send(Job { work: Box::new(work), answer }).await.ok()?;
        decided.await.ok()
    }

    /// As [`Self::decide`], for callers outside of a runtime.
    pub(super) fn decide_blocking(&self, work: impl FnOnce() -> Answer + Send + 'static) -> Option<Answer> {
        let (answer, decided) = oneshot::channel();
        self.queue()?.blocking_send(Job { work: Box::new(work), answer }).ok()?;
        decided.blocking_recv().ok()
    }

    fn queue(&self) -> Option<mpsc::Sender<Job>> {
        let mut queue = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(queue) = queue.as_ref().filter(|queue| !queue.is_closed()) {
            return Some(queue.clone());
        }
        let (jobs, mut next) = mpsc::channel::<Job>(MAX_WAITING);
        let work = move || {
            while let Some(Job { work, answer }) = next.blocking_recv() {
                // Nobody waits for it any more where that fails.
                let _ = answer.send(work());
            }
        };
        std::thread::Builder::new().name("policy".to_owned()).stack_size(depth::STACK).spawn(work).ok()?;
        *queue = Some(jobs.clone());
        Some(jobs)
    }
}

/// Who comes later waits for a place.
const MAX_WAITING: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_decision_that_dies_is_none_and_the_next_one_has_another_thread() {
        let decider = Decider::default();
        let thread = || std::thread::current().id();
        let (sender, threads) = std::sync::mpsc::channel();
        let note = |sender: &std::sync::mpsc::Sender<_>| {
            let sender = sender.clone();
            move || {
                sender.send(thread()).unwrap();
                Ok(())
            }
        };
        assert_eq!(decider.decide(note(&sender)).await, Some(Ok(())));
        assert_eq!(decider.decide(note(&sender)).await, Some(Ok(())));
        assert_eq!(decider.decide(|| panic!("over this decision")).await, None);
        // The queue is closed once the thread has unwound, which a caller may be ahead of.
        while decider.decide(note(&sender)).await.is_none() {
            tokio::task::yield_now().await;
        }
        let threads: Vec<_> = threads.try_iter().collect();
        assert_eq!(threads[0], threads[1]);
        assert_ne!(threads[1], threads[2]);
    }
}
