//! Making snapshots: prepare, view, and the adoption of remote ones.

use std::time::SystemTime;

use types::{
    Code, Context as _, Error, Event, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey,
    SnapshotKind, label,
};

use super::{Backend, Busy, ScopedSnapshotter, child_key, number_of, record_key};
use crate::db::WriteTx;
use crate::kv::Read as _;
use crate::rebuild::unasked;
use crate::record::SnapshotRecord;
use crate::{gc, leases};

/// How often the snapshotter is asked for a target that the collector takes each time.
const ADOPTIONS: u32 = 3;

/// What the look before the backend's work found.
enum Look {
    /// Go on, with this parent in the backend.
    Free(Option<SnapshotKey>),
    /// There already; the error to answer with once the lease has it.
    Taken(SnapshotKey, Error),
}

impl ScopedSnapshotter {
    /// Makes an active snapshot or a view.
    pub(super) async fn create(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
        writable: bool,
    ) -> Result<Vec<Mount>> {
        labels.validate().map_err(|e| e.ctx("info.Labels"))?;
        let labels = labels.without_empty();
        let target = labels
            .get(label::SNAPSHOT_REF)
            .map(|target| target.parse::<SnapshotKey>())
            .transpose()?;
        let backend = self.backend()?;
        let _naming = backend.naming.alone(&self.gate(key)).await;
        let parent_key = match self.look(key, parent, target.as_ref())? {
            Look::Free(parent_key) => parent_key,
            Look::Taken(taken, error) => {
                self.join_lease(&taken).await?;
                return Err(error);
            }
        };
        let mut tries = 1..ADOPTIONS;
        loop {
            // A new one for each try: that of the last one may be there still.
            let number = self.metadata.0.db.next().await?;
            let _busy = Busy::new(backend, number);
            let made: SnapshotKey =
                format!("{}/{number}/{key}", self.scope.namespace).try_into()?;
            let seen = labels.for_snapshotter();
            let parent_key = parent_key.as_ref();
            let asked = &backend.snapshotter;
            let (kind, mounts) = if writable {
                let made = asked.prepare(&made, parent_key, seen).await;
                (SnapshotKind::Active, made)
            } else {
                let made = asked.view(&made, parent_key, seen).await;
                (SnapshotKind::View, made)
            };
            match (mounts, &target) {
                (Ok(mounts), _) => {
                    let record = self.record(kind, parent, labels, &made);
                    let stored = self.store(key, record, writable).await;
                    if stored.is_err() {
                        self.undo(backend, &made).await;
                    }
                    return stored.map(|()| mounts);
                }
                (Err(error), Some(target)) if error.is_already_exists() => {
                    let adopting = self.adopt(backend, target, parent, parent_key, &labels);
                    let missed = adopting.await?;
                    if tries.next().is_none() {
                        return Err(missed);
                    }
                }
                // The key is new and unique: this is the backend's trouble, not the caller's.
                (Err(error), None) if error.is_already_exists() => {
                    return Err(Error::unknown(format_args!(
                        "unexpected error from snapshotter: {error}"
                    )));
                }
                (Err(error), _) => {
                    // A program that has not answered in time may have made it all the same.
                    if !is_refusal(error.code()) {
                        self.leave_to_collector(backend, &made).await;
                    }
                    return Err(error);
                }
            }
        }
    }

    fn look(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        target: Option<&SnapshotKey>,
    ) -> Result<Look> {
        let snapshot = self.metadata.0.db.kv.read()?;
        leases::check(&snapshot, &self.scope)?;
        if let Some(target) = target
            && self.find(&snapshot, target.as_str())?.is_some()
        {
            let error =
                Error::already_exists(format_args!("target snapshot {:?}", target.as_str()));
            return Ok(Look::Taken(target.clone(), error));
        }
        if self.find(&snapshot, key.as_str())?.is_some() {
            return Ok(Look::Taken(key.clone(), taken(key)));
        }
        let Some(parent) = parent else {
            return Ok(Look::Free(None));
        };
        let found = self
            .find(&snapshot, parent.as_str())?
            .ok_or_else(|| no_parent(parent))?;
        Ok(Look::Free(Some(found.backend.parse()?)))
    }

