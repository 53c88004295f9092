//! What keeps an object: the way from each root to it, as the collector goes.
//!
//! Invariant: what is told is what a collection would find in the same state of the records, and nobody waits
//! for it. It takes the memory of one namespace's references, as marking does.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use types::{Error, Holders, Namespace, Resource, Result, SnapshotKey, gc_label};

use super::Beside;
use super::link::Node;
use super::mark::{Depth, Graph, expiry};
use super::spare::node;
use crate::key::{Bucket, all, below, names, own};
use crate::kv::{Flow, Read};
use crate::record::{BlobRecord, SnapshotRecord, get_lease};
use crate::snapshots::{number_of, record_key};
use crate::{Metadata, leases, namespaces};

/// Ways in one answer, and bytes of them: names have any length, and somebody reads this.
const MOST: usize = 100;
const MOST_BYTES: usize = 1 << 20;

/// How long a snapshotter may take to tell how large a snapshot is.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is on a way, and whether that needs references by labels to count.
type Place<'a> = (&'a Node, bool);

impl Metadata {
    /// What keeps a blob or a snapshot of a namespace. While the records are read for it, `turn` is held, also
    /// when nobody waits for the answer any more.
    ///
    /// # Errors
    /// `NotFound`; `NotImplemented` for another object; those of the store.
    pub async fn holders<T: Send + 'static>(
        &self,
        namespace: &Namespace,
        of: &Resource,
        turn: T,
    ) -> Result<Holders> {
        let (this, namespace, of) = (self.clone(), namespace.clone(), of.clone());
        let read = move || {
            let _turn = turn;
            this.read_holders(&namespace, &of)
        };
        let read = tokio::task::spawn_blocking(read).await;
        let (mut holders, at) = read.map_err(Error::internal)??;
        if let Some((snapshotter, backend)) = at {
            holders.size = self.size_of(&snapshotter, &backend).await;
        }
        Ok(holders)
    }

    /// All but the size of a snapshot, and where that is told.
    fn read_holders(
        &self,
        namespace: &Namespace,
        of: &Resource,
    ) -> Result<(Holders, Option<(String, SnapshotKey)>)> {
        let tx = self.0.db.kv.read()?;
        let mut holders = Holders::default();
        let mut at = None;
        match of {
            Resource::Content(digest) => {
                let record = tx.get(&own(Bucket::Blob, namespace, digest.as_str()))?;
                let record = record.ok_or_else(|| missing(of))?;
                holders.size = Some(BlobRecord::decode(&record)?.size);
                for other in namespaces::known(&tx)? {
                    let at = own(Bucket::Blob, &other, digest.as_str());
                    if other != *namespace && tx.has(&at)? {
                        holders.elsewhere.push(other.to_string());
                    }
                }
            }
            Resource::Snapshot { snapshotter, key } => {
                let record = tx.get(&record_key(namespace, snapshotter, key.as_str()))?;
                let record = record.ok_or_else(|| missing(of))?;
                let backend = SnapshotRecord::decode(&record)?.backend;
                holders.elsewhere = adopters(&tx, namespace, snapshotter, &backend)?;
                at = Some((snapshotter.clone(), backend.parse()?));
            }
            Resource::Ingest(_) | Resource::Image(_) => {
                return Err(Error::not_implemented("what keeps an ingest or an image"));
            }
        }
        let beside = self.0.collector.beside();
        let target = node(of.clone());
        add_ways(&tx, namespace, &beside, &target, &mut holders)?;
        Ok((holders, at))
    }

    /// What a snapshotter says of a snapshot's size, if it does within [`PATIENCE`].
    async fn size_of(&self, snapshotter: &str, backend: &SnapshotKey) -> Option<u64> {
        let found = self.0.snapshotters.get(snapshotter)?;
        let usage = tokio::time::timeout(PATIENCE, found.snapshotter.usage(backend)).await;
        let late = |_| Err(Error::unavailable("it takes its time"));
        match usage.unwrap_or_else(late) {
            Ok(usage) => Some(usage.size),
            Err(error) => {
                tracing::warn!(snapshotter, %error, "the size of a snapshot is not known");
                None
            }
        }
    }
}

