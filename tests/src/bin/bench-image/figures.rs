//! What a program takes: time, processor time and memory, told by a small process that does nothing but wait for it.

use std::fmt;
use std::process::{Command, Stdio};
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeVal;
use serde::{Deserialize, Serialize};
use tests::run;

/// What one run took.
#[derive(Debug, Deserialize, Serialize)]
pub struct Figures {
    /// Seconds from start to end.
    pub wall: f64,
    /// Seconds of processor time, in user space and in the kernel.
    pub cpu: f64,
    /// Most resident memory of any of its processes, in megabytes.
    pub peak_mb: f64,
}

impl Figures {
    /// Runs a program that must succeed.
    ///
    /// The kernel counts the memory that a process had before it became another program: hence the one between.
    pub fn of(command: &[impl AsRef<str>]) -> Self {
        let own = std::env::current_exe().unwrap();
        let arguments = ["measure", "--"].into_iter().chain(command.iter().map(AsRef::as_ref));
        serde_json::from_str(&run(own, arguments)).unwrap()
    }

    /// One after the other.
    pub fn then(&self, next: &Self) -> Self {
        Self { wall: self.wall + next.wall, cpu: self.cpu + next.cpu, peak_mb: self.peak_mb.max(next.peak_mb) }
    }
}

impl fmt::Display for Figures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.2} s wall, {:.2} s cpu, {:.1} MB peak", self.wall, self.cpu, self.peak_mb)
    }
}

/// Runs `command` and prints its figures.
pub fn report(command: &[String]) {
    let start = Instant::now();
    let status = Command::new(&command[0]).args(&command[1..]).stdin(Stdio::null()).stdout(Stdio::null()).status();
    let wall = start.elapsed().as_secs_f64();
    assert!(status.as_ref().is_ok_and(|status| status.success()), "{command:?}: {status:?}");
    let usage = getrusage(UsageWho::RUSAGE_CHILDREN).unwrap();
    let seconds = |time: TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 / 1e6;
    let figures = Figures {
        wall,
        cpu: seconds(usage.user_time()) + seconds(usage.system_time()),
        peak_mb: usage.max_rss() as f64 * 1024.0 / 1e6,
    };
    println!("{}", serde_json::to_string(&figures).unwrap());
}
