//! A content store in memory, for tests, and images to put into it.

use std::collections::BTreeMap;
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
}

#[derive(Clone, Default)]
pub(crate) struct Store(Arc<Mutex<Tables>>);

impl fmt::Debug for Store {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Store")
    }
}

impl Store {
    pub(crate) fn ingests(&self) -> Vec<String> {
        self.0.lock().unwrap().ingests.keys().cloned().collect()
    }

    pub(crate) fn has(&self, digest: &Digest) -> bool {
        self.0.lock().unwrap().blobs.contains_key(digest)
    }

    pub(crate) async fn put(&self, media_type: &str, data: &[u8]) -> Descriptor {
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

    pub(crate) async fn index(&self, entries: &[(&Descriptor, Option<&str>)]) -> Descriptor {
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

pub(crate) fn fields_of(d: &Descriptor) -> String {
    format!(
        r#""mediaType":"{}","digest":"{}","size":{}"#,
        d.media_type, d.digest, d.size
    )
}

/// Config and manifest of an image with uncompressed layers.
pub(crate) async fn image(store: &Store, platform: &str, layers: &[&[u8]]) -> Descriptor {
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
        let mut tables = self.0.lock().unwrap();
        if spec
            .expected
            .as_ref()
            .is_some_and(|d| tables.blobs.contains_key(d))
        {
            return Err(Error::already_exists("content"));
        }
        tables
            .ingests
            .entry(spec.reference.to_string())
            .or_default();
        Ok(Box::new(Writer {
            store: self.clone(),
            spec,
        }))
    }

    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        Err(Error::not_found(reference))
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

#[async_trait]
impl Ingest for Writer {
    fn status(&self) -> IngestStatus {
        IngestStatus {
            reference: self.spec.reference.clone(),
            offset: self.data().len() as u64,
            total: self.spec.total.unwrap_or_default(),
            expected: self.spec.expected.clone(),
            started_at: SystemTime::UNIX_EPOCH,
            updated_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn digest(&self) -> Result<Digest> {
        digest_of(&self.data())
    }

    async fn write(&mut self, data: Bytes) -> Result<()> {
        let mut tables = self.store.0.lock().unwrap();
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
}
