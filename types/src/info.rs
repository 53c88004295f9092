//! What stores tell about blobs, ingests and snapshots, and about what they hold without a record.

use std::time::SystemTime;

use crate::{Digest, Filterable, IngestRef, Labels, LeaseId, Namespace, SnapshotKey};

/// A blob's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlobInfo {
    /// Digest.
    pub digest: Digest,
    /// Length in bytes.
    pub size: u64,
    /// When it was committed (in this namespace).
    pub created_at: SystemTime,
    /// When its labels last changed.
    pub updated_at: SystemTime,
    /// Labels (empty in a backend store, which keeps none).
    pub labels: Labels,
}

impl Filterable for BlobInfo {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["digest"] => Some(self.digest.to_string()),
            ["size"] => Some(self.size.to_string()),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

/// Where an ingest stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IngestStatus {
    /// The client's name for it.
    pub reference: IngestRef,
    /// Bytes on disk: where a writer resumes.
    pub offset: u64,
    /// Expected length, 0 when unknown.
    pub total: u64,
    /// Expected digest, when known.
    pub expected: Option<Digest>,
    /// When it was begun.
    pub started_at: SystemTime,
    /// When it was last written.
    pub updated_at: SystemTime,
}

impl Filterable for IngestStatus {
    fn field(&self, path: &[&str]) -> Option<String> {
        (path == ["ref"]).then(|| self.reference.to_string())
    }
}

/// Kind of a snapshot. Numbers are those of the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum SnapshotKind {
    /// Read only, not committable.
    View = 1,
    /// Writable, can be committed.
    Active = 2,
    /// Immutable, can be a parent.
    Committed = 3,
}

impl SnapshotKind {
    /// The word that filters know.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::View => "view",
            Self::Active => "active",
            Self::Committed => "committed",
        }
    }
}

/// A snapshot's facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotInfo {
    /// Kind.
    pub kind: SnapshotKind,
    /// Key of an active one, name of a committed one.
    pub name: SnapshotKey,
    /// Name of the parent.
    pub parent: Option<SnapshotKey>,
    /// Labels.
    pub labels: Labels,
    /// When it was made.
    pub created_at: SystemTime,
    /// When it last changed.
    pub updated_at: SystemTime,
}

impl Filterable for SnapshotInfo {
    fn field(&self, path: &[&str]) -> Option<String> {
        match path {
            ["kind"] => Some(self.kind.name().to_owned()),
            ["name"] => Some(self.name.to_string()),
            // There also when it is empty: `parent==""` asks for the bottom layers.
            ["parent"] => Some(
                self.parent
                    .as_ref()
                    .map_or(String::new(), ToString::to_string),
            ),
            ["labels", key @ ..] => self.labels.field(key),
            _ => None,
        }
    }
}

/// What a snapshot takes on disk, parents not counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Inodes.
    pub inodes: u64,
    /// Bytes.
    pub size: u64,
}

/// What was made for a client and has no record: an activation of mounts, a network namespace, an interface.
/// As the collector sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name there; of an interface `place/name`, which no network namespace has.
    pub name: String,
    /// Tells it from others of that name.
    pub number: u64,
    /// The lease that it was made under.
    pub lease: Option<LeaseId>,
    /// What else keeps it stands in these.
    pub labels: Labels,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Filter;

    #[test]
    fn bottom_layers_are_those_whose_parent_is_empty() {
        let mut info = SnapshotInfo {
            kind: SnapshotKind::Committed,
            name: "layer".parse().unwrap(),
            parent: None,
            labels: Labels::new(),
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        };
        let bottom = Filter::parse(&["kind==committed,parent==\"\""]).unwrap();
        assert!(bottom.matches(&info));
        info.parent = Some("below".parse().unwrap());
        assert!(!bottom.matches(&info));
    }
}
