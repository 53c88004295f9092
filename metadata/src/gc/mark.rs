//! Marking: what can be reached from a root. References never leave a namespace, so each is marked by
//! itself.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::time::SystemTime;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Held, Labels, Namespace, Resource, Result, gc_label};

use super::condition::{Condition, conditions, used_at};
use super::link::{Link, Node, links};
use super::spare::node;
use super::{Beside, LeasedStream};
use crate::db::earliest;
use crate::key::{Bucket, all, names};
use crate::kv::{Flow, Read};
use crate::record::{
    BlobRecord, IngestRecord, SnapshotRecord, get_container_refs, get_image, get_lease,
};
use crate::{leases, namespaces};

/// How much a reference keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Depth {
    /// The object and what it cannot do without: a snapshot's parents, an image's target.
    Flat,
    /// Also what its labels name.
    Full,
}

/// An object's references.
#[derive(Debug, Default)]
pub(super) struct Refs {
    /// What it cannot do without.
    pub(super) solid: Vec<Node>,
    /// What its labels name.
    pub(super) loose: Vec<Node>,
}

/// The objects of one namespace and their references.
#[derive(Debug, Default)]
pub(super) struct Graph {
    pub(super) objects: BTreeMap<Node, Refs>,
    pub(super) roots: Vec<(Node, Depth)>,
    /// Objects that live as long as another one does.
    pub(super) kept_by: HashMap<Node, Vec<Node>>,
    /// References of images and blobs that hold as long as a snapshot is in use.
    conditional: Vec<(Node, Condition)>,
    /// When snapshots were used.
    used: HashMap<Node, Vec<SystemTime>>,
    /// When the first of what is kept until a time may become garbage.
    expires: Option<SystemTime>,
}

/// All namespaces, loaded and marked: the one way to a sweep.
#[derive(Debug)]
pub(crate) struct Marked {
    pub(super) doubts: Vec<(Namespace, Doubt)>,
    expires: Option<SystemTime>,
}

/// The objects of one namespace that were not marked, or not in full, with what they name. What is
/// garbage is taken away step by step.
#[derive(Debug, Default)]
pub(super) struct Doubt {
    garbage: BTreeMap<Node, Refs>,
    /// Marked without what their labels name.
    flat: BTreeMap<Node, Refs>,
    kept_by: HashMap<Node, Vec<Node>>,
    /// The garbage, each before what it names.
    line: VecDeque<Node>,
    /// How many at the end of the line name each other in a circle, or are named by one that does.
    circle: usize,
}

impl Marked {
    /// Marks what is reachable at `now` in the state that `tx` sees.
    pub(crate) fn new(tx: &dyn Read, now: SystemTime, beside: &Beside) -> Result<Self> {
        let (mut doubts, mut expires) = (Vec::new(), None);
        let known = namespaces::known(tx)?;
        let mounts = beside.mounts.iter().map(|mount| &mount.namespace);
        let networks = beside.networks.iter().map(|network| &network.namespace);
        // In a namespace that is gone there is nothing that could keep a mount.
        let beside_records = mounts.chain(networks).filter(|ns| !known.contains(ns));
        let gone: BTreeSet<_> = beside_records.cloned().collect();
        for namespace in known {
            let graph = Graph::load_beside(tx, &namespace, beside, now)?;
            expires = earliest(expires, graph.expires);
            let doubt = graph.unmarked();
            doubts.push((namespace, doubt));
        }
        for namespace in gone {
            let mut graph = Graph::default();
            graph.add_mounts(&namespace, &beside.mounts);
            graph.add_networks(&namespace, &beside.networks);
            doubts.push((namespace, graph.unmarked()));
        }
        Ok(Self { doubts, expires })
    }

    /// The first time at which something that was kept until then may be garbage.
    pub(super) fn expires(&self) -> Option<SystemTime> {
        self.expires
    }

    /// True when there is no garbage.
    pub(crate) fn is_clean(&self) -> bool {
        self.doubts
            .iter()
            .all(|(_, doubt)| doubt.garbage.is_empty())
    }
}

impl Doubt {
    /// Takes the next object out of the garbage, none before one that names it: who takes up what is
    /// left finds all of it. A circle goes in one piece, so with nothing `left` to take there is a next
    /// one within it still.
    pub(super) fn next(&mut self, left: usize) -> Option<(Node, Refs)> {
        while left > 0 || self.line.len() < self.circle {
            let node = self.line.pop_front()?;
            // Else it was taken up.
            if let Some(refs) = self.garbage.remove(&node) {
                return Some((node, refs));
            }
        }
        None
    }

