//! Events to the daemon: in order, none lost while the daemon is away.
//!
//! Invariant: events leave in the order they were queued; one leaves the queue only when the daemon
//! took it or will never take it. The queue is bounded; what is dropped at the bound is counted in the
//! log. An absent or unready daemon costs one attempt every few seconds, and only while something waits.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use protos::any::{Named, pack};
use protos::shim::events::ForwardRequest;
use protos::types::Envelope;
use protos::well_known::Empty;
use protos::wire::Wire as _;
use protos::{Message as _, MessageField};
use tokio::sync::Notify;
use tokio::time::timeout;
use types::{Code, Error, Namespace, Result};

use crate::log;
use crate::wire::{Client, Failed};

/// Where the daemon takes events.
const FORWARD: (&str, &str) = ("containerd.services.events.ttrpc.v1.Events", "Forward");

/// As many as Go's publisher keeps.
const CAPACITY: usize = 2048;
/// What daemons cannot find out in another way, or would clean up after for ever.
const KEPT: [&str; 3] = ["/tasks/exit", "/tasks/oom", "/tasks/delete"];
/// Answers of a daemon that is not ready yet, or not any more: they say nothing about the event.
const NOT_NOW: [Code; 6] = [
    Code::Unavailable,
    Code::NotImplemented,
    Code::Aborted,
    Code::DeadlineExceeded,
    Code::ResourceExhausted,
    Code::Cancelled,
];
/// How often an event is offered that can be missed and that the daemon answers with an error.
const REFUSALS: u32 = 5;
/// And one to keep: for eight minutes. Nothing comes past it meanwhile.
const REFUSALS_OF_KEPT: u32 = 100;
const CALL: Duration = Duration::from_secs(5);
const FIRST_PAUSE: Duration = Duration::from_millis(20);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// An unused connection is closed: it is memory on both sides.
const IDLE: Duration = Duration::from_secs(1);

/// The queue of events and what sends it.
#[derive(Debug)]
pub(crate) struct Publisher {
    namespace: Namespace,
    queue: Mutex<Queue>,
    filled: Notify,
    emptied: Notify,
    /// The daemon is there: ends a pause.
    back: Notify,
}

#[derive(Debug, Default)]
struct Queue {
    events: VecDeque<Event>,
    serial: u64,
    /// Since one was last taken.
    dropped: Dropped,
}

/// An event that waits: encoded, since thousands of them may.
#[derive(Clone, Debug)]
struct Event {
    serial: u64,
    topic: &'static str,
    /// The request that gives it to the daemon.
    request: Arc<[u8]>,
}

impl Event {
    /// Whether one more refusal, the `refusals`th, means that the daemon will never take it.
    fn is_hopeless(&self, error: &Error, refusals: u32) -> bool {
        let patience = if KEPT.contains(&self.topic) {
            REFUSALS_OF_KEPT
        } else {
            REFUSALS
        };
        // It can be sent to or decoded by no daemon, now or later.
        error.is(Code::InvalidArgument) || refusals >= patience
    }
}

impl Queue {
    /// Drops the oldest event that can be missed; an end only when nothing else is there. Returns
    /// its topic when it is the first.
    fn make_room(&mut self) -> Option<&'static str> {
        let missed = |event: &Event| !KEPT.contains(&event.topic);
        let at = self.events.iter().position(missed).unwrap_or(0);
        let Event { topic, .. } = self.events.remove(at)?;
        self.dropped.all += 1;
        self.dropped.kept += u64::from(KEPT.contains(&topic));
        (self.dropped.all == 1).then_some(topic)
    }
}

/// How many events the bound cost, and how many of them were of a kind to keep.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Dropped {
    all: u64,
    kept: u64,
}

impl Dropped {
    /// One line when it is over, not thousands meanwhile: the log is shared with the daemon's.
    fn tell(self) {
        let Self { all, kept } = self;
        if all > 0 {
            let text = "events were dropped at the queue's bound";
            log::error(format_args!(
                "{all} {text}; exits, OOM kills and deletions: {kept}"
            ));
        }
    }
}

impl Publisher {
    pub(crate) fn new(namespace: Namespace) -> Self {
        let queue = Mutex::new(Queue::default());
        Self {
            namespace,
            queue,
            filled: Notify::new(),
            emptied: Notify::new(),
            back: Notify::new(),
        }
    }

    /// Queues an event. Never waits.
    pub(crate) fn publish<M: Named>(&self, topic: &'static str, event: &M) {
        match self.request(topic, event) {
            Ok(request) => self.push(topic, request.into()),
            Err(error) => log::error(format_args!("event {topic} not published: {error}")),
        }
    }

    fn request<M: Named>(&self, topic: &str, event: &M) -> Result<Vec<u8>> {
        let envelope = Envelope {
            timestamp: MessageField::some(SystemTime::now().to_wire()),
            namespace: self.namespace.to_string(),
            topic: topic.to_owned(),
            event: MessageField::some(pack(event)?.to_wire()),
            ..Envelope::default()
        };
        let request = ForwardRequest {
            envelope: MessageField::some(envelope),
            ..ForwardRequest::default()
        };
        request.write_to_bytes().map_err(Error::internal)
    }

