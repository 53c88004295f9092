//! What is ours, for others: the services that containerd asks of proxy plugins and gives to its clients,
//! over any snapshotter, content store or differ.
//!
//! ```text
//! containerd's [proxy_plugins] ── socket ── snapshotters() ──> dyn Snapshotter
//!                                 socket ── content() ───────> dyn ContentStore
//!                                 socket ── differ() ────────> dyn Applier + Comparer
//! clients ── the daemon's socket ── Snapshots, Content, Diff over its namespaces
//! ```
//! Invariant: what a part answers goes out as it is; nothing is kept here. Whether there are namespaces is
//! said by what a service is made of ([`grpc::Tenant`]): the conversions are the same.

mod content;
mod diff;
mod pace;
mod snapshots;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use ::content::ContentStore;
use ::diff::{Applier, ApplyOpts, CompareOpts, Comparer};
use ::snapshotters::Snapshotter;
use async_trait::async_trait;
use grpc::content::ContentServer;
use grpc::diff::DiffServer;
use grpc::snapshots::SnapshotsServer;
use grpc::{Anybody, Routes};
use tokio::net::UnixListener;
use types::{Descriptor, Error, Mount, Result, Scope};

pub use content::{Content, Contents};
pub use diff::{Diff, Differs};
pub use snapshots::{Snapshots, Snapshotters};

/// Without a free descriptor, the next try would fail at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves snapshotters, by the names under which clients ask for them, until `stop` completes and the
/// last client has gone.
pub async fn snapshotters(
    listener: UnixListener,
    served: BTreeMap<String, Arc<dyn Snapshotter>>,
    stop: impl Future<Output = ()>,
) {
    let service = Snapshots(Named(Arc::new(served)));
    let routes = Routes::of(SnapshotsServer::new(service));
    serve(listener, routes, stop).await;
}

/// Serves a content store, until `stop` completes and the last client has gone.
pub async fn content(
    listener: UnixListener,
    served: Arc<dyn ContentStore>,
    stop: impl Future<Output = ()>,
) {
    let routes = Routes::of(ContentServer::new(Content(One(served))));
    serve(listener, routes, stop).await;
}

/// Serves a differ that works on the store which `store` gives it for the namespace of a call, as that of
/// the daemon at the other end; until `stop` completes and the last client has gone.
pub async fn differ<D: Applier + Comparer + 'static>(
    listener: UnixListener,
    served: Arc<D>,
    store: impl Fn(&Scope) -> Arc<dyn ContentStore> + Send + Sync + 'static,
    stop: impl Future<Output = ()>,
) {
    let store = Arc::new(store);
    let routes = Routes::of(DiffServer::new(Diff(Placed { served, store })));
    serve(listener, routes, stop).await;
}

async fn serve(listener: UnixListener, routes: Routes, stop: impl Future<Output = ()>) {
    let incoming = futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(stream), listener)),
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    });
    grpc::connections::serve(routes, incoming, stop).await;
}

/// Snapshotters by name: callers' namespaces are part of their keys and nothing else here.
#[derive(Clone)]
struct Named(Arc<BTreeMap<String, Arc<dyn Snapshotter>>>);

impl Snapshotters for Named {
    type Tenant = Anybody;

    fn pick(&self, _: &Anybody, name: &str) -> Result<Arc<dyn Snapshotter>> {
        let found = self.0.get(name).map(Arc::clone);
        found.ok_or_else(|| Error::invalid_argument(format_args!("snapshotter not loaded: {name}")))
    }
}

/// One store for all: what a namespace sees of it is the affair of the daemon that asks.
#[derive(Clone)]
struct One(Arc<dyn ContentStore>);

impl Contents for One {
    type Tenant = Anybody;

    fn content(&self, _: &Anybody) -> Result<Arc<dyn ContentStore>> {
        Ok(Arc::clone(&self.0))
    }
}

/// A differ and where it finds content.
struct Placed<D> {
    served: Arc<D>,
    store: Arc<StoreOf>,
}

/// The content store of a namespace.
type StoreOf = dyn Fn(&Scope) -> Arc<dyn ContentStore> + Send + Sync;

impl<D> Clone for Placed<D> {
    fn clone(&self) -> Self {
        Self {
            served: Arc::clone(&self.served),
            store: Arc::clone(&self.store),
        }
    }
}

impl<D: fmt::Debug> fmt::Debug for Placed<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Placed").field(&self.served).finish()
    }
}

#[async_trait]
impl<D: Applier + Comparer + 'static> Differs for Placed<D> {
    async fn apply(
        &self,
        scope: &Scope,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        let store = (self.store)(scope);
        self.served.apply(&store, layer, mounts, opts).await
    }

    async fn compare(
        &self,
        scope: &Scope,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        let store = (self.store)(scope);
        self.served.compare(&store, lower, upper, opts).await
    }
}

#[cfg(test)]
mod tests;
