//! Index and directories together: what all backends share.
//!
//! ```text
//!   reserve id -> snapshots/new-<id>/… (noted) -> rename to snapshots/<id> -> row
//!   row gone (durably before contents go) -> cleanup removes snapshots/<id>
//! ```
//! Invariant: a directory without a row or a reservation is garbage, at any moment and after a crash,
//! unless it was there when a damaged index was restored: then it is set aside. One that bears a note
//! gets its row again.

mod damage;
mod noted;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use rustix::io::Errno;
use types::{
    Context as _, Error, Fields, Filter, Labels, Result, SnapshotInfo, SnapshotKey, SnapshotKind,
};

use crate::Redo;
use crate::directories::{self, Directories, NEW};
use crate::gate::Gate;
use crate::local::New;
use crate::note::Note;
use crate::storage::{Chain, FILES, Index, Row, Sealed};
pub(crate) use noted::Durable;

/// A snapshotter's root: index and snapshot directories.
#[derive(Debug)]
pub(crate) struct Store {
    directories: PathBuf,
    index: Arc<Index>,
    keeping: Keeping,
    /// Ids of those that are being committed.
    sealing: Gate,
    /// It is only looked at.
    is_examined: bool,
    /// Ids of committed ones whose directories tell of themselves until the next flush.
    telling: Mutex<Vec<u64>>,
}

/// How a store keeps directories.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Keeping {
    /// Directories go within `remove` instead of in `cleanup`.
    pub(crate) sync_remove: bool,
    /// Whether they tell of themselves.
    pub(crate) notes: Notes,
    /// Removes one, whole or half made.
    pub(crate) remove: fn(&Path) -> Result<()>,
}

/// Whether directories of snapshots tell of themselves: only where nobody else writes to them, nor
/// copies them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Notes {
    /// They do.
    Kept,
    /// They are the trees of containers.
    None,
}

impl Notes {
    fn of(self, directories: Directories) -> Directories {
        match self {
            Self::Kept => directories.noted(),
            Self::None => directories,
        }
    }
}

/// Which snapshot to make.
#[derive(Debug)]
pub(crate) struct Wanted {
    pub(crate) kind: SnapshotKind,
    pub(crate) key: SnapshotKey,
    pub(crate) parent: Option<SnapshotKey>,
    pub(crate) labels: Labels,
}

/// The files that the index of the snapshotter in `root` may have: what `examine` copies.
#[must_use]
pub fn index_files(root: &Path) -> [PathBuf; 3] {
    FILES.map(|name| root.join(name))
}

/// Makes a directory and the missing ones above it, each with `mode`.
pub(crate) fn make_dir(path: &Path, mode: u32) -> Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|e| Error::os(format_args!("mkdir {}", path.display()), e))
}

impl Store {
    /// Opens or makes the store in `root`.
    ///
    /// # Errors
    /// `Unavailable` while another process has it; `FailedPrecondition` when there are directories but
    /// no index; `DataLoss`; I/O.
    pub(crate) fn open(root: &Path, keeping: Keeping) -> Result<Self> {
        let directories = root.join("snapshots");
        make_dir(&directories, 0o700)?;
        let found = keeping.notes.of(Directories::list(&directories)?);
        let index = Arc::new(Index::open(root, &found)?);
        Ok(Self {
            directories,
            index,
            keeping,
            sealing: Gate::default(),
            is_examined: false,
            telling: Mutex::default(),
        })
    }

