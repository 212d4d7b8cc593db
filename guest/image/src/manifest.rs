//! From an image's name to the one manifest that will run, and to what must be known about each of its layers.

use std::sync::Arc;

use bytes::Bytes;
use oci_spec::distribution::Reference;
use oci_spec::image::{Descriptor, Digest, ImageConfiguration, ImageIndex, ImageManifest};
use serde::Deserialize;
use wire::image_reference::parse_reference;

use crate::digest;
use crate::error::Error;
use crate::media::LayerFormat;
use crate::platform::Platform;
use crate::registries::{Candidates, Source};
use crate::registry::{Document, MAX_DOCUMENT, Session};

/// A reference with the manifest it stands for. The decision whether it may run belongs between this and the pull.
#[derive(Clone, Debug)]
pub struct Resolved {
    /// The image's full name.
    pub reference: String,
    /// The digest of the platform's manifest: what will run.
    pub digest: String,
    /// The digest of the index through which it was found, if there is one: what a tag of several platforms names.
    pub index_digest: Option<String>,
    /// The manifest's exact bytes; [`Self::digest`] is their digest.
    pub manifest_bytes: Bytes,
    pub(crate) name: Reference,
    pub(crate) manifest: ImageManifest,
    /// Where everything else of the image may come from; first, where the manifest came from.
    pub(crate) from: Candidates,
    pub(crate) session: Arc<Session>,
}

/// What the pipeline must know about a layer.
#[derive(Clone, Debug)]
pub(crate) struct LayerPlan {
    pub(crate) index: usize,
    pub(crate) blob: Descriptor,
    pub(crate) format: LayerFormat,
    pub(crate) diff_id: Digest,
}

impl Resolved {
    pub(crate) async fn resolve(session: Arc<Session>, reference: &str) -> Result<Self, Error> {
        let name = parse_reference(reference)
            .map_err(|e| Error::Reference { reference: reference.to_owned(), cause: e.to_owned() })?;
        // Digits in capitals are another digest, which no bytes have.
        name.digest()
            .map_or(Ok(()), |digest| digest.parse::<Digest>().map(drop))
            .map_err(|e| Error::Reference { reference: name.whole(), cause: format!("{e}") })?;
        let unusable = |cause: String| Error::Manifest { reference: name.whole(), cause };
        let failed = |source| Error::Registry { reference: name.whole(), stage: "manifest", source };

        let candidates = session.candidates(&name);
        let asked = |source: &Source| source.reference.digest().map(str::to_owned);
        let (source, document) = session
            .first(&candidates, |source| {
                session.manifest(source, source.reference.digest().or(source.reference.tag()).unwrap_or_default())
            })
            .await
            .map_err(failed)?;
        let found = asked(source).unwrap_or_else(|| digest::sha256(&document.bytes));
        let from = candidates.starting_with(source);
        let (digest, index_digest, document) = match kind(&document).map_err(unusable)? {
            Kind::Manifest => (found, None, document),
            Kind::Index => {
                let index: ImageIndex =
                    serde_json::from_slice(&document.bytes).map_err(|e| unusable(format!("not an index: {e}")))?;
                let chosen = Platform::this().choose(index.manifests()).map_err(unusable)?.digest().to_string();
                let manifest = session.first(&from, |source| session.manifest(source, &chosen)).await;
                let (_, manifest) = manifest.map_err(failed)?;
                if kind(&manifest).map_err(unusable)? != Kind::Manifest {
                    return Err(unusable(format!("the index names {chosen}, which is an index again")));
                }
                (chosen, Some(found), manifest)
            }
        };
        let manifest: ImageManifest =
            serde_json::from_slice(&document.bytes).map_err(|e| unusable(format!("not a manifest: {e}")))?;
        if manifest.layers().len() > MAX_LAYERS {
            return Err(unusable(format!(
                "{} layers are more than the {MAX_LAYERS} an overlay can hold",
                manifest.layers().len()
            )));
        }
        let (reference, manifest_bytes) = (name.whole(), document.bytes);
        Ok(Self { reference, digest, index_digest, manifest_bytes, name, manifest, from, session })
    }

    /// Fetches and checks the image's configuration.
    ///
    /// # Errors
    /// [`Error::Registry`] and [`Error::Manifest`].
    pub async fn configuration(&self) -> Result<ImageConfiguration, Error> {
        let unusable = |cause: String| Error::Manifest { reference: self.reference.clone(), cause };
        let stage = "configuration";
        let failed = |source| Error::Registry { reference: self.reference.clone(), stage, source };
        let descriptor = self.manifest.config();
        if descriptor.size() > MAX_DOCUMENT || !digest::supported(descriptor.digest()) {
            return Err(unusable(format!(
                "configuration {} of {} bytes is too large or has an unknown digest",
                descriptor.digest(),
                descriptor.size()
            )));
        }
        let session = &*self.session;
        let found = session.first(&self.from, |source| session.document(source, descriptor.digest())).await;
        let (_, bytes) = found.map_err(failed)?;
        let config: ImageConfiguration =
            serde_json::from_slice(&bytes).map_err(|e| unusable(format!("not an image configuration: {e}")))?;
        let platform = Platform::this();
        if !platform.runs(config.os(), &config.architecture().to_string()) {
            return Err(unusable(format!("it is for {}/{}, not for {platform}", config.os(), config.architecture())));
        }
        Ok(config)
    }

