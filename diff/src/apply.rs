//! The walking applier: a layer archive onto a file system.
//!
//! ```text
//!   thread 1: blob -> digest of the blob -> decoder -+-> chunks -> thread 0: tar -> files
//!                                                    +-> chunks -> thread 2: digest of the stream
//! ```
//! Invariant: no mount outlives the call; success means the blob had its digest, the whole stream was
//! read, and (with `sync`) the file system was flushed.

mod blob;
pub(crate) mod erofs;
mod mkfs;
mod place;
mod superblock;

use std::io::{BufRead, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use content::{ContentStore, Hasher};
use sys::mount::TempMount;
use tokio::runtime::Handle;
use tokio::sync::OwnedSemaphorePermit;
use types::{
    Algorithm, Any, Context as _, Descriptor, Digest, Error, Labels, Mount, Result, media_type,
};

use crate::compression::{Compression, begins_as, begun, decode_error, decoder};
use crate::extract::{Limits, Target, TreeOpts, apply_tar};
use crate::mounts;
use crate::processor::{self, Link, Processor};
use crate::root::Root;
use crate::stream::{CHUNK, Chunk, Pool, Sender, Source, pipe};
use crate::tar::stream_error;
use crate::windows::{Large, Windows};
use crate::work::{self, Guard, Rooms, Stop};
use crate::{Applier, ApplyOpts, external};
use blob::{BlobReader, Incoming};
use place::{Place, in_user_namespace, place};

/// Applies tar layers: plain, gzip or zstd.
#[derive(Clone, Debug)]
pub struct Walking {
    temporary: PathBuf,
    limits: Limits,
    /// A program for gzip that is faster than the library.
    igzip: Option<PathBuf>,
    /// Programs for media types that are not known here.
    processors: Arc<[Processor]>,
    /// How many layers at a time.
    pub(crate) rooms: Rooms,
}

impl Walking {
    /// An applier and comparer that makes its temporary mounts below `temporary`.
    #[must_use]
    pub fn new(temporary: PathBuf) -> Self {
        Self {
            temporary,
            limits: Limits::default(),
            igzip: external::igzip(),
            processors: Arc::default(),
            rooms: Rooms::default(),
        }
    }

    /// The same with programs for other media types.
    #[must_use]
    pub fn with_processors(self, processors: Vec<Processor>) -> Self {
        Self {
            processors: processors.into(),
            ..self
        }
    }

    /// The same with other ceilings.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        Self { limits, ..self }
    }

    /// Where temporary mounts go.
    pub(crate) fn temporary(&self) -> &Path {
        &self.temporary
    }
}

#[async_trait]
impl Applier for Walking {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        let chain = processor::chain(&self.processors, &layer.media_type)?;
        mounts::check(mounts)?;
        let (job, room, _guard) = self.job(store, layer, opts, chain).await?;
        let (temporary, mounts) = (self.temporary.clone(), mounts.to_vec());
        let work = move || job.apply(&temporary, &mounts);
        work::run("layer-files", room, work).await
    }

    fn follows(&self) -> bool {
        true
    }

    fn settles(&self) -> bool {
        true
    }

    fn flushes(&self) -> bool {
        true
    }
}

impl Walking {
    /// Opens the blob of a layer, and waits for room to unpack it. The work ends when the guard is dropped.
    async fn job(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        opts: ApplyOpts,
        chain: Vec<Link>,
    ) -> Result<(Job, OwnedSemaphorePermit, Guard)> {
        let follows = opts.blob.is_some();
        let blob = match opts.blob {
            Some(blob) => blob,
            None => {
                let opened = store.open(&layer.digest).await;
                opened.ctx("failed to get reader from content store")?
            }
        };
        if layer.size != 0 && blob.size() != layer.size {
            return Err(Error::failed_precondition(format_args!(
                "blob {} has {} bytes, not {}",
                layer.digest,
                blob.size(),
                layer.size
            )));
        }
        let room = self.rooms.apply(follows).await?;
        let stop = Stop::default();
        let guard = stop.guard();
        let handle = Handle::current();
        let job = Job {
            from: Incoming { blob, handle, stop },
            follows,
            rooms: self.rooms.clone(),
            digest: layer.digest.clone(),
            limits: self.limits,
            igzip: self.igzip.clone(),
            chain,
            packed: None,
            payloads: opts.payloads,
            sync: opts.sync,
        };
        Ok((job, room, guard))
    }
}

