//! The writer of an ingest.
//!
//! Invariant: data is hashed and written in the order in which it was accepted, on one blocking thread
//! at a time, while the caller already fetches the next piece. Small pieces are gathered, so that a
//! hop to that thread pays for itself; at most two gatherings are in memory, and less than one when
//! nothing more is written: the thread ends when there is nothing left. How it becomes a blob is in
//! `publish`.

mod publish;

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;
use types::{Algorithm, Code, Digest, Error, IngestStatus, Labels, Result};

use super::follow::Following;
use super::ingest::{Ticket, hash_on};
use super::kept;
use super::layout::{discard, os};
use super::{Claim, blocking};
use crate::{Blob, Hasher, Ingest, IngestSpec};

/// Gathered bytes that are worth a hop to a blocking thread (some 20 µs).
const GATHER: usize = 256 * 1024;
/// What is hashed and written where it is asked for: no longer than a hop takes, or two.
const INLINE: usize = 64 * 1024;

/// A writer on one ingest of the local store.
pub(super) struct LocalIngest {
    shared: Arc<Shared>,
    claim: Claim,
    ticket: Ticket,
    status: IngestStatus,
    running: Option<JoinHandle<()>>,
    committed: bool,
}

/// What the writer and its blocking thread share. Lock order: sink before queue.
struct Shared {
    sink: Mutex<Sink>,
    queue: Mutex<Queue>,
    /// Told when what was queued has been taken.
    taken: Notify,
    /// Bytes in the file, for who reads along.
    written: Mutex<watch::Sender<u64>>,
}

/// What is accepted and not yet being written.
#[derive(Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    bytes: usize,
    /// The blocking thread will look here again before it ends.
    is_watched: bool,
    /// What was taken could not be written.
    has_failed: bool,
}

impl Queue {
    /// All that is queued.
    fn take(&mut self) -> VecDeque<Bytes> {
        self.bytes = 0;
        std::mem::take(&mut self.pieces)
    }
}

struct Sink {
    file: File,
    hasher: Hasher,
    ticket: Ticket,
    /// Length of the file.
    written: u64,
    /// Of these the hash is noted beside the data.
    noted: u64,
    failed: Option<(Code, String)>,
    /// The disk has failed, or the hash is of something else: what is on it is to be read again.
    is_doubtful: bool,
}

impl Sink {
    /// Notes a failure after which nobody knows what of the file the disk has.
    fn doubt<T, E>(&mut self, done: std::result::Result<T, E>) -> std::result::Result<T, E> {
        if done.is_err() {
            self.is_doubtful = true;
            if let Err(error) = self.ticket.forget() {
                tracing::warn!(%error, "hash of an ingest stays");
            }
        }
        done
    }
}

impl Shared {
    fn sink(&self) -> MutexGuard<'_, Sink> {
        self.sink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Accepts a piece; true when a blocking thread is to be sent for it.
    fn push(&self, data: Bytes) -> bool {
        let mut queue = self.queue();
        queue.bytes += data.len();
        queue.pieces.push_back(data);
        let is_due = queue.bytes >= GATHER && !queue.is_watched;
        queue.is_watched |= is_due;
        is_due
    }

    /// What the blocking thread does: to write until nothing is left.
    fn watch(&self) {
        loop {
            drop(self.drain());
            let mut queue = self.queue();
            // Under the lock under which pieces come in: none comes in unseen.
            if queue.pieces.is_empty() {
                queue.is_watched = false;
                return;
            }
        }
    }

    /// Writes all that is queued; a failure is kept and stops everything after it.
    fn drain(&self) -> MutexGuard<'_, Sink> {
        let mut sink = self.sink();
        let queued = self.queue().take();
        self.taken.notify_one();
        if queued.is_empty() {
            return sink;
        }
        for data in queued {
            sink.write(&data);
        }
        self.queue().has_failed = sink.failed.is_some();
        if sink.written - sink.noted >= kept::INTERVAL {
            sink.note();
        }
        self.written().send_replace(sink.written);
        sink
    }

    fn written(&self) -> MutexGuard<'_, watch::Sender<u64>> {
        self.written.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Sink {
    fn write(&mut self, data: &[u8]) {
        if self.failed.is_some() {
            return;
        }
        match self.file.write_all(data) {
            Ok(()) => {
                self.hasher.update(data);
                self.written += data.len() as u64;
            }
            Err(e) => {
                let error = os("write", "ingest data".as_ref(), e);
                self.failed = Some((error.code(), error.to_string()));
            }
        }
    }

    /// Notes the hash of what is in the file. Where that fails, what was noted before holds.
    fn note(&mut self) {
        if self.written < kept::WORTH || self.is_doubtful {
            return;
        }
        let noted = kept::note(&self.ticket, &self.file, self.written, &self.hasher);
        if let Err(error) = noted {
            tracing::debug!(%error, "hash of an ingest not noted");
        }
        self.noted = self.written;
    }

    fn check(&self) -> Result<()> {
        match &self.failed {
            Some((code, text)) => Err(Error::from_wire(*code, text)),
            None => Ok(()),
        }
    }
}

