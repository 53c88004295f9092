//! Marking against a naive model: random histories of namespaces, written record by record, with
//! collections in between. Nothing waits and nothing is on disk, so there can be many of them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::LazyLock;
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use proptest::test_runner::RngAlgorithm;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use types::{Digest, Labels, Lease, Namespace};

use super::naive::{Condition, EACH, Holder, Id, KINDS, Kind, Object, World};
use crate::fixture::{container, image, namespace, sha};
use crate::gc::Beside;
use crate::gc::link::Node;
use crate::gc::mark::Marked;
use crate::key::{Bucket, below, key, own};
use crate::kv::{Flow, Read, Visit};
use crate::record::{
    BlobRecord, IngestRecord, SnapshotRecord, put_container, put_image, put_labels, put_lease,
};

/// Histories of a run.
const HISTORIES: u32 = 100_000;
/// Longest history, in steps.
const STEPS: usize = 28;
/// Leases that there may be in a namespace.
const LEASES: u64 = 3;
/// Hours at which something can be over.
const HOURS: u64 = 6;
const SPACES: [&str; 2] = ["ns", "other"];

/// Records in memory.
#[derive(Default)]
struct Map(BTreeMap<Vec<u8>, Vec<u8>>);

impl Read for Map {
    fn get(&self, key: &[u8]) -> types::Result<Option<Vec<u8>>> {
        Ok(self.0.get(key).cloned())
    }

    fn scan(&self, prefix: &[u8], visit: &mut Visit<'_>) -> types::Result<()> {
        for (key, value) in self.0.range(prefix.to_vec()..) {
            let Some(rest) = key.strip_prefix(prefix) else {
                break;
            };
            if let Flow::Break(()) = visit(rest, value)? {
                break;
            }
        }
        Ok(())
    }
}

/// Choices out of one number, which shrinks as one.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        let side = self.0 % sides;
        self.0 /= sides;
        side
    }

    fn small(&mut self, sides: u64) -> u8 {
        u8::try_from(self.roll(sides)).unwrap()
    }

    /// One of the first `kinds`.
    fn id(&mut self, kinds: u64) -> Id {
        let kind = KINDS[usize::from(self.small(kinds))];
        Id(kind, self.small(u64::from(EACH)))
    }

    fn ids(&mut self, most: u64, kinds: u64) -> Vec<Id> {
        (0..self.roll(most + 1)).map(|_| self.id(kinds)).collect()
    }

    /// Sometimes nothing, else an hour.
    fn hour(&mut self) -> Option<i32> {
        i32::from(self.small(HOURS + 1))
            .checked_sub(1)
            .filter(|hour| *hour >= 0)
    }

    fn object(&mut self) -> Object {
        let solid = self.small(u64::from(EACH) + 1).checked_sub(1);
        let root = self.roll(8) == 7;
        // Ingests cannot be named by labels, containers only backwards.
        let keeps = self.ids(2, 4);
        let kept_by = self.ids(1, 5);
        let (expires, used) = (self.hour(), self.hour());
        let condition = (self.roll(3) == 0).then(|| Condition {
            snapshot: Id(
                KINDS[1 + usize::from(self.small(2))],
                self.small(u64::from(EACH)),
            ),
            younger: self.roll(2) == 0,
            hours: i32::from(self.small(HOURS)),
        });
        Object {
            solid,
            keeps,
            kept_by,
            root,
            expires,
            condition,
            used,
        }
    }
}

fn space(n: usize) -> &'static Namespace {
    static ALL: LazyLock<[Namespace; 2]> = LazyLock::new(|| SPACES.map(namespace));
    &ALL[n]
}

fn digest(n: u8) -> &'static Digest {
    static ALL: LazyLock<Vec<Digest>> = LazyLock::new(|| (0..EACH).map(|n| sha(&[n])).collect());
    &ALL[usize::from(n)]
}

fn at(hour: i32) -> SystemTime {
    let hours = u64::try_from(hour).unwrap();
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000 + 3600 * hours)
}

fn text(hour: i32) -> String {
    static ALL: LazyLock<Vec<String>> = LazyLock::new(|| {
        let text = |n| OffsetDateTime::from(at(n)).format(&Rfc3339).unwrap();
        (0..i32::try_from(HOURS).unwrap()).map(text).collect()
    });
    ALL[usize::try_from(hour).unwrap()].clone()
}

