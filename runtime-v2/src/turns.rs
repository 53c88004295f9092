//! How many creates of tasks and starts of execs are at work at a time.
//!
//! Invariant: who waits comes in the order of asking, and is told of by name; who hangs gives its turn to
//! the next, so that a runtime that never answers holds up nobody for ever. Called by `tasks` and `task`.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use recorder::On;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

/// How long one keeps its turn: what takes longer waits for something, and is no work for the machine. Hooks of
/// a create that start something themselves wait no longer for the turn of their own create.
const HELD: Duration = Duration::from_secs(10);

/// Who may go on.
#[derive(Debug)]
pub(crate) struct Turns {
    places: Arc<Semaphore>,
    bound: Mutex<Bound>,
}

#[derive(Debug)]
struct Bound {
    most: usize,
    /// Places that are still taken and are not given again.
    owed: usize,
}

/// The turn of one; it ends with the value.
#[derive(Debug)]
pub(crate) struct Turn {
    turns: Arc<Turns>,
    place: Option<OwnedSemaphorePermit>,
}

impl Turns {
    /// With so many at a time; 0: any number.
    pub(crate) fn new(most: usize) -> Self {
        let most = places(most);
        Self {
            places: Arc::new(Semaphore::new(most)),
            bound: Mutex::new(Bound { most, owed: 0 }),
        }
    }

    fn bound(&self) -> MutexGuard<'_, Bound> {
        self.bound.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on so many; those that are at work go on.
    pub(crate) fn set(&self, most: usize) {
        let most = places(most);
        let mut bound = self.bound();
        if let Some(more) = most.checked_sub(bound.most) {
            let kept = more.min(bound.owed);
            bound.owed -= kept;
            self.places.add_permits(more - kept);
        } else {
            let less = bound.most - most;
            bound.owed += less - self.places.forget_permits(less);
        }
        bound.most = most;
    }

    /// Waits for a turn.
    pub(crate) async fn take(self: &Arc<Self>) -> Turn {
        let now = Arc::clone(&self.places).try_acquire_owned();
        let place = match now {
            Ok(place) => Some(place),
            Err(_) => {
                let most = self.bound().most;
                let named = || On::named(format!("{most} are at work, and no more at a time"));
                let _waiting = recorder::stage("turn among creates and starts of execs", named);
                // Nobody closes it.
                Arc::clone(&self.places).acquire_owned().await.ok()
            }
        };
        Turn {
            turns: Arc::clone(self),
            place,
        }
    }
}

/// Places of a bound that was said.
fn places(most: usize) -> usize {
    match most {
        0 => Semaphore::MAX_PERMITS,
        most => most.min(Semaphore::MAX_PERMITS),
    }
}

impl Turn {
    /// Does `work` in this turn, and to its end when that takes longer than a turn.
    pub(crate) async fn during<F: Future>(self, mut work: Pin<&mut F>) -> F::Output {
        match timeout(HELD, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(self);
                work.await
            }
        }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else {
            return;
        };
        let mut bound = self.turns.bound();
        if bound.owed > 0 {
            bound.owed -= 1;
            place.forget();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;
    use std::pin::pin;

    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn there_are_as_many_turns_as_was_said_last() {
        let turns = Arc::new(Turns::new(2));
        let first = turns.take().await;
        let second = turns.take().await;
        assert!(turns.take().now_or_never().is_none());
        // Fewer: what is taken is not given again.
        turns.set(1);
        drop(first);
        assert!(turns.take().now_or_never().is_none());
        // And more, before the rest has come back.
        turns.set(2);
        let third = turns.take().now_or_never().unwrap();
        assert!(turns.take().now_or_never().is_none());
        turns.set(1);
        turns.set(3);
        let fourth = turns.take().now_or_never().unwrap();
        assert!(turns.take().now_or_never().is_none());
        drop((second, third, fourth));
        turns.set(0);
        let many: Vec<_> = (0..1000).map(|_| turns.take().now_or_never()).collect();
        assert!(many.iter().all(Option::is_some));
        drop(many);
        turns.set(1);
        let _only = turns.take().now_or_never().unwrap();
        assert!(turns.take().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn who_hangs_gives_the_turn_to_the_next() {
        let turns = Arc::new(Turns::new(1));
        let turn = turns.take().await;
        let hangs = tokio::spawn(async { turn.during(pin!(pending::<()>())).await });
        let begun = tokio::time::Instant::now();
        let next = turns.take().await;
        assert!(begun.elapsed() >= HELD);
        assert!(!hangs.is_finished());
        hangs.abort();
        assert_eq!(next.during(pin!(async { 7 })).await, 7);
    }
}
