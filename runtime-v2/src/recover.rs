//! After a restart of the daemon: finding the shims again.
//!
//! Invariant: everything found is listed from the first moment on; nothing is killed because it is
//! slow. All shims are tried at the same time, a bounded number of them at once; one that is silent makes
//! room for the next, and is waited for beside it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use tokio::time::{Instant, timeout, timeout_at};
use types::Errors;

use crate::bootstrap;
use crate::entry::{Entry, Link};
use crate::log::Tap;
use crate::reach;
use crate::shims;
use crate::sockets;
use crate::tasks::Shared;

/// Bundles read and shims greeted at once.
const AT_ONCE: usize = 64;
/// How long a shim has its place among those: one that is silent must not hold up the others.
const GREETING: Duration = Duration::from_millis(200);
/// How long the start of the daemon counts on a shim, as in Go; it is waited for beyond that.
const LOAD: Duration = Duration::from_secs(5);

/// Recovers every task that was listed at the start.
pub(crate) async fn run(shared: &Arc<Shared>) {
    let begun = Instant::now();
    bootstrap::reap_again();
    let entries = shared.entries(None);
    // Of all, before the first is buried: its end is told to those of the same shim, which are known by
    // where it listens.
    for entry in &entries {
        prepare(shared, entry);
        // It may take long, and there is more to do than this.
        tokio::task::yield_now().await;
    }
    let silent: Vec<_> = futures::stream::iter(entries)
        .filter(|entry| std::future::ready(matches!(entry.link(), Link::Connecting)))
        .map(|entry| one(shared, entry))
        .buffer_unordered(AT_ONCE)
        .filter_map(std::future::ready)
        .collect()
        .await;
    for entry in silent {
        let (namespace, id) = (&entry.namespace, &entry.id);
        if timeout_at(begun + LOAD, settled(&entry)).await.is_err() {
            tracing::warn!(%namespace, %id, "shim does not respond; its task stays as it is");
        }
    }
    let (bundles, state) = (shared.bundles.clone(), shared.config.state.clone());
    let named = named(shared);
    let swept = tokio::task::spawn_blocking(move || {
        let mut errors = Errors::default();
        errors.note(bundles.sweep());
        if let Some(named) = named {
            errors.note(sockets::sweep(&state, &named));
        }
        errors.into_result()
    });
    if let Ok(Err(error)) = swept.await {
        tracing::warn!(%error, "remove what earlier tasks left");
    }
}

/// The sockets that bundles name; `None` while one of them does not tell.
fn named(shared: &Shared) -> Option<HashSet<PathBuf>> {
    let entries = shared.entries(None).into_iter();
    let alive = entries.filter(|entry| !matches!(entry.link(), Link::Gone(_)));
    let path = |entry: Arc<Entry>| {
        let address = entry.address.get()?;
        Some(PathBuf::from(address.unix_path().unwrap_or_default()))
    };
    alive.map(path).collect()
}

/// Waits until it is known what has become of a shim.
async fn settled(entry: &Entry) {
    let mut links = entry.links();
    let known = links.wait_for(|link| !matches!(link, Link::Connecting));
    // The sender lives in the entry.
    drop(known.await);
}

/// Takes one up; itself when its shim is silent so far.
async fn one(shared: &Arc<Shared>, entry: Arc<Entry>) -> Option<Arc<Entry>> {
    let (namespace, id) = (&entry.namespace, &entry.id);
    if entry.bundle.is_empty() {
        tracing::info!(%namespace, %id, "removing an empty bundle");
        if let Err(error) = entry.bundle.remove() {
            tracing::warn!(%namespace, %id, %error, "remove empty bundle");
        }
        entry.finish(crate::bundle::lost(0));
        shared.forget(&entry);
        return None;
    }
    match Tap::open(&entry.bundle, namespace, id) {
        Ok(tap) => entry.tap(tap),
        Err(error) => tracing::warn!(%namespace, %id, %error, "log of shim"),
    }
    let supervisor = shims::supervise(Arc::clone(shared), Arc::clone(&entry), None);
    tokio::spawn(supervisor);
    match timeout(GREETING, settled(&entry)).await {
        Ok(()) => None,
        Err(_) => Some(entry),
    }
}

/// Reads what the bundle says.
fn prepare(shared: &Shared, entry: &Entry) {
    if !matches!(entry.link(), Link::Connecting) || entry.bundle.is_empty() {
        return;
    }
    let (namespace, id) = (&entry.namespace, &entry.id);
    match entry.bundle.stdio() {
        Ok(Some(stdio)) => entry.seen().streams(stdio),
        Ok(None) => {}
        Err(error) => tracing::warn!(%namespace, %id, %error, "streams of task"),
    }
    if let Err(error) = reach::load(shared, entry) {
        // Whoever is to reach the shim reads it again.
        entry.blame(&error);
    }
}