    /// Puts the garbage into an order in which it can go step by step.
    fn line_up(&mut self) {
        let mut named: HashMap<&Node, usize> = HashMap::new();
        for (node, refs) in &self.garbage {
            for next in self.keeps(node, refs) {
                *named.entry(next).or_default() += 1;
            }
        }
        let is_free = |node: &&Node| !named.contains_key(*node);
        let mut free: Vec<&Node> = self.garbage.keys().filter(is_free).collect();
        let mut line = VecDeque::with_capacity(self.garbage.len());
        while let Some(node) = free.pop() {
            line.push_back(node.clone());
            for next in self.keeps(node, &self.garbage[node]) {
                if let Some(count) = named.get_mut(next) {
                    *count -= 1;
                    if *count == 0 {
                        named.remove(next);
                        free.push(next);
                    }
                }
            }
        }
        let circle = self.garbage.keys().filter(|node| named.contains_key(node));
        let before = line.len();
        line.extend(circle.cloned());
        self.circle = line.len() - before;
        self.line = line;
    }

    /// The other garbage that `node` keeps.
    fn keeps<'a>(&'a self, node: &'a Node, refs: &'a Refs) -> impl Iterator<Item = &'a Node> {
        let back = self.kept_by.get(node).map_or(&[][..], Vec::as_slice);
        let all = refs.solid.iter().chain(&refs.loose).chain(back);
        all.filter(move |next| *next != node && self.garbage.contains_key(*next))
    }

    /// What is left of the garbage.
    #[cfg(test)]
    pub(super) fn garbage(&self) -> impl Iterator<Item = &Node> {
        self.garbage.keys()
    }

    /// Puts back what was taken last and has not gone.
    pub(super) fn put_back(&mut self, node: Node, refs: Refs) {
        self.garbage.insert(node.clone(), refs);
        self.line.push_front(node);
    }

    /// An object that is no garbage of ours any more.
    pub(super) fn forget(&mut self, node: &Node) {
        self.garbage.remove(node);
    }

    /// Takes objects, and all that they keep, out of the garbage; true when one was in it.
    pub(super) fn spare(&mut self, mut open: Vec<Node>) -> bool {
        let mut spared = false;
        while let Some(node) = open.pop() {
            let found = self.garbage.remove(&node);
            spared |= found.is_some();
            if let Some(refs) = found.or_else(|| self.flat.remove(&node)) {
                open.extend(refs.solid);
                open.extend(refs.loose);
            }
            open.extend(self.kept_by.remove(&node).unwrap_or_default());
        }
        spared
    }
}

impl Graph {
    /// The objects that no root reaches, and those that are kept without what they name.
    pub(super) fn unmarked(self) -> Doubt {
        let marks = self.reach();
        let mut doubt = Doubt {
            kept_by: self.kept_by,
            ..Doubt::default()
        };
        for (node, refs) in self.objects {
            match marks.get(&node) {
                Some(Depth::Full) => {}
                Some(Depth::Flat) => drop(doubt.flat.insert(node, refs)),
                None => drop(doubt.garbage.insert(node, refs)),
            }
        }
        doubt.line_up();
        doubt
    }

    fn reach(&self) -> HashMap<Node, Depth> {
        let mut marks = HashMap::new();
        let mut open = self.roots.clone();
        while let Some((node, depth)) = open.pop() {
            if marks.get(&node).is_some_and(|known| *known >= depth) {
                continue;
            }
            if let Some(refs) = self.objects.get(&node) {
                open.extend(refs.solid.iter().map(|next| (next.clone(), depth)));
                if depth == Depth::Full {
                    open.extend(refs.loose.iter().map(|next| (next.clone(), depth)));
                }
            }
            if depth == Depth::Full
                && let Some(kept) = self.kept_by.get(&node)
            {
                open.extend(kept.iter().map(|next| (next.clone(), depth)));
            }
            marks.insert(node, depth);
        }
        marks
    }

    fn add(&mut self, node: Node, solid: Vec<Node>, labels: &Labels, can_root: bool) {
        let mut refs = Refs {
            solid,
            loose: Vec::new(),
        };
        for link in links(labels) {
            match link {
                Link::Root if can_root => self.roots.push((node.clone(), Depth::Full)),
                Link::Root => {}
                Link::Keeps(other) => refs.loose.push(other),
                Link::KeptBy(other) => {
                    self.kept_by.entry(other).or_default().push(node.clone());
                }
            }
        }
        self.objects.insert(node, refs);
    }

