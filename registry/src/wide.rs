//! A large blob over several connections, where one is slow.
//!
//! Invariant: bytes come out in the order of the blob, and no more than its pieces in flight are in
//! memory: [`ALL`] of them in the whole process, and one of each blob beside. Connections besides the
//! blob's own are of the room that its caller has for whole blobs, which those who wait there get first.
//!
//! ```text
//! one connection --slow--> pieces side by side --not faster--> one, to the end
//!      ^    |                      |
//!      |    `-- goes on until it comes to where the pieces begin: nothing of them there? it stays alone
//!      `--------- a piece that does not come; then the pieces again, fewer at a time
//! ```
//!
//! Many servers and paths limit what a connection may carry, and several of them are faster there. Where
//! the line itself is full they are not: that is tried, once for each blob, and what helps is kept.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};
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
/// So many times as long as usual may a piece take.
const OVERDUE: u32 = 4;
/// But so long at least.
const PATIENCE: Duration = Duration::from_secs(5);
/// So much faster, in percent, are several connections to be.
const GAIN: u64 = 130;

/// A blob as it comes in, over as many connections as make it faster. The digest is not checked here.
#[derive(Debug)]
pub struct WideReader {
    repository: Repository,
    descriptor: Descriptor,
    offset: u64,
    /// What comes before the pieces, when there are any.
    one: Option<BlobReader>,
    pieces: Option<Pieces>,
    /// Several connections have had their chance.
    is_tried: bool,
    /// How fast one connection is; begins with its first bytes.
    window: Option<Speed>,
    /// Who sent bytes, the last one at the end.
    sources: Vec<Source>,
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
            sources: Vec::new(),
        }
    }

    /// Length of the blob.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.descriptor.size
    }

    /// Position of the next byte.
    #[must_use]
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// The same over one connection at a time, to see who sends what.
    #[must_use]
    pub fn alone(self) -> Self {
        Self {
            is_tried: true,
            ..self
        }
    }

    /// All that sent bytes, `https://example.test/v2`; none before the first.
    pub fn hosts(&self) -> impl Iterator<Item = &str> {
        self.sources.iter().map(|source| source.host.root())
    }

    /// As [`BlobReader::distrust`], of all that sent bytes.
    #[must_use = "without another host a new try gives the same"]
    pub fn distrust(&self) -> bool {
        for source in &self.sources {
            self.repository.shared.health.failed(source.host.origin());
        }
        self.sources.iter().any(|source| source.alternatives)
    }

    /// The next bytes; `None` at the end. Cancel safe: bytes are counted when they are returned.
    ///
    /// # Errors
    /// As [`BlobReader::chunk`].
    pub async fn chunk(&mut self) -> Result<Option<Bytes>> {
        while let Some(pieces) = &mut self.pieces
            && self.one.is_none()
        {
            match pieces.next().await {
                Some(Ok((data, source))) => {
                    self.came(&data, Some(source));
                    return Ok(Some(data));
                }
                Some(Err(error)) => {
                    tracing::debug!(%error, "a piece comes over one connection");
                    pieces.fewer();
                    self.one = Some(self.repository.open(&self.descriptor, self.offset)?);
                }
                None => self.pieces = None,
            }
        }
        self.single().await
    }

    /// The next bytes of the one connection.
    async fn single(&mut self) -> Result<Option<Bytes>> {
        let one = match &mut self.one {
            Some(one) => one,
            None => self
                .one
                .insert(self.repository.open(&self.descriptor, self.offset)?),
        };
        let began = Instant::now();
        let read = one.chunk().await;
        let waited = began.elapsed();
        let source = one.source();
        let Some(mut data) = read? else {
            return Ok(None);
        };
        if let Some(pieces) = &mut self.pieces {
            let before = pieces.begin() - self.offset;
            if data.len() as u64 >= before {
                if pieces.is_coming() {
                    data.truncate(usize::try_from(before).unwrap_or(usize::MAX));
                    self.one = None;
                } else {
                    tracing::debug!(digest = %self.descriptor.digest, "nothing else comes");
                    self.pieces = None;
                }
            }
        }
        let length = data.len() as u64;
        self.came(&data, source);
        match &mut self.pieces {
            Some(pieces) => pieces.count_before(length, waited),
            None => self.widen(length, waited),
        }
        Ok(Some(data))
    }

    fn came(&mut self, data: &Bytes, source: Option<Source>) {
        self.offset += data.len() as u64;
        if let Some(source) = source {
            let is_other = |known: &Source| !Arc::ptr_eq(&known.host, &source.host);
            self.sources.retain(is_other);
            self.sources.push(source);
        }
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
        // No place at this moment: perhaps at the next one.
        let Some(place) = self.repository.place() else {
            return;
        };
        let lanes = wide.lanes.min(2 + self.repository.room());
        let left = size - self.offset;
        let length = (size / PARTS).clamp(wide.piece.min(LARGEST), LARGEST);
        let rounds = left / length / lanes as u64;
        let rest = u128::from(left) * 1000 / u128::from(rate.max(1));
        if rate >= FAST || rounds < 4 || rest < 2 * wide.after.as_millis() {
            return;
        }
        self.is_tried = true;
        tracing::debug!(digest = %self.descriptor.digest, rate, "trying several connections");
        let mut pieces = Pieces {
            repository: self.repository.clone(),
            descriptor: self.descriptor.clone(),
            lanes,
            length,
            // One connection has some more to do, until the first piece is there.
            left: self.offset + length..size,
            running: VecDeque::new(),
            speed: Speed::default(),
            together: Speed::default(),
            alone: rate,
            is_judged: false,
        };
        pieces.begin_one(Some(place));
        pieces.fill();
        self.pieces = Some(pieces);
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
    /// Of those bytes that came over several connections.
    together: Speed,
    /// How fast one connection was.
    alone: u64,
    /// It is known whether several are faster.
    is_judged: bool,
}

