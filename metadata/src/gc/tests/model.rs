//! Marking against a naive model: random namespaces, written record by record, and a fixed point that
//! is computed from the description alone, without the code under test.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use proptest::prelude::*;
use types::{Labels, Lease};

use crate::fixture::{container, image, namespace, sha};
use crate::gc::link::Node;
use crate::gc::mark::Marked;
use crate::key::{Bucket, key, own};
use crate::kv::{Flow, Read, Visit};
use crate::record::{
    BlobRecord, IngestRecord, SnapshotRecord, put_container, put_image, put_labels, put_lease,
};

/// Records in memory.
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

/// Kinds that references can name, and how many objects of each there may be.
const KINDS: [&str; 5] = ["content", "snapshot", "image", "container", "ingest"];
const EACH: usize = 4;

type Id = (usize, usize);

#[derive(Clone, Debug)]
struct Object {
    id: Id,
    /// Parent of a snapshot, target of an image, snapshot of a container, blob of an ingest.
    solid: Option<usize>,
    keeps: Vec<Id>,
    kept_by: Vec<Id>,
    root_label: bool,
    /// Images: expired. Ingests: still in their time.
    timed: bool,
}

#[derive(Clone, Debug)]
struct Holder {
    flat: bool,
    expired: bool,
    lists: Vec<Id>,
}

fn id(kinds: std::ops::Range<usize>) -> impl Strategy<Value = Id> {
    (kinds, 0..EACH)
}

fn object(id_: Id) -> impl Strategy<Value = Object> {
    (
        prop::option::of(0..EACH),
        prop::collection::vec(id(0..3), 0..3),
        prop::collection::vec(id(0..4), 0..2),
        prop::bool::weighted(0.08),
        any::<bool>(),
    )
        .prop_map(move |(solid, keeps, kept_by, root_label, timed)| Object {
            id: id_,
            // A snapshot's parent is an older one.
            solid: solid.filter(|parent| KINDS[id_.0] != "snapshot" || *parent < id_.1),
            keeps,
            kept_by,
            root_label,
            timed,
        })
}

fn objects() -> impl Strategy<Value = Vec<Object>> {
    let all: Vec<Id> = (0..KINDS.len())
        .flat_map(|kind| (0..EACH).map(move |n| (kind, n)))
        .collect();
    prop::sample::subsequence(all, 0..=KINDS.len() * EACH)
        .prop_flat_map(|ids| ids.into_iter().map(object).collect::<Vec<_>>())
}

fn holders() -> impl Strategy<Value = Vec<Holder>> {
    let holder = (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec(prop_oneof![id(0..3), id(4..5)], 0..4),
    );
    let holder = holder.prop_map(|(flat, expired, lists)| Holder {
        flat,
        expired,
        lists,
    });
    prop::collection::vec(holder, 0..5)
}

fn title((kind, n): Id) -> String {
    match KINDS[kind] {
        "content" => sha(&[n.try_into().unwrap()]).to_string(),
        kind => format!("{kind}{n}"),
    }
}

fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000)
}

fn labels(object: &Object) -> Labels {
    let mut labels = Labels::new();
    for (n, other) in object.keeps.iter().enumerate() {
        let key = match KINDS[other.0] {
            "snapshot" => format!("containerd.io/gc.ref.snapshot.sn/{n}"),
            kind => format!("containerd.io/gc.ref.{kind}.{n}"),
        };
        labels.insert(key, title(*other));
    }
    for (n, other) in object.kept_by.iter().enumerate() {
        let key = match KINDS[other.0] {
            "snapshot" => format!("containerd.io/gc.bref.snapshot.sn/{n}"),
            kind => format!("containerd.io/gc.bref.{kind}/{n}"),
        };
        labels.insert(key, title(*other));
    }
    if object.root_label {
        labels.insert("containerd.io/gc.root".into(), "x".into());
    }
    if KINDS[object.id.0] == "image" {
        let year = if object.timed { "1999" } else { "2999" };
        labels.insert(
            "containerd.io/gc.expire".into(),
            format!("{year}-01-01T00:00:00Z"),
        );
    }
    labels
}

