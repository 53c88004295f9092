//! Threads for layers, and how many layers at a time.
//!
//! Invariant: work that waits (for bytes of a blob, for the store to take some) has threads of its own,
//! never one of the runtime's for files: the store writes on those, and where waiting work has all of
//! them, nothing goes on.

use std::sync::Arc;

use compression::{Turn, Turns};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot, watch};
use types::{Error, Result};

/// Layers unpacked at a time, for each processor and in all, however many images there are: each has
/// buffers and a window. Those that come in are counted for themselves: they wait for the net, and must
/// not keep others waiting. Comparisons have as many.
const EACH: usize = 2;
const ALL: std::ops::RangeInclusive<usize> = 4..=16;

/// Room for layers in work, shared by the clones of a differ.
#[derive(Clone, Debug)]
pub(crate) struct Rooms {
    applies: Arc<Semaphore>,
    pub(crate) following: Arc<Semaphore>,
    comparisons: Arc<Semaphore>,
    /// Of decoders with a common window there are as many as processors, and one less for layers that come in.
    common: Arc<Semaphore>,
    coming: Arc<Semaphore>,
}

impl Default for Rooms {
    fn default() -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let count = (cpus * EACH).clamp(*ALL.start(), *ALL.end());
        let room = |count| Arc::new(Semaphore::new(count));
        Self {
            applies: room(count),
            following: room(count),
            comparisons: room(count),
            common: room(cpus.clamp(2, *ALL.end())),
            coming: room(cpus.clamp(2, *ALL.end()) - 1),
        }
    }
}

impl Rooms {
    /// Room to unpack a layer. Without waiting for one that comes in: who holds the room waits for the
    /// net, and the layer may be there sooner.
    ///
    /// # Errors
    /// `Unavailable` without room for a layer that comes in.
    pub(crate) async fn apply(&self, follows: bool) -> Result<OwnedSemaphorePermit> {
        if !follows {
            return take(&self.applies).await;
        }
        let room = Arc::clone(&self.following).try_acquire_owned();
        room.map_err(|_| Error::unavailable("too many layers are unpacked on their way"))
    }

    /// Room for a comparison.
    ///
    /// # Errors
    /// None: it waits.
    pub(crate) async fn compare(&self) -> Result<OwnedSemaphorePermit> {
        take(&self.comparisons).await
    }

    /// The turn of a decoder with a window of this size.
    ///
    /// # Errors
    /// `Cancelled` when nobody waits for it any more.
    pub(crate) async fn window(&self, size: Window, stop: &Stop) -> Result<Turn> {
        let turn = async {
            match size {
                Window::Common => take(&self.common).await,
                // Of decoders with one there is one, whoever else has them.
                Window::Large => Turns::stored().take().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.told() => Err(stop.error()),
            turn = turn => turn,
        }
    }

    /// The turn of a decoder with a common window, of a layer that comes in: without waiting, as
    /// [`Self::apply`]. None when there is none.
    pub(crate) fn window_of_coming(&self) -> Option<Turn> {
        Arc::clone(&self.coming).try_acquire_owned().ok()
    }
}

/// A window whose decoder has to have its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Window {
    /// One that builders write.
    Common,
    /// One that few do.
    Large,
}

async fn take(room: &Arc<Semaphore>) -> Result<OwnedSemaphorePermit> {
    let room = Arc::clone(room).acquire_owned().await;
    room.map_err(Error::internal)
}

/// Does `work` on a thread of its own. Where the caller goes away meanwhile, `room` is held to the end of
/// the work all the same.
///
/// # Errors
/// Those of the work; `Internal` when it panics.
pub(crate) async fn run<T: Send + 'static>(
    name: &str,
    room: OwnedSemaphorePermit,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let (done, outcome) = oneshot::channel();
    let work = move || {
        let made = work();
        drop(room);
        // Nobody may wait for it any more.
        drop(done.send(made));
    };
    std::thread::Builder::new()
        .name(name.into())
        .spawn(work)
        .map_err(|e| Error::os("start layer thread", e))?;
    let outcome = outcome.await;
    outcome.map_err(|_| Error::internal("layer thread panicked"))?
}

/// Tells work that nobody waits for it any more.
#[derive(Clone, Debug)]
pub struct Stop(Arc<watch::Sender<bool>>);

impl Default for Stop {
    fn default() -> Self {
        Self(Arc::new(watch::Sender::new(false)))
    }
}

impl Stop {
    /// Tells it.
    pub fn tell(&self) {
        self.0.send_replace(true);
    }

    /// Tells it when what is returned is dropped.
    pub(crate) fn guard(&self) -> Guard {
        Guard(self.clone())
    }

    /// An error when it was told.
    pub(crate) fn check(&self) -> Result<()> {
        if *self.0.borrow() {
            return Err(self.error());
        }
        Ok(())
    }

    /// What work ends with that was told.
    #[expect(clippy::unused_self, reason = "its text is about this")]
    pub(crate) fn error(&self) -> Error {
        Error::cancelled("apply was abandoned")
    }

    /// Comes back when it is told.
    pub(crate) async fn told(&self) {
        let mut told = self.0.subscribe();
        // Its sender is here: it does not go away.
        drop(told.wait_for(|told| *told).await);
    }
}

/// Tells a [`Stop`] when it is dropped.
#[derive(Debug)]
pub(crate) struct Guard(Stop);

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.tell();
    }
}
