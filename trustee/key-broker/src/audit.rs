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
mod tests;
