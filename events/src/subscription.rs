//! The reading end of a subscription, and what bounds it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::vec;

use tokio::sync::mpsc;
use types::{Error, Result};

use crate::exchange::Place;
use crate::{Envelope, Limits, Position};

/// What a subscription hands out.
#[derive(Clone, Debug)]
pub struct Step {
    /// Where the subscriber is now: going on after it, it misses nothing.
    pub position: Position,
    /// The event; `None` for a mark, which tells only that nothing up to here passed the filter.
    pub envelope: Option<Arc<Envelope>>,
}

impl Step {
    /// What it takes in a queue, in bytes.
    pub(crate) fn weight(&self) -> usize {
        let envelope = self.envelope.as_ref();
        size_of::<Self>() + envelope.map_or(0, |envelope| envelope.weight())
    }
}

/// What a subscriber has not read yet.
#[derive(Debug, Default)]
pub(crate) struct Load {
    count: AtomicUsize,
    bytes: AtomicUsize,
    cut: AtomicBool,
}

impl Load {
    /// Counts one more step; false when that is over the limits, which cuts the subscriber off.
    pub(crate) fn add(&self, bytes: usize, limits: Limits) -> bool {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let fits = count <= limits.count && bytes <= limits.bytes;
        if !fits {
            // The sender is dropped next, which ends the queue; the mark tells the reader why.
            self.cut.store(true, Ordering::Release);
        }
        fits
    }

    /// True when something is unread.
    pub(crate) fn is_any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    fn take(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// The reading end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    start: Position,
    /// What was held when it began, no more than the ring's limits.
    replay: vec::IntoIter<Step>,
    queue: mpsc::UnboundedReceiver<Step>,
    load: Arc<Load>,
    /// Who it is.
    name: Arc<str>,
    /// Weight of the last step from the queue.
    in_hand: Option<usize>,
    /// Number of the last step that was handed out.
    out: u64,
    pub(crate) place: Place,
}

impl Subscription {
    pub(crate) fn new(
        start: Position,
        queue: mpsc::UnboundedReceiver<Step>,
        (name, load): (Arc<str>, Arc<Load>),
        place: Place,
    ) -> Self {
        Self {
            start,
            replay: Vec::new().into_iter(),
            queue,
            load,
            name,
            in_hand: None,
            out: start.sequence,
            place,
        }
    }

    /// The same of a subscriber whose process is known: that is in its name from now on.
    #[must_use]
    pub fn of_process(mut self, pid: u32) -> Self {
        if let Some(name) = self.place.name(pid) {
            self.name = name;
        }
        self
    }

    /// Hands out these first.
    pub(crate) fn replay(&mut self, steps: impl Iterator<Item = Step>) {
        self.replay = steps.collect::<Vec<_>>().into_iter();
        if let Some(first) = self.replay.as_slice().first() {
            self.out = first.position.sequence.saturating_sub(1);
            self.place.got = self.out;
            self.place.is_replaying = true;
        }
    }

    /// Where it began: going on after it, a subscriber that has got nothing yet misses nothing.
    #[must_use]
    pub fn start(&self) -> Position {
        self.start
    }

    /// The next event or mark. Cancel safe: a step is either returned or still queued. It counts as
    /// unread until the next call, so what is done with it in between is within the limits too.
    ///
    /// # Errors
    /// `ResourceExhausted` when the subscriber was cut off, after what was queued before;
    /// `Unavailable` when the exchange is gone. Both for ever.
    pub async fn step(&mut self) -> Result<Step> {
        if let Some(bytes) = self.in_hand.take() {
            self.load.take(bytes);
        }
        // Who asks for the next one has got this one.
        self.place.got = self.out;
        if let Some(step) = self.replay.next() {
            self.out = step.position.sequence;
            return Ok(step);
        }
        self.place.is_replaying = false;
        match self.queue.recv().await {
            Some(step) => {
                self.in_hand = Some(step.weight());
                self.out = step.position.sequence;
                Ok(step)
            }
            None if self.load.cut.load(Ordering::Acquire) => Err(Error::resource_exhausted(
                format_args!("{} read too slowly and was cut off", self.name),
            )),
            None => Err(Error::unavailable("event exchange is closed")),
        }
    }

    /// The next event. Cancel safe as [`Subscription::step`].
    ///
    /// # Errors
    /// As [`Subscription::step`].
    pub async fn recv(&mut self) -> Result<Arc<Envelope>> {
        loop {
            if let Some(envelope) = self.step().await?.envelope {
                return Ok(envelope);
            }
        }
    }
}
