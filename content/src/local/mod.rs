//! The local store: blobs and ingests in one directory, in Go containerd's layout.
//!
//! Invariant: a file under `blobs/` is complete, verified, read-only and durable: data is synced, then
//! renamed into place, then the directory is synced. Everything else lives under `ingest/` and may be
//! half-made. Keeps no labels: those belong to a namespace and live in `metadata`.
//!
//! ```text
//! blobs/<algorithm>/<hex>                                    0444
//! ingest/<sha256 hex of ref>/{ref,startedat,updatedat,total,data}   and `hash`, see `kept`
//! ```

mod blob;
mod follow;
mod ingest;
mod kept;
mod layout;
mod writer;

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::Notify;
use types::{
    BlobInfo, Context as _, Digest, Error, Fields, Filter, IngestRef, IngestStatus, Labels, Result,
};

use self::blob::LocalBlob;
use self::ingest::Ticket;
use self::layout::{Layout, is_discarded, ticket_name};
use self::writer::LocalIngest;
use crate::{Blob, ContentStore, Ingest, IngestSpec, Writer};

/// A content store in a directory.
#[derive(Clone)]
pub struct Local(Arc<Store>);

/// Digests that are named side by side.
const NAMING: usize = 16;

/// What the store's handles and writers share.
struct Store {
    layout: Layout,
    /// Live writers by the name of their directory.
    writers: Mutex<Writers>,
    /// Held while a blob gets its name and that is flushed, by the first digit of its digest.
    naming: [Mutex<()>; NAMING],
}

type Writers = HashMap<OsString, Arc<Live>>;

/// A live writer.
#[derive(Default)]
struct Live {
    /// Bytes accepted so far.
    offset: AtomicU64,
    /// Told when it is gone.
    gone: Notify,
}

impl Local {
    /// Opens the store at `root` and makes its directories.
    ///
    /// # Errors
    /// I/O, with the path.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        Ok(Self::of(Layout::open(root.into())?))
    }

    /// The store at `root` as it is: nothing is made or flushed there, and directories that are not
    /// there are empty. For looking and for nothing else.
    pub fn examine(root: impl Into<PathBuf>) -> Self {
        Self::of(Layout::examine(root.into()))
    }

    fn of(layout: Layout) -> Self {
        Self(Arc::new(Store {
            layout,
            writers: Mutex::default(),
            naming: Default::default(),
        }))
    }

    /// Runs file work off the async threads.
    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Layout) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = Arc::clone(&self.0);
        blocking(move || work(&store.layout)).await
    }
}

impl fmt::Debug for Local {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Local").field(&self.0.layout.root).finish()
    }
}

impl Store {
    /// Lets nobody else name that digest.
    fn naming(&self, digest: &Digest) -> MutexGuard<'_, ()> {
        let first = digest.hex().bytes().next().unwrap_or_default();
        let lock = &self.naming[usize::from(first) % NAMING];
        lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writers(&self) -> MutexGuard<'_, Writers> {
        self.writers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The offset of a live writer, which may be ahead of the file.
    fn live(&self, mut status: IngestStatus) -> IngestStatus {
        if let Ok(name) = ticket_name(&status.reference)
            && let Some(live) = self.writers().get(OsStr::new(&name))
        {
            status.offset = status.offset.max(live.offset.load(Ordering::Relaxed));
        }
        status
    }

    /// Removes the directories of ingests that nobody writes and nobody could resume: a crash within
    /// their beginning or their commit has left them.
    fn cleanup(self: &Arc<Self>) -> Result<()> {
        self.dead(|ticket| {
            ticket.remove();
        })
    }

    /// Shows them, while nobody can begin to write them.
    fn dead(self: &Arc<Self>, mut see: impl FnMut(&Ticket)) -> Result<()> {
        for name in self.layout.tickets()? {
            let ticket = Ticket::new(self.layout.ingests().join(&name));
            let is_dead =
                || is_discarded(&name) || ticket.status().is_err_and(|e| e.is_not_found());
            if !is_dead() {
                continue;
            }
            // Looked at once more under the claim: a writer may have come and gone.
            let Some(_claim) = Claim::take(self, name.clone()) else {
                continue;
            };
            if is_dead() {
                see(&ticket);
            }
        }
        Ok(())
    }

