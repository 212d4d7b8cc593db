//! Documents that the configuration names instead of holding them: files of the guest, and resources of the key broker.
//!
//! A document is fetched when a pull needs it and kept nowhere: what its owner changes or takes back counts from the
//! next pull on, and no copy of it lies on a disk.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::AsyncReadExt as _;
use wire::resource::ResourceUri;
use zeroize::Zeroizing;

use crate::error::Error;

/// Fetches resources from the key broker. The data hub implements it.
#[async_trait]
pub trait Documents: Send + Sync {
    /// Returns the resource's bytes as they are now.
    ///
    /// # Errors
    /// [`DocumentError`] with a text that may be shown to the host.
    async fn fetch(&self, uri: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, DocumentError>;
}

/// Why a resource could not be fetched: the cause and the next step.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{0}")]
pub struct DocumentError(String);

impl DocumentError {
    /// `cause` says what failed and what to do; it must hold no secret.
    pub fn new(cause: impl fmt::Display) -> Self {
        Self(cause.to_string())
    }
}

/// Where a document is.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) enum Location {
    /// `file:///path` or `/path`: in the guest's own, measured root.
    File(PathBuf),
    /// `kbs:///repository/type/tag` or `kbs+plugin:///…`.
    Resource(ResourceUri),
}

impl Location {
    /// The document that a key names. An empty URI names none, as on upstream's kernel command line.
    pub(crate) fn of(key: &str, uri: Option<&str>) -> Result<Option<Self>, Error> {
        let parsed = uri.filter(|uri| !uri.is_empty()).map(Self::parse).transpose();
        parsed.map_err(|cause| Error::Config { cause: format!("{key}: {cause}") })
    }

    /// Parses what the configuration says.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let path = match text.split_once("://") {
            None => text,
            Some(("file", path)) => path,
            Some((scheme, _)) if scheme == "kbs" || scheme.starts_with("kbs+") => {
                return ResourceUri::parse(text).map(Self::Resource).map_err(|e| e.to_string());
            }
            Some((scheme, _)) => {
                return Err(format!("the scheme {scheme:?} is not one of file, kbs and kbs+plugin"));
            }
        };
        match Path::new(path).is_absolute() && !path.contains('\0') {
            true => Ok(Self::File(path.into())),
            false => Err(format!("{text:?} is neither an absolute path nor a URI such as kbs:///default/type/tag")),
        }
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Resource(uri) => uri.fmt(f),
        }
    }
}

/// Reads documents of at most [`MAX_DOCUMENT`] bytes, wherever they are.
#[derive(Clone)]
pub(crate) struct Library(Arc<dyn Documents>);

impl Library {
    pub(crate) fn new(documents: Arc<dyn Documents>) -> Self {
        Self(documents)
    }

    /// Reads the document that `key` of the configuration names, if it names one.
    ///
    /// # Errors
    /// [`Error::Config`] and [`Error::Document`].
    pub(crate) async fn read(&self, key: &'static str, uri: Option<&str>) -> Result<Option<Document>, Error> {
        let Some(location) = Location::of(key, uri)? else { return Ok(None) };
        let failed = |cause| Error::Document { key, location: location.to_string(), cause };
        let bytes = self.bytes(&location).await.map_err(failed)?;
        Ok(Some(Document { key, location: location.to_string(), bytes }))
    }

    /// Like [`Self::read`], for a document that another one names.
    pub(crate) async fn bytes(&self, location: &Location) -> Result<Zeroizing<Vec<u8>>, String> {
        let bytes = match location {
            Location::File(path) => file(path).await.map_err(|e| format!("{e}; next: check the path"))?,
            Location::Resource(uri) => self.0.fetch(uri).await.map_err(|e| e.to_string())?,
        };
        match bytes.len() as u64 > MAX_DOCUMENT {
            true => Err(format!("it has more than {MAX_DOCUMENT} bytes; next: make it smaller")),
            false => Ok(bytes),
        }
    }
}

/// A document, and what to call it when it can't be used.
pub(crate) struct Document {
    key: &'static str,
    location: String,
    bytes: Zeroizing<Vec<u8>>,
}

impl Document {
    /// One that the configuration itself holds.
    pub(crate) fn inline(key: &'static str, text: &str) -> Self {
        Self { key, location: "inline".to_owned(), bytes: Zeroizing::new(text.as_bytes().to_vec()) }
    }

    /// # Errors
    /// [`Error::Document`] with the parser's words, which must hold no secret of the document.
    pub(crate) fn parse<T, E: fmt::Display>(&self, parser: impl FnOnce(&[u8]) -> Result<T, E>) -> Result<T, Error> {
        parser(&self.bytes).map_err(|e| {
            let cause = match e.to_string() {
                text if text.contains("; next: ") => text,
                text => format!("{text}; next: correct the document"),
            };
            Error::Document { key: self.key, location: self.location.clone(), cause }
        })
    }
}

/// Without a data hub there are files alone.
pub(crate) struct FilesAlone;

#[async_trait]
impl Documents for FilesAlone {
    async fn fetch(&self, _: &ResourceUri) -> Result<Zeroizing<Vec<u8>>, DocumentError> {
        Err(DocumentError::new("there is no key broker here; next: name a file instead"))
    }
}

async fn file(path: &Path) -> std::io::Result<Zeroizing<Vec<u8>>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Zeroizing::new(Vec::new());
    file.take(MAX_DOCUMENT + 1).read_to_end(&mut bytes).await?;
    Ok(bytes)
}

const MAX_DOCUMENT: u64 = 4 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_path_or_a_resource() {
        for (text, expected) in [
            ("/etc/policy.json", Ok("/etc/policy.json")),
            ("file:///etc/policy.json", Ok("/etc/policy.json")),
            ("kbs:///default/policy/1", Ok("kbs:///default/policy/1")),
            ("kbs://host:8080/default/policy/1", Ok("kbs:///default/policy/1")),
            ("kbs+plug-in:///a/b?c=d", Ok("kbs+plug-in:///a/b?c=d")),
            ("policy.json", Err("neither an absolute path")),
            ("file://policy.json", Err("neither an absolute path")),
            ("", Err("neither an absolute path")),
            ("https://host/policy.json", Err("the scheme \"https\"")),
            ("kbsx:///a/b/c", Err("the scheme \"kbsx\"")),
            ("kbs:///../x", Err("is not a resource URI")),
        ] {
            match (Location::parse(text).map(|location| location.to_string()), expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
                (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{text:?} gave {actual:?}"),
                (actual, _) => panic!("{text:?} gave {actual:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_document_is_read_anew_each_time_and_bounded() {
        let folder = tempfile::TempDir::new().unwrap();
        let path = folder.path().join("document");
        let location = Location::parse(path.to_str().unwrap()).unwrap();
        let library = Library::new(Arc::new(FilesAlone));

        let uri = Some(path.to_str().unwrap());
        let missing = library.read("registry_configuration_uri", uri).await.err().unwrap().to_string();
        assert!(missing.contains("registry_configuration_uri") && missing.contains("next: "), "{missing}");
        for text in ["one", "two"] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(library.bytes(&location).await.unwrap().as_slice(), text.as_bytes());
        }
        std::fs::File::create(&path).unwrap().set_len(MAX_DOCUMENT + 1).unwrap();
        assert!(library.bytes(&location).await.unwrap_err().contains("more than"));
    }
}
