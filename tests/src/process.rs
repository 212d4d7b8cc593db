//! Programs under test: run to their end, or watched line by line while they serve.

use std::ffi::OsStr;
use std::fmt;
use std::io::{BufRead as _, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

/// What a program left when it ended.
#[derive(Debug)]
pub struct Finished {
    /// Its exit status.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl fmt::Display for Finished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}\n{}\n{}", self.status, self.stdout.trim_end(), self.stderr.trim_end())
    }
}

/// Runs a program to its end.
///
/// # Panics
/// If it can't be started.
pub fn try_run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> Finished {
    let program = program.as_ref();
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output();
    let output = output.unwrap_or_else(|error| panic!("{} can't be started: {error}", program.display()));
    Finished {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}

/// Runs a program that must succeed, and returns its standard output.
///
/// # Panics
/// If it does not succeed.
pub fn run<S: AsRef<OsStr>>(program: impl AsRef<OsStr>, arguments: impl IntoIterator<Item = S>) -> String {
    let program = program.as_ref();
    let finished = try_run(program, arguments);
    assert!(finished.status.success(), "{} failed: {finished}", program.display());
    finished.stdout
}

/// A running program whose output is read as it comes. Dropping it ends the program.
pub struct Daemon {
    child: Child,
    output: Arc<Output>,
}

#[derive(Default)]
struct Output {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    lines: Vec<String>,
    /// Those of the lines that came by standard error.
    errors: Vec<String>,
    open_streams: usize,
}

impl Daemon {
    /// Starts a program and reads both its output streams.
    ///
    /// # Panics
    /// If it can't be started.
    pub fn start(command: &mut Command) -> Self {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?} can't be started: {error}"));
        let output = Arc::new(Output::default());
        output.state.lock().unwrap().open_streams = 2;
        output.read(child.stdout.take().unwrap(), false);
        output.read(child.stderr.take().unwrap(), true);
        Self { child, output }
    }

    /// Waits until a line contains `text`, and returns the line.
    ///
    /// # Panics
    /// If the program ends or `limit` passes before.
    pub fn wait_for(&self, text: &str, limit: Duration) -> String {
        self.try_wait_for(text, limit).unwrap_or_else(|output| panic!("no {text:?} within {limit:?}:\n{output}"))
    }

    /// Waits until a line contains `text`, and returns the line.
    ///
    /// # Errors
    /// All that the program said, if it ends or `limit` passes before.
    pub fn try_wait_for(&self, text: &str, limit: Duration) -> Result<String, String> {
        let deadline = Instant::now() + limit;
        let mut state = self.output.state.lock().unwrap();
        loop {
            if let Some(line) = state.lines.iter().find(|line| line.contains(text)) {
                return Ok(line.clone());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.open_streams == 0 || left.is_zero() {
                return Err(state.lines.join("\n"));
            }
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    /// Waits for the end of both streams, then for the program's.
    ///
    /// # Panics
    /// If `limit` passes before.
    pub fn wait(mut self, limit: Duration) -> (ExitStatus, String) {
        let deadline = Instant::now() + limit;
        let mut state = self.output.state.lock().unwrap();
        while state.open_streams > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the program did not end within {limit:?}:\n{}", state.lines.join("\n"));
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
        let text = state.lines.join("\n");
        drop(state);
        (self.child.wait().unwrap(), text)
    }

    /// All lines so far.
    pub fn text(&self) -> String {
        self.output.state.lock().unwrap().lines.join("\n")
    }

    /// What came by standard error so far.
    pub fn stderr(&self) -> String {
        self.output.state.lock().unwrap().errors.join("\n")
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks the program to end, as a service manager does, and waits until it has.
    ///
    /// # Panics
    /// If it does not end.
    pub fn stop(&mut self) {
        run("kill", ["-TERM", &self.child.id().to_string()]);
        self.ended(GRACE);
    }

    /// Waits until the program has ended.
    ///
    /// # Panics
    /// If `limit` passes before.
    pub fn ended(&mut self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.output.state.lock().unwrap();
        while state.open_streams > 0 {
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "the program does not end:\n{}", state.lines.join("\n"));
            state = self.output.changed.wait_timeout(state, left).unwrap().0;
        }
        drop(state);
        let _ = self.child.wait();
    }

    /// Ends the program at once, as a crash does, and waits for its end.
    pub fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    /// Resident memory in KiB.
    ///
    /// # Panics
    /// If the program has ended.
    pub fn resident_kib(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    /// Asks the program to end, as Ctrl-C does.
    pub fn interrupt(&self) {
        run("kill", ["-INT", &self.child.id().to_string()]);
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // First the polite way, so that it can clean up after itself.
            let _ = Command::new("kill").args(["-TERM", &self.child.id().to_string()]).status();
            let deadline = Instant::now() + GRACE;
            let mut state = self.output.state.lock().unwrap();
            while state.open_streams > 0 && Instant::now() < deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                state = self.output.changed.wait_timeout(state, left).unwrap().0;
            }
            drop(state);
            let _ = self.child.kill();
        }
        let _ = self.child.wait();
    }
}

impl Output {
    fn read(self: &Arc<Self>, stream: impl Read + Send + 'static, is_error: bool) {
        let output = Arc::clone(self);
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                let mut state = output.state.lock().unwrap();
                if is_error {
                    state.errors.push(line.clone());
                }
                state.lines.push(line);
                drop(state);
                output.changed.notify_all();
            }
            output.state.lock().unwrap().open_streams -= 1;
            output.changed.notify_all();
        });
    }
}

const GRACE: Duration = Duration::from_secs(10);
