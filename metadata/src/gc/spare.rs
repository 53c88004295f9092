//! What was marked as garbage beside running requests, and was taken up by one of them since.
//!
//! Invariant: after [`Marked::spare`] nothing that is reachable in the transaction's state is garbage.
//! Objects whose records were touched since the marking, and all that they name, are spared, root or
//! not: what is spared for nothing is garbage again in the next run.
//!
//! Why that is enough: a path from a root to an object that is garbage still would have to leave the
//! marked objects somewhere, over a record that was touched, or below one that was only marked flat.

use std::collections::BTreeMap;

use types::{Namespace, Resource, Result};

use super::condition::conditions;
use super::link::{Link, Node, links};
use super::mark::{Doubt, Marked};
use crate::key::{Bucket, all, own, split};
use crate::kv::{Flow, Read};
use crate::record::{
    BlobRecord, IngestRecord, SnapshotRecord, get_container_refs, get_image, get_lease,
};
use crate::snapshots::record_key;
use crate::{leases, namespaces};

impl Marked {
    /// Spares what the records at `touched` may have taken up; true when that was anything.
    pub(crate) fn spare(&mut self, tx: &dyn Read, touched: &[Vec<u8>]) -> Result<bool> {
        let mut spared = false;
        let mut all: BTreeMap<&Namespace, &mut Doubt> = self
            .doubts
            .iter_mut()
            .map(|(namespace, doubt)| (&*namespace, doubt))
            .collect();
        for key in touched {
            let Some((namespace, object)) = object(key)? else {
                continue;
            };
            // One that is new has no garbage.
            if let Some(doubt) = all.get_mut(&namespace) {
                spared |= object.spare(tx, &namespace, doubt)?;
            }
        }
        Ok(spared)
    }
}

/// True when a record of any namespace names an object that fits.
///
/// # Errors
/// Those of the store.
pub(crate) fn names_any(tx: &dyn Read, fits: &dyn Fn(&Namespace, &Node) -> bool) -> Result<bool> {
    const NAMING: [Bucket; 6] = [
        Bucket::Image,
        Bucket::Container,
        Bucket::Lease,
        Bucket::Blob,
        Bucket::Ingest,
        Bucket::Snapshot,
    ];
    for namespace in namespaces::known(tx)? {
        for prefix in NAMING.map(|bucket| all(bucket, &namespace)) {
            let mut is_named = false;
            tx.scan(&prefix, &mut |rest, _| {
                let key = [prefix.as_slice(), rest].concat();
                let named = match object(&key)? {
                    Some((namespace, Object::Node(node))) => named_by(tx, &namespace, &node)?,
                    _ => None,
                };
                let mut named = named.into_iter().flatten();
                is_named = named.any(|node| fits(&namespace, &node));
                Ok(if is_named {
                    Flow::Break(())
                } else {
                    Flow::Continue(())
                })
            })?;
            if is_named {
                return Ok(true);
            }
        }
    }
    Ok(false)
}

/// What a key is the record of.
enum Object {
    Node(Node),
    /// The entry of a resource in a lease.
    Leased(Vec<u8>, Resource),
}

fn object(key: &[u8]) -> Result<Option<(Namespace, Object)>> {
    let Some((bucket, namespace, rest)) = split(key)? else {
        return Ok(None);
    };
    let name = || rest.to_owned();
    let object = match bucket {
        Bucket::Image => Object::Node(Node::Image(name())),
        Bucket::Container => Object::Node(Node::Container(name())),
        Bucket::Lease => Object::Node(Node::Lease(name())),
        Bucket::Blob => Object::Node(Node::Content(name())),
        Bucket::Ingest => Object::Node(Node::Ingest(name())),
        Bucket::Snapshot => match rest.split_once('\0') {
            Some((snapshotter, key)) => {
                Object::Node(Node::Snapshot(snapshotter.to_owned(), key.to_owned()))
            }
            None => return Ok(None),
        },
        Bucket::Leased => match rest.split_once('\0') {
            Some((_, resource)) => Object::Leased(key.to_vec(), leases::resource(resource)?),
            None => return Ok(None),
        },
        // Names of namespaces keep nothing, and the children of a snapshot are in its record.
        Bucket::Store | Bucket::Namespace | Bucket::Child | Bucket::Redo | Bucket::Removed => {
            return Ok(None);
        }
    };
    Ok(Some((namespace, object)))
}

