//! Commits that somebody else's journal makes durable: until the next flush their directories tell of the
//! active ones that they were, and after a power cut they are made again.
//!
//! Invariant: a row that is made again has its directory.

use std::path::Path;
use std::sync::{MutexGuard, PoisonError};

use types::{Error, Result};

use super::Store;
use crate::Redo;
use crate::directories::NEW;
use crate::storage::{Group, Owner};

/// How a commit becomes durable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Durable {
    /// By a flush, of its directory as well.
    Now,
    /// What is in its directory is flushed, or can be made again: the caller's journal does the rest.
    Noted,
}

impl Store {
    /// Makes a commit again if it is gone, and tells whether it was. `remake` makes a directory of which nothing is left, for what
    /// nobody had touched.
    ///
    /// # Errors
    /// As the contract.
    pub(crate) fn redo(
        &self,
        redo: &Redo,
        remake: impl FnOnce(&Path, Owner) -> Result<()>,
    ) -> Result<bool> {
        let group = Group::decode(&redo.text)?;
        let made = group.made();
        let (name, row) = made.ok_or_else(|| Error::data_loss("there is no snapshot in it"))?;
        if self.index.get(name).is_ok() {
            return Ok(false);
        }
        let directory = self.directory(row.id);
        if !directory.is_dir() {
            let bare = row.bare.ok_or_else(|| {
                let directory = directory.display();
                Error::data_loss(format_args!("{directory} of snapshot {name} is gone"))
            })?;
            let temporary = self.directories.join(format!("{NEW}{}", row.id));
            self.delete(&temporary);
            remake(&temporary, bare)?;
            std::fs::rename(&temporary, &directory)
                .map_err(|e| Error::os(format_args!("rename {}", temporary.display()), e))?;
        }
        self.index.redo(&group, (name, row))?;
        tracing::warn!(%name, "the power has taken the commit of a snapshot: it is made again");
        self.telling().push(row.id);
        Ok(true)
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
