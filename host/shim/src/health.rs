//! Whether the guest still answers.
//!
//! A guest that hangs is told from one that is kept waiting by a busy host, or by its own quota: an answer that doesn't come
//! counts only if the machine's threads could run meanwhile, or did not want to. What the console says doesn't count: a kernel
//! that has lost all of its processors to a loop goes on complaining about it.

use std::fs;
use std::time::Duration;

use crate::Error;
use crate::guest::Guest;

/// How often it is asked, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Health {
    pub(crate) interval: Duration,
    pub(crate) limit: Duration,
}

impl Health {
    /// Asks for ever with this limit, every half a minute; not at all if the limit is 0.
    pub(crate) fn within(limit: Duration) -> Option<Self> {
        (!limit.is_zero()).then_some(Self { interval: INTERVAL, limit })
    }

    /// Returns when the guest hangs.
    pub(crate) async fn watch(self, guest: &Guest, machine: Option<u32>) -> Error {
        let mut missed = 0;
        loop {
            // The end of a machine or of its connection is seen by others at once; this is about silence.
            tokio::time::sleep(self.interval).await;
            let before = Waited::by(machine);
            match guest.check(self.limit).await {
                Err(Error::Timeout { .. }) if Waited::by(machine).since(before) * 2 > self.limit => {
                    tracing::warn!(limit = ?self.limit, "the guest didn't answer: the host, or its quota, keeps it waiting");
                }
                Err(Error::Timeout { .. }) => missed += 1,
                Ok(()) | Err(_) => missed = 0,
            }
            if missed == MISSED {
                let seconds = (self.limit * MISSED).as_secs();
                return Error::Hung { seconds, stopped: machine.is_some_and(is_stopped) };
            }
        }
    }
}

/// How long a process's threads have waited for a processor, all in all.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Waited(Duration);

impl Waited {
    fn by(pid: Option<u32>) -> Self {
        let threads =
            pid.and_then(|pid| fs::read_dir(format!("/proc/{pid}/task")).ok()).into_iter().flatten().flatten();
        let waited =
            threads.filter_map(|thread| Self::parse(&fs::read_to_string(thread.path().join("schedstat")).ok()?));
        Self(Duration::from_nanos(waited.sum()))
    }

    /// Nanoseconds on a processor, waiting for one, and how often.
    fn parse(text: &str) -> Option<u64> {
        text.split_ascii_whitespace().nth(1)?.parse().ok()
    }

    fn since(self, before: Self) -> Duration {
        self.0.saturating_sub(before.0)
    }
}

/// Whether somebody has stopped a process by a signal.
fn is_stopped(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(')').is_some_and(|(_, fields)| fields.trim_start().starts_with(['T', 't']))
}

/// As Kata has it.
const INTERVAL: Duration = Duration::from_secs(30);
/// Answers in a row that don't come.
const MISSED: u32 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_of_nothing_asks_nothing() {
        assert!(Health::within(Duration::ZERO).is_none());
        assert_eq!(Health::within(Duration::from_secs(90)).unwrap().interval, INTERVAL);
    }

    #[test]
    fn a_process_has_waited_as_long_as_its_threads() {
        assert_eq!(Waited::parse("123456 789 5\n"), Some(789));
        assert_eq!(Waited::parse("0\n"), None);
        assert_eq!(Waited::by(None), Waited::default());
        assert!(!is_stopped(std::process::id()));
    }
}
