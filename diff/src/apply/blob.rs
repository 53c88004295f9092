//! The blob of a layer, read on a thread of the apply.
//!
//! Invariant: reading takes none of the runtime's threads for files. Those write what comes in, and who
//! reads along would wait for a thread that waits for one.

use std::fs::File;
use std::io::{BufRead, Read};
use std::os::unix::fs::FileExt as _;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use content::{Blob, Hasher};
use tokio::runtime::Handle;
use types::Result;

use crate::stream::CHUNK;
use crate::work::Stop;

/// What a read waits for.
type Wait<'a> = Pin<Box<dyn Future<Output = Result<Bytes>> + Send + 'a>>;

/// A blob, and what is needed to wait for its bytes.
#[derive(Debug)]
pub(super) struct Incoming {
    pub(super) blob: Arc<dyn Blob>,
    pub(super) handle: Handle,
    pub(super) stop: Stop,
}

/// The blob as a stream, hashed as it is consumed.
pub(super) struct BlobReader<'a> {
    source: &'a Incoming,
    offset: u64,
    buffer: Vec<u8>,
    at: usize,
    pub(super) hasher: Option<Hasher>,
}

impl<'a> BlobReader<'a> {
    pub(super) fn new(source: &'a Incoming, hasher: Hasher) -> Self {
        Self {
            source,
            offset: 0,
            buffer: Vec::new(),
            at: 0,
            hasher: Some(hasher),
        }
    }

    fn next(&mut self) -> std::io::Result<()> {
        let Incoming { blob, handle, stop } = self.source;
        let left = blob.size().saturating_sub(self.offset);
        let len = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
        if len == 0 {
            return Ok(());
        }
        let unless_stopped = async |wait: Wait<'_>| {
            tokio::select! {
                biased;
                () = stop.told() => Err(stop.error()),
                done = wait => done,
            }
        };
        let Some(file) = blob.file() else {
            let read = Box::pin(blob.read_at(self.offset, len));
            let data = handle.block_on(unless_stopped(read));
            self.buffer
                .extend_from_slice(&data.map_err(std::io::Error::other)?);
            return Ok(());
        };
        let ready = blob.ready(self.offset + len as u64);
        let ready = Box::pin(async { ready.await.map(|()| Bytes::new()) });
        handle
            .block_on(unless_stopped(ready))
            .map_err(std::io::Error::other)?;
        self.buffer.resize(len, 0);
        let got = read_at(file, &mut self.buffer, self.offset)?;
        self.buffer.truncate(got);
        Ok(())
    }
}

fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<usize> {
    loop {
        match file.read_at(buffer, offset) {
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

impl BufRead for BlobReader<'_> {
    fn fill_buf(&mut self) -> std::io::Result<&[u8]> {
        if self.at == self.buffer.len() {
            self.at = 0;
            self.buffer.clear();
            self.next()?;
        }
        Ok(&self.buffer[self.at..])
    }

    fn consume(&mut self, amount: usize) {
        let end = (self.at + amount).min(self.buffer.len());
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.buffer[self.at..end]);
        }
        self.offset += (end - self.at) as u64;
        self.at = end;
    }
}

impl Read for BlobReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let data = self.fill_buf()?;
        let take = data.len().min(buffer.len());
        buffer[..take].copy_from_slice(&data[..take]);
        self.consume(take);
        Ok(take)
    }
}
