//! One blob from a registry into the content store.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use content::{Blob, ContentStore, Ingest, IngestSpec};
use registry::{Budget, Reference, Repository, WideReader};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep, sleep_until};
use types::{Code, Descriptor, Error, Fields, IngestRef, Labels, Result, label};

use crate::begun::Begun;
use crate::progress::{OnProgress, Status};
use crate::turns::{Place, Places, Wait};

/// Bytes written at a time: over the wire each write is a round trip.
const WRITE: usize = 1 << 20;
/// But no longer than so are bytes kept back: who waits for them looks whether there are more. After this
/// time without any it is told that they are waited for.
const OFTEN: Duration = Duration::from_secs(1);
/// Most times that a blob is fetched anew because its bytes are not what its descriptor says.
const ANEW: u32 = 3;

/// Where a blob that comes in is lent.
pub(crate) type Started = oneshot::Sender<Arc<dyn Blob>>;

/// Fetches blobs of one repository.
#[derive(Debug)]
pub(crate) struct Fetcher {
    content: Arc<dyn ContentStore>,
    repository: Repository,
    /// Key and value of the label that says where the blob came from.
    source: (String, String),
    /// Of the whole pull.
    budget: Budget,
    /// For layers, perhaps shared with other pulls.
    places: Places,
    on: OnProgress,
}

/// Why a blob did not come, and whether a fetch from its beginning may do better.
struct Failed {
    error: Error,
    again: bool,
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self {
            error,
            again: false,
        }
    }
}

impl Fetcher {
    pub(crate) fn new(
        content: &Arc<dyn ContentStore>,
        repository: Repository,
        reference: &Reference,
        budget: Budget,
        places: Places,
        on: &OnProgress,
    ) -> Self {
        // Parity: core/remotes/docker/handler.go: without the port.
        let key = format!("{}.{}", label::DISTRIBUTION_SOURCE, reference.hostname());
        Self {
            content: Arc::clone(content),
            repository,
            source: (key, reference.path().to_owned()),
            budget,
            places,
            on: on.clone(),
        }
    }

    /// Tells that a blob's turn has not come.
    pub(crate) fn waiting(&self, descriptor: &Descriptor) {
        self.on.tell(
            &images::ref_key(descriptor),
            Status::Waiting,
            0,
            descriptor.size,
        );
    }

    /// Makes the blob be in the store. What is there from an interrupted fetch is not fetched again.
    pub(crate) async fn fetch(&self, descriptor: &Descriptor) -> Result<()> {
        self.fetch_followed(descriptor, None).await
    }

    /// As [`Fetcher::fetch`], and lends the blob to who wants to read it while it comes in.
    pub(crate) async fn fetch_followed(
        &self,
        descriptor: &Descriptor,
        mut started: Option<Started>,
    ) -> Result<()> {
        let key = images::ref_key(descriptor);
        let reference: IngestRef = key.clone().try_into()?;
        let mut anew = 0;
        // Only layers are followed; documents are small, and others wait for them.
        let is_layer = started.is_some();
        loop {
            let got = self.ingest(&reference, descriptor, is_layer).await?;
            let Some((ingest, place)) = got else {
                self.on
                    .tell(&key, Status::Exists, descriptor.size, descriptor.size);
                return self.add_source(descriptor).await;
            };
            let filling = self.fill(ingest, place, descriptor, &mut started, anew > 0);
            let filled = filling.await;
            let Failed { error, again } = match filled {
                Ok(()) => {
                    self.budget.done();
                    self.on
                        .tell(&key, Status::Done, descriptor.size, descriptor.size);
                    return Ok(());
                }
                Err(failed) if failed.error.is_already_exists() => {
                    self.on
                        .tell(&key, Status::Exists, descriptor.size, descriptor.size);
                    return self.add_source(descriptor).await;
                }
                Err(failed) => failed,
            };
            let error = error.ctx(format!("fetch {key}"));
            if error.is(Code::Unavailable) {
                // The next try goes on from here.
                return Err(error);
            }
            if !again || anew >= ANEW {
                return Err(error);
            }
            tracing::warn!(%error, "fetched anew");
            anew += 1;
        }
    }

