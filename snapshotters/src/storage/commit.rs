//! Commits, and commits that are made again.
//!
//! ```text
//!   row - flush                                   durable
//!   row - its group told - somebody's journal     durable as well; the flush is whenever there is one
//!   power cut - the group from there - row again
//! ```
//! Invariant: a group that is told can be applied to any state of the index before it: it names nothing but
//! a committed parent.

use std::time::SystemTime;

use types::{Error, Labels, Result, SnapshotKey, SnapshotKind};

use super::row::Change;
use super::{Group, Index, Row, Sealed, State};
use crate::Redo;

impl State {
    /// What makes active `key` the committed `name`.
    fn to_commit(
        &self,
        (name, key): (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        labels: Labels,
        sealed: Sealed,
    ) -> Result<Vec<Change>> {
        let old = self.committable((name, key), onto)?;
        let now = SystemTime::now();
        let row = Row {
            kind: SnapshotKind::Committed,
            labels,
            parent: onto.or(old.parent.as_ref()).cloned(),
            created_at: now,
            updated_at: now,
            usage: sealed.usage,
            print: sealed.print,
            bare: sealed.bare,
            ..old.clone()
        };
        Ok(Change::to_name(key, name, row))
    }

    /// What of `group` is to be done again.
    fn to_redo(&self, group: &Group, (name, row): (&SnapshotKey, &Row)) -> Result<Vec<Change>> {
        if let Some(parent) = &row.parent {
            self.committed(parent)?;
        }
        let is_its = |key: &SnapshotKey| group.changes.iter().any(|change| change.key == *key);
        let others = self.rows.iter().filter(|(_, other)| other.id == row.id);
        for (other, _) in others {
            if !is_its(other) {
                return Err(Error::data_loss(format_args!(
                    "the directory of snapshot {name} belongs to {other}"
                )));
            }
        }
        let changes = group.changes.iter();
        let is_due = |change: &&Change| match &change.row {
            Some(_) => true,
            None => self.rows.get(&change.key).is_some_and(|it| it.id == row.id),
        };
        Ok(changes.filter(is_due).cloned().collect())
    }
}

impl Index {
    /// Turns active `key` into committed `name`, durably; with `onto` as a child of that.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition`, `AlreadyExists`, `InvalidArgument` as in the contract; I/O.
    pub(crate) fn commit(
        &self,
        names: (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        labels: Labels,
        sealed: Sealed,
    ) -> Result<()> {
        let decide = |state: &State| Ok((state.to_commit(names, onto, labels, sealed)?, ()));
        let ((), sequence) = self.change(decide)?;
        self.flush(sequence)
    }

    /// The same, durable when the answer is.
    ///
    /// # Errors
    /// As [`Index::commit`].
    pub(crate) fn commit_noted(
        &self,
        names: (&SnapshotKey, &SnapshotKey),
        onto: Option<&SnapshotKey>,
        labels: Labels,
        sealed: Sealed,
    ) -> Result<Redo> {
        let decide = |state: &State| Ok((state.to_commit(names, onto, labels, sealed)?, ()));
        let ((), redo) = self.change_noted(decide)?;
        if let Err(error) = self.fold() {
            tracing::warn!(%error, "snapshot log not folded");
        }
        Ok(redo)
    }

    /// Makes the row again that `group` has made, whose directory is there.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument` for the parent; `DataLoss` when another has its directory; I/O.
    pub(crate) fn redo(&self, group: &Group, made: (&SnapshotKey, &Row)) -> Result<()> {
        {
            let mut state = self.state();
            state.next_id = state.next_id.max(group.next);
        }
        self.change(|state| Ok((state.to_redo(group, made)?, ())))
            .map(drop)
    }

    /// Takes the active snapshot away that `group` has turned into a committed one which is lost.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn discard(&self, group: &Group) -> Result<()> {
        let Some((_, made)) = group.made() else {
            return Ok(());
        };
        let gone = {
            let state = self.state();
            let was = group.changes.iter().filter(|change| change.row.is_none());
            let is_its = |change: &&Change| {
                let row = state.rows.get(&change.key);
                row.is_some_and(|row| row.id == made.id && row.kind != SnapshotKind::Committed)
            };
            was.filter(is_its).cloned().collect::<Vec<_>>()
        };
        if gone.is_empty() {
            return Ok(());
        }
        self.change(|_| Ok((gone, ()))).map(drop)
    }
}
