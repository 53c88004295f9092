//! Import: an archive's blobs into a content store, and what its index says.

use std::io::Read;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use compression::Compression;
use content::{ContentStore, Hasher, Ingest, IngestSpec};
use serde::Deserialize;
use tokio::sync::mpsc::Receiver;
use types::{
    Algorithm, Context as _, Descriptor, Digest, Error, IngestRef, Labels, Result, media_type as mt,
};

use super::docker;
use super::found::{File, Found, clean};
use super::stream::{Part, parts};
use super::tar::{Header, Kind, unrecognized};
use crate::MAX_MANIFEST;
use crate::blob::{digest_of, put_blob};
use crate::model::{Entry, Index, json};
use crate::plain::Ceilings;

/// Told about each blob as it goes in: name in the archive, bytes so far, length.
pub type OnBytes<'a> = &'a (dyn Fn(&str, u64, u64) + Send + Sync);

/// Most blobs and links of one archive.
const MAX_FILES: usize = 16_384;
/// Longest name of a blob that is kept.
const MAX_NAME: usize = 1024;
/// The only version of the OCI layout.
const LAYOUT_VERSION: &str = "1.0.0";

/// What an archive holds: its blobs are in the content store now.
#[derive(Clone, Debug)]
pub struct Archive {
    /// The images, as the index lists them.
    pub images: Vec<Entry>,
    /// The index itself.
    document: Bytes,
}

impl Archive {
    /// Stores the archive's index too, for an image that names all of it.
    ///
    /// # Errors
    /// Those of the store.
    pub async fn put_index(&self, store: &dyn ContentStore) -> Result<Descriptor> {
        let digest = put_blob(store, self.document.clone(), Labels::new()).await?;
        let size = self.document.len() as u64;
        Ok(Descriptor {
            media_type: mt::OCI_INDEX.into(),
            digest,
            size,
            annotations: Labels::new(),
        })
    }

    /// The descriptor that [`Archive::put_index`] gives.
    ///
    /// # Errors
    /// `Internal`: never in practice.
    pub fn digest(&self) -> Result<Digest> {
        digest_of(&self.document)
    }
}

/// Reads an OCI layout or a Docker archive, plain or compressed with gzip or zstd, and stores its
/// blobs. The stream is read on a blocking thread. Plain layers of a Docker archive, which has no
/// documents that name them by digest, are compressed with `compress`.
///
/// # Errors
/// `InvalidArgument` "unrecognized image format" for what is no image archive, and for damaged or
/// hostile ones; `FailedPrecondition` for a blob that does not have the digest it is named after;
/// `ResourceExhausted` when a document is too large, or what a compressed archive holds ([`Ceilings`]);
/// `Unavailable` when it needs much memory that another import has. No ingest stays behind.
pub async fn import(
    reader: Box<dyn Read + Send>,
    store: &Arc<dyn ContentStore>,
    compress: Option<Compression>,
    on_bytes: OnBytes<'_>,
) -> Result<Archive> {
    import_within(reader, store, compress, on_bytes, Ceilings::default()).await
}

/// [`import`] with other ceilings.
///
/// # Errors
/// As [`import`].
pub async fn import_within(
    reader: Box<dyn Read + Send>,
    store: &Arc<dyn ContentStore>,
    compress: Option<Compression>,
    on_bytes: OnBytes<'_>,
    ceilings: Ceilings,
) -> Result<Archive> {
    let mut import = Import {
        store,
        on_bytes,
        parts: parts(reader, ceilings),
        held: None,
        found: Found::default(),
        serial: 0,
    };
    while let Some(header) = import.next_entry().await? {
        import.entry(header).await?;
    }
    archive(import.found, store, compress).await
}

struct Import<'a> {
    store: &'a Arc<dyn ContentStore>,
    on_bytes: OnBytes<'a>,
    parts: Receiver<Result<Part>>,
    /// An entry that was met while looking for data.
    held: Option<Part>,
    found: Found,
    serial: u64,
}

