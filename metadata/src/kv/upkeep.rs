//! What the writer does beside its changes: the store's file catches up with its journal, the journal is
//! made anew, and both come back after a failure.
//!
//! Invariant: what was answered with an error does not come up later behind what was answered with success.
//! While a frame of it may stand in the journal, nothing is changed, and no file takes that frame's number.

use std::time::{Duration, Instant};

use types::{Error, Result};

use super::engine::failure;
use super::journal::Journal;
use super::writer::{State, number};
use super::{Snapshot, reserve};

/// Most bytes of frames that the store's file may lack: bounds what is in memory, and what a start has
/// to catch up with.
pub(super) const MAX_BEHIND: u64 = 1 << 20;

/// When nobody has changed anything for so long, the file catches up.
const QUIET: Duration = Duration::from_secs(1);

/// Wait before a file that could not be written is tried again.
const RETRY: Duration = Duration::from_secs(10);

/// The same while all changes are refused for it.
pub(super) const MEND: Duration = Duration::from_secs(1);

impl State {
    /// How long the thread waits for a change before it looks at what else there is to do; `None` when
    /// that is nothing.
    pub(super) fn patience(&self) -> Option<Duration> {
        if self.behind == 0 && self.is_open {
            return None;
        }
        let retry = self.next_try.saturating_duration_since(Instant::now());
        Some(retry.max(QUIET.saturating_sub(self.changed.elapsed())))
    }

    /// What is due when nobody wants anything.
    pub(super) fn rest(&mut self) {
        if self.changed.elapsed() < QUIET {
            return;
        }
        if self.is_open {
            self.save();
        } else {
            self.reopen_or_tell();
        }
    }

    /// What is due between changes, unless it failed a moment ago.
    pub(super) fn keep_up(&mut self) {
        if Instant::now() < self.next_try {
            return;
        }
        if self.behind >= MAX_BEHIND {
            self.save();
        }
        if self.journal.is_due() {
            self.renew();
        }
    }

    /// Clears away what a commit that failed has left in the journal, or makes another journal, unless that
    /// failed a moment ago: it takes a write of all that the store's file lacks, and callers wait for it.
    ///
    /// # Errors
    /// `Unavailable` while neither is possible: what comes now would have that frame before it.
    pub(super) fn mend(&mut self) -> Result<()> {
        if self.journal.clear().is_ok() {
            return Ok(());
        }
        if Instant::now() >= self.next_mend {
            self.renew();
            self.next_mend = Instant::now() + MEND;
        }
        if self.journal.is_unclean() {
            return Err(Error::unavailable(
                "metadata journal cannot be cleared of a change that failed: the disk takes nothing",
            ));
        }
        Ok(())
    }

    /// Opens the store again at its last commit. Until it is saved, what it gets from the journal is in
    /// memory.
    pub(super) fn reopen(&mut self) -> Result<()> {
        self.behind = MAX_BEHIND;
        let reopened = self.engine.reopen(self.last);
        self.is_open = reopened.is_ok();
        match reopened {
            Ok(last) => self.last = last,
            Err(_) => self.next_try = Instant::now() + RETRY,
        }
        reopened.map(drop)
    }

    /// The same where nobody asks how it ended.
    pub(super) fn reopen_or_tell(&mut self) {
        if let Err(error) = self.reopen() {
            tracing::error!(%error, "metadata store stays closed");
        }
    }

    /// Brings the store's file to the last commit. A failure loses nothing: the journal has it all.
    pub(super) fn save(&mut self) {
        if self.behind == 0 {
            return;
        }
        if self.journal.is_stopped() {
            // The journal may have a frame of the last number that was tried, which the file must not
            // have without it.
            self.tried += 1;
        }
        let saved = self.begin().and_then(|txn| {
            number(&txn, self.tried)?;
            txn.commit().map_err(failure)
        });
        match saved {
            Ok(()) => {
                (self.last, self.behind) = (self.tried, 0);
                reserve::keep(self.engine.path());
            }
            Err(error) => {
                tracing::warn!(%error, "metadata store's file stays behind its journal");
                self.reopen_or_tell();
                self.next_try = Instant::now() + RETRY;
            }
        }
    }

    /// Makes the journal anew from the store, whose file has all of it first.
    fn renew(&mut self) {
        // Also when nothing is behind: the new one begins with a number that the old one does not have.
        self.behind = self.behind.max(1);
        self.save();
        if self.behind > 0 {
            return;
        }
        let made = self
            .engine
            .with(Snapshot::open)
            .and_then(|snapshot| Journal::make(self.engine.path(), &snapshot, self.last));
        match made {
            Ok(made) => self.journal = made,
            Err(error) => {
                tracing::warn!(%error, "metadata has no new journal: each commit waits for the store's file");
                // It may be the new one's already that stands under the name.
                self.journal.stop();
                self.next_try = Instant::now() + RETRY;
            }
        }
    }
}
