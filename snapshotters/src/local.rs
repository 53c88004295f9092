//! A snapshotter that keeps each snapshot in a directory: the contract over index, directories and a
//! [`Layout`], which is what backends differ in.
//!
//! ```text
//!   prepare: reserve - Layout::fill - flush (copies) - rename - row                     - Layout::mounts
//!   commit:  look - settle (onto a parent) - flush - Layout::seal - row (durable, or noted) - Layout::sealed
//!                                                      `- row refused: Layout::unseal
//!   remove:  row gone - cleanup: Layout's removal of the directory
//! ```
//! Invariant: whatever step a crash hits, the directory of a row is whole, and what has no row is garbage,
//! once what callers have noted is made again.

use std::collections::HashSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use types::{
    Error, Fields, Filter, Labels, Mount, Result, SnapshotInfo, SnapshotKey, SnapshotKind, Usage,
};

use crate::beside;
use crate::flushes::Flushes;
pub(crate) use crate::layout::{Layout, New};
use crate::note;
use crate::storage::Chain;
use crate::store::{Durable, Store, Wanted, blocking};
use crate::{Broken, Redo, Redone, Snapshotter};

/// A snapshotter in a directory of this machine. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Local(Arc<Inside>);

#[derive(Debug)]
struct Inside {
    store: Store,
    layout: Box<dyn Layout>,
    flushes: Flushes,
    /// Ids of active snapshots whose files somebody has flushed.
    flushed: Mutex<HashSet<u64>>,
    cleaning: beside::Turn,
}

impl Inside {
    fn shown(&self, id: u64, mut info: SnapshotInfo) -> SnapshotInfo {
        if let Some((key, value)) = self.layout.label(&self.store, id) {
            info.labels.set(key, &value);
        }
        info
    }

    fn commit(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        labels: Labels,
        can_note: bool,
    ) -> Result<Option<Redo>> {
        let (store, layout) = (&self.store, &*self.layout);
        let mut is_placed = false;
        let seal = |chain: &Chain, alone: bool| {
            is_placed = alone && self.place(chain)?;
            let on_disk = self.flush(chain.id)?;
            let mut sealed = layout.seal(store, chain)?;
            if on_disk == OnDisk::Bare {
                sealed.bare = layout.bare(store, chain);
            }
            let is_safe = on_disk == OnDisk::Whole || sealed.bare.is_some();
            let durable = match can_note && is_safe && layout.can_note() {
                true => Durable::Noted,
                false => Durable::Now,
            };
            Ok((sealed, durable))
        };
        let unseal = |chain: &Chain| layout.unseal(store, chain);
        let (id, redo) = store.commit((name, key), onto, labels, seal, unseal)?;
        if is_placed {
            note::settled(&store.directory(id));
        }
        self.flushed().remove(&id);
        layout.sealed(store, id);
        Ok(redo)
    }

    /// Settles what was made without a parent onto those that it gets, or onto none; false when there was
    /// nothing to do.
    fn place(&self, chain: &Chain) -> Result<bool> {
        let Self { store, layout, .. } = self;
        let (id, directory) = (chain.id, store.directory(chain.id));
        let parent = chain.parents.first().copied();
        let is_whole = || !layout.is_unsettled(store, id) && !note::is_settled(&directory);
        if parent.is_none() && is_whole() {
            return Ok(false);
        }
        note::settle(&directory, parent)?;
        let settled = layout.settle(store, id, &chain.parents);
        if settled.is_err() {
            // Who tries again is not told of an error any more by the flush in there.
            self.flushed().remove(&id);
        }
        settled?;
        Ok(true)
    }

    fn flushed(&self) -> MutexGuard<'_, HashSet<u64>> {
        // A set of numbers is whole whoever panicked.
        self.flushed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Flushes what was written to an active snapshot, unless that was done, or nothing was.
    fn flush(&self, id: u64) -> Result<OnDisk> {
        let Some(files) = self.layout.loose(&self.store, id) else {
            return Ok(OnDisk::Files);
        };
        if self.flushed().contains(&id) {
            return Ok(OnDisk::Whole);
        }
        if is_untouched(&files, &self.store.directory(id)) {
            return Ok(OnDisk::Bare);
        }
        self.flushes.flush()?;
        Ok(OnDisk::Whole)
    }
}

/// What of a snapshot is on the disk before it is sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum OnDisk {
    /// All of it, with its directory: its file system was flushed.
    Whole,
    /// There is nothing in it; its directory may not be there.
    Bare,
    /// Its layout sees to its files; its directory may not be there.
    Files,
}