    fn push(&self, topic: &'static str, request: Arc<[u8]>) {
        let first_dropped = self.with(|queue| {
            let full = queue.events.len() >= CAPACITY;
            let dropped = full.then(|| queue.make_room()).flatten();
            queue.serial += 1;
            let serial = queue.serial;
            queue.events.push_back(Event {
                serial,
                topic,
                request,
            });
            dropped
        });
        if let Some(topic) = first_dropped {
            let text = "event queue is full: the oldest are dropped, first";
            log::error(format_args!("{text} {topic}"));
        }
        self.filled.notify_one();
    }

    fn with<T>(&self, work: impl FnOnce(&mut Queue) -> T) -> T {
        work(&mut self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What waits.
    #[cfg(test)]
    pub(crate) fn topics(&self) -> Vec<&'static str> {
        self.with(|queue| queue.events.iter().map(|event| event.topic).collect())
    }

    fn first(&self) -> Option<Event> {
        self.with(|queue| queue.events.front().cloned())
    }

    /// Takes the event out unless the bound already did.
    fn done(&self, serial: u64) {
        let (empty, dropped) = self.with(|queue| {
            let front = queue.events.front();
            let mut dropped = Dropped::default();
            if front.is_some_and(|first| first.serial == serial) {
                queue.events.pop_front();
                dropped = std::mem::take(&mut queue.dropped);
            }
            (queue.events.is_empty(), dropped)
        });
        dropped.tell();
        if empty {
            self.emptied.notify_waiters();
        }
    }

    /// A daemon has come: what it missed need not wait for the next attempt.
    pub(crate) fn hurry(&self) {
        // An attempt that is under way may fail yet: then the next one follows at once.
        self.back.notify_one();
    }

    /// Waits until everything was taken, at most `limit`.
    pub(crate) async fn drain(&self, limit: Duration) {
        self.hurry();
        let empty = async {
            loop {
                let emptied = self.emptied.notified();
                if self.with(|queue| queue.events.is_empty()) {
                    return;
                }
                emptied.await;
            }
        };
        if timeout(limit, empty).await.is_err() {
            let (left, dropped) =
                self.with(|queue| (queue.events.len(), std::mem::take(&mut queue.dropped)));
            dropped.tell();
            log::warn(format_args!("{left} events were not taken by the daemon"));
        }
    }

    /// Sends for ever to the socket at `address`.
    pub(crate) async fn run(self: Arc<Self>, address: String) {
        let mut client = None;
        let mut pause = FIRST_PAUSE;
        // Of the event with this number.
        let mut refused = (0, 0);
        loop {
            let Some(event) = self.first() else {
                let filled = self.filled.notified();
                if client.is_none() {
                    filled.await;
                } else if timeout(IDLE, filled).await.is_err() {
                    client = None;
                    // Nothing has happened for a while: the moment to give memory back.
                    self.with(|queue| queue.events.shrink_to_fit());
                    sys::limits::trim_heap_of_thread();
                    sys::limits::trim_stack();
                }
                // The answer of the request that this event comes from goes first: somebody waits.
                tokio::task::yield_now().await;
                continue;
            };
            match self.send(&mut client, &address, &event.request).await {
                Ok(()) => {
                    self.done(event.serial);
                    pause = FIRST_PAUSE;
                    continue;
                }
                Err(Failed::Lost(error)) => {
                    client = None;
                    log::debug(format_args!("daemon is away: {error}"));
                }
                Err(Failed::Refused(error)) if NOT_NOW.contains(&error.code()) => {
                    client = None;
                    log::debug(format_args!("daemon is not ready: {error}"));
                }
                Err(Failed::Refused(error)) => {
                    let before = if refused.0 == event.serial {
                        refused.1
                    } else {
                        0
                    };
                    refused = (event.serial, before + 1);
                    if event.is_hopeless(&error, refused.1) {
                        log::error(format_args!("event {} dropped: {error}", event.topic));
                        self.done(event.serial);
                        pause = FIRST_PAUSE;
                        continue;
                    }
                    log::debug(format_args!("event {} refused: {error}", event.topic));
                }
            }
            pause = self.rest(pause).await;
        }
    }

    /// Waits so long, or until the daemon is back. Returns the pause after this one.
    async fn rest(&self, pause: Duration) -> Duration {
        match timeout(pause, self.back.notified()).await {
            Ok(()) => FIRST_PAUSE,
            Err(_) => (pause * 2).min(LONGEST_PAUSE),
        }
    }

    async fn send(
        &self,
        client: &mut Option<Client>,
        address: &str,
        request: &[u8],
    ) -> Result<(), Failed> {
        let path = Path::new(address.strip_prefix("unix://").unwrap_or(address));
        let connected = match client {
            Some(connected) => connected,
            None => client.insert(Client::connect(path, CALL).await.map_err(Failed::Lost)?),
        };
        let taken = connected.call::<Empty>(FORWARD, request, &self.namespace, CALL);
        taken.await.map(drop)
    }
}

#[cfg(test)]
mod tests;
