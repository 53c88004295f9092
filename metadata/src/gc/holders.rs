//! What keeps an object: the way from each root to it, as the collector goes.
//!
//! Invariant: what is told is what a collection would find in the same state of the records, and nobody waits
//! for it. It takes the memory of one namespace's references, as marking does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::SystemTime;

use types::{Context as _, Error, Holders, Namespace, Resource, Result, SnapshotKey, gc_label};

use super::Beside;
use super::link::Node;
use super::mark::{Depth, Graph, expiry};
use super::spare::node;
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::record::{BlobRecord, SnapshotRecord, get_lease};
use crate::snapshots::record_key;
use crate::{Metadata, leases, namespaces};

/// Ways in one answer, and bytes of them: names have any length, and somebody reads this.
const MOST: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// What is on a way, and whether that needs references by labels to count.
type Place<'a> = (&'a Node, bool);

impl Metadata {
    /// What keeps a blob or a snapshot of a namespace.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for another object; those of the store and of the snapshotter.
    pub async fn holders(&self, namespace: &Namespace, of: &Resource) -> Result<Holders> {
        let snapshot = self.0.db.kv.read()?;
        let mut holders = Holders::default();
        match of {
            Resource::Content(digest) => {
                let record = snapshot.get(&own(Bucket::Blob, namespace, digest.as_str()))?;
                let record = record.ok_or_else(|| missing(of))?;
                holders.size = BlobRecord::decode(&record)?.size;
                for other in namespaces::known(&snapshot)? {
                    let at = own(Bucket::Blob, &other, digest.as_str());
                    if other != *namespace && snapshot.has(&at)? {
                        holders.elsewhere.push(other.to_string());
                    }
                }
            }
            Resource::Snapshot { snapshotter, key } => {
                let record = snapshot.get(&record_key(namespace, snapshotter, key.as_str()))?;
                let record = record.ok_or_else(|| missing(of))?;
                let backend: SnapshotKey = SnapshotRecord::decode(&record)?.backend.parse()?;
                let found = self.0.snapshotters.get(snapshotter);
                let found = found.ok_or_else(|| Error::not_found(snapshotter))?;
                holders.size = found.snapshotter.usage(&backend).await.ctx("usage")?.size;
            }
            Resource::Ingest(_) | Resource::Image(_) => {
                return Err(Error::not_implemented("what keeps an ingest or an image"));
            }
        }
        let beside = self.0.collector.beside();
        let (namespace, target) = (namespace.clone(), node(of.clone()));
        let ways = move || ways(&snapshot, &namespace, &beside, &target);
        let ways = tokio::task::spawn_blocking(ways).await;
        let mut left = MOST_BYTES;
        for way in ways.map_err(Error::internal)?? {
            let bytes: usize = way.iter().map(String::len).sum();
            if holders.chains.len() < MOST && bytes <= left {
                left -= bytes;
                holders.chains.push(way);
            } else {
                holders.more += 1;
            }
        }
        Ok(holders)
    }
}

fn missing(of: &Resource) -> Error {
    Error::not_found(format_args!("{} {}", of.kind(), of.id()))
}

/// One way from each root to `target`, the shortest first.
fn ways(
    tx: &dyn Read,
    namespace: &Namespace,
    beside: &Beside,
    target: &Node,
) -> Result<Vec<Vec<String>>> {
    let now = SystemTime::now();
    let graph = Graph::load_beside(tx, namespace, beside, now)?;
    let roots = roots(tx, namespace, &graph, now)?;
    let keepers = keepers(&graph);
    // From the target towards what keeps it: each place with the next one on its way.
    let start: Place<'_> = (target, false);
    let mut next: HashMap<Place<'_>, Place<'_>> = HashMap::new();
    let mut seen = HashSet::from([start]);
    let mut open = VecDeque::from([start]);
    let mut ways = Vec::new();
    let mut told = HashSet::new();
    while let Some(place) = open.pop_front() {
        let (node, needs_labels) = place;
        for Root { name, depth } in roots.get(node).into_iter().flatten() {
            let counts = *depth == Depth::Full || !needs_labels;
            if counts && told.insert((name, name.is_none().then_some(node))) {
                ways.push(way(name.as_ref(), place, &next));
            }
        }
        for (keeper, by_label) in keepers.get(node).into_iter().flatten() {
            let before: Place<'_> = (keeper, needs_labels || *by_label);
            if seen.insert(before) {
                next.insert(before, place);
                open.push_back(before);
            }
        }
    }
    Ok(ways)
}

