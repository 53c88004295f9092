//! A layer written anew with another compression.
//!
//! ```text
//! store ==> decode -> hash -> encode ==> store
//! ```
//! Invariant: memory is bounded: a layer goes through in pieces, decoder and encoder on a thread of their
//! own. What fails leaves nothing in the store.

use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use compression::{Compression, Encoder};
use content::{ContentStore, Hasher, IngestSpec};
use tokio::sync::{mpsc, oneshot};
use types::{Algorithm, Descriptor, Digest, Error, Fields, IngestRef, Labels, Result, label};

use crate::plain::{Ceilings, PlainOpts, Whence, decompress};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;
/// Pieces on their way.
const QUEUE: usize = 4;

/// Writes a layer anew with another compression.
pub(crate) async fn recode(
    store: &Arc<dyn ContentStore>,
    old: &Descriptor,
    id: Option<&Digest>,
    wanted: Compression,
) -> Result<Descriptor> {
    recode_within(store, old, id, wanted, ceilings(wanted)).await
}

/// What a layer may hold: where it is compressed again, zeroes take no room.
fn ceilings(wanted: Compression) -> Ceilings {
    match wanted {
        Compression::Plain => Ceilings::default(),
        Compression::Gzip | Compression::Zstd => Ceilings::STREAM,
    }
}

async fn recode_within(
    store: &Arc<dyn ContentStore>,
    old: &Descriptor,
    id: Option<&Digest>,
    wanted: Compression,
    ceilings: Ceilings,
) -> Result<Descriptor> {
    let blob = store.open(&old.digest).await?;
    let total = blob.size();
    let (feed, input) = mpsc::channel::<Bytes>(QUEUE);
    let (output, mut made) = mpsc::channel::<Bytes>(QUEUE);
    let worker = on_thread(move || recode_blocking(input, output, wanted, (ceilings, total)))?;
    let reference: IngestRef =
        format!("convert-{:016x}-{}", rand::random::<u64>(), old.digest).try_into()?;
    let spec = IngestSpec {
        reference: reference.clone(),
        total: None,
        expected: None,
    };
    let mut ingest = store.ingest(spec).await?;
    let feeding = async {
        let mut at = 0;
        while at < total {
            let piece = blob.read_at(at, PIECE).await?;
            if piece.is_empty() {
                return Err(Error::data_loss(format_args!(
                    "{} ends at byte {at}",
                    old.digest
                )));
            }
            at += piece.len() as u64;
            if feed.send(piece).await.is_err() {
                // The decoder has seen enough, or failed: it will say.
                break;
            }
        }
        drop(feed);
        Ok(())
    };
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let writing = async {
        let mut size = 0;
        while let Some(piece) = made.recv().await {
            size += piece.len() as u64;
            hasher.update(&piece);
            ingest.write(piece).await?;
        }
        Ok::<_, Error>((size, ingest))
    };
    let moved = futures::future::try_join(feeding, writing).await;
    // Or the encoder would wait for a store that has failed.
    drop(made);
    let worked = worker.await;
    let worked = worked.map_err(|_| Error::internal("convert thread panicked"))?;
    let done = async {
        // What the store says is why the rest failed: a decoder that gives up fails neither end.
        let (size, ingest) = moved?.1;
        let plain = worked.map_err(of_layer)?;
        if id.is_some_and(|id| *id != plain) {
            return Err(Error::invalid_argument(format_args!(
                "layer decompresses to {plain}, its config says otherwise"
            )));
        }
        let digest = hasher.finish()?;
        let labels = Labels::new().with(label::UNCOMPRESSED, plain.as_str());
        let committed = ingest
            .commit(Some(size), Some(digest.clone()), labels.clone())
            .await;
        match committed {
            Err(error) if error.is_already_exists() => {
                let fields = Fields::new(vec![format!("labels.{}", label::UNCOMPRESSED)]);
                store.update(&digest, labels, &fields).await?;
            }
            done => drop(done?),
        }
        Ok(Descriptor {
            digest,
            size,
            ..old.clone()
        })
    };
    let done = done.await;
    if done.is_err() {
        // What was written is of no use to anybody.
        let _gone = store.abort(&reference).await;
    }
    done
}

/// Does `work` on a thread of its own: it waits for what the store reads and writes on the runtime's, and
/// where such work has all of them, nothing goes on.
fn on_thread<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>> {
    let (done, outcome) = oneshot::channel();
    // Nobody may wait for it any more.
    let work = move || drop(done.send(work()));
    let thread = std::thread::Builder::new().name("convert".into());
    let started = thread.spawn(work);
    drop(started.map_err(|e| Error::os("start convert thread", e))?);
    Ok(outcome)
}

/// Why a layer cannot be written anew: what a stage has said, or that it is damaged.
fn of_layer(error: io::Error) -> Error {
    match error.downcast::<Error>() {
        Ok(error) => error.ctx("layer"),
        Err(error) => Error::invalid_argument(format_args!("layer: {error}")),
    }
}

/// Decodes and encodes; returns the digest of what is in between.
fn recode_blocking(
    input: mpsc::Receiver<Bytes>,
    output: mpsc::Sender<Bytes>,
    wanted: Compression,
    (ceilings, total): (Ceilings, u64),
) -> io::Result<Digest> {
    let source = Source {
        input,
        held: Bytes::new(),
    };
    let unwanted = output.clone();
    let opts = PlainOpts {
        ceilings,
        whence: Whence::Store,
        total,
        is_unwanted: Box::new(move || unwanted.is_closed()),
    };
    let plain = decompress(Box::new(source), opts).map_err(io::Error::other)?;
    let mut plain = plain.ok_or(io::ErrorKind::UnexpectedEof)?;
    let mut hasher = Hasher::new(Algorithm::Sha256);
    let sink = io::BufWriter::with_capacity(PIECE, Sink(output));
    let mut encoder = Encoder::new(wanted, sink)?;
    pump(&mut plain, &mut encoder, &mut hasher)?;
    encoder.finish()?.flush()?;
    hasher.finish().map_err(io::Error::other)
}

fn pump(from: &mut dyn Read, to: &mut dyn Write, hasher: &mut Hasher) -> io::Result<()> {
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let n = match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(e),
        };
        hasher.update(&buffer[..n]);
        to.write_all(&buffer[..n])?;
    }
}

/// The pieces of a blob.
struct Source {
    input: mpsc::Receiver<Bytes>,
    held: Bytes,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.held.is_empty() {
            match self.input.blocking_recv() {
                Some(piece) => self.held = piece,
                None => return Ok(0),
            }
        }
        let n = buffer.len().min(self.held.len());
        buffer[..n].copy_from_slice(&self.held.split_to(n));
        Ok(n)
    }
}

/// Where pieces go.
struct Sink(mpsc::Sender<Bytes>);

impl Write for Sink {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Bytes::copy_from_slice(data));
        sent.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests;
