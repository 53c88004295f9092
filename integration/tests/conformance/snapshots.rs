//! Snapshots.

mod change;
mod create;
mod list;

use std::path::PathBuf;

use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::snapshots::{
    CleanupRequest, CommitSnapshotRequest, Info, ListSnapshotsRequest, MountsRequest,
    PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, UpdateSnapshotRequest,
    UsageRequest, UsageResponse, ViewSnapshotRequest,
};
use protos::types::Mount;
use tonic::transport::Channel;
use tonic::{Request, Status};
use types::Scope;

use crate::peer::{NAMESPACE, Peer, all, labels, mask};
use crate::stock;

/// The default snapshotter.
pub(crate) const OVERLAY: &str = "overlayfs";

/// The value of an option in a mount.
pub(crate) fn option<'a>(mount: &'a Mount, name: &str) -> Option<&'a str> {
    let value = |option: &'a String| option.strip_prefix(name)?.strip_prefix('=');
    mount.options.iter().find_map(value)
}

/// The directory that takes what is written through these mounts of the overlay snapshotter.
pub(crate) fn upper(mounts: &[Mount]) -> PathBuf {
    let [mount] = mounts else {
        panic!("one mount, not {mounts:?}")
    };
    option(mount, "upperdir").unwrap_or(&mount.source).into()
}

/// The snapshots of a namespace in one snapshotter, maybe under a lease.
pub(crate) struct Snapshots {
    client: SnapshotsClient<Channel>,
    scope: Scope,
    snapshotter: String,
}

impl Snapshots {
    pub(crate) fn of(peer: &Peer) -> Self {
        Self::in_snapshotter(peer, OVERLAY)
    }

    pub(crate) fn in_snapshotter(peer: &Peer, snapshotter: &str) -> Self {
        Self {
            client: SnapshotsClient::new(peer.channel()),
            scope: Scope::new(NAMESPACE.parse().expect("a namespace")),
            snapshotter: snapshotter.to_owned(),
        }
    }

    pub(crate) fn within(peer: &Peer, namespace: &str) -> Self {
        let mut made = Self::of(peer);
        made.scope.namespace = namespace.parse().expect("a namespace");
        made
    }

    pub(crate) fn leased(peer: &Peer, lease: &str) -> Self {
        let mut made = Self::of(peer);
        made.scope.lease = Some(lease.parse().expect("a lease"));
        made
    }

    fn request<T>(&self, message: T) -> Request<T> {
        grpc::request(&self.scope, message).expect("a request")
    }

    /// Makes an active snapshot that no collection takes away; no parent is the empty text.
    pub(crate) async fn prepare(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, &[(stock::ROOT, "yes")])
            .await
    }

    pub(crate) async fn prepare_with(
        &mut self,
        key: &str,
        parent: &str,
        pairs: &[(&str, &str)],
    ) -> Result<Vec<Mount>, Status> {
        let request = self.request(PrepareSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            parent: parent.into(),
            labels: labels(pairs),
            ..PrepareSnapshotRequest::default()
        });
        Ok(self.client.prepare(request).await?.into_inner().mounts)
    }

    /// Makes a view that no collection takes away.
    pub(crate) async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(ViewSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            parent: parent.into(),
            labels: labels(&[(stock::ROOT, "yes")]),
            ..ViewSnapshotRequest::default()
        });
        Ok(self.client.view(request).await?.into_inner().mounts)
    }

    pub(crate) async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = self.request(MountsRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            ..MountsRequest::default()
        });
        Ok(self.client.mounts(request).await?.into_inner().mounts)
    }

    /// Commits what no collection takes away.
    pub(crate) async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, &[(stock::ROOT, "yes")]).await
    }

    pub(crate) async fn commit_with(
        &mut self,
        name: &str,
        key: &str,
        pairs: &[(&str, &str)],
    ) -> Result<(), Status> {
        let request = self.request(CommitSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            name: name.into(),
            key: key.into(),
            labels: labels(pairs),
            ..CommitSnapshotRequest::default()
        });
        self.client.commit(request).await.map(drop)
    }

    /// Makes a committed snapshot.
    pub(crate) async fn layer(&mut self, name: &str, parent: &str) {
        self.prepare("made", parent).await.expect("prepare");
        self.commit(name, "made").await.expect("commit");
    }

    pub(crate) async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = self.request(RemoveSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            ..RemoveSnapshotRequest::default()
        });
        self.client.remove(request).await.map(drop)
    }

    pub(crate) async fn stat(&mut self, key: &str) -> Result<Info, Status> {
        let request = self.request(StatSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            ..StatSnapshotRequest::default()
        });
        let answer = self.client.stat(request).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    pub(crate) async fn update(
        &mut self,
        key: &str,
        pairs: &[(&str, &str)],
        paths: Option<&[&str]>,
    ) -> Result<Info, Status> {
        let info = Info {
            name: key.into(),
            labels: labels(pairs),
            ..Info::default()
        };
        let request = self.request(UpdateSnapshotRequest {
            snapshotter: self.snapshotter.clone(),
            info: MessageField::some(info),
            update_mask: paths.map(mask).unwrap_or_default(),
            ..UpdateSnapshotRequest::default()
        });
        let answer = self.client.update(request).await?;
        Ok(answer.into_inner().info.unwrap_or_default())
    }

    /// The pages of a list.
    async fn pages(&mut self, filters: &[&str]) -> Result<Vec<Vec<Info>>, Status> {
        let request = self.request(ListSnapshotsRequest {
            snapshotter: self.snapshotter.clone(),
            filters: filters.iter().map(|filter| (*filter).to_owned()).collect(),
            ..ListSnapshotsRequest::default()
        });
        let pages = all(self.client.list(request).await).await?;
        Ok(pages.into_iter().map(|page| page.info).collect())
    }

    /// The names of a list, in order.
    pub(crate) async fn list(&mut self, filters: &[&str]) -> Vec<String> {
        let pages = self.pages(filters).await.expect("list");
        let infos = pages.into_iter().flatten();
        let mut names: Vec<_> = infos.map(|info| info.name).collect();
        names.sort();
        names
    }

    async fn usage(&mut self, key: &str) -> Result<UsageResponse, Status> {
        let request = self.request(UsageRequest {
            snapshotter: self.snapshotter.clone(),
            key: key.into(),
            ..UsageRequest::default()
        });
        Ok(self.client.usage(request).await?.into_inner())
    }

    async fn cleanup(&mut self) -> Result<(), Status> {
        let request = self.request(CleanupRequest {
            snapshotter: self.snapshotter.clone(),
            ..CleanupRequest::default()
        });
        self.client.cleanup(request).await.map(drop)
    }
}
