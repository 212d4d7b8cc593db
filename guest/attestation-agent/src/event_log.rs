//! The agent's event log: registers of the TEE and a file that agree again after every crash.
//!
//! What is about to happen is written first, as an intent: where the entry goes, which register, and what that holds
//! now. Then the register is extended, the entry appended, and the intent removed. Whoever finds an intent compares the
//! register: if it was extended, the entry is appended (again); if not, the event did not happen, and nobody was told
//! that it did.

mod files;
mod intent;

use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use evidence::Registers;
use wire::event_log::{self, Entry, Event, MAX_LOG};

use files::Files;
use intent::Intent;

/// The log of one guest. Only one may be open on the same files.
pub(crate) struct EventLog {
    default_pcr: u32,
    state: Mutex<State>,
}

impl EventLog {
    /// Opens the log at `path`, and brings it and `registers` to agreement if the last agent was interrupted.
    ///
    /// `volatile` registers are memory of this process: what the log says is measured into them again.
    ///
    /// # Errors
    /// If the files can't be used, or hold what no agent wrote, or the register moved in another way than by this log.
    pub(crate) fn open(
        path: &Path,
        default_pcr: u32,
        volatile: bool,
        registers: &dyn Registers,
    ) -> Result<Self, Error> {
        Self::on(Box::new(Files::new(path)), default_pcr, volatile, registers)
    }

    fn on(
        storage: Box<dyn Storage>,
        default_pcr: u32,
        volatile: bool,
        registers: &dyn Registers,
    ) -> Result<Self, Error> {
        let log = storage.log().map_err(Error::storage)?;
        let mut state = State { storage, length: log.len(), unsettled: true };
        if volatile {
            let end = state.intent()?.map_or(log.len(), |intent| intent.offset.min(log.len()));
            measure_again(&log[..end], registers)?;
        }
        state.settle(registers)?;
        let log = state.storage.log().map_err(Error::storage)?;
        event_log::entries(&log)?;
        Ok(Self { default_pcr, state: Mutex::new(state) })
    }

    /// Extends the register that stands for `pcr`, or for the configured PCR, and appends the event. Blocks.
    ///
    /// # Errors
    /// [`Error::Index`] or what the hardware refused: then nothing was measured. Otherwise the log can't be written; the
    /// next call first completes what this one began.
    pub(crate) fn extend(&self, registers: &dyn Registers, event: Event, pcr: Option<u64>) -> Result<(), Error> {
        let pcr = pcr.map_or(Ok(self.default_pcr), u32::try_from).map_err(|_| Error::Index(pcr.unwrap_or_default()))?;
        let register = registers.map(pcr)?;
        let algorithm = registers.algorithm();
        let mut guard = self.lock();
        let state = &mut *guard;
        state.settle(registers)?;

        let entry = Entry { register, algorithm, event };
        let encoded = entry.encode();
        if state.length + encoded.len() > MAX_LOG {
            return Err(Error::Full);
        }
        let digest = entry.event.digest(algorithm);
        let before = registers.read(register)?;
        let intent = Intent { offset: state.length, register, before, event: entry.event };
        state.unsettled = true;
        state.storage.write_intent(&intent.encode()).map_err(Error::storage)?;
        if let Err(error) = registers.extend(register, &digest) {
            // It says that it failed; what the register holds decides.
            return match state.settle(registers)? {
                Settled::Completed => Ok(()),
                Settled::Undone => Err(error.into()),
            };
        }
        state.storage.write_log(state.length, &encoded).map_err(Error::storage)?;
        state.length += encoded.len();
        match state.storage.remove_intent() {
            Ok(()) => state.unsettled = false,
            // The event is measured and logged; the next call finds the same again.
            Err(error) => tracing::warn!(%error, "the event log's intent stays"),
        }
        Ok(())
    }

