//! Runs an operation on many connections for a while and counts.

use std::future::Future;
use std::time::Duration;

use serde::Serialize;
use tokio::task::JoinSet;
use tokio::time::Instant;

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Figures {
    /// Operations that succeeded.
    pub operations: usize,
    /// Of them in a second.
    pub per_second: f64,
    /// Median of their duration in milliseconds.
    pub p50_ms: f64,
    /// 99 of 100 took less, in milliseconds.
    pub p99_ms: f64,
}

/// Repeats an operation on each of `workers` until `duration` has passed or a worker has no more to do.
///
/// # Panics
/// If an operation fails.
pub async fn run<W, O, F>(workers: Vec<W>, duration: Duration, operation: O) -> Figures
where
    W: Send + 'static,
    O: Fn(W) -> F + Clone + Send + 'static,
    F: Future<Output = (W, bool)> + Send,
{
    let start = Instant::now();
    let mut running = JoinSet::new();
    for mut worker in workers {
        let operation = operation.clone();
        running.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < duration {
                let begin = Instant::now();
                let (same, more) = operation(worker).await;
                worker = same;
                if !more {
                    break;
                }
                times.push(begin.elapsed());
            }
            (times, start.elapsed())
        });
    }
    let (mut times, mut elapsed) = (Vec::new(), Duration::ZERO);
    while let Some(done) = running.join_next().await {
        let (of_one, end) = done.unwrap();
        times.extend(of_one);
        elapsed = elapsed.max(end);
    }
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    let per_second = times.len() as f64 / elapsed.as_secs_f64();
    Figures { operations: times.len(), per_second, p50_ms: at(50), p99_ms: at(99) }
}
