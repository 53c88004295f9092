//! Chunks of an uncompressed stream on their way between threads.
//!
//! Invariant: bounded: at most [`DEPTH`] chunks wait in a pipe. The end of a stream is either a clean
//! end or an error, never silence.

use std::io::{BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use types::{Error, Result};

/// Size of a chunk.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Chunks in a pipe.
const DEPTH: usize = 4;

/// Buffers that everybody has done with. New ones of that size are dear: the allocator gets each from
/// the kernel, page by page, and gives it back.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

/// A buffer that goes back when nobody looks at it any more.
#[derive(Debug)]
pub(crate) struct Chunk {
    data: Vec<u8>,
    len: usize,
    pool: Arc<Pool>,
}

impl Pool {
    /// An empty chunk.
    pub(crate) fn take(self: &Arc<Self>) -> Chunk {
        let data = self.free().pop().unwrap_or_else(|| vec![0; CHUNK]);
        Chunk {
            data,
            len: 0,
            pool: Arc::clone(self),
        }
    }

    fn free(&self) -> MutexGuard<'_, Vec<Vec<u8>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Chunk {
    /// What is still to be filled.
    pub(crate) fn room(&mut self) -> &mut [u8] {
        &mut self.data[self.len..]
    }

    /// Notes that so much of it was.
    pub(crate) fn filled(&mut self, count: usize) {
        self.len = (self.len + count).min(self.data.len());
    }

    /// True when nothing was.
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in it.
    pub(crate) fn len(&self) -> usize {
        self.len
    }
}

impl AsRef<[u8]> for Chunk {
    fn as_ref(&self) -> &[u8] {
        &self.data[..self.len]
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        // The pipes are bounded, and so is what can come back.
        self.pool.free().push(std::mem::take(&mut self.data));
    }
}

/// The writing end.
#[derive(Debug)]
pub(crate) struct Sender(SyncSender<Result<Bytes>>);

/// The reading end, a [`BufRead`] that lends the chunks themselves.
#[derive(Debug)]
pub(crate) struct Source {
    pipe: Receiver<Result<Bytes>>,
    chunk: Bytes,
    /// The stream ended with an error that was told.
    failed: bool,
}

/// A pipe.
pub(crate) fn pipe() -> (Sender, Source) {
    let (sender, pipe) = sync_channel(DEPTH);
    (
        Sender(sender),
        Source {
            pipe,
            chunk: Bytes::new(),
            failed: false,
        },
    )
}

impl Sender {
    /// Passes a chunk or the error that ends the stream; false when nobody reads any more.
    pub(crate) fn send(&self, chunk: Result<Bytes>) -> bool {
        self.0.send(chunk).is_ok()
    }
}

impl BufRead for Source {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        while self.chunk.is_empty() {
            if self.failed {
                return Err(std::io::Error::other(Error::invalid_argument(
                    "stream failed",
                )));
            }
            match self.pipe.recv() {
                Ok(Ok(chunk)) => self.chunk = chunk,
                Ok(Err(error)) => {
                    self.failed = true;
                    return Err(std::io::Error::other(error));
                }
                // The sender is gone: the clean end.
                Err(_) => break,
            }
        }
        Ok(&self.chunk)
    }

    fn consume(&mut self, amount: usize) {
        let step = amount.min(self.chunk.len());
        drop(self.chunk.split_to(step));
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let chunk = self.fill_buf()?;
        let take = chunk.len().min(buffer.len());
        buffer[..take].copy_from_slice(&chunk[..take]);
        self.consume(take);
        Ok(take)
    }
}
