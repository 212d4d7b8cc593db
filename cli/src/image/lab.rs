//! An OCI layout for tests, made by hand.

use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;

/// A layout with one image in a folder of its own.
pub(super) struct Lab(pub(super) TempDir);

impl Lab {
    pub(super) fn new(layers: &[(&str, &[u8])]) -> Self {
        let lab = Self(TempDir::new().unwrap());
        let root = lab.path("plain");
        fs::create_dir_all(root.join("blobs/sha256")).unwrap();
        fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let config = lab.blob("application/vnd.oci.image.config.v1+json", b"{}");
        let layers: Vec<_> = layers.iter().map(|(media_type, bytes)| lab.blob(media_type, bytes)).collect();
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": layers }).to_string();
        let mut entry = lab.blob("application/vnd.oci.image.manifest.v1+json", manifest.as_bytes());
        entry["annotations"] = json!({ "org.opencontainers.image.ref.name": "v1" });
        lab.index(&[entry]);
        lab
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    pub(super) fn blob(&self, media_type: &str, bytes: &[u8]) -> Value {
        let digest = hex::encode(Sha256::digest(bytes));
        fs::write(self.path("plain/blobs/sha256").join(&digest), bytes).unwrap();
        json!({ "mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len() })
    }

    pub(super) fn index(&self, entries: &[Value]) {
        let index = json!({ "schemaVersion": 2, "manifests": entries });
        fs::write(self.path("plain/index.json"), index.to_string()).unwrap();
    }
}
