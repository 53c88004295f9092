//! Metadata: namespaces, images, containers, leases, and the namespaced view of content and
//! snapshots; the collector that keeps backends and records in step.
//!
//! Invariant: the records are the only truth. A blob or snapshot exists in a namespace exactly when
//! its record does; what a backend holds beyond that is garbage and gets collected. Durable before
//! visible: backend data, then the record, then the event. Called by the daemon's services, `cri` and
//! `transfer`; nobody else touches the backends.
//!
//! ```text
//! scoped(&scope).content() / .snapshotter(name)   images(&scope)  containers  leases  namespaces
//!            |                                          |
//!            v                                          v
//!   backend stores (unnamespaced)  <--gc collect--  db (transactions) -> kv (redb, group commit)
//! ```

mod begin;
mod check;
mod codec;
mod containers;
mod content;
mod db;
mod detach;
#[cfg(test)]
mod fixture;
mod flight;
mod gate;
pub mod gc;
mod images;
mod ingest;
mod key;
mod kv;
mod leases;
mod mask;
mod migrate;
mod namespaces;
mod rebuild;
mod record;
mod snapshots;

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ::content::ContentStore;
use ::snapshotters::Snapshotter;
use events::Exchange;
use types::{Error, LeaseId, Mount, Namespace, Result, Scope};

pub use self::containers::{Containers, Pages};
pub use self::flight::Applying;
pub use self::images::Images;
pub use self::leases::Leases;
pub use self::namespaces::Namespaces;
pub use self::rebuild::FoundTask;

use self::begin::Begun;
use self::db::{Db, Marks, Outlet};
use self::flight::Flights;
use self::gate::Gate;
use self::snapshots::Unnamed;

/// Whether a namespace may link a blob that only another one has brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Naming the digest is enough.
    #[default]
    Shared,
    /// The data must be brought again, except that of namespaces labelled as shareable.
    Isolated,
}

/// What [`Metadata::open`] needs besides the path.
pub struct OpenOpts {
    /// Backend of content.
    pub content: Arc<dyn ContentStore>,
    /// Backends of snapshots, by name.
    pub snapshotters: BTreeMap<String, Arc<dyn Snapshotter>>,
    /// Where committed changes are told.
    pub events: Arc<Exchange>,
    /// Sharing of content between namespaces.
    pub policy: Policy,
    /// The tasks that have a bundle: asked only when records are lost.
    pub tasks: TasksOf,
    /// Snapshotters that have data and do not work: without them nothing can be rebuilt, and what a lost
    /// end of the journal named there is looked for when they work again.
    pub absent: Vec<String>,
}

/// Tells which tasks have a bundle.
pub type TasksOf = Box<dyn Fn() -> Result<Vec<FoundTask>> + Send + Sync>;

/// The metadata store. Clones are cheap and share it.
#[derive(Clone)]
pub struct Metadata(Arc<Shared>);

/// What all handles share.
pub(crate) struct Shared {
    pub(crate) db: Db,
    pub(crate) content: Arc<dyn ContentStore>,
    /// Blobs that have no record and are no garbage for that; one that gets a record is as all others.
    spared: Mutex<HashSet<String>>,
    pub(crate) snapshotters: BTreeMap<String, snapshots::Backend>,
    pub(crate) policy: Policy,
    /// Held by who is about to link a blob, taken by who removes it.
    pub(crate) digests: Gate,
    /// Layers that are being unpacked.
    pub(crate) flights: Arc<Flights>,
    pub(crate) collector: gc::Collector,
    /// What was wrong with the store when it was opened.
    damage: Option<String>,
}

impl Shared {
    /// True when a blob may have lost its record, and is kept without one.
    pub(crate) fn spares(&self, digest: &str) -> bool {
        let spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.contains(digest)
    }

    /// A blob has a record now: when that goes, so does the blob.
    pub(crate) fn recorded(&self, digest: &str) {
        let mut spared = self.spared.lock().unwrap_or_else(PoisonError::into_inner);
        spared.remove(digest);
    }
}

/// The files that the store at `path` may have. That of another containerd is one of them: it is
/// refused, and so is one beside a copy.
#[must_use]
pub fn store_files(path: &Path) -> [PathBuf; 3] {
    let [store, journal] = kv::files(path);
    [store, journal, path.with_file_name(FOREIGN)]
}

/// Copies the files of the store at `from` to where the one at `to` would have them.
///
/// # Errors
/// I/O.
pub fn copy_store(from: &Path, to: &Path) -> Result<()> {
    for (from, to) in store_files(from).iter().zip(store_files(to)) {
        sys::fs::copy_if_there(from, &to)?;
    }
    Ok(())
}

