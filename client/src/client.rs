//! The connection and its services.

use std::sync::Arc;
use std::time::Duration;

use content::ContentStore;
use diff::{Applier, Comparer};
use snapshotters::{SETTLES, Snapshotter};
use tonic::transport::Channel;
use types::{Context as _, DEFAULT_RUNTIME, Filter, LeaseId, Namespace, Result, Scope, label};

use crate::call::Caller;
use crate::remote::{RemoteContent, RemoteDiff, RemoteSnapshotter};
use crate::services::{
    Containers, Events, Flights, Images, Introspection, Lease, Leases, Mounts, Namespaces,
    Networks, Tasks,
};

/// Snapshotter where neither the caller nor the namespace names one.
pub const DEFAULT_SNAPSHOTTER: &str = "overlayfs";

/// Differs of daemons that do not say what they can do, older ones of ours and Go's, that a layer may be
/// given to without its parents: the second takes none that is not for its own snapshotter.
const DIFFERS: [&str; 2] = ["walking", "erofs"];

/// A connection to a daemon, in one namespace. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Client {
    caller: Caller,
}

impl Client {
    /// Connects to the daemon at `address` within `limit`.
    ///
    /// # Errors
    /// `Unavailable` when nobody answers there; `InvalidArgument` for an address of another kind.
    pub async fn connect(address: &str, namespace: Namespace, limit: Duration) -> Result<Self> {
        let channel = crate::connect::connect(address, limit).await?;
        Ok(Self::new(channel, namespace))
    }

    /// A client on a channel that is there already.
    #[must_use]
    pub fn new(channel: Channel, namespace: Namespace) -> Self {
        Self {
            caller: Caller::new(channel, Scope::new(namespace)),
        }
    }

    /// Channel, scope and deadline.
    #[must_use]
    pub fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The namespace it works in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.caller.scope().namespace
    }

    /// The same client under a lease.
    #[must_use]
    pub fn leased(&self, lease: LeaseId) -> Self {
        Self {
            caller: self.caller.leased(lease),
        }
    }

    /// The same client with another deadline for plain calls.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self {
            caller: self.caller.with_deadline(deadline),
        }
    }

    /// Namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(&self.caller)
    }

    /// Images: records only, their content is in [`Client::content`].
    #[must_use]
    pub fn images(&self) -> Images {
        Images::new(&self.caller)
    }

    /// Containers.
    #[must_use]
    pub fn containers(&self) -> Containers {
        Containers::new(&self.caller)
    }

    /// Leases.
    #[must_use]
    pub fn leases(&self) -> Leases {
        Leases::new(&self.caller)
    }

    /// Mounts that the daemon performs.
    #[must_use]
    pub fn mounts(&self) -> Mounts {
        Mounts::new(&self.caller)
    }

    /// Network namespaces and interfaces.
    #[must_use]
    pub fn networks(&self) -> Networks {
        Networks::new(&self.caller)
    }

    /// Tasks: what runs.
    #[must_use]
    pub fn tasks(&self) -> Tasks {
        Tasks::new(&self.caller)
    }

    /// Events.
    #[must_use]
    pub fn events(&self) -> Events {
        Events::new(&self.caller)
    }

    /// Version, plugins, server.
    #[must_use]
    pub fn introspection(&self) -> Introspection {
        Introspection::new(&self.caller)
    }

    /// What the daemon is doing.
    #[must_use]
    pub fn flights(&self) -> Flights {
        Flights::new(&self.caller)
    }

    /// The content store.
    #[must_use]
    pub fn content(&self) -> Arc<dyn ContentStore> {
        Arc::new(RemoteContent::new(self.caller.clone()))
    }

    /// The snapshotter `name`.
    #[must_use]
    pub fn snapshotter(&self, name: &str) -> Arc<dyn Snapshotter> {
        Arc::new(RemoteSnapshotter::new(self.caller.clone(), name))
    }

    /// The snapshotter `name` for a transfer: the daemon is asked what it can do.
    ///
    /// # Errors
    /// Of the call.
    pub async fn transfer_snapshotter(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        let wanted = format!("type==io.containerd.snapshotter.v1,id=={name}");
        let filter = Filter::parse(&[wanted])?;
        let found = self.introspection().plugins(&filter).await?;
        let words = found.iter().flat_map(|plugin| &plugin.capabilities);
        let words: Vec<_> = words.map(String::as_str).collect();
        let (rebases, settles) = unpacks_at_once(name, &words);
        let made = RemoteSnapshotter::new(self.caller.clone(), name);
        Ok(Arc::new(made.with_rebase(rebases).with_settling(settles)))
    }

    /// The daemon's differ, unpacking.
    #[must_use]
    pub fn applier(&self) -> Arc<dyn Applier> {
        Arc::new(RemoteDiff::new(self.caller.clone()))
    }

    /// The daemon's differ for a transfer: the daemon is asked which ones there are.
    ///
    /// # Errors
    /// Of the call.
    pub async fn transfer_applier(&self) -> Result<Arc<dyn Applier>> {
        let filter = Filter::parse(&["type==io.containerd.differ.v1"])?;
        let found = self.introspection().plugins(&filter).await?;
        let ready = found.iter().filter(|plugin| plugin.fault.is_none());
        // Another program's may come before the daemon's own, whatever the layer.
        let rows = ready.map(|plugin| (plugin.id.as_str(), plugin.capabilities.as_slice()));
        let settles = they_settle(rows);
        let made = RemoteDiff::new(self.caller.clone());
        Ok(Arc::new(made.with_settling(settles)))
    }

    /// The daemon's differ, packing.
    #[must_use]
    pub fn comparer(&self) -> Arc<dyn Comparer> {
        Arc::new(RemoteDiff::new(self.caller.clone()))
    }

    /// Name of the snapshotter to use: the given one, else the namespace's, else the default.
    ///
    /// # Errors
    /// Of asking for the namespace.
    pub async fn snapshotter_name(&self, given: &str) -> Result<String> {
        let default = self
            .namespace_default(given, label::DEFAULT_SNAPSHOTTER)
            .await?;
        Ok(default.unwrap_or_else(|| DEFAULT_SNAPSHOTTER.to_owned()))
    }

    /// Name of the runtime to use: the given one, else the namespace's, else the default.
    ///
    /// # Errors
    /// Of asking for the namespace.
    pub async fn runtime_name(&self, given: &str) -> Result<String> {
        let default = self
            .namespace_default(given, label::DEFAULT_RUNTIME)
            .await?;
        Ok(default.unwrap_or_else(|| DEFAULT_RUNTIME.to_owned()))
    }

    /// `given` unless it is empty, else the namespace's label `key`.
    async fn namespace_default(&self, given: &str, key: &str) -> Result<Option<String>> {
        if !given.is_empty() {
            return Ok(Some(given.to_owned()));
        }
        let namespace = self.namespaces().get(self.namespace()).await.absent_ok()?;
        Ok(namespace
            .and_then(|mut n| n.labels.remove(key))
            .filter(|name| !name.is_empty()))
    }

    /// Runs `work` with a client under a fresh lease, which goes when the work is done, failed or
    /// dropped. Should the process die, the lease expires after a day.
    ///
    /// # Errors
    /// Of making the lease, else of the work; a lease that cannot be removed is only logged.
    pub async fn with_lease<T>(&self, work: impl AsyncFnOnce(Self) -> Result<T>) -> Result<T> {
        let lease = Lease::create(self.leases()).await?;
        let done = work(self.leased(lease.id().clone())).await;
        if let Err(error) = lease.remove().await {
            tracing::warn!(%error, "cannot remove lease");
        }
        done
    }
}

