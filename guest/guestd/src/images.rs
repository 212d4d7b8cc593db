//! The agent's way to images: the data hub, with a line on the console when an image is ready.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use agent::{ImageError, ImageProcess, Images, PulledImage, ResolvedImage};
use async_trait::async_trait;
use data_hub::{DataHub, Resolved};
use wire::milestone::Milestone;

/// Images of the data hub.
pub(crate) struct HubImages {
    hub: Arc<DataHub>,
    /// Manifests between the decision about them and their pull, by digest.
    manifests: Mutex<HashMap<String, Resolved>>,
}

impl HubImages {
    pub(crate) fn new(hub: Arc<DataHub>) -> Self {
        Self { hub, manifests: Mutex::default() }
    }
}

#[async_trait]
impl Images for HubImages {
    async fn resolve(&self, reference: &str) -> Result<ResolvedImage, ImageError> {
        let resolved = self.hub.resolve_image(reference).await.map_err(failed)?;
        let config = resolved.configuration().await.map_err(|error| ImageError(error.to_string()))?;
        let config = config.config().clone().unwrap_or_default();
        let words = |words: &Option<Vec<String>>| words.clone().unwrap_or_default();
        let process = ImageProcess {
            args: [words(config.entrypoint()), words(config.cmd())].concat(),
            env: words(config.env()),
            cwd: config.working_dir().clone().unwrap_or_default(),
            user: config.user().clone().unwrap_or_default(),
        };
        let image = ResolvedImage { reference: reference.to_owned(), digest: resolved.digest.clone(), process };
        let mut manifests = self.manifests.lock().unwrap_or_else(PoisonError::into_inner);
        if manifests.len() >= MAX_UNDECIDED {
            // The host can ask for images that the policy then denies, as often as it likes.
            manifests.clear();
        }
        manifests.insert(image.digest.clone(), resolved);
        Ok(image)
    }

    async fn pull(&self, image: &ResolvedImage, bundle: &Path) -> Result<PulledImage, ImageError> {
        let known = self.manifests.lock().unwrap_or_else(PoisonError::into_inner).remove(&image.digest);
        let resolved = match known {
            Some(resolved) => resolved,
            None => self.hub.resolve_image(&image.reference).await.map_err(failed)?,
        };
        if resolved.digest != image.digest {
            return Err(ImageError(format!(
                "image: {} is {} now, and {} was decided on; next: pin the reference by its digest",
                image.reference, resolved.digest, image.digest
            )));
        }
        let pulled = self.hub.pull_image(&image.reference, &resolved, bundle).await.map_err(failed)?;
        println!("{}", Milestone::Image(pulled.digest.clone()));

        Ok(PulledImage { digest: pulled.digest, rootfs: pulled.rootfs })
    }

    async fn release(&self, bundle: &Path) {
        if let Err(error) = self.hub.release_image(bundle).await {
            tracing::warn!(bundle = %bundle.display(), %error, "an image was not released");
        }
    }
}

fn failed(error: data_hub::Error) -> ImageError {
    ImageError(error.to_string())
}

const MAX_UNDECIDED: usize = 16;
