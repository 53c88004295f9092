//! An open blob of the local store.

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

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
        blocking(move || {
            let mut data = vec![0; len];
            match file.read_exact_at(&mut data, offset) {
                Ok(()) => Ok(Bytes::from(data)),
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
