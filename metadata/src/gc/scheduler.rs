//! When to collect.
//!
//! Invariant: collections hold up writers for at most a given share of the time. One task of the daemon
//! runs the scheduler; requests that must not wait call [`Metadata::gc`] themselves.

use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until};

use crate::Metadata;
use crate::db::Threshold;

/// Shortest pause that is assumed: even an idle store is not collected more often than four times a
/// second.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Wait after a failed collection.
const RETRY: Duration = Duration::from_secs(1);

/// When collections begin. The defaults are those of containerd's configuration.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOpts {
    /// From the start to the first collection.
    pub startup_delay: Duration,
    /// From a trigger to its collection: gathers what follows closely.
    pub schedule_delay: Duration,
    /// Removals that trigger; 0: the first one.
    pub deletion_threshold: u64,
    /// Changes of any kind that trigger; 0: they never do.
    pub mutation_threshold: u64,
    /// Largest share of the time that collections may hold up writers.
    pub pause_threshold: f64,
}

impl Default for SchedulerOpts {
    fn default() -> Self {
        Self {
            startup_delay: Duration::from_millis(100),
            schedule_delay: Duration::ZERO,
            deletion_threshold: 0,
            mutation_threshold: 100,
            pause_threshold: 0.02,
        }
    }
}

impl SchedulerOpts {
    fn threshold(&self) -> Threshold {
        Threshold {
            deletions: self.deletion_threshold,
            mutations: match self.mutation_threshold {
                0 => u64::MAX,
                some => some,
            },
        }
    }

    /// How long to leave the writers alone after collections that took `pause` on average.
    fn rest(&self, pause: Duration) -> Duration {
        let pause = pause.max(MIN_PAUSE);
        let share = self.pause_threshold.clamp(0.001, 0.5);
        pause.mul_f64(1.0 / share).saturating_sub(pause)
    }
}

/// Collects in the background.
#[derive(Debug)]
pub struct Scheduler {
    metadata: Metadata,
    opts: SchedulerOpts,
}

impl Scheduler {
    /// A scheduler; nothing happens before [`Scheduler::run`].
    #[must_use]
    pub fn new(metadata: Metadata, opts: SchedulerOpts) -> Self {
        Self { metadata, opts }
    }

    /// Collects when it is due, for ever. Ends by being dropped, at any time.
    pub async fn run(self) {
        sleep(self.opts.startup_delay).await;
        let mut pauses = Duration::ZERO;
        let mut runs = 0;
        loop {
            match self.metadata.gc().await {
                Ok(stats) => {
                    pauses += stats.pause;
                    runs += 1;
                }
                Err(error) => {
                    tracing::error!(%error, "garbage collection failed");
                    sleep(RETRY).await;
                }
            }
            let rest = self.opts.rest(pauses / runs.max(1));
            sleep_until(Instant::now() + rest).await;
            let outlet = &self.metadata.0.db.outlet;
            outlet.wait(self.opts.threshold()).await;
            sleep(self.opts.schedule_delay).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::db::Marks;

    #[test]
    fn a_deletion_or_many_changes_are_due() {
        let marks = |deletions, mutations| Marks {
            deletions,
            mutations,
            ..Marks::default()
        };
        let opts = SchedulerOpts::default();
        for (deletions, mutations, due) in
            [(0, 0, false), (0, 99, false), (0, 100, true), (1, 1, true)]
        {
            assert_eq!(opts.threshold().is_met(&marks(deletions, mutations)), due);
        }
        let lazy = SchedulerOpts {
            deletion_threshold: 5,
            mutation_threshold: 0,
            ..opts
        };
        for (deletions, mutations, due) in [(4, 1000, false), (5, 0, true)] {
            assert_eq!(lazy.threshold().is_met(&marks(deletions, mutations)), due);
        }
    }

    #[test]
    fn writers_rest_between_collections() {
        let opts = SchedulerOpts::default();
        assert_eq!(
            opts.rest(Duration::from_millis(20)),
            Duration::from_millis(980)
        );
        assert_eq!(opts.rest(Duration::ZERO), Duration::from_millis(245));
    }
}
