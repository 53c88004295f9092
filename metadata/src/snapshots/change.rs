//! Changing snapshots: commit, remove, labels.

use std::time::SystemTime;

use ::snapshotters::Redo;
use types::{Error, Event, Fields, Labels, Result, SnapshotKey, SnapshotKind};

use super::create::{no_parent, taken};
use super::{ScopedSnapshotter, child_key, forget, noted, number_of};
use crate::db::WriteTx;
use crate::key::{Bucket, below};
use crate::kv::Read as _;
use crate::rebuild::unasked;
use crate::record::SnapshotRecord;
use crate::{gc, leases, mask};

impl ScopedSnapshotter {
    /// Commits `key` as `name`; with `parent` onto that, which it was not made on.
    pub(super) async fn commit_as(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<()> {
        let done = self.committed_as(name, key, parent, labels).await;
        if done.is_ok() {
            self.metadata.0.flights.end(&self.flight(key.as_str()));
        }
        done
    }

    async fn committed_as(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<()> {
        labels.validate().map_err(|e| e.ctx("info.Labels"))?;
        let labels = labels.without_empty();
        let backend = self.backend()?;
        let _naming = backend.naming.alone(&self.gate(name)).await;
        let rebases = backend.snapshotter.rebases();
        let Some((active, onto)) = self.to_commit((name, key), parent, rebases)? else {
            self.join_lease(name).await?;
            return Err(taken(name));
        };
        let from: SnapshotKey = active.backend.parse()?;
        let to = match number_of(&active.backend) {
            Some(number) => format!("{}/{number}/{name}", self.scope.namespace),
            None => format!(
                "{}/{}/{name}",
                self.scope.namespace,
                self.metadata.0.db.next().await?
            ),
        };
        let to: SnapshotKey = to.try_into()?;
        let seen = labels.for_snapshotter();
        let at_backend = &backend.snapshotter;
        let committed = at_backend.commit_noted(&to, &from, onto.as_ref(), seen);
        let redo = match committed.await {
            Ok(redo) => redo,
            // A crash between backend and record: the backend is a step ahead, go on from there.
            Err(error) if error.is_not_found() || error.is_already_exists() => {
                let there = backend.snapshotter.stat(&to).await;
                if !there.is_ok_and(|info| info.kind == SnapshotKind::Committed) {
                    return Err(error);
                }
                // What it had to note is not known any more.
                at_backend.flush().await?;
                None
            }
            Err(error) => return Err(error),
        };
        let stored = self.store_commit((name, key), parent, (&to, redo), labels);
        let stored = stored.await;
        if let Err(error) = &stored {
            // The key may have been removed meanwhile: then nobody names what was committed. Else the commit
            // may go on from there.
            match error.is_not_found() {
                true => self.leave_to_collector(backend, &to).await,
                false => self.mark_backend(),
            }
        }
        stored
    }

    /// The record of `key`, and the backend's name for another parent that it gets; none when `name` is
    /// there.
    fn to_commit(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        parent: Option<&SnapshotKey>,
        rebases: bool,
    ) -> Result<Option<(SnapshotRecord, Option<SnapshotKey>)>> {
        let snapshot = self.metadata.0.db.kv.read()?;
        leases::check(&snapshot, &self.scope)?;
        if self.find(&snapshot, name.as_str())?.is_some() {
            return Ok(None);
        }
        let active = self.find(&snapshot, key.as_str())?;
        let current = active.as_ref().and_then(|active| active.parent.as_deref());
        // A client may say what is so.
        let onto = match parent.filter(|parent| current != Some(parent.as_str())) {
            None => None,
            Some(_) if !rebases => {
                return Err(Error::not_implemented("commit onto another parent"));
            }
            Some(parent) => {
                let found = self.find(&snapshot, parent.as_str())?;
                let found = found.ok_or_else(|| no_parent(parent))?;
                Some(found.backend.parse()?)
            }
        };
        match active {
            Some(active) => Ok(Some((active, onto))),
            None => self
                .require(&snapshot, key.as_str())
                .map(|active| Some((active, onto))),
        }
    }

    async fn store_commit(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        (to, redo): (&SnapshotKey, Option<Redo>),
        labels: Labels,
    ) -> Result<()> {
        let this = self.clone();
        let (name, key, to) = (name.clone(), key.clone(), to.to_string());
        let onto = onto.cloned();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let namespace = &this.scope.namespace;
            let active = this.require(&**tx, key.as_str())?;
            let parent = match &onto {
                // The backend has taken it; here it may have been removed meanwhile.
                Some(onto) if !tx.has(&this.at(onto.as_str()))? => return Err(no_parent(onto)),
                Some(onto) => Some(onto.to_string()),
                None => active.parent.clone(),
            };
            leases::add_resource(tx, &this.scope, &this.resource(&name))?;
            leases::drop_resource(tx, &this.scope, &this.resource(&key));
            if let Some(parent) = &active.parent {
                tx.remove(child_key(namespace, &this.name, parent, key.as_str()));
            }
            if let Some(parent) = &parent {
                tx.put(
                    child_key(namespace, &this.name, parent, name.as_str()),
                    Vec::new(),
                );
            }
            // An earlier try may have failed behind the backend's commit.
            unasked::note_adopted(tx, &this.name, &to)?;
            if let Some(redo) = &redo {
                noted::note(tx, (&this.name, &to), redo);
            }
            let now = SystemTime::now();
            let record = SnapshotRecord {
                backend: to,
                parent,
                labels,
                created_at: now,
                updated_at: now,
                kind: Some(SnapshotKind::Committed),
            };
            tx.expires(gc::condition_due(&record.labels));
            tx.remove(this.at(key.as_str()));
            tx.put(this.at(name.as_str()), record.encode());
            tx.event(
                namespace,
                Event::SnapshotCommit {
                    key: key.to_string(),
                    name: name.to_string(),
                    snapshotter: this.name.clone(),
                },
            );
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }

    /// Removes the record; the collector removes the files.
    pub(super) async fn remove_record(&self, key: &SnapshotKey) -> Result<()> {
        let this = self.clone();
        let flight = self.flight(key.as_str());
        let key = key.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let namespace = &this.scope.namespace;
            let record = this.require(&**tx, key.as_str())?;
            let children = below(
                Bucket::Child,
                &[namespace.as_str(), &this.name, key.as_str()],
            );
            if tx.any(&children)? {
                return Err(Error::failed_precondition(
                    "cannot remove snapshot with child",
                ));
            }
            if let Some(parent) = &record.parent {
                tx.remove(child_key(namespace, &this.name, parent, key.as_str()));
            }
            tx.remove(this.at(key.as_str()));
            forget(tx, (&this.name, &record.backend))?;
            leases::drop_resource(tx, &this.scope, &this.resource(&key));
            tx.mark_snapshotter(&this.name);
            tx.event(
                namespace,
                Event::SnapshotRemove {
                    key: key.to_string(),
                    snapshotter: this.name.clone(),
                },
            );
            Ok(())
        };
        let done = self.metadata.0.db.write(change).await;
        let flights = &self.metadata.0.flights;
        match &done {
            Err(error) if !error.is_not_found() => flights.attend(&flight, false),
            // Also when the collector was faster.
            _ => flights.end(&flight),
        }
        done
    }

    pub(super) async fn store_labels(
        &self,
        key: &SnapshotKey,
        labels: Labels,
        fields: &Fields,
    ) -> Result<SnapshotRecord> {
        let this = self.clone();
        let (key, fields) = (key.clone(), fields.clone());
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let mut record = this.require(&**tx, key.as_str())?;
            let before = record.labels.clone();
            record.labels = mask::labels(record.labels, &labels, &fields, "snapshot")?;
            record.updated_at = SystemTime::now();
            if before
                .keys()
                .any(|key| record.labels.get(key) != before.get(key))
            {
                tx.mark();
            }
            tx.expires(gc::condition_due(&record.labels));
            tx.put(this.at(key.as_str()), record.encode());
            Ok(record)
        };
        self.metadata.0.db.write(change).await
    }
}
