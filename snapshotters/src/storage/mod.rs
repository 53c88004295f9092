//! The index of snapshots: names, kinds, parents, labels; no files but its own.
//!
//! ```text
//!   call -> check and change the rows in memory + one line in the log   (killed process: kept)
//!        -> flush: directories, then one redb transaction, for all who wait (power cut: kept)
//! ```
//! Invariant: rows in memory = redb + log. A row is in redb when its directory is on the disk. A parent is committed and has no less children than rows
//! and reservations name; an id is never given twice while anything on disk bears it.

mod commit;
pub(crate) mod db;
mod flush;
mod log;
mod mirror;
mod open;
mod renew;
mod reservation;
mod row;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime};

use types::{
    Error, Fields, Filter, Labels, Result, SnapshotInfo, SnapshotKey, SnapshotKind, Usage,
};

use crate::Redo;
use db::Db;
use log::Log;
pub(crate) use open::FILES;
pub(crate) use reservation::Reservation;
use row::{Change, not_active};
pub(crate) use row::{Group, Owner, Row};

/// An active snapshot or view and the ids of its ancestors, nearest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) id: u64,
    pub(crate) kind: SnapshotKind,
    pub(crate) labels: Labels,
    pub(crate) parents: Vec<u64>,
}

/// What is known of a snapshot when it is committed.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sealed {
    /// What it takes.
    pub(crate) usage: Usage,
    /// See [`Row::print`].
    pub(crate) print: Option<u64>,
    /// See [`Row::bare`].
    pub(crate) bare: Option<Owner>,
}

impl From<Usage> for Sealed {
    fn from(usage: Usage) -> Self {
        Self {
            usage,
            ..Self::default()
        }
    }
}

/// What a commit would make.
#[derive(Debug)]
pub(crate) struct Look {
    /// The snapshot, on what it would stand.
    pub(crate) chain: Chain,
    /// It was made without a parent.
    pub(crate) alone: bool,
    /// Its new parent, which cannot be removed as long as this is there.
    _onto: Held,
}

/// A parent that is held without a row that names it.
#[derive(Debug)]
struct Held {
    index: Arc<Index>,
    parent: Option<SnapshotKey>,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.index.state().count(self.parent.as_ref(), false);
    }
}

/// The index.
#[derive(Debug)]
pub(crate) struct Index {
    /// Never held while a file is written or read: whoever only asks has his answer at once.
    state: Mutex<State>,
    /// Taken for each change of the rows and before the state: while a change is being written, what it
    /// rests on stays as it is.
    log: Mutex<Log>,
    /// Taken for each durable write, before all others; whoever has it writes for all who wait.
    db: Mutex<Db>,
    /// Where the copy is.
    copy: PathBuf,
    /// Where the directories of snapshots are; none when they are only looked at.
    directories: Option<PathBuf>,
    /// What was wrong with it when it was opened.
    damages: Vec<String>,
}

#[derive(Debug)]
struct State {
    rows: BTreeMap<SnapshotKey, Row>,
    children: HashMap<SnapshotKey, usize>,
    /// Keys whose directories are being made.
    reserved: HashMap<SnapshotKey, Reserved>,
    next_id: u64,
    sequence: u64,
    flushed: u64,
    /// Changes that are not in the file, in order.
    dirty: Vec<Change>,
    /// Ids among them whose directories may not be there after a power cut.
    unplaced: HashSet<u64>,
    /// Length of the log with all these.
    logged: u64,
    /// Bytes of the log that are not in the file.
    unflushed: u64,
    /// Length of the copy that the log goes on from.
    copied: u64,
    /// Copy and log do not tell all: a group between them is gone.
    has_gap: bool,
    /// The copy failed, and is not tried again before.
    retry: Option<Instant>,
}

#[derive(Clone, Debug)]
struct Reserved {
    id: u64,
    parent: Option<SnapshotKey>,
}

fn missing(key: &SnapshotKey) -> Error {
    Error::not_found(format_args!("snapshot {key}"))
}

impl State {
    fn row(&self, key: &SnapshotKey) -> Result<&Row> {
        self.rows.get(key).ok_or_else(|| missing(key))
    }

    fn taken(&self, key: &SnapshotKey) -> Result<()> {
        if self.rows.contains_key(key) || self.reserved.contains_key(key) {
            return Err(Error::already_exists(format_args!("snapshot {key}")));
        }
        Ok(())
    }

    /// Ids of `first` and its ancestors.
    fn ancestors(&self, first: Option<&SnapshotKey>) -> Result<Vec<u64>> {
        let mut ids = Vec::new();
        let mut at = first;
        while let Some(key) = at {
            let row = self.rows.get(key).ok_or_else(|| {
                Error::not_found(format_args!("parent snapshot {key} does not exist"))
            })?;
            // A damaged index could hold a circle.
            if ids.len() > self.rows.len() {
                return Err(Error::data_loss(format_args!(
                    "snapshot {key} is its own ancestor"
                )));
            }
            ids.push(row.id);
            at = row.parent.as_ref();
        }
        Ok(ids)
    }

