//! `containerd.services.content.v1.Content` over any content store.

use std::sync::Arc;
use std::time::Instant;

use async_trait::async_trait;
use content::{Blob, ContentStore};
use grpc::content::Content as Service;
use grpc::{
    ResponseStream, Sender, Tenant, filter, known, serve_duplex, serve_stream, serve_tenant,
};
use protos::MessageField;
use protos::services::content::{
    AbortRequest, DeleteContentRequest, InfoRequest, InfoResponse, ListContentRequest,
    ListContentResponse, ListStatusesRequest, ListStatusesResponse, ReadContentRequest,
    ReadContentResponse, StatusRequest, StatusResponse, UpdateRequest, UpdateResponse,
    WriteContentRequest, WriteContentResponse,
};
use protos::well_known::Empty;
use protos::wire::{Wire as _, mask, signed};
use tonic::{Request, Response, Status, Streaming};
use types::{BlobInfo, Error, Result};

use super::pace::{Pace, ROOM, hold};
use super::write;

/// Bytes in one message of `Read`: with what is around them they stay in the heap, and in its caches.
/// A larger one is mapped by the kernel, page by page, for the length of one message.
const MESSAGE: usize = 96 << 10;

/// Where the service finds blobs.
pub trait Contents: Clone + Send + Sync + 'static {
    /// On whose behalf they are asked for.
    type Tenant: Tenant;

    /// The store, as the tenant sees it.
    ///
    /// # Errors
    /// When the tenant has none.
    fn content(&self, tenant: &Self::Tenant) -> Result<Arc<dyn ContentStore>>;
}

/// The service.
#[derive(Clone, Debug)]
pub struct Content<C>(pub C);

#[async_trait]
impl<C: Contents> Service for Content<C> {
    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let info = all.content(&tenant)?.info(&request.digest.parse()?).await?;
            Ok(InfoResponse {
                info: MessageField::some(info.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let info = BlobInfo::from_wire(request.info.unwrap_or_default())?;
            let fields = mask(request.update_mask)?;
            let store = all.content(&tenant)?;
            let info = store.update(&info.digest, info.labels, &fields).await?;
            Ok(UpdateResponse {
                info: MessageField::some(info.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    type ListStream = ResponseStream<ListContentResponse>;

    async fn list(
        &self,
        request: Request<ListContentRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let all = self.0.clone();
        let list = serve_tenant(request, |tenant, request| async move {
            all.content(&tenant)?.list(&filter(&request.filters)?).await
        })
        .await?;
        Ok(list.map(|list| {
            grpc::pages(list, |page| ListContentResponse {
                info: page.to_wire(),
                ..Default::default()
            })
        }))
    }

    async fn delete(
        &self,
        request: Request<DeleteContentRequest>,
    ) -> Result<Response<Empty>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            all.content(&tenant)?
                .delete(&request.digest.parse()?)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    type ReadStream = ResponseStream<ReadContentResponse>;

    async fn read(
        &self,
        request: Request<ReadContentRequest>,
    ) -> Result<Response<Self::ReadStream>, Status> {
        let all = self.0.clone();
        serve_stream(
            request,
            |tenant, request: ReadContentRequest, sender| async move {
                let blob = all.content(&tenant)?.open(&request.digest.parse()?).await?;
                read(blob, request.offset, request.size, sender, Pace::new(&ROOM)).await
            },
        )
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let store = all.content(&tenant)?;
            let status = store
                .status(&known(&request.ref_, "reference")?)
                .await
                .map_err(|e| e.ctx(format!("could not get status for ref {:?}", request.ref_)))?;
            let status = MessageField::some(status.to_wire());
            Ok(StatusResponse {
                status,
                ..Default::default()
            })
        })
        .await
    }

    async fn list_statuses(
        &self,
        request: Request<ListStatusesRequest>,
    ) -> Result<Response<ListStatusesResponse>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            let filter = filter(&request.filters)?;
            let statuses = all.content(&tenant)?.statuses(&filter).await?;
            Ok(ListStatusesResponse {
                statuses: statuses.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    type WriteStream = ResponseStream<WriteContentResponse>;

    async fn write(
        &self,
        request: Request<Streaming<WriteContentRequest>>,
    ) -> Result<Response<Self::WriteStream>, Status> {
        let all = self.0.clone();
        serve_duplex(request, |tenant, requests, replies| async move {
            write::serve(all.content(&tenant)?, requests, replies).await
        })
    }

    async fn abort(&self, request: Request<AbortRequest>) -> Result<Response<Empty>, Status> {
        let all = self.0.clone();
        serve_tenant(request, |tenant, request| async move {
            all.content(&tenant)?
                .abort(&known(&request.ref_, "reference")?)
                .await?;
            Ok(Empty::new())
        })
        .await
    }
}

/// Sends a section of a blob. Parity: contentserver.go: the offsets that are sent count from the
/// start of the section; a size of zero or past the end means to the end.
pub(super) async fn read(
    blob: Arc<dyn Blob>,
    offset: i64,
    size: i64,
    sender: Sender<ReadContentResponse>,
    mut pace: Pace,
) -> Result<()> {
    let start = u64::try_from(offset).unwrap_or(0);
    let rest = blob.size().checked_sub(start).ok_or_else(|| {
        Error::out_of_range(format_args!(
            "read past object length {} bytes",
            blob.size()
        ))
    })?;
    let end = match u64::try_from(size) {
        Ok(size @ 1..) => size.min(rest),
        _ => rest,
    };
    let mut at = 0;
    while at < end {
        let (wanted, room) = pace.next(end - at, &sender).await;
        let data = hold(blob.read_at(start + at, wanted).await?, room);
        if data.is_empty() {
            return Err(Error::data_loss("blob ended before its length"));
        }
        let begin = Instant::now();
        for piece in (0..data.len()).step_by(MESSAGE) {
            let data = data.slice(piece..data.len().min(piece + MESSAGE));
            let length = data.len() as u64;
            let message = ReadContentResponse {
                offset: signed(at),
                data,
                ..Default::default()
            };
            sender.send(message).await?;
            at += length;
        }
        pace.sent(begin.elapsed());
    }
    Ok(())
}
