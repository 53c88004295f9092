//! Records of what has none, in a store whose last changes may be lost: what they named would be garbage.
//!
//! Invariant: such a store carries a mark, and nothing of a backend is collected before that backend was
//! asked. The mark goes with the transaction that has the records; as long as a snapshotter cannot be
//! asked, it names that one.
//!
//! ```text
//! mark: empty ----> nobody was asked: blobs, tasks, all snapshotters that answer
//!       names ----> these snapshotters are left: not loaded, or silent
//! a silent one that answers later is asked before the collector cleans it
//! ```

use std::collections::{BTreeSet, HashMap, HashSet};
use std::time::SystemTime;

use types::{Container, Context as _, Filter, Namespace, Result, SnapshotInfo};

use super::{Builder, Found, Rebuilt, Rootfs, is_rootfs};
use crate::codec::damaged;
use crate::db::WriteTx;
use crate::key::{Bucket, all, key, names};
use crate::kv::{Flow, INCOMPLETE, Kv, Read, Records, Tx};
use crate::record::{SnapshotRecord, get_container, get_container_refs};
use crate::snapshots::{Backend, number_of};
use crate::{Metadata, OpenOpts, Policy, namespaces};

/// The snapshotters that a mark names.
type Names = BTreeSet<String>;

/// Between names in the mark: no name holds it.
const END: char = '\0';

/// Whom the store leaves to be asked: nobody, all (an empty set), or these snapshotters.
fn marked(tx: &dyn Read) -> Result<Option<Names>> {
    let Some(mark) = tx.get(INCOMPLETE)? else {
        return Ok(None);
    };
    let text = std::str::from_utf8(&mark).map_err(|_| damaged())?;
    let names = text.split(END).filter(|name| !name.is_empty());
    Ok(Some(names.map(ToOwned::to_owned).collect()))
}

/// Leaves these to be asked, and no mark without one.
fn mark(tx: &mut Tx<'_>, left: &Names) {
    let names: Vec<&str> = left.iter().map(String::as_str).collect();
    match names.as_slice() {
        [] => tx.remove(INCOMPLETE.into()),
        names => tx.put(INCOMPLETE.into(), names.join("\0").into()),
    }
}

/// Completes a store that has its mark, before anybody is served. What cannot be asked stays in the mark
/// and is told, so that nothing is collected there.
///
/// # Errors
/// Those of the backends, of the bundles and of the store; the mark stays as it was.
pub(crate) async fn at_start(kv: &Kv, opts: &OpenOpts) -> Result<(Option<Rebuilt>, Names)> {
    let Some(asked) = marked(&kv.read()?)? else {
        return Ok((None, Names::new()));
    };
    tracing::info!("metadata may lack its last changes: looking for what has no record");
    let mut found = Found::look(opts).await.ctx("complete metadata")?;
    let missing = opts.absent.iter().chain(found.silent());
    let is_left = |name: &&String| asked.is_empty() || asked.contains(*name);
    let left: Names = missing.filter(is_left).cloned().collect();
    if !left.is_empty() {
        tracing::warn!(
            snapshotters = ?left,
            "nobody can ask them now for what the lost changes named: nothing is cleaned up there until then"
        );
    }
    found.only.clone_from(&asked);
    let lacking = found.complete(&kv.read()?, opts.policy, SystemTime::now())?;
    let (records, rebuilt) = lacking.unzip();
    if records.is_none() && left == asked && !left.is_empty() {
        return Ok((None, left));
    }
    let rest = left.clone();
    let change = move |tx: &mut Tx<'_>| {
        put_all(tx, records.unwrap_or_default());
        mark(tx, &rest);
        Ok(())
    };
    kv.write(change).await?;
    rebuilt.iter().for_each(Rebuilt::tell_what);
    Ok((rebuilt, left))
}

/// The same of one snapshotter that could not be asked at the start, while others are served.
///
/// # Errors
/// Those of the snapshotter and of the store; then it is still left.
pub(crate) async fn later(metadata: &Metadata, name: &str, backend: &Backend) -> Result<()> {
    let there = backend.snapshotter.list(&Filter::default()).await?;
    // After the list and before the records: who is not busy any more has a record by then.
    let busy = backend.at_work();
    let is_made = |info: &SnapshotInfo| {
        number_of(info.name.as_str()).is_none_or(|number| !busy.contains(&number))
    };
    let there = there.into_iter().filter(is_made).collect();
    let (found, policy) = (Found::of(name, there), metadata.0.policy);
    let name = name.to_owned();
    let change = move |tx: &mut WriteTx<'_, '_>| {
        let Some(mut left) = marked(&**tx)? else {
            return Ok(None);
        };
        let lacking = found.complete(&**tx, policy, SystemTime::now())?;
        let (records, rebuilt) = lacking.unzip();
        put_all(tx, records.unwrap_or_default());
        left.remove(&name);
        mark(tx, &left);
        Ok(rebuilt)
    };
    let rebuilt = metadata.0.db.write_long(change).await?;
    rebuilt.iter().for_each(Rebuilt::tell_what);
    backend.completed();
    Ok(())
}

fn put_all(tx: &mut Tx<'_>, records: Records) {
    for (key, record) in records {
        tx.put(key, record);
    }
}

