//! The collector: removes what nobody names, first from the records, then from the backends.
//!
//! Invariant: only what is unreachable from a root is removed, and it is unreachable for good: what was
//! marked beside running requests is compared with what they have touched since, in each transaction of
//! the sweep. Backends are cleaned by comparing them with the records, so a run that was cut off
//! anywhere is finished by the next one.
//!
//! ```text
//! Marked::new(snapshot) --spare(touched)--> sweep(tx) --> Swept --commits--> collect()
//! beside all requests     `-- small transactions, --'     blobs, ingests, snapshots, cleanup:
//!                             others in between           outside, under gates of single objects
//! ```

#![deny(clippy::wildcard_enum_match_arm)]

mod collect;
mod condition;
mod holders;
mod link;
mod mark;
mod scheduler;
mod spare;
mod sweep;

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use types::{Error, Held, LeaseId, Namespace, Result};

pub(crate) use self::link::Node;
pub(crate) use self::mark::{condition_due, due, expiry};
pub use self::scheduler::{Scheduler, SchedulerOpts};
pub(crate) use self::spare::names_any;

use self::mark::Marked;
use self::sweep::{STEP, Swept};
use crate::Metadata;
use crate::db::{Marks, Outlet, WriteTx};

/// The streams between clients and this daemon. They are nowhere but in its memory.
pub trait Streams: Send + Sync + fmt::Debug {
    /// Those under a lease; all others live as long as their connections.
    fn leased(&self) -> Vec<LeasedStream>;

    /// Ends a stream under a lease, if it is still there.
    fn end(&self, namespace: &Namespace, id: &str);
}

/// A stream that a lease keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeasedStream {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its id there.
    pub id: String,
    /// The lease.
    pub lease: LeaseId,
}

/// What the daemon has made for its clients, of one kind: activations of mounts, or networks. They have no
/// record here.
#[async_trait]
pub trait Unrecorded: Send + Sync + fmt::Debug {
    /// All that may be ended.
    fn held(&self) -> Vec<Held>;

    /// Ends one, if it still is the same. What cannot be ended now is among the held ones again.
    async fn end(&self, held: &Held);
}

/// What lives beside the records, as it was before the marking.
#[derive(Debug, Default)]
pub(crate) struct Beside {
    pub(crate) streams: Vec<LeasedStream>,
    pub(crate) mounts: Vec<Held>,
    pub(crate) networks: Vec<Held>,
}

/// What one run did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// How long writers were held up, all steps of the sweep of the records together.
    pub pause: Duration,
    /// The longest of these steps, which is what one writer may have waited for.
    pub longest: Duration,
    /// How long it took in all.
    pub elapsed: Duration,
    /// Records removed.
    pub records: Removed,
    /// Blobs removed from the backend.
    pub blobs: u64,
    /// Ingests removed from the backend.
    pub ingests: u64,
    /// Snapshots removed from the backends.
    pub snapshots: u64,
}

/// Records that a sweep removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Removed {
    /// Blobs of namespaces.
    pub content: u64,
    /// Ingests of namespaces.
    pub ingests: u64,
    /// Snapshots of namespaces.
    pub snapshots: u64,
    /// Images that had expired.
    pub images: u64,
    /// Leases that had expired.
    pub leases: u64,
}

/// Upper ends of the classes that runs are counted in, in microseconds: those of Go's client library.
pub const TOOK: [u64; 11] = [
    5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];

/// What all runs since the start have done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Runs that went well.
    pub runs: u64,
    /// Runs that failed.
    pub failed: u64,
    /// How long those took that went well.
    pub elapsed: Duration,
    /// How many of them took how long: one count for each of [`TOOK`] and one for what took longer.
    pub took: [u64; TOOK.len() + 1],
    /// How long writers were held up.
    pub pause: Duration,
    /// What they removed from the backends.
    pub blobs: u64,
    /// Snapshots likewise.
    pub snapshots: u64,
}

impl Totals {
    fn add(&mut self, done: &Result<Stats>) {
        match done {
            Ok(stats) => {
                self.runs += 1;
                self.elapsed += stats.elapsed;
                let micros = u64::try_from(stats.elapsed.as_micros()).unwrap_or(u64::MAX);
                let class = TOOK.partition_point(|end| *end < micros);
                if let Some(count) = self.took.get_mut(class) {
                    *count += 1;
                }
                self.pause += stats.pause;
                self.blobs += stats.blobs;
                self.snapshots += stats.snapshots;
            }
            Err(_) => self.failed += 1,
        }
    }
}

/// Lets one run at a time go, and callers that meet share it.
#[derive(Debug, Default)]
pub(crate) struct Collector {
    totals: Mutex<Totals>,
    started: AtomicU64,
    /// The last run, when it went well.
    last: tokio::sync::Mutex<Option<Stats>>,
    /// Collected beside the records.
    pub(crate) streams: OnceLock<Arc<dyn Streams>>,
    /// As well.
    pub(crate) mounts: OnceLock<Arc<dyn Unrecorded>>,
    /// As well.
    pub(crate) networks: OnceLock<Arc<dyn Unrecorded>>,
}

impl Collector {
    /// What all runs have done.
    pub(crate) fn totals(&self) -> Totals {
        *self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, done: &Result<Stats>) {
        let mut totals = self.totals.lock().unwrap_or_else(PoisonError::into_inner);
        totals.add(done);
    }

    fn beside(&self) -> Beside {
        Beside {
            streams: self.streams.get().map(|s| s.leased()).unwrap_or_default(),
            mounts: self.mounts.get().map(|m| m.held()).unwrap_or_default(),
            networks: self.networks.get().map(|n| n.held()).unwrap_or_default(),
        }
    }

