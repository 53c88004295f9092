//! A content store in memory, for tests, and images to put into it.

#![expect(
    clippy::unwrap_used,
    reason = "a failed check is a panic: this is test code that other crates call"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use async_trait::async_trait;
use bytes::Bytes;
use content::{Blob, ContentStore, Ingest, IngestSpec};
use types::{
    BlobInfo, Descriptor, Digest, Error, Fields, Filter, IngestRef, IngestStatus, Labels, Result,
    media_type as mt,
};

use crate::blob::{digest_of, put_blob};

#[derive(Default)]
struct Tables {
    blobs: BTreeMap<Digest, (Bytes, Labels)>,
    ingests: BTreeMap<String, Vec<u8>>,
    writers: BTreeSet<String>,
    is_full: bool,
}

/// The store; clones share what is in it.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Tables>>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    /// Names of the ingests.
    #[must_use]
    pub fn ingests(&self) -> Vec<String> {
        self.0.lock().unwrap().ingests.keys().cloned().collect()
    }

    /// From now on nothing more is written: each write fails with `ResourceExhausted` "store is full".
    pub fn fill(&self) {
        self.0.lock().unwrap().is_full = true;
    }

    /// True when the blob is there.
    #[must_use]
    pub fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap().blobs.contains_key(digest)
    }

    /// Stores a blob.
    pub async fn put(&self, media_type: &str, data: &[u8]) -> Descriptor {
        let digest = put_blob(self, Bytes::copy_from_slice(data), Labels::new())
            .await
            .unwrap();
        Descriptor {
            media_type: media_type.into(),
            digest,
            size: data.len() as u64,
            annotations: Labels::new(),
        }
    }

    /// Stores an index of `entries`.
    pub async fn index(&self, entries: &[(&Descriptor, Option<&str>)]) -> Descriptor {
        let list: Vec<String> = entries
            .iter()
            .map(|(d, platform)| {
                let platform = platform.map_or(String::new(), |p| {
                    let (os, arch) = p.split_once('/').unwrap_or((p, p));
                    format!(r#","platform":{{"os":"{os}","architecture":"{arch}"}}"#)
                });
                format!("{{{}{platform}}}", fields_of(d))
            })
            .collect();
        let text = format!(r#"{{"schemaVersion":2,"manifests":[{}]}}"#, list.join(","));
        self.put(mt::OCI_INDEX, text.as_bytes()).await
    }
}

/// The fields of a descriptor in JSON.
#[must_use]
pub fn fields_of(d: &Descriptor) -> String {
    format!(
        r#""mediaType":"{}","digest":"{}","size":{}"#,
        d.media_type, d.digest, d.size
    )
}

/// Config and manifest of an image with uncompressed layers.
pub async fn image(store: &Store, platform: &str, layers: &[&[u8]]) -> Descriptor {
    let (os, architecture) = platform.split_once('/').unwrap();
    let (mut ids, mut list) = (Vec::new(), Vec::new());
    for layer in layers {
        let d = store.put(mt::OCI_LAYER, layer).await;
        ids.push(format!("{:?}", d.digest.as_str()));
        list.push(format!("{{{}}}", fields_of(&d)));
    }
    let config = format!(
        r#"{{"os":"{os}","architecture":"{architecture}","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        ids.join(",")
    );
    let config = store.put(mt::OCI_CONFIG, config.as_bytes()).await;
    let manifest = format!(
        r#"{{"schemaVersion":2,"config":{{{}}},"layers":[{}]}}"#,
        fields_of(&config),
        list.join(",")
    );
    store.put(mt::OCI_MANIFEST, manifest.as_bytes()).await
}

#[async_trait]
impl ContentStore for Store {
    async fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        let tables = self.0.lock().unwrap();
        let Some((data, labels)) = tables.blobs.get(digest) else {
            return Err(Error::not_found(digest));
        };
        Ok(BlobInfo {
            digest: digest.clone(),
            size: data.len() as u64,
            created_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
            labels: labels.clone(),
        })
    }

    async fn update(&self, digest: &Digest, labels: Labels, fields: &Fields) -> Result<BlobInfo> {
        {
            let mut tables = self.0.lock().unwrap();
            let Some((_, kept)) = tables.blobs.get_mut(digest) else {
                return Err(Error::not_found(digest));
            };
            for path in fields.iter() {
                let key = path.strip_prefix("labels.").unwrap();
                kept.set(key, labels.get(key).map_or("", String::as_str));
            }
        }
        self.info(digest).await
    }

    async fn list(&self, _: &Filter) -> Result<Vec<BlobInfo>> {
        Err(Error::not_implemented("list"))
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        self.0.lock().unwrap().blobs.remove(digest);
        Ok(())
    }

    async fn open(&self, digest: &Digest) -> Result<Arc<dyn Blob>> {
        match self.0.lock().unwrap().blobs.get(digest) {
            Some((data, _)) => Ok(Arc::new(Open(data.clone()))),
            None => Err(Error::not_found(digest)),
        }
    }

    async fn ingest(&self, spec: IngestSpec) -> Result<Box<dyn Ingest>> {
        let writer = {
            let mut tables = self.0.lock().unwrap();
            let there = |d| tables.blobs.contains_key(d);
            if spec.expected.as_ref().is_some_and(there) {
                return Err(Error::already_exists("content"));
            }
            if !tables.writers.insert(spec.reference.to_string()) {
                let locked = format_args!("ref {} locked", spec.reference);
                return Err(Error::unavailable(locked));
            }
            let name = spec.reference.to_string();
            tables.ingests.entry(name).or_default();
            Box::new(Writer {
                store: self.clone(),
                spec,
            })
        };
        // As with a store on a disk, who asked may be gone when it is said.
        tokio::task::yield_now().await;
        Ok(writer)
    }

    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let tables = self.0.lock().unwrap();
        let data = tables.ingests.get(reference.as_str());
        let data = data.ok_or_else(|| Error::not_found(reference))?;
        Ok(status(reference, data.len(), None))
    }

    async fn statuses(&self, _: &Filter) -> Result<Vec<IngestStatus>> {
        Err(Error::not_implemented("statuses"))
    }

    async fn abort(&self, reference: &IngestRef) -> Result<()> {
        let gone = self.0.lock().unwrap().ingests.remove(reference.as_str());
        gone.map(drop).ok_or_else(|| Error::not_found(reference))
    }
}

