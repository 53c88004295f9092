//! What the directory of an active snapshot or a view tells of itself: the key and the parent of its row,
//! and where its ids are mapped to.
//!
//! The row of such a snapshot is durable only with the next durable change of the index: to flush each of
//! them would double what a prepare costs. But whatever a container makes durable below its directory
//! makes the directory durable as well, and this attribute on it: file systems keep what happened to
//! directories in order. A power cut that takes the row leaves what the row can be made of.
//!
//! Invariant: a directory bears one from its making until a flush has made its commit durable, or its row is
//! removed. What is found without a row was lost, or was never answered; for the second there is the
//! collector.

use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use types::{Error, Labels, Result, SnapshotKey, SnapshotKind};

use crate::idmap::LABELS as IDS;

/// Name of the attribute: not to be seen or set from within a container.
const NAME: &str = "trusted.containerd.snapshot";
/// Name of the attribute that tells the parent, by its id, onto which a snapshot was settled.
const SETTLED: &str = "trusted.containerd.snapshot.settled";
/// What the kind of one whose ids are mapped begins with; then there are two words before the key.
const MAPPED: &str = "mapped-";
/// In the place of a mapping that is not there.
const NONE: &str = "-";
/// Nothing is longer: a key, and two labels.
const LIMIT: usize = 16 * 1024;

/// The facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) kind: SnapshotKind,
    /// Id of the parent.
    pub(crate) parent: Option<u64>,
    /// Those labels without which its mounts would be others.
    pub(crate) labels: Labels,
    pub(crate) key: SnapshotKey,
}

impl Note {
    /// Puts it on a directory. Where file systems have no such attributes there is none.
    pub(crate) fn write(&self, directory: &Path) {
        let kind = if self.kind == SnapshotKind::View {
            "view"
        } else {
            "active"
        };
        let maps = IDS.map(|label| self.labels.get(label).map(String::as_str));
        let (mapped, maps) = match maps {
            [None, None] => ("", String::new()),
            // Without spaces, or they would have been refused.
            maps => (
                MAPPED,
                maps.map(|map| format!("{} ", map.unwrap_or(NONE))).concat(),
            ),
        };
        // Short, so that it fits into the inode: ids begin with one.
        let parent = self.parent.unwrap_or(0);
        let text = format!("{mapped}{kind} {parent} {maps}{}", self.key);
        let flags = XattrFlags::empty();
        if let Err(error) = rustix::fs::lsetxattr(directory, NAME, text.as_bytes(), flags) {
            tracing::debug!(%error, directory = %directory.display(), "directory is not noted");
        }
    }

    /// That of a directory, if it has one.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let mut text = vec![0; LIMIT];
        let len = rustix::fs::lgetxattr(directory, NAME, &mut text[..]).ok()?;
        let text = str::from_utf8(text.get(..len)?).ok()?;
        let unmapped = text.strip_prefix(MAPPED);
        let (kind, rest) = unmapped.unwrap_or(text).split_once(' ')?;
        let kind = match kind {
            "view" => SnapshotKind::View,
            "active" => SnapshotKind::Active,
            _ => return None,
        };
        let (parent, mut rest) = rest.split_once(' ')?;
        let parent: u64 = parent.parse().ok()?;
        let mut labels = Labels::new();
        for label in IDS.iter().filter(|_| unmapped.is_some()) {
            let (map, after) = rest.split_once(' ')?;
            rest = after;
            if map != NONE {
                labels.set(label, map);
            }
        }
        Some(Self {
            kind,
            parent: (parent > 0).then_some(parent),
            labels,
            key: rest.parse().ok()?,
        })
    }

    /// Takes it off: there is a durable row, or none at all.
    pub(crate) fn remove(directory: &Path) {
        // There may be none, nor the directory; and one that stays is told of by no row, so that the
        // collector has it.
        let _gone = rustix::fs::lremovexattr(directory, NAME);
    }
}

/// True when something in a directory was given its place, half perhaps, and is not committed.
pub(crate) fn is_settled(directory: &Path) -> bool {
    place(directory).is_some()
}

fn place(directory: &Path) -> Option<u64> {
    let mut text = [0; 24];
    let len = rustix::fs::lgetxattr(directory, SETTLED, &mut text[..]).ok()?;
    str::from_utf8(text.get(..len)?).ok()?.parse().ok()
}

/// Notes that what is in a directory gets its place on `parent`, or on nothing. Half settled or not
/// committed in the end, it is of use on no other.
///
/// # Errors
/// `FailedPrecondition` when it was to stand on another one.
pub(crate) fn settle(directory: &Path, parent: Option<u64>) -> Result<()> {
    // Ids begin with one.
    let parent = parent.unwrap_or(0);
    if place(directory).is_some_and(|had| had != parent) {
        return Err(Error::failed_precondition(
            "snapshot was settled on another parent, it cannot be committed onto this one",
        ));
    }
    let (text, flags) = (parent.to_string(), XattrFlags::empty());
    match rustix::fs::lsetxattr(directory, SETTLED, text.as_bytes(), flags) {
        // Where there are no attributes, there are no marks that need a parent either.
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(e) => Err(crate::tree::at("set attribute of", directory, e)),
    }
}

/// It is committed: the row tells.
pub(crate) fn settled(directory: &Path) {
    // One that stays is looked at by nobody.
    let _gone = rustix::fs::lremovexattr(directory, SETTLED);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_tells_what_was_noted_on_it() {
        let temp = tempfile::tempdir().unwrap();
        assert_eq!(Note::read(temp.path()), None);
        let ids = |map: &str| Labels::new().with(IDS[0], map);
        for (kind, parent, labels, key) in [
            (SnapshotKind::Active, None, Labels::new(), "k"),
            (
                SnapshotKind::View,
                Some(17),
                Labels::new(),
                "default/1025/a name with spaces",
            ),
            (
                SnapshotKind::Active,
                Some(1),
                ids("0:1000:65536,70000:1:2"),
                "a b c",
            ),
            (
                SnapshotKind::View,
                None,
                ids("0:1:2").with(IDS[1], "0:5:9"),
                "k",
            ),
        ] {
            let note = Note {
                kind,
                parent,
                labels,
                key: key.parse().unwrap(),
            };
            note.write(temp.path());
            assert_eq!(Note::read(temp.path()), Some(note));
        }
        for bad in [
            "",
            "active",
            "active 1",
            "active x k",
            "committed 1 k",
            "mapped-active 1 k",
        ] {
            let flags = XattrFlags::empty();
            rustix::fs::lsetxattr(temp.path(), NAME, bad.as_bytes(), flags).unwrap();
            assert_eq!(Note::read(temp.path()), None, "{bad:?}");
        }
        Note::remove(temp.path());
        Note::remove(&temp.path().join("none"));
        assert_eq!(Note::read(temp.path()), None);
    }
}
