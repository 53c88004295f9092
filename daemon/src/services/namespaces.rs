//! `containerd.services.namespaces.v1.Namespaces`: tenants. The one service of records that needs
//! no namespace itself.

use async_trait::async_trait;
use grpc::namespaces::Namespaces as Service;
use grpc::serve_unscoped;
use metadata::Metadata;
use protos::MessageField;
use protos::services::namespaces::{
    CreateNamespaceRequest, CreateNamespaceResponse, DeleteNamespaceRequest, GetNamespaceRequest,
    GetNamespaceResponse, ListNamespacesRequest, ListNamespacesResponse, UpdateNamespaceRequest,
    UpdateNamespaceResponse,
};
use protos::well_known::Empty;
use protos::wire::{Wire as _, mask};
use tonic::{Request, Response, Status};
use types::{NamespaceInfo, Result};

use super::known;

/// Serves the namespaces.
#[derive(Clone, Debug)]
pub(crate) struct Namespaces {
    /// Holds them.
    pub(crate) metadata: Metadata,
}

#[async_trait]
impl Service for Namespaces {
    async fn get(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let namespaces = self.metadata.namespaces();
        serve_unscoped(request, |request| async move {
            let namespace = namespaces.get(&request.name.try_into()?).await?;
            let namespace = MessageField::some(namespace.to_wire());
            Ok(GetNamespaceResponse {
                namespace,
                ..Default::default()
            })
        })
        .await
    }

    async fn list(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Result<Response<ListNamespacesResponse>, Status> {
        let namespaces = self.metadata.namespaces();
        serve_unscoped(request, |_| async move {
            let namespaces = namespaces.list().await?.to_wire();
            Ok(ListNamespacesResponse {
                namespaces,
                ..Default::default()
            })
        })
        .await
    }

    async fn create(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let namespaces = self.metadata.namespaces();
        serve_unscoped(request, |request| async move {
            let namespace = NamespaceInfo::from_wire(request.namespace.unwrap_or_default())?;
            let namespace = namespaces.create(namespace).await?;
            let namespace = MessageField::some(namespace.to_wire());
            Ok(CreateNamespaceResponse {
                namespace,
                ..Default::default()
            })
        })
        .await
    }

    async fn update(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let namespaces = self.metadata.namespaces();
        serve_unscoped(request, |request| async move {
            let namespace = NamespaceInfo::from_wire(request.namespace.unwrap_or_default())?;
            let fields = mask(request.update_mask)?;
            let namespace = namespaces.update(namespace, &fields).await?;
            let namespace = MessageField::some(namespace.to_wire());
            Ok(UpdateNamespaceResponse {
                namespace,
                ..Default::default()
            })
        })
        .await
    }

    async fn delete(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<Empty>, Status> {
        let namespaces = self.metadata.namespaces();
        serve_unscoped(request, |request| async move {
            namespaces
                .delete(&known(&request.name, "namespace")?)
                .await?;
            Ok(Empty::new())
        })
        .await
    }
}
