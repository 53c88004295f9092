//! Snapshots of one snapshotter.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::SystemTime;

use ::snapshotters::Broken;
use types::{
    Code, Digest, Event, Fault, Filter, Namespace, Repair, Result, SnapshotInfo, SnapshotKey,
    SnapshotKind,
};

use super::{Check, Orphan, listed, told};
use crate::Metadata;
use crate::db::WriteTx;
use crate::key::{Bucket, all, below, key, names};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::rebuild::unasked;
use crate::record::{SnapshotRecord, get_container_refs};
use crate::snapshots::{self, child_key, noted_numbers, number_of, record_key};

/// One record.
#[derive(Clone, Debug)]
struct Known {
    namespace: Namespace,
    name: String,
    /// Its key in the backend.
    backend: String,
    parent: Option<String>,
}

impl Known {
    fn object(&self, snapshotter: &str) -> String {
        format!("snapshot {}/{snapshotter}/{}", self.namespace, self.name)
    }
}

/// True for the name of a chain of layers.
fn is_layer(name: &str) -> bool {
    name.parse::<Digest>().is_ok()
}

impl Metadata {
    /// The layers in a snapshotter that were made after `since` and are not what they were.
    ///
    /// # Errors
    /// Those of the snapshotter and of the records.
    pub async fn damaged_layers(
        &self,
        snapshotter: &str,
        since: Option<SystemTime>,
    ) -> Result<Vec<(Namespace, SnapshotKey)>> {
        let Some(backend) = self.0.snapshotters.get(snapshotter) else {
            return Ok(Vec::new());
        };
        let broken = match backend.snapshotter.verify(since).await {
            Err(error) if error.is(Code::NotImplemented) => return Ok(Vec::new()),
            broken => broken?,
        };
        let mut records = known(&self.0.db.kv.read()?, snapshotter)?;
        let mut layers = Vec::new();
        for Broken { key, .. } in broken {
            if let Some(record) = records.remove(key.as_str())
                && is_layer(&record.name)
            {
                layers.push((record.namespace, record.name.try_into()?));
            }
        }
        Ok(layers)
    }
}

impl Check<'_> {
    pub(super) async fn snapshots(&mut self, snapshotter: &str) -> Result<()> {
        let Some(backend) = self.metadata.0.snapshotters.get(snapshotter) else {
            return Ok(());
        };
        let strangers = told(backend.snapshotter.strangers().await)?;
        let there = backend.snapshotter.list(&Filter::default()).await?;
        // After the list and before the records: who is not busy any more has a record by then.
        let busy = backend.at_work();
        let mut records = known(&self.metadata.0.db.kv.read()?, snapshotter)?;
        self.report.snapshots += there.len() as u64;
        let mut removed = unasked::removed(&self.metadata.0.db.kv.read()?)?;
        let removed = removed.remove(snapshotter).unwrap_or_default();
        let mut found = BTreeMap::new();
        let mut ahead = cut_off(&there, &records);
        ahead.extend(busy);
        // What the next start makes again.
        ahead.extend(noted_numbers(&self.metadata.0.db.kv.read()?, snapshotter)?);
        let is_ahead = |key: &str| number_of(key).is_some_and(|number| ahead.contains(&number));
        for info in &there {
            match records.remove(info.name.as_str()) {
                Some(record) => drop(found.insert(info.name.to_string(), record)),
                None if is_ahead(info.name.as_str()) => {}
                // It has not lost its record, and is collected later.
                None if backend.keeps(info.name.as_str())
                    && removed.contains(info.name.as_str()) => {}
                None if backend.keeps(info.name.as_str()) => self.unasked(snapshotter, info),
                None => {
                    let orphan = Orphan::Snapshot(snapshotter.to_owned(), info.name.to_string());
                    self.orphan(orphan);
                }
            }
        }
        for (name, record) in records {
            if is_ahead(&name) {
                continue;
            }
            if self.is_gone(snapshotter, &name).await? {
                let text = "the snapshotter does not know it";
                self.broken(snapshotter, Fault::Missing, &record, text)
                    .await?;
            }
        }
        let broken = match backend.snapshotter.verify(self.opts.since).await {
            Err(error) if error.is(Code::NotImplemented) => Vec::new(),
            broken => broken?,
        };
        for broken in broken {
            let Some(record) = found.get(broken.key.as_str()) else {
                continue;
            };
            // What is no layer of an image nobody could make again.
            if broken.is_gone || is_layer(&record.name) {
                self.broken(snapshotter, Fault::Damaged, record, &broken.why)
                    .await?;
            } else {
                let object = record.object(snapshotter);
                let text = format!("{}; look at it, and delete it if it is no use", broken.why);
                self.report
                    .note(Fault::Damaged, object, text, Repair::Impossible);
            }
        }
        let now = told(backend.snapshotter.strangers().await)?;
        if self.strangers(&strangers, now) {
            self.orphans.snapshotters.insert(snapshotter.to_owned());
        }
        Ok(())
    }

    /// A snapshot that may have lost its record: nothing is known yet, and nothing done.
    fn unasked(&mut self, snapshotter: &str, info: &SnapshotInfo) {
        let object = format!("snapshot {snapshotter}/{}", info.name);
        let text = "changes of the records may be lost, its own among them; it is kept, and the next start at \
                    which its snapshotter answers and the disk has room looks again";
        self.report
            .note(Fault::Orphan, object, text, Repair::Impossible);
    }

    /// A snapshot without its files. It can go unless something stands on it.
    async fn broken(
        &mut self,
        snapshotter: &str,
        fault: Fault,
        known: &Known,
        why: &str,
    ) -> Result<()> {
        let object = known.object(snapshotter);
        let users = users(&self.metadata.0.db.kv.read()?, snapshotter, known)?;
        if !users.is_empty() {
            let text = format!("{why}; delete {} first, then repair again", listed(&users));
            self.report.note(fault, object, text, Repair::Impossible);
            return Ok(());
        }
        let mut repair = Repair::Possible;
        if self.opts.repair {
            let (known, on) = (known.clone(), snapshotter.to_owned());
            let change = move |tx: &mut WriteTx<'_, '_>| forget(tx, &on, known);
            repair = match self.metadata.0.db.write(change).await? {
                true => Repair::Done,
                // Somebody has built on it since, or made it anew.
                false => Repair::Impossible,
            };
            // What is left of it in the backend has no record now.
            self.orphans.snapshotters.insert(snapshotter.to_owned());
        }
        let text = format!("{why}; unpack its image again");
        self.report.note(fault, object, text, repair);
        Ok(())
    }

    /// True when the backend knows nothing of a snapshot's number, under whatever name: a commit
    /// renames in the backend first.
    async fn is_gone(&self, snapshotter: &str, backend_key: &str) -> Result<bool> {
        let Some(backend) = self.metadata.0.snapshotters.get(snapshotter) else {
            return Ok(false);
        };
        let there = backend.snapshotter.list(&Filter::default()).await?;
        let number = number_of(backend_key);
        Ok(!there.iter().any(|info| {
            let name = info.name.as_str();
            name == backend_key || (number.is_some() && number_of(name) == number)
        }))
    }
}

