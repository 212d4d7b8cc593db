//! The work directory: unpacked layers that images share, and which bundle holds which.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use oci_spec::image::Digest;
use tokio::sync::OnceCell;

use crate::error::Error;
use crate::layer_dir::LayerDir;
use crate::overlay::Overlay;

/// Layers and bundles below one work directory.
pub(crate) struct Store {
    root: PathBuf,
    next: AtomicU64,
    state: Mutex<State>,
}

/// A layer, unpacked once by whoever needs it first; it goes when its last bundle goes.
pub(crate) type Layer = Arc<OnceCell<LayerDir>>;

/// What a layer is: the blob and what it unpacks to.
pub(crate) type LayerId = (Digest, Digest);

/// What a bundle holds on to. The overlay goes first.
pub(crate) struct Contents {
    pub(crate) overlay: Option<Overlay>,
    /// Nothing but held: each goes with its last holder.
    pub(crate) _layers: Vec<Layer>,
}

/// A bundle that is being filled; free again when dropped.
pub(crate) struct Claim<'a> {
    store: &'a Store,
    bundle: PathBuf,
    kept: bool,
}

#[derive(Default)]
struct State {
    layers: HashMap<LayerId, Weak<OnceCell<LayerDir>>>,
    /// Without contents while it is being filled.
    bundles: HashMap<PathBuf, Option<Contents>>,
}

impl Store {
    pub(crate) fn open(root: &Path) -> Result<Self, Error> {
        let failed = |source| Error::WorkDir { path: root.to_owned(), source };
        for folder in [LAYERS, OVERLAYS] {
            fs::create_dir_all(root.join(folder)).map_err(failed)?;
        }
        // Leftovers of an earlier process are not touched: they may still be mounted.
        let mut next = 0;
        for folder in [LAYERS, OVERLAYS] {
            for entry in fs::read_dir(root.join(folder)).map_err(failed)? {
                let name = entry.map_err(failed)?.file_name();
                let number: Option<u64> = name.to_str().and_then(|name| name.parse().ok());
                next = next.max(number.map_or(0, |number| number.saturating_add(1)));
            }
        }
        Ok(Self { root: root.to_owned(), next: next.into(), state: Mutex::default() })
    }

    pub(crate) fn claim(&self, bundle: &Path) -> Result<Claim<'_>, Error> {
        let mut state = self.state();
        if state.bundles.contains_key(bundle) {
            return Err(Error::BundleInUse { path: bundle.to_owned() });
        }
        state.bundles.insert(bundle.to_owned(), None);
        Ok(Claim { store: self, bundle: bundle.to_owned(), kept: false })
    }

    /// Gives a filled bundle free; nothing if there is none.
    pub(crate) fn take(&self, bundle: &Path) -> Option<Contents> {
        let mut state = self.state();
        match state.bundles.get(bundle) {
            Some(Some(_)) => state.bundles.remove(bundle).flatten(),
            _ => None,
        }
    }

    /// The layer if any bundle has it or is about to have it, else a new one.
    pub(crate) fn layer(&self, id: LayerId) -> Layer {
        let mut state = self.state();
        state.layers.retain(|_, layer| layer.strong_count() > 0);
        if let Some(layer) = state.layers.get(&id).and_then(Weak::upgrade) {
            return layer;
        }
        let layer = Layer::default();
        state.layers.insert(id, Arc::downgrade(&layer));
        layer
    }

    pub(crate) fn new_layer_dir(&self) -> io::Result<LayerDir> {
        LayerDir::create(self.fresh(LAYERS))
    }

    pub(crate) fn fresh_overlay(&self) -> PathBuf {
        self.fresh(OVERLAYS)
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    fn fresh(&self, folder: &str) -> PathBuf {
        self.root.join(folder).join(self.next.fetch_add(1, Ordering::Relaxed).to_string())
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Claim<'_> {
    pub(crate) fn keep(mut self, contents: Contents) {
        self.kept = true;
        self.store.state().bundles.insert(self.bundle.clone(), Some(contents));
    }
}

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.store.state().bundles.remove(&self.bundle);
        }
    }
}

const LAYERS: &str = "layers";
const OVERLAYS: &str = "overlay";
