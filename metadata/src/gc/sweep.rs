//! Sweeping: the records of what was not marked, and not taken up since, go in small transactions.
//!
//! Invariant: between two of them nothing that is left misses what it names, so whoever takes it up
//! then has all of it; a run that is cut off between them is finished by the next one.

use std::collections::BTreeSet;

use types::{Event, Namespace, Result};

use super::Removed;
use super::link::Node;
use super::mark::Marked;
use crate::db::WriteTx;
use crate::key::{Bucket, own};
use crate::kv::Read as _;
use crate::leases;
use crate::record::SnapshotRecord;
use crate::snapshots::{child_key, forget, record_key};

/// Keys that one transaction removes, circles of references apart: less than a group of writers
/// that commit together, so that one of them waits no longer for a sweep than for the others.
pub(super) const STEP: usize = 256;

/// What a sweep has removed so far; the backends have to follow once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    pub(super) removed: Removed,
    /// Blobs or ingests were among it.
    pub(super) content: bool,
    /// Snapshotters that lost records.
    pub(super) snapshotters: BTreeSet<String>,
    /// Streams that nobody keeps.
    pub(super) streams: Vec<(Namespace, String)>,
    /// Activations of mounts that nobody keeps.
    pub(super) mounts: Vec<(Namespace, String)>,
    /// Network namespaces and interfaces that nobody keeps.
    pub(super) networks: Vec<(Namespace, String)>,
}

impl Marked {
    /// Removes what is not marked, about `most` keys of it; more is left unless [`Marked::is_clean`].
    pub(crate) fn sweep(&mut self, tx: &mut WriteTx<'_, '_>, most: usize) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut left = most;
        for (namespace, doubt) in &mut self.doubts {
            while let Some((node, refs)) = doubt.next(left) {
                if let Node::Lease(id) = &node {
                    left -= leases::shorten(tx, namespace, id, left)?;
                    if left == 0 {
                        doubt.put_back(node, refs);
                        return Ok(swept);
                    }
                }
                left = left.saturating_sub(swept.remove(tx, namespace, node)?);
            }
        }
        Ok(swept)
    }
}

impl Swept {
    /// Adds what a later transaction has removed.
    pub(super) fn add(&mut self, later: Self) {
        let (sum, more) = (&mut self.removed, later.removed);
        sum.content += more.content;
        sum.ingests += more.ingests;
        sum.snapshots += more.snapshots;
        sum.images += more.images;
        sum.leases += more.leases;
        self.content |= later.content;
        self.snapshotters.extend(later.snapshotters);
        self.streams.extend(later.streams);
        self.mounts.extend(later.mounts);
        self.networks.extend(later.networks);
    }

    /// Removes what belongs to an object, of a lease what is left of it, and returns how many keys.
    fn remove(&mut self, tx: &mut WriteTx<'_, '_>, ns: &Namespace, node: Node) -> Result<usize> {
        let mut keys = 1;
        match node {
            Node::Content(digest) => {
                tx.remove(own(Bucket::Blob, ns, &digest));
                self.removed.content += 1;
                self.content = true;
            }
            Node::Ingest(reference) => {
                tx.remove(own(Bucket::Ingest, ns, &reference));
                self.removed.ingests += 1;
                self.content = true;
            }
            Node::Snapshot(snapshotter, key) => {
                let at = record_key(ns, &snapshotter, &key);
                let record = tx
                    .get(&at)?
                    .as_deref()
                    .map(SnapshotRecord::decode)
                    .transpose()?;
                if let Some(record) = record {
                    forget(tx, (&snapshotter, &record.backend))?;
                    if let Some(parent) = record.parent {
                        tx.remove(child_key(ns, &snapshotter, &parent, &key));
                        keys += 1;
                    }
                }
                tx.remove(at);
                self.removed.snapshots += 1;
                self.snapshotters.insert(snapshotter.clone());
                tx.event(ns, Event::SnapshotRemove { key, snapshotter });
            }
            Node::Image(name) => {
                tx.remove(own(Bucket::Image, ns, &name));
                self.removed.images += 1;
                tx.event(ns, Event::ImageDelete { name });
            }
            Node::Lease(id) => {
                leases::remove(tx, ns, &id)?;
                self.removed.leases += 1;
            }
            Node::Stream(id) => self.streams.push((ns.clone(), id)),
            Node::Mount(name) => self.mounts.push((ns.clone(), name)),
            Node::Network(name) => self.networks.push((ns.clone(), name)),
            // Always a root.
            Node::Container(_) => keys = 0,
        }
        Ok(keys)
    }
}