/// True when there is nothing in `files`, and they are as they were when the snapshot in `directory` got
/// its name.
fn is_untouched(files: &Path, directory: &Path) -> bool {
    let changed = |path| -> std::io::Result<_> {
        let facts = std::fs::symlink_metadata(path)?;
        Ok((facts.ctime(), facts.ctime_nsec()))
    };
    let is_empty = std::fs::read_dir(files).is_ok_and(|mut names| names.next().is_none());
    let is_old = changed(files).and_then(|at| Ok(at <= changed(directory)?));
    is_empty && is_old.unwrap_or(false)
}

impl Local {
    pub(crate) fn new(store: Store, layout: impl Layout + 'static) -> Result<Self> {
        Ok(Self(Arc::new(Inside {
            flushes: Flushes::open(store.directories())?,
            store,
            layout: Box::new(layout),
            flushed: Mutex::default(),
            cleaning: beside::Turn::default(),
        })))
    }

    /// The same, of those that are to be used: what was sealed when the process died, and is not committed,
    /// can be written to again.
    pub(crate) fn open(store: Store, layout: impl Layout + 'static) -> Result<Self> {
        let this = Self::new(store, layout)?;
        let Inside { store, layout, .. } = &*this.0;
        for (_, info) in store.list(&Filter::default()) {
            let key = info.name;
            // Nobody else has it yet: what was active in the list is so still.
            let Ok(chain) = store.chain(&key) else {
                continue;
            };
            if chain.kind == SnapshotKind::Active
                && let Err(error) = layout.unseal(store, &chain)
            {
                tracing::warn!(%error, %key, "snapshot stays sealed though it is not committed");
            }
        }
        Ok(this)
    }

    /// What it can do beyond its contract, in the words that clients look for: `rebase` where Go's clients
    /// may unpack layers at the same time, [`SETTLES`](crate::SETTLES) where only ours may, and
    /// `remap-ids` when the labels of id mappings work.
    #[must_use]
    pub fn capabilities(&self) -> Vec<&'static str> {
        let mut all = self.0.layout.capabilities();
        all.extend(self.rebases().then(|| self.0.layout.rebase_word()));
        all
    }

    fn can_rebase(&self) -> Result<()> {
        match self.0.layout.rebases() {
            true => Ok(()),
            false => Err(Error::not_implemented("commit onto another parent")),
        }
    }

    #[cfg(test)]
    pub(crate) fn store(&self) -> &Store {
        &self.0.store
    }

    async fn create(
        &self,
        kind: SnapshotKind,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let wanted = Wanted {
            kind,
            key: key.clone(),
            parent: parent.cloned(),
            labels,
        };
        let this = Arc::clone(&self.0);
        blocking(move || {
            let Inside { store, layout, .. } = &*this;
            let key = wanted.key.clone();
            let chain = store.create(wanted, |directory, new| {
                layout.fill(store, directory, new)?;
                match layout.copies(new) {
                    // Whoever flushes the index next makes this row durable as well.
                    true => this.flushes.flush(),
                    false => Ok(()),
                }
            })?;
            let mounts = layout.mounts(store, &chain);
            if mounts.is_err()
                && let Err(error) = store.remove(&key)
            {
                tracing::warn!(%error, %key, "snapshot without mounts stays");
            }
            mounts
        })
        .await
    }
}

#[async_trait]
impl Snapshotter for Local {
    async fn stat(&self, key: &SnapshotKey) -> Result<SnapshotInfo> {
        let row = self.0.store.row(key)?;
        Ok(self.0.shown(row.id, row.info(key)))
    }

    async fn update(&self, info: SnapshotInfo, fields: &Fields) -> Result<SnapshotInfo> {
        let this = Arc::clone(&self.0);
        let fields = fields.clone();
        blocking(move || {
            let row = this.store.update(&info, &fields)?;
            Ok(this.shown(row.id, row.info(&info.name)))
        })
        .await
    }

    async fn usage(&self, key: &SnapshotKey) -> Result<Usage> {
        let (this, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || {
            let row = this.store.row(&key)?;
            match row.kind {
                SnapshotKind::Active => this.layout.usage(&this.store, &this.store.chain(&key)?),
                SnapshotKind::Committed | SnapshotKind::View => Ok(row.usage),
            }
        })
        .await
    }

