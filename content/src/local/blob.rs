//! An open blob of the local store.

use std::fs::File;
use std::io::{self, ErrorKind, IoSliceMut};
use std::os::unix::fs::FileExt as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;
use rustix::io::{ReadWriteFlags, preadv2};
use types::{Digest, Error, Result};

use super::blocking;
use super::layout::{Layout, absent, os};
use crate::Blob;

/// What is read at once on the caller's own thread, if it is in memory: a copy of so much takes less than the
/// way to another thread and back.
const AT_ONCE: usize = 256 << 10;
/// `statfs(2)`: files of such a file system are memory, but for swap.
const TMPFS: i64 = 0x0102_1994;

/// An open file under `blobs/`; stays readable when the blob is deleted.
#[derive(Debug)]
pub(super) struct LocalBlob {
    file: Arc<File>,
    digest: Digest,
    size: u64,
    pool: Arc<Pool>,
    /// It lies on tmpfs, which does not know `RWF_NOWAIT`, and waits no more than any memory of a process.
    is_memory: bool,
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
        let is_memory = rustix::fs::fstatfs(&file).is_ok_and(|of| of.f_type == TMPFS);
        Ok(Self {
            file: Arc::new(file),
            digest: digest.clone(),
            size,
            pool: Arc::default(),
            is_memory,
        })
    }

    /// Reads what is in memory, as far as it is; how much that was.
    fn read_cached(&self, mut room: &mut [u8], offset: u64) -> usize {
        let whole = room.len();
        while !room.is_empty() {
            let at = offset + (whole - room.len()) as u64;
            let got = match self.is_memory {
                true => self.file.read_at(room, at),
                false => {
                    let parts = &mut [IoSliceMut::new(room)];
                    preadv2(&self.file, parts, at, ReadWriteFlags::NOWAIT).map_err(io::Error::from)
                }
            };
            match got {
                // What is wrong shows when it is waited for.
                Ok(0) | Err(_) => break,
                Ok(got) => room = &mut room[got..],
            }
        }
        whole - room.len()
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
        let mut data = Pooled::take(Arc::clone(&self.pool), len);
        let cached = match len <= AT_ONCE {
            true => self.read_cached(data.room(), offset),
            false => 0,
        };
        if cached == len {
            return Ok(Bytes::from_owner(data));
        }
        let (file, digest) = (Arc::clone(&self.file), self.digest.clone());
        blocking(move || {
            let rest = &mut data.room()[cached..];
            match file.read_exact_at(rest, offset + cached as u64) {
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

    /// A blob of these bytes in a file of a directory, as of one in memory or not.
    fn of(directory: &std::path::Path, data: &[u8], is_memory: bool) -> LocalBlob {
        let path = directory.join("blob");
        std::fs::write(&path, data).unwrap();
        LocalBlob {
            file: Arc::new(File::open(&path).unwrap()),
            digest: format!("sha256:{}", "0".repeat(64)).parse().unwrap(),
            size: data.len() as u64,
            pool: Arc::default(),
            is_memory,
        }
    }

    #[tokio::test]
    async fn whatever_is_in_memory_the_same_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let data: Vec<u8> = (0..=250).cycle().take(2 * AT_ONCE + 77).collect();
        for is_memory in [true, false] {
            let mut blob = of(temp.path(), &data, is_memory);
            let drop_caches = |blob: &LocalBlob| {
                let all = rustix::fs::Advice::DontNeed;
                blob.file.sync_all().unwrap();
                rustix::fs::fadvise(&blob.file, 0, None, all).unwrap();
            };
            for (offset, len) in [
                (0, 10),
                (5, AT_ONCE),
                (77, AT_ONCE + 1),
                (AT_ONCE, 2 * AT_ONCE),
            ] {
                drop_caches(&blob);
                // Cold, then warm.
                for _ in 0..2 {
                    let got = blob.read_at(offset as u64, len).await.unwrap();
                    let end = data.len().min(offset + len);
                    assert_eq!(got, data[offset..end], "{offset} {len} {is_memory}");
                }
            }
            blob.size += 5;
            let error = blob.read_at(data.len() as u64 - 1, 6).await.unwrap_err();
            assert!(error.is(types::Code::DataLoss), "{error}");
        }
    }

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
