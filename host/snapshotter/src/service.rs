//! The snapshots service as containerd calls it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use futures::stream;
use tonic::{Request, Response, Status};

use crate::names::Names;
use crate::prefetch::{Image, Prefetch};
use crate::proto::containerd::services::snapshots::v1::snapshots_server::Snapshots as Service;
use crate::proto::containerd::services::snapshots::v1::{
    CleanupRequest, CommitSnapshotRequest, Info, Kind, ListSnapshotsRequest, ListSnapshotsResponse, MountsRequest,
    MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse, RemoveSnapshotRequest, StatSnapshotRequest,
    StatSnapshotResponse, UpdateSnapshotRequest, UpdateSnapshotResponse, UsageRequest, UsageResponse,
    ViewSnapshotRequest, ViewSnapshotResponse,
};
use crate::proto::containerd::types::Mount;
use crate::snapshots::{Snapshots, is_for_unpacking};
use crate::unpacking::Unpacking;
use crate::volume;

/// Answers containerd without keeping anything that it could not lose.
pub(crate) struct Snapshotter {
    snapshots: Snapshots,
    unpacking: Unpacking,
    /// What containers' roots are while containerd looks at them: empty but for names of users.
    names: Names,
    prefetch: Arc<Prefetch>,
}

impl Snapshotter {
    pub(crate) fn new(unpacking: Unpacking, names: Names, prefetch: Arc<Prefetch>) -> Self {
        Self { snapshots: Snapshots::default(), unpacking, names, prefetch }
    }

    /// A snapshot that something is to be written to, or whose parent is to be looked at.
    async fn open(
        &self,
        snapshotter: &str,
        key: &str,
        parent: &str,
        kind: Kind,
        own: HashMap<String, String>,
    ) -> Result<Vec<Mount>, Status> {
        // A parent that is not known is one of an earlier process; its name is all that was ever needed of it.
        let mut labels = self.snapshots.get(parent).labels;
        labels.remove(TARGET);
        labels.extend(own);
        self.snapshots.put(key.to_owned(), parent.to_owned(), kind, labels);
        self.mounts_of(snapshotter, key).await
    }

    async fn mounts_of(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Status> {
        if is_for_unpacking(key) {
            let folder = self.unpacking.make(key).map_err(|e| failed("folder for unpacking", &e))?;
            return Ok(vec![volume::bind(&folder, ["rbind", "rw"])]);
        }
        let snapshot = self.snapshots.get(key);
        // Each time: somebody may have cleaned up /run.
        let root = self.names.root(snapshotter, key, &snapshot.parent).await;
        let root = root.map_err(|e| failed("root of a container", &e))?;
        Ok(vec![volume::guest_pull(&root, &snapshot.labels)])
    }
}

#[tonic::async_trait]
impl Service for Snapshotter {
    /// For a layer of a pull: says that it is there already, once its image is in the node's cache or can't be.
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let PrepareSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let Some(target) = labels.get(TARGET).cloned() else {
            let mounts = self.open(&snapshotter, &key, &parent, Kind::Active, labels).await?;
            return Ok(Response::new(PrepareSnapshotResponse { mounts }));
        };
        if let Some(image) = Image::from_labels(&labels) {
            Arc::clone(&self.prefetch).wait_for(image).await;
        }
        // containerd looks for it by this label before it believes that it is there.
        self.snapshots.put(target.clone(), parent, Kind::Committed, labels);
        Err(Status::already_exists(format!("layer {target} is pulled by guests")))
    }

    async fn view(&self, request: Request<ViewSnapshotRequest>) -> Result<Response<ViewSnapshotResponse>, Status> {
        let ViewSnapshotRequest { snapshotter, key, parent, labels } = request.into_inner();
        let mounts = self.open(&snapshotter, &key, &parent, Kind::View, labels).await?;
        Ok(Response::new(ViewSnapshotResponse { mounts }))
    }

