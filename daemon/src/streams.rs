//! The streams between clients and this daemon, by namespace and id.
//!
//! Invariant: an entry lives as long as the call that carries it; removing it ends the call. Who takes
//! a stream has it alone. Made by the streaming service, used by transfers, and those under a lease
//! are known to the collector.
//!
//! ```text
//! Stream call -- register --> Carried (frames to and from the wire)
//! transfer    -- take -----> Duplex + Held (removes the entry when dropped)
//! ```

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use client::stream::{Duplex, Far, pair};
use metadata::gc::{LeasedStream, Streams as Collected};
use tokio::sync::{oneshot, watch};
use types::{Error, LeaseId, Namespace, Result, Scope};

/// Most streams at a time: each costs a call and some frames.
const MAX: usize = 4096;
/// Longest id, as clients make them: `<word>-<number>-<letters>`.
const MAX_ID: usize = 1024;

/// All open streams. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Streams(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    entries: BTreeMap<(Namespace, String), Entry>,
    serial: u64,
}

#[derive(Debug)]
struct Entry {
    /// Tells this stream from an earlier one of the same id.
    serial: u64,
    lease: Option<LeaseId>,
    /// Until somebody takes it.
    near: Option<Duplex>,
    /// Dropped with the entry, which ends the call.
    _alive: oneshot::Sender<()>,
    /// Closed when the call has come to its end.
    carried: watch::Receiver<()>,
}

/// What the call of a stream carries.
#[derive(Debug)]
pub(crate) struct Carried {
    /// Frames.
    pub(crate) far: Far,
    /// Completes when the stream is to end.
    pub(crate) ended: oneshot::Receiver<()>,
    /// The entry goes with this.
    pub(crate) held: Held,
    /// Dropped last: who waits for the end of the call sees it.
    pub(crate) carrying: watch::Sender<()>,
}

/// Removes a stream's entry when dropped.
#[derive(Debug)]
pub(crate) struct Held {
    streams: Streams,
    key: (Namespace, String),
    serial: u64,
    carried: watch::Receiver<()>,
}

impl Streams {
    /// Makes the stream `id` known.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for an id that is too long; `ResourceExhausted`.
    pub(crate) fn register(&self, scope: &Scope, id: String) -> Result<Carried> {
        if id.len() > MAX_ID {
            return Err(Error::invalid_argument(format_args!(
                "stream id of {} bytes is longer than {MAX_ID}",
                id.len()
            )));
        }
        let key = (scope.namespace.clone(), id);
        let mut open = self.open();
        if open.entries.contains_key(&key) {
            return Err(Error::already_exists(format_args!("stream {:?}", key.1)));
        }
        if open.entries.len() >= MAX {
            return Err(Error::resource_exhausted(format_args!(
                "more than {MAX} streams at a time"
            )));
        }
        open.serial += 1;
        let serial = open.serial;
        let (near, far) = pair();
        let (alive, ended) = oneshot::channel();
        let (carrying, carried) = watch::channel(());
        let entry = Entry {
            serial,
            lease: scope.lease.clone(),
            near: Some(near),
            _alive: alive,
            carried: carried.clone(),
        };
        open.entries.insert(key.clone(), entry);
        let held = Held {
            streams: self.clone(),
            key,
            serial,
            carried,
        };
        Ok(Carried {
            far,
            ended,
            held,
            carrying,
        })
    }

