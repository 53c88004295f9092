//! Container records.

use grpc::containers::ContainersClient;
use protos::MessageField;
use protos::services::containers as wire;
use protos::wire::Wire as _;
use types::{Code, Container, ContainerId, Fields, Filter, Result};

use crate::again::Again;
use crate::call::{done, present};

super::service! {
    /// The container records of a namespace.
    Containers, ContainersClient<Again>
}

impl Containers {
    /// One container.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn get(&self, id: &ContainerId) -> Result<Container> {
        let message = wire::GetContainerRequest {
            id: id.to_string(),
            ..Default::default()
        };
        let answer = done(self.stub().get(self.caller.request(message)?).await)?;
        Container::from_wire(present(answer.container, "container")?)
    }

    /// All containers that pass the filter, by id. One message each; a daemon that cannot do that
    /// is asked for all in one.
    ///
    /// # Errors
    /// Of the call.
    pub async fn list(&self, filter: &Filter) -> Result<Vec<Container>> {
        let message = wire::ListContainersRequest {
            filters: filter.texts().to_vec(),
            ..Default::default()
        };
        let mut all = Vec::new();
        let streamed = async {
            let request = self.caller.endless(message.clone())?;
            let mut stream = done(self.stub().list_stream(request).await)?;
            while let Some(one) = stream
                .message()
                .await
                .map_err(|s| grpc::status::to_error(&s))?
            {
                all.push(Container::from_wire(present(one.container, "container")?)?);
            }
            Ok(())
        };
        match streamed.await {
            Ok(()) => return Ok(all),
            Err(e) if types::Error::is(&e, Code::NotImplemented) => {}
            Err(e) => return Err(e),
        }
        let answer = done(self.stub().list(self.caller.request(message)?).await)?;
        Vec::from_wire(answer.containers)
    }

    /// Makes a record.
    ///
    /// # Errors
    /// `AlreadyExists`; `InvalidArgument` for one that cannot be.
    pub async fn create(&self, container: &Container) -> Result<Container> {
        let message = wire::CreateContainerRequest {
            container: MessageField::some(container.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().create(self.caller.request(message)?).await)?;
        Container::from_wire(present(answer.container, "container")?)
    }

    /// Changes what `fields` names.
    ///
    /// # Errors
    /// `NotFound`; `InvalidArgument` for a field that cannot change.
    pub async fn update(&self, container: &Container, fields: &Fields) -> Result<Container> {
        let message = wire::UpdateContainerRequest {
            container: MessageField::some(container.to_wire()),
            update_mask: MessageField::some(fields.to_wire()),
            ..Default::default()
        };
        let answer = done(self.stub().update(self.caller.request(message)?).await)?;
        Container::from_wire(present(answer.container, "container")?)
    }

    /// Removes a record; its task and its snapshot stay.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn delete(&self, id: &ContainerId) -> Result<()> {
        let message = wire::DeleteContainerRequest {
            id: id.to_string(),
            ..Default::default()
        };
        done(self.stub().delete(self.caller.request(message)?).await)?;
        Ok(())
    }
}
