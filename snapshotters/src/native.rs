//! The native snapshotter: every snapshot is a full copy. Slow and large, works on any file system.
//!
//! Layout: `<root>/snapshots/<id>` is the tree. Invariant: a committed tree is never written to; an
//! active one begins as an exact copy of its parent (names, contents, holes, owners, modes, extended
//! attributes, hard links, devices, times).

use std::path::{Path, PathBuf};

use types::{Mount, Result, SnapshotKind, Usage};

use crate::copy;
use crate::idmap::IdMaps;
use crate::local::{Layout, Local, New};
use crate::storage::Chain;
use crate::store::{Keeping, Notes, Store, absolute, bind};
use crate::tree;

/// The native snapshotter.
#[derive(Debug)]
pub struct Native;

/// Settings of the native snapshotter.
const KEEPING: Keeping = Keeping {
    sync_remove: false,
    notes: Notes::None,
    remove: tree::remove,
};

#[derive(Debug)]
struct Copies;

impl Native {
    /// Opens or makes the snapshotter in `root`.
    ///
    /// # Errors
    /// `Unavailable` while another process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path) -> Result<Local> {
        let store = Store::open(&absolute(root)?, KEEPING)?;
        Local::open(store, Copies)
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`](crate::Snapshotter::list), [`Snapshotter::verify`](crate::Snapshotter::verify)
    /// and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Native::open`].
    pub fn examine(root: &Path, scratch: &Path) -> Result<Local> {
        Local::new(Store::examine(root, scratch, KEEPING)?, Copies)
    }
}

/// True when a view is the tree of its parent: only its place is made.
fn is_parent(kind: SnapshotKind, maps: Option<&IdMaps>) -> bool {
    kind == SnapshotKind::View && maps.is_none()
}

impl Layout for Copies {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        let maps = IdMaps::of(new.labels)?;
        let parent = new.parents.first();
        let source = parent.filter(|_| !is_parent(new.kind, maps.as_ref()));
        let source = source.map(|id| store.directory(*id));
        copy::tree(source.as_deref(), directory)?;
        maps.map_or(Ok(()), |maps| maps.chown(directory))
    }

    fn copies(&self, new: &New<'_>) -> bool {
        let maps = IdMaps::of(new.labels).unwrap_or_default();
        !new.parents.is_empty() && !is_parent(new.kind, maps.as_ref())
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        let maps = IdMaps::of(&chain.labels)?;
        let parent = chain.parents.first();
        let parent = parent.filter(|_| is_parent(chain.kind, maps.as_ref()));
        let id = *parent.unwrap_or(&chain.id);
        let mode = match chain.kind {
            SnapshotKind::Active => "rw",
            SnapshotKind::View | SnapshotKind::Committed => "ro",
        };
        Ok(bind(&store.directory(id), ["rbind", mode]))
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        tree::usage(&store.directory(chain.id))
    }

    fn tree(&self, store: &Store, id: u64) -> Option<PathBuf> {
        Some(store.directory(id))
    }

    fn loose(&self, store: &Store, id: u64) -> Option<PathBuf> {
        Some(store.directory(id))
    }

    fn parts(&self, _kind: SnapshotKind) -> &'static [&'static str] {
        &[""]
    }

    fn capabilities(&self) -> Vec<&'static str> {
        vec!["remap-ids"]
    }
}

#[cfg(test)]
mod tests;
