//! Conversion: the same image with other compression or other media types.
//!
//! Invariant: what is unpacked stays the same, byte for byte, so configs and chain ids do too; a layer
//! whose decompressed digest is not what its config says is refused. Memory is bounded: a layer goes
//! through in pieces, decoder and encoder on a thread of their own.
//!
//! ```text
//! index -> manifest -> layer: store ==> decode -> hash -> encode ==> store
//! ```

use std::collections::HashMap;
use std::io::{self, Read, Write};
use std::sync::Arc;

use bytes::Bytes;
use compression::{Compression, Encoder};
use content::{ContentStore, Hasher, IngestSpec};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use types::{
    Algorithm, Context as _, Descriptor, Digest, Error, Fields, IngestRef, Labels, Result, label,
    media_type as mt,
};

use crate::archive::descriptor_json;
use crate::blob::{put_blob, read_blob};
use crate::media::{is_config, is_docker, is_index, is_layer, is_manifest, is_non_distributable};
use crate::model::{Entry, json as parse};
use crate::plain::{Ceilings, PlainOpts, Whence, decompress};
use crate::platforms::PlatformSet;
use crate::walk::{read_config, read_manifest};
use crate::{MAX_CONFIG, MAX_MANIFEST, label_children};

/// Bytes of a piece.
const PIECE: usize = 1 << 20;
/// Pieces on their way.
const QUEUE: usize = 4;
/// Deepest nesting of indexes.
const MAX_DEPTH: usize = 8;

/// Whose media types.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// Those of the OCI.
    Oci,
    /// Docker's.
    Docker,
}

/// How to convert.
#[derive(Clone, Debug, Default)]
pub struct ConvertOpts {
    /// Compression of layers; `None`: as it is.
    pub compress: Option<Compression>,
    /// Media types; `None`: as they are.
    pub family: Option<Family>,
    /// Which platforms of an index the new one has; this host's by default.
    pub platforms: PlatformSet,
}

/// Converts the image `target` and returns the new one's descriptor, the old one's when nothing
/// changes. Its blobs are in the store; the caller holds a lease and makes the record.
///
/// # Errors
/// `NotFound` for a blob or when no platform is left; `InvalidArgument` for a damaged layer or document;
/// `ResourceExhausted` for a layer that holds too much for its length.
pub async fn convert(
    store: &Arc<dyn ContentStore>,
    target: &Descriptor,
    opts: &ConvertOpts,
) -> Result<Descriptor> {
    let mut convert = Convert {
        store,
        opts,
        made: HashMap::new(),
    };
    Box::pin(convert.document(target, 0)).await
}

struct Convert<'a> {
    store: &'a Arc<dyn ContentStore>,
    opts: &'a ConvertOpts,
    /// Converted layers and documents, by the digest of the old one: images share them.
    made: HashMap<Digest, Descriptor>,
}

