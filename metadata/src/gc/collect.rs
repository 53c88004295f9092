//! Collecting: the backends lose what no record names.
//!
//! Invariant: the backend is listed first and the records are read afterwards, so whatever is new has a
//! record, a busy number or a held gate by then. A blob is looked up once more, alone in its digest's
//! gate, before its file goes, and of a snapshot it is asked, alone in its gate, whether somebody has
//! adopted it since. No gate is waited for and none is of more than one object: what takes long here
//! holds up nobody but who wants that very object. A snapshotter that another program is may take as long
//! as it likes: a run waits a moment for it, and what it then still has to do goes on beside later runs.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use ::snapshotters::Snapshotter;
use futures::future::join_all;
use types::{Code, Context as _, Digest, Error, Errors, Filter, Result, SnapshotInfo};

use super::Stats;
use super::sweep::Swept;
use crate::Metadata;
use crate::db::Marks;
use crate::key::{Bucket, all, key, names, own};
use crate::kv::{Flow, Read};
use crate::namespaces;
use crate::record::{IngestRecord, SnapshotRecord};
use crate::snapshots::{Backend, flush, number_of};

impl Swept {
    /// Cleans the backends that `marks` names; what failed stays marked, and so does one in which what
    /// has no record may be no garbage.
    pub(super) async fn collect(self, metadata: &Metadata, marks: &mut Marks, stats: &mut Stats) {
        if marks.content {
            match content(metadata, stats).await {
                Ok(is_done) => marks.content = !is_done,
                Err(error) => tracing::warn!(%error, "content garbage collection failed"),
            }
        }
        let (dirty, others): (Vec<_>, Vec<_>) =
            metadata.0.snapshotters.iter().partition(|(name, backend)| {
                marks.snapshotters.contains(*name) && !backend.is_unasked()
            });
        for (name, backend) in others {
            if let Err(error) = flush(metadata, name, backend).await {
                tracing::warn!(snapshotter = %name, %error, "commits stay noted");
            }
        }
        let dirty = dirty
            .into_iter()
            .map(|(name, backend)| async move { (name, patiently(metadata, name, backend).await) });
        for (name, result) in join_all(dirty).await {
            match result {
                Ok(removed) => {
                    stats.snapshots += removed;
                    marks.snapshotters.remove(name);
                }
                Err(error) => {
                    tracing::warn!(snapshotter = %name, %error, "snapshot garbage collection failed");
                }
            }
        }
        // Records of a snapshotter that is not configured any more have no backend to clean.
        marks
            .snapshotters
            .retain(|name| metadata.0.snapshotters.contains_key(name));
    }
}

/// How long a run, and all who wait for it, wait for another program's snapshots.
const PATIENCE: Duration = Duration::from_secs(if cfg!(test) { 5 } else { 10 });

/// [`snapshots`], for no longer than [`PATIENCE`] where it is another program that removes them.
async fn patiently(metadata: &Metadata, name: &str, backend: &Backend) -> Result<u64> {
    if !backend.snapshotter.is_remote() {
        return snapshots(metadata, name, backend).await;
    }
    let (metadata, name) = (metadata.clone(), name.to_owned());
    let work = tokio::spawn(async move {
        let backend = metadata.0.snapshotters.get(&name);
        let backend = backend.ok_or_else(|| Error::not_found(&name))?;
        snapshots(&metadata, &name, backend).await
    });
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(done) => done.map_err(Error::internal)?,
        Err(_) => Err(Error::unavailable("it is still at work")),
    }
}

/// Removes blobs and ingests without a record; false when there may be another blob of that kind.
async fn content(metadata: &Metadata, stats: &mut Stats) -> Result<bool> {
    let backend = &metadata.0.content;
    let blobs = backend.list(&Filter::default()).await?;
    let ingests = backend.statuses(&Filter::default()).await?;
    let named = Named::load(&metadata.0.db.kv.read()?)?;
    let mut errors = Errors::default();
    let mut is_done = true;
    for blob in blobs {
        let digest = blob.digest.as_str();
        if named.digests.contains(digest) || metadata.0.spares(digest) {
            continue;
        }
        // Held: somebody is about to link it, and may fail to.
        let Some(_alone) = metadata.0.digests.try_alone(blob.digest.as_str()) else {
            is_done = false;
            continue;
        };
        if is_named(&metadata.0.db.kv.read()?, &blob.digest)? {
            continue;
        }
        let gone = backend.delete(&blob.digest).await.absent_ok();
        stats.blobs += u64::from(errors.note(gone).is_some());
    }
    for ingest in ingests {
        if !named.ingests.contains(ingest.reference.as_str()) {
            let gone = backend.abort(&ingest.reference).await.absent_ok();
            stats.ingests += u64::from(errors.note(gone).is_some());
        }
    }
    note_cleanup(&mut errors, backend.cleanup().await);
    errors.into_result().map(|()| is_done)
}

/// Not every backend has something to clean up.
fn note_cleanup(errors: &mut Errors, result: Result<()>) {
    match result {
        Err(error) if error.is(Code::NotImplemented) => {}
        result => drop(errors.note(result)),
    }
}

/// What the records name in the content backend.
struct Named {
    digests: HashSet<String>,
    ingests: HashSet<String>,
}

