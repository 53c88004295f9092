//! Snapshots as one namespace sees them.
//!
//! Invariant: a backend key is `<namespace>/<number>/<name>` and its number is never used again, so a
//! leftover in the backend can neither collide with a new snapshot nor be taken for one. A commit
//! keeps the number: whichever step a crash hits, record and backend find each other again.
//!
//! ```text
//! prepare: look - number (held as busy) - backend prepare - record, lease, event - number let go
//! commit:  name's gate - look - backend commit - record of name for that of key, note - gate open
//! ```

mod change;
mod create;
mod noted;
mod redo;

pub(crate) use self::noted::{flush, forget, numbers as noted_numbers, redo as redo_noted};
pub(crate) use self::redo::redo;

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ::snapshotters::Snapshotter;
use async_trait::async_trait;
use types::{
    Context as _, Error, Fields, Filter, Labels, Mount, Namespace, Resource, Result, Scope,
    SnapshotInfo, SnapshotKey, Usage, label,
};

use crate::detach::detached;
use crate::flight::{self, Boarding};
use crate::gate::Gate;
use crate::key::{Bucket, below, key, names};
use crate::kv::{Flow, Read};
use crate::record::SnapshotRecord;
use crate::{Metadata, mask};

/// A snapshotter and who is at work in it.
pub(crate) struct Backend {
    pub(crate) snapshotter: Arc<dyn Snapshotter>,
    /// Numbers of backend keys that have no record yet.
    busy: Mutex<HashSet<u64>>,
    /// One at a time makes or commits a name of a namespace.
    pub(crate) naming: Gate,
    /// Held while a snapshot of the backend's is adopted, by its name there; taken while the collector
    /// removes it: only adopted names could come back to life.
    pub(crate) adopting: Gate,
    /// What was adopted during a collection; `None` while there is none.
    adopted: Mutex<Option<HashSet<String>>>,
    /// Held by who collects here.
    pub(crate) collecting: tokio::sync::Mutex<()>,
    /// Not all noted commits could be made again: what they need may look like garbage.
    is_unsettled: AtomicBool,
    /// What of it has no record and may be no garbage all the same.
    unnamed: Unnamed,
}

/// What lost records may have named in a snapshotter: that looks like garbage.
#[derive(Debug)]
pub(crate) enum Unnamed {
    /// It could not be asked at the start.
    All,
    /// It has told, and there was no room for their records.
    These(HashSet<String>),
}

impl Backend {
    pub(crate) fn new(
        snapshotter: Arc<dyn Snapshotter>,
        is_unsettled: bool,
        unnamed: Unnamed,
    ) -> Self {
        Self {
            snapshotter,
            busy: Mutex::default(),
            naming: Gate::default(),
            adopting: Gate::default(),
            adopted: Mutex::default(),
            collecting: tokio::sync::Mutex::default(),
            is_unsettled: is_unsettled.into(),
            unnamed,
        }
    }

    /// True when nothing of it is collected before it was asked.
    pub(crate) fn is_unasked(&self) -> bool {
        matches!(self.unnamed, Unnamed::All)
    }

    /// True when what the backend calls so is kept though it has no record.
    pub(crate) fn keeps(&self, backend_key: &str) -> bool {
        match &self.unnamed {
            Unnamed::All => true,
            Unnamed::These(names) => names.contains(backend_key),
        }
    }

    fn is_unsettled(&self) -> bool {
        self.is_unsettled.load(Ordering::Acquire)
    }

    fn settle(&self) {
        self.is_unsettled.store(false, Ordering::Release);
    }

    fn busy(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn adopted(&self) -> std::sync::MutexGuard<'_, Option<HashSet<String>>> {
        self.adopted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to note what is adopted. There is one collection at a time.
    pub(crate) fn adoptions(&self) -> Adoptions<'_> {
        *self.adopted() = Some(HashSet::new());
        Adoptions(self)
    }

    /// A snapshot of the backend has a record now; its gate is held still.
    fn note_adopted(&self, backend_key: &SnapshotKey) {
        if let Some(adopted) = &mut *self.adopted() {
            adopted.insert(backend_key.to_string());
        }
    }

    /// The numbers at work now.
    pub(crate) fn at_work(&self) -> HashSet<u64> {
        self.busy().clone()
    }
}

/// What was adopted since a collection began; it ends with its value.
pub(crate) struct Adoptions<'a>(&'a Backend);

impl Adoptions<'_> {
    /// True when a record names this key of the backend since then.
    pub(crate) fn has(&self, backend_key: &str) -> bool {
        let adopted = self.0.adopted();
        adopted
            .as_ref()
            .is_some_and(|all| all.contains(backend_key))
    }
}

