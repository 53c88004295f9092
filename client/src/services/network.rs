//! Network namespaces and interfaces.

use std::path::Path;

use grpc::network::NetworkClient;
use protos::MessageField;
use protos::services::network as wire;
use protos::wire::Wire as _;
use protos::wire::network::{change_to_wire, joined_from_wire, request_to_wire};
use types::network::{
    Joined, Link, LinkChange, LinkMove, LinkName, NetNamespace, NetRequest, NetResult, NewLink,
    Place,
};
use types::{Fields, Filter, Labels, Result};

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// The networks of a namespace.
    Networks, NetworkClient<Again>
}

/// What is asked of a network driver.
#[derive(Clone, Copy, Debug)]
pub struct Joining<'a> {
    /// Its name.
    pub driver: &'a str,
    /// Name of the container's network namespace; `None`: the request has its path.
    pub namespace: Option<&'a str>,
    /// The rest; whose it is the call says.
    pub request: &'a NetRequest,
}

impl Joining<'_> {
    pub(super) fn to_wire(self) -> wire::Joining {
        let mut made = request_to_wire(self.driver, self.request);
        if let Some(name) = self.namespace {
            name.clone_into(&mut made.network_namespace);
            made.path.clear();
        }
        made
    }
}

/// What the daemon says of a network namespace.
fn described(found: MessageField<wire::NetworkNamespace>) -> Result<NetNamespace> {
    NetNamespace::from_wire(present(found, "network namespace")?)
}

/// What the daemon says of an interface.
fn told(found: MessageField<wire::Link>) -> Result<Link> {
    Link::from_wire(present(found, "interface")?)
}

impl Networks {
    /// Makes a network namespace, or gives the one that the file `adopt` stands for a name.
    ///
    /// # Errors
    /// `AlreadyExists`, `InvalidArgument`, `NotFound`.
    pub async fn create_namespace(
        &self,
        name: &str,
        adopt: Option<&Path>,
        labels: &Labels,
    ) -> Result<NetNamespace> {
        let message = wire::CreateNamespaceRequest {
            network_namespace: MessageField::some(wire::NetworkNamespace {
                name: name.to_owned(),
                adopted: adopt
                    .map(|path| path.display().to_string())
                    .unwrap_or_default(),
                labels: labels.to_wire(),
                ..Default::default()
            }),
            ..Default::default()
        };
        let answer = done(
            self.stub()
                .create_namespace(self.caller.request(message)?)
                .await,
        )?;
        described(answer.network_namespace)
    }

