//! Transactions on records: what a change does, tells and makes dirty, in one piece.
//!
//! Invariant: events and dirty marks are released by the commit and by nothing else. No event escapes
//! a change that failed; no removal is forgotten by the collector.

use std::collections::BTreeSet;
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use events::Exchange;
use tokio::sync::Notify;
use tokio::time::timeout;
use types::{Event, Labels, Namespace, Result};

use crate::codec::damaged;
use crate::key::{Bucket, key};
use crate::kv::{Kv, Read as _, Records, Tx};
use crate::record::put_labels;

/// Backend numbers that are reserved with one durable write.
const SEQUENCE_BLOCK: u64 = 1024;

/// What was removed since the last collection.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Marks {
    /// Changes of any kind, but the collector's own.
    pub(crate) mutations: u64,
    /// Changes that removed a reference.
    pub(crate) deletions: u64,
    /// The content backend may hold something that nobody names.
    pub(crate) content: bool,
    /// So may these snapshotters.
    pub(crate) snapshotters: BTreeSet<String>,
    /// When the first of what is kept until a time is over, as far as that is known.
    pub(crate) expires: Option<SystemTime>,
}

impl Marks {
    fn add(&mut self, other: Self) {
        self.mutations += other.mutations;
        self.deletions += other.deletions;
        self.content |= other.content;
        self.snapshotters.extend(other.snapshotters);
        self.expires = earliest(self.expires, other.expires);
    }
}

/// The earlier of two times, where there are two.
pub(crate) fn earliest(one: Option<SystemTime>, other: Option<SystemTime>) -> Option<SystemTime> {
    one.into_iter().chain(other).min()
}

/// From the moment at which something is over to its collection: gathers what ends closely behind it.
const GATHER: Duration = Duration::from_secs(1);

/// The clock is looked at again after so long, whatever it has told: somebody may set it.
pub(crate) const LOOK: Duration = Duration::from_secs(60 * 60);

/// How long to wait for what is over at a time; nothing when it is.
fn until(at: SystemTime, now: SystemTime) -> Duration {
    let due = at.checked_add(GATHER).unwrap_or(at);
    due.duration_since(now).unwrap_or_default().min(LOOK)
}

/// How many marks somebody waits for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Threshold {
    /// Changes that removed a reference.
    pub(crate) deletions: u64,
    /// Changes of any kind.
    pub(crate) mutations: u64,
}

impl Threshold {
    /// True when one of them is reached.
    pub(crate) fn is_met(self, marks: &Marks) -> bool {
        marks.deletions >= self.deletions || marks.mutations >= self.mutations
    }
}

/// Where commits release their events and marks.
#[derive(Debug)]
pub(crate) struct Outlet {
    events: Arc<Exchange>,
    marked: Mutex<Marked>,
    due: Notify,
}

#[derive(Debug, Default)]
struct Marked {
    marks: Marks,
    /// What the waiting one waits for. A commit below it wakes nobody: that would cost every change
    /// a way to another thread.
    wanted: Option<Threshold>,
}

impl Outlet {
    pub(crate) fn new(events: Arc<Exchange>, marks: Marks) -> Self {
        Self {
            events,
            marked: Mutex::new(Marked {
                marks,
                wanted: None,
            }),
            due: Notify::new(),
        }
    }

    fn marked(&self) -> MutexGuard<'_, Marked> {
        self.marked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn release(&self, events: &[(Namespace, Event)], marks: Marks) {
        for (namespace, event) in events {
            self.events.publish(namespace, event);
        }
        self.add(marks);
    }

    /// Adds marks, for work that must be tried again.
    pub(crate) fn add(&self, marks: Marks) {
        let mut marked = self.marked();
        let before = marked.marks.expires;
        marked.marks.add(marks);
        // It may sleep until a later time.
        if marked.wanted.is_some() && marked.marks.expires != before {
            self.due.notify_one();
        }
        if marked.wanted.is_some_and(|t| t.is_met(&marked.marks)) {
            marked.wanted = None;
            self.due.notify_one();
        }
    }

    /// Takes the marks: their work begins.
    pub(crate) fn take(&self) -> Marks {
        std::mem::take(&mut self.marked().marks)
    }

    /// Waits until there are so many marks. For one waiter.
    pub(crate) async fn wait(&self, threshold: Threshold) {
        while self.wants(threshold).is_some() {
            // A notice from before the look is kept: then this is one look more.
            self.due.notified().await;
        }
    }

    /// The same, or until the time of something is over.
    pub(crate) async fn wait_or_expire(&self, threshold: Threshold) {
        while let Some(expires) = self.wants(threshold) {
            match expires.map(|at| until(at, SystemTime::now())) {
                None => self.due.notified().await,
                Some(Duration::ZERO) => return,
                Some(pause) => drop(timeout(pause, self.due.notified()).await),
            }
        }
    }

    /// Notes what is waited for, and tells when something expires; `None` when there is no need to wait.
    fn wants(&self, threshold: Threshold) -> Option<Option<SystemTime>> {
        let mut marked = self.marked();
        if threshold.is_met(&marked.marks) {
            return None;
        }
        marked.wanted = Some(threshold);
        Some(marked.marks.expires)
    }
}

/// A change of records.
pub(crate) struct WriteTx<'a, 'b> {
    tx: &'a mut Tx<'b>,
    events: Vec<(Namespace, Event)>,
    marks: Marks,
    is_collecting: bool,
}

impl WriteTx<'_, '_> {
    /// Publishes an event if and when this change is durable.
    pub(crate) fn event(&mut self, namespace: &Namespace, event: Event) {
        self.events.push((namespace.clone(), event));
    }