impl Drop for Adoptions<'_> {
    fn drop(&mut self) {
        *self.0.adopted() = None;
    }
}

/// Keeps the collector away from a number until its record is there.
struct Busy<'a> {
    backend: &'a Backend,
    number: u64,
}

impl<'a> Busy<'a> {
    fn new(backend: &'a Backend, number: u64) -> Self {
        backend.busy().insert(number);
        Self { backend, number }
    }
}

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.backend.busy().remove(&self.number);
    }
}

/// The number in a backend key of ours; none in a name that the backend made up.
pub(crate) fn number_of(backend_key: &str) -> Option<u64> {
    backend_key.split('/').nth(1)?.parse().ok()
}

/// The snapshots of one namespace in one snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct ScopedSnapshotter {
    metadata: Metadata,
    scope: Scope,
    name: String,
}

impl ScopedSnapshotter {
    pub(crate) fn new(metadata: Metadata, scope: Scope, name: &str) -> Self {
        Self {
            metadata,
            scope,
            name: name.to_owned(),
        }
    }

    fn backend(&self) -> Result<&Backend> {
        self.metadata.0.snapshotters.get(&self.name).ok_or_else(|| {
            Error::invalid_argument(format_args!("snapshotter not loaded: {}", self.name))
        })
    }

    fn at(&self, key: &str) -> Vec<u8> {
        record_key(&self.scope.namespace, &self.name, key)
    }

    fn find(&self, tx: &dyn Read, key: &str) -> Result<Option<SnapshotRecord>> {
        let record = tx.get(&self.at(key))?;
        record.as_deref().map(SnapshotRecord::decode).transpose()
    }

    fn require(&self, tx: &dyn Read, key: &str) -> Result<SnapshotRecord> {
        self.find(tx, key)?
            .ok_or_else(|| Error::not_found(format_args!("snapshot {key} does not exist")))
    }

    /// The backend's key for `key`.
    fn resolve(&self, key: &SnapshotKey) -> Result<SnapshotKey> {
        let snapshot = self.metadata.0.db.kv.read()?;
        self.require(&snapshot, key.as_str())?.backend.parse()
    }

    /// Waits until nobody else unpacks the layer that `key` is for.
    async fn board(&self, key: &SnapshotKey, labels: &Labels) -> Option<Boarding<'_>> {
        let target = labels.get(label::SNAPSHOT_REF)?;
        if !flight::is_extraction(key.as_str()) {
            return None;
        }
        let of = |name: &str| self.flight(name);
        let flights = &self.metadata.0.flights;
        Some(flights.board(&of(target), &of(key.as_str())).await)
    }

    /// What the flights call a name.
    fn flight(&self, name: &str) -> String {
        format!("{}/{}/{name}", self.scope.namespace, self.name)
    }

    fn resource(&self, key: &SnapshotKey) -> Resource {
        Resource::Snapshot {
            snapshotter: self.name.clone(),
            key: key.clone(),
        }
    }
}

/// The key of a snapshot's record.
pub(crate) fn record_key(namespace: &Namespace, snapshotter: &str, name: &str) -> Vec<u8> {
    key(Bucket::Snapshot, &[namespace.as_str(), snapshotter, name])
}

/// The key that notes `child` under `parent`.
pub(crate) fn child_key(ns: &Namespace, snapshotter: &str, parent: &str, child: &str) -> Vec<u8> {
    key(Bucket::Child, &[ns.as_str(), snapshotter, parent, child])
}

/// What the namespace says about a snapshot, over what the backend says.
fn merge(key: SnapshotKey, record: SnapshotRecord, backend: SnapshotInfo) -> Result<SnapshotInfo> {
    let mut labels = backend.labels;
    labels.extend(record.labels);
    Ok(SnapshotInfo {
        kind: backend.kind,
        name: key,
        parent: record.parent.map(SnapshotKey::try_from).transpose()?,
        labels,
        created_at: record.created_at,
        updated_at: record.updated_at,
    })
}

