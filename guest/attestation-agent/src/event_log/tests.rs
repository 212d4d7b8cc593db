//! The event log against an agent that ends at every step, and against hardware that refuses.

use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use wire::event_log::replay;
use wire::evidence::RegisterAlgorithm;

use super::*;

#[test]
fn log_and_register_agree_after_a_crash_at_any_step() {
    for step in 0.. {
        let guest = Guest::new();
        guest.open(usize::MAX).unwrap().extend(&guest.registers, event("first"), None).unwrap();

        let crashing = guest.faults(step);
        let outcome = guest.open_with(&crashing).and_then(|log| {
            log.extend(&Crashing { inner: &guest.registers, faults: &crashing }, event("second"), None)
        });
        let crashed = crashing.spent();

        let log = guest.open(usize::MAX).unwrap();
        let entries = guest.assert_agreement();
        assert!((1..=2).contains(&entries.len()), "step {step}");
        if outcome.is_ok() {
            assert_eq!(entries.len(), 2, "step {step}: what was acknowledged is there");
        }
        log.extend(&guest.registers, event("third"), None).unwrap();
        assert_eq!(guest.assert_agreement().last().unwrap().event, event("third"));
        if !crashed {
            assert!(step >= 10, "only {step} steps crashed");
            return;
        }
    }
}

#[test]
fn a_crash_during_the_recovery_is_recovered_from_as_well() {
    let crash = |guest: &Guest, step| {
        let faults = guest.faults(step);
        let crashing = Crashing { inner: &guest.registers, faults: &faults };
        let outcome = guest.open_with(&faults).and_then(|log| log.extend(&crashing, event("second"), None));
        (outcome, faults.spent())
    };
    // An event takes 11 steps, its recovery at most 6.
    for first in 0..12 {
        for second in 0..7 {
            let guest = Guest::new();
            guest.open(usize::MAX).unwrap().extend(&guest.registers, event("first"), None).unwrap();
            if !crash(&guest, first).1 {
                break;
            }
            let _ = guest.open(second);
            guest.open(usize::MAX).unwrap();
            guest.assert_agreement();
        }
    }
}

#[test]
fn a_log_that_can_not_be_written_is_completed_by_the_next_call() {
    let guest = Guest::new();
    let faults = guest.faults(usize::MAX);
    let log = guest.open_with(&faults).unwrap();
    // The intent and the register are the first steps of an event; appending the entry fails.
    let mut failures = 0;
    for step in 3..8 {
        faults.set(step);
        if log.extend(&guest.registers, event("lost?"), None).is_err() {
            failures += 1;
        }
        faults.set(usize::MAX);
        log.at_rest(&guest.registers, || guest.assert_agreement()).unwrap();
    }
    assert!(failures > 0);
}

#[test]
fn what_the_hardware_refuses_is_not_logged() {
    let guest = Guest::new();
    let log = guest.open(usize::MAX).unwrap();
    log.extend(&guest.registers, event("first"), None).unwrap();

    let error = log.extend(&Refusing(&guest.registers), event("second"), Some(16)).unwrap_err();

    assert!(error.to_string().contains("locality"), "{error}");
    assert_eq!(guest.assert_agreement().len(), 1);
    log.extend(&guest.registers, event("third"), None).unwrap();
    assert_eq!(guest.assert_agreement().len(), 2);
}

#[test]
fn the_requested_register_is_extended_and_logged() {
    let guest = Guest::new();
    let log = guest.open(usize::MAX).unwrap();
    log.extend(&guest.registers, event("a"), None).unwrap();
    log.extend(&guest.registers, event("b"), Some(3)).unwrap();
    log.extend(&guest.registers, event("c"), Some(3)).unwrap();

    let registers: Vec<_> = guest.assert_agreement().iter().map(|entry| entry.register).collect();
    assert_eq!(registers, [17, 3, 3]);

    for bad in [24, u64::from(u32::MAX) + 18, u64::MAX] {
        let error = log.extend(&guest.registers, event("d"), Some(bad)).unwrap_err();
        assert!(error.is_of_the_caller(), "{error}");
    }
    assert_eq!(guest.assert_agreement().len(), 3);
}

#[test]
fn a_register_that_somebody_else_extends_is_named_after_a_crash() {
    let guest = Guest::new();
    let faults = guest.faults(usize::MAX);
    let log = guest.open_with(&faults).unwrap();
    faults.set(5);
    log.extend(&Crashing { inner: &guest.registers, faults: &faults }, event("a"), None).unwrap_err();
    guest.registers.extend(17, &[1; 32]).unwrap();

    assert!(matches!(guest.open(usize::MAX), Err(Error::Diverged(17))));
}

#[test]
fn volatile_registers_are_measured_again() {
    let guest = Guest::new();
    let log = guest.open(usize::MAX).unwrap();
    log.extend(&guest.registers, event("a"), None).unwrap();
    log.extend(&guest.registers, event("b"), Some(3)).unwrap();

    *guest.registers.0.lock().unwrap() = zeros();
    let files = Box::new(Files::new(&guest.path()));
    EventLog::on(files, 17, true, &guest.registers).unwrap();
    assert_eq!(guest.assert_agreement().len(), 2);
}

#[test]
fn a_log_of_somebody_else_and_a_full_one_are_refused() {
    let guest = Guest::new();
    std::fs::write(guest.path(), "not a log").unwrap();
    assert!(matches!(guest.open(usize::MAX), Err(Error::Event(_))));

    std::fs::remove_file(guest.path()).unwrap();
    let log = guest.open(usize::MAX).unwrap();
    let long = "x".repeat(60_000);
    let outcome = (0..20).try_for_each(|_| log.extend(&guest.registers, event(&long), None));
    assert!(matches!(outcome, Err(Error::Full)), "{outcome:?}");
    assert_eq!(guest.assert_agreement().len(), 17);
}

