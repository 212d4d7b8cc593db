//! What this process was told of snapshots. It is never needed: what is not known is read from the name.
//!
//! containerd keeps a database of snapshots and numbers their names, `<namespace>/<number>/<key>`. A second database
//! could only disagree with the first, so there is none: a snapshot exists if containerd says its name, and all that its
//! name doesn't tell is a hint.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::proto::containerd::services::snapshots::v1::{Info, Kind};

/// Snapshots by their names, until containerd removes them.
#[derive(Default)]
pub(crate) struct Snapshots(Mutex<HashMap<String, Info>>);

impl Snapshots {
    /// Takes note of a snapshot. A parent of an earlier process's time gets a placeholder, since containerd removes a
    /// snapshot only if it finds the way to it from one without a parent.
    pub(crate) fn put(&self, name: String, parent: String, kind: Kind, labels: HashMap<String, String>) {
        let mut map = self.map();
        if !parent.is_empty() {
            map.entry(parent.clone()).or_insert_with(|| told_by(&parent));
        }
        let info = Info { name: name.clone(), parent, kind: kind.into(), labels, ..Default::default() };
        map.insert(name, info);
    }

    /// What is known of a snapshot, or what its name tells.
    pub(crate) fn get(&self, name: &str) -> Info {
        self.map().get(name).cloned().unwrap_or_else(|| told_by(name))
    }

    /// Changes the labels of a snapshot.
    pub(crate) fn relabel(&self, name: &str, change: impl FnOnce(&mut HashMap<String, String>)) -> Info {
        let mut info = self.get(name);
        change(&mut info.labels);
        self.map().insert(name.to_owned(), info.clone());
        info
    }

    pub(crate) fn remove(&self, name: &str) {
        self.map().remove(name);
    }

    /// All that are known, parents before their children.
    pub(crate) fn all(&self) -> Vec<Info> {
        let map = self.map();
        let depth = |info: &Info| {
            let parents = std::iter::successors(Some(info), |info| map.get(&info.parent));
            // A circle can only be made by a caller that is not containerd.
            parents.take(map.len()).count()
        };
        let mut all: Vec<_> = map.values().cloned().collect();
        all.sort_by_cached_key(|info| (depth(info), info.name.clone()));
        all
    }

    fn map(&self) -> MutexGuard<'_, HashMap<String, Info>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether a snapshot is there to unpack a layer into, by what containerd calls it.
pub(crate) fn is_for_unpacking(name: &str) -> bool {
    key(name).starts_with("extract-")
}

/// The chain id in the name of a whole layer: containerd calls those by the digests of all that is below them.
pub(crate) fn chain_id(name: &str) -> Option<&str> {
    let is_digest = |digest: &str| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    Some(key(name)).filter(|key| key.strip_prefix("sha256:").is_some_and(is_digest))
}

/// The namespace of containerd's that a snapshot belongs to.
pub(crate) fn namespace(name: &str) -> &str {
    name.split_once('/').map_or("", |(namespace, _)| namespace)
}

fn told_by(name: &str) -> Info {
    let kind = if is_layer(name) { Kind::Committed } else { Kind::Active };
    Info { name: name.to_owned(), kind: kind.into(), ..Default::default() }
}

fn is_layer(name: &str) -> bool {
    chain_id(name).is_some()
}

/// The name without namespace and number.
fn key(name: &str) -> &str {
    let mut parts = name.splitn(3, '/');
    match (parts.next(), parts.next(), parts.next()) {
        (Some(_), Some(number), Some(key)) if number.bytes().all(|b| b.is_ascii_digit()) => key,
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_what_a_snapshot_is() {
        let chain = format!("sha256:{}", "0a".repeat(32));
        for (name, kind, unpacking) in [
            (chain.clone(), Kind::Committed, false),
            (format!("k8s.io/7/{chain}"), Kind::Committed, false),
            (format!("k8s.io/8/extract-5-abcd {chain}"), Kind::Active, true),
            ("k8s.io/9/0123456789abcdef".to_owned(), Kind::Active, false),
            ("default/10/a/b".to_owned(), Kind::Active, false),
            ("default/x/extract-1".to_owned(), Kind::Active, false),
        ] {
            let snapshots = Snapshots::default();
            assert_eq!((snapshots.get(&name).kind(), is_for_unpacking(&name)), (kind, unpacking), "{name}");
        }
    }

    #[test]
    fn parents_come_before_their_children() {
        let snapshots = Snapshots::default();
        for (name, parent) in [("a", "c"), ("b", "a"), ("c", ""), ("x", "earlier"), ("circle", "circle")] {
            snapshots.put(name.to_owned(), parent.to_owned(), Kind::Committed, HashMap::new());
        }
        let names: Vec<_> = snapshots.all().into_iter().map(|info| info.name).collect();
        let place = |name: &str| names.iter().position(|other| other == name).unwrap();
        assert!(place("c") < place("a") && place("a") < place("b") && place("earlier") < place("x"), "{names:?}");
        assert_eq!(names.len(), 6);
    }
}