    async fn mounts(&self, key: &SnapshotKey) -> Result<Vec<Mount>> {
        let chain = self.0.store.chain(key)?;
        if !self.0.layout.mounts_block() {
            return self.0.layout.mounts(&self.0.store, &chain);
        }
        let this = Arc::clone(&self.0);
        blocking(move || this.layout.mounts(&this.store, &chain)).await
    }

    async fn prepare(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::Active, key, parent, labels).await
    }

    async fn view(
        &self,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        self.create(SnapshotKind::View, key, parent, labels).await
    }

    async fn commit(&self, name: &SnapshotKey, key: &SnapshotKey, labels: Labels) -> Result<()> {
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        let done = blocking(move || this.commit((&name, &key), None, labels, false));
        done.await.map(drop)
    }

    async fn commit_noted(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Option<Redo>> {
        if parent.is_some() {
            self.can_rebase()?;
        }
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        let parent = parent.cloned();
        blocking(move || this.commit((&name, &key), parent.as_ref(), labels, true)).await
    }

    async fn redo(&self, all: &[Redo]) -> Result<Redone> {
        let (this, all) = (Arc::clone(&self.0), all.to_vec());
        blocking(move || {
            let remake = |directory: &Path, owner| this.layout.remake(directory, owner);
            this.store.redo(&all, &remake)
        })
        .await
    }

    async fn flush(&self) -> Result<()> {
        let this = Arc::clone(&self.0);
        blocking(move || this.store.flush()).await
    }

    fn flushed(&self, key: &SnapshotKey) {
        if let Ok(row) = self.0.store.row(key) {
            self.0.flushed().insert(row.id);
        }
    }

    fn rebases(&self) -> bool {
        self.0.layout.rebases()
    }

    async fn rebase(
        &self,
        name: &SnapshotKey,
        key: &SnapshotKey,
        parent: &SnapshotKey,
        labels: Labels,
    ) -> Result<()> {
        self.can_rebase()?;
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        let parent = parent.clone();
        let done = blocking(move || this.commit((&name, &key), Some(&parent), labels, false));
        done.await.map(drop)
    }

    async fn remove(&self, key: &SnapshotKey) -> Result<()> {
        let (this, key) = (Arc::clone(&self.0), key.clone());
        blocking(move || {
            let id = this.store.remove(&key)?;
            this.flushed().remove(&id);
            Ok(())
        })
        .await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<SnapshotInfo>> {
        let found = self.0.store.list(filter);
        Ok(found
            .into_iter()
            .map(|(id, info)| self.0.shown(id, info))
            .collect())
    }

    async fn verify(&self, since: Option<SystemTime>) -> Result<Vec<Broken>> {
        let this = Arc::clone(&self.0);
        blocking(move || {
            let Inside { store, layout, .. } = &*this;
            let is_same = |id, known| {
                let found = layout.print(store, id)?;
                Ok(found.is_none_or(|found| layout.agrees(known, found)))
            };
            let flaw = |directory: &Path, kind| layout.flaw(directory, kind);
            Ok(store.broken(since, |kind| layout.parts(kind), flaw, is_same))
        })
        .await
    }

    fn renews(&self) -> bool {
        self.0.layout.renews(&self.0.store)
    }

    async fn renew(&self, name: &SnapshotKey, key: &SnapshotKey) -> Result<()> {
        let (this, name, key) = (Arc::clone(&self.0), name.clone(), key.clone());
        blocking(move || {
            let Inside { store, layout, .. } = &*this;
            let id = store.row(&name)?.id;
            if !layout.renews(store) {
                return Err(Error::not_implemented("renew a committed snapshot"));
            }
            store.renew((&name, &key), |chain| {
                this.flush(chain.id)?;
                let sealed = layout.seal(store, chain)?;
                layout.take_place(store, chain)?;
                Ok(sealed)
            })?;
            layout.sealed(store, id);
            Ok(())
        })
        .await
    }

    async fn strangers(&self) -> Result<Vec<(PathBuf, bool)>> {
        let this = Arc::clone(&self.0);
        blocking(move || this.store.strangers()).await
    }

    fn damages(&self) -> Vec<String> {
        self.0.store.damages().to_vec()
    }

    async fn cleanup(&self) -> Result<()> {
        let this = Arc::clone(&self.0);
        // Whoever asks for it meanwhile waits for its turn, without a thread.
        let turn = this.cleaning.clone();
        beside::run(&turn, move || this.store.cleanup()).await
    }
}

#[cfg(test)]
mod power;
#[cfg(test)]
mod tests;
