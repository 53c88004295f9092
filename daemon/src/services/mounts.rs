//! `containerd.services.mounts.v1.Mounts`: mounts that the daemon performs for clients.

use async_trait::async_trait;
use grpc::mounts::Mounts as Service;
use grpc::{ResponseStream, serve};
use mounts::{ActivateOpts, Mounts as Manager};
use protos::MessageField;
use protos::services::mounts::{
    ActivateRequest, ActivateResponse, DeactivateRequest, InfoRequest, InfoResponse, ListMessage,
    ListRequest, UpdateRequest, UpdateResponse,
};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use tonic::{Request, Response, Status};
use types::{Error, Labels, Mount};

use super::filter;

/// Serves the namespace's activations.
#[derive(Clone, Debug)]
pub(crate) struct Mounts {
    /// Has them.
    pub(crate) mounts: Manager,
}

#[async_trait]
impl Service for Mounts {
    type ListStream = ResponseStream<ListMessage>;

    async fn activate(
        &self,
        request: Request<ActivateRequest>,
    ) -> Result<Response<ActivateResponse>, Status> {
        let manager = self.mounts.clone();
        serve(request, |scope, request| async move {
            let list = Vec::<Mount>::from_wire(request.mounts)?;
            let opts = ActivateOpts {
                labels: Labels::from_wire(request.labels)?,
                temporary: request.temporary,
                allowed: Vec::new(),
            };
            let made = manager.activate(&scope, &request.name, list, opts).await?;
            Ok(ActivateResponse {
                info: MessageField::some(made.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    async fn deactivate(
        &self,
        request: Request<DeactivateRequest>,
    ) -> Result<Response<Empty>, Status> {
        let manager = self.mounts.clone();
        serve(request, |scope, request| async move {
            manager.deactivate(&scope.namespace, &request.name).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn info(&self, request: Request<InfoRequest>) -> Result<Response<InfoResponse>, Status> {
        let manager = self.mounts.clone();
        serve(request, |scope, request| async move {
            let found = manager.info(&scope.namespace, &request.name)?;
            Ok(InfoResponse {
                info: MessageField::some(found.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    /// Parity: core/mount/manager: what is mounted does not change.
    async fn update(
        &self,
        request: Request<UpdateRequest>,
    ) -> Result<Response<UpdateResponse>, Status> {
        serve(request, |_, _| async move {
            Err(Error::not_implemented("update of an activation of mounts"))
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListRequest>,
    ) -> Result<Response<Self::ListStream>, Status> {
        let manager = self.mounts.clone();
        let list = serve(request, |scope, request| async move {
            Ok(manager.list(&scope.namespace, &filter(&request.filters)?))
        })
        .await?;
        Ok(list.map(|list| {
            grpc::items(list.into_iter().map(|one| ListMessage {
                info: MessageField::some(one.to_wire()),
                ..Default::default()
            }))
        }))
    }
}
