//! Whose pod it is: a file in its folder, which is there even if its owner doesn't answer.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// Whose pod it is, and what it was made of.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
#[serde(default)]
pub struct Identity {
    /// Its id, which is also the name of its folder.
    pub id: String,
    /// The namespace that it has in Kubernetes; empty elsewhere.
    pub namespace: String,
    /// Its name there.
    pub name: String,
    /// Its uid there.
    pub uid: String,
    /// The digest of its initdata in hexadecimal; none without initdata.
    pub initdata: Option<String>,
    /// MiB of memory that its guest has.
    pub memory_mib: u32,
    /// Processors that its guest has.
    pub vcpus: u32,
}

impl Identity {
    /// Writes it into a pod's folder.
    ///
    /// # Errors
    /// Those of the file.
    pub fn write(&self, folder: &Path) -> io::Result<()> {
        let text = serde_json::to_vec(self).map_err(io::Error::from)?;
        OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(folder.join(FILE))?.write_all(&text)
    }

    /// The one in a pod's folder, if there is one.
    pub fn read(folder: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(folder.join(FILE)).ok()?).ok()
    }

    /// Its namespace and name, or nothing where it has none.
    pub fn full_name(&self) -> Option<String> {
        (!self.name.is_empty()).then(|| format!("{}/{}", self.namespace, self.name))
    }

    /// Whether somebody who says `word` may mean it: the id, its beginning, or namespace and name.
    pub fn is_meant_by(&self, word: &str) -> bool {
        self.id.starts_with(word) || self.full_name().as_deref() == Some(word)
    }
}

const FILE: &str = "pod.json";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_is_known_by_its_id_its_beginning_and_its_name() {
        let folder = tempfile::tempdir().unwrap();
        let pod = Identity { id: "0a1b".into(), namespace: "shop".into(), name: "web".into(), ..Identity::default() };
        pod.write(folder.path()).unwrap();
        let read = Identity::read(folder.path()).unwrap();
        assert_eq!(read, pod);
        for word in ["0a1b", "0a", "shop/web"] {
            assert!(read.is_meant_by(word), "{word}");
        }
        for word in ["1b", "web", "shop/we", "0a1b2"] {
            assert!(!read.is_meant_by(word), "{word}");
        }
        assert_eq!(Identity::default().full_name(), None);
    }
}
