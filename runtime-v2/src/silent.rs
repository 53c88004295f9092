//! Shims that do not answer: told of by name as long as that lasts, in the flights and in the counters.
//!
//! Invariant: a shim that answers in time leaves no trace here. Called by `shims`, which follows each task.

use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::timeout;

use crate::entry::Entry;

/// From here on a shim that is being looked for is told of.
const NOTABLE: Duration = Duration::from_secs(1);
/// The flight of one.
const FLIGHT: &str = "silent shim";

/// A shim is silent as long as there is this.
struct Silent<'a>(&'a Entry);

impl<'a> Silent<'a> {
    fn begin(entry: &'a Entry) -> Self {
        entry.silent.store(true, Ordering::Relaxed);
        Self(entry)
    }
}

impl Drop for Silent<'_> {
    fn drop(&mut self) {
        self.0.silent.store(false, Ordering::Relaxed);
    }
}

/// Does what waits for the first word of a shim; when that takes long, it is told of.
pub(crate) async fn told_late<R>(entry: &Entry, reaching: impl Future<Output = R>) -> R {
    let mut reaching = pin!(reaching);
    match timeout(NOTABLE, &mut reaching).await {
        Ok(reached) => reached,
        Err(_) => told(entry, reaching).await,
    }
}

/// Does what waits for the next word of a shim that did not answer in time.
pub(crate) async fn told<R>(entry: &Entry, reaching: impl Future<Output = R>) -> R {
    let _silent = Silent::begin(entry);
    let waiting = async {
        recorder::subject(entry.namespace.as_str(), entry.id.as_str());
        let _waiting = recorder::stage("answer of shim", || entry.named());
        Ok::<_, Infallible>(reaching.await)
    };
    let Ok(reached) = recorder::fly(FLIGHT, waiting).await;
    reached
}
