//! Whose turn it is: places that transfers share, and waiting for another writer of the same blob.
//!
//! Invariant: who waits for another writer holds no place, so that places never wait for each other.

use std::sync::Arc;
use std::time::Duration;

use content::ContentStore;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, sleep};
use types::{Context as _, Descriptor, Error, IngestRef, Result};

use crate::progress::{OnProgress, Status};

/// How long another transfer of the same blob may make no progress.
const PATIENCE: Duration = Duration::from_secs(60);
/// First pause between two looks at how far another transfer has come, and the longest.
const LOOKS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];

/// Places for blobs on their way that several transfers share: however many there are, no more blobs
/// than these are fetched or sent at a time. Who comes first is served first. Clones share them.
#[derive(Clone, Debug)]
pub struct Places(Arc<Semaphore>);

/// A place, given back when dropped.
pub(crate) type Place = OwnedSemaphorePermit;

impl Places {
    /// So many, at least one.
    #[must_use]
    pub fn new(many: usize) -> Self {
        let many = many.clamp(1, Semaphore::MAX_PERMITS);
        Self(Arc::new(Semaphore::new(many)))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// None in practice: nobody closes them.
    pub(crate) async fn take(&self) -> Result<Place> {
        let place = Arc::clone(&self.0).acquire_owned().await;
        place.map_err(|e| Error::internal("places of transfers").with_source(e))
    }
}

/// A wait for another writer of a blob.
#[derive(Debug)]
pub(crate) struct Wait {
    seen: Option<u64>,
    since: Instant,
    pause: Duration,
    /// It was said to be free before, and was not.
    was_free: bool,
}

impl Wait {
    pub(crate) fn new() -> Self {
        Self {
            seen: None,
            since: Instant::now(),
            pause: LOOKS[0],
            was_free: false,
        }
    }

    /// Waits until it is worth a try to write. Only looks meanwhile: an attempt costs the store a
    /// write.
    ///
    /// # Errors
    /// `error`, why writing was not possible, when the other one makes no progress.
    pub(crate) async fn until_free(
        &mut self,
        store: &dyn ContentStore,
        reference: &IngestRef,
        descriptor: &Descriptor,
        on: &OnProgress,
        error: Error,
    ) -> Result<()> {
        loop {
            let is_free = store.released(reference, self.pause).await;
            self.pause = (2 * self.pause).min(LOOKS[1]);
            let status = store.status(reference).await.absent_ok()?;
            let offset = status.map(|status| status.offset);
            let at = offset.unwrap_or_default();
            on.tell(reference.as_str(), Status::Waiting, at, descriptor.size);
            let has_moved = offset != self.seen;
            if has_moved {
                (self.seen, self.since) = (offset, Instant::now());
            } else if self.since.elapsed() > PATIENCE {
                return Err(error.ctx("another transfer of this blob makes no progress"));
            }
            if is_free {
                if std::mem::replace(&mut self.was_free, true) {
                    sleep(LOOKS[0]).await;
                }
                return Ok(());
            }
            // What stands still may have lost its writer.
            if !has_moved || offset.is_none() {
                return Ok(());
            }
        }
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
