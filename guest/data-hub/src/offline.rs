//! Resources in files of the guest (`offline_fs_kbc`): for images that carry them, and for tests without a key broker.

use std::collections::HashMap;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::error::Error;

/// The resources of all files, by their paths; of two with the same path, the one of the later file.
pub(crate) struct Offline(HashMap<String, Zeroizing<Vec<u8>>>);

impl Offline {
    /// Reads files of the form `{"repository/type/tag": base64}`. One that is not there is passed over.
    ///
    /// # Errors
    /// [`Error::OfflineFile`].
    pub(crate) fn read(paths: &[PathBuf]) -> Result<Self, Error> {
        let mut resources = HashMap::new();
        for path in paths {
            let failed = |cause: &str| Error::OfflineFile { path: path.clone(), cause: cause.to_owned() };
            let text = match read(path) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    tracing::warn!(path = %path.display(), "there are no resources in this file: it is not there");
                    continue;
                }
                Err(error) => return Err(failed(&error.to_string())),
            };
            // The parser's own words could repeat a resource.
            let encoded: HashMap<String, Zeroizing<String>> =
                serde_json::from_slice(&text).map_err(|_| failed("it is not a JSON object of texts"))?;
            for (name, text) in encoded {
                let resource = STANDARD.decode(text.as_bytes()).map(Zeroizing::new);
                let resource =
                    resource.map_err(|_| failed(&format!("the resource {name:?} is not standard base64")))?;
                resources.insert(name, resource);
            }
        }
        Ok(Self(resources))
    }

    /// The resource of this path, whatever host and plugin the name has.
    pub(crate) fn resource(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, Error> {
        self.0.get(&uri.path).cloned().ok_or_else(|| Error::NotOffline(uri.to_string()))
    }
}

fn read(path: &Path) -> io::Result<Zeroizing<Vec<u8>>> {
    let file = std::fs::File::open(path)?;
    let mut text = Zeroizing::new(Vec::new());
    file.take(MAX_FILE + 1).read_to_end(&mut text)?;
    if text.len() as u64 > MAX_FILE { Err(io::Error::other(format!("longer than {MAX_FILE} bytes"))) } else { Ok(text) }
}

const MAX_FILE: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_laid_over_each_other_and_hosts_ignored() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            path
        };
        let first = write("1", r#"{"default/key/1": "b25l", "default/key/2": "b25l"}"#);
        let second = write("2", r#"{"default/key/2": "dHdv"}"#);

        let offline = Offline::read(&[first, folder.path().join("absent"), second]).unwrap();

        let get = |uri: &str| offline.resource(&ResourceUri::parse(uri).unwrap());
        assert_eq!(*get("kbs:///default/key/1").unwrap(), b"one");
        assert_eq!(*get("kbs+x://host:1/default/key/2").unwrap(), b"two");
        let error = get("kbs:///default/key/3").unwrap_err();
        assert!(error.is_not_found() && error.to_string().contains("kbs:///default/key/3"), "{error}");

        for (name, text, reason) in [
            ("3", "[]", "not a JSON object of texts"),
            ("4", r#"{"a/b/c": "*secret*"}"#, "\"a/b/c\" is not standard base64"),
        ] {
            let error = Offline::read(&[write(name, text)]).err().unwrap().to_string();
            assert!(error.contains(reason) && !error.contains("*secret*"), "{error}");
        }
    }
}