    fn committed(&self, parent: &SnapshotKey) -> Result<()> {
        let row = self.rows.get(parent).ok_or_else(|| {
            Error::not_found(format_args!("missing parent {:?} bucket", parent.as_str()))
        })?;
        if row.kind == SnapshotKind::Committed {
            return Ok(());
        }
        Err(Error::invalid_argument(format_args!(
            "parent {:?} is not committed snapshot",
            parent.as_str()
        )))
    }

    fn can_be_onto(&self, row: &Row, parent: &SnapshotKey) -> Result<()> {
        match &row.parent {
            Some(other) if other != parent => Err(Error::failed_precondition(format_args!(
                "snapshot has the parent {other}, it cannot be committed onto {parent}"
            ))),
            _ => self.committed(parent),
        }
    }

    /// The row of active `key`, when it can become committed `name`.
    fn committable(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
    ) -> Result<&Row> {
        let row = self
            .row(key)
            .map_err(|e| e.ctx("failed to get active snapshot"))?;
        not_active(key, row)?;
        self.taken(name).map_err(|e| e.ctx("committed snapshot"))?;
        if let Some(onto) = onto {
            self.can_be_onto(row, onto)?;
        }
        Ok(row)
    }

    fn count(&mut self, parent: Option<&SnapshotKey>, more: bool) {
        let Some(parent) = parent else { return };
        let count = self.children.entry(parent.clone()).or_default();
        *count = if more {
            *count + 1
        } else {
            count.saturating_sub(1)
        };
        if *count == 0 {
            self.children.remove(parent);
        }
    }

    /// Applies changes to the rows alone.
    fn apply(&mut self, changes: &[Change]) {
        for change in changes {
            let old = match &change.row {
                Some(row) => {
                    self.count(row.parent.as_ref(), true);
                    self.rows.insert(change.key.clone(), row.clone())
                }
                None => self.rows.remove(&change.key),
            };
            if let Some(old) = old {
                self.count(old.parent.as_ref(), false);
            }
        }
    }

    /// Ids of changes that no row has: those of snapshots that were just made.
    fn new_ids(&self, changes: &[Change]) -> Vec<u64> {
        let had = |key| self.rows.get(key).map(|row: &Row| row.id);
        let old: Vec<u64> = changes.iter().filter_map(|c| had(&c.key)).collect();
        let rows = changes.iter().filter_map(|change| change.row.as_ref());
        rows.map(|row| row.id)
            .filter(|id| !old.contains(id))
            .collect()
    }
}

