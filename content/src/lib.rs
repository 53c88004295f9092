//! Content store: blobs by digest, and the ingests that become blobs.
//!
//! Invariant: a blob that can be opened is complete, verified and durable. Called by `metadata`
//! (which scopes it to a namespace), `diff`, `images`, `transfer`, and over the wire by `client`.

mod hasher;
mod local;
#[cfg(any(test, feature = "testsuite"))]
pub mod testsuite;

use std::fmt;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

pub use self::hasher::Hasher;
pub use self::local::Local;
use async_trait::async_trait;
use bytes::Bytes;
use types::{BlobInfo, Digest, Error, Fields, Filter, IngestRef, IngestStatus, Labels, Result};

/// What a writer wants to write.
#[derive(Clone, Debug)]
pub struct IngestSpec {
    /// Name of the ingest; one live writer each.
    pub reference: IngestRef,
    /// Expected length in bytes, when known.
    pub total: Option<u64>,
    /// Expected digest, when known.
    pub expected: Option<Digest>,
}

/// Whether somebody writes an ingest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Writer {
    /// Nobody did at the last look.
    Gone,
    /// Somebody does.
    There,
    /// This store is not told.
    Unknown,
}

/// Blobs and ingests.
///
/// Durability: when [`Ingest::commit`] has answered, the blob survives a power cut. Every method may be
/// called concurrently. Dropping a future cancels the call and leaves nothing half-made.
#[async_trait]
pub trait ContentStore: Send + Sync + fmt::Debug {
    /// Facts of one blob.
    ///
    /// # Errors
    /// `NotFound`.
    async fn info(&self, digest: &Digest) -> Result<BlobInfo>;

    /// Replaces the labels that `fields` names (`labels`, `labels.<key>`; empty: all).
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for another field; `NotImplemented` in a store without labels.
    async fn update(&self, digest: &Digest, labels: Labels, fields: &Fields) -> Result<BlobInfo>;

    /// All blobs that pass the filter, ordered by digest.
    ///
    /// # Errors
    /// I/O.
    async fn list(&self, filter: &Filter) -> Result<Vec<BlobInfo>>;

    /// Removes a blob.
    ///
    /// # Errors
    /// `NotFound`.
    async fn delete(&self, digest: &Digest) -> Result<()>;

    /// Opens a blob for reading. The handle stays valid when the blob is deleted.
    ///
    /// # Errors
    /// `NotFound`.
    async fn open(&self, digest: &Digest) -> Result<Arc<dyn Blob>>;

    /// Begins or resumes the ingest `spec.reference`; the writer is at the end of what is there.
    ///
    /// # Errors
    /// `Unavailable` while another writer has it; `AlreadyExists` when `spec.expected` is there already.
    async fn ingest(&self, spec: IngestSpec) -> Result<Box<dyn Ingest>>;

    /// Waits until nobody writes the ingest any more, but not longer than `limit`, and says how it is
    /// then. Writes nothing. Where the answer is [`Writer::Unknown`], [`ContentStore::status`] shows
    /// whether it grows, and an attempt to write whether it is free.
    async fn released(&self, _reference: &IngestRef, limit: Duration) -> Writer {
        tokio::time::sleep(limit).await;
        Writer::Unknown
    }

    /// Where one ingest stands.
    ///
    /// # Errors
    /// `NotFound`.
    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus>;

    /// All ingests that pass the filter.
    ///
    /// # Errors
    /// I/O.
    async fn statuses(&self, filter: &Filter) -> Result<Vec<IngestStatus>>;

    /// Removes an ingest and its data.
    ///
    /// # Errors
    /// `NotFound`.
    async fn abort(&self, reference: &IngestRef) -> Result<()>;

    /// What is among its files and belongs to no blob and no ingest that a call can name; true for what
    /// [`ContentStore::cleanup`] removes. What is being made or removed at this moment may be among it.
    ///
    /// # Errors
    /// `NotImplemented` where this cannot be told; I/O.
    async fn strangers(&self) -> Result<Vec<(PathBuf, bool)>> {
        Err(Error::not_implemented("strangers"))
    }

    /// Frees what no call can name (half-made ingests that a crash has left).
    ///
    /// # Errors
    /// `NotImplemented` where there is nothing to do.
    async fn cleanup(&self) -> Result<()> {
        Err(Error::not_implemented("cleanup"))
    }
}

/// An open blob.
#[async_trait]
pub trait Blob: Send + Sync + fmt::Debug {
    /// Length in bytes.
    fn size(&self) -> u64;

    /// Up to `len` bytes from `offset`; shorter only at the end, empty past it.
    ///
    /// # Errors
    /// I/O; `DataLoss` when the file ends before its length.
    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes>;

    /// Waits until the bytes up to `end` are in the [`Blob::file`]: those of a blob that is being written
    /// come in one by one.
    ///
    /// # Errors
    /// `Unavailable` when they will not come.
    async fn ready(&self, _end: u64) -> Result<()> {
        Ok(())
    }

    /// The file, when the blob is local: for splice, sendfile and blocking readers. What is beyond the
    /// bytes that [`Blob::ready`] has waited for counts for nothing.
    fn file(&self) -> Option<&File> {
        None
    }
}

/// A writer on an ingest. Dropping it keeps the data for a later resume and frees the name.
#[async_trait]
pub trait Ingest: Send + fmt::Debug {
    /// Where it stands.
    fn status(&self) -> IngestStatus;

    /// Digest of what was written so far (sha256 unless the expected digest is of another kind).
    ///
    /// # Errors
    /// I/O.
    async fn digest(&mut self) -> Result<Digest>;

    /// Appends.
    ///
    /// # Errors
    /// I/O, `ResourceExhausted` on a full disk.
    async fn write(&mut self, data: Bytes) -> Result<()>;

    /// What is written, as a blob of `total` bytes for a reader that goes along; reads wait for their
    /// bytes. When the writer is gone before, or cuts back, they fail with `Unavailable`. None where the
    /// store cannot do that.
    ///
    /// # Errors
    /// I/O.
    fn follow(&self, _total: u64) -> Result<Option<Arc<dyn Blob>>> {
        Ok(None)
    }

    /// Cuts back to `size` bytes (0: start anew).
    ///
    /// # Errors
    /// `OutOfRange` beyond the current offset; `NotImplemented` for sizes that a store cannot do.
    async fn truncate(&mut self, size: u64) -> Result<()>;

    /// Verifies, makes durable and visible, and returns the digest. The ingest is gone afterwards,
    /// also on `AlreadyExists`.
    ///
    /// # Errors
    /// `FailedPrecondition` when size or digest are not as expected (the ingest stays);
    /// `AlreadyExists` when the blob is there.
    async fn commit(
        self: Box<Self>,
        size: Option<u64>,
        expected: Option<Digest>,
        labels: Labels,
    ) -> Result<Digest>;

    /// Gives up: the ingest and its data are gone, and only then is the name free. Where the writer is
    /// dropped and then aborted by name, another writer may have begun in between and loses its data.
    ///
    /// # Errors
    /// I/O; the data may then stay.
    async fn abandon(self: Box<Self>) -> Result<()>;
}
