//! Root file systems of containers that a power cut has taken from their snapshotter.
//!
//! An active snapshot is durable in its snapshotter only with the next durable change there, and its
//! record here at once: the record tells all that it takes to make it again. It comes back empty: had
//! anybody made something in it durable, its directory would have told of it. Nothing else is made
//! again: an unpacker that found its snapshot empty would commit it.

use std::collections::{BTreeMap, HashSet};

use types::{Context as _, Filter, Namespace, Result, SnapshotKey, SnapshotKind};

use super::{Backend, number_of, record_key};
use crate::Metadata;
use crate::key::{Bucket, all, names};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::record::{SnapshotRecord, get_container_refs};

/// A snapshot that a container stands on.
struct Rootfs {
    /// What it belongs to, for the log.
    container: String,
    record: SnapshotRecord,
    /// The parent's key in the backend.
    parent: Option<String>,
}

/// Makes what is gone again, and tells the log. Before anybody is served.
///
/// # Errors
/// Those of the store and of the snapshotters' lists.
pub(crate) async fn redo(metadata: &Metadata) -> Result<()> {
    let mut wanted = wanted(&metadata.0.db.kv.read()?)?;
    for (name, backend) in &metadata.0.snapshotters {
        let Some(all) = wanted.remove(name) else {
            continue;
        };
        // It flushes what it answers, and nobody waits for a program that may be away.
        if backend.snapshotter.is_remote() {
            continue;
        }
        // It has lost more than its last moments: what it has left is kept aside for somebody to look at.
        if !backend.snapshotter.damages().is_empty() {
            continue;
        }
        let there = backend.snapshotter.list(&Filter::default()).await;
        let there = there.ctx("look for lost snapshots")?;
        let there: HashSet<&str> = there.iter().map(|info| info.name.as_str()).collect();
        let numbers: HashSet<u64> = there.iter().filter_map(|key| number_of(key)).collect();
        let is_there = |rootfs: &Rootfs| {
            // A commit that was cut off has it under another name.
            there.contains(rootfs.record.backend.as_str())
                || number_of(&rootfs.record.backend).is_none_or(|n| numbers.contains(&n))
        };
        for lost in all.into_iter().filter(|rootfs| !is_there(rootfs)) {
            make(name, backend, &lost).await;
        }
    }
    Ok(())
}

async fn make(snapshotter: &str, backend: &Backend, lost: &Rootfs) {
    let Rootfs {
        container, record, ..
    } = lost;
    match again(backend, lost).await {
        Ok(()) => tracing::warn!(
            %container, snapshotter, key = record.backend,
            "its root file system was lost with the power, and is made anew, empty"
        ),
        // The check tells it again, each time.
        Err(error) => tracing::warn!(
            %error, %container, snapshotter, key = record.backend,
            "its root file system was lost with the power, and cannot be made anew"
        ),
    }
}

async fn again(backend: &Backend, lost: &Rootfs) -> Result<()> {
    let key: SnapshotKey = lost.record.backend.parse()?;
    let parent: Option<SnapshotKey> = lost.parent.as_deref().map(str::parse).transpose()?;
    let labels = lost.record.labels.for_snapshotter();
    let backend = &backend.snapshotter;
    let made = match lost.record.kind {
        Some(SnapshotKind::View) => backend.view(&key, parent.as_ref(), labels).await,
        _ => backend.prepare(&key, parent.as_ref(), labels).await,
    };
    made.map(drop)
}

/// The root file systems of all containers, by snapshotter.
fn wanted(tx: &dyn Read) -> Result<BTreeMap<String, Vec<Rootfs>>> {
    let mut wanted: BTreeMap<String, Vec<Rootfs>> = BTreeMap::new();
    for namespace in namespaces::known(tx)? {
        let mut all_of = Vec::new();
        tx.scan(&all(Bucket::Container, &namespace), &mut |rest, record| {
            let [id] = names(rest)?;
            // One that cannot be read is for the check to tell.
            if let Ok((_, snapshotter, key)) = get_container_refs(record) {
                all_of.push((format!("{namespace}/{id}"), snapshotter, key));
            }
            Ok(Flow::Continue(()))
        })?;
        for (container, snapshotter, key) in all_of {
            let Some(record) = find(tx, &namespace, &snapshotter, &key)? else {
                continue;
            };
            let parent = match &record.parent {
                None => None,
                Some(parent) => match find(tx, &namespace, &snapshotter, parent)? {
                    Some(parent) => Some(parent.backend),
                    None => continue,
                },
            };
            // Of a record from before kinds were noted, nobody knows whether it may be written to.
            if matches!(record.kind, Some(SnapshotKind::Active | SnapshotKind::View)) {
                wanted.entry(snapshotter).or_default().push(Rootfs {
                    container,
                    record,
                    parent,
                });
            }
        }
    }
    Ok(wanted)
}

fn find(
    tx: &dyn Read,
    namespace: &Namespace,
    snapshotter: &str,
    key: &str,
) -> Result<Option<SnapshotRecord>> {
    let record = tx.get(&record_key(namespace, snapshotter, key))?;
    Ok(record.and_then(|record| SnapshotRecord::decode(&record).ok()))
}
