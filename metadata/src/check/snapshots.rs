//! Snapshots of one snapshotter.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use types::{
    Code, Context as _, Event, Fault, Filter, Namespace, Repair, Result, SnapshotInfo, SnapshotKey,
    SnapshotKind,
};

use super::{Check, listed};
use crate::db::WriteTx;
use crate::key::{Bucket, all, below, key, names};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::record::{SnapshotRecord, get_container_refs};
use crate::snapshots::{child_key, number_of, record_key};

/// One record.
#[derive(Clone, Debug)]
struct Known {
    namespace: Namespace,
    name: String,
    parent: Option<String>,
}

impl Check<'_> {
    pub(super) async fn snapshots(&mut self, snapshotter: &str) -> Result<()> {
        let Some(backend) = self.metadata.0.snapshotters.get(snapshotter) else {
            return Ok(());
        };
        let there = backend.snapshotter.list(&Filter::default()).await?;
        // After the list and before the records: who is not busy any more has a record by then.
        let busy = backend.at_work();
        let mut records = known(&self.metadata.0.db.kv.read()?, snapshotter)?;
        self.report.snapshots += there.len() as u64;
        let mut found = BTreeMap::new();
        let mut ahead = cut_off(&there, &records);
        ahead.extend(busy);
        let is_ahead = |key: &str| number_of(key).is_some_and(|number| ahead.contains(&number));
        for info in &there {
            match records.remove(info.name.as_str()) {
                Some(record) => drop(found.insert(info.name.to_string(), record)),
                None if is_ahead(info.name.as_str()) => {}
                None => {
                    let object = format!("snapshot {snapshotter}/{}", info.name);
                    self.orphan_snapshot(snapshotter, object);
                }
            }
        }
        for (name, record) in records {
            if is_ahead(&name) {
                continue;
            }
            let name: SnapshotKey = name.parse()?;
            if backend.snapshotter.stat(&name).await.absent_ok()?.is_none() {
                let text = "the snapshotter does not know it";
                self.broken(snapshotter, Fault::Missing, &record, text)
                    .await?;
            }
        }
        let broken = match backend.snapshotter.verify().await {
            Err(error) if error.is(Code::NotImplemented) => Vec::new(),
            broken => broken?,
        };
        for (name, why) in broken {
            if let Some(record) = found.get(name.as_str()) {
                self.broken(snapshotter, Fault::Damaged, record, &why)
                    .await?;
            }
        }
        Ok(())
    }

    /// A snapshot without its files. It can go unless something stands on it.
    async fn broken(
        &mut self,
        snapshotter: &str,
        fault: Fault,
        known: &Known,
        why: &str,
    ) -> Result<()> {
        let Known {
            namespace, name, ..
        } = known;
        let object = format!("snapshot {namespace}/{snapshotter}/{name}");
        let users = users(&self.metadata.0.db.kv.read()?, snapshotter, known)?;
        if !users.is_empty() {
            let text = format!("{why}; delete {} first, then repair again", listed(&users));
            self.report.note(fault, object, text, Repair::Impossible);
            return Ok(());
        }
        if self.opts.repair {
            let (known, snapshotter) = (known.clone(), snapshotter.to_owned());
            let change = move |tx: &mut WriteTx<'_, '_>| forget(tx, &snapshotter, known);
            self.metadata.0.db.write(change).await?;
            // What is left of it in the backend has no record now.
        }
        self.orphans.snapshotters.insert(snapshotter.to_owned());
        let text = format!("{why}; unpack its image again");
        let repair = self.repaired();
        self.report.note(fault, object, text, repair);
        Ok(())
    }
}

fn forget(tx: &mut WriteTx<'_, '_>, snapshotter: &str, known: Known) -> Result<()> {
    let Known {
        namespace,
        name,
        parent,
    } = known;
    // Somebody may have built on it since.
    if !users_but_containers(&**tx, snapshotter, &namespace, &name)?.is_empty() {
        return Ok(());
    }
    tx.remove(record_key(&namespace, snapshotter, &name));
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
    Ok(())
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
    let mut users = users_but_containers(tx, snapshotter, &known.namespace, &known.name)?;
    tx.scan(
        &all(Bucket::Container, &known.namespace),
        &mut |rest, record| {
            let [id] = names(rest)?;
            if let Ok((_, on, key)) = get_container_refs(record)
                && on == snapshotter
                && key == known.name
            {
                users.insert(format!("container {}/{id}", known.namespace));
            }
            Ok(Flow::Continue(()))
        },
    )?;
    Ok(users)
}

fn users_but_containers(
    tx: &dyn Read,
    snapshotter: &str,
    namespace: &Namespace,
    name: &str,
) -> Result<BTreeSet<String>> {
    let mut users = BTreeSet::new();
    let prefix = below(Bucket::Child, &[namespace.as_str(), snapshotter, name]);
    tx.scan(&prefix, &mut |rest, _| {
        let [child] = names(rest)?;
        users.insert(format!("snapshot {namespace}/{snapshotter}/{child}"));
        Ok(Flow::Continue(()))
    })?;
    Ok(users)
}