    /// A stream lives as long as its lease, or as what names it.
    fn add_streams(&mut self, namespace: &Namespace, streams: &[LeasedStream]) {
        for stream in streams.iter().filter(|s| s.namespace == *namespace) {
            let node = Node::Stream(stream.id.clone());
            let lease = Node::Lease(stream.lease.to_string());
            self.kept_by.entry(lease).or_default().push(node.clone());
            self.objects.insert(node, Refs::default());
        }
    }

    /// A mount lives as long as its lease, as what its labels name, or as what names it. Parity:
    /// core/mount/manager: of its labels only back references count.
    fn add_mounts(&mut self, namespace: &Namespace, mounts: &[Held]) {
        for mount in mounts.iter().filter(|m| m.namespace == *namespace) {
            let node = Node::Mount(mount.name.clone());
            for keeper in keepers(mount) {
                self.kept_by.entry(keeper).or_default().push(node.clone());
            }
            self.objects.insert(node, Refs::default());
        }
    }

    /// A network made under a lease, or with labels that name a keeper, lives as long as those, or as what
    /// names it; any other one until it is deleted.
    fn add_networks(&mut self, namespace: &Namespace, networks: &[Held]) {
        for network in networks.iter().filter(|n| n.namespace == *namespace) {
            let node = Node::Network(network.name.clone());
            let keepers = keepers(network);
            if keepers.is_empty() || links(&network.labels).any(|link| link == Link::Root) {
                self.root(node.clone());
            }
            // An interface stays while the namespace does that it is in.
            let place = network.name.split_once('/').map(|(place, _)| place);
            let place = place.filter(|place| !place.is_empty());
            let place = place.map(|place| Node::Network(place.to_owned()));
            for keeper in keepers.into_iter().chain(place) {
                self.kept_by.entry(keeper).or_default().push(node.clone());
            }
            self.objects.insert(node, Refs::default());
        }
    }

    fn root(&mut self, node: Node) {
        self.roots.push((node, Depth::Full));
    }

    /// True when the labels carry a time that is over; one that is to come is noted.
    fn is_expired(&mut self, labels: &Labels, now: SystemTime) -> bool {
        let at = expiry(labels);
        let is_over = at.is_some_and(|at| now > at);
        if !is_over {
            self.expires = earliest(self.expires, at);
        }
        is_over
    }

    pub(super) fn load(tx: &dyn Read, namespace: &Namespace, now: SystemTime) -> Result<Self> {
        let mut graph = Self::default();
        graph.load_leases(tx, namespace, now)?;
        graph.load_records(tx, namespace, now)?;
        graph.load_content(tx, namespace, now)?;
        graph.settle(now);
        Ok(graph)
    }

    /// The same with what lives beside the records.
    pub(super) fn load_beside(
        tx: &dyn Read,
        ns: &Namespace,
        beside: &Beside,
        now: SystemTime,
    ) -> Result<Self> {
        let mut graph = Self::load(tx, ns, now)?;
        graph.add_streams(ns, &beside.streams);
        graph.add_mounts(ns, &beside.mounts);
        graph.add_networks(ns, &beside.networks);
        Ok(graph)
    }

    /// Turns the conditional references that hold into others: all values are known.
    fn settle(&mut self, now: SystemTime) {
        for (node, condition) in std::mem::take(&mut self.conditional) {
            let used = self.used.get(&condition.snapshot);
            if let Some(used) = used
                && condition.holds(used, now)
            {
                self.expires = earliest(self.expires, condition.until(used, now));
                let kept = self.kept_by.entry(node).or_default();
                kept.push(condition.snapshot);
            }
        }
    }

    fn note_conditions(&mut self, node: &Node, labels: &Labels) {
        let found = conditions(labels).map(|condition| (node.clone(), condition));
        self.conditional.extend(found);
    }

    fn load_leases(&mut self, tx: &dyn Read, namespace: &Namespace, now: SystemTime) -> Result<()> {
        let mut live = Vec::new();
        tx.scan(&all(Bucket::Lease, namespace), &mut |rest, record| {
            let [id] = names(rest)?;
            let labels = get_lease(id, record)?.labels;
            if !self.is_expired(&labels, now) {
                let flat = labels.contains_key(gc_label::FLAT);
                live.push((id.to_owned(), if flat { Depth::Flat } else { Depth::Full }));
            }
            self.objects
                .insert(Node::Lease(id.to_owned()), Refs::default());
            Ok(Flow::Continue(()))
        })?;
        for (id, depth) in live {
            for resource in leases::resources_of(tx, namespace, &id)? {
                // There is nothing flat about an ingest.
                let depth = match &resource {
                    Resource::Ingest(_) => Depth::Full,
                    Resource::Content(_) | Resource::Image(_) | Resource::Snapshot { .. } => depth,
                };
                self.roots.push((node(resource), depth));
            }
            self.root(Node::Lease(id));
        }
        Ok(())
    }