impl Object {
    fn spare(self, tx: &dyn Read, namespace: &Namespace, doubt: &mut Doubt) -> Result<bool> {
        match self {
            Self::Leased(key, resource) => Ok(tx.has(&key)? && doubt.spare(vec![node(resource)])),
            Self::Node(node) => match named_by(tx, namespace, &node)? {
                Some(mut open) => {
                    open.push(node);
                    Ok(doubt.spare(open))
                }
                // Removed by somebody else: nothing is left to sweep.
                None => {
                    doubt.forget(&node);
                    Ok(false)
                }
            },
        }
    }
}

pub(super) fn node(resource: Resource) -> Node {
    match resource {
        Resource::Content(digest) => Node::Content(digest.to_string()),
        Resource::Image(name) => Node::Image(name),
        Resource::Ingest(reference) => Node::Ingest(reference.to_string()),
        Resource::Snapshot { snapshotter, key } => Node::Snapshot(snapshotter, key.to_string()),
    }
}

/// All that an object may keep, as its record says now; `None` without a record.
pub(super) fn named_by(
    tx: &dyn Read,
    namespace: &Namespace,
    of: &Node,
) -> Result<Option<Vec<Node>>> {
    let key = match of {
        Node::Content(digest) => own(Bucket::Blob, namespace, digest),
        Node::Snapshot(snapshotter, key) => record_key(namespace, snapshotter, key),
        Node::Image(name) => own(Bucket::Image, namespace, name),
        Node::Ingest(reference) => own(Bucket::Ingest, namespace, reference),
        Node::Container(id) => own(Bucket::Container, namespace, id),
        Node::Lease(id) => own(Bucket::Lease, namespace, id),
        // They name nothing.
        Node::Stream(_) | Node::Mount(_) | Node::Network(_) => return Ok(None),
    };
    let Some(record) = tx.get(&key)? else {
        return Ok(None);
    };
    let mut named = Vec::new();
    let labels = match of {
        Node::Content(_) => BlobRecord::decode(&record)?.labels,
        Node::Snapshot(snapshotter, _) => {
            let record = SnapshotRecord::decode(&record)?;
            let parent = record
                .parent
                .map(|p| Node::Snapshot(snapshotter.clone(), p));
            named.extend(parent);
            record.labels
        }
        Node::Image(name) => {
            let image = get_image(name, &record)?;
            named.push(Node::Content(image.target.digest.to_string()));
            image.labels
        }
        Node::Ingest(_) => {
            let expected = IngestRecord::decode(&record)?.expected;
            named.extend(expected.map(|digest| Node::Content(digest.to_string())));
            return Ok(Some(named));
        }
        Node::Container(_) => {
            let (labels, snapshotter, key) = get_container_refs(&record)?;
            named.push(Node::Snapshot(snapshotter, key));
            labels
        }
        Node::Lease(id) => {
            let held = leases::resources_of(tx, namespace, id)?;
            named.extend(held.into_iter().map(node));
            get_lease(id, &record)?.labels
        }
        Node::Stream(_) | Node::Mount(_) | Node::Network(_) => return Ok(None),
    };
    named.extend(links(&labels).filter_map(|link| match link {
        Link::Keeps(other) => Some(other),
        // It is spared itself, whatever it was kept by.
        Link::Root | Link::KeptBy(_) => None,
    }));
    named.extend(conditions(&labels).map(|condition| condition.snapshot));
    Ok(Some(named))
}
