//! The audit log: one JSON line per attestation, release, refusal and administrative act, chained by hashes.
//!
//! Each line has the SHA-256 of the line before it in `prev` (64 zeros in the first), so a line can't be changed or
//! taken out without every later one showing it. A secret leaves only after its line is written.
//!
//! Whoever can reach the Trustee can be refused as often as it likes: of more than [`MAX_REFUSALS`] refusals in a
//! minute the log says how many there were, and no more.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use attestation::Difference;
use aws_lc_rs::digest::{SHA256, digest};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use store::clock::{Clock, Timestamp};

/// The log of one Trustee, locked while it is open: exactly one process writes it.
pub struct AuditLog {
    path: PathBuf,
    clock: Clock,
    state: Mutex<State>,
}

struct State {
    file: File,
    /// Where the whole lines end.
    length: u64,
    /// A part of a line may lie behind them, which is to be cut off before the next line.
    torn: bool,
    sequence: u64,
    previous: String,
    refusals: Refusals,
}

/// The refusals of one minute.
#[derive(Default)]
struct Refusals {
    minute: u64,
    recorded: u32,
    suppressed: u32,
}

/// One line of the log.
#[derive(Deserialize, Serialize)]
pub(crate) struct Line {
    #[serde(rename = "seq")]
    pub sequence: u64,
    pub time: Timestamp,
    #[serde(rename = "prev")]
    pub previous: String,
    /// Address of the client.
    pub peer: IpAddr,
    #[serde(flatten)]
    pub event: Event,
}

/// What happened.
#[derive(Deserialize, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub(crate) enum Event {
    /// A guest was given a token.
    Attestation {
        tee: String,
        status: String,
        /// Id of the policy that it was appraised under.
        #[serde(default)]
        policy: String,
        /// Names the session in the logs of all replicas.
        #[serde(default)]
        session: String,
        /// The session had attested before.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        replayed: bool,
        token: String,
        init_data: Option<String>,
        expires: Timestamp,
    },
    /// A guest was given a resource, or a plugin's answer.
    Release { resource: String, token: String },
    /// A guest was refused.
    Refusal(RefusalRecord),
    /// Something is being administered.
    Administration {
        act: String,
        target: String,
        subject: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        issuer: Option<String>,
        role: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        tenant: Option<String>,
    },
    /// What was to be administered was not.
    AdministrationFailed { act: String, target: String, cause: String },
    /// Someone with a token that is not good enough tried to administer.
    AdministrationRefused { path: String, cause: String },
    /// So many refusals of guests and administrators were not written one by one.
    Suppressed { refusals: u32 },
}

/// The full record of a refusal, for the owner's eyes.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct RefusalRecord {
    pub reference: String,
    /// `attestation` or `resource policy`.
    pub stage: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub cause: String,
    pub claims: Vec<Difference>,
}

impl RefusalRecord {
    /// Cuts what comes from outside, so that a line always has less than [`MAX_LINE`] bytes.
    pub fn shortened(mut self) -> Self {
        self.claims.truncate(MAX_CLAIMS);
        self.claims.iter_mut().for_each(shorten);
        cut(&mut self.cause, MAX_VALUE);
        self
    }
}

