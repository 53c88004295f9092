//! Commits that somebody else's journal makes durable: until the next flush their directories tell of the
//! active ones that they were, and after a power cut they are made again.
//!
//! Invariant: a row that is made again has its directory. A commit that cannot be made again leaves no
//! active snapshot behind that would be taken for it.

use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use types::{Code, Error, Result};

use super::Store;
use crate::directories::{Directories, NEW, lost_path};
use crate::storage::{Group, Owner, Row};
use crate::{Redo, Redone};

/// How a commit becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// By a flush, of its directory as well.
    Now,
    /// What is in its directory is flushed, or can be made again: the caller's journal does the rest.
    Noted,
}

/// Makes a directory of which nothing is left, for what nobody had touched.
type Remake<'a> = &'a dyn Fn(&Path, Owner) -> Result<()>;

impl Store {
    /// Makes commits again that are gone.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn redo(&self, all: &[Redo], remake: Remake<'_>) -> Result<Redone> {
        let mut done = Redone::default();
        if self.is_examined {
            return Ok(done);
        }
        let mut left: Vec<usize> = (0..all.len()).collect();
        left.sort_by_key(|at| all[*at].sequence);
        loop {
            let (before, mut orphans) = (left.len(), Vec::new());
            for at in left {
                match self.redo_one(&all[at], remake) {
                    Ok(is_made) => done.made += usize::from(is_made),
                    // Its parent may come later: sequences begin anew after a power cut.
                    Err(error) if error.is_not_found() => orphans.push((at, error)),
                    Err(error) if error.is(Code::DataLoss) => done.lost.push((at, error)),
                    Err(error) => return Err(error),
                }
            }
            if orphans.is_empty() || orphans.len() == before {
                done.lost.append(&mut orphans);
                break;
            }
            left = orphans.into_iter().map(|(at, _)| at).collect();
        }
        for (at, _) in &done.lost {
            self.discard(&all[*at])?;
        }
        if done.made > 0 || !done.lost.is_empty() {
            // What stood on one of them was nobody's child until now.
            let found = self.keeping.notes.of(Directories::list(&self.directories)?);
            self.index.adopt(&found)?;
            self.flush()?;
        }
        Ok(done)
    }

    /// True when it was gone.
    fn redo_one(&self, redo: &Redo, remake: Remake<'_>) -> Result<bool> {
        let group = Group::decode(&redo.text)?;
        let made = group.made();
        let (name, row) = made.ok_or_else(|| Error::data_loss("there is no snapshot in it"))?;
        if self.index.get(name).is_ok() {
            self.telling().push(row.id);
            return Ok(false);
        }
        if let Some(parent) = &row.parent {
            self.index.get(parent)?;
        }
        self.place(row, remake)
            .map_err(|e| e.ctx(format!("snapshot {name}")))?;
        self.index.redo(&group, (name, row))?;
        tracing::warn!(%name, "the power has taken the commit of a snapshot: it is made again");
        self.telling().push(row.id);
        Ok(true)
    }

    /// Sees to it that the directory of a row is there.
    fn place(&self, row: &Row, remake: Remake<'_>) -> Result<()> {
        let directory = self.directory(row.id);
        let to_place = |from: &Path| {
            std::fs::rename(from, &directory)
                .map_err(|e| Error::os(format_args!("rename {}", from.display()), e))
        };
        if directory.is_dir() {
            return Ok(());
        }
        let lost = lost_path(&self.directories, row.id);
        if lost.is_dir() {
            return to_place(&lost);
        }
        let bare = row
            .bare
            .ok_or_else(|| Error::data_loss(format_args!("{} is gone", directory.display())))?;
        let temporary = self.directories.join(format!("{NEW}{}", row.id));
        self.delete(&temporary);
        remake(&temporary, bare)?;
        to_place(&temporary)
    }

    /// Takes away the active snapshot that a lost commit was.
    fn discard(&self, redo: &Redo) -> Result<()> {
        match Group::decode(&redo.text) {
            Ok(group) => self.index.discard(&group),
            Err(_) => Ok(()),
        }
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// I/O.
    pub(crate) fn flush(&self) -> Result<()> {
        let told = std::mem::take(&mut *self.telling());
        let flushed = self.index.flush_all();
        match flushed {
            Ok(()) => told.into_iter().for_each(|id| self.forget(id)),
            Err(_) => self.telling().extend(told),
        }
        flushed
    }

    /// See [`Store::flush`].
    pub(super) fn telling(&self) -> MutexGuard<'_, Vec<u64>> {
        // A list of numbers is whole whoever panicked.
        self.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
