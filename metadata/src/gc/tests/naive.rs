//! The collector's rules once more, in plain words and without its code: objects as descriptions, and
//! what stays found by looking again until nothing new turns up.

use std::collections::{BTreeMap, BTreeSet};

/// Objects of each kind that there may be.
pub(super) const EACH: u8 = 3;

/// What a reference can name; two of them are snapshotters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    Content,
    Overlay,
    Native,
    Image,
    Container,
    Ingest,
}

pub(super) const KINDS: [Kind; 6] = [
    Kind::Content,
    Kind::Overlay,
    Kind::Native,
    Kind::Image,
    Kind::Container,
    Kind::Ingest,
];

impl Kind {
    fn is_snapshot(self) -> bool {
        matches!(self, Self::Overlay | Self::Native)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Id(pub(super) Kind, pub(super) u8);

/// A snapshot that is kept as long as its last use is less, or more, than so many hours ago.
#[derive(Clone, Copy, Debug)]
pub(super) struct Condition {
    pub(super) snapshot: Id,
    pub(super) younger: bool,
    pub(super) hours: i32,
}

/// An object as the history left it. All of them may carry all labels, also without effect.
#[derive(Clone, Debug)]
pub(super) struct Object {
    /// Parent of a snapshot, target of an image, snapshot of a container, blob of an ingest.
    pub(super) solid: Option<u8>,
    pub(super) keeps: Vec<Id>,
    pub(super) kept_by: Vec<Id>,
    pub(super) root: bool,
    /// Hour after which it is not wanted any more.
    pub(super) expires: Option<i32>,
    pub(super) condition: Option<Condition>,
    /// Hour of its last use.
    pub(super) used: Option<i32>,
}

/// A lease.
#[derive(Clone, Debug, Default)]
pub(super) struct Holder {
    pub(super) flat: bool,
    pub(super) expires: Option<i32>,
    pub(super) lists: BTreeSet<Id>,
}

/// One namespace.
#[derive(Clone, Debug, Default)]
pub(super) struct World {
    pub(super) objects: BTreeMap<Id, Object>,
    pub(super) holders: BTreeMap<u8, Holder>,
}

/// True when a time to live is over: the last hour counts.
fn is_over(expires: Option<i32>, hour: i32) -> bool {
    expires.is_some_and(|last| hour > last)
}

impl Id {
    /// What it cannot do without.
    fn solid(self, object: &Object) -> Option<Self> {
        match self.0 {
            Kind::Content => None,
            Kind::Overlay | Kind::Native => object.solid.map(|n| Self(self.0, n)),
            Kind::Container => object.solid.map(|n| Self(Kind::Overlay, n)),
            Kind::Ingest => object.solid.map(|n| Self(Kind::Content, n)),
            Kind::Image => Some(Self(Kind::Content, object.solid.unwrap_or(0))),
        }
    }

    fn is_root(self, object: &Object, hour: i32) -> bool {
        match self.0 {
            Kind::Content | Kind::Overlay | Kind::Native => object.root,
            Kind::Image => !is_over(object.expires, hour),
            Kind::Container => true,
            // Without a time it is a lease that keeps it.
            Kind::Ingest => object.expires.is_some() && !is_over(object.expires, hour),
        }
    }
}

impl World {
    /// The leases that are over.
    pub(super) fn over(&self, hour: i32) -> BTreeSet<u8> {
        let over = |holder: &Holder| is_over(holder.expires, hour);
        let found = self.holders.iter().filter(|(_, holder)| over(holder));
        found.map(|(n, _)| *n).collect()
    }

    /// What an object cannot do without or names, and what lives as long as it does.
    pub(super) fn names(&self, of: Id) -> Vec<Id> {
        let object = &self.objects[&of];
        let mut named: Vec<Id> = of.solid(object).into_iter().collect();
        // An ingest has no labels.
        if of.0 != Kind::Ingest {
            named.extend(&object.keeps);
        }
        let others = self.objects.iter().filter(|(id, _)| id.0 != Kind::Ingest);
        let back = others.filter(|(_, found)| found.kept_by.contains(&of));
        named.extend(back.map(|(id, _)| *id));
        named
    }

    /// What stays.
    pub(super) fn kept(&self, hour: i32) -> BTreeSet<Id> {
        let (mut full, mut flat) = self.roots(hour);
        loop {
            let before = (full.len(), flat.len());
            for (id, object) in &self.objects {
                let solid = id.solid(object);
                if full.contains(id) {
                    full.extend(solid);
                }
                if flat.contains(id) {
                    flat.extend(solid);
                }
                // An ingest has no labels.
                if id.0 == Kind::Ingest {
                    continue;
                }
                if full.contains(id) {
                    full.extend(&object.keeps);
                    full.extend(self.conditional(*id, object, hour));
                }
                if object.kept_by.iter().any(|by| full.contains(by)) {
                    full.insert(*id);
                }
            }
            if before == (full.len(), flat.len()) {
                full.extend(flat);
                return full;
            }
        }
    }

    /// What is kept with all that it names, and what without.
    fn roots(&self, hour: i32) -> (BTreeSet<Id>, BTreeSet<Id>) {
        let (mut full, mut flat) = (BTreeSet::new(), BTreeSet::new());
        for (id, object) in &self.objects {
            if id.is_root(object, hour) {
                full.insert(*id);
            }
        }
        for holder in self.holders.values() {
            if is_over(holder.expires, hour) {
                continue;
            }
            for listed in &holder.lists {
                if holder.flat && listed.0 != Kind::Ingest {
                    flat.insert(*listed);
                } else {
                    full.insert(*listed);
                }
            }
        }
        (full, flat)
    }

    /// The snapshot that an image or a blob keeps because of its last use.
    fn conditional(&self, id: Id, object: &Object, hour: i32) -> Option<Id> {
        if !matches!(id.0, Kind::Image | Kind::Content) {
            return None;
        }
        let condition = object.condition?;
        let snapshot = self.objects.get(&condition.snapshot)?;
        let ago = hour - snapshot.used?;
        let holds = if condition.younger {
            ago < condition.hours
        } else {
            ago > condition.hours
        };
        (holds && condition.snapshot.0.is_snapshot()).then_some(condition.snapshot)
    }
}
