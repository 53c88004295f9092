//! Sweeping: the records of what was not marked, and not taken up since, go in one transaction.

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
use crate::snapshots::{child_key, record_key};

/// The sweep is done; the backends have to follow once it is committed.
#[derive(Debug, Default)]
pub(crate) struct Swept {
    pub(super) removed: Removed,
    /// Blobs or ingests were among it.
    pub(super) content: bool,
    /// Snapshotters that lost records.
    pub(super) snapshotters: BTreeSet<String>,
    /// Streams that nobody keeps.
    pub(super) streams: Vec<(Namespace, String)>,
}

impl Marked {
    /// Removes the records of all that is not marked.
    pub(crate) fn sweep(self, tx: &mut WriteTx<'_, '_>) -> Result<Swept> {
        let mut swept = Swept::default();
        for (namespace, doubt) in self.doubts {
            for node in doubt.into_garbage() {
                swept.remove(tx, &namespace, node)?;
            }
        }
        Ok(swept)
    }
}

impl Swept {
    fn remove(&mut self, tx: &mut WriteTx<'_, '_>, ns: &Namespace, node: Node) -> Result<()> {
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
                if let Some(parent) = record.and_then(|record| record.parent) {
                    tx.remove(child_key(ns, &snapshotter, &parent, &key));
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
            // Always a root.
            Node::Container(_) => {}
        }
        Ok(())
    }
}
