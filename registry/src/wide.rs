//! A large blob over several connections, where one is slow.
//!
//! Invariant: bytes come out in the order of the blob, and no more than its pieces in flight are in
//! memory: [`ALL`] of them in the whole process, and one of each blob beside.
//!
//! ```text
//! one connection --slow--> pieces side by side --not faster, or no ranges--> one, to the end
//! ```
//!
//! Many servers and paths limit what a connection may carry, and several of them are faster there. Where
//! the line itself is full they are not: that is tried, once for each blob, and what helps is kept.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::sync::LazyLock;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use types::{Descriptor, Error, Result};

use crate::reader::{BlobReader, Source};
use crate::repository::Repository;

/// Pieces in flight in the whole process, besides one of each blob.
const ALL: usize = 8;
/// Largest piece.
const LARGEST: u64 = 2 << 20;
/// Parts of a large blob that a piece is one of: what is in flight when the process dies is fetched
/// again, and of a blob for which that matters it is to be no more than one in a hundred bytes.
const PARTS: u64 = 400;
/// A connection that carries so many bytes per second is fast enough.
const FAST: u64 = 64 << 20;
/// So much faster, in percent, are several connections to be.
const GAIN: u64 = 130;

/// A blob as it comes in, over as many connections as make it faster. The digest is not checked here.
#[derive(Debug)]
pub struct WideReader {
    repository: Repository,
    descriptor: Descriptor,
    offset: u64,
    one: Option<BlobReader>,
    pieces: Option<Pieces>,
    /// Several connections have had their chance.
    is_tried: bool,
    /// How fast one connection is; begins with its first bytes.
    window: Option<Speed>,
    /// Who sent bytes last.
    source: Option<Source>,
}

impl WideReader {
    pub(crate) fn new(repository: Repository, descriptor: Descriptor, one: BlobReader) -> Self {
        Self {
            repository,
            descriptor,
            offset: one.offset(),
            one: Some(one),
            pieces: None,
            is_tried: false,
            window: None,
            source: None,
        }
    }

    /// Position of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Who sent the last bytes, `https://example.test/v2`; empty before the first.
    #[must_use]
    pub fn host(&self) -> &str {
        self.source.as_ref().map_or("", |source| source.host.root())
    }

    /// As [`BlobReader::distrust`].
    #[must_use = "without another host a new try gives the same"]
    pub fn distrust(&self) -> bool {
        let Some(source) = &self.source else {
            return false;
        };
        self.repository.shared.health.failed(source.host.origin());
        source.alternatives
    }

    /// The next bytes; `None` at the end. Cancel safe: bytes are counted when they are returned.
    ///
    /// # Errors
    /// As [`BlobReader::chunk`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while let Some(pieces) = &mut self.pieces {
            match pieces.next().await {
                Some(Ok((data, source))) => {
                    // It has been kept until it was sure that there are ranges.
                    self.one = None;
                    self.source = Some(source);
                    self.offset += data.len() as u64;
                    return Ok(Some(data));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "going on over one connection");
                    self.pieces = None;
                }
                None => self.pieces = None,
            }
        }
        let one = match &mut self.one {
            Some(one) => one,
            None => self
                .one
                .insert(self.repository.open(&self.descriptor, self.offset)?),
        };
        let began = Instant::now();
        let read = one.chunk().await;
        let waited = began.elapsed();
        self.source = one.source().or(self.source.take());
        let data = read?;
        if let Some(data) = &data {
            self.offset += data.len() as u64;
            self.widen(data.len() as u64, waited);
        }
        Ok(data)
    }

    /// Begins with several connections when one has shown that it is slow and much is left.
    fn widen(&mut self, came: u64, waited: Duration) {
        let wide = self.repository.shared.limits.wide;
        let size = self.descriptor.size;
        if self.is_tried || wide.lanes < 2 || size < wide.from {
            return;
        }
        let Some(speed) = &mut self.window else {
            // What it took to connect says nothing of its speed.
            self.window = Some(Speed::default());
            return;
        };
        speed.count(came, waited);
        if speed.waited < wide.after {
            return;
        }
        let rate = speed.rate();
        self.window = Some(Speed::default());
        let left = size - self.offset;
        let length = (size / PARTS).clamp(wide.piece.min(LARGEST), LARGEST);
        let rounds = left / length / wide.lanes as u64;
        let rest = u128::from(left) * 1000 / u128::from(rate.max(1));
        if rate >= FAST || rounds < 4 || rest < 2 * wide.after.as_millis() {
            return;
        }
        self.is_tried = true;
        tracing::debug!(digest = %self.descriptor.digest, rate, "trying several connections");
        self.pieces = Some(Pieces {
            repository: self.repository.clone(),
            descriptor: self.descriptor.clone(),
            lanes: wide.lanes,
            length,
            left: self.offset..size,
            running: VecDeque::new(),
            speed: Speed::default(),
            alone: Some(rate),
        });
    }
}

