//! What the signature policy is told about an image, and where it finds the signatures: beside the image itself.

use std::time::SystemTime;

use async_trait::async_trait;
use image_policy::{Document, Image, Policy, SignatureSources, SourceError, Verdict};
use oci_spec::image::{Descriptor, Digest, ImageIndex};

use crate::documents::{Library, Location};
use crate::error::Error;
use crate::manifest::Resolved;
use crate::registry::RegistryError;

/// Looks for signatures at the source that the image itself comes from, and for keys where the policy says.
pub(crate) struct Signatures<'a> {
    pub(crate) resolved: &'a Resolved,
    pub(crate) library: &'a Library,
}

impl Signatures<'_> {
    /// Decides about the name that was asked for, whatever mirror delivered, and about the digest that will run.
    ///
    /// # Errors
    /// [`Error::Policy`].
    pub(crate) async fn check(&self, policy: &Policy) -> Result<Verdict, Error> {
        let resolved = self.resolved;
        let digest = |text: &str| {
            text.parse::<Digest>()
                .map_err(|e| Error::Manifest { reference: resolved.reference.clone(), cause: e.to_string() })
        };
        let manifest_digest = digest(&resolved.digest)?;
        let index_digest = resolved.index_digest.as_deref().map(digest).transpose()?;
        let image = Image {
            reference: &resolved.name,
            manifest_digest: &manifest_digest,
            index_digest: index_digest.as_ref(),
            manifest_bytes: &resolved.manifest_bytes,
        };
        // A guest's clock is its host's; what expires is the signer's business and not a defence against the host.
        let verdict = policy.check(&image, self, SystemTime::now()).await.map_err(|e| Error::Policy(Box::new(e)))?;
        tracing::info!(image = %resolved.reference, digest = %resolved.digest, scope = %verdict.scope, "image policy accepts");
        Ok(verdict)
    }
}

#[async_trait]
impl SignatureSources for Signatures<'_> {
    async fn document(&self, uri: &str) -> Result<Vec<u8>, SourceError> {
        let bytes = self.library.bytes(&Location::parse(uri)?).await?;
        // What a policy names is public.
        Ok(bytes.to_vec())
    }

    async fn lookaside(&self, url: &str) -> Result<Option<Vec<u8>>, SourceError> {
        Ok(self.resolved.session.web(url).await?.map(|bytes| bytes.to_vec()))
    }

    async fn manifest(&self, version: &str) -> Result<Option<Document>, SourceError> {
        let Resolved { session, from, .. } = self.resolved;
        let found = session.first(from, |source| session.manifest(source, version)).await;
        let document = present(found)?;
        Ok(document.map(|document| Document { media_type: document.media_type, bytes: document.bytes.to_vec() }))
    }

    async fn blob(&self, digest: &Digest) -> Result<Vec<u8>, SourceError> {
        let Resolved { session, from, .. } = self.resolved;
        let (_, bytes) = session.first(from, |source| session.document(source, digest)).await?;
        Ok(bytes.to_vec())
    }

    async fn referrers(&self, digest: &Digest, artifact_type: &str) -> Result<Vec<Descriptor>, SourceError> {
        let Resolved { session, from, .. } = self.resolved;
        let kind: String = form_urlencoded::byte_serialize(artifact_type.as_bytes()).collect();
        let path = format!("referrers/{digest}?artifactType={kind}");
        let found = session.first(from, |source| session.other(source, &path, INDEX)).await;
        match present(found)? {
            // Registries without this API have been seen to answer with a page.
            Some(document) if document.media_type == INDEX => {
                Ok(serde_json::from_slice::<ImageIndex>(&document.bytes)?.manifests().clone())
            }
            _ => Ok(Vec::new()),
        }
    }
}

fn present<S, T>(found: Result<(S, T), RegistryError>) -> Result<Option<T>, RegistryError> {
    match found {
        Ok((_, found)) => Ok(Some(found)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
