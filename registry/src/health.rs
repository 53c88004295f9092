//! What is known about hosts: which of them have failed or been silent lately.
//!
//! A host that fails goes to the back of the line for a while, longer each time; after that it is
//! tried first again, and one answer in time makes all forgotten. One that wants to be left alone is asked
//! by nobody who has another one. Shared by all pulls.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::url::Origin;

/// First stay at the back.
const FIRST: Duration = Duration::from_secs(10);
/// Longest stay. Nor is it remembered for longer that a host wants to be left alone: it may want that of one
/// repository or one user only.
const LONGEST: Duration = Duration::from_secs(300);
/// Hosts that are remembered.
const MAX_HOSTS: usize = 256;

/// What is known about hosts. Clones share it; the default one is the process's own.
#[derive(Clone, Debug)]
pub struct Health(Arc<Mutex<HashMap<Origin, State>>>);

#[derive(Clone, Copy, Debug)]
struct State {
    failures: u32,
    /// When it failed last.
    last: Instant,
    until: Instant,
    /// When it wants to be asked again.
    not_before: Instant,
}

impl Health {
    /// Knows nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self(Arc::default())
    }

    /// Whether the host should be asked after others.
    #[cfg(test)]
    pub(crate) fn is_ill(&self, host: &Origin) -> bool {
        self.ill(host).is_some()
    }

    /// When a host failed last that should be asked after others. Of several such hosts the first in
    /// turn is who has failed longest ago: another one may have been the only one that is well.
    pub(crate) fn ill(&self, host: &Origin) -> Option<Instant> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = known.get(host)?;
        (Instant::now() < state.until).then_some(state.last)
    }

    /// The host was silent, broken or too slow.
    pub(crate) fn failed(&self, host: &Origin) {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = entry(&mut known, host, now);
        state.last = now;
        // Requests that fail together are one failure.
        if now < state.until {
            return;
        }
        state.failures = state.failures.saturating_add(1);
        let stay = FIRST.saturating_mul(1 << state.failures.min(16).saturating_sub(1));
        state.until = now + stay.min(LONGEST);
        tracing::info!(%host, failures = state.failures, "host is put to the back");
    }

    /// The host wants to be asked again after `wish`.
    pub(crate) fn wants_rest(&self, host: &Origin, wish: Duration) {
        let now = Instant::now();
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let state = entry(&mut known, host, now);
        state.not_before = state.not_before.max(now + wish.min(LONGEST));
    }

    /// How long the host wants to be left alone yet; `None`: it may be asked.
    pub(crate) fn rest(&self, host: &Origin) -> Option<Duration> {
        let known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let left = known.get(host)?.not_before;
        let left = left.saturating_duration_since(Instant::now());
        (!left.is_zero()).then_some(left)
    }

    /// The host answered in time.
    pub(crate) fn well(&self, host: &Origin) {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        known.remove(host);
    }
}

/// What is known about `host`, or room for it.
fn entry<'a>(known: &'a mut HashMap<Origin, State>, host: &Origin, now: Instant) -> &'a mut State {
    if known.len() >= MAX_HOSTS && !known.contains_key(host) {
        known.retain(|_, state| now < state.until.max(state.not_before));
        if known.len() >= MAX_HOSTS {
            known.clear();
        }
    }
    known.entry(host.clone()).or_insert(State {
        failures: 0,
        last: now,
        until: now,
        not_before: now,
    })
}

impl Default for Health {
    fn default() -> Self {
        static PROCESS: LazyLock<Health> = LazyLock::new(Health::new);
        PROCESS.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(port: usize) -> Origin {
        Origin::of(&format!("http://r.example.test:{port}/").parse().unwrap()).unwrap()
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_stays_at_the_back_longer_each_time() {
        let health = Health::new();
        let host = origin(1);
        assert!(!health.is_ill(&host));
        for seconds in [10, 20, 40, 80, 160, 300, 300] {
            health.failed(&host);
            health.failed(&host);
            tokio::time::advance(Duration::from_millis(seconds * 1000 - 1)).await;
            assert!(health.is_ill(&host), "{seconds}");
            tokio::time::advance(Duration::from_millis(1)).await;
            assert!(!health.is_ill(&host), "{seconds}");
        }
        health.well(&host);
        health.failed(&host);
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(!health.is_ill(&host));
    }

    #[tokio::test(start_paused = true)]
    async fn a_host_is_left_alone_for_as_long_as_it_wants_within_reason() {
        let (health, host) = (Health::new(), origin(1));
        for (wish, rest) in [(0, None), (7, Some(7)), (3, Some(7)), (u64::MAX, Some(300))] {
            health.wants_rest(&host, Duration::from_secs(wish));
            assert_eq!(health.rest(&host), rest.map(Duration::from_secs));
            assert!(!health.is_ill(&host));
        }
        tokio::time::advance(LONGEST).await;
        assert_eq!(health.rest(&host), None);
    }

    #[tokio::test(start_paused = true)]
    async fn only_so_many_hosts_are_remembered() {
        let health = Health::new();
        for port in 1..=3 * MAX_HOSTS {
            health.failed(&origin(port));
            assert!(health.is_ill(&origin(port)));
        }
        assert!(health.0.lock().unwrap().len() <= MAX_HOSTS);
    }
}
