//! Export: images as an OCI layout that `docker load` reads too.
//!
//! Memory is bounded: blobs go from the store to the writer in pieces, through a short queue.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};

use bytes::Bytes;
use content::ContentStore;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use types::{Context as _, Descriptor, Error, Result};

use super::docker::descriptor_json;
use crate::blob::open_blob;
use crate::media::{is_config, is_index, is_non_distributable};
use crate::model::Entry;
use crate::name::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, familiar, tag_of};
use crate::platforms::PlatformSet;
use crate::walk::{Frontier, children, manifests};

/// Bytes read from the store at a time.
const READ: usize = 1 << 20;
/// Pieces on their way to the writer.
const QUEUE: usize = 4;

/// How to export.
#[derive(Clone, Debug, Default)]
pub struct ExportOpts {
    /// Which platforms; this host's by default.
    pub platforms: PlatformSet,
    /// Leave out `manifest.json`, which only Docker needs.
    pub skip_docker_manifest: bool,
    /// Leave out layers that their owners do not let others distribute.
    pub skip_non_distributable: bool,
}

/// Writes `images`, names and targets, as a tar archive. The same images give the same bytes.
///
/// # Errors
/// `NotFound` when a blob is missing; those of the store and of the writer.
pub async fn export(
    store: &dyn ContentStore,
    images: &[(String, Descriptor)],
    opts: &ExportOpts,
    writer: Box<dyn Write + Send>,
) -> Result<()> {
    let blobs = blobs(store, images, opts).await?;
    let mut documents = vec![("index.json", index(images))];
    if !opts.skip_docker_manifest {
        documents.push(("manifest.json", docker_manifest(store, images, opts).await?));
    }
    documents.push(("oci-layout", json!({ "imageLayoutVersion": "1.0.0" })));

    let (parts, receiver) = mpsc::channel(QUEUE);
    let (ended, end) = oneshot::channel();
    // A thread of its own: a writer on a pipe may block for good, and must not hold up a shutdown.
    let thread = std::thread::Builder::new()
        .name("export".into())
        .spawn(move || {
            // The export may have been given up.
            let _told = ended.send(write(receiver, writer));
        });
    drop(thread.map_err(|e| Error::os("start export thread", e))?);
    let sent = send(store, &blobs, documents, &parts).await;
    drop(parts);
    match end.await {
        // The writer's failure is the cause of the sender's.
        Ok(Err(error)) if error.kind() != io::ErrorKind::UnexpectedEof => {
            Err(Error::os("write archive", error))
        }
        Ok(_) => sent,
        Err(_) => Err(Error::internal("archive writer ended without a word")),
    }
}

enum Part {
    Dir(String),
    File(String, u64),
    Data(Bytes),
    End,
}

/// All blobs of the images, by name in the archive.
async fn blobs(
    store: &dyn ContentStore,
    images: &[(String, Descriptor)],
    opts: &ExportOpts,
) -> Result<BTreeMap<String, Descriptor>> {
    let mut found = BTreeMap::new();
    let roots = images
        .iter()
        .map(|(_, target)| Entry::from(target.clone()))
        .collect();
    let mut frontier = Frontier::new(roots);
    while let Some((entry, depth)) = frontier.take() {
        let descriptor = entry.descriptor;
        if opts.skip_non_distributable && is_non_distributable(&descriptor.media_type) {
            continue;
        }
        let mut next = children(store, &descriptor).await?;
        if is_index(&descriptor.media_type) {
            let platforms: Vec<_> = next.iter().map(|child| child.platform.clone()).collect();
            let chosen = opts.platforms.choose(&platforms);
            next = chosen
                .into_iter()
                .filter_map(|at| next.get(at).cloned())
                .collect();
        }
        frontier.push(next, depth)?;
        found.insert(path(&descriptor), descriptor);
    }
    Ok(found)
}

fn path(descriptor: &Descriptor) -> String {
    let digest = &descriptor.digest;
    format!("blobs/{}/{}", digest.algorithm().name(), digest.hex())
}

fn index(images: &[(String, Descriptor)]) -> Value {
    let manifests: Vec<Value> = images
        .iter()
        .map(|(name, target)| {
            let mut target = target.clone();
            target.annotations.set(ANNOTATION_IMAGE_NAME, name);
            target.annotations.set(ANNOTATION_REF_NAME, tag_of(name));
            descriptor_json(&target)
        })
        .collect();
    json!({ "schemaVersion": 2, "manifests": manifests })
}

