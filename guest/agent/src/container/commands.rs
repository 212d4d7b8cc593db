//! The commands of a container, by their names.
//!
//! One that has ended stays for a while, for whoever asks how it ended. It holds descriptors, so only the last few do.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::fault::Fault;
use crate::id::Id;
use crate::process::Process;

/// The commands that run in a container, and the last of those that did.
#[derive(Default)]
pub(super) struct Commands(Mutex<Entries>);

#[derive(Default)]
struct Entries {
    by_name: HashMap<Id, Entry>,
    /// How many there have been.
    count: u64,
}

struct Entry {
    /// The later, the higher.
    number: u64,
    /// None while the command enters.
    process: Option<Arc<Process>>,
}

impl Commands {
    /// The process of that name, if it has entered.
    pub(super) fn get(&self, name: &str) -> Option<Arc<Process>> {
        self.entries().by_name.get(name)?.process.clone()
    }

    /// Takes a name for a command of `container` that is about to enter, and makes room for it.
    ///
    /// # Errors
    /// Where the name is taken, or there are too many.
    pub(super) fn reserve(&self, exec: &Id, container: &Id) -> Result<(), Fault> {
        let mut entries = self.entries();
        if entries.by_name.contains_key(exec) {
            return Err(Fault::Exists(format!("process {exec} of container {container}")));
        }
        entries.make_room();
        if entries.by_name.len() >= MAX_COMMANDS {
            return Err(Fault::State(format!(
                "container {container} has {MAX_COMMANDS} commands already that run or wait to be asked how they ended; next: try again in a minute"
            )));
        }
        entries.count += 1;
        let number = entries.count;
        entries.by_name.insert(exec.clone(), Entry { number, process: None });
        Ok(())
    }

    /// Fills a name that was reserved, or gives it back.
    pub(super) fn settle(&self, exec: &Id, process: Option<Process>) {
        let mut entries = self.entries();
        match process {
            Some(process) => {
                if let Some(entry) = entries.by_name.get_mut(exec) {
                    entry.process = Some(Arc::new(process));
                }
            }
            None => drop(entries.by_name.remove(exec)),
        }
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entries {
    /// Forgets the oldest of those that have ended, as far as nobody misses them.
    fn make_room(&mut self) {
        let ended = |entry: &Entry| entry.process.as_ref().is_some_and(|process| process.has_ended());
        let count = self.by_name.values().filter(|entry| ended(entry)).count();
        let others = self.by_name.len() - count;
        let surplus = count.saturating_sub(MAX_ENDED.min((MAX_COMMANDS - 1).saturating_sub(others)));
        let is_done_with = |entry: &&Entry| entry.process.as_ref().is_some_and(|process| process.is_done_with());
        let mut numbers: Vec<u64> = self.by_name.values().filter(is_done_with).map(|entry| entry.number).collect();
        numbers.sort_unstable();
        numbers.truncate(surplus);
        self.by_name.retain(|_, entry| !numbers.contains(&entry.number));
    }
}

const MAX_COMMANDS: usize = 128;
const MAX_ENDED: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::tests::start;

    fn id(number: usize) -> Id {
        Id::parse(&format!("e{number}")).unwrap()
    }

    /// Runs a command to its end, and hears all of it if asked to.
    async fn run(commands: &Commands, number: usize, hear: bool) -> Result<(), Fault> {
        commands.reserve(&id(number), &id(0))?;
        let process = start("echo out; echo err >&2");
        if hear {
            assert_eq!(process.ended().await, 0);
            while !process.read_stdout(99).await.unwrap().is_empty() {}
            while !process.read_stderr(99).await.unwrap().is_empty() {}
        } else {
            process.until_ended().await;
        }
        commands.settle(&id(number), Some(process));
        Ok(())
    }

    #[tokio::test]
    async fn the_last_that_ended_stay_and_older_ones_go_one_by_one() {
        let commands = Commands::default();
        for number in 0..MAX_ENDED + 4 {
            run(&commands, number, true).await.unwrap();
        }
        assert!((0..3).all(|number| commands.get(id(number).as_str()).is_none()));
        assert!((3..MAX_ENDED + 4).all(|number| commands.get(id(number).as_str()).is_some()));
        assert!(matches!(commands.reserve(&id(5), &id(0)), Err(Fault::Exists(_))));
    }

    #[tokio::test]
    async fn what_nobody_has_heard_of_stays_and_gives_way_to_nothing() {
        let commands = Commands::default();
        for number in 0..MAX_COMMANDS - 1 {
            run(&commands, number, false).await.unwrap();
        }
        run(&commands, 200, true).await.unwrap();
        run(&commands, 201, true).await.unwrap();
        assert!(commands.get("e200").is_none(), "there was no other room");
        commands.reserve(&id(202), &id(0)).unwrap();
        assert!(matches!(commands.reserve(&id(203), &id(0)), Err(Fault::State(_))));
        commands.settle(&id(202), None);
        commands.reserve(&id(203), &id(0)).unwrap();
        assert!((0..MAX_COMMANDS - 1).all(|number| commands.get(id(number).as_str()).is_some()));
    }
}