impl Named {
    fn load(tx: &dyn Read) -> Result<Self> {
        let mut named = Self {
            digests: HashSet::new(),
            ingests: HashSet::new(),
        };
        for namespace in namespaces::known(tx)? {
            tx.scan(&all(Bucket::Blob, &namespace), &mut |rest, _| {
                let [digest] = names(rest)?;
                named.digests.insert(digest.to_owned());
                Ok(Flow::Continue(()))
            })?;
            tx.scan(&all(Bucket::Ingest, &namespace), &mut |_, record| {
                let record = IngestRecord::decode(record)?;
                named.digests.extend(record.expected.map(|d| d.to_string()));
                named.ingests.insert(record.backend);
                Ok(Flow::Continue(()))
            })?;
        }
        Ok(named)
    }
}

/// True when a namespace has the blob or an ingest waits to link it.
fn is_named(tx: &dyn Read, digest: &Digest) -> Result<bool> {
    for namespace in namespaces::known(tx)? {
        if tx.has(&own(Bucket::Blob, &namespace, digest.as_str()))? {
            return Ok(true);
        }
        let mut expected = false;
        tx.scan(&all(Bucket::Ingest, &namespace), &mut |_, record| {
            expected = IngestRecord::decode(record)?.expected.as_ref() == Some(digest);
            Ok(if expected {
                Flow::Break(())
            } else {
                Flow::Continue(())
            })
        })?;
        if expected {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes snapshots without a record, children before parents, and returns how many.
async fn snapshots(metadata: &Metadata, name: &str, backend: &Backend) -> Result<u64> {
    let Ok(_one_at_a_time) = backend.collecting.try_lock() else {
        return Err(Error::unavailable("an earlier collection is still at work"));
    };
    // What these need is no garbage.
    flush(metadata, name, backend).await?;
    let mut errors = Errors::default();
    let mut removed = 0;
    let adoptions = backend.adoptions();
    let there = backend.snapshotter.list(&Filter::default()).await?;
    // After the list and before the records: who is not busy any more has a record by then.
    let mut numbers = backend.at_work();
    let keys = known_keys(&metadata.0.db.kv.read()?, name)?;
    numbers.extend(keys.iter().filter_map(|key| number_of(key)));
    let is_garbage = |info: &SnapshotInfo| {
        !keys.contains(info.name.as_str())
            && !backend.keeps(info.name.as_str())
            && number_of(info.name.as_str()).is_none_or(|number| !numbers.contains(&number))
    };
    for info in deepest_first(there) {
        if !is_garbage(&info) {
            continue;
        }
        // Held: somebody is about to adopt it.
        let Some(_alone) = backend.adopting.try_alone(info.name.as_str()) else {
            continue;
        };
        if !adoptions.has(info.name.as_str()) {
            let gone = remove(backend.snapshotter.as_ref(), &info, &mut errors);
            removed += u64::from(gone.await?);
        }
    }
    drop(adoptions);
    note_cleanup(&mut errors, backend.snapshotter.cleanup().await);
    errors.into_result().map(|()| removed)
}

/// True when it is gone now.
///
/// # Errors
/// Nobody answers: the next would wait as long for nothing.
async fn remove(
    backend: &dyn Snapshotter,
    info: &SnapshotInfo,
    errors: &mut Errors,
) -> Result<bool> {
    match backend.remove(&info.name).await {
        Ok(()) => Ok(true),
        Err(error) if error.is(Code::DeadlineExceeded) || error.is(Code::Unavailable) => Err(error),
        // A child was made meanwhile: it goes with it next time, or it keeps it.
        Err(error) if error.is(Code::FailedPrecondition) => {
            tracing::warn!(key = %info.name, %error, "snapshot stays");
            Ok(false)
        }
        gone => Ok(errors.note(gone.absent_ok()).flatten().is_some()),
    }
}

/// Backend keys that the records of all namespaces name.
fn known_keys(tx: &dyn Read, snapshotter: &str) -> Result<HashSet<String>> {
    let mut keys = HashSet::new();
    for namespace in namespaces::known(tx)? {
        let prefix = key(Bucket::Snapshot, &[namespace.as_str(), snapshotter, ""]);
        tx.scan(&prefix, &mut |_, record| {
            keys.insert(SnapshotRecord::decode(record)?.backend);
            Ok(Flow::Continue(()))
        })?;
    }
    Ok(keys)
}

/// Orders snapshots so that children come before their parents.
fn deepest_first(mut all: Vec<SnapshotInfo>) -> Vec<SnapshotInfo> {
    let parents: HashMap<String, Option<String>> = all
        .iter()
        .map(|info| {
            (
                info.name.to_string(),
                info.parent.as_ref().map(ToString::to_string),
            )
        })
        .collect();
    let depth = |info: &SnapshotInfo| {
        let mut depth = 0_usize;
        let mut at = info.name.as_str();
        // Bounded: a damaged backend may have a circle.
        while let Some(Some(parent)) = parents.get(at) {
            depth += 1;
            at = parent;
            if depth > parents.len() {
                break;
            }
        }
        depth
    };
    all.sort_by_cached_key(|info| std::cmp::Reverse(depth(info)));
    all
}