/// `manifest.json`: one item for each manifest, with all its names.
async fn docker_manifest(
    store: &dyn ContentStore,
    images: &[(String, Descriptor)],
    opts: &ExportOpts,
) -> Result<Value> {
    // Docker knows one platform only.
    let host = PlatformSet::default();
    let wanted = match &opts.platforms {
        PlatformSet::All => &host,
        only => only,
    };
    let mut items: Vec<Value> = Vec::new();
    let mut places = HashMap::new();
    for (name, target) in images {
        let first = manifests(store, target, wanted).await.absent_ok()?;
        let Some((descriptor, manifest)) = first.and_then(|all| all.into_iter().next()) else {
            continue;
        };
        if !is_config(&manifest.config.media_type) {
            continue;
        }
        let at = *places.entry(descriptor.digest).or_insert_with(|| {
            let layers: Vec<String> = manifest.layers.iter().map(path).collect();
            items.push(json!({
                "Config": path(&manifest.config),
                "RepoTags": [],
                "Layers": layers,
            }));
            items.len() - 1
        });
        if let (Some(tag), Some(tags)) = (familiar(name), items[at]["RepoTags"].as_array_mut()) {
            tags.push(tag.into());
        }
    }
    Ok(items.into())
}

async fn send(
    store: &dyn ContentStore,
    blobs: &BTreeMap<String, Descriptor>,
    documents: Vec<(&str, Value)>,
    parts: &mpsc::Sender<Part>,
) -> Result<()> {
    let gone = |_| Error::cancelled("archive writer");
    let mut dir = String::new();
    parts.send(Part::Dir("blobs/".into())).await.map_err(gone)?;
    for (name, descriptor) in blobs {
        let algorithm = descriptor.digest.algorithm().name();
        if dir != algorithm {
            algorithm.clone_into(&mut dir);
            parts
                .send(Part::Dir(format!("blobs/{dir}/")))
                .await
                .map_err(gone)?;
        }
        let digest = &descriptor.digest;
        let blob = open_blob(store, descriptor).await?;
        parts
            .send(Part::File(name.clone(), descriptor.size))
            .await
            .map_err(gone)?;
        let mut at = 0;
        while at < descriptor.size {
            let data = blob.read_at(at, READ).await?;
            if data.is_empty() {
                return Err(Error::data_loss(format_args!("{digest} ends at byte {at}")));
            }
            at += data.len() as u64;
            parts.send(Part::Data(data)).await.map_err(gone)?;
        }
    }
    for (name, document) in documents {
        let text: Bytes = document.to_string().into();
        let file = Part::File(name.to_owned(), text.len() as u64);
        parts.send(file).await.map_err(gone)?;
        parts.send(Part::Data(text)).await.map_err(gone)?;
    }
    parts.send(Part::End).await.map_err(gone)
}

/// The blocking end. `UnexpectedEof`: the sender gave up.
fn write(mut parts: mpsc::Receiver<Part>, writer: Box<dyn Write + Send>) -> io::Result<()> {
    let mut builder = ::tar::Builder::new(io::BufWriter::new(writer));
    loop {
        let (name, size) = match parts.blocking_recv() {
            Some(Part::Dir(name)) => (name, None),
            Some(Part::File(name, size)) => (name, Some(size)),
            Some(Part::End) => {
                let mut writer = builder.into_inner()?;
                return writer.flush();
            }
            Some(Part::Data(_)) | None => return Err(io::ErrorKind::UnexpectedEof.into()),
        };
        let mut header = ::tar::Header::new_gnu();
        let kind = match size {
            Some(_) => ::tar::EntryType::Regular,
            None => ::tar::EntryType::Directory,
        };
        header.set_entry_type(kind);
        header.set_mode(if size.is_some() { 0o444 } else { 0o755 });
        header.set_size(size.unwrap_or_default());
        let data = Feed {
            parts: &mut parts,
            data: Bytes::new(),
        };
        builder.append_data(&mut header, name, data.take(size.unwrap_or_default()))?;
    }
}

/// The data of one file, as it comes.
struct Feed<'a> {
    parts: &'a mut mpsc::Receiver<Part>,
    data: Bytes,
}