    async fn mounts(&self, request: Request<MountsRequest>) -> Result<Response<MountsResponse>, Status> {
        let MountsRequest { snapshotter, key } = request.into_inner();
        let mounts = self.mounts_of(&snapshotter, &key).await?;
        Ok(Response::new(MountsResponse { mounts }))
    }

    async fn commit(&self, request: Request<CommitSnapshotRequest>) -> Result<Response<()>, Status> {
        let CommitSnapshotRequest { name, key, labels, .. } = request.into_inner();
        if !is_for_unpacking(&key) {
            return Err(Status::failed_precondition(format!(
                "commit {key}: what a container writes stays in its guest; next: build images outside of guests"
            )));
        }
        let parent = self.snapshots.get(&key).parent;
        self.unpacking.remove(&key).await.map_err(|e| failed("folder for unpacking", &e))?;
        self.snapshots.remove(&key);
        self.snapshots.put(name, parent, Kind::Committed, labels);
        Ok(Response::new(()))
    }

    async fn remove(&self, request: Request<RemoveSnapshotRequest>) -> Result<Response<()>, Status> {
        let key = request.into_inner().key;
        self.unpacking.remove(&key).await.map_err(|e| failed("folder for unpacking", &e))?;
        self.names.forget(&key);
        self.snapshots.remove(&key);
        Ok(Response::new(()))
    }

    async fn stat(&self, request: Request<StatSnapshotRequest>) -> Result<Response<StatSnapshotResponse>, Status> {
        let info = self.snapshots.get(&request.into_inner().key);
        Ok(Response::new(StatSnapshotResponse { info: Some(info) }))
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let UpdateSnapshotRequest { info, update_mask, .. } = request.into_inner();
        let Info { name, labels, .. } = info.ok_or_else(|| Status::invalid_argument("update: no snapshot is named"))?;
        let paths = update_mask.map(|mask| mask.paths).unwrap_or_default();
        // Nothing but labels can change; `labels.` and a name is one of them.
        let chosen: Option<Vec<_>> = paths.iter().map(|path| path.strip_prefix("labels.")).collect();
        let info = self.snapshots.relabel(&name, |known| match chosen {
            Some(chosen) if !chosen.is_empty() => {
                for label in chosen {
                    match labels.get(label).filter(|value| !value.is_empty()) {
                        Some(value) => known.insert(label.to_owned(), value.clone()),
                        None => known.remove(label),
                    };
                }
            }
            _ => *known = labels,
        });
        Ok(Response::new(UpdateSnapshotResponse { info: Some(info) }))
    }

    type ListStream = stream::Iter<std::vec::IntoIter<Result<ListSnapshotsResponse, Status>>>;

    /// Filters are left to containerd, which applies them again whatever it gets.
    async fn list(&self, _: Request<ListSnapshotsRequest>) -> Result<Response<Self::ListStream>, Status> {
        let all = self.snapshots.all();
        let parts: Vec<_> =
            all.chunks(LISTED_AT_ONCE).map(|part| Ok(ListSnapshotsResponse { info: part.to_vec() })).collect();
        Ok(Response::new(stream::iter(parts)))
    }

    /// Nothing of a container or a layer lies on the node.
    async fn usage(&self, _: Request<UsageRequest>) -> Result<Response<UsageResponse>, Status> {
        Ok(Response::new(UsageResponse::default()))
    }

    async fn cleanup(&self, _: Request<CleanupRequest>) -> Result<Response<()>, Status> {
        Ok(Response::new(()))
    }
}

fn failed(stage: &str, error: &io::Error) -> Status {
    let text = format!("{stage}: {error}; next: check the space and the rights on the snapshotter's folders");
    match error.kind() {
        io::ErrorKind::StorageFull => Status::resource_exhausted(text),
        _ => Status::internal(text),
    }
}

/// The name under which containerd will look for the layer that it is about to pull.
const TARGET: &str = "containerd.io/snapshot.ref";
const LISTED_AT_ONCE: usize = 100;
