//! `containerd.services.containers.v1.Containers`: records, nothing that runs.

use async_trait::async_trait;
use grpc::containers::Containers as Service;
use grpc::{ResponseStream, Written, serve, serve_stream};
use metadata::Metadata;
use protos::MessageField;
use protos::direct::add_container;
use protos::services::containers::{
    CreateContainerRequest, CreateContainerResponse, DeleteContainerRequest, GetContainerRequest,
    GetContainerResponse, ListContainerMessage, ListContainersRequest, ListContainersResponse,
    UpdateContainerRequest, UpdateContainerResponse,
};
use protos::well_known::Empty;
use protos::wire::{Wire as _, mask};
use tonic::{Request, Response, Status};
use types::{Container, ContainerId, Context as _, Result};

use super::{filter, known};

/// Serves the namespace's container records.
#[derive(Clone, Debug)]
pub(crate) struct Containers {
    /// Holds them.
    pub(crate) metadata: Metadata,
    /// Bytes of an answer that is still sent.
    pub(crate) max_message: usize,
}

#[async_trait]
impl Service for Containers {
    async fn get(
        &self,
        request: Request<GetContainerRequest>,
    ) -> Result<Response<GetContainerResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let container = metadata
                .containers(&scope)
                .get(&known(&request.id, "container")?)
                .await?;
            let container = MessageField::some(container.to_wire());
            Ok(GetContainerResponse {
                container,
                ..Default::default()
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Written<ListContainersResponse>>, Status> {
        let (metadata, limit) = (self.metadata.clone(), self.max_message);
        serve(request, move |scope, request| async move {
            let filter = filter(&request.filters)?;
            let mut list = Written::new(limit);
            metadata
                .containers(&scope)
                .visit(&filter, &mut |container| {
                    add_container(list.field(), container);
                    !list.is_too_large()
                })?;
            Ok(list)
        })
        .await
        .and_then(Written::answer)
    }

    type ListStreamStream = ResponseStream<ListContainerMessage>;

    async fn list_stream(
        &self,
        request: Request<ListContainersRequest>,
    ) -> Result<Response<Self::ListStreamStream>, Status> {
        let metadata = self.metadata.clone();
        serve_stream(request, |scope: types::Scope, request, sender| async move {
            let filter = filter(&request.filters)?;
            let mut pages = metadata.containers(&scope).pages(filter);
            loop {
                let page = pages.page()?;
                if page.is_empty() {
                    return Ok(());
                }
                for container in page {
                    let message = ListContainerMessage {
                        container: MessageField::some(container.to_wire()),
                        ..Default::default()
                    };
                    sender.send(message).await?;
                }
            }
        })
    }

    async fn create(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Result<Response<CreateContainerResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let container = Container::from_wire(request.container.unwrap_or_default())
                .ctx("create container failed validation")?;
            let container = metadata.containers(&scope).create(container).await?;
            let container = MessageField::some(container.to_wire());
            Ok(CreateContainerResponse {
                container,
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Result<Response<UpdateContainerResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let container = request.container.unwrap_or_default();
            if !container.id.is_empty() {
                known::<ContainerId>(&container.id, "container")?;
            }
            let container = Container::from_wire(container)?;
            let fields = mask(request.update_mask)?;
            let container = metadata
                .containers(&scope)
                .update(container, &fields)
                .await?;
            let container = MessageField::some(container.to_wire());
            Ok(UpdateContainerResponse {
                container,
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteContainerRequest>,
    ) -> Result<Response<Empty>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            metadata
                .containers(&scope)
                .delete(&known(&request.id, "container")?)
                .await?;
            Ok(Empty::new())
        })
        .await
    }
}
