//! Content as one namespace sees it.
//!
//! Invariant: a blob is here exactly when it has a record here, whatever the backend holds. Between the
//! backend's commit of a digest and its record, the digest's gate is held, so the collector cannot
//! take the file away.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::content::{Blob, ContentStore, Ingest, IngestSpec, Writer};
use async_trait::async_trait;
use types::{
    BlobInfo, Context as _, Digest, Error, Event, Fields, Filter, IngestRef, IngestStatus, Labels,
    Namespace, Resource, Result, Scope,
};

use crate::db::{Marks, WriteTx};
use crate::ingest::{ScopedIngest, Source};
use crate::key::{Bucket, all, names, own};
use crate::kv::{Flow, Read};
use crate::record::{BlobRecord, IngestRecord};
use crate::{Metadata, Policy, gc, leases, mask, namespaces};

/// How long an ingest without a lease waits for its writer to come back.
pub(crate) const INGEST_LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The content of one namespace.
#[derive(Clone, Debug)]
pub(crate) struct ScopedContent {
    pub(crate) metadata: Metadata,
    pub(crate) scope: Scope,
    /// Ingests outlive their lease by a day, for who comes back to them.
    is_patient: bool,
}

impl ScopedContent {
    pub(crate) fn new(metadata: Metadata, scope: Scope) -> Self {
        Self {
            metadata,
            scope,
            is_patient: false,
        }
    }

    /// The same, whose ingests wait for their writer as those without a lease do, also when the lease
    /// is gone.
    pub(crate) fn patient(self) -> Self {
        Self {
            is_patient: true,
            ..self
        }
    }

    fn backend(&self) -> &dyn ContentStore {
        self.metadata.0.content.as_ref()
    }

    /// The backend's blob when the namespace may link it as it is: `(digest, size)`.
    async fn shared(&self, spec: &IngestSpec) -> Result<Option<(Digest, u64)>> {
        let Some(digest) = &spec.expected else {
            return Ok(None);
        };
        if self.metadata.0.policy == Policy::Isolated && !self.offered(digest)? {
            return Ok(None);
        }
        let Some(info) = self.backend().info(digest).await.absent_ok()? else {
            return Ok(None);
        };
        let fits = spec
            .total
            .is_none_or(|total| total == 0 || total == info.size);
        Ok(fits.then(|| (digest.clone(), info.size)))
    }

    /// True when a shareable namespace has the blob.
    fn offered(&self, digest: &Digest) -> Result<bool> {
        let snapshot = self.metadata.0.db.kv.read()?;
        for namespace in namespaces::known(&snapshot)? {
            if snapshot.has(&own(Bucket::Blob, &namespace, digest.as_str()))?
                && namespaces::is_shareable(&snapshot, &namespace)?
            {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The ingest's record, made or renewed; `None` when the expected blob is here already, which
    /// then has joined the lease.
    async fn enter(
        &self,
        spec: &IngestSpec,
        shared: Option<&Digest>,
    ) -> Result<Option<IngestRecord>> {
        let fresh = self.metadata.0.db.next().await?;
        let scope = self.scope.clone();
        let spec = spec.clone();
        let shared = shared.cloned();
        let is_patient = self.is_patient;
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let namespace = &scope.namespace;
            if let Some(expected) = spec.expected
                && tx.has(&own(Bucket::Blob, namespace, expected.as_str()))?
            {
                leases::add_resource(tx, &scope, &Resource::Content(expected))?;
                return Ok(None);
            }
            tx.touch(namespace)?;
            let at = own(Bucket::Ingest, namespace, spec.reference.as_str());
            let known = tx
                .get(&at)?
                .as_deref()
                .map(IngestRecord::decode)
                .transpose()?;
            let resource = Resource::Ingest(spec.reference.clone());
            let leased = leases::add_resource(tx, &scope, &resource)?;
            let mut record = known.unwrap_or_else(|| IngestRecord {
                backend: format!("{namespace}/{fresh}/{}", spec.reference),
                expires_at: None,
                expected: None,
            });
            if !leased || is_patient {
                record.expires_at = Some(SystemTime::now() + INGEST_LIFETIME);
            }
            record.expected = shared;
            tx.expires(record.expires_at);
            tx.put(at, record.encode());
            Ok(Some(record))
        };
        self.metadata.0.db.write(change).await
    }

    /// A writer of the backend.
    async fn writer(&self, spec: &IngestSpec, backend: &IngestRef) -> Result<Box<dyn Ingest>> {
        let spec_there = IngestSpec {
            reference: backend.clone(),
            total: spec.total,
            // Whether the backend has the blob must not show here.
            expected: None,
        };
        let writer = self.backend().ingest(spec_there).await;
        writer.map_err(|e| e.ctx(format!("ingest {:?}", spec.reference.as_str())))
    }

    /// Removes the record of an ingest; with `backend` only the one of that name there.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) async fn forget(
        &self,
        reference: &IngestRef,
        backend: Option<&IngestRef>,
    ) -> Result<IngestRecord> {
        let scope = self.scope.clone();
        let reference = reference.clone();
        let backend = backend.cloned();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let missing = || Error::not_found(format_args!("reference {reference}"));
            let at = own(Bucket::Ingest, &scope.namespace, reference.as_str());
            let record = IngestRecord::decode(&tx.get(&at)?.ok_or_else(missing)?)?;
            if backend.is_some_and(|backend| backend.as_str() != record.backend) {
                return Err(missing());
            }
            tx.remove(at);
            leases::drop_resource(tx, &scope, &Resource::Ingest(reference));
            tx.mark_content();
            Ok(record)
        };
        self.metadata.0.db.write(change).await
    }

