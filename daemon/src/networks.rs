//! Networks in this daemon: where their files are, who hears of changes, and what the collector does with
//! them.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use metadata::gc::Unrecorded;
use network::{Networks, OpenOpts};
use tokio::sync::Notify;
use types::{Code, Event, Held, Result};

use crate::config::Config;
use crate::identity::Identity;
use crate::point::Row;
use crate::store::Store;

/// Kind of the networks.
pub(crate) const NETWORK: &str = "io.containerd.network.v1";
/// What makes them: the kernel.
const ID: &str = "native";

/// Opens the networks, and lets the collector take them away. `gone` hears of network namespaces that go.
///
/// # Errors
/// I/O on their directory.
pub(crate) fn open(store: &Store, config: &Config, gone: &Arc<Notify>) -> Result<(Networks, Row)> {
    let events = Arc::clone(&store.ground.events);
    let gone = Arc::clone(gone);
    let networks = Networks::open(OpenOpts {
        directory: directory(config),
        identity: Identity::load(&config.root)?.uuid,
        hidden: vec![network::bridge::mark(&config.state)],
        publisher: Arc::new(move |namespace, event| {
            if matches!(event, Event::NetworkNamespaceDelete { .. }) {
                gone.notify_one();
            }
            events.publish(&namespace, &event);
        }),
    })?;
    store
        .metadata
        .collect_networks(Arc::new(Kept(networks.clone())));
    let requires = &["io.containerd.metadata.v1", "io.containerd.event.v1"];
    Ok((networks, Row::ready(NETWORK, ID, requires)))
}

fn directory(config: &Config) -> PathBuf {
    config.state.join(format!("{NETWORK}.{ID}"))
}

/// The networks of a daemon that does not run.
///
/// # Errors
/// I/O on their directory.
pub(crate) fn examine(config: &Config) -> Result<Networks> {
    Networks::examine(OpenOpts {
        directory: directory(config),
        identity: Identity::find(&config.root)?,
        hidden: vec![network::bridge::mark(&config.state)],
        publisher: Arc::new(|_, _| {}),
    })
}

/// The networks as the collector knows them.
#[derive(Debug)]
struct Kept(Networks);

#[async_trait]
impl Unrecorded for Kept {
    fn held(&self) -> Vec<Held> {
        self.0.held()
    }

    async fn end(&self, held: &Held) {
        let name = &held.name;
        match self.0.collect(held).await {
            Ok(()) => {}
            // Whoever is in it keeps it for now.
            Err(error) if error.is(Code::FailedPrecondition) => {
                tracing::debug!(name, %error, "network that nobody keeps is in use");
            }
            Err(error) => {
                tracing::warn!(name, %error, "network that nobody keeps stays for now");
            }
        }
    }
}