impl AuditLog {
    /// Opens a log, or starts one with mode 0600, and checks the chain of its last [`TAIL`] bytes. The whole chain is
    /// for `kbs-client audit verify`: a log of years would keep a Trustee from starting.
    ///
    /// A last line without its end is what a crash leaves: it is cut off.
    ///
    /// # Errors
    /// [`Error::Broken`] names the first line that doesn't fit; [`Error::Busy`], [`Error::Io`].
    pub fn open(path: PathBuf, clock: Clock) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.clone(), source };
        let file = OpenOptions::new().read(true).append(true).create(true).mode(0o600).open(&path).map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::Busy(path)),
            Err(TryLockError::Error(source)) => return Err(Error::Io { path, source }),
        }
        let state = State::read(file, &path)?;
        Ok(Self { path, clock, state: Mutex::new(state) })
    }

    /// Appends a line. It is in the system's hands when this returns: it survives the process, not a power failure.
    ///
    /// # Errors
    /// [`Error::Io`]; then the line does not count, and what there is of it is cut off before the next one.
    pub(crate) fn record(&self, peer: IpAddr, event: Event) -> Result<(), Error> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let refusals = state.refusals.begin(self.clock.now());
        if refusals > 0 {
            self.append(&mut state, peer, Event::Suppressed { refusals })?;
        }
        self.append(&mut state, peer, event)
    }

    /// The same for a refusal, of which there may be any number: false if it was only counted.
    ///
    /// # Errors
    /// As [`AuditLog::record`].
    pub(crate) fn record_refusal(&self, peer: IpAddr, event: Event) -> Result<bool, Error> {
        let written = {
            let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.refusals.minute != minute(self.clock.now()) || state.refusals.count()
        };
        if written {
            self.record(peer, event)?;
        }
        Ok(written)
    }

    /// The lines from sequence number `from` on, `limit` at most.
    ///
    /// # Errors
    /// [`Error::Io`] if the log can't be read.
    pub(crate) fn lines(&self, from: u64, limit: usize) -> Result<Vec<u8>, Error> {
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let length = self.state.lock().unwrap_or_else(PoisonError::into_inner).length;
        let mut reader = BufReader::new(File::open(&self.path).map_err(failed)?).take(length);
        let (mut lines, mut line, mut number) = (Vec::new(), Vec::new(), 0);
        loop {
            line.clear();
            if reader.read_until(b'\n', &mut line).map_err(failed)? == 0 {
                return Ok(lines);
            }
            if number >= from {
                lines.extend_from_slice(&line);
            }
            number += 1;
            if number >= from.saturating_add(limit as u64) || lines.len() > MAX_LINES {
                return Ok(lines);
            }
        }
    }

    fn append(&self, state: &mut State, peer: IpAddr, event: Event) -> Result<(), Error> {
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let line =
            Line { sequence: state.sequence, time: self.clock.now(), previous: state.previous.clone(), peer, event };
        let mut text = serde_json::to_vec(&line).map_err(|e| failed(e.into()))?;
        let hash = hash(&text);
        text.push(b'\n');
        if text.len() as u64 >= MAX_LINE {
            return Err(failed(io::Error::other("the line is too long")));
        }
        state.append(&text).map_err(failed)?;
        state.length += text.len() as u64;
        state.sequence += 1;
        state.previous = hash;
        Ok(())
    }
}

impl Refusals {
    /// Starts a new minute if it is time to; how many refusals of the last one were not written.
    fn begin(&mut self, now: Timestamp) -> u32 {
        let minute = minute(now);
        if self.minute == minute {
            return 0;
        }
        std::mem::replace(self, Self { minute, recorded: 1, suppressed: 0 }).suppressed
    }

    /// Counts a refusal of the running minute; false if it is one too many.
    fn count(&mut self) -> bool {
        let fits = self.recorded < MAX_REFUSALS;
        *(if fits { &mut self.recorded } else { &mut self.suppressed }) += 1;
        fits
    }
}

impl State {
    fn read(file: File, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let previous = "0".repeat(HASH_DIGITS);
        let mut state = Self { file, length: 0, torn: false, sequence: 0, previous, refusals: Refusals::default() };
        let mut reader = BufReader::new(state.file.try_clone().map_err(failed)?);
        let end = reader.seek(SeekFrom::End(0)).map_err(failed)?;
        let mut joining = end > TAIL;
        if joining {
            // From the first whole line on.
            let start = reader.seek(SeekFrom::Start(end - TAIL)).map_err(failed)?;
            let skipped = reader.skip_until(b'\n').map_err(failed)?;
            state.length = start + skipped as u64;
        } else {
            reader.seek(SeekFrom::Start(0)).map_err(failed)?;
        }
        let mut text = Vec::new();
        loop {
            text.clear();
            let length = (&mut reader).take(MAX_LINE).read_until(b'\n', &mut text).map_err(failed)?;
            if length == 0 {
                return Ok(state);
            }
            if text.pop() != Some(b'\n') {
                // Only a crash leaves a part of a line, and only at the end: nothing else is ever cut off.
                if length as u64 == MAX_LINE {
                    return Err(Error::Broken { path: path.to_owned(), line: state.sequence + 1 });
                }
                tracing::warn!(path = %path.display(), offset = state.length, "cutting off an unfinished audit line");
                state.file.set_len(state.length).map_err(failed)?;
                return Ok(state);
            }
            let line: Option<Line> = serde_json::from_slice(&text).ok();
            let fits = |line: &Line| joining || (line.previous == state.previous && line.sequence == state.sequence);
            let line = line.filter(fits).ok_or(Error::Broken { path: path.to_owned(), line: state.sequence + 1 })?;
            joining = false;
            state.length += length as u64;
            state.sequence = line.sequence + 1;
            state.previous = hash(&text);
        }
    }

