//! A content store at the other end of a socket.

use std::sync::Arc;

use ::content::{Blob, ContentStore, Ingest, IngestSpec};
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use grpc::content::ContentClient;
use protos::MessageField;
use protos::services::content as wire;
use protos::wire::{Wire as _, signed};
use types::{BlobInfo, Digest, Error, Fields, Filter, IngestRef, IngestStatus, Labels, Result};

use super::ingest::{RemoteIngest, abort};
use crate::again::Again;
use crate::call::{Caller, done, next, present};

/// The content service of a daemon, in one namespace.
#[derive(Clone, Debug)]
pub struct RemoteContent {
    caller: Caller,
}

impl RemoteContent {
    /// The store that `caller` reaches.
    #[must_use]
    pub fn new(caller: Caller) -> Self {
        Self { caller }
    }

    fn stub(&self) -> ContentClient<Again> {
        ContentClient::new(self.caller.channel())
    }

    async fn read(&self, digest: &Digest, offset: u64, len: usize) -> Result<Bytes> {
        if len == 0 {
            return Ok(Bytes::new());
        }
        let message = wire::ReadContentRequest {
            digest: digest.to_string(),
            offset: signed(offset),
            size: signed(len as u64),
            ..Default::default()
        };
        let mut stream = done(self.stub().read(self.caller.endless(message)?).await)?;
        let mut following = async || self.caller.long_step(next(&mut stream)).await;
        let mut first = Bytes::new();
        let mut all = BytesMut::new();
        // Read to the very end: a stream that is dropped before is reset, and a server takes many
        // resets for an attack.
        while let Some(message) = following().await? {
            if first.len() + all.len() + message.data.len() > len {
                return Err(Error::internal(
                    "content service sent more than was asked for",
                ));
            }
            if first.is_empty() && all.is_empty() {
                first = message.data;
                continue;
            }
            if all.is_empty() {
                all.reserve(len);
                all.extend_from_slice(&std::mem::take(&mut first));
            }
            all.extend_from_slice(&message.data);
        }
        if all.is_empty() {
            return Ok(first);
        }
        Ok(all.freeze())
    }
}

#[async_trait]
impl ContentStore for RemoteContent {
    async fn info(&self, digest: &Digest) -> Result<BlobInfo> {
        let message = wire::InfoRequest {
            digest: digest.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().info(self.caller.quick(message)?).await)?;
        BlobInfo::from_wire(present(answer.info, "info")?)
    }

    async fn update(&self, digest: &Digest, labels: Labels, fields: &Fields) -> Result<BlobInfo> {
        let info = wire::Info {
            digest: digest.to_string(),
            labels: labels.to_wire(),
            ..Default::default()
        };
        let message = wire::UpdateRequest {
            info: MessageField::some(info),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().update(self.caller.request(message)?).await)?;
        BlobInfo::from_wire(present(answer.info, "info")?)
    }

    async fn list(&self, filter: &Filter) -> Result<Vec<BlobInfo>> {
        let message = wire::ListContentRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let request = self.caller.endless(message)?;
        let mut stub = self.stub();
        let list = stub.list(request);
        self.caller
            .pages(list, |page| Vec::from_wire(page.info))
            .await
    }

    async fn delete(&self, digest: &Digest) -> Result<()> {
        let message = wire::DeleteContentRequest {
            digest: digest.to_string(),
            ..Default::default()
        };
        done(self.stub().delete(self.caller.request(message)?).await)?;
        Ok(())
    }

    async fn open(&self, digest: &Digest) -> Result<Arc<dyn Blob>> {
        let size = self.info(digest).await?.size;
        Ok(Arc::new(RemoteBlob {
            store: self.clone(),
            digest: digest.clone(),
            size,
        }))
    }

    async fn ingest(&self, spec: IngestSpec) -> Result<Box<dyn Ingest>> {
        Ok(Box::new(
            RemoteIngest::open(&self.caller, self.stub(), spec).await?,
        ))
    }

    async fn status(&self, reference: &IngestRef) -> Result<IngestStatus> {
        let message = wire::StatusRequest {
            ref_: reference.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().status(self.caller.quick(message)?).await)?;
        IngestStatus::from_wire(present(answer.status, "status")?)
    }

    async fn statuses(&self, filter: &Filter) -> Result<Vec<IngestStatus>> {
        let message = wire::ListStatusesRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let answer = done(self.stub().list_statuses(self.caller.quick(message)?).await)?;
        Vec::from_wire(answer.statuses)
    }

    async fn abort(&self, reference: &IngestRef) -> Result<()> {
        abort(&self.caller, self.stub(), reference).await
    }
}

/// A blob that is read piece by piece; every piece is a call.
#[derive(Debug)]
struct RemoteBlob {
    store: RemoteContent,
    digest: Digest,
    size: u64,
}

#[async_trait]
impl Blob for RemoteBlob {
    fn size(&self) -> u64 {
        self.size
    }

    async fn read_at(&self, offset: u64, len: usize) -> Result<Bytes> {
        let left = self.size.saturating_sub(offset);
        let len = usize::try_from(left).unwrap_or(usize::MAX).min(len);
        let data = self.store.read(&self.digest, offset, len).await?;
        if data.len() < len {
            return Err(Error::data_loss(format_args!(
                "{} ends before its length {}",
                self.digest, self.size
            )));
        }
        Ok(data)
    }
}