fn title(Id(kind, n): Id) -> String {
    match kind {
        Kind::Content => digest(n).to_string(),
        // The same name under both snapshotters.
        Kind::Overlay | Kind::Native => format!("snapshot{n}"),
        Kind::Image => format!("image{n}"),
        Kind::Container => format!("container{n}"),
        Kind::Ingest => format!("ingest{n}"),
    }
}

/// The word for a kind in the labels of the collector.
fn word(kind: Kind) -> &'static str {
    match kind {
        Kind::Content => "content",
        Kind::Overlay => "snapshot.overlay",
        Kind::Native => "snapshot.native",
        Kind::Image => "image",
        Kind::Container => "container",
        Kind::Ingest => "ingest",
    }
}

fn labels(object: &Object) -> Labels {
    let mut labels = Labels::new();
    for (n, other) in object.keeps.iter().enumerate() {
        let key = format!("containerd.io/gc.ref.{}/{n}", word(other.0));
        labels.insert(key, title(*other));
    }
    for (n, other) in object.kept_by.iter().enumerate() {
        let key = format!("containerd.io/gc.bref.{}/{n}", word(other.0));
        labels.insert(key, title(*other));
    }
    if object.root {
        labels.insert("containerd.io/gc.root".into(), "x".into());
    }
    if let Some(hour) = object.expires {
        labels.insert("containerd.io/gc.expire".into(), text(hour));
    }
    if let Some(hour) = object.used {
        labels.insert("containerd.io/gc.cond.value-usedat".into(), text(hour));
    }
    if let Some(condition) = object.condition {
        let sign = if condition.younger { '<' } else { '>' };
        let name = title(condition.snapshot);
        labels.insert(
            format!("containerd.io/gc.cond.{}", word(condition.snapshot.0)),
            format!("usedat{sign}{}h|{name}", condition.hours),
        );
    }
    labels
}

fn node(id: Id) -> Node {
    let name = title(id);
    match id.0 {
        Kind::Content => Node::Content(name),
        Kind::Overlay => Node::Snapshot("overlay".into(), name),
        Kind::Native => Node::Snapshot("native".into(), name),
        Kind::Image => Node::Image(name),
        Kind::Container => Node::Container(name),
        Kind::Ingest => Node::Ingest(name),
    }
}

fn can_be_leased(id: &Id) -> bool {
    id.0 != Kind::Container
}

fn lease(n: u8) -> String {
    format!("lease{n}")
}

/// The key of an object's record.
fn record_key(ns: &Namespace, node: &Node) -> Vec<u8> {
    match node {
        Node::Content(digest) => own(Bucket::Blob, ns, digest),
        Node::Snapshot(sn, name) => key(Bucket::Snapshot, &[ns.as_str(), sn, name]),
        Node::Image(name) => own(Bucket::Image, ns, name),
        Node::Ingest(reference) => own(Bucket::Ingest, ns, reference),
        Node::Stream(_) | Node::Mount(_) | Node::Network(_) => unreachable!("no records"),
        Node::Container(id) => own(Bucket::Container, ns, id),
        Node::Lease(id) => own(Bucket::Lease, ns, id),
    }
}

fn record(id: Id, object: &Object) -> Vec<u8> {
    let (name, labels) = (title(id), labels(object));
    match id.0 {
        Kind::Content => BlobRecord {
            size: 1,
            labels,
            created_at: at(0),
            updated_at: at(0),
        }
        .encode(),
        Kind::Overlay | Kind::Native => SnapshotRecord {
            backend: format!("ns/1/{name}"),
            parent: object.solid.map(|n| title(Id(id.0, n))),
            labels,
            created_at: at(0),
            updated_at: at(0),
            kind: None,
        }
        .encode(),
        Kind::Image => {
            let mut record = image(&name, digest(object.solid.unwrap_or(0)));
            record.labels = labels;
            put_image(&record)
        }
        Kind::Container => {
            let mut record = container(&name);
            record.labels = labels;
            if let Some(n) = object.solid {
                record.snapshotter = "overlay".into();
                record.snapshot_key = title(Id(Kind::Overlay, n));
            }
            put_container(&record)
        }
        Kind::Ingest => IngestRecord {
            backend: format!("ns/1/{name}"),
            expires_at: object.expires.map(at),
            expected: object.solid.map(|n| digest(n).clone()),
        }
        .encode(),
    }
}