type Fetched = Result<(Bytes, Source)>;

/// A piece on its way; given up when dropped.
#[derive(Debug)]
struct Piece {
    range: Range<u64>,
    began: Instant,
    /// Bytes so far.
    came: Arc<AtomicU64>,
    task: JoinHandle<Fetched>,
    /// Another connection had bytes of the blob to bring meanwhile.
    is_beside: bool,
    _place: Option<Place>,
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
        if self.running.len() > 1 {
            self.note_beside();
        }
        let patience = self.patience();
        let front = self.running.front_mut()?;
        let began = Instant::now();
        let overdue = front.began + patience;
        let fetched = tokio::select! {
            biased;
            fetched = &mut front.task => fetched
                .unwrap_or_else(|error| Err(Error::internal("piece of a blob").with_source(error))),
            () = sleep_until(overdue) => {
                Err(Error::unavailable(format_args!("not there after {patience:?}")))
            }
        };
        let waited = began.elapsed();
        let is_beside = self
            .running
            .pop_front()
            .is_some_and(|front| front.is_beside);
        if let Ok((data, _)) = &fetched {
            let length = data.len() as u64;
            self.speed.count(length, waited);
            if is_beside {
                self.together.count(length, waited);
                self.judge();
            }
        }
        Some(fetched)
    }

    /// Counts what came over the connection before the pieces.
    fn count_before(&mut self, length: u64, waited: Duration) {
        self.speed.count(length, waited);
        if !self.running.is_empty() {
            self.together.count(length, waited);
            self.note_beside();
        }
    }

    fn note_beside(&mut self) {
        for piece in &mut self.running {
            piece.is_beside = true;
        }
    }

    /// How long a piece may take: a multiple of what it takes by the speed so far, with all the others
    /// beside it.
    fn patience(&self) -> Duration {
        let rate = match self.speed.bytes {
            0 => self.alone,
            _ => self.speed.rate().min(self.alone),
        };
        let usual = (self.lanes as u64 + 1) * self.length * 1000 / rate.max(1);
        PATIENCE.max(OVERDUE * Duration::from_millis(usual))
    }

    /// Where the first piece begins that has not come.
    fn begin(&self) -> u64 {
        let front = self.running.front();
        front.map_or(self.left.start, |front| front.range.start)
    }

    /// Whether there is anything of that piece, or of the only ones after it.
    fn is_coming(&self) -> bool {
        self.running.front().is_some_and(|front| {
            let came = front.came.load(Ordering::Relaxed);
            let is_whole = came == front.range.end - front.range.start;
            came > 0 && (is_whole || !front.task.is_finished())
        })
    }

    /// One did not come: half as many at a time, and none where that is one.
    fn fewer(&mut self) {
        self.lanes /= 2;
        if self.lanes < 2 {
            self.left.start = self.left.end;
        }
    }

    /// Sends requests for more, as far as there is room.
    fn fill(&mut self) {
        while self.running.len() < self.lanes && !self.left.is_empty() {
            let place = self.repository.place();
            // One is the blob's own: nothing else of it comes.
            if place.is_none() && !self.running.is_empty() {
                return;
            }
            self.begin_one(place);
        }
    }

    /// Sends the request for the next piece.
    fn begin_one(&mut self, place: Option<Place>) {
        let end = (self.left.start + self.length).min(self.left.end);
        let range = self.left.start..end;
        self.left.start = end;
        let (repository, descriptor) = (self.repository.clone(), self.descriptor.clone());
        let came = Arc::<AtomicU64>::default();
        let (told, wanted) = (Arc::clone(&came), range.clone());
        let work = async move { fetch(&repository, &descriptor, wanted, &told).await };
        self.running.push_back(Piece {
            range,
            began: Instant::now(),
            came,
            task: tokio::spawn(recorder::carry(work)),
            is_beside: false,
            _place: place,
        });
    }

    /// After two rounds: goes on, or begins no more pieces. Those do not count that came alone, because
    /// others had the room: they tell nothing of several.
    fn judge(&mut self) {
        if self.is_judged || self.together.bytes < 2 * self.lanes as u64 * self.length {
            return;
        }
        let (alone, together) = (self.alone, self.together.rate());
        let is_faster = together > alone.saturating_mul(GAIN) / 100;
        tracing::debug!(digest = %self.descriptor.digest, alone, together, is_faster, "tried");
        if !is_faster {
            self.left.start = self.left.end;
        }
        self.is_judged = true;
    }
}

