//! Collects the processes that nobody else in the guest waits for.

use std::time::Duration;

use rustix::process::{Pid, WaitId, WaitIdOptions, WaitOptions, waitid, waitpid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::Instant;

/// Waits for children that lost their parent and came to this process, the guest's first.
///
/// Children of this process' own making are waited for where they were made, at once. So a child that has ended and
/// is still there after 10 s is an orphan.
///
/// # Errors
/// Where the signal that tells of ended children can't be received.
pub async fn reap_orphans() -> std::io::Result<()> {
    let mut ended = signal(SignalKind::child())?;
    let mut suspect: Option<(Pid, Instant)> = None;
    loop {
        let due = suspect.map_or_else(Instant::now, |(_, due)| due);
        tokio::select! {
            _ = ended.recv() => {}
            () = tokio::time::sleep_until(due), if suspect.is_some() => {}
        }
        suspect = match (oldest_ended(), suspect) {
            (Some(pid), Some((seen, due))) if seen == pid && due <= Instant::now() => {
                // Whatever comes back: the child is gone, or somebody else took it meanwhile.
                let _ = waitpid(Some(pid), WaitOptions::NOHANG);
                oldest_ended().map(|next| (next, Instant::now() + GRACE))
            }
            (Some(pid), Some((seen, due))) if seen == pid => Some((pid, due)),
            (Some(pid), _) => Some((pid, Instant::now() + GRACE)),
            (None, _) => None,
        };
    }
}

/// A child that has ended and that nobody has waited for yet.
fn oldest_ended() -> Option<Pid> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
    waitid(WaitId::All, options).ok().flatten()?;
    // The status has no accessor for the number, which the list of children does have.
    children().into_iter().find(|pid| {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(*pid), options), Ok(Some(_)))
    })
}

fn children() -> Vec<Pid> {
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    let lists = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("children")).ok());
    let numbers: Vec<i32> =
        lists.flat_map(|list| list.split_whitespace().filter_map(|n| n.parse().ok()).collect::<Vec<_>>()).collect();
    numbers.into_iter().filter_map(Pid::from_raw).collect()
}

/// Far longer than this process' own tasks leave their children unattended.
const GRACE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_that_nobody_waited_for_is_found() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        // Waits for the end without collecting the child.
        waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
        assert!(children().contains(&pid));
        assert!(oldest_ended().is_some());
        child.wait().unwrap();
        assert!(!children().contains(&pid));
    }
}