    /// A writer, and a place if there is something of a layer to fetch; `None` when the blob is there.
    /// Waits for another writer of it, and for the place.
    async fn ingest(
        &self,
        reference: &IngestRef,
        descriptor: &Descriptor,
        is_layer: bool,
    ) -> Result<Option<(Begun, Option<Place>)>> {
        let (mut wait, mut place) = (Wait::new(), None);
        let (store, on, budget) = (self.content.as_ref(), &self.on, &self.budget);
        loop {
            let ingest = match Begun::open(&self.content, spec(reference, descriptor)).await {
                Ok(ingest) => ingest,
                Err(error) if error.is_already_exists() => return Ok(None),
                Err(error) if error.is(Code::Unavailable) => {
                    drop(place.take());
                    wait.until_free(store, reference, descriptor, on, budget)
                        .await?;
                    continue;
                }
                Err(error) => return Err(error),
            };
            let there = ingest.offset();
            if !is_layer || there == descriptor.size || place.is_some() {
                return Ok(Some((ingest, place)));
            }
            place = self.places.find();
            if place.is_some() {
                return Ok(Some((ingest, place)));
            }
            // Whoever has a place may write it meanwhile; nothing stays that holds nothing.
            match there {
                0 => ingest.abandon().await?,
                _ => drop(ingest),
            }
            let key = reference.as_str();
            on.tell(key, Status::Waiting, there, descriptor.size);
            place = Some(self.places.take(budget).await?);
        }
    }

    async fn fill(
        &self,
        mut ingest: Begun,
        place: Option<Place>,
        descriptor: &Descriptor,
        started: &mut Option<Started>,
        anew: bool,
    ) -> Result<(), Failed> {
        let key = &images::ref_key(descriptor);
        let size = descriptor.size;
        let mut offset = ingest.offset();
        if offset > size || (anew && offset > 0) {
            ingest.writer()?.truncate(0).await?;
            offset = 0;
        }
        if let Some(started) = started.take()
            && let Some(blob) = ingest.writer()?.follow(size)?
        {
            // Who does not listen reads it later.
            let _unheard = started.send(blob);
        }
        self.on.tell(key, Status::Downloading, offset, size);
        // What came before took its own time.
        self.budget.progress();
        let mut reader = self.repository.open_wide(descriptor, offset)?;
        if anew {
            // Of several hosts at a time nobody knows who spoils it.
            reader = reader.alone();
        }
        let copy = Copy {
            fetcher: self,
            ingest: ingest.writer()?,
            place: place.as_ref(),
            key,
            buffer: BytesMut::new(),
            written: Instant::now(),
        };
        let copied = copy.run(&mut reader).await;
        if let Err(error) = copied {
            let failed = judged(error, &reader, offset > 0);
            // What came in is good for the next try, unless it is this itself that is wrong: time that
            // ran out, a token or a full disk do not make it so.
            if (is_wrong(&failed.error) || ingest.offset() == 0)
                && let Err(error) = ingest.abandon().await
            {
                tracing::debug!(%error, key, "what came in is still there");
            }
            return Err(failed);
        }
        let labels = Labels::new().with(&self.source.0, &self.source.1);
        let digest = Some(descriptor.digest.clone());
        let Err(error) = ingest.take()?.commit(Some(size), digest, labels).await else {
            return Ok(());
        };
        if error.is_not_found() {
            // Somebody has aborted it by name.
            return Err(Failed { error, again: true });
        }
        let failed = judged(error, &reader, offset > 0);
        if is_wrong(&failed.error)
            && let Err(error) = self.drop_refused(&key.parse()?, descriptor).await
        {
            // The next fetch comes to the same and tries again.
            tracing::debug!(%error, key, "what a commit has refused is still there");
        }
        Err(failed)
    }

    /// Drops what a commit has refused, under a claim of its own: by its name alone it could be what
    /// another writer has begun meanwhile.
    async fn drop_refused(&self, reference: &IngestRef, descriptor: &Descriptor) -> Result<()> {
        let ingest = match Begun::open(&self.content, spec(reference, descriptor)).await {
            Ok(ingest) => ingest,
            // Who has it now sees for itself, and what is complete is right.
            Err(error) if error.is(Code::Unavailable) || error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error),
        };
        // Less of it is another beginning.
        match ingest.offset() < descriptor.size {
            true => Ok(()),
            false => ingest.abandon().await,
        }
    }

    /// Notes this repository as one more source of a blob that was there already.
    async fn add_source(&self, descriptor: &Descriptor) -> Result<()> {
        let (key, path) = &self.source;
        let info = self.content.info(&descriptor.digest).await?;
        if info.size != descriptor.size {
            return Err(Error::failed_precondition(format_args!(
                "{} has {} bytes, its descriptor says {}",
                descriptor.digest, info.size, descriptor.size
            )));
        }
        let known = info.labels.get(key).map_or("", String::as_str);
        let mut all: Vec<&str> = known.split(',').filter(|s| !s.is_empty()).collect();
        if all.contains(&path.as_str()) {
            return Ok(());
        }
        all.push(path);
        all.sort_unstable();
        let labels = Labels::new().with(key, all.join(","));
        if labels.validate().is_err() {
            // So many sources that one more does not fit: no harm is done without it.
            return Ok(());
        }
        let fields = Fields::new(vec![format!("labels.{key}")]);
        self.content
            .update(&descriptor.digest, labels, &fields)
            .await?;
        Ok(())
    }
}

