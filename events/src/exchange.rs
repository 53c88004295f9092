//! The exchange and its subscriptions.
//!
//! Invariant: [`Exchange::publish`] takes no lock that a subscriber can hold while it waits; a queue
//! over its limit ends the subscription, never the publisher's patience.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;
use types::{Any, Error, Event, Filter, Namespace, Result, Topic};

use crate::envelope::{Codec, Envelope, Matched};

/// How much a subscriber may leave unread before it is cut off.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Envelopes.
    pub count: usize,
    /// Bytes, envelopes' overhead included.
    pub bytes: usize,
}

impl Default for Limits {
    /// Enough for a burst of thousands of containers, little enough for a forgotten subscriber.
    fn default() -> Self {
        Self {
            count: 16 * 1024,
            bytes: 8 << 20,
        }
    }
}

/// Hands every envelope to every subscriber whose filter it passes.
pub struct Exchange {
    codec: Codec,
    limits: Limits,
    subscribers: Mutex<Vec<Subscriber>>,
}

struct Subscriber {
    filter: Filter,
    queue: mpsc::UnboundedSender<Arc<Envelope>>,
    load: Arc<Load>,
}

/// What a subscriber has not read yet.
#[derive(Debug, Default)]
struct Load {
    count: AtomicUsize,
    bytes: AtomicUsize,
    cut: AtomicBool,
}

impl Load {
    /// Counts one more envelope; false when that is over the limits.
    fn add(&self, bytes: usize, limits: Limits) -> bool {
        let count = self.count.fetch_add(1, Ordering::Relaxed) + 1;
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        count <= limits.count && bytes <= limits.bytes
    }

    fn take(&self, bytes: usize) {
        self.count.fetch_sub(1, Ordering::Relaxed);
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Exchange {
    /// An exchange without subscribers.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self::with_limits(codec, Limits::default())
    }

    /// An exchange with other limits.
    #[must_use]
    pub fn with_limits(codec: Codec, limits: Limits) -> Self {
        Self {
            codec,
            limits,
            subscribers: Mutex::default(),
        }
    }

    /// Publishes an event of ours, stamped now.
    pub fn publish(&self, namespace: &Namespace, event: &Event) {
        self.send(|codec| Envelope {
            timestamp: SystemTime::now(),
            namespace: namespace.clone(),
            topic: Topic::from(event),
            event: (codec.encode)(event),
        });
    }

    /// Publishes a client's event, stamped now.
    pub fn publish_any(&self, namespace: &Namespace, topic: Topic, event: Any) {
        self.send(|_| Envelope {
            timestamp: SystemTime::now(),
            namespace: namespace.clone(),
            topic,
            event,
        });
    }

    /// Hands on an envelope that somebody else made.
    ///
    /// # Errors
    /// `InvalidArgument` when it has no timestamp.
    pub fn forward(&self, envelope: Envelope) -> Result<()> {
        if envelope.timestamp == SystemTime::UNIX_EPOCH {
            return Err(Envelope::no_timestamp());
        }
        self.send(|_| envelope);
        Ok(())
    }

    /// Subscribes to what passes `filter` from now on.
    #[must_use]
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        let load = Arc::<Load>::default();
        self.lock().push(Subscriber {
            filter,
            queue: sender,
            load: Arc::clone(&load),
        });
        Subscription {
            queue: receiver,
            load,
        }
    }

    /// Builds the envelope if anybody listens and queues it, in one order for all.
    fn send(&self, envelope: impl FnOnce(Codec) -> Envelope) {
        let mut subscribers = self.lock();
        if subscribers.is_empty() {
            return;
        }
        let envelope = Arc::new(envelope(self.codec));
        let weight = envelope.weight();
        let matched = Matched {
            envelope: &envelope,
            codec: self.codec,
        };
        subscribers.retain(|subscriber| {
            if subscriber.queue.is_closed() {
                return false;
            }
            if !subscriber.filter.matches(&matched) {
                return true;
            }
            if !subscriber.load.add(weight, self.limits) {
                // Dropping the sender ends the queue; the mark tells the reader why.
                subscriber.load.cut.store(true, Ordering::Release);
                tracing::warn!(topic = %envelope.topic, "event subscriber is too slow: cut off");
                return false;
            }
            subscriber.queue.send(Arc::clone(&envelope)).is_ok()
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Subscriber>> {
        self.subscribers
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("subscribers", &self.lock().len())
            .finish_non_exhaustive()
    }
}

/// The reading end. Dropping it ends the subscription.
#[derive(Debug)]
pub struct Subscription {
    queue: mpsc::UnboundedReceiver<Arc<Envelope>>,
    load: Arc<Load>,
}

impl Subscription {
    /// The next envelope. Cancel safe: an envelope is either returned or still queued.
    ///
    /// # Errors
    /// `ResourceExhausted` when the subscriber was cut off, after what was queued before;
    /// `Unavailable` when the exchange is gone. Both for ever.
    pub async fn recv(&mut self) -> Result<Arc<Envelope>> {
        match self.queue.recv().await {
            Some(envelope) => {
                self.load.take(envelope.weight());
                Ok(envelope)
            }
            None if self.load.cut.load(Ordering::Acquire) => Err(Error::resource_exhausted(
                "event subscriber read too slowly and was cut off",
            )),
            None => Err(Error::unavailable("event exchange is closed")),
        }
    }
}

#[cfg(test)]
mod tests;