    /// Writes a line behind the whole ones. A full disk may take a part of it, and even refuse to give that back.
    fn append(&mut self, line: &[u8]) -> io::Result<()> {
        if self.torn {
            self.file.set_len(self.length)?;
        }
        let written = self.file.write_all(line);
        self.torn = written.is_err() && self.file.set_len(self.length).is_err();
        written
    }
}

/// Why the audit log can't be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(
        "{}: line {line} does not continue the chain: someone changed the log; next: keep the file as \
         evidence, and move it away to start a new one", path.display()
    )]
    Broken { path: PathBuf, line: u64 },
    #[error("{}: another process writes it; next: give each Trustee a log of its own", .0.display())]
    Busy(PathBuf),
    #[error("{}: {source}; next: check the path, its permissions and the free space", path.display())]
    Io { path: PathBuf, source: io::Error },
}

/// Cuts long values, so that a line stays readable and bounded.
fn shorten(difference: &mut Difference) {
    cut(&mut difference.claim, MAX_NAME);
    if let Some(name) = &mut difference.reference_value {
        cut(name, MAX_NAME);
    }
    for value in [&mut difference.actual, &mut difference.expected] {
        let mut text = value.to_string();
        if text.len() > MAX_VALUE {
            cut(&mut text, MAX_VALUE);
            *value = Value::from(text);
        }
    }
}

fn cut(text: &mut String, limit: usize) {
    if text.len() > limit {
        let start: String = text.chars().take(limit / 4).collect();
        *text = format!("{start}… ({} bytes)", text.len());
    }
}

fn minute(time: Timestamp) -> u64 {
    time.unix() / 60
}

fn hash(line: &[u8]) -> String {
    hex::encode(digest(&SHA256, line).as_ref())
}