/// Registers and files, which outlive the agent.
struct Guest {
    folder: tempfile::TempDir,
    registers: Hardware,
}

impl Guest {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), registers: Hardware(Mutex::new(zeros())) }
    }

    fn path(&self) -> std::path::PathBuf {
        self.folder.path().join("eventlog")
    }

    fn faults(&self, steps: usize) -> Faults {
        Faults(Arc::new(AtomicUsize::new(steps)))
    }

    /// Starts an agent that ends after so many steps.
    fn open(&self, steps: usize) -> Result<EventLog, Error> {
        self.open_with(&self.faults(steps))
    }

    fn open_with(&self, faults: &Faults) -> Result<EventLog, Error> {
        let storage = Torn { files: Files::new(&self.path()), faults: faults.clone() };
        EventLog::on(Box::new(storage), 17, false, &self.registers)
    }

    fn assert_agreement(&self) -> Vec<Entry> {
        let log = std::fs::read(self.path()).unwrap_or_default();
        let entries = event_log::entries(&log).unwrap();
        for (index, value) in self.registers.0.lock().unwrap().iter().enumerate() {
            assert_eq!(*value, replay(&entries, index as u32, vec![0; 32]), "register {index}");
        }
        entries
    }
}

fn event(content: &str) -> Event {
    Event::new("test", "happened", content).unwrap()
}

fn zeros() -> Vec<Vec<u8>> {
    vec![vec![0; 32]; 24]
}

/// Registers that keep their values.
struct Hardware(Mutex<Vec<Vec<u8>>>);

impl Registers for Hardware {
    fn map(&self, pcr: u32) -> Result<u32, evidence::Error> {
        let reason = "is beyond the last".to_owned();
        if pcr < 24 { Ok(pcr) } else { Err(evidence::Error::Register { index: pcr, reason }) }
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        RegisterAlgorithm::Sha256
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), evidence::Error> {
        let register = &mut self.0.lock().unwrap()[index as usize];
        *register = self.algorithm().extended(register, digest);
        Ok(())
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, evidence::Error> {
        Ok(self.0.lock().unwrap()[index as usize].clone())
    }
}

/// The agent ends before or after the register is extended.
struct Crashing<'a> {
    inner: &'a Hardware,
    faults: &'a Faults,
}

impl Registers for Crashing<'_> {
    fn map(&self, pcr: u32) -> Result<u32, evidence::Error> {
        self.inner.map(pcr)
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        self.inner.algorithm()
    }

    fn extend(&self, index: u32, digest: &[u8]) -> Result<(), evidence::Error> {
        let crash = |_| evidence::Error::NotSupported("crashed".to_owned());
        self.faults.step().map_err(crash)?;
        self.inner.extend(index, digest)?;
        self.faults.step().map_err(crash)
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, evidence::Error> {
        // An agent that has ended reads nothing either.
        if self.faults.spent() {
            return Err(evidence::Error::NotSupported("crashed".to_owned()));
        }
        self.inner.read(index)
    }
}

/// A register that software may not extend.
struct Refusing<'a>(&'a Hardware);

impl Registers for Refusing<'_> {
    fn map(&self, pcr: u32) -> Result<u32, evidence::Error> {
        self.0.map(pcr)
    }

    fn algorithm(&self) -> RegisterAlgorithm {
        self.0.algorithm()
    }

    fn extend(&self, index: u32, _: &[u8]) -> Result<(), evidence::Error> {
        Err(evidence::Error::Register { index, reason: "needs another locality".to_owned() })
    }

    fn read(&self, index: u32) -> Result<Vec<u8>, evidence::Error> {
        self.0.read(index)
    }
}

/// How many steps are left until the agent ends. From then on nothing succeeds.
#[derive(Clone)]
struct Faults(Arc<AtomicUsize>);

impl Faults {
    fn step(&self) -> io::Result<()> {
        match self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Ok(()),
            Err(_) => Err(io::Error::other("crashed")),
        }
    }

    fn set(&self, steps: usize) {
        self.0.store(steps, Ordering::SeqCst);
    }

    fn spent(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 0
    }
}

/// Files whose every change can be cut short.
struct Torn {
    files: Files,
    faults: Faults,
}

impl Storage for Torn {
    fn log(&self) -> io::Result<Vec<u8>> {
        self.files.log()
    }

    fn write_log(&mut self, offset: usize, entry: &[u8]) -> io::Result<()> {
        self.faults.step()?;
        self.files.write_log(offset, &[])?;
        self.faults.step()?;
        self.files.write_log(offset, &entry[..entry.len() / 2])?;
        self.faults.step()?;
        self.files.write_log(offset, entry)?;
        self.faults.step()
    }

    fn intent(&self) -> io::Result<Option<Vec<u8>>> {
        self.files.intent()
    }

    fn write_intent(&mut self, intent: &[u8]) -> io::Result<()> {
        self.faults.step()?;
        // A file that was not renamed yet is no intent.
        std::fs::write(self.files.intent.with_extension("new"), &intent[..intent.len() / 2])?;
        self.faults.step()?;
        self.files.write_intent(intent)?;
        self.faults.step()
    }

    fn remove_intent(&mut self) -> io::Result<()> {
        self.faults.step()?;
        self.files.remove_intent()?;
        self.faults.step()
    }
}
