//! What backends differ in: how each keeps a snapshot in its directory.
//!
//! Invariant: a layout knows directories and chains; of keys, rows and their order it knows nothing.

use std::fmt;
use std::path::{Path, PathBuf};

use types::{Error, Labels, Mount, Result, SnapshotKind, Usage};

use crate::storage::{Chain, Owner, Sealed};
use crate::store::Store;
use crate::tree;

/// How one backend keeps snapshots in their directories. All calls block.
pub(crate) trait Layout: fmt::Debug + Send + Sync {
    /// Makes `directory`, which is not there yet, with the contents of a new snapshot. What is left of
    /// a failed call is removed by the caller.
    fn fill(&self, store: &Store, directory: &Path, new: &New<'_>) -> Result<()>;

    /// True when [`Layout::fill`] copies files for such a snapshot, and has not flushed them.
    fn copies(&self, _new: &New<'_>) -> bool {
        false
    }

    /// The mounts of an active snapshot or a view.
    fn mounts(&self, store: &Store, chain: &Chain) -> Result<Vec<Mount>>;

    /// True when [`Layout::mounts`] may wait for a disk or a device, and not only say what there is.
    fn mounts_block(&self) -> bool {
        false
    }

    /// What an active snapshot takes now.
    fn usage(&self, store: &Store, chain: &Chain) -> Result<Usage>;

    /// What the directory of a snapshot must have, by kind.
    fn parts(&self, kind: SnapshotKind) -> &'static [&'static str];

    /// What is wrong with a snapshot that has all its parts.
    fn flaw(&self, _directory: &Path, _kind: SnapshotKind) -> Option<String> {
        None
    }

    /// Makes an active snapshot ready to become a committed one, durably as far as it does more than
    /// the caller has flushed, and tells what it takes. Called once at a time for each snapshot.
    fn seal(&self, store: &Store, chain: &Chain) -> Result<Sealed> {
        let Some(tree) = self.tree(store, chain.id) else {
            return self.usage(store, chain).map(Sealed::from);
        };
        let (usage, print) = tree::measure(&tree)?;
        let print = Some(print.number());
        Ok(Sealed {
            usage,
            print,
            bare: None,
        })
    }

    /// Where the files of a committed snapshot are, when that is all there is of it: then it can be told
    /// whether they are what they were, and others of the same layer can take their place.
    fn tree(&self, _store: &Store, _id: u64) -> Option<PathBuf> {
        None
    }

    /// What [`Layout::seal`] has told as the print of a committed snapshot, taken anew; none where it tells
    /// none.
    fn print(&self, store: &Store, id: u64) -> Result<Option<u64>> {
        let Some(tree) = self.tree(store, id) else {
            return Ok(None);
        };
        Ok(Some(tree::measure(&tree)?.1.number()))
    }

    /// True when a snapshot of which [`Layout::print`] tells `found` can be the one of which it told `known`.
    fn agrees(&self, known: u64, found: u64) -> bool {
        known == found
    }

    /// True when the directory of a committed snapshot can be exchanged for another of the same layer.
    fn renews(&self, store: &Store) -> bool {
        // A layout has trees, or it has none: of which snapshot is the same.
        self.tree(store, 0).is_some()
    }

    /// The directory of a sealed active snapshot takes the place of that of a committed one next, for whoever
    /// has been told of mounts in there.
    fn take_place(&self, _store: &Store, _chain: &Chain) -> Result<()> {
        Ok(())
    }

    /// Where the files of an active snapshot are, when they are the committed one's as well: they are to be
    /// flushed before it is sealed.
    fn loose(&self, _store: &Store, _id: u64) -> Option<PathBuf> {
        None
    }

    /// Undoes [`Layout::seal`], as far as it came: the snapshot stays active. Also done to each active one
    /// when the snapshotter is opened.
    fn unseal(&self, _store: &Store, _chain: &Chain) -> Result<()> {
        Ok(())
    }

    /// The snapshot is committed, durably unless it was noted: what only an active one needs may go.
    fn sealed(&self, _store: &Store, _id: u64) {}

    /// True when [`Layout::settle`] works.
    fn rebases(&self) -> bool {
        false
    }

    /// By which word those are told of it who can make use of it.
    ///
    /// Parity: core/unpack: where clients find `rebase` they unpack layers at the same time, and only for
    /// `overlayfs` so that a layer's deletions become whiteouts.
    fn rebase_word(&self) -> &'static str {
        crate::SETTLES
    }

    /// True for an active one that was unpacked without its parents, and is not settled.
    fn is_unsettled(&self, _store: &Store, _id: u64) -> bool {
        false
    }

    /// Settles what was made without a parent onto `parents`, nearest first, durably.
    fn settle(&self, _store: &Store, _id: u64, _parents: &[u64]) -> Result<()> {
        Err(Error::not_implemented("commit onto another parent"))
    }

    /// What it can do beyond its contract, in words that clients look for ([`Layout::rebase_word`] is not
    /// among them).
    fn capabilities(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// True when a commit changes nothing but the row, so that the row alone makes it again.
    fn can_note(&self) -> bool {
        false
    }

    /// Makes `directory`, of which nothing is left, what it was when its snapshot was committed untouched.
    ///
    /// # Errors
    /// `DataLoss` where that cannot be; I/O.
    fn remake(&self, _directory: &Path, _owner: Owner) -> Result<()> {
        Err(Error::data_loss("its directory is gone"))
    }

    /// To whom the root of an untouched snapshot belongs, where [`Layout::remake`] makes all that there is
    /// of it.
    fn bare(&self, _store: &Store, _chain: &Chain) -> Option<Owner> {
        None
    }

    /// A label that is told with each snapshot, kept nowhere.
    fn label(&self, _store: &Store, _id: u64) -> Option<(&'static str, String)> {
        None
    }
}

/// What a new snapshot shall be.
#[derive(Debug)]
pub(crate) struct New<'a> {
    pub(crate) kind: SnapshotKind,
    pub(crate) labels: &'a Labels,
    /// Ids of the ancestors, nearest first.
    pub(crate) parents: &'a [u64],
}
