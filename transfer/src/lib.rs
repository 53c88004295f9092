//! Moving images: out of registries and archives into a content store, and from there into snapshots.
//!
//! Invariant: what an image record names is complete, verified, labelled for the collector and, when
//! asked for, unpacked, before the record is written. A failed or abandoned transfer leaves no
//! extraction snapshot. Works over traits, so it runs in the daemon on its stores and in a client on
//! remote ones; the caller holds a lease meanwhile. Called by `daemon`, `cri` and `ctr`.
//!
//! ```text
//! pull    registry --fetch--> content --unpack--> snapshots --> image record
//! import  archive  --------->    |
//! push    registry <-------------'
//! ```

mod begun;
mod extract;
mod fetch;
mod import;
mod names;
mod progress;
mod pull;
mod push;
mod renew;
mod rooms;
mod turns;
mod unpack;
mod verify;

#[cfg(test)]
mod fake;

use std::sync::Arc;
use std::time::Duration;

use content::ContentStore;
use diff::Applier;
use images::ImageStore;
use registry::{Budget, RegistryOpts};
use snapshotters::Snapshotter;

pub use import::{ImportOpts, import};
pub use names::Names;
pub use progress::{OnProgress, Progress, Status};
pub use pull::{PullOpts, pull};
pub use push::{PushOpts, push};
pub use renew::renew;
pub use turns::{Places, fitted};
pub use unpack::{unpack, unpack_image};
pub use verify::verify;

/// How long a whole pull or push may be without any progress: more than all that one request may
/// take, a question to a person included.
const IDLE: Duration = Duration::from_secs(300);

/// What a transfer works on; local or remote, scoped to one namespace and lease.
#[derive(Clone, Debug)]
pub struct Deps {
    /// Blobs.
    pub content: Arc<dyn ContentStore>,
    /// Image records.
    pub images: Arc<dyn ImageStore>,
    /// Snapshots of unpacked layers.
    pub snapshotter: Arc<dyn Snapshotter>,
    /// Its name, for the label by which an image keeps its snapshots.
    pub snapshotter_name: String,
    /// Unpacks layers.
    pub applier: Arc<dyn Applier>,
}

/// The budget of one pull or push: as the caller's, or else one that ends with progress. It tells of what
/// it waits for.
fn budget(opts: &mut RegistryOpts, on: &OnProgress) -> Budget {
    let given = opts.budget.take();
    let budget = given.unwrap_or_else(|| Budget::new(IDLE, None));
    let on = on.clone();
    let budget = budget.telling(move |text| on.delay(text));
    opts.budget.insert(budget).clone()
}
