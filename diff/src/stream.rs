//! Chunks of an uncompressed stream on their way between threads.
//!
//! Invariant: bounded: at most [`DEPTH`] chunks wait in a pipe. The end of a stream is either a clean
//! end or an error, never silence.

use std::io::{BufRead, Read};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use types::{Error, Result};

/// Size of a chunk.
pub(crate) const CHUNK: usize = 256 * 1024;
/// Chunks in a pipe.
const DEPTH: usize = 8;

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