    /// This change is the collector's own: it does not count as one that makes a collection due.
    pub(crate) fn collecting(&mut self) {
        self.is_collecting = true;
    }

    /// A reference went away.
    pub(crate) fn mark(&mut self) {
        self.marks.deletions += 1;
    }

    /// Something is kept until a time, if one is given: a collection is due then.
    pub(crate) fn expires(&mut self, at: Option<SystemTime>) {
        self.marks.expires = earliest(self.marks.expires, at);
    }

    /// A blob or ingest lost a name.
    pub(crate) fn mark_content(&mut self) {
        self.mark();
        self.marks.content = true;
    }

    /// A snapshot lost its name.
    pub(crate) fn mark_snapshotter(&mut self, name: &str) {
        self.mark();
        self.marks.snapshotters.insert(name.to_owned());
    }

    /// Makes the namespace unless it is there: any first write does.
    pub(crate) fn touch(&mut self, namespace: &Namespace) -> Result<()> {
        let key = key(Bucket::Namespace, &[namespace.as_str()]);
        if !self.has(&key)? {
            self.put(key, put_labels(&Labels::new()));
        }
        Ok(())
    }
}

impl<'b> Deref for WriteTx<'_, 'b> {
    type Target = Tx<'b>;
    fn deref(&self) -> &Tx<'b> {
        self.tx
    }
}

impl<'b> DerefMut for WriteTx<'_, 'b> {
    fn deref_mut(&mut self) -> &mut Tx<'b> {
        self.tx
    }
}

/// The record store with its outlet.
#[derive(Clone)]
pub(crate) struct Db {
    pub(crate) kv: Kv,
    pub(crate) outlet: Arc<Outlet>,
    sequence: Arc<Sequence>,
    /// Backend numbers up to this one may be in use, though the records do not say so.
    pub(crate) used: u64,
}

impl Db {
    /// No backend number up to `used` will be given.
    pub(crate) fn new(kv: Kv, outlet: Outlet, used: u64) -> Self {
        Self {
            kv,
            outlet: Arc::new(outlet),
            sequence: Arc::default(),
            used,
        }
    }

    /// Runs one change; its events and marks are released when it is durable.
    pub(crate) async fn write<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let _flush = recorder::stage("records to disk", recorder::On::default);
        self.kv.write(self.released(change)).await
    }

    /// The same of a change that may look at all there is.
    pub(crate) async fn write_long<T: Send + 'static>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.kv.write_long(self.released(change)).await
    }

    /// A change with its outlet.
    fn released<T>(
        &self,
        change: impl FnOnce(&mut WriteTx<'_, '_>) -> Result<T> + Send + 'static,
    ) -> impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static {
        let outlet = Arc::clone(&self.outlet);
        move |tx| {
            let mut write = WriteTx {
                tx,
                events: Vec::new(),
                marks: Marks::default(),
                is_collecting: false,
            };
            let value = change(&mut write)?;
            let WriteTx {
                events,
                mut marks,
                is_collecting,
                ..
            } = write;
            marks.mutations = (tx.is_changed() && !is_collecting).into();
            tx.on_commit(move || outlet.release(&events, marks));
            Ok(value)
        }
    }

    /// A number that no backend key ever had, also not before a crash.
    pub(crate) async fn next(&self) -> Result<u64> {
        let sequence = Arc::clone(&self.sequence);
        let seen = self.used;
        loop {
            if let Some(number) = sequence.take() {
                return Ok(number);
            }
            let filled = Arc::clone(&sequence);
            self.kv
                .write(move |tx| {
                    // Two callers may find it empty; blocks only ever grow, so that is a waste at most.
                    let at = key(Bucket::Store, &["sequence"]);
                    let used = tx.get(&at)?.as_deref().map_or(Ok(0), number)?.max(seen);
                    let limit = used + SEQUENCE_BLOCK;
                    tx.put(at, limit.to_le_bytes().into());
                    tx.on_commit(move || filled.fill(used + 1, limit));
                    Ok(())
                })
                .await?;
        }
    }
}

/// What makes a store give no number up to `used` again.
pub(crate) fn sequence_after(used: u64) -> Records {
    [(key(Bucket::Store, &["sequence"]), used.to_le_bytes().into())].into()
}

/// Reserved backend numbers: the next one and the last one.
#[derive(Debug, Default)]
struct Sequence {
    block: Mutex<(u64, u64)>,
}

impl Sequence {
    fn take(&self) -> Option<u64> {
        let mut block = self.block.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, last) = *block;
        if next == 0 || next > last {
            return None;
        }
        block.0 += 1;
        Some(next)
    }

    fn fill(&self, next: u64, last: u64) {
        *self.block.lock().unwrap_or_else(PoisonError::into_inner) = (next, last);
    }
}

/// A number that is a record.
pub(crate) fn number(value: &[u8]) -> Result<u64> {
    value
        .try_into()
        .map(u64::from_le_bytes)
        .map_err(|_| damaged())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_may_be_set_is_looked_at_each_hour() {
        let now = SystemTime::UNIX_EPOCH + LOOK * 1000;
        for (at, pause) in [
            (now + LOOK * 24, LOOK),
            (now + LOOK, LOOK),
            (now + GATHER, GATHER * 2),
            (now, GATHER),
            (now - GATHER, Duration::ZERO),
            (SystemTime::UNIX_EPOCH, Duration::ZERO),
        ] {
            assert_eq!(until(at, now), pause, "{at:?}");
        }
    }
}