    /// Keeps events out while `quote` runs, so that the log on disk is the one that the registers hold. Blocks.
    ///
    /// # Errors
    /// If an interrupted event can't be settled.
    pub(crate) fn at_rest<T>(&self, registers: &dyn Registers, quote: impl FnOnce() -> T) -> Result<T, Error> {
        let mut state = self.lock();
        state.settle(registers)?;
        Ok(quote())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whatever a panic left, settling finds it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why an event was not measured, or a log can't be used.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The text of the event can't be logged.
    #[error("event log: {0}; next: change the event's text")]
    Event(#[from] event_log::Error),
    /// A register index that is beyond every register.
    #[error("event log: register index {0} is beyond every PCR; next: use one up to 23")]
    Index(u64),
    /// The hardware refused.
    #[error("event log: {0}")]
    Registers(#[from] evidence::Error),
    /// Too many events.
    #[error("event log: it is full with {MAX_LOG} bytes; next: measure fewer or shorter events")]
    Full,
    /// The files can't be used.
    #[error("event log: {0}; next: check that its folder can be written and has room")]
    Storage(String),
    /// An intent that no agent wrote.
    #[error("event log: what is left of an interrupted event is damaged; next: restart the guest")]
    Intent,
    /// The register holds what this log does not explain.
    #[error(
        "event log: register {0} holds neither its old nor its new value; somebody else extends it; next: give the log a register of its own with eventlog_config.init_pcr"
    )]
    Diverged(u32),
}

impl Error {
    fn storage(error: std::io::Error) -> Self {
        Self::Storage(error.to_string())
    }

    /// True if the TEE has nothing to extend.
    pub(crate) fn is_not_supported(&self) -> bool {
        matches!(self, Self::Registers(evidence::Error::NotSupported(_)))
    }

    /// True if whoever asked could have known.
    pub(crate) fn is_of_the_caller(&self) -> bool {
        matches!(self, Self::Event(_) | Self::Index(_) | Self::Registers(evidence::Error::Register { .. }))
    }
}

/// What is kept on disk. Each change lasts when its method returns.
trait Storage: Send {
    /// The log, as far as it is short enough to be one.
    fn log(&self) -> std::io::Result<Vec<u8>>;
    /// Cuts the log at `offset` and appends.
    fn write_log(&mut self, offset: usize, entry: &[u8]) -> std::io::Result<()>;
    /// The intent as it was written, if there is one.
    fn intent(&self) -> std::io::Result<Option<Vec<u8>>>;
    /// Writes the intent, as a whole or not at all.
    fn write_intent(&mut self, intent: &[u8]) -> std::io::Result<()>;
    fn remove_intent(&mut self) -> std::io::Result<()>;
}

struct State {
    storage: Box<dyn Storage>,
    length: usize,
    /// There may be an intent.
    unsettled: bool,
}

enum Settled {
    /// The register has the event, and now the log.
    Completed,
    /// Neither has it.
    Undone,
}

impl State {
    fn intent(&self) -> Result<Option<Intent>, Error> {
        let Some(bytes) = self.storage.intent().map_err(Error::storage)? else { return Ok(None) };
        Intent::decode(&bytes).map(Some).ok_or(Error::Intent)
    }

    /// Completes or undoes an interrupted event, as the register says. Without one this does nothing.
    fn settle(&mut self, registers: &dyn Registers) -> Result<Settled, Error> {
        let mut settled = Settled::Undone;
        if !self.unsettled {
            return Ok(settled);
        }
        if let Some(Intent { offset, register, before, event }) = self.intent()? {
            let algorithm = registers.algorithm();
            let now = registers.read(register)?;
            let entry = if now == algorithm.extended(&before, &event.digest(algorithm)) {
                settled = Settled::Completed;
                Entry { register, algorithm, event }.encode()
            } else if now == before {
                Vec::new()
            } else {
                return Err(Error::Diverged(register));
            };
            self.storage.write_log(offset, &entry).map_err(Error::storage)?;
            self.length = offset + entry.len();
            self.storage.remove_intent().map_err(Error::storage)?;
        }
        self.unsettled = false;
        Ok(settled)
    }
}

/// Brings registers that started at zero to where the log says that they were.
fn measure_again(log: &[u8], registers: &dyn Registers) -> Result<(), Error> {
    let entries = event_log::entries(log)?;
    for register in entries.iter().map(|entry| entry.register) {
        if registers.read(register)?.iter().any(|byte| *byte != 0) {
            return Ok(());
        }
    }
    for entry in entries {
        registers.extend(entry.register, &entry.event.digest(entry.algorithm))?;
    }
    Ok(())
}

/// Where the log lies unless the environment says otherwise.
pub(crate) const PATH: &str = "/run/attestation-agent/eventlog";

#[cfg(test)]
mod tests;