/// Removes the record that was looked at, unless it is another one by now or something stands on it.
fn forget(tx: &mut WriteTx<'_, '_>, snapshotter: &str, known: Known) -> Result<bool> {
    let at = record_key(&known.namespace, snapshotter, &known.name);
    let record = tx.get(&at)?;
    let record = record.as_deref().map(SnapshotRecord::decode).transpose()?;
    let is_same = record.is_some_and(|record| record.backend == known.backend);
    if !is_same || !users(&**tx, snapshotter, &known)?.is_empty() {
        return Ok(false);
    }
    let Known {
        namespace,
        name,
        backend,
        parent,
    } = known;
    tx.remove(at);
    snapshots::forget(tx, (snapshotter, &backend))?;
    if let Some(parent) = parent {
        tx.remove(child_key(&namespace, snapshotter, &parent, &name));
    }
    let snapshotter = snapshotter.to_owned();
    tx.event(
        &namespace,
        Event::SnapshotRemove {
            key: name,
            snapshotter,
        },
    );
    Ok(true)
}

/// The records of a snapshotter, by backend key.
fn known(tx: &dyn Read, snapshotter: &str) -> Result<BTreeMap<String, Known>> {
    let mut found = BTreeMap::new();
    for namespace in namespaces::known(tx)? {
        let prefix = key(Bucket::Snapshot, &[namespace.as_str(), snapshotter, ""]);
        tx.scan(&prefix, &mut |rest, record| {
            let [name] = names(rest)?;
            if let Ok(record) = SnapshotRecord::decode(record) {
                let known = Known {
                    namespace: namespace.clone(),
                    name: name.to_owned(),
                    backend: record.backend.clone(),
                    parent: record.parent,
                };
                found.insert(record.backend, known);
            }
            Ok(Flow::Continue(()))
        })?;
    }
    Ok(found)
}

/// Numbers of commits that were cut off between backend and record. The backend has the committed
/// snapshot under the number of the active one; the commit goes on from there when it is tried again,
/// and until then the collector spares it.
fn cut_off(there: &[SnapshotInfo], records: &BTreeMap<String, Known>) -> HashSet<u64> {
    let active: HashSet<u64> = records.keys().filter_map(|key| number_of(key)).collect();
    let committed = there
        .iter()
        .filter(|info| info.kind == SnapshotKind::Committed)
        .map(|info| info.name.as_str())
        .filter(|name| !records.contains_key(*name));
    committed
        .filter_map(number_of)
        .filter(|number| active.contains(number))
        .collect()
}

/// What stands on a snapshot.
fn users(tx: &dyn Read, snapshotter: &str, known: &Known) -> Result<BTreeSet<String>> {
    let Known {
        namespace, name, ..
    } = known;
    let mut users = BTreeSet::new();
    let prefix = below(Bucket::Child, &[namespace.as_str(), snapshotter, name]);
    tx.scan(&prefix, &mut |rest, _| {
        let [child] = names(rest)?;
        users.insert(format!("snapshot {namespace}/{snapshotter}/{child}"));
        Ok(Flow::Continue(()))
    })?;
    tx.scan(&all(Bucket::Container, namespace), &mut |rest, record| {
        let [id] = names(rest)?;
        if let Ok((_, on, key)) = get_container_refs(record)
            && on == snapshotter
            && key == *name
        {
            users.insert(format!("container {namespace}/{id}"));
        }
        Ok(Flow::Continue(()))
    })?;
    Ok(users)
}