    fn load_records(&mut self, tx: &dyn Read, ns: &Namespace, now: SystemTime) -> Result<()> {
        tx.scan(&all(Bucket::Image, ns), &mut |rest, record| {
            let [name] = names(rest)?;
            let image = get_image(name, record)?;
            let node = Node::Image(name.to_owned());
            if !self.is_expired(&image.labels, now) {
                self.root(node.clone());
            }
            self.note_conditions(&node, &image.labels);
            let target = vec![Node::Content(image.target.digest.to_string())];
            self.add(node, target, &image.labels, false);
            Ok(Flow::Continue(()))
        })?;
        tx.scan(&all(Bucket::Container, ns), &mut |rest, record| {
            let [id] = names(rest)?;
            let (labels, snapshotter, key) = get_container_refs(record)?;
            let node = Node::Container(id.to_owned());
            let mut solid = Vec::new();
            if !snapshotter.is_empty() {
                solid.push(Node::Snapshot(snapshotter, key));
            }
            self.root(node.clone());
            self.add(node, solid, &labels, false);
            Ok(Flow::Continue(()))
        })
    }

    fn load_content(&mut self, tx: &dyn Read, ns: &Namespace, now: SystemTime) -> Result<()> {
        tx.scan(&all(Bucket::Blob, ns), &mut |rest, record| {
            let [digest] = names(rest)?;
            let labels = BlobRecord::decode(record)?.labels;
            let node = Node::Content(digest.to_owned());
            self.note_conditions(&node, &labels);
            self.add(node, Vec::new(), &labels, true);
            Ok(Flow::Continue(()))
        })?;
        tx.scan(&all(Bucket::Ingest, ns), &mut |rest, record| {
            let [reference] = names(rest)?;
            let record = IngestRecord::decode(record)?;
            let node = Node::Ingest(reference.to_owned());
            let expires = record.expires_at.filter(|at| *at >= now);
            if expires.is_some() {
                self.expires = earliest(self.expires, expires);
                self.root(node.clone());
            }
            let expected = record
                .expected
                .map(|digest| Node::Content(digest.to_string()));
            let refs = Refs {
                solid: expected.into_iter().collect(),
                loose: Vec::new(),
            };
            self.objects.insert(node, refs);
            Ok(Flow::Continue(()))
        })?;
        tx.scan(&all(Bucket::Snapshot, ns), &mut |rest, record| {
            let [snapshotter, key] = names(rest)?;
            let record = SnapshotRecord::decode(record)?;
            let node = Node::Snapshot(snapshotter.to_owned(), key.to_owned());
            let parent = record
                .parent
                .map(|parent| Node::Snapshot(snapshotter.to_owned(), parent));
            for at in used_at(&record.labels) {
                self.used.entry(node.clone()).or_default().push(at);
            }
            self.add(node, parent.into_iter().collect(), &record.labels, true);
            Ok(Flow::Continue(()))
        })
    }
}

/// Its lease, and what its labels say that it is kept by.
fn keepers(held: &Held) -> Vec<Node> {
    let lease = held.lease.as_ref();
    let lease = lease.map(|lease| Node::Lease(lease.to_string()));
    let labels = links(&held.labels).filter_map(|link| match link {
        Link::KeptBy(other) => Some(other),
        Link::Root | Link::Keeps(_) => None,
    });
    lease.into_iter().chain(labels).collect()
}

/// The time in labels after which they root nothing. One that cannot be read is none.
pub(crate) fn expiry(labels: &Labels) -> Option<SystemTime> {
    let text = labels.get(gc_label::EXPIRE)?;
    match time(text) {
        Ok(at) => Some(at),
        Err(error) => {
            tracing::info!(%text, %error, "expiry ignored");
            None
        }
    }
}

/// When a collection is due for what labels of an image say.
pub(crate) fn due(labels: &Labels) -> Option<SystemTime> {
    earliest(expiry(labels), condition_due(labels))
}

/// At once, for labels that keep a snapshot while it is in use, or tell when it was: until when that holds
/// only a collection finds, which sees both.
pub(crate) fn condition_due(labels: &Labels) -> Option<SystemTime> {
    let mut at_stake = conditions(labels)
        .map(drop)
        .chain(used_at(labels).map(drop));
    at_stake.next().map(|()| SystemTime::now())
}

/// The time that a label carries.
pub(super) fn time(text: &str) -> Result<SystemTime, time::error::Parse> {
    OffsetDateTime::parse(text, &Rfc3339).map(SystemTime::from)
}
