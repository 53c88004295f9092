//! What is told late: it happened before this exchange began.
//!
//! A shim keeps the exits of the time in which there was no daemon and tells them as soon as there is
//! one. Clients come back a moment later, when the pause of their connection is over: without this they
//! would never hear of what happened while they could not be told.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use crate::Envelope;

/// Three times as long as containerd's Go client lets a connection rest at most.
const COME_BACK: Duration = Duration::from_secs(10);

/// Numbers of what is told late, for a while.
#[derive(Debug)]
pub(crate) struct Late {
    began: SystemTime,
    over: Instant,
    numbers: VecDeque<u64>,
    /// How many there are at most: the newest.
    count: usize,
}

impl Late {
    /// For an exchange that begins now and holds so many envelopes.
    pub(crate) fn new(count: usize) -> Self {
        Self::lasting(COME_BACK, count)
    }

    pub(crate) fn lasting(time: Duration, count: usize) -> Self {
        Self {
            began: SystemTime::now(),
            over: Instant::now() + time,
            numbers: VecDeque::new(),
            count,
        }
    }

    /// Notes the number of an envelope that is late.
    pub(crate) fn note(&mut self, number: u64, envelope: &Envelope) {
        if envelope.timestamp >= self.began || self.is_over() {
            return;
        }
        if self.numbers.len() >= self.count {
            self.numbers.pop_front();
        }
        self.numbers.push_back(number);
    }

    /// True for a number that a subscriber of this moment could not have been told.
    pub(crate) fn is_owed(&self, number: u64) -> bool {
        !self.is_over() && self.numbers.binary_search(&number).is_ok()
    }

    /// True when there is nothing that could be owed.
    pub(crate) fn is_empty(&self) -> bool {
        self.numbers.is_empty() || self.is_over()
    }

    fn is_over(&self) -> bool {
        Instant::now() >= self.over
    }
}
