//! Whose turn it is: places that transfers share, and waiting for another writer of the same blob.
//!
//! Invariant: who waits for another writer holds no place, and who waits for a place keeps nobody from
//! writing, so that they never wait for each other. A wait ends with the budget of who waits, which what
//! the others do renews: it is they who make no progress when it is spent.

use std::sync::Arc;
use std::time::Duration;

use content::{ContentStore, Writer};
use recorder::On;
use registry::Budget;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep};
use types::{Context as _, Descriptor, Error, IngestRef, Result};

use crate::progress::{OnProgress, Status};

/// Bounds of [`fitted`]: registries do not like more connections of one client, and more of them only
/// share its line.
const FITTED: std::ops::RangeInclusive<usize> = 4..=8;
/// First pause between two looks at how far another transfer has come, and the longest.
const LOOKS: [Duration; 2] = [Duration::from_millis(50), Duration::from_millis(500)];
/// First pause between two attempts to write what stands still, and the longest: an attempt costs the
/// store a write.
const ATTEMPTS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(8)];

/// How many blobs are on their way at a time where nothing is said: two for each processor, which has to
/// hash and decode what comes, but some also where there is one, since each may wait for the net.
#[must_use]
pub fn fitted() -> usize {
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    (2 * processors).clamp(*FITTED.start(), *FITTED.end())
}

/// Places for blobs on their way that several transfers share: however many there are, no more blobs
/// than these are fetched or sent at a time. Who comes first is served first. Clones share them.
#[derive(Clone, Debug)]
pub struct Places {
    free: Arc<Semaphore>,
    /// Told of what is done in any of them.
    moved: Arc<watch::Sender<()>>,
}

/// A place, given back when dropped.
#[derive(Debug)]
pub(crate) struct Place {
    moved: Arc<watch::Sender<()>>,
    _permit: OwnedSemaphorePermit,
}

impl Place {
    /// Tells those who wait that there is progress.
    pub(crate) fn progress(&self) {
        self.moved.send_replace(());
    }
}

impl Places {
    /// So many, at least one.
    #[must_use]
    pub fn new(many: usize) -> Self {
        let many = many.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            free: Arc::new(Semaphore::new(many)),
            moved: Arc::default(),
        }
    }

    /// The places themselves.
    pub(crate) fn free(&self) -> Arc<Semaphore> {
        Arc::clone(&self.free)
    }

    /// A place, when nobody has to be waited for.
    pub(crate) fn find(&self) -> Option<Place> {
        let permit = Arc::clone(&self.free).try_acquire_owned().ok()?;
        Some(self.place(permit))
    }

    /// Waits for a place.
    ///
    /// # Errors
    /// `DeadlineExceeded` when `budget` is spent.
    pub(crate) async fn take(&self, budget: &Budget) -> Result<Place> {
        let _waiting = recorder::stage("a place among other transfers", On::default);
        let mut moved = self.moved.subscribe();
        let waiting = async {
            let mut free = std::pin::pin!(Arc::clone(&self.free).acquire_owned());
            loop {
                tokio::select! {
                    biased;
                    permit = &mut free => {
                        // Nobody closes them.
                        let permit = permit.map_err(|e| Error::internal("places").with_source(e))?;
                        budget.progress();
                        return Ok(self.place(permit));
                    }
                    Ok(()) = moved.changed() => budget.progress(),
                }
            }
        };
        let place = budget.spend(waiting).await;
        place.ctx("wait for a place among other transfers")
    }

    fn place(&self, permit: OwnedSemaphorePermit) -> Place {
        Place {
            moved: Arc::clone(&self.moved),
            _permit: permit,
        }
    }
}

/// A wait for another writer of a blob.
#[derive(Debug)]
pub(crate) struct Wait {
    seen: Option<u64>,
    pause: Duration,
    /// When what stands still is worth an attempt, and how long after that again.
    attempt: (Instant, Duration),
    /// It was said to be free before, and was not.
    was_free: bool,
}

impl Wait {
    pub(crate) fn new() -> Self {
        Self {
            seen: None,
            pause: LOOKS[0],
            attempt: (Instant::now(), ATTEMPTS[0]),
            was_free: false,
        }
    }

    /// Waits until it is worth an attempt to write. Only looks meanwhile.
    ///
    /// # Errors
    /// `DeadlineExceeded` when `budget` is spent: what the other writes renews it.
    pub(crate) async fn until_free(
        &mut self,
        store: &dyn ContentStore,
        reference: &IngestRef,
        descriptor: &Descriptor,
        on: &OnProgress,
        budget: &Budget,
    ) -> Result<()> {
        let whose = || On::named(reference.as_str());
        let _waiting = recorder::stage("another transfer of the same blob", whose);
        let waiting = async {
            loop {
                let writer = store.released(reference, self.pause).await;
                self.pause = (2 * self.pause).min(LOOKS[1]);
                let status = store.status(reference).await.absent_ok()?;
                let offset = status.map(|status| status.offset);
                let at = offset.unwrap_or_default();
                on.tell(reference.as_str(), Status::Waiting, at, descriptor.size);
                let has_moved = std::mem::replace(&mut self.seen, offset) != offset;
                if has_moved {
                    budget.progress();
                }
                match writer {
                    Writer::There => {}
                    Writer::Gone => {
                        if std::mem::replace(&mut self.was_free, true) {
                            sleep(LOOKS[0]).await;
                        }
                        return Ok(());
                    }
                    Writer::Unknown => {
                        if offset.is_none() || (!has_moved && self.is_time()) {
                            return Ok(());
                        }
                    }
                }
            }
        };
        let waited = budget.spend(waiting).await;
        waited.ctx("another transfer of this blob makes no progress")
    }

    /// Whether what stands still, and may have lost its writer, is worth an attempt again.
    fn is_time(&mut self) -> bool {
        let (at, pause) = self.attempt;
        let now = Instant::now();
        if now < at {
            return false;
        }
        self.attempt = (now + pause, (2 * pause).min(ATTEMPTS[1]));
        true
    }
}

#[cfg(test)]
#[path = "turns_tests.rs"]
mod tests;
