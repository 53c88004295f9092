//! A snapshot that is being made: its key, id and parent are taken, its directory is on the way.
//!
//! Invariant: ends in a row ([`Reservation::keep`]) or in nothing (dropped); the parent cannot be
//! removed meanwhile.

use std::sync::Arc;

use types::{Result, SnapshotKey};

use super::row::{Change, Row};
use super::{Chain, Index};
use crate::note::Note;

/// A key and an id that are taken while their directory is being made; given back when dropped.
#[derive(Debug)]
pub(crate) struct Reservation {
    index: Arc<Index>,
    key: SnapshotKey,
    row: Row,
    parents: Vec<u64>,
}

impl Reservation {
    /// The index has noted `key` and the parent.
    pub(super) fn new(index: Arc<Index>, key: SnapshotKey, row: Row, parents: Vec<u64>) -> Self {
        Self {
            index,
            key,
            row,
            parents,
        }
    }

    /// The id.
    pub(crate) fn id(&self) -> u64 {
        self.row.id
    }

    /// What its directory tells of it.
    pub(crate) fn note(&self) -> Note {
        Note {
            kind: self.row.kind,
            parent: self.parents.first().copied(),
            labels: self.row.labels.clone(),
            key: self.key.clone(),
        }
    }

    /// Ids of the ancestors, nearest first.
    pub(crate) fn parents(&self) -> &[u64] {
        &self.parents
    }

    /// Makes the row: the directory is in place. Survives a killed process at once and a power cut
    /// from the next durable change on.
    ///
    /// # Errors
    /// I/O; there is no row then.
    pub(crate) fn keep(self) -> Result<Chain> {
        let chain = Chain {
            id: self.row.id,
            kind: self.row.kind,
            labels: self.row.labels.clone(),
            parents: self.parents.clone(),
        };
        let change = Change {
            key: self.key.clone(),
            row: Some(self.row.clone()),
        };
        self.index.change(|_| Ok((vec![change], ())))?;
        let index = Arc::clone(&self.index);
        drop(self);
        if let Err(error) = index.fold() {
            tracing::warn!(%error, "snapshot log not folded");
        }
        Ok(chain)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut state = self.index.state();
        if let Some(held) = state.reserved.remove(&self.key) {
            state.count(held.parent.as_ref(), false);
        }
    }
}
