//! The walking comparer: what changed between two file systems, as a layer blob.
//!
//! ```text
//!   lower, upper -> walk -> tar -+-> digest of the stream
//!                                +-> encoder -> chunks -> ingest -> blob
//! ```
//! Invariant: the same two trees give the same stream; both are only read; no mount outlives the call,
//! and a failed compare leaves no ingest of its own.

mod changes;
mod contents;
mod ids;
mod layer;
mod names;
mod sources;

use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use content::{ContentStore, Hasher, Ingest, IngestSpec};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use types::{
    Algorithm, Context as _, Descriptor, Digest, Error, Fields, IngestRef, Labels, Mount, Result,
    label,
};

use crate::apply::Walking;
use crate::compression::{Compression, Encoder, wanted};
use crate::mounts;
use crate::stream::CHUNK;
use crate::tar::{Time, Writer, stream_error};
use crate::{CompareOpts, Comparer, work};
use changes::Walk;
use sources::Sources;

/// Chunks between the walk and the store.
const DEPTH: usize = 8;

#[async_trait]
impl Comparer for Walking {
    async fn compare(
        &self,
        store: &Arc<dyn ContentStore>,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        let (compression, media_type) = wanted(&opts.media_type)?;
        let media_type = media_type.to_owned();
        mounts::check(lower)?;
        mounts::check(upper)?;
        let epoch = opts.source_date_epoch.map(since_epoch);
        let (reference, ours) = match opts.reference {
            Some(reference) => (reference, false),
            None => (fresh_reference()?, true),
        };
        let spec = IngestSpec {
            reference: reference.clone(),
            total: None,
            expected: None,
        };
        let room = self.rooms.compare().await?;
        let mut ingest = store.ingest(spec).await.ctx("failed to open writer")?;
        let (lower, upper) = (lower.to_vec(), upper.to_vec());
        let temporary = self.temporary().to_owned();
        let walk = move |to| write_layer(&temporary, &lower, &upper, compression, epoch, to);
        let done = async {
            if !ours {
                ingest.truncate(0).await?;
            }
            let diff_id = fill(&mut *ingest, room, walk)
                .await
                .ctx("failed to write diff")?;
            let digest = ingest.digest().await?;
            let labels = opts.labels.with(label::UNCOMPRESSED, diff_id.as_str());
            match ingest.commit(None, None, labels).await {
                Err(error) if !error.is_already_exists() => Err(error.ctx("failed to commit")),
                _ => describe(store, media_type, digest, &diff_id).await,
            }
        }
        .await;
        if done.is_err()
            && ours
            && let Err(error) = store.abort(&reference).await.absent_ok()
        {
            tracing::warn!(%error, %reference, "failed to delete diff upload");
        }
        done
    }
}

/// The blob's descriptor; the blob gets the label that names its diff id when it has none.
async fn describe(
    store: &Arc<dyn ContentStore>,
    media_type: String,
    digest: Digest,
    diff_id: &Digest,
) -> Result<Descriptor> {
    let info = store
        .info(&digest)
        .await
        .ctx("failed to get info from content store")?;
    if !info.labels.contains_key(label::UNCOMPRESSED) {
        let labels = Labels::new().with(label::UNCOMPRESSED, diff_id.as_str());
        let fields = Fields::new(vec![format!("labels.{}", label::UNCOMPRESSED)]);
        match store.update(&digest, labels, &fields).await {
            // A store without labels is no reason to fail.
            Err(error) if !error.is(types::Code::NotImplemented) => {
                return Err(error.ctx("error setting uncompressed label"));
            }
            _ => {}
        }
    }
    Ok(Descriptor {
        media_type,
        digest,
        size: info.size,
        annotations: Labels::new(),
    })
}

fn fresh_reference() -> Result<IngestRef> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let now = since_epoch(SystemTime::now());
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    format!(
        "diff-{}-{}-{}-{serial}",
        now.seconds,
        now.nanos,
        std::process::id()
    )
    .parse()
}

fn since_epoch(time: SystemTime) -> Time {
    // Before 1970 is 1970, as everywhere in layers.
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

/// Runs the walk on a thread of its own and passes what it writes to the ingest.
async fn fill(
    ingest: &mut dyn Ingest,
    room: OwnedSemaphorePermit,
    walk: impl FnOnce(mpsc::Sender<Bytes>) -> Result<Digest> + Send + 'static,
) -> Result<Digest> {
    let (to, mut chunks) = mpsc::channel(DEPTH);
    let walked = work::run("layer-walk", room, move || walk(to));
    let store = async {
        let mut written = Ok(());
        while let Some(chunk) = chunks.recv().await {
            written = ingest.write(chunk).await;
            if written.is_err() {
                break;
            }
        }
        // A walk that still runs ends at its next entry, or chunk.
        drop(chunks);
        written
    };
    let (walked, written) = tokio::join!(walked, store);
    written?;
    walked
}

/// The blocking half: mounts, walks, writes; returns the digest of the uncompressed stream.
fn write_layer(
    temporary: &Path,
    lower: &[Mount],
    upper: &[Mount],
    compression: Compression,
    epoch: Option<Time>,
    to: mpsc::Sender<Bytes>,
) -> Result<Digest> {
    let sources = Sources::open(temporary, lower, upper)?;
    let reader = to.clone();
    let is_gone = || reader.is_closed();
    let tee = Tee {
        encoder: Encoder::new(
            compression,
            Chunks {
                to,
                buffer: Vec::new(),
            },
        )
        .map_err(stream_error)?,
        hasher: Hasher::new(Algorithm::Sha256),
    };
    let writer = Writer::new(BufWriter::with_capacity(CHUNK, tee));
    let buffered = Walk::new(&sources, writer, epoch, &is_gone).run()?;
    let tee = buffered
        .into_inner()
        .map_err(|e| stream_error(e.into_error()))?;
    let mut chunks = tee.encoder.finish().map_err(stream_error)?;
    chunks.pass().map_err(stream_error)?;
    tee.hasher.finish()
}

/// Digest and encoder behind one writer.
struct Tee {
    encoder: Encoder<Chunks>,
    hasher: Hasher,
}

impl Write for Tee {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        self.encoder.write_all(data)?;
        self.hasher.update(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.encoder.flush()
    }
}

/// Gathers bytes into chunks for the ingest.
struct Chunks {
    to: mpsc::Sender<Bytes>,
    buffer: Vec<u8>,
}

impl Chunks {
    fn pass(&mut self) -> std::io::Result<()> {
        if self.buffer.is_empty() {
            return Ok(());
        }
        let chunk = Bytes::from(std::mem::take(&mut self.buffer));
        let gone = |_| std::io::Error::other(Error::cancelled("diff upload ended"));
        self.to.blocking_send(chunk).map_err(gone)
    }
}

impl Write for Chunks {
    fn write(&mut self, data: &[u8]) -> std::io::Result<usize> {
        if self.buffer.len() + data.len() > CHUNK {
            self.pass()?;
        }
        self.buffer.extend_from_slice(data);
        Ok(data.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.pass()
    }
}

#[cfg(test)]
mod tests;
