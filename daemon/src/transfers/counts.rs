//! How many transfers there were, of what kind, and how they ended.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use types::Result;
use types::transfer::Endpoint;

/// Kinds of transfers.
const KINDS: [&str; 6] = ["pull", "push", "import", "export", "tag", "other"];

/// Transfers since the start of the daemon.
#[derive(Debug, Default)]
pub(crate) struct Counts([Count; KINDS.len()]);

#[derive(Debug, Default)]
struct Count {
    running: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    micros: AtomicU64,
}

/// Transfers of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Told {
    /// The kind.
    pub(crate) kind: &'static str,
    /// Those that have not ended.
    pub(crate) running: u64,
    /// Those that went well.
    pub(crate) done: u64,
    /// Those that failed or were given up.
    pub(crate) failed: u64,
    /// How long those took that have ended.
    pub(crate) took: Duration,
}

/// A transfer under way; one that is dropped has failed.
pub(crate) struct Counted<'a> {
    count: &'a Count,
    began: Instant,
    went_well: bool,
}

impl Counts {
    pub(crate) fn begin(&self, source: &Endpoint, destination: &Endpoint) -> Counted<'_> {
        let count = &self.0[kind(source, destination)];
        count.running.fetch_add(1, Ordering::Relaxed);
        Counted {
            count,
            began: Instant::now(),
            went_well: false,
        }
    }

    /// All kinds.
    pub(crate) fn told(&self) -> impl Iterator<Item = Told> {
        KINDS.into_iter().zip(&self.0).map(|(kind, count)| Told {
            kind,
            running: count.running.load(Ordering::Relaxed),
            done: count.done.load(Ordering::Relaxed),
            failed: count.failed.load(Ordering::Relaxed),
            took: Duration::from_micros(count.micros.load(Ordering::Relaxed)),
        })
    }
}

/// Place of the kind in [`KINDS`].
fn kind(source: &Endpoint, destination: &Endpoint) -> usize {
    match (source, destination) {
        (Endpoint::Registry(_), Endpoint::Store(_)) => 0,
        (Endpoint::Store(_), Endpoint::Registry(_)) => 1,
        (Endpoint::Import(_), Endpoint::Store(_)) => 2,
        (Endpoint::Store(_), Endpoint::Export(_)) => 3,
        (Endpoint::Store(_), Endpoint::Store(_)) => 4,
        _ => 5,
    }
}

impl Counted<'_> {
    pub(crate) fn end(mut self, done: &Result<()>) {
        self.went_well = done.is_ok();
    }
}

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        let ended = match self.went_well {
            true => &self.count.done,
            false => &self.count.failed,
        };
        ended.fetch_add(1, Ordering::Relaxed);
        let micros = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.count.micros.fetch_add(micros, Ordering::Relaxed);
        self.count.running.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use types::Error;
    use types::transfer::Store;

    use super::*;

    #[test]
    fn a_transfer_runs_and_then_has_ended_one_way_or_the_other() {
        let counts = Counts::default();
        let store = || {
            Endpoint::Store(Store {
                name: "a".into(),
                ..Store::default()
            })
        };
        let tag = |counts: &Counts| counts.told().find(|told| told.kind == "tag").unwrap();
        let running = counts.begin(&store(), &store());
        assert_eq!(tag(&counts).running, 1);
        running.end(&Ok(()));
        counts
            .begin(&store(), &store())
            .end(&Err(Error::unknown("x")));
        drop(counts.begin(&store(), &store()));
        let told = tag(&counts);
        assert_eq!((told.running, told.done, told.failed), (0, 1, 2));
        drop(counts.begin(&store(), &Endpoint::Other("x".into())));
        assert_eq!(counts.told().map(|told| told.failed).sum::<u64>(), 3);
    }
}
