//! Whole documents in and out of a content store, within limits.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use content::{Blob, ContentStore, Hasher, IngestSpec};
use types::{Context as _, Descriptor, Digest, Error, Labels, Result};

/// Bytes asked for at a time.
const READ: usize = 1 << 20;

/// The sha256 digest of `data`.
///
/// # Errors
/// `Internal`: never in practice.
pub fn digest_of(data: &[u8]) -> Result<Digest> {
    Hasher::digest(data)
}

/// Reads the whole blob of `descriptor`, which may be `limit` bytes at most.
///
/// # Errors
/// `NotFound`; `ResourceExhausted` beyond the limit; `FailedPrecondition` when the blob is not as long
/// as its descriptor says; `DataLoss` when it ends early.
pub async fn read_blob(
    store: &dyn ContentStore,
    descriptor: &Descriptor,
    limit: u64,
) -> Result<Bytes> {
    let digest = &descriptor.digest;
    if descriptor.size > limit {
        return Err(Error::resource_exhausted(format_args!(
            "{digest} of {} bytes is larger than the limit of {limit} bytes",
            descriptor.size
        )));
    }
    let blob = open_blob(store, descriptor).await?;
    let mut data = BytesMut::new();
    let mut at = 0;
    while at < descriptor.size {
        let want = usize::try_from(descriptor.size - at).map_or(READ, |rest| rest.min(READ));
        let part = blob.read_at(at, want).await?;
        if part.is_empty() {
            return Err(Error::data_loss(format_args!("{digest} ends at byte {at}")));
        }
        at += part.len() as u64;
        data.extend_from_slice(&part);
    }
    Ok(data.freeze())
}

/// A blob of the store that is as long as its descriptor says.
///
/// # Errors
/// `NotFound`; `FailedPrecondition` when it has another length.
pub(crate) async fn open_blob(
    store: &dyn ContentStore,
    descriptor: &Descriptor,
) -> Result<Arc<dyn Blob>> {
    let digest = &descriptor.digest;
    let blob = store
        .open(digest)
        .await
        .ctx_with(|| format!("content {digest}"))?;
    if blob.size() != descriptor.size {
        return Err(Error::failed_precondition(format_args!(
            "{digest} has {} bytes, its descriptor says {}",
            blob.size(),
            descriptor.size
        )));
    }
    Ok(blob)
}

/// Stores a small document under its digest; that it is there already is fine.
///
/// # Errors
/// Those of the store.
pub async fn put_blob(store: &dyn ContentStore, data: Bytes, labels: Labels) -> Result<Digest> {
    let digest = digest_of(&data)?;
    let size = data.len() as u64;
    let spec = IngestSpec {
        reference: format!("document-{:016x}-{digest}", rand::random::<u64>()).try_into()?,
        total: Some(size),
        expected: Some(digest.clone()),
    };
    let reference = spec.reference.clone();
    let mut ingest = match store.ingest(spec).await {
        Ok(ingest) => ingest,
        Err(error) if error.is_already_exists() => return Ok(digest),
        Err(error) => return Err(error),
    };
    let written = async {
        // A store that shares the blob with another namespace has all of it from the start.
        if size == 0 || ingest.status().offset != size {
            ingest.write(data).await?;
        }
        ingest
            .commit(Some(size), Some(digest.clone()), labels)
            .await
    };
    match written.await {
        Err(error) if !error.is_already_exists() => {
            let _gone = store.abort(&reference).await;
            Err(error)
        }
        _ => Ok(digest),
    }
}
