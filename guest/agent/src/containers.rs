//! The pod's containers by name, each with the stage of its life.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::container::Container;
use crate::fault::Fault;
use crate::id::Id;

/// All containers of the pod. No name is held twice, and no container is created and removed at once.
#[derive(Default)]
pub(crate) struct Containers {
    entries: Mutex<HashMap<Id, Entry>>,
    settled: Notify,
}

enum Entry {
    /// Being created, until told to give up.
    Creating(Arc<Notify>),
    Ready(Arc<Container>),
    Removing,
}

impl Containers {
    /// Takes a name for a container that is about to be created.
    pub(crate) fn reserve(&self, id: &Id) -> Result<Reservation<'_>, Fault> {
        if RESERVED.contains(&id.as_str()) {
            return Err(Fault::Invalid(
                "the container has the name of one of the agent's folders; next: use another id",
            ));
        }
        let mut entries = self.entries();
        if entries.contains_key(id) {
            return Err(Fault::Exists(format!("container {id}")));
        }
        if entries.len() >= MAX_CONTAINERS {
            return Err(Fault::State(format!("the pod has {MAX_CONTAINERS} containers already")));
        }
        let give_up = Arc::new(Notify::new());
        entries.insert(id.clone(), Entry::Creating(Arc::clone(&give_up)));
        Ok(Reservation { containers: self, id: id.clone(), give_up, is_kept: false })
    }

    /// The container of that name, if it can be used.
    pub(crate) fn get(&self, id: &Id) -> Result<Arc<Container>, Fault> {
        ready(&self.entries(), id)
    }

    /// Whether the name is taken.
    pub(crate) fn has(&self, id: &Id) -> bool {
        self.entries().contains_key(id)
    }

    /// Takes a container out of use, for its removal.
    pub(crate) fn begin_removal(&self, id: &Id) -> Result<Arc<Container>, Fault> {
        let mut entries = self.entries();
        let container = ready(&entries, id)?;
        entries.insert(id.clone(), Entry::Removing);
        Ok(container)
    }

    /// Ends a creation or a removal: with a container that can be used, or with none.
    pub(crate) fn settle(&self, id: &Id, container: Option<Arc<Container>>) {
        match container {
            Some(container) => self.entries().insert(id.clone(), Entry::Ready(container)),
            None => self.entries().remove(id),
        };
        self.settled.notify_waiters();
    }

    /// Gives up on what is being created, waits for what is being removed, and returns the containers that are left.
    pub(crate) async fn settled(&self) -> Vec<Id> {
        loop {
            // Made before looking, so that no change in between is missed.
            let mut change = std::pin::pin!(self.settled.notified());
            change.as_mut().enable();
            {
                let entries = self.entries();
                let mut busy = false;
                for entry in entries.values() {
                    match entry {
                        Entry::Creating(give_up) => give_up.notify_one(),
                        Entry::Removing => {}
                        Entry::Ready(_) => continue,
                    }
                    busy = true;
                }
                if !busy {
                    return entries.keys().cloned().collect();
                }
            }
            change.await;
        }
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<Id, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A name that is given back unless it is kept.
pub(crate) struct Reservation<'a> {
    containers: &'a Containers,
    id: Id,
    give_up: Arc<Notify>,
    is_kept: bool,
}

impl Reservation<'_> {
    /// Keeps the name until [`Containers::settle`]. What comes back tells when to give up on the container.
    pub(crate) fn keep(mut self) -> Arc<Notify> {
        self.is_kept = true;
        Arc::clone(&self.give_up)
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.is_kept {
            self.containers.settle(&self.id, None);
        }
    }
}

fn ready(entries: &HashMap<Id, Entry>, id: &Id) -> Result<Arc<Container>, Fault> {
    match entries.get(id) {
        Some(Entry::Ready(container)) => Ok(Arc::clone(container)),
        Some(Entry::Creating(_)) => Err(Fault::State(format!("container {id} is being created"))),
        Some(Entry::Removing) => Err(Fault::State(format!("container {id} is being removed"))),
        None => Err(Fault::NotFound(format!("container {id}"))),
    }
}

const MAX_CONTAINERS: usize = 64;
/// Folders below the agent's own that are no bundles.
const RESERVED: [&str; 3] = ["sandbox", "shared", "image"];

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_name_is_taken_once_until_it_is_settled() {
        let containers = Containers::default();
        let id = Id::parse("c1").unwrap();
        assert!(matches!(containers.get(&id), Err(Fault::NotFound(_))));
        drop(containers.reserve(&id).unwrap());
        containers.reserve(&id).unwrap().keep();
        assert!(matches!(containers.reserve(&id), Err(Fault::Exists(_))));
        assert!(matches!(containers.get(&id), Err(Fault::State(_))));
        assert!(matches!(containers.begin_removal(&id), Err(Fault::State(_))));
        containers.settle(&id, None);
        drop(containers.reserve(&id).unwrap());
        assert!(matches!(containers.reserve(&Id::parse("sandbox").unwrap()), Err(Fault::Invalid(_))));
    }

    #[tokio::test]
    async fn creations_are_given_up_before_the_pod_ends() {
        let containers = Arc::new(Containers::default());
        let id = Id::parse("c1").unwrap();
        let give_up = containers.reserve(&id).unwrap().keep();
        let creation = tokio::spawn({
            let containers = Arc::clone(&containers);
            async move {
                give_up.notified().await;
                containers.settle(&id, None);
            }
        });
        assert_eq!(containers.settled().await, []);
        creation.await.unwrap();
    }

    #[test]
    fn a_pod_has_a_limited_number_of_containers() {
        let containers = Containers::default();
        let reserve =
            |number: usize| containers.reserve(&Id::parse(&format!("c{number}")).unwrap()).map(Reservation::keep);
        assert!((0..MAX_CONTAINERS).all(|number| reserve(number).is_ok()));
        assert!(matches!(reserve(MAX_CONTAINERS), Err(Fault::State(_))));
    }
}