impl Import<'_> {
    async fn part(&mut self) -> Result<Part> {
        if let Some(part) = self.held.take() {
            return Ok(part);
        }
        match self.parts.recv().await {
            Some(part) => part,
            None => Err(Error::internal("archive reader ended without a word")),
        }
    }

    async fn next_entry(&mut self) -> Result<Option<Header>> {
        loop {
            match self.part().await? {
                Part::Entry(header) => return Ok(Some(header)),
                Part::Data(_) => {}
                Part::End => return Ok(None),
            }
        }
    }

    /// Data of the current entry; `None` at its end.
    async fn data(&mut self) -> Result<Option<Bytes>> {
        match self.part().await? {
            Part::Data(data) => Ok(Some(data)),
            next => {
                self.held = Some(next);
                Ok(None)
            }
        }
    }

    async fn entry(&mut self, header: Header) -> Result<()> {
        let name = clean(&header.name)?;
        match (header.kind, name.as_str()) {
            (Kind::File, "oci-layout") => self.found.layout = Some(self.document(&header).await?),
            (Kind::File, "index.json") => self.found.index = Some(self.document(&header).await?),
            (Kind::File, "manifest.json") => {
                self.found.manifest = Some(self.document(&header).await?);
            }
            (Kind::File, _) if may_be_blob(&name) => {
                self.room(&name)?;
                let file = self
                    .blob(&name, header.size)
                    .await
                    .ctx_with(|| format!("failed to ingest {:?}", header.name))?;
                self.found.files.insert(name, file);
            }
            (Kind::Symlink, _) => {
                self.room(&name)?;
                let dir = name.rsplit_once('/').map_or("", |(dir, _)| dir);
                // A link out of the archive is no error unless a manifest wants it.
                if let Ok(target) = clean(format!("{dir}/{}", header.link).trim_start_matches('/'))
                {
                    self.found.links.insert(name, target);
                }
            }
            (Kind::Hardlink, _) => {
                self.room(&name)?;
                if let Ok(target) = clean(&header.link) {
                    self.found.links.insert(name, target);
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn room(&self, name: &str) -> Result<()> {
        if name.len() > MAX_NAME || self.found.files.len() + self.found.links.len() >= MAX_FILES {
            return Err(Error::resource_exhausted(format_args!(
                "archive has more than {MAX_FILES} files, or a name longer than {MAX_NAME} bytes"
            )));
        }
        Ok(())
    }

    /// A document that stays in memory.
    async fn document(&mut self, header: &Header) -> Result<Bytes> {
        if header.size > MAX_MANIFEST {
            return Err(Error::resource_exhausted(format_args!(
                "{:?} of {} bytes is larger than the limit of {MAX_MANIFEST} bytes",
                header.name, header.size
            )));
        }
        let mut all = BytesMut::new();
        while let Some(data) = self.data().await? {
            all.extend_from_slice(&data);
        }
        Ok(all.freeze())
    }

    async fn blob(&mut self, name: &str, size: u64) -> Result<File> {
        self.serial += 1;
        let expected = match name
            .strip_prefix("blobs/")
            .and_then(|rest| rest.split_once('/'))
        {
            Some((algorithm, hex)) => format!("{algorithm}:{hex}").parse::<Digest>().ok(),
            None => None,
        };
        let spec = IngestSpec {
            // Random, so that two imports never meet in one ingest.
            reference: format!("tar-{:016x}-{}", rand::random::<u64>(), self.serial).try_into()?,
            total: Some(size),
            expected: expected.clone(),
        };
        let pending = Pending::new(self.store, &spec.reference);
        let done = match self.store.ingest(spec).await {
            Ok(ingest) => self.fill(ingest, name, size, expected).await,
            Err(error) if error.is_already_exists() && expected.is_some() => {
                self.skim(name, size, expected).await
            }
            Err(error) => Err(error),
        };
        if done.is_ok() {
            pending.forget();
        } else {
            pending.abort().await;
        }
        done
    }

    /// Writes the current entry's data and commits it.
    async fn fill(
        &mut self,
        mut ingest: Box<dyn Ingest>,
        name: &str,
        size: u64,
        expected: Option<Digest>,
    ) -> Result<File> {
        let (mut offset, mut compression) = (0, Compression::Plain);
        // A store may be on the other end of a socket: it need not know the digest before the commit.
        let mut hasher = expected.is_none().then(|| Hasher::new(Algorithm::Sha256));
        // A store that shares the blob with another namespace has all of it from the start.
        let shared = size > 0 && ingest.status().offset == size;
        (self.on_bytes)(name, 0, size);
        while let Some(data) = self.data().await? {
            if offset == 0 {
                compression = Compression::of(&data);
            }
            offset += data.len() as u64;
            if let Some(hasher) = &mut hasher {
                hasher.update(&data);
            }
            if !shared {
                ingest.write(data).await?;
            }
            (self.on_bytes)(name, offset, size);
        }
        let digest = match (&expected, hasher) {
            (Some(expected), _) => expected.clone(),
            (None, Some(hasher)) => hasher.finish()?,
            (None, None) => return Err(Error::internal("neither a digest nor a hasher")),
        };
        match ingest
            .commit(Some(size), Some(digest.clone()), Labels::new())
            .await
        {
            Ok(digest) => Ok(File {
                digest,
                size,
                compression,
            }),
            Err(error) if error.is_already_exists() => Ok(File {
                digest,
                size,
                compression,
            }),
            Err(error) => Err(error),
        }
    }

    /// Passes over data that the store has already.
    async fn skim(&mut self, name: &str, size: u64, expected: Option<Digest>) -> Result<File> {
        let mut compression = None;
        while let Some(data) = self.data().await? {
            compression.get_or_insert_with(|| Compression::of(&data));
        }
        (self.on_bytes)(name, size, size);
        let digest = expected.ok_or_else(|| Error::internal("blob without a digest"))?;
        Ok(File {
            digest,
            size,
            compression: compression.unwrap_or_default(),
        })
    }
}

/// What the archive holds: an OCI layout, or what Docker has saved.
async fn archive(
    found: Found,
    store: &Arc<dyn ContentStore>,
    compress: Option<Compression>,
) -> Result<Archive> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Layout {
        image_layout_version: Option<String>,
    }
    if let Some(text) = &found.layout {
        let layout: Layout = json(text, "oci-layout")?;
        let version = layout.image_layout_version.unwrap_or_default();
        if version != LAYOUT_VERSION {
            return Err(Error::invalid_argument(format_args!(
                "unsupported OCI version {version:?}"
            )));
        }
        let document = found.index.ok_or_else(|| {
            Error::invalid_argument(format_args!(
                "missing index.json in OCI layout {LAYOUT_VERSION}"
            ))
        })?;
        let images = Index::parse(&document, mt::OCI_INDEX)
            .ctx("index.json")?
            .manifests;
        return Ok(Archive { images, document });
    }
    let Some(manifest) = found.manifest.clone() else {
        return Err(unrecognized());
    };
    let (images, document) = docker::index(&manifest, &found, store, compress).await?;
    Ok(Archive { images, document })
}

/// An ingest that must not outlive a failed or abandoned import.
struct Pending {
    store: Arc<dyn ContentStore>,
    reference: Option<IngestRef>,
}

impl Pending {
    fn new(store: &Arc<dyn ContentStore>, reference: &IngestRef) -> Self {
        Self {
            store: Arc::clone(store),
            reference: Some(reference.clone()),
        }
    }

    fn forget(mut self) {
        self.reference = None;
    }

    async fn abort(mut self) {
        if let Some(reference) = self.reference.take() {
            // NotFound is the usual answer when nothing was begun.
            let _gone = self.store.abort(&reference).await;
        }
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        let (Some(reference), Ok(runtime)) =
            (self.reference.take(), tokio::runtime::Handle::try_current())
        else {
            return;
        };
        let store = Arc::clone(&self.store);
        drop(runtime.spawn(async move { store.abort(&reference).await }));
    }
}

/// True for names that the known writers give to blobs: a file system tree that someone takes for an
/// image shall not end up in the store.
fn may_be_blob(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or_default();
    name.starts_with("blobs/")
        || [".json", ".tar", ".tar.gz", ".tgz", ".tar.zst"]
            .iter()
            .any(|end| file.ends_with(end))
        || file.starts_with("sha256:")
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