impl Metadata {
    /// Opens the store at `path`, making it for a root that nobody has used. A store that is damaged or
    /// gone is restored from its journal, else rebuilt from what is in the backends; the log tells. The
    /// first collection will look at every backend, since a crash may have left anything there.
    ///
    /// # Errors
    /// `Unavailable` when another daemon has it and keeps it; `FailedPrecondition` when a newer daemon or
    /// Go's wrote it; I/O. Of an older daemon's store a copy is kept beside it.
    pub async fn open(path: &Path, opts: OpenOpts) -> Result<Self> {
        refuse_foreign(path)?;
        let Begun {
            kv,
            damage,
            unsettled,
            incomplete,
            mut spared,
        } = begin::open_or_rebuild(path, &opts).await?;
        let marks = Marks {
            content: true,
            snapshotters: opts.snapshotters.keys().cloned().collect(),
            ..Marks::default()
        };
        let db = Db::new(kv, Outlet::new(opts.events, marks), spared.used);
        let snapshotters = opts
            .snapshotters
            .into_iter()
            .map(|(name, backend)| {
                let is_unsettled = unsettled.contains(&name);
                let unnamed = match incomplete.contains(&name) {
                    true => Unnamed::All,
                    false => Unnamed::These(spared.snapshots.remove(&name).unwrap_or_default()),
                };
                let backend = snapshots::Backend::new(backend, is_unsettled, unnamed);
                (name, backend)
            })
            .collect();
        Ok(Self(Arc::new(Shared {
            db,
            content: opts.content,
            spared: Mutex::new(spared.blobs),
            snapshotters,
            policy: opts.policy,
            digests: Gate::default(),
            flights: Arc::default(),
            collector: gc::Collector::default(),
            damage,
        })))
    }

    /// Makes root file systems of containers again that a power cut has taken from their snapshotters,
    /// and tells the log. For who opens the store to work with it, before anything else.
    ///
    /// # Errors
    /// Those of the store and of the snapshotters' lists.
    pub async fn redo_rootfs(&self) -> Result<()> {
        snapshots::redo(self).await
    }

    /// What was wrong with the store, and with the snapshotters' own records, when they were opened:
    /// what it was, and what was made of it. All of it has been made good.
    #[must_use]
    pub fn damages(&self) -> Vec<(String, String)> {
        let own = self.0.damage.iter();
        let mut all: Vec<_> = own
            .map(|text| ("records".to_owned(), text.clone()))
            .collect();
        for (name, backend) in &self.0.snapshotters {
            let damages = backend.snapshotter.damages().into_iter();
            all.extend(damages.map(|text| (format!("index of snapshotter {name}"), text)));
        }
        all
    }

    /// The namespaces.
    #[must_use]
    pub fn namespaces(&self) -> Namespaces {
        Namespaces::new(self.clone())
    }

    /// The images of a namespace; new ones with an expiry join the scope's lease.
    #[must_use]
    pub fn images(&self, scope: &Scope) -> Images {
        Images::new(self.clone(), scope.clone())
    }

    /// The containers of a namespace.
    #[must_use]
    pub fn containers(&self, scope: &Scope) -> Containers {
        Containers::new(self.clone(), scope.namespace.clone())
    }

    /// The leases of a namespace.
    #[must_use]
    pub fn leases(&self, namespace: &Namespace) -> Leases {
        Leases::new(self.clone(), namespace.clone())
    }

    /// The namespaced view of content and snapshots.
    #[must_use]
    pub fn scoped(&self, scope: &Scope) -> Scoped {
        Scoped {
            metadata: self.clone(),
            scope: scope.clone(),
        }
    }

    /// Tells, until it is dropped, that the snapshot of `mounts` is being written: whoever wants the
    /// same layer waits for it.
    #[must_use]
    pub fn applying(&self, mounts: &[Mount]) -> Applying {
        self.0.flights.applying(mounts)
    }

    /// Names of the snapshotters.
    pub fn snapshotters(&self) -> impl Iterator<Item = &str> {
        self.0.snapshotters.keys().map(String::as_str)
    }

    /// Lets the collector end streams, too. The first call counts.
    pub fn collect_streams(&self, streams: Arc<dyn gc::Streams>) {
        // There is one daemon in a process, and it has one set of streams.
        let _first = self.0.collector.streams.set(streams);
    }

