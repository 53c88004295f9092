//! Who may work now: everybody, nobody because somebody looks, nobody because the daemon is away.
//!
//! Invariant: a worker that holds a [`Turn`] is waited for before anybody looks; what went wrong in a turn
//! during which the daemon was never away is the daemon's fault.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Longest turn: an operation and its tidying, with a daemon that is away now and then.
const TURN: Duration = Duration::from_secs(180);

#[derive(Debug, Default)]
struct State {
    is_paused: bool,
    is_away: bool,
    is_over: bool,
    working: usize,
    /// How often the daemon went away, and how often nobody worked.
    absences: u64,
    pauses: u64,
}

/// Lets workers in.
#[derive(Debug, Default)]
pub(crate) struct Gate {
    state: Mutex<State>,
    changed: Condvar,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic")
    }

    /// Waits until work may begin; `None` when there is none any more.
    pub(crate) fn enter(&self) -> Option<Turn<'_>> {
        let closed = |s: &mut State| (s.is_paused || s.is_away) && !s.is_over;
        let waited = self.changed.wait_while(self.state(), closed);
        let mut state = waited.expect("no panic");
        if state.is_over {
            return None;
        }
        state.working += 1;
        Some(Turn {
            gate: self,
            begun: state.absences,
            period: state.pauses,
        })
    }

    /// Lets nobody in any more and waits until nobody works.
    pub(crate) fn pause(&self) {
        {
            let mut state = self.state();
            state.is_paused = true;
            state.pauses += 1;
        }
        let busy = |s: &mut State| s.working > 0 && !s.is_over;
        let waited = self.changed.wait_timeout_while(self.state(), TURN, busy);
        let (state, _) = waited.expect("no panic");
        assert!(
            state.working == 0 || state.is_over,
            "{} operations have not ended after {TURN:?}",
            state.working
        );
    }

    /// Lets them in again.
    pub(crate) fn resume(&self) {
        self.state().is_paused = false;
        self.changed.notify_all();
    }

    /// Ends it for everybody.
    pub(crate) fn close(&self) {
        self.state().is_over = true;
        self.changed.notify_all();
    }

    /// True when it is over for everybody.
    pub(crate) fn is_closed(&self) -> bool {
        self.state().is_over
    }

    /// Waits until then, or until it is over before.
    pub(crate) fn until(&self, then: Instant) {
        let left = then.saturating_duration_since(Instant::now());
        let goes_on = |s: &mut State| !s.is_over;
        let waited = self.changed.wait_timeout_while(self.state(), left, goes_on);
        drop(waited.expect("no panic"));
    }

    /// The daemon goes away in the middle of what they do, and is back when `work` is done.
    pub(crate) fn without_daemon(&self, work: impl FnOnce()) {
        {
            let mut state = self.state();
            state.is_away = true;
            state.absences += 1;
        }
        work();
        self.state().is_away = false;
        self.changed.notify_all();
    }

    /// How often it has been away.
    pub(crate) fn absences(&self) -> u64 {
        self.state().absences
    }
}

/// A worker's right to work.
#[derive(Debug)]
pub(crate) struct Turn<'a> {
    gate: &'a Gate,
    begun: u64,
    period: u64,
}

impl Turn<'_> {
    /// True when the daemon was away since it began: then operations may have failed.
    pub(crate) fn is_disturbed(&self) -> bool {
        self.gate.state().absences != self.begun
    }

    /// The period that it belongs to, although somebody may wait to look by now.
    pub(crate) fn period(&self) -> u64 {
        self.period
    }

    /// Waits until the daemon is back, and begins anew; false when it is over.
    pub(crate) fn again(&mut self) -> bool {
        let away = |s: &mut State| s.is_away && !s.is_over;
        let waited = self.gate.changed.wait_while(self.gate.state(), away);
        let state = waited.expect("no panic");
        self.begun = state.absences;
        !state.is_over
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.gate.state().working -= 1;
        self.gate.changed.notify_all();
    }
}