    /// A remote snapshotter says that it has `target`: its snapshot becomes the namespace's, and the
    /// caller learns by `AlreadyExists` that there is nothing to unpack. `Ok` when it is not there, as
    /// after the collector has taken it meanwhile: the snapshotter is to be asked again, and this is
    /// the error for one that is not.
    async fn adopt(
        &self,
        backend: &Backend,
        target: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        parent_key: Option<&SnapshotKey>,
        labels: &Labels,
    ) -> Result<Error> {
        let fits = |info: &SnapshotInfo| {
            info.kind == SnapshotKind::Committed
                && info.parent.as_ref() == parent_key
                && info
                    .labels
                    .get(label::SNAPSHOT_REF)
                    .is_some_and(|l| l == target.as_str())
        };
        let all = backend.snapshotter.list(&Filter::default()).await?;
        let missing = || {
            let target = target.as_str();
            Error::not_found(format_args!("target snapshot {target:?} in backend"))
        };
        let Some(found) = all.into_iter().find(fits) else {
            return Ok(missing());
        };
        let _held = backend.adopting.together(found.name.as_str()).await;
        let there = backend.snapshotter.stat(&found.name).await;
        if there.absent_ok()?.is_none() {
            return Ok(missing());
        }
        let mut labels = labels.clone();
        for (key, value) in found.labels {
            labels.entry(key).or_insert(value);
        }
        let mut record = self.record(found.kind, parent, labels, &found.name);
        record.created_at = found.created_at;
        record.updated_at = found.updated_at;
        self.store(target, record, false).await?;
        backend.note_adopted(&found.name);
        Err(Error::already_exists(format_args!(
            "target snapshot {:?} from snapshotter",
            target.as_str()
        )))
    }

    fn record(
        &self,
        kind: SnapshotKind,
        parent: Option<&SnapshotKey>,
        labels: Labels,
        made: &SnapshotKey,
    ) -> SnapshotRecord {
        let now = SystemTime::now();
        SnapshotRecord {
            backend: made.to_string(),
            parent: parent.map(ToString::to_string),
            labels,
            created_at: now,
            updated_at: now,
            kind: Some(kind),
        }
    }

    /// Writes the record of a new snapshot and puts it into the lease.
    async fn store(&self, key: &SnapshotKey, record: SnapshotRecord, event: bool) -> Result<()> {
        let this = self.clone();
        let name = key.clone();
        let key = key.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let namespace = &this.scope.namespace;
            tx.touch(namespace)?;
            leases::add_resource(tx, &this.scope, &this.resource(&key))?;
            if tx.has(&this.at(key.as_str()))? {
                // The lease has what is there, and the caller learns that it is.
                return Ok(false);
            }
            if let Some(parent) = &record.parent {
                if !tx.has(&record_key(namespace, &this.name, parent))? {
                    return Err(no_parent(&parent.parse()?));
                }
                tx.put(
                    child_key(namespace, &this.name, parent, key.as_str()),
                    Vec::new(),
                );
            }
            if number_of(&record.backend).is_none() {
                unasked::note_adopted(tx, &this.name, &record.backend)?;
            }
            tx.expires(gc::condition_due(&record.labels));
            tx.put(this.at(key.as_str()), record.encode());
            if event {
                tx.event(
                    namespace,
                    Event::SnapshotPrepare {
                        key: key.to_string(),
                        parent: record.parent.unwrap_or_default(),
                        snapshotter: this.name.clone(),
                    },
                );
            }
            Ok(true)
        };
        if self.metadata.0.db.write(change).await? {
            Ok(())
        } else {
            Err(taken(&name))
        }
    }

    pub(super) async fn join_lease(&self, key: &SnapshotKey) -> Result<()> {
        if self.scope.lease.is_none() {
            return Ok(());
        }
        let scope = self.scope.clone();
        let resource = self.resource(key);
        let change = move |tx: &mut WriteTx<'_, '_>| leases::add_resource(tx, &scope, &resource);
        self.metadata.0.db.write(change).await.map(drop)
    }

    /// Removes what has no record; where that fails the collector tries again.
    async fn undo(&self, backend: &Backend, made: &SnapshotKey) {
        if let Err(error) = backend.snapshotter.remove(made).await {
            tracing::warn!(key = %made, %error, "snapshot without record stays until collection");
            self.leave_to_collector(backend, made).await;
        }
    }

    /// The backend may hold something without a record. Where nothing is collected before it was asked, it
    /// must not be taken then for what has lost its record.
    pub(super) async fn leave_to_collector(&self, backend: &Backend, made: &SnapshotKey) {
        if backend.is_unasked() {
            let (snapshotter, made) = (self.name.clone(), made.to_string());
            let note =
                move |tx: &mut WriteTx<'_, '_>| unasked::note_removed(tx, &snapshotter, &made);
            if let Err(error) = self.metadata.0.db.write(note).await {
                tracing::warn!(%error, "a snapshot without record may have one after the next start");
            }
        }
        self.mark_backend();
    }

    /// The collector looks at the backend.
    pub(super) fn mark_backend(&self) {
        self.metadata.0.db.outlet.add(crate::db::Marks {
            deletions: 1,
            snapshotters: [self.name.clone()].into(),
            ..Default::default()
        });
    }

    /// Name of a key's gate.
    pub(super) fn gate(&self, key: &SnapshotKey) -> String {
        format!("{}/{key}", self.scope.namespace)
    }
}

/// True when an error says that nothing was done.
fn is_refusal(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::NotFound
            | Code::FailedPrecondition
            | Code::NotImplemented
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}

pub(super) fn taken(key: &SnapshotKey) -> Error {
    Error::already_exists(format_args!("snapshot {:?}", key.as_str()))
}

pub(super) fn no_parent(parent: &SnapshotKey) -> Error {
    Error::not_found(format_args!("parent snapshot {parent} does not exist"))
}