fn write(objects: &[Object], holders: &[Holder]) -> Map {
    let ns = namespace("ns");
    let mut map = BTreeMap::from([(key(Bucket::Namespace, &["ns"]), put_labels(&Labels::new()))]);
    for object in objects {
        let name = title(object.id);
        let labels = labels(object);
        let (at, record) = match KINDS[object.id.0] {
            "content" => {
                let record = BlobRecord {
                    size: 1,
                    labels,
                    created_at: now(),
                    updated_at: now(),
                };
                (own(Bucket::Blob, &ns, &name), record.encode())
            }
            "snapshot" => {
                let record = SnapshotRecord {
                    backend: format!("ns/1/{name}"),
                    parent: object.solid.map(|n| title((1, n))),
                    labels,
                    created_at: now(),
                    updated_at: now(),
                };
                (key(Bucket::Snapshot, &["ns", "sn", &name]), record.encode())
            }
            "image" => {
                let target = object.solid.unwrap_or(0);
                let mut record = image(&name, &title((0, target)).parse().unwrap());
                record.labels = labels;
                (own(Bucket::Image, &ns, &name), put_image(&record))
            }
            "container" => {
                let mut record = container(&name);
                record.labels = labels;
                if let Some(n) = object.solid {
                    record.snapshotter = "sn".into();
                    record.snapshot_key = title((1, n));
                }
                (own(Bucket::Container, &ns, &name), put_container(&record))
            }
            _ => {
                let hour = Duration::from_secs(3600);
                let record = IngestRecord {
                    backend: format!("ns/1/{name}"),
                    expires_at: Some(if object.timed {
                        now() + hour
                    } else {
                        now() - hour
                    }),
                    expected: object.solid.map(|n| title((0, n)).parse().unwrap()),
                };
                (own(Bucket::Ingest, &ns, &name), record.encode())
            }
        };
        map.insert(at, record);
    }
    write_leases(&mut map, holders);
    Map(map)
}

fn write_leases(map: &mut BTreeMap<Vec<u8>, Vec<u8>>, holders: &[Holder]) {
    let ns = namespace("ns");
    for (n, holder) in holders.iter().enumerate() {
        let mut labels = Labels::new();
        if holder.flat {
            labels.insert("containerd.io/gc.flat".into(), "1".into());
        }
        let year = if holder.expired { "1999" } else { "2999" };
        labels.insert(
            "containerd.io/gc.expire".into(),
            format!("{year}-01-01T00:00:00Z"),
        );
        let id = format!("lease{n}");
        let lease = Lease {
            id: id.parse().unwrap(),
            labels,
            created_at: now(),
        };
        map.insert(own(Bucket::Lease, &ns, &id), put_lease(&lease));
        for listed in &holder.lists {
            let name = title(*listed);
            let names = match KINDS[listed.0] {
                "snapshot" => vec!["ns", &id, "snapshots", "sn", &name],
                "content" => vec!["ns", &id, "content", &name],
                "image" => vec!["ns", &id, "images", &name],
                _ => vec!["ns", &id, "ingests", &name],
            };
            map.insert(key(Bucket::Leased, &names), Vec::new());
        }
    }
}

/// What stays, by the words of the rules, until nothing new is found.
fn kept(objects: &[Object], holders: &[Holder]) -> BTreeSet<Id> {
    let mut full = BTreeSet::new();
    let mut flat = BTreeSet::new();
    for object in objects {
        let root = match KINDS[object.id.0] {
            "content" | "snapshot" => object.root_label,
            "image" => !object.timed,
            "container" => true,
            _ => object.timed,
        };
        if root {
            full.insert(object.id);
        }
    }
    for holder in holders.iter().filter(|holder| !holder.expired) {
        for listed in &holder.lists {
            if holder.flat && KINDS[listed.0] != "ingest" {
                flat.insert(*listed);
            } else {
                full.insert(*listed);
            }
        }
    }
    loop {
        let before = (full.len(), flat.len());
        for object in objects {
            let solid = match KINDS[object.id.0] {
                "snapshot" | "container" => object.solid.map(|n| (1, n)),
                "image" => Some((0, object.solid.unwrap_or(0))),
                "ingest" => object.solid.map(|n| (0, n)),
                _ => None,
            };
            if full.contains(&object.id) {
                full.extend(solid);
                if KINDS[object.id.0] != "ingest" {
                    full.extend(&object.keeps);
                }
            }
            if flat.contains(&object.id) {
                flat.extend(solid);
            }
            // An ingest has no labels.
            if KINDS[object.id.0] != "ingest" && object.kept_by.iter().any(|by| full.contains(by)) {
                full.insert(object.id);
            }
        }
        if before == (full.len(), flat.len()) {
            full.extend(flat);
            return full;
        }
    }
}

fn node(id: Id) -> Node {
    let name = title(id);
    match KINDS[id.0] {
        "content" => Node::Content(name),
        "snapshot" => Node::Snapshot("sn".into(), name),
        "image" => Node::Image(name),
        "container" => Node::Container(name),
        _ => Node::Ingest(name),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, ..ProptestConfig::default() })]

    #[test]
    fn garbage_is_what_the_naive_model_calls_garbage(objects in objects(), holders in holders()) {
        let map = write(&objects, &holders);
        let marked = Marked::new(&map, now()).unwrap();
        let found: BTreeSet<Node> = marked.garbage.into_iter().flat_map(|(_, nodes)| nodes).collect();
        let kept = kept(&objects, &holders);
        let expired = holders.iter().enumerate().filter(|(_, holder)| holder.expired);
        let want: BTreeSet<Node> = objects
            .iter()
            .filter(|object| !kept.contains(&object.id))
            .map(|object| node(object.id))
            .chain(expired.map(|(n, _)| Node::Lease(format!("lease{n}"))))
            .collect();
        prop_assert_eq!(found, want);
    }
}
