//! The exchange: numbers what is published and hands it out.
//!
//! Invariant: [`Exchange::publish`] takes no lock that a subscriber can hold while it waits; a queue
//! over its limit ends the subscription, never the publisher's patience. What is held for replay and
//! what subscribers are sent is one order: a subscription begins at one point of it. One that ends leaves
//! nothing here, whether anything is published after it or not.

mod place;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::mpsc;
use types::{Any, Event, Filter, Namespace, Result, Topic};

pub(crate) use self::place::Place;
use crate::cut::{Cut, Cuts};
use crate::envelope::{Codec, Envelope, Matched};
use crate::late::Late;
use crate::position::{Gap, Position};
use crate::ring::Ring;
use crate::subscription::{Load, Step, Subscription};

/// How much may wait somewhere.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Envelopes.
    pub count: usize,
    /// Bytes, envelopes' overhead included.
    pub bytes: usize,
}

impl Limits {
    /// What a subscriber may leave unread before it is cut off: enough for a burst of thousands of
    /// containers. A forgotten subscriber must not cost more than 16 MiB: this, as much again for
    /// one message of that size on its way to the socket, and a replay.
    pub const QUEUE: Self = Self {
        count: 16 * 1024,
        bytes: 6 << 20,
    };
    /// What is held for subscribers that come back: the events of several hundred containers from
    /// their creation to their end.
    pub const REPLAY: Self = Self {
        count: 4096,
        bytes: 2 << 20,
    };
}

/// What an exchange knows, for one that goes on with its numbers: positions stay good.
#[derive(Clone, Debug)]
pub struct History {
    /// Run of the numbers.
    pub run: u64,
    /// Number of the newest envelope.
    pub last: u64,
    /// The newest ones that are held, oldest first.
    pub held: Vec<Arc<Envelope>>,
    /// Subscriptions of clients without positions that were cut and have not come back.
    pub cut: Vec<Cut>,
}

/// Hands every envelope to every subscriber whose filter it passes.
pub struct Exchange {
    codec: Codec,
    queue: Limits,
    /// Tells this exchange's numbers from those of the one before a restart.
    run: u64,
    state: Arc<Mutex<State>>,
}

struct State {
    ring: Ring,
    late: Late,
    /// Cut by the exchange before.
    cuts: Cuts,
    /// Ended since [`Exchange::part`].
    parted: Option<Vec<Cut>>,
    subscribers: BTreeMap<u64, Subscriber>,
    /// Key of the next subscriber.
    next: u64,
    /// Subscribers that were cut off.
    cut_off: u64,
}

impl State {
    /// What a new subscriber could not be told when it happened, with numbers.
    fn owed(&self) -> Vec<(u64, Arc<Envelope>)> {
        if self.late.is_empty() {
            return Vec::new();
        }
        let held = self.ring.after(self.ring.gone()).unwrap_or_default();
        let owed = held.into_iter().filter(|(n, _)| self.late.is_owed(*n));
        owed.collect()
    }
}

/// What an exchange has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Counts {
    /// Envelopes published.
    pub published: u64,
    /// Subscribers that there are.
    pub subscribers: usize,
    /// Subscribers that were cut off since they were too slow.
    pub cut_off: u64,
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a subscriber is called, in the log and in what it is told itself: its number, its process where
/// that is known, and its filters as far as a line of a log has room for them.
fn named(number: u64, pid: Option<u32>, filter: &Filter) -> String {
    /// Filters are as long as a client likes.
    const MOST: usize = 256;
    let filters = filter.texts().join(" or ");
    let cut: String = filters.chars().take(MOST).collect();
    let rest = if cut.len() < filters.len() { "…" } else { "" };
    let process = pid.map_or(String::new(), |pid| format!(" (process {pid})"));
    match cut.as_str() {
        "" => format!("event subscriber {number}{process} of everything"),
        cut => format!("event subscriber {number}{process} of {cut}{rest}"),
    }
}

struct Subscriber {
    /// Who it is.
    name: Arc<str>,
    process: Option<u32>,
    filter: Filter,
    queue: mpsc::UnboundedSender<Step>,
    load: Arc<Load>,
    /// Number up to which it has been told, when it wants to know.
    told: Option<u64>,
}