impl Convert<'_> {
    async fn document(&mut self, old: &Descriptor, depth: usize) -> Result<Descriptor> {
        // Or an index of indexes of indexes would take as long as there are ways through it.
        if let Some(known) = self.made.get(&old.digest) {
            return Ok(known.clone());
        }
        let new = if is_index(&old.media_type) && depth < MAX_DEPTH {
            self.index(old, depth).await?
        } else if is_manifest(&old.media_type) {
            self.manifest(old).await?
        } else {
            return Err(Error::invalid_argument(format_args!(
                "cannot convert {} of type {:?}",
                old.digest, old.media_type
            )));
        };
        self.made.insert(old.digest.clone(), new.clone());
        Ok(new)
    }

    async fn index(&mut self, old: &Descriptor, depth: usize) -> Result<Descriptor> {
        let text = read_blob(self.store.as_ref(), old, MAX_MANIFEST).await?;
        let index = crate::Index::parse(&text, &old.media_type)?;
        let named: Vec<_> = index.manifests.iter().map(|m| m.platform.clone()).collect();
        let chosen = self.opts.platforms.choose(&named);
        let mut document: Value = parse(&text, "index")?;
        let entries = document["manifests"].take();
        let (mut kept, mut children) = (Vec::new(), Vec::new());
        for at in chosen {
            let Some(entry) = index.manifests.get(at) else {
                continue;
            };
            let new = Box::pin(self.document(&entry.descriptor, depth + 1)).await?;
            let mut value = entries[at].clone();
            point(&mut value, &new);
            kept.push(value);
            children.push(Entry {
                descriptor: new,
                platform: entry.platform.clone(),
            });
        }
        if kept.is_empty() {
            return Err(Error::not_found(format_args!(
                "no match for platform in manifest {}",
                old.digest
            )));
        }
        document["manifests"] = kept.into();
        self.put(old, document, &children).await
    }

    async fn manifest(&mut self, old: &Descriptor) -> Result<Descriptor> {
        let store = self.store.as_ref();
        let manifest = read_manifest(store, old).await?;
        let text = read_blob(store, old, MAX_MANIFEST).await?;
        let mut document: Value = parse(&text, "manifest")?;
        let ids = if is_config(&manifest.config.media_type) {
            read_config(store, &manifest.config).await?.diff_ids
        } else {
            Vec::new()
        };
        let mut children = Vec::new();
        if manifest.config.size > MAX_CONFIG {
            return Err(Error::resource_exhausted("image config is too large"));
        }
        let config = Descriptor {
            media_type: self.media_type(&manifest.config.media_type, None),
            ..manifest.config.clone()
        };
        point(&mut document["config"], &config);
        children.push(Entry::from(config));
        for (at, layer) in manifest.layers.iter().enumerate() {
            let new = self
                .layer(layer, ids.get(at))
                .await
                .ctx_with(|| format!("convert layer {}", layer.digest))?;
            point(&mut document["layers"][at], &new);
            children.push(new.into());
        }
        self.put(old, document, &children).await
    }

    /// Stores a changed document with the labels that keep its children.
    async fn put(
        &self,
        old: &Descriptor,
        mut document: Value,
        children: &[Entry],
    ) -> Result<Descriptor> {
        let media_type = self.media_type(&old.media_type, None);
        if document.get("mediaType").is_some() || is_docker(&media_type) {
            document["mediaType"] = json!(media_type);
        }
        let store = self.store.as_ref();
        let text = read_blob(store, old, MAX_MANIFEST).await?;
        let before: Value = parse(&text, "document")?;
        if before == document {
            return Ok(old.clone());
        }
        let text: Bytes = document.to_string().into();
        let size = text.len() as u64;
        let digest = put_blob(store, text, Labels::new()).await?;
        label_children(store, &digest, children).await?;
        Ok(Descriptor {
            media_type,
            digest,
            size,
            annotations: old.annotations.clone(),
        })
    }

    async fn layer(&mut self, old: &Descriptor, id: Option<&Digest>) -> Result<Descriptor> {
        let media_type = self.media_type(&old.media_type, self.opts.compress);
        let wanted = self.opts.compress.filter(|wanted| {
            is_layer(&old.media_type)
                && !is_non_distributable(&old.media_type)
                && Compression::of_layers(&old.media_type) != Some(*wanted)
        });
        let Some(wanted) = wanted else {
            return Ok(Descriptor {
                media_type,
                ..old.clone()
            });
        };
        let known = self.made.get(&old.digest);
        let mut new = match known {
            Some(known) => known.clone(),
            None => recode(self.store, old, id, wanted).await?,
        };
        self.made.insert(old.digest.clone(), new.clone());
        new.media_type = media_type;
        new.annotations = old.annotations.clone();
        Ok(new)
    }

    /// The media type of what had `old`, of the wanted family and compression.
    fn media_type(&self, old: &str, compress: Option<Compression>) -> String {
        let family = self.opts.family.unwrap_or(if is_docker(old) {
            Family::Docker
        } else {
            Family::Oci
        });
        let docker = family == Family::Docker;
        let pick =
            |of_docker: &str, of_oci: &str| (if docker { of_docker } else { of_oci }).to_owned();
        if is_index(old) {
            return pick(mt::DOCKER_INDEX, mt::OCI_INDEX);
        }
        if is_manifest(old) {
            return pick(mt::DOCKER_MANIFEST, mt::OCI_MANIFEST);
        }
        if is_config(old) {
            return pick(mt::DOCKER_CONFIG, mt::OCI_CONFIG);
        }
        match Compression::of_layers(old) {
            Some(now) => {
                let new = compress.unwrap_or(now);
                pick(new.of_docker(), new.of_oci())
            }
            None => old.to_owned(),
        }
    }
}

/// Makes a descriptor in a document point at another blob, leaving what else it says.
fn point(value: &mut Value, new: &Descriptor) {
    let fresh = descriptor_json(new);
    for key in ["mediaType", "digest", "size"] {
        value[key] = fresh[key].clone();
    }
}

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