    /// Opens copies in `scratch`, an empty directory, of the index in `root`: nothing in `root` is
    /// changed, so this is for looking and for nothing else.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) fn examine(root: &Path, scratch: &Path, keeping: Keeping) -> Result<Self> {
        make_dir(scratch, 0o700)?;
        for (from, to) in index_files(root).iter().zip(index_files(scratch)) {
            sys::fs::copy_if_there(from, &to)?;
        }
        let directories = root.join("snapshots");
        let index = Index::open(scratch, &keeping.notes.of(Directories::look(&directories)?))?;
        Ok(Self {
            directories,
            index: Arc::new(index),
            keeping,
            sealing: Gate::default(),
            is_examined: true,
            telling: Mutex::default(),
        })
    }

    /// What was wrong with the index when it was opened.
    pub(crate) fn damages(&self) -> &[String] {
        self.index.damages()
    }

    /// Where all directories are.
    pub(crate) fn directories(&self) -> &Path {
        &self.directories
    }

    /// The directory of a snapshot.
    pub(crate) fn directory(&self, id: u64) -> PathBuf {
        self.directories.join(id.to_string())
    }

    /// The row of a snapshot.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn row(&self, key: &SnapshotKey) -> Result<Row> {
        self.index.get(key)
    }

    /// The chain of an active snapshot or a view.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed one.
    pub(crate) fn chain(&self, key: &SnapshotKey) -> Result<Chain> {
        self.index.chain(key)
    }

    /// All snapshots that pass, with their ids.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<(u64, SnapshotInfo)> {
        self.index.list(filter)
    }

    /// Makes a snapshot: `fill` makes its contents in the directory that it is given, which is not
    /// there yet.
    ///
    /// # Errors
    /// As the contract of `prepare`; nothing is left then.
    pub(crate) fn create(
        &self,
        wanted: Wanted,
        fill: impl FnOnce(&Path, &New<'_>) -> Result<()>,
    ) -> Result<Chain> {
        let Wanted {
            kind,
            key,
            parent,
            labels,
        } = wanted;
        labels.validate()?;
        let labels = labels.without_empty();
        let reservation = self
            .index
            .reserve(kind, &key, parent.as_ref(), labels.clone())
            .ctx("failed to create snapshot")?;
        let temporary = self.directories.join(format!("{NEW}{}", reservation.id()));
        let final_path = self.directory(reservation.id());
        let new = New {
            kind,
            labels: &labels,
            parents: reservation.parents(),
        };
        let made = fill(&temporary, &new).and_then(|()| {
            if self.keeping.notes == Notes::Kept {
                reservation.note().write(&temporary);
            }
            std::fs::rename(&temporary, &final_path)
                .map_err(|e| Error::os(format_args!("rename {}", temporary.display()), e))
        });
        let kept = made.and_then(|()| reservation.keep());
        if kept.is_err() {
            for path in [&temporary, &final_path] {
                self.delete(path);
            }
        }
        kept
    }

    /// Commits an active snapshot; with `onto` as a child of that. `seal` makes it ready, hears whether
    /// it has had no parent, and says what it takes, and how it becomes durable; `unseal` undoes that when
    /// the index refuses. The answer is its id, and what somebody has to note.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn commit(
        &self,
        names: (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        labels: Labels,
        seal: impl FnOnce(&Chain, bool) -> Result<(Sealed, Durable)>,
        unseal: impl FnOnce(&Chain) -> Result<()>,
    ) -> Result<(u64, Option<Redo>)> {
        let (_, key) = names;
        let failed = || format!("failed to commit snapshot {key}");
        labels.validate()?;
        let _alone = self.sealing.alone(self.index.get(key)?.id);
        // Sealing can take long: not when the answer is known already.
        let look = self.index.look(names, onto).ctx_with(failed)?;
        let done = seal(&look.chain, look.alone).and_then(|(sealed, durable)| {
            let (index, labels) = (&self.index, labels.without_empty());
            // What is in the directory is flushed, and the index sees to it that it is there.
            let done = match durable {
                Durable::Now => index.commit(names, onto, labels, sealed).map(|()| None),
                Durable::Noted => index.commit_noted(names, onto, labels, sealed).map(Some),
            };
            done.ctx_with(failed)
        });
        let id = look.chain.id;
        match done {
            Ok(redo) => {
                match redo {
                    Some(_) => self.telling().push(id),
                    None => self.forget(id),
                }
                Ok((id, redo))
            }
            Err(error) => {
                // A row that could not be flushed is changed nevertheless.
                let stays = self.index.get(key).is_ok_and(|row| row.id == id);
                if stays && let Err(error) = unseal(&look.chain) {
                    tracing::warn!(%error, %key, "snapshot stays sealed though it is not committed");
                }
                Err(error)
            }
        }
    }

    /// The directory does not tell of itself any more.
    fn forget(&self, id: u64) {
        if self.keeping.notes == Notes::Kept {
            Note::remove(&self.directory(id));
        }
    }

    /// Replaces labels.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn update(&self, info: &SnapshotInfo, fields: &Fields) -> Result<Row> {
        self.index.update(info, fields)
    }

    /// Removes a snapshot; its directory too when the store was opened so. The answer is its id.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn remove(&self, key: &SnapshotKey) -> Result<u64> {
        let row = self
            .index
            .remove(key)
            .ctx_with(|| format!("failed to remove snapshot {key}"))?;
        self.forget(row.id);
        if self.keeping.sync_remove {
            self.index.flush_all()?;
            self.delete(&self.directory(row.id));
        }
        Ok(row.id)
    }

    /// The directories that no row and no reservation names; true for those that `cleanup` removes.
    ///
    /// # Errors
    /// I/O of listing.
    pub(crate) fn strangers(&self) -> Result<Vec<(PathBuf, bool)>> {
        if !self.directories.is_dir() {
            return Ok(Vec::new());
        }
        // Listed before the ids are taken: what is made in between is not in the list.
        let found = directories::listing(&self.directories)?;
        let (ids, making) = self.index.ids();
        let lost = found.iter().filter(|name| directories::is_lost(name));
        let lost: Vec<_> = lost
            .map(|name| (self.directories.join(name), false))
            .collect();
        let garbage = directories::garbage(found, &ids, &making).into_iter();
        let garbage = garbage.map(|name| (self.directories.join(name), true));
        Ok(garbage.chain(lost).collect())
    }

    /// Removes every directory that no row and no reservation names, but those that were set aside.
    ///
    /// # Errors
    /// I/O of the index or of listing; a directory that cannot be removed is logged and left.
    pub(crate) fn cleanup(&self) -> Result<()> {
        // Listed before the ids are taken: what is made in between is not in the list.
        let found = directories::listing(&self.directories)?;
        let (ids, making) = self.index.ids();
        let garbage = directories::garbage(found, &ids, &making);
        if garbage.is_empty() {
            return Ok(());
        }
        // A power cut must not bring a row back whose contents are half gone.
        self.flush()?;
        for name in garbage {
            self.delete(&self.directories.join(name));
        }
        Ok(())
    }

    /// Removes a directory. Mounts that somebody has left in it, as a killed process leaves them, are
    /// taken out of the tree first: what is in them is not ours to delete.
    fn delete(&self, path: &Path) {
        let remove = self.keeping.remove;
        let removed = remove(path).or_else(|error| {
            let busy = Some(Errno::BUSY.raw_os_error());
            if error.errno() != busy {
                return Err(error);
            }
            tracing::warn!(%error, path = %path.display(), "mounts are left in a removed snapshot");
            sys::mount::unmount_recursive(path)?;
            remove(path)
        });
        if let Err(error) = removed {
            tracing::warn!(%error, path = %path.display(), "failed to remove directory");
        }
    }
}