#[async_trait]
impl Snapshotter for ScopedSnapshotter {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let record = self.require(&self.metadata.0.db.kv.read()?, key.as_str())?;
        let backend = record.backend.parse()?;
        let backend = self.backend()?.snapshotter.stat(&backend).await?;
        merge(key.clone(), record, backend)
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let (this, fields) = (self.clone(), fields.clone());
        detached(async move { this.update_labels(info, &fields).await }).await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        self.backend()?.snapshotter.usage(&self.resolve(key)?).await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        self.backend()?
            .snapshotter
            .mounts(&self.resolve(key)?)
            .await
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let boarding = self.board(key, &labels).await;
        let (this, owned, parent) = (self.clone(), key.clone(), parent.cloned());
        let made = detached(async move {
            let parent = parent.as_ref();
            this.create(&owned, parent, labels, true).await
        })
        .await;
        if let (Some(boarding), Ok(mounts)) = (boarding, &made) {
            boarding.made(mounts);
        }
        made
    }

    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let (this, key, parent) = (self.clone(), key.clone(), parent.cloned());
        detached(async move { this.create(&key, parent.as_ref(), labels, false).await }).await
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        let (this, name, key) = (self.clone(), name.clone(), key.clone());
        detached(async move { this.commit_as(&name, &key, None, labels).await }).await
    }

    fn flushed(&self, key: &SnapshotKey) {
        if let (Ok(backend), Ok(key)) = (self.backend(), self.resolve(key)) {
            backend.snapshotter.flushed(&key);
        }
    }

    fn attended(&self, key: &SnapshotKey) {
        let flight = self.flight(key.as_str());
        self.metadata.0.flights.attend(&flight, true);
    }

    fn rebases(&self) -> bool {
        self.backend()
            .is_ok_and(|backend| backend.snapshotter.rebases())
    }

    fn settles(&self) -> bool {
        self.backend()
            .is_ok_and(|backend| backend.snapshotter.settles())
    }

    async fn rebase(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: &SnapshotKey,
        labels: Labels,
    ) -> Result<()> {
        let (this, name, key) = (self.clone(), name.clone(), key.clone());
        let parent = parent.clone();
        detached(async move { this.commit_as(&name, &key, Some(&parent), labels).await }).await
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        self.remove_record(key).await
    }

    fn renews(&self) -> bool {
        self.backend()
            .is_ok_and(|backend| backend.snapshotter.renews())
    }

    async fn renew(&self, name: &SnapshotKey, key: &SnapshotKey) -> Result<()> {
        let (this, name, key) = (self.clone(), name.clone(), key.clone());
        detached(async move {
            let (to, from) = (this.resolve(&name)?, this.resolve(&key)?);
            this.backend()?.snapshotter.renew(&to, &from).await?;
            this.remove_record(&key).await
        })
        .await
    }

    /// One walk over the backend, not one call for each snapshot; what it lost is left out.
    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        let mut records = Vec::new();
        let prefix = below(
            Bucket::Snapshot,
            &[self.scope.namespace.as_str(), &self.name],
        );
        self.metadata
            .0
            .db
            .kv
            .read()?
            .scan(&prefix, &mut |rest, record| {
                let [key] = names(rest)?;
                records.push((
                    SnapshotKey::try_from(key.to_owned())?,
                    SnapshotRecord::decode(record)?,
                ));
                Ok(Flow::Continue(()))
            })?;
        if records.is_empty() {
            return Ok(Vec::new());
        }
        let all = self.backend()?.snapshotter.list(&Filter::default()).await?;
        let mut known: BTreeMap<String, SnapshotInfo> = all
            .into_iter()
            .map(|info| (info.name.to_string(), info))
            .collect();
        let mut found = Vec::new();
        for (key, record) in records {
            if let Some(backend) = known.remove(&record.backend) {
                let info = merge(key, record, backend)?;
                if filter.matches(&info) {
                    found.push(info);
                }
            }
        }
        Ok(found)
    }

    async fn cleanup(&self) -> Result<()> {
        let backend = self.backend()?;
        flush(&self.metadata, &self.name, backend).await?;
        backend.snapshotter.cleanup().await
    }
}

impl ScopedSnapshotter {
    /// Labels here, and those that the snapshotter may see there. The backend first: when it refuses,
    /// nothing has changed. One at a time for a name: what two have made of the same labels does not add up.
    async fn update_labels(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let key = info.name;
        let what = format!("snapshot {:?}", key.as_str());
        let _naming = self.backend()?.naming.alone(&self.gate(&key)).await;
        let record = self.require(&self.metadata.0.db.kv.read()?, key.as_str())?;
        let labels = mask::labels(record.labels, &info.labels, fields, &what)
            .map_err(|e| e.ctx("info.Labels"))?;
        let backend = &self.backend()?.snapshotter;
        let name: SnapshotKey = record.backend.parse()?;
        let known = backend.stat(&name).await?;
        let seen = labels.for_snapshotter();
        let known = if fields.is_all() || seen != known.labels.for_snapshotter() {
            let change = SnapshotInfo {
                labels: seen,
                ..known
            };
            backend.update(change, &Fields::default()).await?
        } else {
            known
        };
        let record = self.store_labels(&key, info.labels, fields).await?;
        merge(key, record, known).ctx("update snapshot")
    }
}

#[cfg(test)]
mod tests;
