//! How changes become durable: into the file for all who wait, and now and then into the second copy.
//!
//! Invariant: what a caller waits for is the file alone, and the directories of its new rows. The copy holds no group that the file has not,
//! and the log goes on from the copy without a gap; trouble with the two is told and tried again later.

use std::sync::PoisonError;
use std::time::{Duration, Instant};

use types::{Result, SnapshotKey};

use super::{Index, Row, State, mirror};

/// Beyond this length the log is folded into the file at the next change.
pub(super) const LOG_FOLD: u64 = 256 * 1024;
/// How long a copy that failed is not tried again: each try writes all of it.
pub(super) const PAUSE: Duration = Duration::from_secs(5);

/// The index at one moment, for a copy.
#[derive(Debug)]
pub(super) struct Image {
    rows: Vec<(SnapshotKey, Row)>,
    sequence: u64,
    next_id: u64,
    /// Length of the log up to there.
    logged: u64,
}

impl State {
    pub(super) fn image(&self) -> Image {
        let rows = self.rows.iter();
        Image {
            rows: rows.map(|(key, row)| (key.clone(), row.clone())).collect(),
            sequence: self.sequence,
            next_id: self.next_id,
            logged: self.logged,
        }
    }

    /// Whether copy and log do not tell all, or the log is long: it is what a damaged file would be made
    /// of, and goes on until a copy is worth its writing.
    fn is_copy_due(&self) -> bool {
        let is_long = self.logged > LOG_FOLD.max(2 * self.copied);
        let is_paused = self.retry.is_some_and(|at| Instant::now() < at);
        (is_long || self.has_gap) && !is_paused
    }
}

impl Index {
    /// Makes every change up to `sequence` durable.
    ///
    /// # Errors
    /// `ResourceExhausted`, I/O: the change stands, is in the log, and is written with the next flush.
    pub(crate) fn flush(&self, sequence: u64) -> Result<()> {
        let mut db = self.db.lock().unwrap_or_else(PoisonError::into_inner);
        let (batch, unplaced, upto, next_id, unflushed, image) = {
            let mut state = self.state();
            if state.flushed >= sequence {
                return Ok(());
            }
            // Taken with the batch: what comes meanwhile is in neither, however many callers there are.
            let image = state.is_copy_due().then(|| state.image());
            (
                std::mem::take(&mut state.dirty),
                std::mem::take(&mut state.unplaced),
                state.sequence,
                state.next_id,
                state.unflushed,
                image,
            )
        };
        // After the batch is taken: whoever's rows these are, a row is not to be there without its directory.
        let placed = match &self.directories {
            Some(directories) if !unplaced.is_empty() => sys::fs::fsync_dir(directories),
            _ => Ok(()),
        };
        let done = placed.and_then(|()| db.write(&batch, upto, next_id));
        let mut state = self.state();
        if let Err(error) = done {
            state.unplaced.extend(unplaced);
            let newer = std::mem::replace(&mut state.dirty, batch);
            state.dirty.extend(newer);
            return Err(error);
        }
        state.flushed = upto;
        state.unflushed -= unflushed;
        drop(state);
        // Still with the file's lock: one copy at a time.
        if let Some(image) = image {
            self.mirror(&image);
        }
        Ok(())
    }

    /// Copies the index and lets the log go on from there; the file has all of `image`.
    pub(super) fn mirror(&self, image: &Image) {
        let done = self.copy(image);
        self.state().retry = done.err().map(|error| {
            tracing::warn!(%error, "snapshot index not copied: tried again later");
            Instant::now() + PAUSE
        });
    }

    fn copy(&self, image: &Image) -> Result<()> {
        let copied = mirror::write(&self.copy, &image.rows, image.sequence, image.next_id)?;
        {
            let mut state = self.state();
            state.copied = copied;
            state.has_gap = false;
        }
        let mut log = self.log();
        let kept = log.keep_from(image.logged);
        self.state().logged = log.len();
        kept
    }

    /// Makes everything durable.
    ///
    /// # Errors
    /// As [`Index::flush`].
    pub(crate) fn flush_all(&self) -> Result<()> {
        let sequence = self.state().sequence;
        self.flush(sequence)
    }

    /// Folds a long log into the file.
    pub(super) fn fold(&self) -> Result<()> {
        let (long, sequence) = {
            let state = self.state();
            (state.unflushed > LOG_FOLD, state.sequence)
        };
        if long { self.flush(sequence) } else { Ok(()) }
    }
}

impl Drop for Index {
    fn drop(&mut self) {
        if let Err(error) = self.flush_all() {
            tracing::warn!(%error, "snapshot index not flushed; the log has the rest");
        }
    }
}
