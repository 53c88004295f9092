//! Whose turn it is to have a large window.
//!
//! ```text
//!   unpack a layer  --+
//!   convert a layer --+--> stored: one at a time, who came first is first
//!   read an archive -----> arriving: one at a time, for a minute at most behind another
//! ```
//! Invariant: two decoders at most have a turn in this process. Not one: who sends an
//! archive may stop on the way for as long as it likes, and would keep all that is in the store from being
//! unpacked.

use std::pin::pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, Wake, Waker};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use types::{Error, Result};

/// How often who waits in a thread looks whether it is still to wait.
const LOOK: Duration = Duration::from_millis(100);
/// So long an archive waits for another one, whose sender may have stopped for good.
const PATIENCE: Duration = Duration::from_secs(60);

/// The turn of one decoder, until it is dropped.
pub type Turn = OwnedSemaphorePermit;

/// Turns that are taken one after another. Clones are the same.
#[derive(Clone, Debug)]
pub struct Turns {
    one: Arc<Semaphore>,
    patience: Option<Duration>,
}

impl Turns {
    fn new(patience: Option<Duration>) -> Self {
        Self {
            one: Arc::new(Semaphore::new(1)),
            patience,
        }
    }

    /// Those of this process for what is in the store.
    #[must_use]
    pub fn stored() -> Self {
        static STORED: LazyLock<Turns> = LazyLock::new(|| Turns::new(None));
        STORED.clone()
    }

    /// Those of this process for archives that come in.
    #[must_use]
    pub fn arriving() -> Self {
        static ARRIVING: LazyLock<Turns> = LazyLock::new(|| Turns::new(Some(PATIENCE)));
        ARRIVING.clone()
    }

    /// Waits for a turn, however long; who does not want it any more drops the future.
    ///
    /// # Errors
    /// None: it waits.
    pub async fn take(&self) -> Result<Turn> {
        let turn = Arc::clone(&self.one).acquire_owned().await;
        turn.map_err(Error::internal)
    }

    /// The same in a thread that does nothing else meanwhile.
    ///
    /// # Errors
    /// `Cancelled` when nobody wants it any more, `Unavailable` when the turn of another archive takes too
    /// long.
    pub fn wait(&self, is_unwanted: &dyn Fn() -> bool) -> Result<Turn> {
        let since = Instant::now();
        let mut turn = pin!(self.take());
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            if let Poll::Ready(turn) = turn.as_mut().poll(&mut context) {
                return turn;
            }
            if is_unwanted() {
                return Err(Error::cancelled("nobody waits for it"));
            }
            let is_over = |patience| since.elapsed() >= patience;
            if self.patience.is_some_and(is_over) {
                let text = "another archive with a large window is coming in";
                return Err(Error::unavailable(text));
            }
            thread::park_timeout(LOOK);
        }
    }
}

/// Wakes a thread that waits.
struct Unpark(Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use types::Code;

    use super::*;

    #[test]
    fn who_waits_gets_its_turn_or_gives_up() {
        let turns = Turns::new(None);
        let turn = turns.wait(&|| true).unwrap();
        let error = turns.wait(&|| true).unwrap_err();
        assert!(error.is(Code::Cancelled), "{error}");
        let (asked, held) = (Cell::new(0), Cell::new(Some(turn)));
        let is_unwanted = || {
            asked.set(asked.get() + 1);
            if asked.get() == 3 {
                drop(held.take());
            }
            false
        };
        let turn = turns.wait(&is_unwanted).unwrap();
        assert_eq!(asked.get(), 3);
        // Who gave up stands in nobody's way.
        drop(turn);
        drop(turns.wait(&|| true).unwrap());
    }

    #[test]
    fn who_comes_in_behind_one_that_has_stopped_is_told() {
        let turns = Turns::new(Some(LOOK / 2));
        let turn = turns.wait(&|| false).unwrap();
        let error = turns.wait(&|| false).unwrap_err();
        assert!(error.is(Code::Unavailable), "{error}");
        let text = "another archive with a large window";
        assert!(error.to_string().contains(text), "{error}");
        drop(turn);
        drop(turns.wait(&|| false).unwrap());
    }

    /// The one test here that takes the process's.
    #[test]
    fn all_of_the_process_share_them_and_no_archive_holds_up_the_store() {
        let arriving = Turns::arriving().wait(&|| false).unwrap();
        let stored = Turns::stored().wait(&|| false).unwrap();
        for turns in [Turns::arriving(), Turns::stored()] {
            let error = turns.wait(&|| true).unwrap_err();
            assert!(error.is(Code::Cancelled), "{error}");
        }
        drop((arriving, stored));
        assert_eq!(Turns::stored().patience, None);
        assert_eq!(Turns::arriving().patience, Some(PATIENCE));
    }
}
