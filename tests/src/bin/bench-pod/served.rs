//! What the registry has sent of an image, by its log.

use serde::Serialize;
use tests::Registry;

/// Bytes that were sent.
#[derive(Clone, Copy, Serialize)]
pub struct Served {
    pub manifests: u64,
    pub blobs: u64,
}

impl Served {
    /// Those of a repository so far.
    pub fn so_far(registry: &Registry, repository: &str) -> Self {
        let log = registry.log();
        let sum = |kind: &str| {
            let path = format!("\"GET /v2/{repository}/{kind}/");
            let size = |line: &str| {
                let (_, answer) = line.split_once(&path)?.1.split_once("\" ")?;
                answer.split(' ').nth(1)?.parse::<u64>().ok()
            };
            log.lines().filter_map(size).sum()
        };
        Self { manifests: sum("manifests"), blobs: sum("blobs") }
    }

    /// Those after another point in time.
    pub fn since(self, before: Self) -> Self {
        Self { manifests: self.manifests - before.manifests, blobs: self.blobs - before.blobs }
    }

    /// All.
    pub fn total(self) -> u64 {
        self.manifests + self.blobs
    }
}