/// One apply.
struct Job {
    from: Incoming,
    /// It comes in.
    follows: bool,
    rooms: Rooms,
    digest: Digest,
    limits: Limits,
    igzip: Option<PathBuf>,
    /// What it goes through before it is a layer.
    chain: Vec<Link>,
    /// How it is packed; the bytes decide where nothing is said.
    packed: Option<Compression>,
    payloads: Vec<(String, Any)>,
    sync: bool,
}

impl Job {
    fn apply(mut self, temporary: &Path, mounts: &[Mount]) -> Result<Descriptor> {
        match place(mounts)? {
            Place::Here(path, target) => self.into_directory(&path, target),
            Place::Mounted => {
                std::fs::create_dir_all(temporary)
                    .map_err(|e| Error::os(format_args!("mkdir {}", temporary.display()), e))?;
                let mounted = TempMount::new(mounts, temporary)?;
                // The file system may go with the mount: what it cannot write is told to nobody else.
                self.sync = true;
                let done = self.into_directory(mounted.path(), Target::Merged)?;
                // The next one to mount it must not find this one at work.
                mounted.unmount()?;
                Ok(done)
            }
        }
    }

    fn into_directory(self, path: &Path, target: Target) -> Result<Descriptor> {
        let root = Root::open(path)?;
        let tree = TreeOpts {
            target,
            limits: self.limits,
            blob: Some(self.from.blob.size()),
            skip_devices: in_user_namespace(),
            stop: self.from.stop.clone(),
        };
        let sync = self.sync;
        let stream = self.extract(|source| apply_tar(source, &root, &tree))?;
        if sync {
            rustix::fs::syncfs(root.fd())
                .map_err(|e| Error::os(format_args!("syncfs {}", path.display()), e.into()))?;
        }
        Ok(stream)
    }

    /// Runs the three threads; `take` is what this one does, with the whole stream.
    fn extract(self, take: impl FnOnce(Source) -> Result<()>) -> Result<Descriptor> {
        let (files, source) = pipe();
        let (sums, summed) = pipe();
        let (extracted, read, hashed) = std::thread::scope(|scope| -> Result<_> {
            let spawn = |name: &str| std::thread::Builder::new().name(name.into());
            let fail = |e| Error::os("start layer thread", e);
            let job = &self;
            let reading = spawn("layer-read")
                .spawn_scoped(scope, move || job.read(&[files, sums]))
                .map_err(fail)?;
            // Should this one not start, the reader finds nobody and ends.
            let hashing = spawn("layer-hash")
                .spawn_scoped(scope, move || hash(summed))
                .map_err(fail)?;
            let extracted = take(source);
            Ok((extracted, join(reading), join(hashing)))
        })?;
        // The extractor's error names the entry; when it is the stream's own, both are the same.
        extracted?;
        let blob = read?;
        let (size, digest) = hashed?;
        let blob = blob.unwrap_or_else(|| digest.clone());
        if blob != self.digest {
            return Err(Error::failed_precondition(format_args!(
                "unexpected digest of layer: {blob}, expected {}",
                self.digest
            )));
        }
        Ok(Descriptor {
            media_type: media_type::OCI_LAYER.into(),
            digest,
            size,
            annotations: Labels::new(),
        })
    }

    /// Thread 1. The digest of the blob, unless it is that of the stream.
    fn read(&self, to: &[Sender; 2]) -> Result<Option<Digest>> {
        let mut blob = BlobReader::new(&self.from, Hasher::new(self.digest.algorithm()));
        let done = self.decode(&mut blob, to);
        if let Err(error) = &done {
            // The extractor has the same text; the hasher only has to know that there is no digest.
            let again = || Error::from_wire(error.code(), &error.to_string());
            to[0].send(Err(again()));
            to[1].send(Err(again()));
        }
        done?;
        blob.hasher.map(Hasher::finish).transpose()
    }

    fn decode(&self, blob: &mut BlobReader<'_>, to: &[Sender; 2]) -> Result<()> {
        if !self.chain.is_empty() {
            return self.process(&self.chain, blob, to).map(drop);
        }
        if self.compression(blob)? == Compression::Plain
            && self.digest.algorithm() == Algorithm::Sha256
        {
            // Nothing was hashed yet: the first buffer is counted when it is consumed.
            blob.hasher = None;
        }
        if !self.unpack(blob, to)? {
            return Ok(());
        }
        // What a decoder leaves unread is part of the digest.
        loop {
            let got = blob.fill_buf().map_err(stream_error)?.len();
            if got == 0 {
                return Ok(());
            }
            blob.consume(got);
        }
    }