    /// Matches the manifest's layers with the configuration's diff ids.
    pub(crate) fn layers(&self, config: &ImageConfiguration) -> Result<Vec<LayerPlan>, Error> {
        let unusable = |cause: String| Error::Manifest { reference: self.reference.clone(), cause };
        let (layers, diff_ids) = (self.manifest.layers(), config.rootfs().diff_ids());
        if layers.len() != diff_ids.len() {
            return Err(unusable(format!("{} layers but {} diff ids", layers.len(), diff_ids.len())));
        }
        let plan = |(index, (blob, diff_id)): (usize, (&Descriptor, &String))| {
            let format = LayerFormat::from_media_type(blob.media_type().as_ref()).ok_or_else(|| {
                unusable(format!("layer {index} has the unknown type {:?}", blob.media_type().as_ref()))
            })?;
            let diff_id: Digest =
                diff_id.parse().map_err(|_| unusable(format!("diff id {index} is not a digest: {diff_id:?}")))?;
            if !digest::supported(blob.digest()) || !digest::supported(&diff_id) {
                return Err(unusable(format!("layer {index} has a digest of an unknown algorithm")));
            }
            Ok(LayerPlan { index, blob: blob.clone(), format, diff_id })
        };
        layers.iter().zip(diff_ids).enumerate().map(plan).collect()
    }
}

#[derive(Debug, PartialEq)]
enum Kind {
    Manifest,
    Index,
}

/// Tells a manifest from an index. One that could be both is refused: two readers could see two images.
fn kind(document: &Document) -> Result<Kind, String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head {
        schema_version: Option<u64>,
        media_type: Option<String>,
        #[serde(default)]
        layers: Option<serde::de::IgnoredAny>,
        #[serde(default)]
        manifests: Option<serde::de::IgnoredAny>,
    }
    let head: Head = serde_json::from_slice(&document.bytes).map_err(|e| format!("not a manifest: {e}"))?;
    if head.schema_version != Some(2) {
        return Err("its schema version is not 2".to_owned());
    }
    let media_type = head.media_type.as_deref().unwrap_or(&document.media_type);
    let kind = match media_type {
        "application/vnd.oci.image.manifest.v1+json" | "application/vnd.docker.distribution.manifest.v2+json" => {
            Kind::Manifest
        }
        "application/vnd.oci.image.index.v1+json" | "application/vnd.docker.distribution.manifest.list.v2+json" => {
            Kind::Index
        }
        other => return Err(format!("the media type {other:?} is neither a manifest's nor an index's")),
    };
    match (&kind, head.layers.is_some(), head.manifests.is_some()) {
        (Kind::Manifest, true, false) | (Kind::Index, false, true) => Ok(kind),
        _ => Err("its content does not fit its media type".to_owned()),
    }
}

/// What the kernel's overlayfs can stack.
const MAX_LAYERS: usize = 500;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    const INDEX: &str = "application/vnd.oci.image.index.v1+json";

    fn document(media_type: &str, text: &str) -> Document {
        Document { media_type: media_type.to_owned(), bytes: Bytes::copy_from_slice(text.as_bytes()) }
    }

    #[test]
    fn a_document_is_one_kind_only() {
        for (media_type, text, expected) in [
            (MANIFEST, r#"{"schemaVersion":2,"layers":[]}"#, Ok(Kind::Manifest)),
            (INDEX, r#"{"schemaVersion":2,"manifests":[]}"#, Ok(Kind::Index)),
            (
                "",
                r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#,
                Ok(Kind::Index),
            ),
            (MANIFEST, r#"{"schemaVersion":2,"layers":[],"manifests":[]}"#, Err("does not fit")),
            (INDEX, r#"{"schemaVersion":2,"layers":[]}"#, Err("does not fit")),
            (MANIFEST, r#"{"schemaVersion":1,"layers":[]}"#, Err("schema version")),
            ("text/plain", r#"{"schemaVersion":2,"layers":[]}"#, Err("neither")),
        ] {
            match (kind(&document(media_type, text)), expected) {
                (Ok(actual), Ok(expected)) => assert_eq!(actual, expected),
                (Err(actual), Err(expected)) => assert!(actual.contains(expected), "{text} gave {actual}"),
                (actual, _) => panic!("{text} gave {actual:?}"),
            }
        }
    }

    proptest! {
        #[test]
        fn no_document_makes_it_panic(text in "\\PC{0,300}") {
            let _ = kind(&document(MANIFEST, &text));
        }
    }
}
