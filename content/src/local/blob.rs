//! An open blob of the local store.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use types::{Digest, Error, Result};

use super::blocking;
use super::layout::{Layout, absent, os};
use crate::Blob;

/// An open file under `blobs/`; stays readable when the blob is deleted.
#[derive(Debug)]
pub(super) struct LocalBlob {
    file: Arc<File>,
    digest: Digest,
    size: u64,
    pool: Arc<Pool>,
}

/// Buffers that were read into and are free again. Large ones are dear: the allocator gets each from
/// the kernel, page by page, and gives it back.
#[derive(Debug, Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

/// Buffers that are kept: the one before the one that is being sent, when the next is read. Who bounds
/// what is read counts on no more.
const KEPT: usize = 1;
/// A buffer is used for what is not much smaller: it is held as a whole as long as any of it is.
const SLACK: usize = 2;

/// A buffer that goes back when nobody looks at it any more.
struct Pooled {
    data: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Pooled {
    fn take(pool: Arc<Pool>, len: usize) -> Self {
        let mut data = pool.free().pop().unwrap_or_default();
        if data.len() < len || data.len() > SLACK * len {
            data = vec![0; len];
        }
        Self { data, len, pool }
    }

    fn room(&mut self) -> &mut [u8] {
        &mut self.data[..self.len]
    }
}

impl AsRef<[u8]> for Pooled {
    fn as_ref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl Drop for Pooled {
    fn drop(&mut self) {
        let data = std::mem::take(&mut self.data);
        let mut free = self.pool.free();
        if free.len() < KEPT {
            free.push(data);
        }
    }
}

impl Pool {
    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LocalBlob {
    pub(super) fn open(layout: &Layout, digest: &Digest) -> Result<Self> {
        let path = layout.blob(digest);
        let missing = || Error::not_found(format_args!("content {digest}"));
        let file = File::open(&path).map_err(|e| absent(e, "open", &path, missing))?;
        let size = file.metadata().map_err(|e| os("stat", &path, e))?.len();
        Ok(Self {
            file: Arc::new(file),
            digest: digest.clone(),
            size,
            pool: Arc::default(),
        })
    }
}

#[async_trait]
impl Blob for LocalBlob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let left = self.size.saturating_sub(offset);
        let len = usize::try_from(left).map_or(len, |left| left.min(len));
        if len == 0 {
            return Ok(Bytes::new());
        }
        let file = Arc::clone(&self.file);
        let digest = self.digest.clone();
        let pool = Arc::clone(&self.pool);
        blocking(move || {
            let mut data = Pooled::take(pool, len);
            match file.read_exact_at(data.room(), offset) {
                Ok(()) => Ok(Bytes::from_owner(data)),
                Err(e) if e.kind() == ErrorKind::UnexpectedEof => Err(Error::data_loss(
                    format_args!("content {digest} is shorter than its length"),
                )),
                Err(e) => Err(Error::os(format_args!("read content {digest}"), e)),
            }
        })
        .await
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_piece_does_not_hold_a_large_buffer_and_one_is_kept() {
        let pool = Arc::<Pool>::default();
        let take = |len| Pooled::take(Arc::clone(&pool), len);
        let both = [take(1 << 20), take(1 << 20)];
        let first = both[0].data.as_ptr();
        drop(both);
        assert_eq!(pool.free().len(), 1);
        let again = take((1 << 20) - 1);
        assert_eq!(again.data.as_ptr(), first);
        drop(again);
        let small = take(1000);
        assert_eq!(small.data.capacity(), 1000);
        assert!(pool.free().is_empty());
    }
}