    /// Sends a stream through the programs that are left, and what comes out on; false when nobody wants
    /// the rest.
    fn process(
        &self,
        chain: &[Link],
        blob: &mut (dyn BufRead + Send),
        to: &[Sender; 2],
    ) -> Result<bool> {
        let Some((next, rest)) = chain.split_first() else {
            return self.unpack(blob, to);
        };
        let mut wanted = true;
        let spawn = processor::spawn(next, &self.payloads)?;
        external::through(spawn, &next.0.path, blob, |stream| {
            let mut stream = begun(stream, CHUNK).map_err(stream_error)?;
            wanted = self.process(rest, &mut stream, to)?;
            Ok(wanted)
        })?;
        Ok(wanted)
    }

    /// Decompresses a stream and passes it on; false when nobody wants the rest.
    fn unpack(&self, blob: &mut (dyn BufRead + Send), to: &[Sender; 2]) -> Result<bool> {
        let compression = self.compression(&mut *blob)?;
        if self.packed == Some(Compression::Plain) {
            return self.pump(blob, to);
        }
        // It may be gone since it was found.
        let igzip = self.igzip.as_deref().filter(|path| path.exists());
        if let (Compression::Gzip, Some(igzip)) = (compression, igzip) {
            let mut wanted = true;
            external::decode(igzip, blob, |stream| {
                wanted = self.pump(stream, to)?;
                Ok(wanted)
            })?;
            return Ok(wanted);
        }
        let windows = Windows {
            most: self.limits.window,
            large: self.large_windows(),
        };
        let mut stream = decoder(&mut *blob, windows).map_err(decode_error)?;
        self.pump(&mut stream, to)
    }

    fn compression<R: BufRead + ?Sized>(&self, stream: &mut R) -> Result<Compression> {
        let found = begins_as(stream).map_err(stream_error)?;
        match self.packed {
            Some(Compression::Plain) => Ok(Compression::Plain),
            Some(said) if said != found => Err(Error::invalid_argument(
                "layer is not packed as its media type says",
            )),
            _ => Ok(found),
        }
    }

    fn large_windows(&self) -> Large {
        if self.follows {
            return Large::Coming(self.rooms.clone());
        }
        Large::InTurn {
            rooms: self.rooms.clone(),
            handle: self.from.handle.clone(),
            stop: self.from.stop.clone(),
        }
    }

    /// Passes the stream on in chunks; false when nobody wants the rest.
    fn pump(&self, stream: &mut dyn Read, to: &[Sender; 2]) -> Result<bool> {
        let pool = Arc::<Pool>::default();
        let most = self.limits.stream_of(self.from.blob.size());
        let mut total = 0_u64;
        loop {
            let mut chunk = pool.take();
            fill_chunk(stream, &mut chunk).map_err(decode_error)?;
            if chunk.is_empty() {
                return Ok(true);
            }
            self.from.stop.check()?;
            total += chunk.len() as u64;
            if total > most {
                return Err(Error::resource_exhausted(format_args!(
                    "layer has more than {most} bytes, which is the most for a blob of its size"
                )));
            }
            let chunk = Bytes::from_owner(chunk);
            // The extractor stops early when it fails: so does everything.
            if !to[0].send(Ok(chunk.clone())) || !to[1].send(Ok(chunk)) {
                return Ok(false);
            }
        }
    }
}

/// Reads until a chunk is full or the stream ends.
fn fill_chunk(stream: &mut dyn Read, chunk: &mut Chunk) -> std::io::Result<()> {
    while !chunk.room().is_empty() {
        match stream.read(chunk.room()) {
            Ok(0) => break,
            Ok(got) => chunk.filled(got),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Thread 2: length and digest of the stream.
fn hash(mut source: Source) -> Result<(u64, Digest)> {
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let mut size = 0;
    loop {
        let chunk = source.fill_buf().map_err(stream_error)?;
        let len = chunk.len();
        if len == 0 {
            return Ok((size, hasher.finish()?));
        }
        hasher.update(chunk);
        size += len as u64;
        source.consume(len);
    }
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread
        .join()
        .unwrap_or_else(|_| Err(Error::internal("apply thread panicked")))
}

#[cfg(test)]
mod mount_tests;
#[cfg(test)]
mod pool_tests;
#[cfg(test)]
mod tests;