impl Read for Feed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.data.is_empty() {
            match self.parts.blocking_recv() {
                Some(Part::Data(data)) => self.data = data,
                _ => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let n = buffer.len().min(self.data.len());
        buffer[..n].copy_from_slice(&self.data.split_to(n));
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::testsuite::{Store, image};

    #[derive(Clone, Default)]
    struct Sink(Arc<Mutex<Vec<u8>>>, Option<usize>);

    impl Write for Sink {
        fn write(&mut self, data: &[u8]) -> io::Result<usize> {
            let mut all = self.0.lock().unwrap();
            if self.1.is_some_and(|room| all.len() + data.len() > room) {
                return Err(io::ErrorKind::StorageFull.into());
            }
            all.extend_from_slice(data);
            Ok(data.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    async fn exported(
        store: &Store,
        images: &[(String, Descriptor)],
        opts: &ExportOpts,
    ) -> Result<Vec<u8>> {
        let sink = Sink::default();
        export(store, images, opts, Box::new(sink.clone())).await?;
        let data = sink.0.lock().unwrap().clone();
        Ok(data)
    }

    async fn imported(data: Vec<u8>) -> (Store, super::super::Archive) {
        let store = Store::default();
        let shared: Arc<dyn ContentStore> = Arc::new(store.clone());
        let reader = Box::new(io::Cursor::new(data));
        let archive = super::super::import(reader, &shared, None, &|_, _, _| {})
            .await
            .unwrap();
        (store, archive)
    }

    #[tokio::test]
    async fn what_goes_out_comes_back_in() {
        let store = Store::default();
        let platform = types::Platform::host().to_string();
        let mine = image(&store, &platform, &[&[1; 2_500_000], b"two", b""]).await;
        let other = image(&store, "linux/s390x", &[b"other"]).await;
        let both = store
            .index(&[(&other, Some("linux/s390x")), (&mine, Some(&platform))])
            .await;
        let images = [
            ("docker.io/library/a:1".to_owned(), both.clone()),
            ("r.io/b:2".to_owned(), mine.clone()),
        ];
        let opts = ExportOpts::default();
        let data = exported(&store, &images, &opts).await.unwrap();
        assert_eq!(exported(&store, &images, &opts).await.unwrap(), data);
        let (copy, archive) = imported(data.clone()).await;
        assert_eq!(archive.images.len(), 2);
        let annotations = &archive.images[0].descriptor.annotations;
        assert_eq!(annotations[ANNOTATION_IMAGE_NAME], "docker.io/library/a:1");
        assert_eq!(annotations[ANNOTATION_REF_NAME], "1");
        let (got, manifest) = crate::find_manifest(&copy, &both, &opts.platforms)
            .await
            .unwrap();
        assert_eq!(got, mine);
        assert!(manifest.layers.iter().all(|layer| copy.has(&layer.digest)));
        assert!(!copy.has(&other.digest));

        // Docker's reader finds the same layers and all names.
        let text = String::from_utf8_lossy(&data);
        let start = text.find("[{\"Config\"").unwrap();
        let end = start + text[start..].find('\0').unwrap();
        let items: Vec<Value> = serde_json::from_str(&text[start..end]).unwrap();
        assert_eq!(items.len(), 1);
        assert_eq!(items[0]["RepoTags"], json!(["a:1", "r.io/b:2"]));
        assert_eq!(items[0]["Layers"].as_array().unwrap().len(), 3);
        let all = ExportOpts {
            platforms: PlatformSet::All,
            skip_docker_manifest: true,
            ..opts
        };
        let data = exported(&store, &images, &all).await.unwrap();
        assert!(!String::from_utf8_lossy(&data).contains("[{\"Config\""));
        assert!(imported(data).await.0.has(&other.digest));
    }

    #[tokio::test]
    async fn failures_on_either_side_are_told() {
        let store = Store::default();
        let platform = types::Platform::host().to_string();
        let mine = image(&store, &platform, &[&[1; 9_000_000]]).await;
        let images = [("a:1".to_owned(), mine.clone())];
        let sink = Sink(Arc::default(), Some(1_000_000));
        let opts = ExportOpts::default();
        let error = export(&store, &images, &opts, Box::new(sink))
            .await
            .unwrap_err();
        assert!(error.to_string().starts_with("write archive"), "{error}");
        let manifest = crate::read_manifest(&store, &mine).await.unwrap();
        store.delete(&manifest.layers[0].digest).await.unwrap();
        let error = exported(&store, &images, &opts).await.unwrap_err();
        assert!(error.is_not_found(), "{error}");
    }
}