    fn strangers(self: &Arc<Self>) -> Result<Vec<(PathBuf, bool)>> {
        let foreign = self.layout.foreign()?.into_iter();
        let mut found: Vec<_> = foreign.map(|path| (path, false)).collect();
        self.dead(|ticket| {
            // Nothing is there of one that was removed in between.
            if ticket.path().symlink_metadata().is_ok() {
                found.push((ticket.path().to_owned(), true));
            }
        })?;
        Ok(found)
    }
}

/// The right to the directory of one ingest; one holder at a time.
pub(crate) struct Claim {
    store: Arc<Store>,
    /// Name of the directory.
    name: OsString,
    live: Arc<Live>,
}

impl Claim {
    fn take(store: &Arc<Store>, name: OsString) -> Option<Self> {
        let live = Arc::<Live>::default();
        let mut writers = store.writers();
        if writers.contains_key(&name) {
            return None;
        }
        writers.insert(name.clone(), Arc::clone(&live));
        drop(writers);
        Some(Self {
            store: Arc::clone(store),
            name,
            live,
        })
    }
}

impl Claim {
    /// Notes how much was accepted.
    fn reached(&self, offset: u64) {
        self.live.offset.store(offset, Ordering::Relaxed);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.store.writers().remove(&self.name);
        self.live.gone.notify_waiters();
    }
}

#[async_trait]
impl ContentStore for Local {
    async fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        let digest = digest.clone();
        self.run(move |layout| layout.info(&digest)).await
    }

    async fn update(&self, _: &Digest, _: Labels, _: &Fields) -> Result<BlobInfo> {
        Err(Error::not_implemented(
            "update not supported on immutable content store",
        ))
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<BlobInfo>> {
        let filter = filter.clone();
        self.run(move |layout| layout.list(&filter)).await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let digest = digest.clone();
        self.run(move |layout| layout.delete(&digest)).await
    }

    async fn open(&self, digest: &Digest) -> Result<Arc<dyn Blob>> {
        let digest = digest.clone();
        let blob = self
            .run(move |layout| LocalBlob::open(layout, &digest))
            .await?;
        Ok(Arc::new(blob))
    }

    async fn ingest(&self, spec: IngestSpec) -> Result<Box<dyn Ingest>> {
        let store = Arc::clone(&self.0);
        let ingest = blocking(move || {
            if let Some(expected) = &spec.expected
                && store.layout.info(expected).absent_ok()?.is_some()
            {
                return Err(Error::already_exists(format_args!("content {expected}")));
            }
            let name = ticket_name(&spec.reference)?;
            let claim = Claim::take(&store, name.into()).ok_or_else(|| {
                let reference = &spec.reference;
                Error::unavailable(format_args!("ref {reference} locked by another writer"))
            })?;
            LocalIngest::open(claim, &spec)
        })
        .await?;
        Ok(Box::new(ingest))
    }

    async fn released(&self, reference: &IngestRef, limit: Duration) -> Writer {
        let Ok(name) = ticket_name(reference) else {
            return Writer::Gone;
        };
        let live = self.0.writers().get(OsStr::new(&name)).map(Arc::clone);
        let Some(live) = live else {
            return Writer::Gone;
        };
        let gone = live.gone.notified();
        tokio::pin!(gone);
        // Registered before the second look: an end in between is not missed.
        gone.as_mut().enable();
        if !self.0.writers().contains_key(OsStr::new(&name)) {
            return Writer::Gone;
        }
        match tokio::time::timeout(limit, gone).await {
            Ok(()) => Writer::Gone,
            Err(_) => Writer::There,
        }
    }

    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let reference = reference.clone();
        let status = self.run(move |layout| layout.status(&reference)).await?;
        Ok(self.0.live(status))
    }

    async fn statuses(&self, filter: &Filter) -> Result<Vec<IngestStatus>> {
        let filter = filter.clone();
        let all = self.run(move |layout| layout.statuses(&filter)).await?;
        Ok(all.into_iter().map(|s| self.0.live(s)).collect())
    }

    async fn abort(&self, reference: &IngestRef) -> Result<()> {
        let reference = reference.clone();
        self.run(move |layout| layout.abort(&reference)).await
    }

    async fn strangers(&self) -> Result<Vec<(PathBuf, bool)>> {
        let store = Arc::clone(&self.0);
        blocking(move || store.strangers()).await
    }

    async fn cleanup(&self) -> Result<()> {
        let store = Arc::clone(&self.0);
        blocking(move || store.cleanup()).await
    }
}

/// Runs `work` on a thread that may block. A call that was given up still ends there.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::internal("content store task failed").with_source(error)),
    }
}

#[cfg(test)]
mod tests;
