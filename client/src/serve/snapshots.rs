//! `containerd.services.snapshots.v1.Snapshots` over any snapshotter.

use std::sync::Arc;

use async_trait::async_trait;
use grpc::snapshots::Snapshots as Service;
use grpc::{ResponseStream, Tenant, filter, known, serve_tenant};
use protos::MessageField;
use protos::services::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Kind, ListSnapshotsRequest, ListSnapshotsResponse,
    MountsRequest, MountsResponse, PrepareSnapshotRequest, PrepareSnapshotResponse,
    RemoveSnapshotRequest, StatSnapshotRequest, StatSnapshotResponse, UpdateSnapshotRequest,
    UpdateSnapshotResponse, UsageRequest, UsageResponse, ViewSnapshotRequest, ViewSnapshotResponse,
};
use protos::well_known::Empty;
use protos::wire::{Wire as _, mask};
use snapshotters::Snapshotter;
use tonic::{Request, Response, Status};
use types::{Labels, Result, SnapshotInfo, SnapshotKey};

/// Where the service finds snapshotters.
pub trait Snapshotters: Clone + Send + Sync + 'static {
    /// On whose behalf they are asked.
    type Tenant: Tenant;

    /// The one of that name, as the tenant sees it.
    ///
    /// # Errors
    /// `InvalidArgument` for a name that nobody has.
    fn pick(&self, tenant: &Self::Tenant, name: &str) -> Result<Arc<dyn Snapshotter>>;
}

/// The service.
#[derive(Clone, Debug)]
pub struct Snapshots<S>(pub S);

/// The parent that a request names; the empty text is none.
fn parent(name: String) -> Result<Option<SnapshotKey>> {
    Some(name)
        .filter(|name| !name.is_empty())
        .map(TryInto::try_into)
        .transpose()
}

#[async_trait]
impl<S: Snapshotters> Service for Snapshots<S> {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let (key, parent) = (request.key.try_into()?, parent(request.parent)?);
            let labels = Labels::from_wire(request.labels)?;
            let mounts = snapshotter.prepare(&key, parent.as_ref(), labels).await?;
            Ok(PrepareSnapshotResponse {
                mounts: mounts.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    async fn view(
        &self,
        request: Request<ViewSnapshotRequest>,
    ) -> Result<Response<ViewSnapshotResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let (key, parent) = (request.key.try_into()?, parent(request.parent)?);
            let labels = Labels::from_wire(request.labels)?;
            let mounts = snapshotter.view(&key, parent.as_ref(), labels).await?;
            Ok(ViewSnapshotResponse {
                mounts: mounts.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    async fn mounts(
        &self,
        request: Request<MountsRequest>,
    ) -> Result<Response<MountsResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let mounts = snapshotter
                .mounts(&known(&request.key, "snapshot")?)
                .await?;
            Ok(MountsResponse {
                mounts: mounts.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    async fn commit(
        &self,
        request: Request<CommitSnapshotRequest>,
    ) -> Result<Response<Empty>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let (name, key) = (request.name.try_into()?, known(&request.key, "snapshot")?);
            let (parent, labels) = (parent(request.parent)?, Labels::from_wire(request.labels)?);
            match parent {
                Some(parent) => snapshotter.rebase(&name, &key, &parent, labels).await?,
                None => snapshotter.commit(&name, &key, labels).await?,
            }
            Ok(Empty::new())
        })
        .await
    }

    async fn remove(
        &self,
        request: Request<RemoveSnapshotRequest>,
    ) -> Result<Response<Empty>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            snapshotter
                .remove(&known(&request.key, "snapshot")?)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let info = snapshotter.stat(&known(&request.key, "snapshot")?).await?;
            let info = MessageField::some(info.to_wire());
            Ok(StatSnapshotResponse {
                info,
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            let mut info = request.info.unwrap_or_default();
            // Clients leave out what cannot change.
            info.kind = Kind::ACTIVE.into();
            let info = SnapshotInfo::from_wire(info)?;
            let info = snapshotter
                .update(info, &mask(request.update_mask)?)
                .await?;
            let info = MessageField::some(info.to_wire());
            Ok(UpdateSnapshotResponse {
                info,
                ..Default::default()
            })
        })
        .await
    }

    type ListStream = ResponseStream<ListSnapshotsResponse>;

    async fn list(
        &self,
        request: Request<ListSnapshotsRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let all = self.0.clone();
        let list = serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            snapshotter.list(&filter(&request.filters)?).await
        })
        .await?;
        Ok(list.map(|list| {
            grpc::pages(list, |page| ListSnapshotsResponse {
                info: page.to_wire(),
                ..Default::default()
            })
        }))
    }

    async fn usage(
        &self,
        request: Request<UsageRequest>,
    ) -> Result<Response<UsageResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let snapshotter = all.pick(&tenant, &request.snapshotter)?;
            Ok(snapshotter
                .usage(&known(&request.key, "snapshot")?)
                .await?
                .to_wire())
        })
        .await
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<Empty>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            all.pick(&tenant, &request.snapshotter)?.cleanup().await?;
            Ok(Empty::new())
        })
        .await
    }
}