    /// Ends what was swept of it.
    async fn end(&self, swept: &Swept, beside: &Beside) {
        if let Some(streams) = self.streams.get() {
            for (namespace, id) in &swept.streams {
                tracing::debug!(%namespace, id, "stream that nobody keeps is ended");
                streams.end(namespace, id);
            }
        }
        let mounts = (beside.mounts.as_slice(), swept.mounts.as_slice());
        end_held("mount", self.mounts.get(), mounts).await;
        let networks = (beside.networks.as_slice(), swept.networks.as_slice());
        end_held("network", self.networks.get(), networks).await;
    }
}

/// Ends those of a kind that were swept.
async fn end_held(
    kind: &str,
    holder: Option<&Arc<dyn Unrecorded>>,
    (all, swept): (&[Held], &[(Namespace, String)]),
) {
    let Some(holder) = holder else {
        return;
    };
    let is_swept = |held: &&Held| {
        let key = (&held.namespace, &held.name);
        swept
            .iter()
            .any(|(namespace, name)| (namespace, name) == key)
    };
    for held in all.iter().filter(is_swept) {
        tracing::debug!(namespace = %held.namespace, name = held.name, "{kind} that nobody keeps goes");
        holder.end(held).await;
    }
}

/// Collects once.
pub(crate) async fn run(metadata: &Metadata) -> Result<Stats> {
    let collector = &metadata.0.collector;
    let seen = collector.started.load(Ordering::SeqCst);
    let waiting = recorder::stage("another garbage collection", recorder::On::default);
    let mut last = collector.last.lock().await;
    drop(waiting);
    if let Some(stats) = &*last
        && collector.started.load(Ordering::SeqCst) > seen
    {
        // It began after this call did, so it saw all that this caller wants gone.
        return Ok(stats.clone());
    }
    collector.started.fetch_add(1, Ordering::SeqCst);
    *last = None;
    let waiting = recorder::stage("garbage collection", recorder::On::default);
    let done = run_at(metadata, SystemTime::now()).await;
    drop(waiting);
    collector.count(&done);
    let stats = done?;
    *last = Some(stats.clone());
    Ok(stats)
}

/// Collects what is garbage at `now`.
pub(crate) async fn run_at(metadata: &Metadata, now: SystemTime) -> Result<Stats> {
    let begin = Instant::now();
    let mut work = Work::take(&metadata.0.db.outlet);
    let mut stats = Stats::default();
    // Listed first: the lease of one of these is older than it is, so the snapshot has the lease.
    let beside = Arc::new(metadata.0.collector.beside());
    let swept = sweep(metadata, now, &beside, &mut work.marks, &mut stats).await?;
    work.is_swept = true;
    metadata.0.collector.end(&swept, &beside).await;
    swept.collect(metadata, &mut work.marks, &mut stats).await;
    stats.elapsed = begin.elapsed();
    tracing::debug!(?stats, "garbage collected");
    Ok(stats)
}

/// Marks beside running requests, then sweeps what they have not taken up since: what holds up writers
/// is only the second part, and that for a step at a time. Of what was swept before a failure the
/// backends are marked, too.
async fn sweep(
    metadata: &Metadata,
    now: SystemTime,
    beside: &Arc<Beside>,
    marks: &mut Marks,
    stats: &mut Stats,
) -> Result<Swept> {
    let watch = metadata.0.db.kv.watch().await?;
    let snapshot = metadata.0.db.kv.read()?;
    let listed = Arc::clone(beside);
    let mark = move || Marked::new(&snapshot, now, &listed);
    let marked = tokio::task::spawn_blocking(mark).await;
    let mut marked = marked.map_err(|e| Error::internal("mark garbage").with_source(e))??;
    let watch = Arc::new(watch);
    let mut swept = Swept::default();
    while !marked.is_clean() {
        let (watch, beside) = (Arc::clone(&watch), Arc::clone(beside));
        let step = move |tx: &mut WriteTx<'_, '_>| {
            let begin = Instant::now();
            tx.collecting();
            match watch.take() {
                Some(touched) if marked.spare(&**tx, &touched)? => tx.mark(),
                Some(_) => {}
                // Too much has happened to look at it all: mark again.
                None => marked = Marked::new(&**tx, now, &beside)?,
            }
            let swept = marked.sweep(tx, STEP)?;
            Ok((marked, swept, begin.elapsed()))
        };
        let (left, removed, pause) = metadata.0.db.write_long(step).await?;
        marked = left;
        marks.content |= removed.content;
        marks
            .snapshotters
            .extend(removed.snapshotters.iter().cloned());
        swept.add(removed);
        stats.pause += pause;
        stats.longest = stats.longest.max(pause);
    }
    stats.records = swept.removed;
    // What was over is done; what is not, and what was made meanwhile, has told of itself.
    marks.expires = marked.expires();
    Ok(swept)
}

/// The marks that a run works off; what it leaves goes back for the next one.
struct Work {
    outlet: Arc<Outlet>,
    marks: Marks,
    /// The records are done; only backends may be left.
    is_swept: bool,
}

impl Work {
    fn take(outlet: &Arc<Outlet>) -> Self {
        let marks = outlet.take();
        Self {
            outlet: Arc::clone(outlet),
            marks,
            is_swept: false,
        }
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let mut left = std::mem::take(&mut self.marks);
        if self.is_swept {
            // Not counted again: what cannot be removed now must not make the scheduler spin.
            (left.mutations, left.deletions) = (0, 0);
        }
        if left != Marks::default() {
            self.outlet.add(left);
        }
    }
}

#[cfg(test)]
mod tests;
