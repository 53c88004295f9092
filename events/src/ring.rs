//! What was published last, for subscribers that come back.
//!
//! Invariant: numbers have no holes. What is held is the newest part of all that was published, within
//! the limits; whatever is older is gone as a whole.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Envelope, Limits};

/// The newest envelopes. The first that was ever published has number 1.
#[derive(Debug)]
pub(crate) struct Ring {
    limits: Limits,
    held: VecDeque<Arc<Envelope>>,
    bytes: usize,
    /// Number of the newest, held or not.
    last: u64,
}

impl Ring {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            limits,
            held: VecDeque::new(),
            bytes: 0,
            last: 0,
        }
    }

    /// One that goes on behind number `last`, with the newest envelopes up to there.
    pub(crate) fn behind(limits: Limits, last: u64, held: Vec<Arc<Envelope>>) -> Self {
        let mut ring = Self::new(limits);
        ring.last = last.saturating_sub(held.len() as u64);
        for envelope in held {
            ring.push(envelope);
        }
        ring
    }

    /// The newest envelopes, oldest first.
    pub(crate) fn held(&self) -> Vec<Arc<Envelope>> {
        self.held.iter().cloned().collect()
    }

    /// Takes one more and gives it its number. One that is over the limit alone is gone at once.
    pub(crate) fn push(&mut self, envelope: Arc<Envelope>) -> u64 {
        self.bytes += envelope.weight();
        self.held.push_back(envelope);
        while self.held.len() > self.limits.count || self.bytes > self.limits.bytes {
            let Some(oldest) = self.held.pop_front() else {
                break;
            };
            self.bytes -= oldest.weight();
        }
        self.last += 1;
        self.last
    }

    /// Number of the newest.
    pub(crate) fn last(&self) -> u64 {
        self.last
    }

    /// Number of the newest that is gone; 0 when all are held.
    pub(crate) fn gone(&self) -> u64 {
        self.last - self.held.len() as u64
    }

    /// Who knows no later number than this may soon find that it is gone.
    pub(crate) fn stale(&self) -> u64 {
        match self.gone() {
            0 => 0,
            gone => gone + self.held.len() as u64 / 2,
        }
    }

    /// All after `number`, with their own numbers; `None` when some of them are gone, or when there
    /// never was that number.
    pub(crate) fn after(&self, number: u64) -> Option<Vec<(u64, Arc<Envelope>)>> {
        if number > self.last {
            return None;
        }
        let skipped = usize::try_from(number.checked_sub(self.gone())?).ok()?;
        let numbered = (number.checked_add(1)?..).zip(self.held.iter().skip(skipped));
        Some(numbered.map(|(n, e)| (n, Arc::clone(e))).collect())
    }
}
