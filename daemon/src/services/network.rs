//! `containerd.services.network.v1.Network`: network namespaces and interfaces.

use async_trait::async_trait;
use grpc::network::Network as Service;
use grpc::{ResponseStream, pages, serve};
use metadata::Metadata;
use network::{NamespaceOpts, Networks};
use protos::MessageField;
use protos::services::network::{
    CheckRequest, CollectRequest, CreateLinkRequest, CreateLinkResponse, CreateNamespaceRequest,
    CreateNamespaceResponse, DeleteLinkRequest, DeleteNamespaceRequest, GetLinkRequest,
    GetLinkResponse, GetNamespaceRequest, GetNamespaceResponse, ListAttachmentsRequest,
    ListAttachmentsResponse, ListLinksRequest, ListLinksResponse, ListNamespacesRequest,
    ListNamespacesResponse, MoveLinkRequest, MoveLinkResponse, SetupRequest, SetupResponse,
    StatusRequest, StatusResponse, TeardownRequest, UpdateLinkRequest, UpdateLinkResponse,
    UpdateNamespaceRequest, UpdateNamespaceResponse,
};
use protos::well_known::Empty;
use protos::wire::network::{change_from_wire, joined_to_wire};
use protos::wire::{Wire as _, mask};
use tonic::{Request, Response, Status};
use types::network::{LinkMove, NewLink, Place};
use types::{Errors, Labels};

use super::filter;
use crate::drivers::Drivers;

/// Serves the namespace's networks.
#[derive(Clone, Debug)]
pub(crate) struct Network {
    /// Has them.
    pub(crate) networks: Networks,
    /// Has the leases and namespaces that they are made under.
    pub(crate) metadata: Metadata,
    /// Joins containers to them.
    pub(crate) drivers: Drivers,
}

/// An answer with one field.
macro_rules! answer {
    ($kind:ident { $field:ident: $value:expr }) => {
        Ok($kind {
            $field: MessageField::some($value.to_wire()),
            ..Default::default()
        })
    };
}

#[async_trait]
impl Service for Network {
    type ListNamespacesStream = ResponseStream<ListNamespacesResponse>;
    type ListLinksStream = ResponseStream<ListLinksResponse>;
    type ListAttachmentsStream = ResponseStream<ListAttachmentsResponse>;

    async fn create_namespace(
        &self,
        request: Request<CreateNamespaceRequest>,
    ) -> Result<Response<CreateNamespaceResponse>, Status> {
        let (networks, metadata) = (self.networks.clone(), self.metadata.clone());
        serve(request, |scope, request| async move {
            let wanted = request.network_namespace.unwrap_or_default();
            let opts = NamespaceOpts {
                adopt: wanted.adopted.into(),
                labels: Labels::from_wire(wanted.labels)?,
            };
            metadata.admit(&scope).await?;
            let made = networks
                .create_namespace(&scope, &wanted.name, opts)
                .await?;
            answer!(CreateNamespaceResponse {
                network_namespace: made
            })
        })
        .await
    }