/// Other namespaces that have adopted the same snapshot. One that we have named is of one namespace only.
fn adopters(
    tx: &dyn Read,
    namespace: &Namespace,
    snapshotter: &str,
    backend: &str,
) -> Result<Vec<String>> {
    let mut adopters = Vec::new();
    if number_of(backend).is_some() {
        return Ok(adopters);
    }
    for other in namespaces::known(tx)? {
        if other == *namespace {
            continue;
        }
        let prefix = below(Bucket::Snapshot, &[other.as_str(), snapshotter]);
        let mut is_there = false;
        tx.scan(&prefix, &mut |_, record| {
            is_there = SnapshotRecord::decode(record)?.backend == backend;
            Ok(match is_there {
                true => Flow::Break(()),
                false => Flow::Continue(()),
            })
        })?;
        if is_there {
            adopters.push(other.to_string());
        }
    }
    Ok(adopters)
}

fn missing(of: &Resource) -> Error {
    Error::not_found(format_args!("{} {}", of.kind(), of.id()))
}

/// Adds one way from each root to `target`, the shortest first. Those beyond [`MOST`] are counted, and not made.
fn add_ways(
    tx: &dyn Read,
    namespace: &Namespace,
    beside: &Beside,
    target: &Node,
    holders: &mut Holders,
) -> Result<()> {
    let now = SystemTime::now();
    let graph = Graph::load_beside(tx, namespace, beside, now)?;
    let roots = roots(tx, namespace, &graph, now)?;
    let keepers = keepers(&graph);
    // From the target towards what keeps it: each place with the next one on its way.
    let start: Place<'_> = (target, false);
    let mut next: HashMap<Place<'_>, Place<'_>> = HashMap::new();
    let mut seen = HashSet::from([start]);
    let mut open = VecDeque::from([start]);
    let mut left = MOST_BYTES;
    let mut told = HashSet::new();
    while let Some(place) = open.pop_front() {
        let (node, needs_labels) = place;
        for Root { name, depth } in roots.get(node).into_iter().flatten() {
            let counts = *depth == Depth::Full || !needs_labels;
            if counts && told.insert((name, name.is_none().then_some(node))) {
                add_way(holders, &mut left, || way(name.as_ref(), place, &next));
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
    Ok(())
}

/// Adds a way, or counts it where there is no room for another one.
fn add_way(holders: &mut Holders, left: &mut usize, way: impl FnOnce() -> Vec<String>) {
    let is_full = holders.more > 0 || holders.chains.len() == MOST;
    let way = (!is_full).then(way);
    let bytes = |way: &Vec<String>| way.iter().map(String::len).sum::<usize>();
    match way.filter(|way| bytes(way) <= *left) {
        Some(way) => {
            *left -= bytes(&way);
            holders.chains.push(way);
        }
        None => holders.more += 1,
    }
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
    let mut times: HashMap<&Node, usize> = HashMap::new();
    for (node, depth) in &graph.roots {
        let name = match node {
            Node::Content(_) | Node::Snapshot(..) => {
                Some(format!("label {} of {node}", gc_label::ROOT))
            }
            // It holds what it lists, and that is told above.
            Node::Lease(_) => continue,
            Node::Image(_)
            | Node::Ingest(_)
            | Node::Container(_)
            | Node::Stream(_)
            | Node::Mount(_)
            | Node::Network(_) => None,
        };
        let of = roots.entry(node.clone()).or_default();
        // As often as leases have it, and once more for what it is by itself.
        let times = times.entry(node).or_default();
        *times += 1;
        if *times == of.len() + 1 {
            let depth = *depth;
            of.push(Root { name, depth });
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