/// The places for pieces that the whole process has.
pub(crate) fn places() -> Arc<Semaphore> {
    static PLACES: LazyLock<Arc<Semaphore>> = LazyLock::new(|| Arc::new(Semaphore::new(ALL)));
    Arc::clone(&PLACES)
}

/// A place of the process for a piece, and one of the caller's room.
type Place = (OwnedSemaphorePermit, Option<OwnedSemaphorePermit>);

impl Repository {
    /// How many places there are for pieces besides the first one.
    fn room(&self) -> usize {
        let room = self.shared.room.as_ref();
        room.map_or(ALL, |room| room.available_permits())
    }

    fn place(&self) -> Option<Place> {
        let find = |places: &Arc<Semaphore>| Arc::clone(places).try_acquire_owned().ok();
        let place = find(&self.shared.places)?;
        match &self.shared.room {
            Some(room) => Some((place, Some(find(room)?))),
            None => Some((place, None)),
        }
    }
}

async fn fetch(
    repository: &Repository,
    descriptor: &Descriptor,
    range: Range<u64>,
    came: &AtomicU64,
) -> Fetched {
    let length = usize::try_from(range.end - range.start).unwrap_or_default();
    let mut reader = repository.open_piece(descriptor, range)?;
    // Copied: a server that sends single bytes would otherwise cost a multiple of them.
    let mut all = BytesMut::with_capacity(length);
    while let Some(chunk) = reader.chunk().await? {
        all.extend_from_slice(&chunk);
        came.store(all.len() as u64, Ordering::Relaxed);
    }
    let source = reader.source();
    let source = source.ok_or_else(|| Error::internal("bytes of nobody"))?;
    Ok((all.freeze(), source))
}
