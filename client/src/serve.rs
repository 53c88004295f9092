//! Our snapshotters for others: the service that containerd asks of a proxy plugin, over any of them.
//!
//! ```text
//! containerd's [proxy_plugins] ── socket ── serve ──> dyn Snapshotter
//! ```
//! Invariant: what a snapshotter answers goes out as it is; nothing is kept here. A program of its own
//! calls [`snapshotters()`]; the daemon has a service that knows namespaces.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use grpc::snapshots::{Snapshots as Service, SnapshotsServer};
use grpc::{ResponseStream, serve_unscoped};
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
use tokio::net::UnixListener;
use tonic::service::RoutesBuilder;
use tonic::{Request, Response, Status};
use types::{Error, Filter, Labels, Result, SnapshotInfo, SnapshotKey};

/// Serves snapshotters, by the names under which clients ask for them, until `stop` completes and the
/// last client has gone.
pub async fn snapshotters(
    listener: UnixListener,
    served: BTreeMap<String, Arc<dyn Snapshotter>>,
    stop: impl Future<Output = ()>,
) {
    let mut routes = RoutesBuilder::default();
    let service = Snapshots(Arc::new(served));
    routes.add_service(SnapshotsServer::new(service));
    let routes = grpc::fallback::routes(routes.routes());
    let incoming = futures::stream::unfold(listener, |listener| async {
        let accepted = listener.accept().await.map(|(stream, _)| stream);
        Some((accepted, listener))
    });
    grpc::connections::serve(routes, incoming, stop).await;
}

/// The service: callers' namespaces are part of their keys and nothing else here.
#[derive(Clone, Debug)]
struct Snapshots(Arc<BTreeMap<String, Arc<dyn Snapshotter>>>);

impl Snapshots {
    /// The snapshotter of that name.
    fn pick(&self, name: &str) -> Result<&dyn Snapshotter> {
        let found = self.0.get(name).map(AsRef::as_ref);
        found.ok_or_else(|| Error::invalid_argument(format_args!("snapshotter not loaded: {name}")))
    }
}

/// The parent that a request names; the empty text is none.
fn parent(name: &str) -> Result<Option<SnapshotKey>> {
    (!name.is_empty()).then(|| name.parse()).transpose()
}

#[async_trait]
impl Service for Snapshots {
    async fn prepare(
        &self,
        request: Request<PrepareSnapshotRequest>,
    ) -> Result<Response<PrepareSnapshotResponse>, Status> {
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let (key, parent) = (request.key.parse()?, parent(&request.parent)?);
            let labels = Labels::from_wire(request.labels)?;
            let snapshotter = all.pick(&request.snapshotter)?;
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
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let (key, parent) = (request.key.parse()?, parent(&request.parent)?);
            let labels = Labels::from_wire(request.labels)?;
            let snapshotter = all.pick(&request.snapshotter)?;
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
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            let mounts = snapshotter.mounts(&request.key.parse()?).await?;
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
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            let (name, key) = (request.name.parse()?, request.key.parse()?);
            let labels = Labels::from_wire(request.labels)?;
            match parent(&request.parent)? {
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
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            snapshotter.remove(&request.key.parse()?).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn stat(
        &self,
        request: Request<StatSnapshotRequest>,
    ) -> Result<Response<StatSnapshotResponse>, Status> {
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            let info = snapshotter.stat(&request.key.parse()?).await?;
            Ok(StatSnapshotResponse {
                info: MessageField::some(info.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateSnapshotRequest>,
    ) -> Result<Response<UpdateSnapshotResponse>, Status> {
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            let mut info = request.info.unwrap_or_default();
            // Clients leave out what cannot change.
            info.kind = Kind::ACTIVE.into();
            let fields = mask(request.update_mask)?;
            let info = SnapshotInfo::from_wire(info)?;
            let info = snapshotter.update(info, &fields).await?;
            Ok(UpdateSnapshotResponse {
                info: MessageField::some(info.to_wire()),
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
        let all = self.clone();
        let list = serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            snapshotter.list(&Filter::parse(&request.filters)?).await
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
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            let snapshotter = all.pick(&request.snapshotter)?;
            Ok(snapshotter.usage(&request.key.parse()?).await?.to_wire())
        })
        .await
    }

    async fn cleanup(&self, request: Request<CleanupRequest>) -> Result<Response<Empty>, Status> {
        let all = self.clone();
        serve_unscoped(request, |request| async move {
            all.pick(&request.snapshotter)?.cleanup().await?;
            Ok(Empty::new())
        })
        .await
    }
}

#[cfg(test)]
mod tests;