    /// The network namespace `name`.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_namespace(&self, name: &str) -> Result<NetNamespace> {
        let message = wire::GetNamespaceRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        let answer = done(
            self.stub()
                .get_namespace(self.caller.request(message)?)
                .await,
        )?;
        described(answer.network_namespace)
    }

    /// The network namespaces that pass the filter, by name.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list_namespaces(&self, filter: &Filter) -> Result<Vec<NetNamespace>> {
        let message = wire::ListNamespacesRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let request = self.caller.request(message)?;
        let mut stub = self.stub();
        let items = |page: wire::ListNamespacesResponse| Vec::from_wire(page.network_namespaces);
        self.caller
            .pages(stub.list_namespaces(request), items)
            .await
    }

    /// Changes labels of a network namespace.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument`.
    pub async fn update_namespace(
        &self,
        name: &str,
        labels: &Labels,
        fields: &Fields,
    ) -> Result<NetNamespace> {
        let message = wire::UpdateNamespaceRequest {
            network_namespace: MessageField::some(wire::NetworkNamespace {
                name: name.to_owned(),
                labels: labels.to_wire(),
                ..Default::default()
            }),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        let answer = done(
            self.stub()
                .update_namespace(self.caller.request(message)?)
                .await,
        )?;
        described(answer.network_namespace)
    }

    /// Takes a network namespace away.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` while processes are in it.
    pub async fn delete_namespace(&self, name: &str) -> Result<()> {
        let message = wire::DeleteNamespaceRequest {
            name: name.to_owned(),
            ..Default::default()
        };
        done(
            self.stub()
                .delete_namespace(self.caller.request(message)?)
                .await,
        )?;
        Ok(())
    }

    /// Makes an interface.
    ///
    /// # Errors
    /// `AlreadyExists`, `NotFound`, `InvalidArgument`, `FailedPrecondition`, `NotImplemented`.
    pub async fn create_link(&self, new: &NewLink) -> Result<Link> {
        let message = wire::CreateLinkRequest {
            link: MessageField::some(new.to_wire()),
            ..Default::default()
        };
        told(done(self.stub().create_link(self.caller.request(message)?).await)?.link)
    }

    /// An interface.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get_link(&self, place: &Place, name: &LinkName) -> Result<Link> {
        let message = wire::GetLinkRequest {
            network_namespace: place.name().to_owned(),
            name: name.to_string(),
            ..Default::default()
        };
        told(done(self.stub().get_link(self.caller.request(message)?).await)?.link)
    }

    /// The interfaces of a place that pass the filter, by name.
    ///
    /// # Errors
    /// `NotFound` for the place.
    pub async fn list_links(&self, place: &Place, filter: &Filter) -> Result<Vec<Link>> {
        let message = wire::ListLinksRequest {
            network_namespace: place.name().to_owned(),
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let request = self.caller.request(message)?;
        let mut stub = self.stub();
        let items = |page: wire::ListLinksResponse| Vec::from_wire(page.links);
        self.caller.pages(stub.list_links(request), items).await
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// `NotFound`, `InvalidArgument`, `FailedPrecondition`.
    pub async fn update_link(
        &self,
        place: &Place,
        name: &LinkName,
        change: &LinkChange,
    ) -> Result<Link> {
        let (link, mask) = change_to_wire(place, name, change);
        let message = wire::UpdateLinkRequest {
            link: MessageField::some(link),
            update_mask: MessageField::some(mask),
            ..Default::default()
        };
        told(done(self.stub().update_link(self.caller.request(message)?).await)?.link)
    }

    /// Moves an interface, or gives it another name, or both.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `FailedPrecondition`.
    pub async fn move_link(&self, place: &Place, name: &LinkName, to: &LinkMove) -> Result<Link> {
        let message = wire::MoveLinkRequest {
            network_namespace: place.name().to_owned(),
            name: name.to_string(),
            to_network_namespace: to.place.name().to_owned(),
            to_name: to.name.to_string(),
            ..Default::default()
        };
        told(done(self.stub().move_link(self.caller.request(message)?).await)?.link)
    }

    /// Takes an interface away.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition`.
    pub async fn delete_link(&self, place: &Place, name: &LinkName) -> Result<()> {
        let message = wire::DeleteLinkRequest {
            network_namespace: place.name().to_owned(),
            name: name.to_string(),
            ..Default::default()
        };
        done(self.stub().delete_link(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Has a driver join a container to networks.
    ///
    /// # Errors
    /// `NotFound`, `AlreadyExists`, `InvalidArgument`, `FailedPrecondition`, `DeadlineExceeded`.
    pub async fn setup(&self, joining: &Joining<'_>) -> Result<NetResult> {
        let message = wire::SetupRequest {
            joining: MessageField::some(joining.to_wire()),
            ..Default::default()
        };
        NetResult::from_wire(done(
            self.stub().setup(self.caller.request(message)?).await,
        )?)
    }

    /// Looks whether what a driver has made is there.
    ///
    /// # Errors
    /// `NotFound`, `FailedPrecondition` with what is not.
    pub async fn check(&self, joining: &Joining<'_>) -> Result<()> {
        let message = wire::CheckRequest {
            joining: MessageField::some(joining.to_wire()),
            ..Default::default()
        };
        done(self.stub().check(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Has a driver part a container from its networks.
    ///
    /// # Errors
    /// What could not be taken away yet.
    pub async fn teardown(&self, joining: &Joining<'_>) -> Result<()> {
        let message = wire::TeardownRequest {
            joining: MessageField::some(joining.to_wire()),
            ..Default::default()
        };
        done(self.stub().teardown(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// The attachments that drivers have on record; looked at each with `check`.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list_attachments(&self, filter: &Filter, check: bool) -> Result<Vec<Joined>> {
        let message = wire::ListAttachmentsRequest {
            filters: filter.texts().to_vec(),
            check,
            ..Default::default()
        };
        let request = self.caller.request(message)?;
        let mut stub = self.stub();
        let tenant = &self.caller.scope().namespace;
        let items = |page: wire::ListAttachmentsResponse| {
            let all = page.attachments.into_iter();
            all.map(|one| joined_from_wire(tenant, one)).collect()
        };
        self.caller
            .pages(stub.list_attachments(request), items)
            .await
    }

    /// Whether a driver can join anything now, and what may keep packets from where they should go.
    ///
    /// # Errors
    /// `NotFound` for the driver, `Unavailable` with the reason.
    pub async fn driver_status(&self, driver: &str) -> Result<Vec<String>> {
        let message = wire::StatusRequest {
            driver: driver.to_owned(),
            ..Default::default()
        };
        let answer = done(self.stub().status(self.caller.request(message)?).await)?;
        Ok(answer.warnings)
    }

    /// Has a driver's network forget every attachment but those on record, of whoever uses it.
    ///
    /// # Errors
    /// `NotFound`, `NotImplemented`, all that failed.
    pub async fn collect(&self, driver: &str, network: &str) -> Result<()> {
        let message = wire::CollectRequest {
            driver: driver.to_owned(),
            network: network.to_owned(),
            ..Default::default()
        };
        done(self.stub().collect(self.caller.request(message)?).await)?;
        Ok(())
    }
}
