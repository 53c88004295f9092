//! What was said before the group's name: the one thing that every group gets to see of it.

use std::time::Duration;

use client::Client;
use types::{Container, ContainerId, Namespace, Result};

/// The daemon, and the namespace in which to work.
#[derive(Debug)]
pub(crate) struct Context {
    /// The daemon's address.
    pub(crate) address: String,
    /// The namespace of the command.
    pub(crate) namespace: Namespace,
    /// How long to wait for the daemon's first answer.
    pub(crate) connect: Duration,
}

impl Context {
    /// Connects to the daemon.
    pub(crate) async fn client(&self) -> Result<Client> {
        Client::connect(&self.address, self.namespace.clone(), self.connect).await
    }

    /// The daemon and a container's record: where that is absent, people must hear of it, and not of the
    /// absence of its task.
    pub(crate) async fn container(&self, id: &str) -> Result<(Client, Container)> {
        let id: ContainerId = id.parse()?;
        let client = self.client().await?;
        let record = client.containers().get(&id).await?;
        Ok((client, record))
    }
}