#[derive(Debug)]
struct Open(Bytes);

#[async_trait]
impl Blob for Open {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let at = usize::try_from(offset).unwrap().min(self.0.len());
        Ok(self.0.slice(at..self.0.len().min(at + len)))
    }
}

#[derive(Debug)]
struct Writer {
    store: Store,
    spec: IngestSpec,
}

impl Writer {
    fn data(&self) -> Vec<u8> {
        self.store.0.lock().unwrap().ingests[self.spec.reference.as_str()].clone()
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // A test that failed meanwhile has said so already.
        if let Ok(mut tables) = self.store.0.lock() {
            tables.writers.remove(self.spec.reference.as_str());
        }
    }
}

fn status(reference: &IngestRef, offset: usize, total: Option<u64>) -> IngestStatus {
    IngestStatus {
        reference: reference.clone(),
        offset: offset as u64,
        total: total.unwrap_or_default(),
        expected: None,
        started_at: SystemTime::UNIX_EPOCH,
        updated_at: SystemTime::UNIX_EPOCH,
    }
}

#[async_trait]
impl Ingest for Writer {
    fn status(&self) -> IngestStatus {
        status(&self.spec.reference, self.data().len(), self.spec.total)
    }

    async fn digest(&mut self) -> Result<Digest> {
        digest_of(&self.data())
    }

    async fn write(&mut self, data: Bytes) -> Result<()> {
        let mut tables = self.store.0.lock().unwrap();
        if tables.is_full {
            return Err(Error::resource_exhausted("store is full"));
        }
        tables
            .ingests
            .get_mut(self.spec.reference.as_str())
            .unwrap()
            .extend_from_slice(&data);
        Ok(())
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        let mut tables = self.store.0.lock().unwrap();
        let data = tables
            .ingests
            .get_mut(self.spec.reference.as_str())
            .unwrap();
        data.truncate(usize::try_from(size).unwrap());
        Ok(())
    }

    async fn commit(
        self: Box<Self>,
        size: Option<u64>,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        let data = self.data();
        let digest = digest_of(&data)?;
        if size.is_some_and(|s| s != data.len() as u64)
            || expected.is_some_and(|expected| expected != digest)
        {
            return Err(Error::failed_precondition(format_args!(
                "unexpected commit of {digest}"
            )));
        }
        let mut tables = self.store.0.lock().unwrap();
        tables.ingests.remove(self.spec.reference.as_str());
        if tables.blobs.contains_key(&digest) {
            return Err(Error::already_exists(digest));
        }
        tables.blobs.insert(digest.clone(), (data.into(), labels));
        Ok(digest)
    }

    async fn abandon(self: Box<Self>) -> Result<()> {
        let mut tables = self.store.0.lock().unwrap();
        tables.ingests.remove(self.spec.reference.as_str());
        Ok(())
    }
}