    /// Lets the collector end activations of mounts, too. The first call counts.
    pub fn collect_mounts(&self, mounts: Arc<dyn gc::Unrecorded>) {
        // As for streams.
        let _first = self.0.collector.mounts.set(mounts);
    }

    /// Lets the collector end networks, too. The first call counts.
    pub fn collect_networks(&self, networks: Arc<dyn gc::Unrecorded>) {
        // As for streams.
        let _first = self.0.collector.networks.set(networks);
    }

    /// Prepares for something that is made beside the records, as a network is: its lease must be there, and
    /// then its namespace is.
    ///
    /// # Errors
    /// `NotFound` for the lease; I/O.
    pub async fn admit(&self, scope: &Scope) -> Result<()> {
        leases::admit(self, scope.clone()).await
    }

    /// Collects what nobody names any more, and waits for it. Calls that meet share one run.
    ///
    /// # Errors
    /// Those of the store; failures of backends are logged and tried again with the next run.
    pub async fn gc(&self) -> Result<gc::Stats> {
        let this = self.clone();
        detach::detached(async move { gc::run(&this).await }).await
    }

    /// What all collections since the start have done.
    #[must_use]
    pub fn gc_totals(&self) -> gc::Totals {
        self.0.collector.totals()
    }
}

/// File of the records of Go's daemon, in the same directory.
const FOREIGN: &str = "meta.db";

/// Never begins beside the records of Go's daemon, whose blobs would all be garbage to ours.
fn refuse_foreign(path: &Path) -> Result<()> {
    let foreign = path.with_file_name(FOREIGN);
    if path.exists() || !foreign.exists() {
        return Ok(());
    }
    Err(Error::failed_precondition(format_args!(
        "{} belongs to another containerd, whose data cannot be taken over yet: choose another root",
        foreign.display()
    )))
}

impl fmt::Debug for OpenOpts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OpenOpts")
            .field("content", &self.content)
            .field("snapshotters", &self.snapshotters)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Metadata {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metadata")
            .field("content", &self.0.content)
            .field("policy", &self.0.policy)
            .finish_non_exhaustive()
    }
}

/// Content and snapshots as one namespace sees them; what is made joins the scope's lease.
#[derive(Clone, Debug)]
pub struct Scoped {
    metadata: Metadata,
    scope: Scope,
}

impl Scoped {
    /// The namespace's content.
    #[must_use]
    pub fn content(&self) -> Arc<dyn ContentStore> {
        Arc::new(content::ScopedContent::new(
            self.metadata.clone(),
            self.scope.clone(),
        ))
    }

    /// The same for transfers that are resumed: an ingest that loses its lease is kept for a day.
    #[must_use]
    pub fn patient_content(&self) -> Arc<dyn ContentStore> {
        let content = content::ScopedContent::new(self.metadata.clone(), self.scope.clone());
        Arc::new(content.patient())
    }

    /// The namespace's snapshots in the snapshotter `name`.
    ///
    /// # Errors
    /// `InvalidArgument` when there is no such snapshotter or no name was given.
    pub fn snapshotter(&self, name: &str) -> Result<Arc<dyn Snapshotter>> {
        if name.is_empty() {
            return Err(Error::invalid_argument("snapshotter argument missing"));
        }
        if !self.metadata.0.snapshotters.contains_key(name) {
            return Err(Error::invalid_argument(format_args!(
                "snapshotter not loaded: {name}"
            )));
        }
        Ok(Arc::new(snapshots::ScopedSnapshotter::new(
            self.metadata.clone(),
            self.scope.clone(),
            name,
        )))
    }

    /// The lease that new objects join.
    #[must_use]
    pub fn lease(&self) -> Option<&LeaseId> {
        self.scope.lease.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;
    use crate::fixture::{code, exchange};

    #[tokio::test]
    async fn the_root_of_another_containerd_is_refused() {
        let root = tempfile::tempdir().unwrap();
        std::fs::write(root.path().join("meta.db"), "bolt").unwrap();
        for _ in 0..2 {
            let opts = OpenOpts {
                content: Arc::new(::content::Local::open(root.path().join("content")).unwrap()),
                snapshotters: BTreeMap::new(),
                events: Arc::new(exchange()),
                policy: Policy::Shared,
                tasks: Box::new(|| Ok(Vec::new())),
                absent: Vec::new(),
            };
            let opened = Metadata::open(&root.path().join("meta.redb"), opts).await;
            assert_eq!(code(opened), Code::FailedPrecondition);
        }
    }
}
