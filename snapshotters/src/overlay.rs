//! The overlayfs snapshotter: one directory per layer, stacked by the kernel.
//!
//! ```text
//!   <root>/metadata.redb, metadata.log
//!   <root>/snapshots/<id>/…    see `stack`
//! ```
//! Invariant: the directories are those that Go's snapshotter makes.

mod probe;
mod ready;
pub(crate) mod settle;
pub(crate) mod stack;

use std::path::{Path, PathBuf};

use types::{Mount, Result, SnapshotKind, Usage};

use crate::local::{Layout, Local, New};
use crate::storage::{Chain, Owner};
use crate::store::{Keeping, Notes, Store, nameable, text};
use crate::tree;
use stack::{LAYER, Stack, WORK};

/// Output label: where the layer of a snapshot is.
const UPPERDIR: &str = "containerd.io/snapshot/overlay.upperdir";

/// Settings of the overlay snapshotter.
#[derive(Clone, Debug, Default)]
pub struct OverlayConfig {
    /// Tell the layer's directory in the label `containerd.io/snapshot/overlay.upperdir`.
    pub upperdir_label: bool,
    /// Delete directories within `remove` instead of in `cleanup`.
    pub sync_remove: bool,
    /// Where the kernel cannot map ids, copy every file of an id-mapped snapshot to a new owner.
    pub slow_chown: bool,
    /// Further options for overlay mounts.
    pub mount_options: Vec<String>,
}

/// The overlayfs snapshotter.
#[derive(Debug)]
pub struct Overlay;

#[derive(Debug)]
struct Layers {
    stack: Stack,
    upperdir_label: bool,
}

fn keeping(sync_remove: bool) -> Keeping {
    Keeping {
        sync_remove,
        notes: Notes::Kept,
        remove: tree::remove,
    }
}

impl Overlay {
    /// Opens or makes the snapshotter in `root`, after trying whether overlayfs works there.
    ///
    /// # Errors
    /// `NotImplemented` where overlayfs does not work (old kernel, file system without `d_type`);
    /// `Unavailable` while another process has it; `DataLoss` for a damaged index; I/O.
    pub fn open(root: &Path, config: OverlayConfig) -> Result<Local> {
        let root = nameable(root)?;
        let stack = Stack::tried(&root, config.mount_options, config.slow_chown)?;
        let store = Store::open(&root, keeping(config.sync_remove))?;
        let layers = Layers {
            stack: stack.with_ready(store.directories()),
            upperdir_label: config.upperdir_label,
        };
        Local::open(store, layers)
    }

    /// Looks at the snapshotter in `root` by a copy of its index in `scratch`, an empty directory:
    /// [`Snapshotter::list`](crate::Snapshotter::list), [`Snapshotter::verify`](crate::Snapshotter::verify)
    /// and the like work, and nothing is changed.
    ///
    /// # Errors
    /// As [`Overlay::open`], but it is not tried whether overlayfs works.
    pub fn examine(root: &Path, scratch: &Path) -> Result<Local> {
        let layers = Layers {
            stack: Stack::unused(),
            upperdir_label: false,
        };
        let store = Store::examine(root, scratch, keeping(false))?;
        Local::new(store, layers)
    }
}

/// The layer of a snapshot.
fn upper(store: &Store, id: u64) -> PathBuf {
    store.directory(id).join(LAYER)
}

fn uppers(store: &Store, ids: &[u64]) -> Vec<PathBuf> {
    ids.iter().map(|id| upper(store, *id)).collect()
}

impl Layout for Layers {
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()> {
        self.stack.fill(directory, new, &uppers(store, new.parents))
    }

    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>> {
        let lowers = uppers(store, &chain.parents);
        self.stack.mounts(&store.directory(chain.id), chain, lowers)
    }

    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage> {
        tree::usage(&upper(store, chain.id))
    }

    fn tree(&self, store: &Store, id: u64) -> Option<PathBuf> {
        Some(upper(store, id))
    }

    fn loose(&self, store: &Store, id: u64) -> Option<PathBuf> {
        Some(upper(store, id))
    }

    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str] {
        match kind {
            SnapshotKind::Active => &[LAYER, WORK],
            SnapshotKind::View | SnapshotKind::Committed => &[LAYER],
        }
    }

    fn flaw(&self, directory: &Path, kind: SnapshotKind) -> Option<String> {
        let layer = directory.join(LAYER);
        let is_flawed = kind == SnapshotKind::Committed && settle::is_unsettled(&layer);
        is_flawed.then(|| format!("{} is not settled on its parent", layer.display()))
    }

    /// Without a parent the mount is a directory, and the layers of an overlay are independent ones.
    fn rebases(&self) -> bool {
        // Whiteouts and marks need the machine's root.
        !self.stack.userxattr
    }

    fn rebase_word(&self) -> &'static str {
        "rebase"
    }

    fn is_unsettled(&self, store: &Store, id: u64) -> bool {
        settle::is_unsettled(&upper(store, id))
    }

    fn settle(&self, store: &Store, id: u64, parents: &[u64]) -> Result<()> {
        let upper = upper(store, id);
        settle::settle(&upper, &uppers(store, parents))?;
        // What was there before may have been flushed, and is not flushed again then.
        settle::flush(&upper)
    }

    fn can_note(&self) -> bool {
        true
    }

    fn remake(&self, directory: &Path, owner: Owner) -> Result<()> {
        stack::remake(directory, owner)
    }

    fn bare(&self, store: &Store, chain: &Chain) -> Option<Owner> {
        stack::bare(&store.directory(chain.id), &chain.labels)
    }

    fn label(&self, store: &Store, id: u64) -> Option<(&'static str, String)> {
        self.upperdir_label
            .then(|| (UPPERDIR, text(&upper(store, id))))
    }

    fn capabilities(&self) -> Vec<&'static str> {
        self.stack.capabilities()
    }
}

#[cfg(test)]
mod tests;