/// Most refusals in a minute that get a line of their own.
const MAX_REFUSALS: u32 = 1_000;
/// How much of a log is checked when it is opened.
const TAIL: u64 = 256 << 10;
/// About how many bytes of lines are given out at once.
const MAX_LINES: usize = 4 << 20;
const HASH_DIGITS: usize = 64;
const MAX_CLAIMS: usize = 32;
const MAX_VALUE: usize = 2048;
const MAX_NAME: usize = 512;
const MAX_LINE: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::Ipv4Addr;

    const PEER: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    fn refusal(reference: &str) -> Event {
        let claims = vec![Difference::new("/a", Value::from("x".repeat(9_000)), Value::Null)];
        let (reference, stage, cause) = (reference.to_owned(), "resource policy".to_owned(), "denied".to_owned());
        let record = RefusalRecord { reference, stage, session: None, resource: None, token: None, cause, claims };
        Event::Refusal(record.shortened())
    }

    fn release() -> Event {
        Event::Release { resource: "a/b/c".to_owned(), token: "t".to_owned() }
    }

    fn log(directory: &tempfile::TempDir) -> Result<AuditLog, Error> {
        AuditLog::open(directory.path().join("audit.jsonl"), Clock::system())
    }

    #[test]
    fn lines_are_chained_over_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let first = log(&directory).unwrap();
        first.record(PEER, release()).unwrap();
        first.record(PEER, refusal("0001")).unwrap();
        assert!(matches!(log(&directory), Err(Error::Busy(_))));
        drop(first);
        let second = log(&directory).unwrap();
        second.record(PEER, refusal("0002")).unwrap();

        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for (previous, line) in lines.iter().zip(&lines[1..]) {
            let line: Line = serde_json::from_str(line).unwrap();
            assert_eq!(line.previous, hash(previous.as_bytes()));
        }
        assert_eq!(second.lines(1, 1).unwrap(), format!("{}\n", lines[1]).into_bytes());
        assert_eq!(second.lines(1, 9).unwrap(), format!("{}\n{}\n", lines[1], lines[2]).into_bytes());
    }

    #[test]
    fn of_a_long_log_the_end_is_checked_and_continued() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let first = log(&directory).unwrap();
        while first.state.lock().unwrap().length < TAIL + (1 << 20) {
            first.record(PEER, refusal("0001")).unwrap();
        }
        let (sequence, previous) = {
            let state = first.state.lock().unwrap();
            (state.sequence, state.previous.clone())
        };
        drop(first);
        let second = log(&directory).unwrap();
        {
            let state = second.state.lock().unwrap();
            assert_eq!((state.sequence, state.previous.as_str()), (sequence, previous.as_str()));
            assert_eq!(state.length, std::fs::metadata(&path).unwrap().len());
        }
        drop(second);

        let mut text = std::fs::read(&path).unwrap();
        let at = text.len() - 10_000;
        text[at] ^= 1;
        std::fs::write(&path, text).unwrap();
        assert!(matches!(log(&directory), Err(Error::Broken { .. })));
    }

    #[test]
    fn a_flood_of_refusals_is_counted() {
        let directory = tempfile::tempdir().unwrap();
        let seconds = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(6_000));
        let log = AuditLog::open(directory.path().join("audit.jsonl"), Clock::set_by(seconds.clone())).unwrap();
        let written = (0..MAX_REFUSALS + 50).filter(|_| log.record_refusal(PEER, refusal("1")).unwrap()).count();
        assert_eq!(written, MAX_REFUSALS as usize);

        seconds.fetch_add(60, std::sync::atomic::Ordering::Relaxed);
        log.record(PEER, release()).unwrap();
        let end = log.lines(u64::from(MAX_REFUSALS), 9).unwrap();
        let end: Vec<Line> = end.split_inclusive(|&b| b == b'\n').map(|l| serde_json::from_slice(l).unwrap()).collect();
        assert!(matches!(end[0].event, Event::Suppressed { refusals: 50 }));
        assert!(matches!(end[1].event, Event::Release { .. }));
        assert!(log.record_refusal(PEER, refusal("1")).unwrap());
    }

    #[test]
    fn a_changed_or_missing_line_is_noticed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let log_of_three = log(&directory).unwrap();
        for _ in 0..3 {
            log_of_three.record(PEER, release()).unwrap();
        }
        drop(log_of_three);
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        for (changed, broken) in [
            (text.replacen("a/b/c", "a/b/x", 1), 2),
            (format!("{}\n{}\n", lines[0], lines[2]), 2),
            (format!("{}\n{}\n", lines[1], lines[2]), 1),
            (format!("{}\n\n{}\n", lines[0], lines[1]), 2),
        ] {
            std::fs::write(&path, changed).unwrap();
            assert!(matches!(log(&directory), Err(Error::Broken { line, .. }) if line == broken));
        }
    }

    #[test]
    fn nothing_that_a_guest_sends_makes_a_line_that_a_restart_would_not_read() {
        let directory = tempfile::tempdir().unwrap();
        let first = log(&directory).unwrap();
        let long = "\u{1}".repeat(2 << 20);
        let claims = vec![
            Difference {
                reference_value: Some(long.clone()),
                ..Difference::new(long.clone(), Value::from(long.clone()), Value::from(long.clone()))
            };
            99
        ];
        let (reference, stage) = ("0001".to_owned(), "attestation".to_owned());
        let record =
            RefusalRecord { reference, stage, session: None, resource: None, token: None, cause: long, claims };
        first.record(PEER, Event::Refusal(record.shortened())).unwrap();
        first.record(PEER, release()).unwrap();
        drop(first);

        assert!(log(&directory).is_ok());
        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 2);
        assert!((text.len() as u64) < MAX_LINE);
    }

    #[test]
    fn a_line_that_is_too_long_is_no_reason_to_cut_off_what_follows() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let mut text = vec![b' '; MAX_LINE as usize + 9];
        text.extend_from_slice(b"\nmore\n");
        std::fs::write(&path, &text).unwrap();
        assert!(matches!(log(&directory), Err(Error::Broken { line: 1, .. })));
        assert_eq!(std::fs::read(&path).unwrap(), text);
    }

    #[test]
    fn a_part_of_a_line_that_could_not_be_taken_back_is_cut_off_before_the_next() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        let first = log(&directory).unwrap();
        first.record(PEER, release()).unwrap();
        {
            let mut state = first.state.lock().unwrap();
            state.file.write_all(b"{\"seq\":1,").unwrap();
            state.torn = true;
        }
        first.record(PEER, release()).unwrap();
        drop(first);
        assert!(log(&directory).is_ok());
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn lines_of_many_threads_make_one_chain() {
        let directory = tempfile::tempdir().unwrap();
        let first = log(&directory).unwrap();
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..50).for_each(|_| first.record(PEER, refusal("0001")).unwrap()));
            }
        });
        drop(first);
        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        assert_eq!(text.lines().count(), 400);
        assert!(log(&directory).is_ok());
    }

    #[test]
    fn an_unfinished_line_is_cut_off() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("audit.jsonl");
        log(&directory).unwrap().record(PEER, release()).unwrap();
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, [whole.as_slice(), b"{\"seq\":1,"].concat()).unwrap();

        log(&directory).unwrap().record(PEER, release()).unwrap();
        assert!(std::fs::read(&path).unwrap().starts_with(&whole));
        assert!(log(&directory).is_ok());
    }
}