/// An envelope on its way to the subscribers.
struct Sent<'a> {
    step: Step,
    weight: usize,
    matched: Matched<'a>,
    limits: Limits,
    /// Who was told no later number than this needs a mark.
    stale: u64,
}

impl Subscriber {
    /// What it is when it is cut here. Who is told positions comes back with its own.
    fn cut(&self, after: u64) -> Option<Cut> {
        let process = self.process.filter(|_| self.told.is_none())?;
        Some(Cut { process, after })
    }

    /// Queues what concerns it; false when the subscription is over.
    fn offer(&mut self, sent: &Sent<'_>, cut_off: &mut u64) -> bool {
        if self.queue.is_closed() {
            return false;
        }
        let position = sent.step.position;
        let (step, weight) = if self.filter.matches(&sent.matched) {
            (sent.step.clone(), sent.weight)
        } else if self.told.is_some_and(|told| told < sent.stale) {
            let mark = Step {
                position,
                envelope: None,
            };
            let weight = mark.weight();
            (mark, weight)
        } else {
            return true;
        };
        if !self.load.add(weight, sent.limits) {
            let topic = &sent.matched.envelope.topic;
            tracing::warn!(%topic, subscriber = %self.name, "event subscriber is too slow: cut off");
            *cut_off += 1;
            return false;
        }
        if let Some(told) = &mut self.told {
            *told = position.sequence;
        }
        self.queue.send(step).is_ok()
    }
}

