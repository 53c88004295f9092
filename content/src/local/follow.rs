//! An ingest as a blob that grows: for who reads along while it is written.
//!
//! Invariant: only what is in the file is lent, and nothing of a writer that gave up or began anew:
//! whoever waits for its bytes gets an error instead. Digest and length are for the reader to check.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use types::{Error, Result};

use super::blocking;
use crate::Blob;

/// A reader beside the writer.
#[derive(Debug)]
pub(super) struct Following {
    file: Arc<File>,
    total: u64,
    /// Bytes in the file; closed when the writer is gone.
    written: watch::Receiver<u64>,
}

impl Following {
    pub(super) fn new(file: File, total: u64, written: watch::Receiver<u64>) -> Self {
        Self {
            file: Arc::new(file),
            total,
            written,
        }
    }
}

#[async_trait]
impl Blob for Following {
    fn size(&self) -> u64 {
        self.total
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let left = self.total.saturating_sub(offset);
        let len = usize::try_from(left).map_or(len, |left| left.min(len));
        if len == 0 {
            return Ok(Bytes::new());
        }
        self.ready(offset + len as u64).await?;
        let file = Arc::clone(&self.file);
        blocking(move || {
            let mut data = vec![0; len];
            file.read_exact_at(&mut data, offset)
                .map_err(|e| Error::os("read ingest data", e))?;
            Ok(data.into())
        })
        .await
    }

    async fn ready(&self, end: u64) -> Result<()> {
        let mut written = self.written.clone();
        // What is there already counts also when the writer is gone.
        if written.wait_for(|written| *written >= end).await.is_err() {
            return Err(Error::unavailable("the writer of the blob has given up"));
        }
        Ok(())
    }

    fn file(&self) -> Option<&File> {
        Some(&self.file)
    }
}
