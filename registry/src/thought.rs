//! How long a host has waited for us to say who we are.
//!
//! Invariant: what a person takes to type a password is counted here, also when the question is given up,
//! and nobody counts it as the host's silence or as time that it was tried in vain.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// The time that questions to one host's owner have taken.
#[derive(Debug, Default)]
pub(crate) struct Thought(Mutex<Count>);

#[derive(Debug, Default)]
struct Count {
    before: Duration,
    /// Questions that wait, and since when there are any.
    open: Option<(u32, Instant)>,
}

/// A question that waits; over when dropped.
#[derive(Debug)]
pub(crate) struct Asking<'a>(&'a Thought);

impl Thought {
    /// A question begins.
    pub(crate) fn ask(&self) -> Asking<'_> {
        let mut count = self.count();
        let (open, since) = count.open.unwrap_or((0, Instant::now()));
        count.open = Some((open + 1, since));
        Asking(self)
    }

    /// Whether one waits at this moment.
    pub(crate) fn is_asking(&self) -> bool {
        self.count().open.is_some()
    }

    /// All of the time until now.
    pub(crate) fn taken(&self) -> Duration {
        let count = self.count();
        let now = count.open.map(|(_, since)| since.elapsed());
        count.before + now.unwrap_or_default()
    }

    fn count(&self) -> MutexGuard<'_, Count> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut count = self.0.count();
        count.open = match count.open {
            Some((open, since)) if open > 1 => Some((open - 1, since)),
            Some((_, since)) => {
                count.before += since.elapsed();
                None
            }
            None => None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn questions_at_the_same_time_count_once() {
        let thought = Thought::default();
        tokio::time::sleep(SECOND).await;
        assert!(!thought.is_asking());
        let first = thought.ask();
        tokio::time::sleep(SECOND).await;
        let second = thought.ask();
        tokio::time::sleep(SECOND).await;
        drop(first);
        assert!(thought.is_asking());
        assert_eq!(thought.taken(), 2 * SECOND);
        drop(second);
        tokio::time::sleep(SECOND).await;
        assert_eq!(thought.taken(), 2 * SECOND);
        assert!(!thought.is_asking());
    }
}
