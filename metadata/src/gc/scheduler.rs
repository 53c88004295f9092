//! When to collect.
//!
//! Invariant: collections hold up writers for at most a given share of the time, but for those that a
//! threshold of removals asks for. One task of the daemon runs the scheduler; requests that must not
//! wait call [`Metadata::gc`] themselves.
//!
//! Parity: gc/scheduler/scheduler.go: after the rest that a collection is followed by, one removal makes
//! the next one due, whatever the thresholds are; the threshold of removals only cuts the rest short. So does
//! the end of a time that something is kept until, which Go's scheduler leaves to the next removal.

use std::time::Duration;

use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::Metadata;
use crate::db::{LOOK, Threshold};

/// Shortest pause that is assumed: even an idle store is not collected more often than four times a
/// second.
const MIN_PAUSE: Duration = Duration::from_millis(5);

/// Between collections where no share of the time is configured. Parity: plugins/gc.
const UNSHARED: Duration = Duration::from_secs(1);

/// Wait after a failed collection.
const RETRY: Duration = Duration::from_secs(1);

/// When collections begin. The defaults are those of containerd's configuration.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerOpts {
    /// From the start to the first collection.
    pub startup_delay: Duration,
    /// From a trigger to its collection: gathers what follows closely.
    pub schedule_delay: Duration,
    /// Removals that trigger at once; 0: they wait until the rest is over, as fewer of them do.
    pub deletion_threshold: u64,
    /// Changes of any kind that trigger when the rest is over, without a removal; 0: they never do.
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
    /// What makes a collection due.
    fn due(&self) -> Threshold {
        Threshold {
            deletions: 1,
            mutations: or_never(self.mutation_threshold),
        }
    }

    /// What does not wait for the end of the rest.
    fn urgent(&self) -> Threshold {
        Threshold {
            deletions: or_never(self.deletion_threshold),
            mutations: u64::MAX,
        }
    }

    /// How long to leave the writers alone after collections that took `pause` on average.
    fn rest(&self, pause: Duration) -> Duration {
        if self.pause_threshold <= 0.0 {
            return UNSHARED;
        }
        let pause = pause.max(MIN_PAUSE);
        let share = self.pause_threshold.clamp(0.001, 0.5);
        pause.mul_f64(1.0 / share).saturating_sub(pause)
    }
}

/// A threshold of the configuration, where 0 says that there is none.
fn or_never(threshold: u64) -> u64 {
    match threshold {
        0 => u64::MAX,
        some => some,
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
        if self.opts.startup_delay.is_zero() {
            // None at the start. Parity: plugins/gc.
            let outlet = &self.metadata.0.db.outlet;
            // What expires in it the first one finds, so there is one even if nothing happens.
            drop(timeout(LOOK, outlet.wait_or_expire(self.opts.due())).await);
        } else {
            sleep(self.opts.startup_delay).await;
        }
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
            let rest = Instant::now() + self.opts.rest(pauses / runs.max(1));
            let outlet = &self.metadata.0.db.outlet;
            drop(timeout_at(rest, outlet.wait(self.opts.urgent())).await);
            outlet.wait_or_expire(self.opts.due()).await;
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
            assert_eq!(opts.due().is_met(&marks(deletions, mutations)), due);
        }
        assert!(!opts.urgent().is_met(&marks(1000, 1000)));
        let lazy = SchedulerOpts {
            deletion_threshold: 5,
            mutation_threshold: 0,
            ..opts
        };
        for (deletions, mutations, due, urgent) in [
            (0, 1000, false, false),
            (4, 0, true, false),
            (5, 0, true, true),
        ] {
            let marks = marks(deletions, mutations);
            assert_eq!(lazy.due().is_met(&marks), due, "{marks:?}");
            assert_eq!(lazy.urgent().is_met(&marks), urgent, "{marks:?}");
        }
    }

    /// Removals up to the threshold cut even a long rest short.
    #[tokio::test]
    async fn a_threshold_of_removals_does_not_wait_for_the_rest() {
        let house = crate::fixture::House::new().await;
        let opts = SchedulerOpts {
            deletion_threshold: 2,
            // A rest of five seconds at least.
            pause_threshold: 0.001,
            ..SchedulerOpts::default()
        };
        let begin = Instant::now();
        let cleanups = || house.memory.cleanups();
        let run = tokio::spawn(Scheduler::new(house.metadata.clone(), opts).run());
        let marks = || Marks {
            deletions: 1,
            snapshotters: [crate::fixture::SNAPSHOTTER.to_owned()].into(),
            ..Marks::default()
        };
        let reach = async |count| {
            while cleanups() < count {
                sleep(Duration::from_millis(1)).await;
            }
        };
        reach(1).await;
        let outlet = &house.metadata.0.db.outlet;
        outlet.add(marks());
        outlet.add(marks());
        reach(2).await;
        assert!(begin.elapsed() < MIN_PAUSE * 999, "{:?}", begin.elapsed());
        run.abort();
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