/// The same history told to the records and to the model.
#[derive(Default)]
struct Both {
    map: Map,
    worlds: [World; 2],
    hour: i32,
}

impl Both {
    fn new() -> Self {
        let mut both = Self::default();
        for ns in SPACES {
            let record = put_labels(&Labels::new());
            both.map.0.insert(key(Bucket::Namespace, &[ns]), record);
        }
        both
    }

    /// One step of a history.
    fn step(&mut self, number: u64) -> Result<(), TestCaseError> {
        let mut dice = Dice(number);
        let kind = dice.roll(10);
        // References do not leave their namespace: most of it happens in one.
        let here = usize::from(dice.roll(4) == 3);
        match kind {
            0..=4 => {
                let (id, object) = (dice.id(6), dice.object());
                let at = record_key(space(here), &node(id));
                self.map.0.insert(at, record(id, &object));
                self.worlds[here].objects.insert(id, object);
            }
            5 => {
                let id = dice.id(6);
                let at = record_key(space(here), &node(id));
                self.map.0.remove(&at);
                self.worlds[here].objects.remove(&id);
            }
            6 | 7 => self.put_lease(here, &mut dice),
            8 => self.remove_lease(here, dice.small(LEASES)),
            _ => {
                let last = i32::try_from(HOURS).unwrap() + 1;
                self.hour = last.min(self.hour + i32::from(dice.small(3)));
                return self.collect();
            }
        }
        Ok(())
    }

    fn put_lease(&mut self, here: usize, dice: &mut Dice) {
        let n = dice.small(LEASES);
        self.remove_lease(here, n);
        let holder = Holder {
            flat: dice.roll(2) == 0,
            expires: dice.hour(),
            lists: dice.ids(4, 6).into_iter().filter(can_be_leased).collect(),
        };
        let mut labels = Labels::new();
        if holder.flat {
            labels.insert("containerd.io/gc.flat".into(), "1".into());
        }
        if let Some(hour) = holder.expires {
            labels.insert("containerd.io/gc.expire".into(), text(hour));
        }
        let (ns, id) = (SPACES[here], lease(n));
        let record = Lease {
            id: id.parse().unwrap(),
            labels,
            created_at: at(0),
        };
        let at = own(Bucket::Lease, space(here), &id);
        self.map.0.insert(at, put_lease(&record));
        for listed in &holder.lists {
            let name = title(*listed);
            let names = match listed.0 {
                Kind::Overlay => vec![ns, &id, "snapshots", "overlay", &name],
                Kind::Native => vec![ns, &id, "snapshots", "native", &name],
                Kind::Content => vec![ns, &id, "content", &name],
                Kind::Image => vec![ns, &id, "images", &name],
                Kind::Ingest => vec![ns, &id, "ingests", &name],
                Kind::Container => unreachable!("filtered out"),
            };
            self.map.0.insert(key(Bucket::Leased, &names), Vec::new());
        }
        self.worlds[here].holders.insert(n, holder);
    }

    fn remove_lease(&mut self, here: usize, n: u8) {
        let (ns, id) = (SPACES[here], lease(n));
        self.map.0.remove(&own(Bucket::Lease, space(here), &id));
        let listed = below(Bucket::Leased, &[ns, &id]);
        self.map.0.retain(|key, _| !key.starts_with(&listed));
        self.worlds[here].holders.remove(&n);
    }

