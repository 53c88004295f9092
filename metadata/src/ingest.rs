//! A writer on an ingest of one namespace.
//!
//! Invariant: after a commit the namespace has the blob, the ingest's record is gone and the blob is in
//! the scope's lease, in one transaction, also when the answer is `AlreadyExists`. As long as it is written
//! to, it does not expire.
//!
//! ```text
//! Shared (a blob that is only linked) --write/truncate--> Own (a writer of the backend) --commit--> blob
//!    \------------------------------commit: link------------------------------------------------^
//! ```

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use ::content::{Blob, Ingest, IngestSpec};
use async_trait::async_trait;
use bytes::Bytes;
use recorder::On;
use tokio::time::Instant;
use types::{
    Context as _, Digest, Error, Event, IngestRef, IngestStatus, Labels, Resource, Result,
};

use crate::content::{INGEST_LIFETIME, ScopedContent};
use crate::db::WriteTx;
use crate::detach::detached;
use crate::key::{Bucket, own};
use crate::kv::Read as _;
use crate::record::{BlobRecord, IngestRecord};
use crate::{gc, leases};

/// Piece in which a shared blob is copied when somebody writes to it after all.
const COPY: usize = 1 << 20;

/// How often the expiry of an ingest that is written to is put off: seldom beside how long it lasts.
pub(crate) const RENEWAL: Duration = Duration::from_secs(60 * 60);

/// Where an ingest's bytes are.
pub(crate) enum Source {
    /// In a writer of the backend.
    Own(Box<dyn Ingest>),
    /// In a blob of the backend that the namespace will link.
    Shared {
        /// The blob.
        digest: Digest,
        /// Its length.
        size: u64,
    },
}

/// The writer.
pub(crate) struct ScopedIngest {
    content: ScopedContent,
    spec: IngestSpec,
    /// The ingest's name in the backend.
    backend: IngestRef,
    source: Source,
    started_at: SystemTime,
    /// When its expiry was put off last.
    renewed: Instant,
}

impl ScopedIngest {
    pub(crate) fn new(
        content: ScopedContent,
        spec: IngestSpec,
        backend: IngestRef,
        source: Source,
    ) -> Self {
        Self {
            content,
            spec,
            backend,
            source,
            started_at: SystemTime::now(),
            renewed: Instant::now(),
        }
    }

    /// Puts the expiry off, if it has one, and it is time: what is written to is not abandoned.
    async fn renew(&mut self) {
        if self.renewed.elapsed() < RENEWAL {
            return;
        }
        self.renewed = Instant::now();
        let namespace = &self.content.scope.namespace;
        let at = own(Bucket::Ingest, namespace, self.spec.reference.as_str());
        let backend = self.backend.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let Some(found) = tx.get(&at)? else {
                return Ok(());
            };
            let mut record = IngestRecord::decode(&found)?;
            if record.expires_at.is_some() && record.backend == backend.as_str() {
                record.expires_at = Some(SystemTime::now() + INGEST_LIFETIME);
                tx.expires(record.expires_at);
                tx.put(at, record.encode());
            }
            Ok(())
        };
        // The bytes do not depend on it, and there is a next time.
        if let Err(error) = self.content.metadata.0.db.write(change).await {
            let reference = self.spec.reference.as_str();
            tracing::warn!(%error, reference, "cannot put off the expiry of an ingest");
        }
    }

    /// Turns a link into a writer of its own that holds the blob's first `keep` bytes.
    async fn unshare(&mut self, keep: u64) -> Result<&mut Box<dyn Ingest>> {
        if let Source::Shared { digest, .. } = &self.source {
            let store = &self.content.metadata.0.content;
            let blob = store.open(digest).await?;
            let mut writer = store
                .ingest(IngestSpec {
                    reference: self.backend.clone(),
                    total: None,
                    expected: None,
                })
                .await?;
            writer.truncate(0).await?;
            let mut done = 0;
            while done < keep {
                let want = usize::try_from(keep - done).map_or(COPY, |left| left.min(COPY));
                let piece = blob.read_at(done, want).await?;
                if piece.is_empty() {
                    break;
                }
                done += piece.len() as u64;
                writer.write(piece).await?;
            }
            self.source = Source::Own(writer);
        }
        match &mut self.source {
            Source::Own(writer) => Ok(writer),
            Source::Shared { .. } => Err(Error::internal("ingest is still shared")),
        }
    }

    /// The blob's record, the end of the ingest's, and the lease: one transaction.
    async fn link(
        content: &ScopedContent,
        reference: IngestRef,
        digest: Digest,
        size: u64,
        labels: Labels,
    ) -> Result<Digest> {
        let scope = content.scope.clone();
        let blob = digest.clone();
        let change = move |tx: &mut WriteTx<'_, '_>| {
            let namespace = &scope.namespace;
            tx.touch(namespace)?;
            tx.remove(own(Bucket::Ingest, namespace, reference.as_str()));
            leases::drop_resource(tx, &scope, &Resource::Ingest(reference));
            leases::add_resource(tx, &scope, &Resource::Content(blob.clone()))?;
            let at = own(Bucket::Blob, namespace, blob.as_str());
            if tx.has(&at)? {
                return Ok(false);
            }
            let now = SystemTime::now();
            let record = BlobRecord {
                size,
                labels: labels.without_empty(),
                created_at: now,
                updated_at: now,
            };
            tx.expires(gc::condition_due(&record.labels));
            tx.put(at, record.encode());
            tx.event(namespace, Event::ContentCreate { digest: blob, size });
            Ok(true)
        };
        let is_new = content.metadata.0.db.write(change).await?;
        content.metadata.0.recorded(digest.as_str());
        if is_new {
            Ok(digest)
        } else {
            Err(Error::already_exists(format_args!("content {digest}")))
        }
    }

    fn mismatch(&self, what: impl fmt::Display) -> Error {
        Error::failed_precondition(format_args!("{:?} {what}", self.spec.reference.as_str()))
    }
}

