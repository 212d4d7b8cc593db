//! Where simple signatures lie: the lookaside stores of a `registries.d` document.
//!
//! Source: containers-registries.d(5). The key `lookaside` has an older name, `sigstore`; stores for writing are
//! accepted and not used.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use oci_spec::distribution::Reference;
use oci_spec::image::Digest;
use saphyr_parser::{Event, Parser};
use tokio::io::AsyncReadExt as _;

use crate::error::Failure;
use crate::scope;
use crate::sources::SignatureSources;

/// Which store holds the signatures of which images.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Lookaside {
    default: Option<String>,
    scopes: BTreeMap<String, String>,
}

impl Lookaside {
    /// Parses a YAML document with `default-docker` and `docker`.
    ///
    /// # Errors
    /// Says what the document has that such a document can't have.
    pub(crate) fn parse(yaml: &[u8]) -> Result<Self, String> {
        if yaml.len() > MAX_DOCUMENT {
            return Err(format!("it is larger than {MAX_DOCUMENT} bytes"));
        }
        let text = std::str::from_utf8(yaml).map_err(|_| "it is not UTF-8".to_owned())?;
        let mut reader = Reader(Parser::new_from_str(text));
        let mut config = Self::default();
        reader.document(&mut config)?;
        Ok(config)
    }

    /// The store for an image, by the most specific scope that names one.
    pub(crate) fn store(&self, reference: &Reference) -> Option<&str> {
        let scopes = scope::candidates(reference);
        scopes.iter().find_map(|scope| self.scopes.get(scope)).or(self.default.as_ref()).map(String::as_str)
    }
}

/// Fetches the signatures of the manifest with `digest` from a store, each with the place where it lies.
///
/// In a folder that is every file; over HTTP it is `signature-1` and so on up to the first that isn't there. At most
/// 128 are taken, of at most 1 MiB each.
pub(crate) async fn signatures(
    store: &str,
    reference: &Reference,
    digest: &Digest,
    sources: &dyn SignatureSources,
) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let (store, hex) = (store.trim_end_matches('/'), digest.digest());
    let folder = format!("{store}/{}@{}={hex}", reference.repository(), digest.algorithm());
    match folder.strip_prefix("file://") {
        Some(path) => files(Path::new(path)).await.map_err(|e| Failure::Source { place: folder, cause: e.into() }),
        None => served(&folder, sources).await,
    }
}

async fn files(folder: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut entries = match tokio::fs::read_dir(folder).await {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths: Vec<PathBuf> = Vec::new();
    while let Some(entry) = entries.next_entry().await? {
        if paths.len() == MAX_SIGNATURES {
            break;
        }
        paths.push(entry.path());
    }
    paths.sort();
    let mut signatures = Vec::new();
    for path in paths {
        if !tokio::fs::metadata(&path).await?.is_file() {
            continue;
        }
        let mut bytes = Vec::new();
        let file = tokio::fs::File::open(&path).await?;
        file.take(MAX_SIGNATURE as u64).read_to_end(&mut bytes).await?;
        signatures.push((path.display().to_string(), bytes));
    }
    Ok(signatures)
}

async fn served(folder: &str, sources: &dyn SignatureSources) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    let mut signatures = Vec::new();
    for number in 1..=MAX_SIGNATURES {
        let url = format!("{folder}/signature-{number}");
        match sources.lookaside(&url).await {
            Ok(Some(bytes)) if bytes.len() <= MAX_SIGNATURE => signatures.push((url, bytes)),
            Ok(Some(_)) => return Err(Failure::TooLarge { place: url, limit: MAX_SIGNATURE }),
            Ok(None) => break,
            Err(cause) => return Err(Failure::Source { place: url, cause }),
        }
    }
    Ok(signatures)
}

/// Reads the one form that the document can have, event by event.
struct Reader<'a>(Parser<'a, saphyr_parser::StrInput<'a>>);

impl<'a> Reader<'a> {
    fn document(&mut self, config: &mut Lookaside) -> Result<(), String> {
        loop {
            match self.event()? {
                Event::StreamStart | Event::DocumentStart(_) => {}
                // An empty document is a null.
                Event::StreamEnd => return Ok(()),
                Event::Scalar(text, ..) if is_null(&text) => return self.end(),
                Event::MappingStart(..) => break,
                _ => return Err("it is not a mapping".to_owned()),
            }
        }
        while let Some(key) = self.key()? {
            match &*key {
                "default-docker" if config.default.is_none() => config.default = self.namespace(&key)?,
                "docker" if config.scopes.is_empty() => self.scopes(&mut config.scopes)?,
                "default-docker" | "docker" => return Err(format!("{key:?} stands twice")),
                _ => return Err(format!("{key:?} is neither default-docker nor docker")),
            }
        }
        self.end()
    }

    fn scopes(&mut self, scopes: &mut BTreeMap<String, String>) -> Result<(), String> {
        match self.event()? {
            Event::MappingStart(..) => {}
            Event::Scalar(text, ..) if is_null(&text) => return Ok(()),
            _ => return Err("\"docker\" is not a mapping".to_owned()),
        }
        while let Some(scope) = self.key()? {
            if let Some(store) = self.namespace(&scope)?
                && scopes.insert(scope.clone(), store).is_some()
            {
                return Err(format!("{scope:?} stands twice"));
            }
        }
        Ok(())
    }

