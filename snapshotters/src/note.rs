//! What the directory of an active snapshot or a view tells of itself: the key and the parent of its row.
//!
//! The row of such a snapshot is durable only with the next durable change of the index: to flush each of
//! them would double what a prepare costs. But whatever a container makes durable below its directory
//! makes the directory durable as well, and this attribute on it: file systems keep what happened to
//! directories in order. A power cut that takes the row leaves what the row can be made of.
//!
//! Invariant: only directories of rows that are neither committed nor removed bear one. What is found
//! without a row was lost, or was never answered; for the second there is the collector.

use std::path::Path;

use rustix::fs::XattrFlags;
use rustix::io::Errno;
use types::{Error, Result, SnapshotKey, SnapshotKind};

/// Name of the attribute: not to be seen or set from within a container.
const NAME: &str = "trusted.containerd.snapshot";
/// Name of the attribute that tells the parent, by its id, onto which a snapshot was settled.
const SETTLED: &str = "trusted.containerd.snapshot.settled";
/// No key is so long.
const LIMIT: usize = 4096;

/// The facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Note {
    pub(crate) kind: SnapshotKind,
    /// Id of the parent.
    pub(crate) parent: Option<u64>,
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
        // Short, so that it fits into the inode: ids begin with one.
        let text = format!("{kind} {} {}", self.parent.unwrap_or(0), self.key);
        let flags = XattrFlags::empty();
        if let Err(error) = rustix::fs::lsetxattr(directory, NAME, text.as_bytes(), flags) {
            tracing::debug!(%error, directory = %directory.display(), "directory is not noted");
        }
    }

    /// That of a directory, if it has one.
    pub(crate) fn read(directory: &Path) -> Option<Self> {
        let mut text = [0; LIMIT];
        let len = rustix::fs::lgetxattr(directory, NAME, &mut text[..]).ok()?;
        let mut words = str::from_utf8(text.get(..len)?).ok()?.splitn(3, ' ');
        let kind = match words.next()? {
            "view" => SnapshotKind::View,
            "active" => SnapshotKind::Active,
            _ => return None,
        };
        let parent: u64 = words.next()?.parse().ok()?;
        Some(Self {
            kind,
            parent: (parent > 0).then_some(parent),
            key: words.next()?.parse().ok()?,
        })
    }

    /// Takes it off: there is a durable row, or none at all.
    pub(crate) fn remove(directory: &Path) {
        // There may be none, nor the directory; and one that stays is told of by no row, so that the
        // collector has it.
        let _gone = rustix::fs::lremovexattr(directory, NAME);
    }
}

/// Notes that what is in a directory gets its place on `parent`. Half settled or not committed in the end,
/// it is of use on no other.
///
/// # Errors
/// `FailedPrecondition` when it was to stand on another one.
pub(crate) fn settle(directory: &Path, parent: u64) -> Result<()> {
    let mut text = [0; 24];
    let had = rustix::fs::lgetxattr(directory, SETTLED, &mut text[..]).ok();
    let had = had.and_then(|len| str::from_utf8(text.get(..len)?).ok()?.parse().ok());
    if had.is_some_and(|had: u64| had != parent) {
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
        for (kind, parent, key) in [
            (SnapshotKind::Active, None, "k"),
            (
                SnapshotKind::View,
                Some(17),
                "default/1025/a name with spaces",
            ),
        ] {
            let note = Note {
                kind,
                parent,
                key: key.parse().unwrap(),
            };
            note.write(temp.path());
            assert_eq!(Note::read(temp.path()), Some(note));
        }
        for bad in ["", "active", "active 1", "active x k", "committed 1 k"] {
            let flags = XattrFlags::empty();
            rustix::fs::lsetxattr(temp.path(), NAME, bad.as_bytes(), flags).unwrap();
            assert_eq!(Note::read(temp.path()), None, "{bad:?}");
        }
        Note::remove(temp.path());
        Note::remove(&temp.path().join("none"));
        assert_eq!(Note::read(temp.path()), None);
    }
}