#[async_trait]
impl Ingest for ScopedIngest {
    fn status(&self) -> IngestStatus {
        let mut status = match &self.source {
            Source::Own(writer) => writer.status(),
            Source::Shared { size, .. } => IngestStatus {
                reference: self.spec.reference.clone(),
                offset: *size,
                total: *size,
                expected: None,
                started_at: self.started_at,
                updated_at: self.started_at,
            },
        };
        status.reference = self.spec.reference.clone();
        status.expected.clone_from(&self.spec.expected);
        status
    }

    async fn digest(&mut self) -> Result<Digest> {
        match &mut self.source {
            Source::Own(writer) => writer.digest().await,
            Source::Shared { digest, .. } => Ok(digest.clone()),
        }
    }

    async fn write(&mut self, data: Bytes) -> Result<()> {
        if data.is_empty() {
            return Ok(());
        }
        self.renew().await;
        let keep = match &self.source {
            Source::Shared { size, .. } => *size,
            Source::Own(_) => 0,
        };
        self.unshare(keep).await?.write(data).await
    }

    fn follow(&self, total: u64) -> Result<Option<Arc<dyn Blob>>> {
        match &self.source {
            Source::Own(writer) => writer.follow(total),
            Source::Shared { .. } => Ok(None),
        }
    }

    async fn truncate(&mut self, size: u64) -> Result<()> {
        if let Source::Shared { size: have, .. } = &self.source
            && size > *have
        {
            return Err(Error::out_of_range(format_args!(
                "truncate to {size} beyond offset {have}"
            )));
        }
        let writer = self.unshare(size).await?;
        writer.truncate(size).await
    }

    async fn commit(
        mut self: Box<Self>,
        size: Option<u64>,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest> {
        labels.validate().map_err(|e| e.ctx("info.Labels"))?;
        // Before the backend: a request with a lease that is gone must not commit anything.
        leases::check(&self.content.metadata.0.db.kv.read()?, &self.content.scope)?;
        let found = self.status().offset;
        if size.is_some_and(|size| size > 0 && size != found) {
            return Err(self.mismatch(format_args!(
                "failed size validation: {found} != {}",
                size.unwrap_or(0)
            )));
        }
        let digest = match (&expected, &self.source) {
            (Some(expected), Source::Shared { digest, .. }) if expected != digest => {
                return Err(self.mismatch("unexpected digest"));
            }
            (Some(expected), _) => expected.clone(),
            (None, _) => self.digest().await?,
        };
        let gate = self
            .content
            .metadata
            .0
            .digests
            .together(digest.as_str())
            .await;
        let Self {
            content,
            spec,
            source,
            ..
        } = *self;
        // Whoever goes away now: no blob without its record.
        let publish = async move {
            if let Source::Shared { digest, .. } = &source {
                // It may have been found damaged, and taken away, since this ingest began.
                content.metadata.0.content.info(digest).await?;
            }
            if let Source::Own(writer) = source {
                let _flush = recorder::stage("blob to disk", || On::named(digest.as_str()));
                let committed = writer.commit(Some(found), Some(digest.clone()), Labels::new());
                match committed.await {
                    // Another namespace has it, or this one before a crash: link it.
                    Err(e) if e.is_already_exists() => {}
                    other => drop(other?),
                }
            }
            let linked = Self::link(&content, spec.reference, digest, found, labels).await;
            drop(gate);
            // The lease may have ended meanwhile: then nobody names what was committed.
            if linked.as_ref().is_err_and(|e| !e.is_already_exists()) {
                content.leave_to_collector();
            }
            linked
        };
        detached(publish).await
    }

    async fn abandon(self: Box<Self>) -> Result<()> {
        let Self {
            content,
            spec,
            backend,
            source,
            ..
        } = *self;
        // The record first: who comes now makes another, with another name in the backend.
        let gone = async move {
            let gone = content.forget(&spec.reference, Some(&backend)).await;
            gone.absent_ok()?;
            match source {
                Source::Own(writer) => writer.abandon().await,
                Source::Shared { .. } => Ok(()),
            }
        };
        detached(gone).await
    }
}

impl fmt::Debug for ScopedIngest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ScopedIngest")
            .field("namespace", &self.content.scope.namespace)
            .field("reference", &self.spec.reference)
            .finish_non_exhaustive()
    }
}
