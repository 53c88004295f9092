//! A snapshotter at the other end of a socket.

use async_trait::async_trait;
use grpc::snapshots::SnapshotsClient;
use protos::MessageField;
use protos::services::snapshots as wire;
use protos::wire::Wire as _;
use snapshotters::Snapshotter;
use types::{Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, Usage, label};

use crate::again::Again;
use crate::call::{Caller, done, present};

/// One snapshotter of a daemon, in one namespace.
#[derive(Clone, Debug)]
pub struct RemoteSnapshotter {
    caller: Caller,
    name: String,
    rebases: bool,
    settles: bool,
    /// Keys begin with the namespace that a call is for.
    is_backend: bool,
}

impl RemoteSnapshotter {
    /// The snapshotter `name` that `caller` reaches.
    #[must_use]
    pub fn new(caller: Caller, name: &str) -> Self {
        Self {
            caller,
            name: name.to_owned(),
            rebases: false,
            settles: false,
            is_backend: false,
        }
    }

    /// The same as the backend of a daemon: a call is made in the namespace that its key begins with,
    /// as Go's containerd makes it.
    #[must_use]
    pub fn as_backend(self) -> Self {
        Self {
            is_backend: true,
            ..self
        }
    }

    /// The same with what its daemon said about its capability `rebase`.
    #[must_use]
    pub fn with_rebase(self, rebases: bool) -> Self {
        Self { rebases, ..self }
    }

    /// The same, when it is known to settle what the unpacker that is used with it leaves.
    #[must_use]
    pub fn with_settling(self, settles: bool) -> Self {
        Self { settles, ..self }
    }

    /// Who calls for a snapshot.
    fn caller(&self, key: &SnapshotKey) -> Caller {
        let namespace = key.as_str().split('/').next().unwrap_or_default();
        match namespace.parse() {
            Ok(namespace) if self.is_backend => self.caller.in_namespace(namespace),
            _ => self.caller.clone(),
        }
    }

    fn stub(&self) -> SnapshotsClient<Again> {
        SnapshotsClient::new(self.caller.channel())
    }
}

fn text(key: Option<&SnapshotKey>) -> String {
    key.map(ToString::to_string).unwrap_or_default()
}

impl RemoteSnapshotter {
    async fn commit_onto(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<()> {
        let message = wire::CommitSnapshotRequest {
            snapshotter: self.name.clone(),
            name: name.to_string(),
            key: key.to_string(),
            labels: labels.to_wire(),
            parent: text(parent),
            ..Default::default()
        };
        // Flushing a large layer may take long.
        done(self.stub().commit(self.caller(key).endless(message)?).await)?;
        Ok(())
    }
}

#[async_trait]
impl Snapshotter for RemoteSnapshotter {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let message = wire::StatSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().stat(self.caller(key).quick(message)?).await)?;
        SnapshotInfo::from_wire(present(answer.info, "info")?)
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let caller = self.caller(&info.name);
        let message = wire::UpdateSnapshotRequest {
            snapshotter: self.name.clone(),
            info: MessageField::some(info.to_wire()),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().update(caller.quick(message)?).await)?;
        SnapshotInfo::from_wire(present(answer.info, "info")?)
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        let message = wire::UsageRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            ..Default::default()
        };
        Usage::from_wire(done(
            self.stub().usage(self.caller(key).request(message)?).await,
        )?)
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        let message = wire::MountsRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().mounts(self.caller(key).request(message)?).await)?;
        Vec::from_wire(answer.mounts)
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let message = wire::PrepareSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            parent: text(parent),
            labels: labels.to_wire(),
            ..Default::default()
        };
        // Until another client's unpacking of the same layer has come to its end.
        let waits = message.labels.contains_key(label::SNAPSHOT_REF);
        let request = self.caller(key).waiting(waits, message)?;
        let answer = done(self.stub().prepare(request).await)?;
        Vec::from_wire(answer.mounts)
    }

    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let message = wire::ViewSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            parent: text(parent),
            labels: labels.to_wire(),
            ..Default::default()
        };
        let answer = done(self.stub().view(self.caller(key).request(message)?).await)?;
        Vec::from_wire(answer.mounts)
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        self.commit_onto(name, key, None, labels).await
    }

    fn rebases(&self) -> bool {
        self.rebases
    }

    fn settles(&self) -> bool {
        self.rebases && self.settles
    }

    fn is_remote(&self) -> bool {
        true
    }

    async fn rebase(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: &SnapshotKey,
        labels: Labels,
    ) -> Result<()> {
        self.commit_onto(name, key, Some(parent), labels).await
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        let message = wire::RemoveSnapshotRequest {
            snapshotter: self.name.clone(),
            key: key.to_string(),
            ..Default::default()
        };
        done(self.stub().remove(self.caller(key).endless(message)?).await)?;
        Ok(())
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        let message = wire::ListSnapshotsRequest {
            snapshotter: self.name.clone(),
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let request = self.caller.endless(message)?;
        let mut stub = self.stub();
        let list = stub.list(request);
        self.caller
            .pages(list, |page| Vec::from_wire(page.info))
            .await
    }

    async fn cleanup(&self) -> Result<()> {
        let message = wire::CleanupRequest {
            snapshotter: self.name.clone(),
            ..Default::default()
        };
        done(self.stub().cleanup(self.caller.endless(message)?).await)?;
        Ok(())
    }
}
