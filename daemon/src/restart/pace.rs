//! How soon a container may be started once more.

use std::time::Duration;

use tokio::time::Instant;

/// Starts in a row that only the interval holds up: clients count on those.
const FREE: u32 = 5;
/// The longest pause, unless the interval is longer.
const LONGEST: Duration = Duration::from_secs(300);
/// One that has run this long has come up.
const LONG: Duration = Duration::from_secs(60);

/// What is remembered of one container's starts.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    busy: bool,
    starts: u32,
    last: Option<Instant>,
    /// When its task was first seen made and not started.
    made: Option<Instant>,
}

impl Pace {
    /// How long its task has been seen made and not started.
    pub(super) fn made(&mut self, is_made: bool, now: Instant) -> Duration {
        self.made = is_made.then(|| self.made.unwrap_or(now));
        self.made
            .map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// Begins a change, unless one is under way or it is too soon for another start.
    pub(super) fn begin(&mut self, is_start: bool, interval: Duration, now: Instant) -> bool {
        if self.busy {
            return false;
        }
        if is_start {
            let pause = pause(self.starts, interval);
            if self.last.is_some_and(|last| now < last + pause) {
                return false;
            }
            self.starts = self.starts.saturating_add(1);
            self.last = Some(now);
        }
        self.busy = true;
        true
    }

    /// The change has ended.
    pub(super) fn end(&mut self) {
        self.busy = false;
    }

    pub(super) fn is_busy(&self) -> bool {
        self.busy
    }

    /// It runs.
    pub(super) fn alive(&mut self) {
        if self.last.is_some_and(|last| last.elapsed() >= LONG) {
            self.starts = 0;
        }
    }
}

/// Pause after so many starts in a row.
fn pause(starts: u32, interval: Duration) -> Duration {
    let doubled = starts.saturating_sub(FREE).min(16);
    let pause = match doubled {
        0 => Duration::ZERO,
        times => interval.saturating_mul(1 << times),
    };
    pause.min(LONGEST.max(interval))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn starts_in_a_row_come_slower_and_slower_up_to_a_limit() {
        let interval = Duration::from_secs(10);
        let pauses: Vec<_> = (0..14).map(|n| pause(n, interval).as_secs()).collect();
        let want = [0, 0, 0, 0, 0, 0, 20, 40, 80, 160, 300, 300, 300, 300];
        assert_eq!(pauses, want);
        assert_eq!(pause(u32::MAX, LONGEST * 2), LONGEST * 2);
        let mut pace = Pace::default();
        for _ in 0..FREE {
            assert!(pace.begin(true, interval, Instant::now()));
            pace.end();
        }
        assert!(pace.begin(true, interval, Instant::now()));
        pace.end();
        assert!(!pace.begin(true, interval, Instant::now()));
        // To stop it is always the time.
        assert!(pace.begin(false, interval, Instant::now()));
        assert!(
            !pace.begin(false, interval, Instant::now()),
            "one at a time"
        );
        pace.end();
        tokio::time::advance(LONG).await;
        pace.alive();
        assert!(pace.begin(true, interval, Instant::now()));
    }

    #[test]
    fn a_task_waits_from_when_it_was_seen_and_another_one_anew() {
        let (mut pace, begin) = (Pace::default(), Instant::now());
        let later = |secs| begin + Duration::from_secs(secs);
        assert_eq!(pace.made(true, begin), Duration::ZERO);
        assert_eq!(pace.made(true, later(50)), Duration::from_secs(50));
        assert_eq!(pace.made(false, later(55)), Duration::ZERO);
        assert_eq!(pace.made(true, later(70)), Duration::ZERO);
        assert_eq!(pace.made(true, later(80)), Duration::from_secs(10));
    }
}