impl Index {
    fn state(&self) -> MutexGuard<'_, State> {
        // Changes of the rows cannot fail half-way: a panicking holder left them whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Logs and applies the group that `decide` makes of the state, one group at a time. With its answer
    /// comes what [`Index::flush`] has to wait for.
    fn change<T>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Vec<Change>, T)>,
    ) -> Result<(T, u64)> {
        let (answer, redo) = self.change_noted(decide)?;
        Ok((answer, redo.sequence))
    }

    /// The same; what comes with the answer tells of the group itself, too.
    fn change_noted<T>(
        &self,
        decide: impl FnOnce(&State) -> Result<(Vec<Change>, T)>,
    ) -> Result<(T, Redo)> {
        let mut log = self.log();
        let (changes, answer, sequence, next_id) = {
            let state = self.state();
            let (changes, answer) = decide(&state)?;
            (changes, answer, state.sequence + 1, state.next_id)
        };
        let text = log.append(sequence, next_id, &changes)?;
        let mut state = self.state();
        state.unflushed += log.len() - state.logged;
        state.logged = log.len();
        state.sequence = sequence;
        let new = state.new_ids(&changes);
        state.unplaced.extend(new);
        state.apply(&changes);
        state.dirty.extend(changes);
        Ok((answer, Redo { sequence, text }))
    }

    /// Facts of one snapshot, with its id.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn get(&self, key: &SnapshotKey) -> Result<Row> {
        self.state().row(key).cloned()
    }

    /// All snapshots that pass, with their ids.
    pub(crate) fn list(&self, filter: &Filter) -> Vec<(u64, SnapshotInfo)> {
        let state = self.state();
        let all = state.rows.iter().map(|(key, row)| (row.id, row.info(key)));
        all.filter(|(_, info)| filter.matches(info)).collect()
    }

    /// The chain of an active snapshot or a view.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` for a committed one.
    pub(crate) fn chain(&self, key: &SnapshotKey) -> Result<Chain> {
        let state = self.state();
        let row = state.row(key)?;
        if row.kind == SnapshotKind::Committed {
            return Err(Error::failed_precondition(format_args!(
                "requested snapshot {key} not active or view"
            )));
        }
        Ok(Chain {
            id: row.id,
            kind: row.kind,
            labels: row.labels.clone(),
            parents: state.ancestors(row.parent.as_ref())?,
        })
    }

    /// Takes `key` and an id for a new snapshot, and holds the parent.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound` and `InvalidArgument` as in the contract of `prepare`.
    pub(crate) fn reserve(
        self: &Arc<Self>,
        kind: SnapshotKind,
        key: &SnapshotKey,
        parent: Option<&SnapshotKey>,
        labels: Labels,
    ) -> Result<Reservation> {
        // A change on its way may be about to take the key or the parent.
        let _still = self.log();
        let mut state = self.state();
        if let Some(parent) = parent {
            state.committed(parent)?;
        }
        state.taken(key)?;
        let parents = state.ancestors(parent)?;
        let id = state.next_id;
        state.next_id += 1;
        let held = Reserved {
            id,
            parent: parent.cloned(),
        };
        state.count(parent, true);
        state.reserved.insert(key.clone(), held);
        let now = SystemTime::now();
        let row = Row {
            id,
            kind,
            parent: parent.cloned(),
            labels,
            created_at: now,
            updated_at: now,
            usage: Usage::default(),
            print: None,
            bare: None,
        };
        Ok(Reservation::new(
            Arc::clone(self),
            key.clone(),
            row,
            parents,
        ))
    }

    /// Looks whether active `key` can become committed `name`, with `onto` as a child of that, and what
    /// it would stand on; holds that.
    ///
    /// # Errors
    /// As [`Index::commit`].
    pub(crate) fn look(
        self: &Arc<Self>,
        (name, key): (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
    ) -> Result<Look> {
        // The removal of `onto` may be on its way.
        let _still = self.log();
        let mut state = self.state();
        let row = state.committable((name, key), onto)?;
        let alone = row.parent.is_none();
        let chain = Chain {
            id: row.id,
            kind: row.kind,
            labels: row.labels.clone(),
            parents: state.ancestors(onto.or(row.parent.as_ref()))?,
        };
        state.count(onto, true);
        Ok(Look {
            chain,
            alone,
            _onto: Held {
                index: Arc::clone(self),
                parent: onto.cloned(),
            },
        })
    }

    /// Takes a snapshot out of the index: durably for a committed one.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while it has children; I/O.
    pub(crate) fn remove(&self, key: &SnapshotKey) -> Result<Row> {
        let (row, sequence) = self.change(|state| {
            let row = state.row(key)?.clone();
            if state.children.contains_key(key) {
                return Err(Error::failed_precondition(
                    "cannot remove snapshot with child",
                ));
            }
            let gone = Change {
                key: key.clone(),
                row: None,
            };
            Ok((vec![gone], row))
        })?;
        if row.kind == SnapshotKind::Committed {
            self.flush(sequence)?;
        } else {
            self.fold()?;
        }
        Ok(row)
    }

    /// Replaces labels, durably.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change; I/O.
    pub(crate) fn update(&self, info: &SnapshotInfo, fields: &Fields) -> Result<Row> {
        let (row, sequence) = self.change(|state| {
            let mut row = state.row(&info.name)?.clone();
            if fields.is_all() {
                row.labels = info.labels.clone().without_empty();
            } else {
                for (path, (field, label)) in fields.iter().zip(fields.split()) {
                    match (field, label) {
                        ("labels", None) => row.labels = info.labels.clone().without_empty(),
                        ("labels", Some(name)) => {
                            let value = info.labels.get(name).map_or("", String::as_str);
                            row.labels.set(name, value);
                        }
                        _ => return Fields::refuse(path, &format!("snapshot {:?}", info.name)),
                    }
                }
            }
            row.labels.validate()?;
            row.updated_at = SystemTime::now();
            let change = Change {
                key: info.name.clone(),
                row: Some(row.clone()),
            };
            Ok((vec![change], row))
        })?;
        self.flush(sequence)?;
        Ok(row)
    }

    /// What was wrong with the index when it was opened, and was restored.
    pub(crate) fn damages(&self) -> &[String] {
        &self.damages
    }

    /// All ids of rows, and those of reservations.
    pub(crate) fn ids(&self) -> (HashSet<u64>, HashSet<u64>) {
        let state = self.state();
        let rows = state.rows.values().map(|row| row.id);
        let making = state.reserved.values().map(|held| held.id);
        (rows.collect(), making.collect())
    }
}

#[cfg(test)]
mod tests;
