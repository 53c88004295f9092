//! Namespaces.

use grpc::namespaces::NamespacesClient;
use protos::MessageField;
use protos::services::namespaces as wire;
use protos::wire::Wire as _;
use types::{Fields, Labels, Namespace, NamespaceInfo, Result};

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// The namespaces of a daemon.
    Namespaces, NamespacesClient<Again>
}

impl Namespaces {
    /// One namespace. A namespace that does not exist has no labels.
    ///
    /// # Errors
    /// Of the call.
    pub async fn get(&self, name: &Namespace) -> Result<NamespaceInfo> {
        let message = wire::GetNamespaceRequest {
            name: name.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().get(self.caller.request(message)?).await)?;
        NamespaceInfo::from_wire(present(answer.namespace, "namespace")?)
    }

    /// All namespaces, by name.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list(&self) -> Result<Vec<NamespaceInfo>> {
        let message = wire::ListNamespacesRequest::default();
        let answer = done(self.stub().list(self.caller.request(message)?).await)?;
        Vec::from_wire(answer.namespaces)
    }

    /// Makes a namespace.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub async fn create(&self, namespace: &NamespaceInfo) -> Result<NamespaceInfo> {
        let message = wire::CreateNamespaceRequest {
            namespace: MessageField::some(namespace.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().create(self.caller.request(message)?).await)?;
        NamespaceInfo::from_wire(present(answer.namespace, "namespace")?)
    }

    /// Sets labels; the empty value removes one.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn set_labels(&self, name: &Namespace, labels: &Labels) -> Result<()> {
        let namespace = NamespaceInfo {
            name: name.clone(),
            labels: labels.clone(),
        };
        let fields = Fields::new(labels.keys().map(|key| format!("labels.{key}")).collect());
        let message = wire::UpdateNamespaceRequest {
            namespace: MessageField::some(namespace.to_wire()),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        // Parity: services/namespaces/local.go: Go answers with an empty namespace.
        done(self.stub().update(self.caller.request(message)?).await)?;
        Ok(())
    }

    /// Removes an empty namespace.
    ///
    /// # Errors
    /// `NotFound`; `FailedPrecondition` while there is something in it.
    pub async fn delete(&self, name: &Namespace) -> Result<()> {
        let message = wire::DeleteNamespaceRequest {
            name: name.to_string(),
            ..Default::default()
        };
        done(self.stub().delete(self.caller.request(message)?).await)?;
        Ok(())
    }
}
