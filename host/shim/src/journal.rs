//! What the shim remembers of its pod for whoever asks on the node: whose it is, how it booted, what its containers said last
//! and what went wrong. What keeps a pod or a container from running goes on record besides.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use management::{ContainerState, Failure, Failures, Identity, Moment, Output, Trouble};
use sandbox::{Console, SandboxConfig, Timeline};

use crate::Error;

/// The memory of one shim. Clones share it.
#[derive(Clone)]
pub(crate) struct Journal(Arc<Shared>);

struct Shared {
    failures: Failures,
    memory: Mutex<Memory>,
}

#[derive(Default)]
struct Memory {
    pod: Identity,
    console: Console,
    timeline: Timeline,
    containers: VecDeque<Known>,
    troubles: VecDeque<Trouble>,
}

/// A container, also one that was removed.
struct Known {
    state: ContainerState,
    output: Output,
}

impl Journal {
    /// An empty one for the pod of this id, whose failures go on record there.
    pub(crate) fn new(id: &str, failures: Failures) -> Self {
        let pod = Identity { id: id.to_owned(), ..Identity::default() };
        Self(Arc::new(Shared { failures, memory: Mutex::new(Memory { pod, ..Memory::default() }) }))
    }

    /// Notes whose pod it is, as a container's or pod's annotations say.
    pub(crate) fn know(&self, annotations: &BTreeMap<String, String>) {
        let of = |names: [&str; 2]| names.iter().find_map(|name| annotations.get(*name)).cloned();
        let pod = &mut self.memory().pod;
        for (field, names) in [(&mut pod.namespace, NAMESPACE), (&mut pod.name, NAME), (&mut pod.uid, UID)] {
            if let Some(text) = of(names) {
                *field = text;
            }
        }
    }

    /// Notes what a machine is made of that is going to boot, and follows it.
    pub(crate) fn follow(&self, config: &SandboxConfig) -> Identity {
        let mut memory = self.memory();
        memory.pod.initdata = config.initdata.as_ref().map(|initdata| hex::encode(&initdata.digest));
        (memory.pod.memory_mib, memory.pod.vcpus) = (config.memory_mib, config.vcpus);
        (memory.console, memory.timeline) = (config.console.clone(), config.timeline.clone());
        memory.pod.clone()
    }

    /// Adds a container, and forgets the oldest of those that are `gone`, if there are too many of them.
    pub(crate) fn add(
        &self,
        id: &str,
        bundle: &str,
        annotations: &BTreeMap<String, String>,
        gone: impl Fn(&str) -> bool,
    ) {
        let name = CONTAINER.iter().find_map(|name| annotations.get(*name)).cloned().unwrap_or_default();
        let mut memory = self.memory();
        let mut surplus =
            memory.containers.iter().filter(|known| gone(&known.state.id)).count().saturating_sub(GONE - 1);
        memory.containers.retain(|known| {
            let forgotten = surplus > 0 && gone(&known.state.id);
            surplus -= usize::from(forgotten);
            !forgotten
        });
        let state =
            ContainerState { id: id.to_owned(), name, bundle: Some(bundle.to_owned()), ..ContainerState::default() };
        memory.containers.push_back(Known { state, output: Output::default() });
    }

    /// Notes that a container has ended.
    pub(crate) fn ended(&self, id: &str, status: u32) {
        if let Some(known) = self.memory().containers.iter_mut().rev().find(|known| known.state.id == id) {
            known.state.exit_status = Some(status);
        }
    }

    /// What a container of this id or name says; of several with the name, the last.
    pub(crate) fn output(&self, container: &str) -> Option<Output> {
        let memory = self.memory();
        let known = memory.containers.iter().rev().find(|it| it.state.id == container || it.state.name == container);
        known.filter(|_| !container.is_empty()).map(|known| known.output.clone())
    }