/// Bytes, and how long they were waited for. What their reader did meanwhile does not count: where that is
/// slow, more connections are of no use.
#[derive(Debug, Default)]
struct Speed {
    bytes: u64,
    waited: Duration,
}

impl Speed {
    fn count(&mut self, bytes: u64, waited: Duration) {
        self.bytes += bytes;
        self.waited += waited;
    }

    /// Bytes per second.
    fn rate(&self) -> u64 {
        let rate = u128::from(self.bytes) * 1000 / self.waited.as_millis().max(1);
        u64::try_from(rate).unwrap_or(u64::MAX)
    }
}

/// Pieces of a blob that come in side by side.
#[derive(Debug)]
struct Pieces {
    repository: Repository,
    descriptor: Descriptor,
    lanes: usize,
    /// Of each piece but the last.
    length: u64,
    /// What nobody fetches yet.
    left: Range<u64>,
    /// In order.
    running: VecDeque<Piece>,
    speed: Speed,
    /// How fast one connection was, until it is known whether several are faster.
    alone: Option<u64>,
}

type Fetched = Result<(Bytes, Source)>;

/// A piece on its way; given up when dropped.
#[derive(Debug)]
struct Piece {
    task: JoinHandle<Fetched>,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Piece {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Pieces {
    /// The next piece; `None` when there is none any more, at the end or before.
    async fn next(&mut self) -> Option<Fetched> {
        self.fill();
        let front = self.running.front_mut()?;
        let began = Instant::now();
        let fetched = (&mut front.task).await;
        let waited = began.elapsed();
        drop(self.running.pop_front());
        let fetched = fetched
            .unwrap_or_else(|error| Err(Error::internal("piece of a blob").with_source(error)));
        if let Ok((data, _)) = &fetched {
            self.speed.count(data.len() as u64, waited);
            self.judge();
        }
        Some(fetched)
    }

    /// Sends requests for more, as far as there is room.
    fn fill(&mut self) {
        static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ALL)));
        while self.running.len() < self.lanes && !self.left.is_empty() {
            let place = Arc::clone(&PLACES).try_acquire_owned().ok();
            if place.is_none() && !self.running.is_empty() {
                return;
            }
            let end = (self.left.start + self.length).min(self.left.end);
            let range = self.left.start..end;
            self.left.start = end;
            let (repository, descriptor) = (self.repository.clone(), self.descriptor.clone());
            let task = tokio::spawn(async move { fetch(&repository, &descriptor, range).await });
            self.running.push_back(Piece {
                task,
                _place: place,
            });
        }
    }

    /// After two rounds: goes on, or begins no more pieces.
    fn judge(&mut self) {
        let Some(alone) = self.alone else { return };
        if self.speed.bytes < 2 * self.lanes as u64 * self.length {
            return;
        }
        let together = self.speed.rate();
        let is_faster = together > alone.saturating_mul(GAIN) / 100;
        tracing::debug!(digest = %self.descriptor.digest, alone, together, is_faster, "tried");
        if !is_faster {
            self.left.start = self.left.end;
        }
        self.alone = None;
    }
}

async fn fetch(repository: &Repository, descriptor: &Descriptor, range: Range<u64>) -> Fetched {
    let length = usize::try_from(range.end - range.start).unwrap_or_default();
    let mut reader = repository.open_piece(descriptor, range)?;
    // Copied: a server that sends single bytes would otherwise cost a multiple of them.
    let mut all = BytesMut::with_capacity(length);
    while let Some(chunk) = reader.chunk().await? {
        all.extend_from_slice(&chunk);
    }
    let source = reader.source();
    let source = source.ok_or_else(|| Error::internal("bytes of nobody"))?;
    Ok((all.freeze(), source))
}