    async fn get_namespace(
        &self,
        request: Request<GetNamespaceRequest>,
    ) -> Result<Response<GetNamespaceResponse>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let found = networks.get_namespace(&scope.namespace, &request.name)?;
            answer!(GetNamespaceResponse {
                network_namespace: found
            })
        })
        .await
    }

    async fn list_namespaces(
        &self,
        request: Request<ListNamespacesRequest>,
    ) -> Result<Response<Self::ListNamespacesStream>, Status> {
        let networks = self.networks.clone();
        let list = serve(request, |scope, request| async move {
            Ok(networks.list_namespaces(&scope.namespace, &filter(&request.filters)?))
        })
        .await?;
        Ok(list.map(|list| {
            pages(list, |page| ListNamespacesResponse {
                network_namespaces: page.to_wire(),
                ..Default::default()
            })
        }))
    }

    async fn update_namespace(
        &self,
        request: Request<UpdateNamespaceRequest>,
    ) -> Result<Response<UpdateNamespaceResponse>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let wanted = request.network_namespace.unwrap_or_default();
            let (labels, fields) = (
                Labels::from_wire(wanted.labels)?,
                mask(request.update_mask)?,
            );
            let name = &wanted.name;
            let made = networks
                .update_namespace(&scope.namespace, name, labels, fields)
                .await?;
            answer!(UpdateNamespaceResponse {
                network_namespace: made
            })
        })
        .await
    }

    async fn delete_namespace(
        &self,
        request: Request<DeleteNamespaceRequest>,
    ) -> Result<Response<Empty>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            networks
                .delete_namespace(&scope.namespace, &request.name)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn create_link(
        &self,
        request: Request<CreateLinkRequest>,
    ) -> Result<Response<CreateLinkResponse>, Status> {
        let (networks, metadata) = (self.networks.clone(), self.metadata.clone());
        serve(request, |scope, request| async move {
            let wanted = NewLink::from_wire(request.link.unwrap_or_default())?;
            metadata.admit(&scope).await?;
            let made = networks.create_link(&scope, wanted).await?;
            answer!(CreateLinkResponse { link: made })
        })
        .await
    }

    async fn get_link(
        &self,
        request: Request<GetLinkRequest>,
    ) -> Result<Response<GetLinkResponse>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let (place, name) = (Place::of(request.network_namespace), request.name.parse()?);
            let found = networks.get_link(&scope.namespace, &place, &name).await?;
            answer!(GetLinkResponse { link: found })
        })
        .await
    }

    async fn list_links(
        &self,
        request: Request<ListLinksRequest>,
    ) -> Result<Response<Self::ListLinksStream>, Status> {
        let networks = self.networks.clone();
        let list = serve(request, |scope, request| async move {
            let (place, filter) = (
                Place::of(request.network_namespace),
                filter(&request.filters)?,
            );
            networks.list_links(&scope.namespace, &place, filter).await
        })
        .await?;
        Ok(list.map(|list| {
            pages(list, |page| ListLinksResponse {
                links: page.to_wire(),
                ..Default::default()
            })
        }))
    }

    async fn update_link(
        &self,
        request: Request<UpdateLinkRequest>,
    ) -> Result<Response<UpdateLinkResponse>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let wanted = request.link.unwrap_or_default();
            let place = Place::of(wanted.network_namespace.clone());
            let name = wanted.name.parse()?;
            let change = change_from_wire(wanted, request.update_mask)?;
            let made = networks
                .update_link(&scope.namespace, &place, &name, change)
                .await?;
            answer!(UpdateLinkResponse { link: made })
        })
        .await
    }

    async fn move_link(
        &self,
        request: Request<MoveLinkRequest>,
    ) -> Result<Response<MoveLinkResponse>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let (place, name) = (Place::of(request.network_namespace), request.name.parse()?);
            let to = LinkMove {
                place: Place::of(request.to_network_namespace),
                name: Some(request.to_name)
                    .filter(|to| !to.is_empty())
                    .unwrap_or(request.name)
                    .try_into()?,
            };
            let moved = networks
                .move_link(&scope.namespace, &place, &name, to)
                .await?;
            answer!(MoveLinkResponse { link: moved })
        })
        .await
    }

    async fn delete_link(
        &self,
        request: Request<DeleteLinkRequest>,
    ) -> Result<Response<Empty>, Status> {
        let networks = self.networks.clone();
        serve(request, |scope, request| async move {
            let (place, name) = (Place::of(request.network_namespace), request.name.parse()?);
            networks
                .delete_link(&scope.namespace, &place, &name)
                .await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn setup(
        &self,
        request: Request<SetupRequest>,
    ) -> Result<Response<SetupResponse>, Status> {
        let drivers = self.drivers.clone();
        serve(request, |scope, request| async move {
            let joining = request.joining.unwrap_or_default();
            let driver = joining.driver.clone();
            let request = drivers.request(&scope.namespace, joining)?;
            Ok(drivers.setup(&driver, &request).await?.to_wire())
        })
        .await
    }

    async fn check(&self, request: Request<CheckRequest>) -> Result<Response<Empty>, Status> {
        let drivers = self.drivers.clone();
        serve(request, |scope, request| async move {
            let joining = request.joining.unwrap_or_default();
            let driver = drivers.get(&joining.driver)?;
            let request = drivers.request(&scope.namespace, joining)?;
            driver.check(&request).await?;
            Ok(Empty::new())
        })
        .await
    }

    async fn teardown(&self, request: Request<TeardownRequest>) -> Result<Response<Empty>, Status> {
        let drivers = self.drivers.clone();
        serve(request, |scope, request| async move {
            let joining = request.joining.unwrap_or_default();
            let driver = drivers.get(&joining.driver)?;
            let request = drivers.parting(&scope.namespace, joining)?;
            driver
                .teardown(&request)
                .await
                .or_else(Errors::into_result)?;
            Ok(Empty::new())
        })
        .await
    }

    async fn list_attachments(
        &self,
        request: Request<ListAttachmentsRequest>,
    ) -> Result<Response<Self::ListAttachmentsStream>, Status> {
        let drivers = self.drivers.clone();
        let list = serve(request, |scope, request| async move {
            let filter = filter(&request.filters)?;
            drivers.list(&scope.namespace, &filter, request.check).await
        })
        .await?;
        Ok(list.map(|list| {
            pages(list, |page| ListAttachmentsResponse {
                attachments: page.iter().map(joined_to_wire).collect(),
                ..Default::default()
            })
        }))
    }

    async fn status(
        &self,
        request: Request<StatusRequest>,
    ) -> Result<Response<StatusResponse>, Status> {
        let drivers = self.drivers.clone();
        serve(request, |_, request| async move {
            Ok(StatusResponse {
                warnings: drivers.get(&request.driver)?.status().await?,
                ..Default::default()
            })
        })
        .await
    }

    async fn collect(&self, request: Request<CollectRequest>) -> Result<Response<Empty>, Status> {
        let drivers = self.drivers.clone();
        serve(request, |_, request| async move {
            let driver = drivers.get(&request.driver)?;
            driver.collect(&request.network).await?;
            Ok(Empty::new())
        })
        .await
    }
}