    /// Marks while the history goes on, then sweeps in steps of `most` with one more of its steps between
    /// each two: nothing may be in use when it goes, whatever happened, and what is still to go misses
    /// nothing.
    fn collect_beside(
        &mut self,
        during: &[u64],
        between: &[u64],
        most: usize,
    ) -> Result<(), TestCaseError> {
        let hour = self.hour;
        let mut before = self.map.0.clone();
        let mut marked = Marked::new(&self.map, at(hour), &Beside::default()).unwrap();
        let origin = self.worlds.clone();
        let mut gone = BTreeSet::new();
        for step in during {
            self.step(*step)?;
        }
        let mut between = between.iter();
        while !marked.is_clean() {
            let after = &self.map.0;
            let is_other = |key: &&Vec<u8>| before.get(*key) != after.get(*key);
            let touched: BTreeSet<_> = before.keys().chain(after.keys()).filter(is_other).collect();
            let touched: Vec<_> = touched.into_iter().cloned().collect();
            marked.spare(&self.map, &touched).unwrap();
            before = self.map.0.clone();
            for (namespace, doubt) in &mut marked.doubts {
                let here = SPACES.iter().position(|ns| *ns == namespace.as_str());
                let here = here.unwrap();
                let kept = self.worlds[here].kept(hour);
                let kept: BTreeSet<Node> = kept.into_iter().map(node).collect();
                let mut left = most;
                while let Some((swept, _)) = doubt.next(left) {
                    left = left.saturating_sub(1);
                    prop_assert!(!kept.contains(&swept), "{swept:?} in {namespace} at {hour}");
                    self.sweep(here, &swept);
                    gone.insert((here, swept));
                }
                for left in doubt.garbage() {
                    let misses = misses(&origin[here], left, |other| gone.contains(&(here, other)));
                    prop_assert_eq!(misses, None, "{:?} in {} at {}", left, namespace, hour);
                }
            }
            if let Some(step) = between.next() {
                self.step(*step)?;
            }
        }
        Ok(())
    }

    /// Removes a record as a sweep does.
    fn sweep(&mut self, here: usize, swept: &Node) {
        let objects = &mut self.worlds[here].objects;
        objects.retain(|id, _| node(*id) != *swept);
        self.map.0.remove(&record_key(space(here), swept));
        let mut leases = self.worlds[here].holders.keys().copied();
        if let Some(n) = leases.find(|n| Node::Lease(lease(*n)) == *swept) {
            self.remove_lease(here, n);
        }
    }

    /// Marks, compares and removes the garbage from both.
    fn collect(&mut self) -> Result<(), TestCaseError> {
        let marked = Marked::new(&self.map, at(self.hour), &Beside::default()).unwrap();
        let mut found: BTreeMap<_, _> = marked.doubts.into_iter().collect();
        for (here, ns) in SPACES.into_iter().enumerate() {
            let nodes = found.remove(space(here)).unwrap_or_default();
            let found: BTreeSet<Node> = nodes.garbage().cloned().collect();
            let world = &mut self.worlds[here];
            let kept = world.kept(self.hour);
            let gone = world.objects.keys().filter(|id| !kept.contains(id));
            let over = world.over(self.hour);
            let leases = over.iter().map(|n| Node::Lease(lease(*n)));
            let want: BTreeSet<Node> = gone.map(|id| node(*id)).chain(leases).collect();
            prop_assert_eq!(&found, &want, "in {} at {}", ns, self.hour);
            world.objects.retain(|id, _| kept.contains(id));
            for node in &found {
                self.map.0.remove(&record_key(space(here), node));
            }
            for n in over {
                self.remove_lease(here, n);
            }
        }
        Ok(())
    }
}

/// What an object of `world` names and `is_gone`: a circle goes as a whole.
fn misses(world: &World, of: &Node, is_gone: impl Fn(Node) -> bool) -> Option<Node> {
    let id = world.objects.keys().find(|id| node(**id) == *of)?;
    let named = world.names(*id);
    named
        .into_iter()
        .map(node)
        .find(|other| is_gone(other.clone()))
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: HISTORIES,
        // Cheap dice: these histories need no better.
        rng_algorithm: RngAlgorithm::XorShift,
        ..ProptestConfig::default()
    })]

    #[test]
    fn garbage_is_what_the_naive_model_calls_garbage(
        history in prop::collection::vec(any::<u64>(), 0..STEPS)
    ) {
        let mut both = Both::new();
        for step in history {
            both.step(step)?;
        }
        both.collect()?;
        // What is left after that is no garbage at the same hour.
        both.collect()?;
    }

}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: HISTORIES / 4,
        rng_algorithm: RngAlgorithm::XorShift,
        ..ProptestConfig::default()
    })]

    #[test]
    fn what_is_taken_up_while_it_is_marked_or_swept_is_no_garbage(
        history in prop::collection::vec(any::<u64>(), 0..STEPS),
        during in prop::collection::vec(any::<u64>(), 0..4),
        between in prop::collection::vec(any::<u64>(), 0..4),
        most in 1..4_usize
    ) {
        let mut both = Both::new();
        for step in history {
            both.step(step)?;
        }
        both.collect_beside(&during, &between, most)?;
        both.collect()?;
    }
}