impl LocalIngest {
    pub(super) fn open(claim: Claim, spec: &IngestSpec) -> Result<Self> {
        let algorithm = spec
            .expected
            .as_ref()
            .map_or(Algorithm::Sha256, Digest::algorithm);
        let mut hasher = Hasher::new(algorithm);
        let ticket = Ticket::new(claim.store.layout.ingest(&spec.reference)?);
        let (file, status) = ticket.open(spec, &mut hasher)?;
        claim.reached(status.offset);
        let sink = Sink {
            file,
            hasher,
            ticket: ticket.clone(),
            written: status.offset,
            noted: status.offset,
            failed: None,
            is_doubtful: false,
        };
        Ok(Self {
            shared: Arc::new(Shared {
                sink: Mutex::new(sink),
                queue: Mutex::default(),
                taken: Notify::new(),
                written: Mutex::new(watch::Sender::new(status.offset)),
            }),
            claim,
            ticket,
            status,
            running: None,
            committed: false,
        })
    }

    /// Waits for the blocking thread and reports what went wrong there.
    async fn settle(&mut self) -> Result<()> {
        if let Some(running) = &mut self.running {
            let ended = running.await;
            self.running = None;
            ended.map_err(|e| Error::internal("content writer failed").with_source(e))?;
            self.shared.sink().check()?;
        }
        Ok(())
    }

    /// Waits until one more piece may be queued.
    async fn room(&mut self) -> Result<()> {
        loop {
            let (is_full, has_failed) = {
                let queue = self.shared.queue();
                (queue.bytes >= GATHER, queue.has_failed)
            };
            if has_failed {
                self.settle().await?;
                return self.shared.sink().check();
            }
            if !is_full {
                return Ok(());
            }
            let Some(running) = &mut self.running else {
                return Err(Error::internal("nobody writes what is queued"));
            };
            tokio::select! {
                () = self.shared.taken.notified() => continue,
                ended = running => {
                    self.running = None;
                    ended.map_err(|e| Error::internal("content writer failed").with_source(e))?;
                }
            }
        }
    }

    fn set_offset(&mut self, offset: u64) {
        self.status.offset = offset;
        self.status.updated_at = SystemTime::now();
        self.claim.reached(offset);
    }
}

#[async_trait]
impl Ingest for LocalIngest {
    fn status(&self) -> IngestStatus {
        self.status.clone()
    }

    async fn digest(&mut self) -> Result<Digest> {
        // Who writes already goes on until nothing is left: no second hop.
        self.settle().await?;
        if self.shared.queue().bytes > INLINE {
            let shared = Arc::clone(&self.shared);
            blocking(move || {
                drop(shared.drain());
                Ok(())
            })
            .await?;
        }
        let sink = self.shared.drain();
        sink.check()?;
        sink.hasher.current()
    }

    async fn write(&mut self, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        // Room first: a call that is given up while it waits has accepted nothing.
        self.room().await?;
        self.set_offset(self.status.offset + data.len() as u64);
        if self.shared.push(data) {
            let shared = Arc::clone(&self.shared);
            let running = tokio::task::spawn_blocking(move || shared.watch());
            self.running = Some(running);
        }
        Ok(())
    }

    fn follow(&self, total: u64) -> Result<Option<Arc<dyn Blob>>> {
        let path = self.ticket.data();
        let file = File::open(&path).map_err(|e| os("open", &path, e))?;
        let written = self.shared.written().subscribe();
        Ok(Some(Arc::new(Following::new(file, total, written))))
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        self.settle().await?;
        let offset = self.status.offset;
        if size > offset {
            return Err(Error::out_of_range(format_args!(
                "truncate to {size} beyond offset {offset}"
            )));
        }
        let shared = Arc::clone(&self.shared);
        blocking(move || {
            let mut sink = shared.drain();
            sink.check()?;
            sink.cut(size)?;
            // Who read along has bytes that are none any more.
            *shared.written() = watch::Sender::new(size);
            Ok(())
        })
        .await?;
        self.set_offset(size);
        Ok(())
    }

    async fn commit(
        mut self: Box<Self>,
        size: Option<u64>,
        expected: Option<Digest>,
        _labels: Labels,
    ) -> Result<Digest> {
        self.settle().await?;
        blocking(move || self.finish(size, expected.as_ref())).await
    }

    async fn abandon(mut self: Box<Self>) -> Result<()> {
        // What a failed write was about does not matter any more.
        let _settled = self.settle().await;
        blocking(move || {
            self.committed = true;
            discard(self.ticket.path()).or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })
        })
        .await
    }
}

impl Sink {
    fn cut(&mut self, size: u64) -> Result<()> {
        if size == self.written {
            return Ok(());
        }
        self.ticket.forget()?;
        self.cut_file(size)
            .map_err(|e| os("truncate", &self.ticket.data(), e))
    }

    fn cut_file(&mut self, size: u64) -> std::io::Result<()> {
        self.file.set_len(size)?;
        self.rehash(size)?;
        self.written = size;
        self.noted = 0;
        Ok(())
    }

    /// The hash of the first `size` bytes anew; what is written next comes after them.
    fn rehash(&mut self, size: u64) -> std::io::Result<()> {
        self.hasher = Hasher::new(self.hasher.algorithm());
        let read = hash_on(&mut self.file, 0, size, &mut self.hasher);
        self.doubt(read).map(drop)
    }
}

impl Drop for LocalIngest {
    fn drop(&mut self) {
        if self.committed {
            return;
        }
        // At most two gatherings into the page cache; then the name is free for the next writer.
        let mut sink = self.shared.drain();
        if !self.ticket.path().exists() {
            return;
        }
        if let Err(error) = self.ticket.touch(self.status.updated_at) {
            tracing::debug!(%error, "ingest time not noted");
        }
        sink.note();
    }
}

impl fmt::Debug for LocalIngest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LocalIngest")
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