    /// Takes the near end of the stream `id`, once.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` when somebody has it.
    pub(crate) fn take(&self, namespace: &Namespace, id: &str) -> Result<(Duplex, Held)> {
        let key = (namespace.clone(), id.to_owned());
        let mut open = self.open();
        let missing = || Error::not_found(format_args!("stream {id:?}"));
        let entry = open.entries.get_mut(&key).ok_or_else(missing)?;
        let taken = || Error::failed_precondition(format_args!("stream {id:?} is in use"));
        let near = entry.near.take().ok_or_else(taken)?;
        let held = Held {
            streams: self.clone(),
            key,
            serial: entry.serial,
            carried: entry.carried.clone(),
        };
        Ok((near, held))
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Held {
    /// Ends the stream, and completes when all frames are on their way to the client.
    pub(crate) async fn close(self) {
        let mut carried = self.carried.clone();
        drop(self);
        // An error is what it waits for: the call is gone.
        while carried.changed().await.is_ok() {}
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut open = self.streams.open();
        let mine = |entry: &Entry| entry.serial == self.serial;
        if open.entries.get(&self.key).is_some_and(mine) {
            open.entries.remove(&self.key);
        }
    }
}

impl Collected for Streams {
    fn leased(&self) -> Vec<LeasedStream> {
        let open = self.open();
        let leased = open.entries.iter().filter_map(|((namespace, id), entry)| {
            Some(LeasedStream {
                namespace: namespace.clone(),
                id: id.clone(),
                lease: entry.lease.clone()?,
            })
        });
        leased.collect()
    }

    fn end(&self, namespace: &Namespace, id: &str) {
        let key = (namespace.clone(), id.to_owned());
        let mut open = self.open();
        // A new stream of that name may be nobody's but its connection's.
        if open.entries.get(&key).is_some_and(|e| e.lease.is_some()) {
            open.entries.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use types::Code;

    fn scope(namespace: &str, lease: Option<&str>) -> Scope {
        Scope {
            namespace: namespace.parse().unwrap(),
            lease: lease.map(|lease| lease.parse().unwrap()),
        }
    }

    #[tokio::test]
    async fn a_stream_is_one_namespace_s_and_one_taker_s() {
        let streams = Streams::default();
        let (a, b) = (scope("a", None), scope("b", None));
        let carried = streams.register(&a, "s".into()).unwrap();
        let again = streams.register(&a, "s".into()).unwrap_err();
        assert!(again.is_already_exists(), "{again}");
        drop(streams.register(&b, "s".into()).unwrap());
        let missing = streams.take(&b.namespace, "s").unwrap_err();
        assert!(missing.is_not_found(), "{missing}");
        let (_near, held) = streams.take(&a.namespace, "s").unwrap();
        let taken = streams.take(&a.namespace, "s").unwrap_err();
        assert!(taken.is(Code::FailedPrecondition), "{taken}");
        drop(held);
        carried.ended.await.unwrap_err();
        drop(streams.register(&a, "s".into()).unwrap());
        let long = streams.register(&a, "s".repeat(2000)).unwrap_err();
        assert!(long.is(Code::InvalidArgument), "{long}");
    }

    #[tokio::test]
    async fn an_old_stream_s_end_leaves_a_new_one_of_its_name() {
        let streams = Streams::default();
        let a = scope("a", Some("l"));
        let old = streams.register(&a, "s".into()).unwrap();
        streams.end(&a.namespace, "s");
        let Carried { ended, held, .. } = old;
        ended.await.unwrap_err();
        let _new = streams.register(&a, "s".into()).unwrap();
        drop(held);
        drop(streams.take(&a.namespace, "s").unwrap());
    }

    #[tokio::test]
    async fn only_leased_streams_are_the_collector_s() {
        let streams = Streams::default();
        let free = streams.register(&scope("a", None), "f".into()).unwrap();
        let _leased = streams
            .register(&scope("a", Some("l")), "l".into())
            .unwrap();
        let ids: Vec<_> = streams.leased().into_iter().map(|s| s.id).collect();
        assert_eq!(ids, ["l"]);
        streams.end(&"a".parse().unwrap(), "f");
        drop(streams.take(&"a".parse().unwrap(), "f").unwrap());
        drop(free);
    }

    #[tokio::test]
    async fn there_is_a_limit() {
        let streams = Streams::default();
        let a = scope("a", None);
        let mut all: Vec<_> = (0..MAX)
            .map(|n| streams.register(&a, n.to_string()).unwrap())
            .collect();
        let full = streams.register(&a, "more".into()).unwrap_err();
        assert!(full.is(Code::ResourceExhausted), "{full}");
        drop(all.pop());
        drop(streams.register(&a, "more".into()).unwrap());
    }
}
