//! One piece of work for a container, or an interface, at a time.
//!
//! Invariant: turns are taken in order, and nothing is remembered about one that nobody has a turn for.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Lock, OwnedMutexGuard};

/// Who has a turn.
#[derive(Debug)]
pub(crate) struct Turns<K>(Mutex<BTreeMap<K, Weak<Lock<()>>>>);

impl<K> Default for Turns<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Clone + Ord> Turns<K> {
    /// Waits for the turn of one, and has it until the answer is dropped.
    pub(crate) async fn take(&self, id: &K) -> OwnedMutexGuard<()> {
        let lock = {
            let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| lock.strong_count() > 0);
            let known = all.get(id).and_then(Weak::upgrade);
            known.unwrap_or_else(|| {
                let made = Arc::default();
                all.insert(id.clone(), Arc::downgrade(&made));
                made
            })
        };
        lock.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn known(turns: &Turns<&str>) -> Vec<String> {
        let all = turns.0.lock().unwrap();
        all.keys().map(ToString::to_string).collect()
    }

    #[tokio::test]
    async fn one_has_the_turn_and_who_does_not_wait_for_it_is_forgotten() {
        let turns = Turns::default();
        let first = turns.take(&"one").await;
        {
            let mut second = pin!(turns.take(&"one"));
            let mut context = Context::from_waker(Waker::noop());
            assert!(second.as_mut().poll(&mut context).is_pending());
        }
        drop(turns.take(&"other").await);
        assert_eq!(known(&turns), ["one", "other"]);
        drop(first);
        let third = turns.take(&"third").await;
        assert_eq!(known(&turns), ["third"]);
        drop(third);
    }
}
