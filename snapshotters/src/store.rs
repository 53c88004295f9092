//! Index and directories together: what all backends share.
//!
//! ```text
//!   reserve id -> snapshots/new-<id>/… (noted) -> rename to snapshots/<id> -> row
//!   row gone (durably before contents go) -> cleanup removes snapshots/<id>
//! ```
//! Invariant: a directory without a row or a reservation is garbage, at any moment and after a crash,
//! unless it was there when a damaged index was restored: then it is set aside. One that bears a note
//! gets its row again.

mod noted;

use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use rustix::io::Errno;
use types::{
    Context as _, Error, Fields, Filter, Labels, Result, SnapshotInfo, SnapshotKey, SnapshotKind,
};

use crate::directories::{self, Directories, NEW};
use crate::gate::Gate;
use crate::local::New;
use crate::note::Note;
use crate::storage::{Chain, FILES, Index, Row, Sealed};
use crate::{Broken, Redo};
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

/// True when a look failed for want of memory or descriptors: that says nothing of what was looked at.
fn is_of_machine(error: &Error) -> bool {
    let scarce = [Errno::NOMEM, Errno::MFILE, Errno::NFILE];
    let errno = error.errno();
    scarce.iter().any(|it| errno == Some(it.raw_os_error()))
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

    /// Puts the files of active `key` in the place of those of committed `name`, of the same parent. `seal`
    /// makes the active one ready, and says what it takes.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn renew(
        &self,
        names: (&SnapshotKey, &SnapshotKey),
        seal: impl FnOnce(&Chain) -> Result<Sealed>,
    ) -> Result<()> {
        let (name, key) = names;
        let (old, new) = self.index.look_renew(names)?;
        let _alone = (self.sealing.alone(old), self.sealing.alone(new));
        let sealed = seal(&self.index.chain(key)?)?;
        self.forget(new);
        // All of it may be gone.
        make_dir(&self.directory(old), 0o700)?;
        // Whatever comes in between, both directories are there, and the good one is the layer's from
        // here on.
        sys::fs::exchange(&self.directory(old), &self.directory(new))?;
        sys::fs::fsync_dir(&self.directories)?;
        self.index
            .renew(names, sealed)
            .ctx_with(|| format!("failed to renew snapshot {name}"))
    }

    /// The snapshots that miss one of `parts` in their directory, those of which `flaw` tells something,
    /// and the committed ones of which `is_same` says that they have not the print that they had, or that it
    /// cannot be taken any more; only those made after `since` are looked into.
    pub(crate) fn broken(
        &self,
        since: Option<SystemTime>,
        parts: impl Fn(SnapshotKind) -> &'static [&'static str],
        flaw: impl Fn(&Path, SnapshotKind) -> Option<String>,
        is_same: impl Fn(u64, u64) -> Result<bool>,
    ) -> Vec<Broken> {
        let mut broken = Vec::new();
        for (id, info) in self.list(&Filter::default()) {
            let directory = self.directory(id);
            let mut paths = parts(info.kind).iter().map(|part| directory.join(part));
            let gone = paths.find(|path| !path.exists());
            let is_gone = gone.is_some();
            let why = match gone {
                Some(gone) => Some(format!("{} is not there", gone.display())),
                None if since.is_some_and(|since| info.updated_at < since) => None,
                None => flaw(&directory, info.kind).or_else(|| self.changed(&info.name, &is_same)),
            };
            // Looked at once more: it may have been removed meanwhile, or committed.
            let is_there = |row: Row| row.id == id && row.kind == info.kind;
            if let Some(why) = why
                && self.row(&info.name).is_ok_and(is_there)
            {
                let key = info.name;
                broken.push(Broken { key, why, is_gone });
            }
        }
        broken
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

    /// What is wrong with the files of a committed snapshot.
    fn changed(
        &self,
        key: &SnapshotKey,
        is_same: impl Fn(u64, u64) -> Result<bool>,
    ) -> Option<String> {
        let row = self.row(key).ok()?;
        let known = row.print?;
        match is_same(row.id, known) {
            Ok(false) => Some(format!(
                "files in {} are gone or are not what they were",
                self.directory(row.id).display()
            )),
            Ok(true) => None,
            // The disk's own word, as btrfs has it for a block that has not its checksum, is that of a damage.
            Err(error) if !is_of_machine(&error) => Some(error.to_string()),
            Err(error) => {
                tracing::warn!(%error, %key, "snapshot cannot be looked at");
                None
            }
        }
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