    /// Notes what went wrong with a request.
    pub(crate) fn note(&self, request: &str, container: &str, error: &Error) -> Trouble {
        let trouble = Trouble {
            at: management::now(),
            request: request.to_owned(),
            container: container.to_owned(),
            error: error.told(),
            refused: error.is_refusal(),
        };
        let troubles = &mut self.memory().troubles;
        if troubles.len() == TROUBLES {
            troubles.pop_front();
        }
        troubles.push_back(trouble.clone());
        trouble
    }

    /// Puts on record what keeps the pod or a container from running.
    pub(crate) fn record(&self, trouble: Trouble) {
        let failure = {
            let memory = self.memory();
            let mut trouble = trouble;
            if let Some(known) = memory.containers.iter().find(|known| known.state.id == trouble.container) {
                trouble.container = [&known.state.name, &known.state.id]
                    .into_iter()
                    .find(|it| !it.is_empty())
                    .cloned()
                    .unwrap_or_default();
            }
            Failure::new(memory.pod.clone(), trouble, Moment::of(&memory.timeline), &memory.console)
        };
        if let Err(error) = self.0.failures.record(&failure) {
            tracing::warn!(%error, "a failure can't be put on record");
        }
    }

    pub(crate) fn console(&self) -> Console {
        self.memory().console.clone()
    }

    /// Whose it is, its times, its containers without their phases, and what went wrong.
    pub(crate) fn state(&self) -> management::State {
        let memory = self.memory();
        management::State {
            pod: memory.pod.clone(),
            timeline: Moment::of(&memory.timeline),
            containers: memory.containers.iter().map(|known| known.state.clone()).collect(),
            troubles: memory.troubles.iter().cloned().collect(),
            ..management::State::default()
        }
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.0.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const NAMESPACE: [&str; 2] = ["io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri-o.Namespace"];
const NAME: [&str; 2] = ["io.kubernetes.cri.sandbox-name", "io.kubernetes.cri-o.KubeName"];
const UID: [&str; 2] = ["io.kubernetes.cri.sandbox-uid", "io.kubernetes.pod.uid"];
const CONTAINER: [&str; 2] = ["io.kubernetes.cri.container-name", "io.kubernetes.cri-o.ContainerName"];
/// Containers that were removed and are still told of.
const GONE: usize = 4;
const TROUBLES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_are_known_by_id_and_name_and_a_few_beyond_their_end() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::new("pod", Failures::at(folder.path()));
        for number in 0..10 {
            let annotations = [(CONTAINER[0].to_owned(), "app".to_owned())].into();
            journal.add(&format!("c{number}"), "/bundle", &annotations, |id| id != "c0");
        }
        journal.output("c9").unwrap().push(b"last");
        journal.ended("c9", 7);

        let state = journal.state();
        let ids: Vec<_> = state.containers.iter().map(|it| it.id.as_str()).collect();
        assert_eq!(ids, ["c0", "c6", "c7", "c8", "c9"], "the one that is there stays");
        assert_eq!(state.containers[4].exit_status, Some(7));
        assert_eq!(journal.output("app").unwrap().kept(), "last");
        assert!(journal.output("").is_none() && journal.output("c1").is_none());
    }

    #[test]
    fn what_went_wrong_is_remembered_and_recorded_with_whose_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let failures = Failures::at(folder.path());
        let journal = Journal::new("pod", failures.clone());
        let annotations = [(NAMESPACE[0], "shop"), (NAME[0], "web"), (UID[0], "u")];
        journal.know(&annotations.map(|(name, value)| (name.to_owned(), value.to_owned())).into());
        for number in 0..20 {
            journal.note("exec", "c", &Error::State(format!("number {number}")));
        }
        let denied = Error::Denied { request: "CreateContainer", message: "blocked by policy".to_owned() };
        journal.record(journal.note("create", "c", &denied));

        let state = journal.state();
        assert_eq!((state.troubles.len(), state.troubles[0].error.as_str()), (TROUBLES, "number 5"));
        let recorded = failures.all().unwrap();
        assert_eq!(recorded.len(), 1);
        assert_eq!(recorded[0].pod.full_name().unwrap(), "shop/web");
        assert!(recorded[0].trouble.refused && recorded[0].trouble.error.contains("blocked by policy"));
    }
}
