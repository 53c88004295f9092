//! What was done, and how long each of it took.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Durations by kind and period.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    period: AtomicUsize,
    taken: Mutex<BTreeMap<&'static str, BTreeMap<usize, Vec<Duration>>>>,
}

impl Tally {
    /// Does a piece of work and takes down what it took.
    pub(crate) fn timed<T>(&self, kind: &'static str, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let done = work();
        let took = begin.elapsed();
        let period = self.period.load(Ordering::Relaxed);
        let mut taken = self.taken.lock().expect("no panic");
        let of_kind = taken.entry(kind).or_default();
        of_kind.entry(period).or_default().push(took);
        done
    }

    /// What is done from now on belongs to the next period.
    pub(crate) fn next(&self) {
        self.period.fetch_add(1, Ordering::Relaxed);
    }

    /// How much of everything was done.
    pub(crate) fn total(&self) -> usize {
        let taken = self.taken.lock().expect("no panic");
        taken
            .values()
            .flat_map(BTreeMap::values)
            .map(Vec::len)
            .sum()
    }

    /// A line for each kind with its number, then one for each kind and period with p50 and p99 in ms.
    pub(crate) fn table(&self) -> String {
        let mut text = String::from("operation     number     p50     p99  ms, all periods\n");
        let mut taken = self.taken.lock().expect("no panic");
        for (kind, periods) in taken.iter() {
            let mut all: Vec<_> = periods.values().flatten().copied().collect();
            let (middle, most) = (part(&mut all, 50), part(&mut all, 99));
            let line = writeln!(text, "{kind:12} {:>7} {middle:>7.1} {most:>7.1}", all.len());
            line.expect("a string takes it");
        }
        text.push_str("\np50/p99 of each period, ms\n");
        let periods = self.period.load(Ordering::Relaxed);
        for period in 0..=periods {
            let mut line = String::new();
            for (kind, of_kind) in taken.iter_mut() {
                let Some(all) = of_kind.get_mut(&period) else {
                    continue;
                };
                let (middle, most) = (part(all, 50), part(all, 99));
                let word = write!(line, "  {kind} {middle:.0}/{most:.0}");
                word.expect("a string takes it");
            }
            if !line.is_empty() {
                let line = writeln!(text, "{:3}{line}", period + 1);
                line.expect("a string takes it");
            }
        }
        text
    }
}

/// So many of a hundred took no longer, in ms.
fn part(all: &mut [Duration], percent: usize) -> f64 {
    all.sort_unstable();
    let at = (all.len() * percent / 100).min(all.len().saturating_sub(1));
    all.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3)
}

#[test]
fn the_hundredth_part_is_the_slowest_of_a_hundred() {
    let mut all: Vec<_> = (1..=100).rev().map(Duration::from_millis).collect();
    let [middle, most] = [50, 99].map(|percent| part(&mut all, percent));
    assert!((middle - 51.0).abs() < 1e-9 && (most - 100.0).abs() < 1e-9);
    assert!(part(&mut [], 50).abs() < 1e-9);
}