/// Where the mount options of an overlay can name it: the absolute path of a root.
///
/// # Errors
/// `InvalidArgument` for a path with a character that separates options; I/O.
pub(crate) fn nameable(root: &Path) -> Result<PathBuf> {
    let root = absolute(root)?;
    match root.to_str() {
        Some(text) if !text.contains([':', ',', '\\']) => Ok(root),
        _ => Err(Error::invalid_argument(format_args!(
            "snapshotter root {root:?} must not contain ':', ',' or '\\'"
        ))),
    }
}

/// The absolute path of a root, which is made when it is not there.
///
/// # Errors
/// I/O.
pub(crate) fn absolute(root: &Path) -> Result<PathBuf> {
    make_dir(root, 0o700)?;
    std::path::absolute(root).map_err(|e| Error::os(format_args!("resolve {}", root.display()), e))
}

/// What mount options have of a path.
pub(crate) fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

/// A bind mount of a directory of ours.
pub(crate) fn bind(source: &Path, options: [&str; 2]) -> Vec<types::Mount> {
    vec![types::Mount {
        kind: "bind".into(),
        source: text(source),
        target: String::new(),
        options: options.map(Into::into).into(),
    }]
}

/// Runs blocking work off the reactor. The work ends also when the caller goes away.
///
/// # Errors
/// Those of the work; `Internal` when it panicked.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Error::internal("snapshotter task failed").with_source(error)),
    }
}