/// The names on a way, from its root on.
fn way(
    root: Option<&String>,
    from: Place<'_>,
    next: &HashMap<Place<'_>, Place<'_>>,
) -> Vec<String> {
    let mut names: Vec<String> = root.cloned().into_iter().collect();
    let mut at = Some(&from);
    while let Some(place) = at {
        names.push(place.0.to_string());
        at = next.get(place);
    }
    names
}

/// Why an object is a root.
struct Root {
    /// What makes it one; none for what is one by itself.
    name: Option<String>,
    depth: Depth,
}

/// The roots of a namespace, by object.
fn roots(
    tx: &dyn Read,
    namespace: &Namespace,
    graph: &Graph,
    now: SystemTime,
) -> Result<HashMap<Node, Vec<Root>>> {
    let mut roots: HashMap<Node, Vec<Root>> = HashMap::new();
    let mut live = Vec::new();
    tx.scan(&all(Bucket::Lease, namespace), &mut |rest, record| {
        let [id] = names(rest)?;
        let labels = get_lease(id, record)?.labels;
        if expiry(&labels).is_none_or(|at| now <= at) {
            live.push((id.to_owned(), labels.contains_key(gc_label::FLAT)));
        }
        Ok(Flow::Continue(()))
    })?;
    for (id, is_flat) in live {
        for resource in leases::resources_of(tx, namespace, &id)? {
            let is_flat = is_flat && !matches!(resource, Resource::Ingest(_));
            let name = Some(Node::Lease(id.clone()).to_string());
            let depth = if is_flat { Depth::Flat } else { Depth::Full };
            let of = roots.entry(node(resource)).or_default();
            of.push(Root { name, depth });
        }
    }
    let mut unnamed: HashMap<&Node, usize> = HashMap::new();
    for (node, depth) in &graph.roots {
        let of = roots.entry(node.clone()).or_default();
        match node {
            Node::Content(_) | Node::Snapshot(..) => {
                // As often as leases have it, and once more for a label.
                let times = unnamed.entry(node).or_default();
                *times += 1;
                let by_lease = of.iter().filter(|root| root.name.is_some()).count();
                if *times == by_lease + 1 {
                    let name = Some(format!("label {} of {node}", gc_label::ROOT));
                    let depth = *depth;
                    of.push(Root { name, depth });
                }
            }
            // It holds what it lists, and that is told above.
            Node::Lease(_) => {}
            Node::Image(_)
            | Node::Ingest(_)
            | Node::Container(_)
            | Node::Stream(_)
            | Node::Mount(_)
            | Node::Network(_) => of.push(Root {
                name: None,
                depth: *depth,
            }),
        }
    }
    Ok(roots)
}

/// What keeps each object, and whether a label says so.
fn keepers(graph: &Graph) -> HashMap<&Node, Vec<(&Node, bool)>> {
    let mut keepers: HashMap<&Node, Vec<(&Node, bool)>> = HashMap::new();
    for (node, refs) in &graph.objects {
        for kept in &refs.solid {
            keepers.entry(kept).or_default().push((node, false));
        }
        for kept in &refs.loose {
            keepers.entry(kept).or_default().push((node, true));
        }
    }
    for (node, all) in &graph.kept_by {
        for kept in all {
            keepers.entry(kept).or_default().push((node, true));
        }
    }
    keepers
}
