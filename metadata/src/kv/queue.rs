//! Changes that wait to be made, in the order in which they came.
//!
//! Invariant: what is queued is made by whoever takes it, or is left to the writer's thread, which is
//! woken for it. When that is gone, it is dropped, and its callers hear so.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use types::Result;

use super::Tx;
use super::tx::Done;

/// A change: fills `Done` on success and returns what answers its caller once the commit is known. There
/// is no transaction for it after a failure, which it then answers with.
pub(super) type Job = Box<dyn FnOnce(Option<Tx<'_>>) -> (Option<Done>, Answer) + Send>;
/// Answers the caller of a change.
pub(super) type Answer = Box<dyn FnOnce(&Result<()>) + Send>;

/// How long a change may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Length {
    /// As long as a few records take.
    Short,
    /// It may look at all there is: for the writer's thread.
    Long,
}

/// The queue. Each caller waits for its one change, so there are no more than calls.
#[derive(Default)]
pub(super) struct Queue {
    waiting: Mutex<Waiting>,
    woken: Condvar,
}

#[derive(Default)]
struct Waiting {
    jobs: VecDeque<(Job, Length)>,
    /// The thread is to look: nobody else will.
    is_left: bool,
    is_closed: bool,
    /// There is no thread any more.
    has_ended: bool,
}

/// What the thread finds.
pub(super) enum Next {
    /// Changes that are left to it.
    Some,
    /// None, for as long as it wanted to wait.
    Nothing,
    /// None, and there will be none.
    End,
}

impl Queue {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Queues a change. Without a thread it is dropped.
    pub(super) fn push(&self, job: Job, length: Length) {
        let mut waiting = self.waiting();
        if !waiting.has_ended {
            waiting.jobs.push_back((job, length));
        }
    }

    /// Leaves what is queued to the thread.
    pub(super) fn leave(&self) {
        let mut waiting = self.waiting();
        if !waiting.jobs.is_empty() && !std::mem::replace(&mut waiting.is_left, true) {
            drop(waiting);
            self.woken.notify_one();
        }
    }

    /// The changes that came first.
    pub(super) fn take(&self, most: usize) -> Vec<Job> {
        self.take_while(most, |_| true)
    }

    /// Those of them that take no longer than a few records.
    pub(super) fn take_short(&self, most: usize) -> Vec<Job> {
        self.take_while(most, |length| length == Length::Short)
    }

    fn take_while(&self, most: usize, is_wanted: impl Fn(Length) -> bool) -> Vec<Job> {
        let mut waiting = self.waiting();
        let wanted = waiting.jobs.iter().take(most);
        let count = wanted.take_while(|(_, length)| is_wanted(*length)).count();
        let jobs = waiting.jobs.drain(..count).map(|(job, _)| job).collect();
        waiting.is_left &= !waiting.jobs.is_empty();
        jobs
    }

    /// Waits until changes are left to the thread; without `patience` for as long as that takes.
    pub(super) fn wait(&self, patience: Option<Duration>) -> Next {
        let is_idle = |waiting: &mut Waiting| !waiting.is_left && !waiting.is_closed;
        let waiting = self.waiting();
        let waiting = if let Some(patience) = patience {
            let woken = self.woken.wait_timeout_while(waiting, patience, is_idle);
            woken.unwrap_or_else(PoisonError::into_inner).0
        } else {
            let woken = self.woken.wait_while(waiting, is_idle);
            woken.unwrap_or_else(PoisonError::into_inner)
        };
        // What is closed leaves all of it to the thread.
        if waiting.is_left || (waiting.is_closed && !waiting.jobs.is_empty()) {
            Next::Some
        } else if waiting.is_closed {
            Next::End
        } else {
            Next::Nothing
        }
    }

    /// Nobody will queue anything more.
    pub(super) fn close(&self) {
        self.waiting().is_closed = true;
        self.woken.notify_one();
    }

    /// The thread is gone: so is what was left to it.
    pub(super) fn end(&self) {
        let mut waiting = self.waiting();
        waiting.has_ended = true;
        let jobs = std::mem::take(&mut waiting.jobs);
        drop(waiting);
        drop(jobs);
    }
}