impl Found {
    /// What one snapshotter has.
    fn of(snapshotter: &str, all: Vec<SnapshotInfo>) -> Self {
        let numbers = all.iter().filter_map(|info| number_of(info.name.as_str()));
        Self {
            highest: numbers.max().unwrap_or(0),
            blobs: Vec::new(),
            snapshots: [(snapshotter.to_owned(), all)].into(),
            tasks: Vec::new(),
            silent: Vec::new(),
            only: [snapshotter.to_owned()].into(),
        }
    }

    /// The snapshots of containers among those that have a record still.
    fn recorded(&self, named: &Named) -> Rootfs {
        let mut recorded = Rootfs::new();
        for (snapshotter, all) in &self.snapshots {
            for info in all.iter().filter(|info| is_rootfs(info)) {
                if let Some(at) = named.snapshot(snapshotter, info) {
                    let on = recorded.entry(at.clone()).or_default();
                    on.insert(snapshotter.clone());
                }
            }
        }
        recorded
    }

    /// Leaves what has no record, of those that are to be asked.
    fn retain_lacking(&mut self, named: &Named) {
        let only = &self.only;
        for (snapshotter, all) in &mut self.snapshots {
            let is_asked = only.is_empty() || only.contains(snapshotter);
            all.retain(|info| is_asked && named.snapshot(snapshotter, info).is_none());
        }
        if !only.is_empty() {
            // They were asked for, and what lacks a record since is garbage.
            self.blobs.clear();
            self.tasks.clear();
        }
        self.blobs
            .retain(|blob| !named.blobs.contains(blob.digest.as_str()));
        self.tasks.retain(|task| {
            let at = (task.namespace.clone(), task.id.to_string());
            !named.tasks.contains(&at)
        });
    }

    /// Makes records of what has none. `None` when there is nothing of that kind.
    ///
    /// # Errors
    /// Those of the store.
    fn complete(
        mut self,
        tx: &dyn Read,
        policy: Policy,
        now: SystemTime,
    ) -> Result<Option<(Records, Rebuilt)>> {
        let mut named = Named::load(tx)?;
        let there: HashSet<String> = self
            .snapshots
            .values()
            .flatten()
            .map(|info| info.name.to_string())
            .collect();
        let mut builder = Builder::new(now)?;
        // The record of a container may be lost alone: it stands on a snapshot that has one.
        builder.rootfs = self.recorded(&named);
        builder.bare = std::mem::take(&mut named.bare);
        builder.known = namespaces::known(tx)?.into_iter().collect();
        self.retain_lacking(&named);
        let is_complete = self.is_nothing();
        let (records, rebuilt) = builder.build(&self, policy)?;
        let sequence = key(Bucket::Store, &["sequence"]);
        let mut kept = Records::new();
        for (key, record) in records {
            let is_ours = match tx.get(&key)? {
                None => true,
                Some(old) if key == sequence => is_less(&old, &record),
                // What it names is not there any more: the name was used again.
                Some(old) if key.first() == Some(&(Bucket::Snapshot as u8)) => {
                    !there.contains(&SnapshotRecord::decode(&old)?.backend)
                }
                // One that named no snapshot, and does now: others with a record are not made again.
                Some(_) => key.first() == Some(&(Bucket::Container as u8)),
            };
            if is_ours {
                kept.insert(key, record);
            }
        }
        if is_complete {
            kept.retain(|key, _| *key == sequence);
        }
        Ok((!kept.is_empty()).then_some((kept, rebuilt)))
    }
}

/// True when a number in the store is less than another one.
fn is_less(old: &[u8], new: &[u8]) -> bool {
    let number = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_le_bytes);
    number(old) < number(new)
}

/// What a store's records name.
#[derive(Debug, Default)]
struct Named {
    blobs: HashSet<String>,
    /// By snapshotter and name there: where the record is.
    snapshots: HashMap<String, HashMap<String, (Namespace, String)>>,
    tasks: HashSet<(Namespace, String)>,
    /// Containers whose records name no snapshot.
    bare: Vec<(Namespace, Container)>,
}

impl Named {
    fn load(tx: &dyn Read) -> Result<Self> {
        let mut named = Self::default();
        for namespace in namespaces::known(tx)? {
            tx.scan(&all(Bucket::Blob, &namespace), &mut |rest, _| {
                let [digest] = names(rest)?;
                named.blobs.insert(digest.to_owned());
                Ok(Flow::Continue(()))
            })?;
            tx.scan(&all(Bucket::Snapshot, &namespace), &mut |rest, record| {
                let [snapshotter, name] = names(rest)?;
                let at = (namespace.clone(), name.to_owned());
                let of = named.snapshots.entry(snapshotter.to_owned()).or_default();
                of.insert(SnapshotRecord::decode(record)?.backend, at);
                Ok(Flow::Continue(()))
            })?;
            tx.scan(&all(Bucket::Container, &namespace), &mut |rest, record| {
                let [id] = names(rest)?;
                named.tasks.insert((namespace.clone(), id.to_owned()));
                // One that cannot be read is for the check to tell.
                if let Ok((_, snapshotter, _)) = get_container_refs(record)
                    && snapshotter.is_empty()
                    && let Ok(container) = get_container(id, record)
                {
                    named.bare.push((namespace.clone(), container));
                }
                Ok(Flow::Continue(()))
            })?;
        }
        Ok(named)
    }

    /// Where the record of a snapshot is.
    fn snapshot(&self, snapshotter: &str, info: &SnapshotInfo) -> Option<&(Namespace, String)> {
        self.snapshots.get(snapshotter)?.get(info.name.as_str())
    }
}

#[cfg(test)]
mod tests;