/// A blob from its reader into its ingest.
struct Copy<'a> {
    fetcher: &'a Fetcher,
    ingest: &'a mut dyn Ingest,
    place: Option<&'a Place>,
    key: &'a str,
    /// What came and is not worth a write yet.
    buffer: BytesMut,
    /// When there was a write.
    written: Instant,
}

impl Copy<'_> {
    /// Writes what comes, to the end or as far as it comes.
    async fn run(mut self, reader: &mut WideReader) -> Result<()> {
        let size = reader.size();
        let ended = loop {
            let chunk = match self.next(reader).await {
                Ok(Some(chunk)) => chunk,
                Ok(None) => break Ok(()),
                Err(error) => break Err(error),
            };
            let on = &self.fetcher.on;
            on.tell(self.key, Status::Downloading, reader.offset(), size);
            self.keep(chunk, size).await?;
            if self.buffer.len() >= WRITE || self.written.elapsed() >= OFTEN {
                self.flush().await?;
            }
        };
        if !self.buffer.is_empty() {
            self.ingest.write(self.buffer.freeze()).await?;
        }
        ended
    }

    /// The next bytes. Where they do not come for long, what came is written, as it would be lost with the
    /// process, and it is told that something is waited for.
    async fn next(&mut self, reader: &mut WideReader) -> Result<Option<Bytes>> {
        let (at, size) = (reader.offset(), reader.size());
        // Kept meanwhile: given up it would ask once more.
        let mut coming = pin!(reader.chunk());
        let mut quiet = pin!(sleep(OFTEN));
        let mut is_told = false;
        loop {
            let is_empty = self.buffer.is_empty();
            tokio::select! {
                biased;
                came = &mut coming => return came,
                () = sleep_until(self.written + OFTEN), if !is_empty => self.flush().await?,
                () = &mut quiet, if !is_told => {
                    is_told = true;
                    self.fetcher.on.tell(self.key, Status::Waiting, at, size);
                }
            }
        }
    }

    /// Puts bytes with those that wait, in one allocation that does not grow: grown ones would be twice as
    /// large as what is in them, here and in the store's queue, for each layer on its way.
    async fn keep(&mut self, chunk: Bytes, size: u64) -> Result<()> {
        if self.buffer.len() + chunk.len() > WRITE {
            self.flush().await?;
        }
        if chunk.len() >= WRITE {
            return self.write(chunk).await;
        }
        if self.buffer.capacity() == 0 {
            let most = usize::try_from(size).map_or(WRITE, |size| size.min(WRITE));
            self.buffer.reserve(most);
        }
        self.buffer.extend_from_slice(&chunk);
        Ok(())
    }

    async fn flush(&mut self) -> Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let piece = std::mem::take(&mut self.buffer).freeze();
        self.write(piece).await
    }

    async fn write(&mut self, piece: Bytes) -> Result<()> {
        self.ingest.write(piece).await?;
        self.written = Instant::now();
        // A slow disk is not the registry's fault.
        self.fetcher.budget.progress();
        if let Some(place) = self.place {
            place.progress();
        }
        Ok(())
    }
}

/// The writer that is wanted for a blob.
fn spec(reference: &IngestRef, descriptor: &Descriptor) -> IngestSpec {
    IngestSpec {
        reference: reference.clone(),
        total: Some(descriptor.size),
        expected: Some(descriptor.digest.clone()),
    }
}

/// Whether it is the bytes that are not what the descriptor says, or more than the registry knows of.
fn is_wrong(error: &Error) -> bool {
    error.is(Code::FailedPrecondition) || error.is(Code::OutOfRange)
}

/// Names the host whose bytes are not what the descriptor says, and keeps to others where there are
/// any. Of a blob that an earlier fetch began, that part may be the damaged one.
fn judged(error: Error, reader: &WideReader, is_resumed: bool) -> Failed {
    if !is_wrong(&error) {
        return error.into();
    }
    let again = is_resumed || reader.distrust();
    let said = error.to_string();
    let unnamed: Vec<&str> = reader.hosts().filter(|host| !said.contains(host)).collect();
    let error = match unnamed.is_empty() {
        true => error,
        false => error.ctx(format!("bytes of {}", unnamed.join(", "))),
    };
    Failed { error, again }
}

#[cfg(test)]
#[path = "fetch_tests.rs"]
mod tests;