    /// The backend may hold something without a record.
    pub(crate) fn leave_to_collector(&self) {
        self.metadata.0.db.outlet.add(Marks {
            deletions: 1,
            content: true,
            ..Marks::default()
        });
    }

    fn require(&self, digest: &Digest) -> Result<BlobRecord> {
        load(
            &self.metadata.0.db.kv.read()?,
            &self.scope.namespace,
            digest,
        )
    }
}

#[async_trait]
impl ContentStore for ScopedContent {
    async fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        Ok(info(digest.clone(), self.require(digest)?))
    }

    async fn update(&self, digest: &Digest, labels: Labels, fields: &Fields) -> Result<BlobInfo> {
        let namespace = self.scope.namespace.clone();
        let digest = digest.clone();
        let fields = fields.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let mut record = load(&**tx, &namespace, &digest)?;
            let what = format!("content info {:?}", digest.as_str());
            let before = record.labels.clone();
            record.labels = mask::labels(record.labels, &labels, &fields, &what)
                .map_err(|e| e.ctx("info.Labels"))?;
            record.updated_at = SystemTime::now();
            if before
                .keys()
                .any(|key| record.labels.get(key) != before.get(key))
            {
                tx.mark();
            }
            tx.expires(gc::condition_due(&record.labels));
            tx.put(
                own(Bucket::Blob, &namespace, digest.as_str()),
                record.encode(),
            );
            Ok(info(digest, record))
        };
        self.metadata.0.db.write(change).await
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<BlobInfo>> {
        let mut found = Vec::new();
        let snapshot = self.metadata.0.db.kv.read()?;
        snapshot.scan(
            &all(Bucket::Blob, &self.scope.namespace),
            &mut |rest, record| {
                let [digest] = names(rest)?;
                let info = info(digest.parse()?, BlobRecord::decode(record)?);
                if filter.matches(&info) {
                    found.push(info);
                }
                Ok(Flow::Continue(()))
            },
        )?;
        Ok(found)
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let scope = self.scope.clone();
        let digest = digest.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            load(&**tx, &scope.namespace, &digest)?;
            tx.remove(own(Bucket::Blob, &scope.namespace, digest.as_str()));
            leases::drop_resource(tx, &scope, &Resource::Content(digest.clone()));
            tx.mark_content();
            tx.event(&scope.namespace, Event::ContentDelete { digest });
            Ok(())
        };
        self.metadata.0.db.write(change).await
    }

    async fn open(&self, digest: &Digest) -> Result<Arc<dyn Blob>> {
        self.require(digest)?;
        self.backend().open(digest).await
    }

    async fn ingest(&self, spec: IngestSpec) -> Result<Box<dyn Ingest>> {
        loop {
            leases::check(&self.metadata.0.db.kv.read()?, &self.scope)?;
            // From the look at the backend's blob until the record says that it is wanted.
            let gate = match &spec.expected {
                Some(digest) => Some(self.metadata.0.digests.together(digest.as_str()).await),
                None => None,
            };
            let shared = self.shared(&spec).await?;
            let wanted = shared.as_ref().map(|(digest, _)| digest);
            let Some(record) = self.enter(&spec, wanted).await? else {
                let digest = spec.expected.map(|d| d.to_string()).unwrap_or_default();
                return Err(Error::already_exists(format_args!("content {digest}")));
            };
            drop(gate);
            let backend: IngestRef = record.backend.parse()?;
            let source = match shared {
                Some((digest, size)) => Source::Shared { digest, size },
                None => {
                    let writer = self.writer(&spec, &backend).await?;
                    // Who had it until now may have committed it since the look: not twice.
                    if self.shared(&spec).await?.is_some() {
                        writer.abandon().await?;
                        continue;
                    }
                    Source::Own(writer)
                }
            };
            let (content, spec) = (self.clone(), spec);
            return Ok(Box::new(ScopedIngest::new(content, spec, backend, source)));
        }
    }

    async fn released(&self, reference: &IngestRef, limit: Duration) -> Writer {
        let at = own(Bucket::Ingest, &self.scope.namespace, reference.as_str());
        let record = self.metadata.0.db.kv.read().and_then(|kv| kv.get(&at));
        let record = record.ok().flatten().map(|r| IngestRecord::decode(&r));
        match record {
            Some(Ok(record)) => match record.backend.parse() {
                Ok(backend) => self.backend().released(&backend, limit).await,
                Err(_) => Writer::Gone,
            },
            _ => Writer::Gone,
        }
    }

    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let missing = || Error::not_found(format_args!("reference {reference}"));
        let at = own(Bucket::Ingest, &self.scope.namespace, reference.as_str());
        let record = self
            .metadata
            .0
            .db
            .kv
            .read()?
            .get(&at)?
            .ok_or_else(missing)?;
        let backend = IngestRecord::decode(&record)?.backend.parse()?;
        let status = self.backend().status(&backend).await.absent_ok()?;
        let mut status = status.ok_or_else(missing)?;
        status.reference = reference.clone();
        Ok(status)
    }

    async fn statuses(&self, filter: &Filter) -> Result<Vec<IngestStatus>> {
        let mut known = Vec::new();
        let prefix = all(Bucket::Ingest, &self.scope.namespace);
        self.metadata
            .0
            .db
            .kv
            .read()?
            .scan(&prefix, &mut |rest, record| {
                let [reference] = names(rest)?;
                let reference: IngestRef = reference.parse()?;
                let backend: IngestRef = IngestRecord::decode(record)?.backend.parse()?;
                known.push((reference, backend));
                Ok(Flow::Continue(()))
            })?;
        let mut found = Vec::new();
        for (reference, backend) in known {
            let Some(mut status) = self.backend().status(&backend).await.absent_ok()? else {
                continue;
            };
            status.reference = reference;
            if filter.matches(&status) {
                found.push(status);
            }
        }
        Ok(found)
    }

    async fn abort(&self, reference: &IngestRef) -> Result<()> {
        let record = self.forget(reference, None).await?;
        let gone = self.backend().abort(&record.backend.parse()?).await;
        gone.absent_ok().map(drop)
    }
}

/// The record of a blob that the namespace has.
pub(crate) fn load(tx: &dyn Read, namespace: &Namespace, digest: &Digest) -> Result<BlobRecord> {
    let record = tx.get(&own(Bucket::Blob, namespace, digest.as_str()))?;
    let record = record.ok_or_else(|| Error::not_found(format_args!("content digest {digest}")))?;
    BlobRecord::decode(&record)
}

fn info(digest: Digest, record: BlobRecord) -> BlobInfo {
    BlobInfo {
        digest,
        size: record.size,
        created_at: record.created_at,
        updated_at: record.updated_at,
        labels: record.labels,
    }
}

#[cfg(test)]
mod tests;