    /// The store that is read for one namespace.
    fn namespace(&mut self, name: &str) -> Result<Option<String>, String> {
        match self.event()? {
            Event::MappingStart(..) => {}
            Event::Scalar(text, ..) if is_null(&text) => return Ok(None),
            _ => return Err(format!("{name:?} is not a mapping")),
        }
        let (mut newer, mut older) = (None, None);
        while let Some(key) = self.key()? {
            let Event::Scalar(value, ..) = self.event()? else { return Err(format!("{name:?}: {key:?} is no string")) };
            match &*key {
                "lookaside" => newer = Some(value.into_owned()),
                "sigstore" => older = Some(value.into_owned()),
                "lookaside-staging" | "sigstore-staging" | "use-sigstore-attachments" => {}
                _ => return Err(format!("{name:?}: {key:?} is not known")),
            }
        }
        let store = newer.or(older).filter(|store| !store.is_empty());
        match &store {
            Some(store) if !SCHEMES.iter().any(|scheme| store.starts_with(scheme)) => {
                Err(format!("{name:?}: {store:?} is no file, http or https URL"))
            }
            _ => Ok(store),
        }
    }

    /// The next key of a mapping, `None` at its end.
    fn key(&mut self) -> Result<Option<String>, String> {
        match self.event()? {
            Event::Scalar(key, ..) => Ok(Some(key.into_owned())),
            Event::MappingEnd => Ok(None),
            _ => Err("a key is no string".to_owned()),
        }
    }

    fn end(&mut self) -> Result<(), String> {
        loop {
            match self.event()? {
                Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(()),
                _ => return Err("something follows the document".to_owned()),
            }
        }
    }

    /// Comments give no event; aliases are not followed, so that no document grows by them.
    fn event(&mut self) -> Result<Event<'a>, String> {
        match self.0.next_event() {
            Some(Ok((Event::Alias(_), _))) => Err("it has an alias, which this document needs not".to_owned()),
            Some(Ok((event, _))) => Ok(event),
            Some(Err(e)) => Err(format!("it is not YAML: {e}")),
            None => Ok(Event::StreamEnd),
        }
    }
}

fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null")
}

const SCHEMES: [&str; 3] = ["file://", "https://", "http://"];
const MAX_DOCUMENT: usize = 1 << 20;
const MAX_SIGNATURES: usize = 128;
/// A signature with its payload has some 1 KiB.
const MAX_SIGNATURE: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn store<'a>(config: &'a Lookaside, reference: &str) -> Option<&'a str> {
        config.store(&reference.parse().unwrap())
    }

    #[test]
    fn the_most_specific_scope_names_the_store() {
        let yaml = "# stores\ndefault-docker:\n  sigstore: file:///default\ndocker:\n  r.io:\n    lookaside: https://s.io/a/\n    \
                    sigstore: file:///old\n  r.io/team/app:v1:\n    sigstore: 'file:///exact'\n  r.io/staged:\n    \
                    sigstore-staging: file:///staging\n";
        let config = Lookaside::parse(yaml.as_bytes()).unwrap();
        for (reference, expected) in [
            ("r.io/team/app:v1", "file:///exact"),
            ("r.io/team/app:v2", "https://s.io/a/"),
            ("r.io/staged/x", "https://s.io/a/"),
            ("other.io/x", "file:///default"),
        ] {
            assert_eq!(store(&config, reference), Some(expected), "{reference}");
        }
    }

    #[test]
    fn an_empty_document_names_no_store() {
        for yaml in ["", "---\n", "# only a comment\n", "docker:\n", "{}"] {
            assert_eq!(Lookaside::parse(yaml.as_bytes()), Ok(Lookaside::default()), "{yaml:?}");
        }
    }

    #[test]
    fn what_is_not_such_a_document_is_refused_with_its_reason() {
        for (yaml, reason) in [
            ("docker: [a]", "not a mapping"),
            ("docker:\n  a.io:\n    lookasides: file:///x\n", "lookasides"),
            ("docker:\n  a.io:\n    lookaside: /x\n", "no file, http or https URL"),
            ("docker:\n  a.io: {lookaside: 'file:///x'}\n  a.io: {lookaside: 'file:///y'}\n", "stands twice"),
            ("defaults: {}", "neither"),
            ("a: &x {b: c}\nd: *x\n", "neither"),
            ("docker: *x\n", "not YAML"),
            ("docker: &x\n  a.io: {lookaside: &u 'file:///x', sigstore: *u}\n", "alias"),
            ("docker:\n\t- a", "not YAML"),
            ("just text", "not a mapping"),
            ("{}\n---\n{}\n", "follows"),
        ] {
            let error = Lookaside::parse(yaml.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{yaml:?} gave {error:?}");
        }
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(yaml in "[ \\-a-z:{}\\[\\]&*!|>'\"\\n\\t#?,]{0,120}") {
            let _ = Lookaside::parse(yaml.as_bytes());
        }
    }
}
