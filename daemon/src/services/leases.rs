//! `containerd.services.leases.v1.Leases`: what keeps things from the collector.

use async_trait::async_trait;
use grpc::leases::Leases as Service;
use grpc::serve;
use metadata::Metadata;
use protos::MessageField;
use protos::services::leases::{
    AddResourceRequest, CreateRequest, CreateResponse, DeleteRequest, DeleteResourceRequest,
    ListRequest, ListResourcesRequest, ListResourcesResponse, ListResponse,
};
use protos::well_known::Empty;
use protos::wire::Wire as _;
use tonic::{Request, Response, Status};
use types::{Labels, LeaseId, Resource, Result};

use super::{filter, known};

/// Serves the namespace's leases.
#[derive(Clone, Debug)]
pub(crate) struct Leases {
    /// Holds them.
    pub(crate) metadata: Metadata,
}

/// The id that a client chose; the empty text leaves the choice to us.
fn chosen(id: String) -> Result<Option<LeaseId>> {
    Some(id)
        .filter(|id| !id.is_empty())
        .map(TryInto::try_into)
        .transpose()
}

#[async_trait]
impl Service for Leases {
    async fn create(
        &self,
        request: Request<CreateRequest>,
    ) -> Result<Response<CreateResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let (id, labels) = (chosen(request.id)?, Labels::from_wire(request.labels)?);
            let lease = metadata.leases(&scope.namespace).create(id, labels).await?;
            Ok(CreateResponse {
                lease: MessageField::some(lease.to_wire()),
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(&self, request: Request<DeleteRequest>) -> Result<Response<Empty>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let id = known(&request.id, "lease")?;
            metadata
                .leases(&scope.namespace)
                .delete(&id, request.sync)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn list(&self, request: Request<ListRequest>) -> Result<Response<ListResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let filter = filter(&request.filters)?;
            let leases = metadata.leases(&scope.namespace).list(&filter).await?;
            Ok(ListResponse {
                leases: leases.to_wire(),
                ..Default::default()
            })
        })
        .await
    }

    async fn add_resource(
        &self,
        request: Request<AddResourceRequest>,
    ) -> Result<Response<Empty>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let resource = Resource::from_wire(request.resource.unwrap_or_default())?;
            metadata
                .leases(&scope.namespace)
                .add(&known(&request.id, "lease")?, resource)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn delete_resource(
        &self,
        request: Request<DeleteResourceRequest>,
    ) -> Result<Response<Empty>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let resource = Resource::from_wire(request.resource.unwrap_or_default())?;
            metadata
                .leases(&scope.namespace)
                .remove(&known(&request.id, "lease")?, resource)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn list_resources(
        &self,
        request: Request<ListResourcesRequest>,
    ) -> Result<Response<ListResourcesResponse>, Status> {
        let metadata = self.metadata.clone();
        serve(request, |scope, request| async move {
            let leases = metadata.leases(&scope.namespace);
            let resources = leases.resources(&known(&request.id, "lease")?).await?;
            Ok(ListResourcesResponse {
                resources: resources.to_wire(),
                ..Default::default()
            })
        })
        .await
    }
}