/// Whether a daemon's snapshotter with these capabilities rebases, and whether it knows what the daemon's
/// differ leaves in a layer whose parent is not there. By this name it is the daemon's own; others that say
/// nothing of it may be another program's.
fn unpacks_at_once(name: &str, words: &[&str]) -> (bool, bool) {
    let settles = words.contains(&SETTLES);
    let rebases = words.contains(&"rebase");
    (
        rebases || settles,
        settles || (rebases && name == DEFAULT_SNAPSHOTTER),
    )
}

/// True when layers may be given to a daemon's differs with these names and capabilities without their
/// parents, whichever is asked.
fn they_settle<'a>(mut differs: impl Iterator<Item = (&'a str, &'a [String])>) -> bool {
    differs.all(|(id, words)| match words {
        [] => DIFFERS.contains(&id),
        words => words.iter().any(|word| word == SETTLES),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_unpacked_at_once_where_all_is_the_daemons_own() {
        for (name, words, want) in [
            ("overlayfs", &["rebase"][..], (true, true)),
            ("overlayfs", &["remap-ids"], (false, false)),
            ("erofs", &["remap-ids", "settle"], (true, true)),
            ("somebodys", &["rebase"], (true, false)),
            ("ours", &["rebase", "settle"], (true, true)),
            ("native", &[], (false, false)),
        ] {
            assert_eq!(unpacks_at_once(name, words), want, "{name} {words:?}");
        }
        for (differs, want) in [
            (&[("erofs", ""), ("walking", "")][..], true),
            (&[("far", ""), ("walking", "")], false),
            (&[("far", "settle"), ("walking", "settle")], true),
            (&[("far", ""), ("walking", "settle")], false),
            (&[("walking", "other")], false),
        ] {
            let rows = differs.iter().map(|&(id, word)| {
                let words = (!word.is_empty()).then(|| word.to_owned());
                (id, words.into_iter().collect::<Vec<_>>())
            });
            let rows: Vec<_> = rows.collect();
            let rows = rows.iter().map(|(id, words)| (*id, words.as_slice()));
            assert_eq!(they_settle(rows), want, "{differs:?}");
        }
    }
}