impl Exchange {
    /// An exchange without subscribers.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        Self::with_limits(codec, Limits::QUEUE, Limits::REPLAY)
    }

    /// An exchange with other limits.
    #[must_use]
    pub fn with_limits(codec: Codec, queue: Limits, replay: Limits) -> Self {
        Self {
            codec,
            queue,
            run: rand::random(),
            state: Arc::new(Mutex::new(State {
                ring: Ring::new(replay),
                late: Late::new(replay.count),
                cuts: Cuts::of(Vec::new()),
                parted: None,
                subscribers: BTreeMap::new(),
                next: 0,
                cut_off: 0,
            })),
        }
    }

    /// An exchange that goes on where another one has ended.
    #[must_use]
    pub fn after(codec: Codec, history: History) -> Self {
        let mut made = Self::new(codec);
        made.run = history.run;
        let mut state = made.lock();
        state.ring = Ring::behind(Limits::REPLAY, history.last, history.held);
        state.cuts = Cuts::of(history.cut);
        drop(state);
        made
    }

    /// What there is for one that goes on. Of what is published here later it knows nothing.
    #[must_use]
    pub fn history(&self) -> History {
        let state = self.lock();
        let last = state.ring.last();
        let mut cut = state.cuts.open().to_vec();
        if let Some(parted) = &state.parted {
            cut.extend(parted);
            // Nobody has ended these, and nobody serves them any more.
            let left = state.subscribers.values();
            cut.extend(left.filter_map(|subscriber| subscriber.cut(last)));
        }
        History {
            run: self.run,
            last,
            held: state.ring.held(),
            cut,
        }
    }

    /// Subscriptions that end from now on are cut: what they do not get any more is for the exchange that
    /// goes on with the history, which owes it to their clients.
    pub fn part(&self) {
        self.lock().parted.get_or_insert_default();
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

    /// Subscribes to what passes `filter` from now on, without marks.
    #[must_use]
    pub fn subscribe(&self, filter: Filter) -> Subscription {
        let mut state = self.lock();
        let start = self.position(state.ring.last());
        self.add(&mut state, filter, start, None)
    }

    /// The same for a client of this process. When its subscription was cut with the exchange before this
    /// one, what was published since comes first, as far as it is held. Else, when it is old enough to have
    /// subscribed to that one, and while this one is young, what happened before this one began and is
    /// known by now: nobody could be told then.
    #[must_use]
    pub fn rejoin(&self, filter: Filter, process: Option<u32>, is_older: bool) -> Subscription {
        let mut state = self.lock();
        let start = self.position(state.ring.last());
        let missed = filter.clone();
        let cut = process.and_then(|process| state.cuts.close(process));
        let owed_to = cut.and(process);
        let owed = match cut {
            Some(after) => {
                let after = after.max(state.ring.gone());
                state.ring.after(after).unwrap_or_default()
            }
            None if is_older => state.owed(),
            None => Vec::new(),
        };
        let mut subscription = self.add(&mut state, filter, start, None);
        drop(state);
        subscription.place.owed_to = owed_to;
        self.replay(&mut subscription, owed, &missed);
        subscription
    }

    /// Subscribes to what passes `filter` from now on. Marks come between events when few of them
    /// pass, so that the subscriber's position does not grow old while it misses nothing.
    #[must_use]
    pub fn follow(&self, filter: Filter) -> Subscription {
        let mut state = self.lock();
        let start = self.position(state.ring.last());
        self.add(&mut state, filter, start, Some(start.sequence))
    }

    /// As [`Exchange::follow`], from a position on: what came after it and is still held is replayed
    /// first, nothing is left out and nothing comes twice.
    ///
    /// # Errors
    /// The gap, when something after the position is not held any more.
    pub fn resume(&self, filter: Filter, after: Position) -> Result<Subscription, Gap> {
        let mut state = self.lock();
        let is_ours = after.run == self.run && after.sequence <= state.ring.last();
        // The numbers of another run, or of nobody, mean nothing to the ring.
        let replay = is_ours.then(|| state.ring.after(after.sequence)).flatten();
        let Some(replay) = replay else {
            let gone = state.ring.gone();
            return Err(Gap {
                after,
                missed: is_ours.then(|| gone.saturating_sub(after.sequence)),
                from: self.position(gone),
            });
        };
        let (told, missed) = (Some(after.sequence), filter.clone());
        let mut subscription = self.add(&mut state, filter, after, told);
        // Filters can be slow: publishers do not wait for that.
        drop(state);
        self.replay(&mut subscription, replay, &missed);
        Ok(subscription)
    }

    /// Lets a subscription hand out first what passes its filter.
    fn replay(
        &self,
        subscription: &mut Subscription,
        held: Vec<(u64, Arc<Envelope>)>,
        filter: &Filter,
    ) {
        let matches = |envelope: &Envelope| filter.matches(&Matched::new(envelope, self.codec));
        let wanted = held.into_iter().filter(|(_, e)| matches(e));
        subscription.replay(wanted.map(|(sequence, envelope)| Step {
            position: self.position(sequence),
            envelope: Some(envelope),
        }));
    }

    /// What it has done so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let state = self.lock();
        Counts {
            published: state.ring.last(),
            subscribers: state.subscribers.len(),
            cut_off: state.cut_off,
        }
    }

    fn position(&self, sequence: u64) -> Position {
        Position {
            run: self.run,
            sequence,
        }
    }

    fn add(
        &self,
        state: &mut State,
        filter: Filter,
        start: Position,
        told: Option<u64>,
    ) -> Subscription {
        let (sender, receiver) = mpsc::unbounded_channel();
        let load = Arc::<Load>::default();
        let name: Arc<str> = named(state.next, None, &filter).into();
        let subscriber = Subscriber {
            name: Arc::clone(&name),
            process: None,
            filter,
            queue: sender,
            load: Arc::clone(&load),
            told,
        };
        let key = state.next;
        state.next += 1;
        state.subscribers.insert(key, subscriber);
        let place = Place {
            state: Arc::downgrade(&self.state),
            key,
            got: start.sequence,
            is_replaying: false,
            owed_to: None,
        };
        Subscription::new(start, receiver, (name, load), place)
    }

    /// Builds the envelope, holds it and queues it, in one order for all.
    fn send(&self, envelope: impl FnOnce(Codec) -> Envelope) {
        let mut state = self.lock();
        let State {
            ring,
            late,
            subscribers,
            cut_off,
            ..
        } = &mut *state;
        let envelope = Arc::new(envelope(self.codec));
        let sequence = ring.push(Arc::clone(&envelope));
        late.note(sequence, &envelope);
        if subscribers.is_empty() {
            return;
        }
        let step = Step {
            position: self.position(sequence),
            envelope: Some(Arc::clone(&envelope)),
        };
        let sent = Sent {
            weight: step.weight(),
            step,
            matched: Matched::new(&envelope, self.codec),
            limits: self.queue,
            stale: ring.stale(),
        };
        subscribers.retain(|_, subscriber| subscriber.offer(&sent, cut_off));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl fmt::Debug for Exchange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Exchange")
            .field("subscribers", &self.lock().subscribers.len())
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
