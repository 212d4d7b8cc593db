//! The audit log: one JSON line per attestation, release, refusal and administrative act, chained by hashes.
//!
//! Each line has the SHA-256 of the line before it in `prev` (64 zeros in the first), so a line can't be changed or
//! taken out without every later one showing it. A secret leaves only after its line is written.

use std::collections::VecDeque;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
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
    /// Where the last [`MAX_REFUSALS`] refusals lie: reference, offset and length of the line.
    refusals: VecDeque<(String, u64, usize)>,
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
    Attestation { tee: String, status: String, token: String, init_data: Option<String>, expires: Timestamp },
    /// A guest was given a resource.
    Release { resource: String, token: String },
    /// A guest was refused.
    Refusal(RefusalRecord),
    /// Something was administered.
    Administration { act: String, target: String, subject: Option<String>, role: String },
    /// Someone with a token that is not good enough tried to administer.
    AdministrationRefused { path: String, cause: String },
}

/// The full record of a refusal, for the owner's eyes.
#[derive(Clone, Deserialize, Serialize)]
pub(crate) struct RefusalRecord {
    pub reference: String,
    /// `attestation` or `resource policy`.
    pub stage: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    pub cause: String,
    pub claims: Vec<Difference>,
}

impl AuditLog {
    /// Opens a log, or starts one with mode 0600, and checks the chain of what is there.
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
    /// What comes from outside is cut, so that a line always has less than [`MAX_LINE`] bytes.
    ///
    /// # Errors
    /// [`Error::Io`]; then the line does not count, and what there is of it is cut off before the next one.
    pub(crate) fn record(&self, peer: IpAddr, mut event: Event) -> Result<(), Error> {
        if let Event::Refusal(record) = &mut event {
            record.claims.truncate(MAX_CLAIMS);
            record.claims.iter_mut().for_each(shorten);
            cut(&mut record.cause, MAX_VALUE);
        }
        let reference = match &event {
            Event::Refusal(record) => Some(record.reference.clone()),
            _ => None,
        };
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let line =
            Line { sequence: state.sequence, time: self.clock.now(), previous: state.previous.clone(), peer, event };
        let mut text = serde_json::to_vec(&line).map_err(|e| failed(e.into()))?;
        let hash = hash(&text);
        text.push(b'\n');
        if text.len() as u64 >= MAX_LINE {
            return Err(failed(io::Error::other("the line is too long")));
        }
        state.append(&text).map_err(failed)?;
        let offset = state.length;
        state.length += text.len() as u64;
        state.sequence += 1;
        state.previous = hash;
        if let Some(reference) = reference {
            state.remember(reference, offset, text.len());
        }
        Ok(())
    }

    /// The record of a refusal and when it happened, if it is among the last [`MAX_REFUSALS`].
    ///
    /// # Errors
    /// [`Error::Io`] if the log can't be read.
    pub(crate) fn refusal(&self, reference: &str) -> Result<Option<(Timestamp, RefusalRecord)>, Error> {
        let failed = |source| Error::Io { path: self.path.clone(), source };
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let Some((_, offset, length)) = state.refusals.iter().rev().find(|(known, ..)| known == reference) else {
            return Ok(None);
        };
        let mut text = vec![0; *length];
        state.file.read_exact_at(&mut text, *offset).map_err(failed)?;
        let line: Line = serde_json::from_slice(&text).map_err(|e| failed(e.into()))?;
        match line.event {
            Event::Refusal(record) => Ok(Some((line.time, record))),
            _ => Ok(None),
        }
    }
}

impl State {
    fn read(file: File, path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Io { path: path.to_owned(), source };
        let mut state = Self {
            file,
            length: 0,
            torn: false,
            sequence: 0,
            previous: "0".repeat(HASH_DIGITS),
            refusals: VecDeque::new(),
        };
        let mut reader = BufReader::new(state.file.try_clone().map_err(failed)?);
        reader.seek(SeekFrom::Start(0)).map_err(failed)?;
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
            let line = line.filter(|line| line.previous == state.previous && line.sequence == state.sequence);
            let line = line.ok_or(Error::Broken { path: path.to_owned(), line: state.sequence + 1 })?;
            if let Event::Refusal(record) = line.event {
                state.remember(record.reference, state.length, length);
            }
            state.length += length as u64;
            state.sequence += 1;
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

    fn remember(&mut self, reference: String, offset: u64, length: usize) {
        if self.refusals.len() == MAX_REFUSALS {
            self.refusals.pop_front();
        }
        self.refusals.push_back((reference, offset, length));
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

fn hash(line: &[u8]) -> String {
    hex::encode(digest(&SHA256, line).as_ref())
}

/// How many refusals can be explained; older ones are still in the file.
pub const MAX_REFUSALS: usize = 10_000;
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
        Event::Refusal(RefusalRecord { reference, stage, resource: None, token: None, cause, claims })
    }

    fn release() -> Event {
        Event::Release { resource: "a/b/c".to_owned(), token: "t".to_owned() }
    }

    fn log(directory: &tempfile::TempDir) -> Result<AuditLog, Error> {
        AuditLog::open(directory.path().join("audit.jsonl"), Clock::system())
    }

    #[test]
    fn lines_are_chained_and_refusals_found_after_a_restart_too() {
        let directory = tempfile::tempdir().unwrap();
        let first = log(&directory).unwrap();
        first.record(PEER, release()).unwrap();
        first.record(PEER, refusal("0001")).unwrap();
        assert!(matches!(log(&directory), Err(Error::Busy(_))));
        drop(first);
        let second = log(&directory).unwrap();
        second.record(PEER, refusal("0002")).unwrap();

        for reference in ["0001", "0002"] {
            let (_, record) = second.refusal(reference).unwrap().unwrap();
            assert_eq!(record.reference, reference);
            assert!(record.claims[0].actual.as_str().unwrap().ends_with("… (9002 bytes)"));
        }
        assert!(second.refusal("0003").unwrap().is_none());

        let text = std::fs::read_to_string(directory.path().join("audit.jsonl")).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        for (previous, line) in lines.iter().zip(&lines[1..]) {
            let line: Line = serde_json::from_str(line).unwrap();
            assert_eq!(line.previous, hash(previous.as_bytes()));
        }
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
        first
            .record(
                PEER,
                Event::Refusal(RefusalRecord { reference, stage, resource: None, token: None, cause: long, claims }),
            )
            .unwrap();
        first.record(PEER, release()).unwrap();
        drop(first);

        assert!(log(&directory).unwrap().refusal("0001").unwrap().is_some());
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
