//! After a restart of the daemon: finding the shims again.
//!
//! Invariant: everything found is listed from the first moment on; nothing is killed because it is
//! slow. All shims are tried at the same time, a bounded number of them at once.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::timeout;

use crate::bootstrap;
use crate::entry::{Entry, Link};
use crate::log::Tap;
use crate::shims;
use crate::tasks::Shared;

/// Bundles read and shims greeted at once.
const AT_ONCE: usize = 64;
/// How long the start of the daemon counts on a shim, as in Go; it is waited for beyond that.
const LOAD: Duration = Duration::from_secs(5);

/// Recovers every task that was listed at the start.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let entries = shared.entries(None);
    futures::stream::iter(entries)
        .filter(|entry| std::future::ready(matches!(entry.link(), Link::Connecting)))
        .for_each_concurrent(AT_ONCE, |entry| one(shared, entry))
        .await;
    let bundles = shared.bundles.clone();
    let swept = tokio::task::spawn_blocking(move || bundles.sweep()).await;
    if let Ok(Err(error)) = swept {
        tracing::warn!(%error, "remove what earlier tasks left");
    }
}

async fn one(shared: &Arc<Shared>, entry: Arc<Entry>) {
    let (namespace, id) = (&entry.namespace, &entry.id);
    if entry.bundle.is_empty() {
        tracing::info!(%namespace, %id, "removing an empty bundle");
        if let Err(error) = entry.bundle.remove() {
            tracing::warn!(%namespace, %id, %error, "remove empty bundle");
        }
        entry.finish(crate::bundle::lost(0));
        shared.forget(&entry);
        return;
    }
    prepare(shared, &entry);
    let mut links = entry.links();
    let supervisor = shims::supervise(Arc::clone(shared), Arc::clone(&entry), None);
    tokio::spawn(supervisor);
    let settled = links.wait_for(|link| !matches!(link, Link::Connecting));
    if timeout(LOAD, settled).await.is_err() {
        tracing::warn!(%namespace, %id, "shim does not respond; its task stays as it is");
    }
}

/// Reads what the bundle says, and reads the shim's log again.
fn prepare(shared: &Shared, entry: &Entry) {
    let (namespace, id) = (&entry.namespace, &entry.id);
    entry.look();
    if let Some(address) = entry.bundle.address() {
        if let Err(error) = entry.bundle.migrate_address(&address) {
            tracing::warn!(%namespace, %id, %error, "address of an older shim");
        }
        let _first = entry.address.set(address);
    }
    let binary = entry.bundle.binary().or_else(|| {
        let runtime = (shared.config.runtime_of)(namespace, id)?;
        let resolved = bootstrap::resolve(&runtime);
        resolved
            .inspect_err(|error| tracing::warn!(%namespace, %id, %error, "runtime of task"))
            .ok()
    });
    if let Some(binary) = binary {
        let _first = entry.binary.set(binary);
    }
    match Tap::open(&entry.bundle, namespace, id) {
        Ok(tap) => entry.tap(tap),
        Err(error) => tracing::warn!(%namespace, %id, %error, "log of shim"),
    }
}
