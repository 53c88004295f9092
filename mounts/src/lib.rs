//! Mounts that the daemon performs for its clients and remembers by name.
//!
//! A client hands over the mounts of a snapshot. Those of a kind that only this crate can perform, and
//! all before them, are mounted in a directory of ours; what is left is for the client, with places
//! filled in where it asked for those of earlier mounts.
//!
//! ```text
//! activate: Plan::of -> record (intent) -> change, mount, change, mount .. -> record (active) -> answer
//!                                              `-- a failure, a crash --> Place::clear
//! ```
//! Invariant: what is mounted has a record, written before it, so nothing is forgotten; a record says
//! "active" only while all its mounts are there. Taking away is one function, whether a client asks,
//! the collector, a failure or the daemon's next start. Called by the daemon alone.

mod change;
mod check;
mod handler;
mod place;
mod plan;
mod record;
mod store;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use types::{Activation, Error, Filter, Held, Labels, Mount, Namespace, Result, Scope};

pub use crate::check::check_stopped;
use crate::plan::Plan;
use crate::store::Store;

/// Longest name of an activation, in bytes.
const MAX_NAME: usize = 1024;
/// Most mounts of one activation. Parity: core/mount/manager: positions are bytes in its records.
const MAX_MOUNTS: usize = 255;

/// Where mounts and records go.
#[derive(Clone, Debug)]
pub struct OpenOpts {
    /// Directory for both. Its contents need not outlive the machine's run.
    pub directory: PathBuf,
    /// Below these, besides `directory`, clients may have directories and file systems made.
    pub roots: Vec<PathBuf>,
}

/// How to activate.
#[derive(Clone, Debug, Default)]
pub struct ActivateOpts {
    /// Labels of the activation.
    pub labels: Labels,
    /// Perform all mounts and leave one to the result.
    pub temporary: bool,
    /// Types that the caller performs itself, where no mount of ours needs them before it. `format/*` and
    /// the like: the caller makes that change itself.
    pub allowed: Vec<String>,
}

/// The activations of all namespaces. Clones share them.
#[derive(Clone, Debug)]
pub struct Mounts {
    store: Arc<Store>,
    /// Held while the activation of a name is changed.
    busy: Arc<Mutex<HashMap<Key, Arc<tokio::sync::Mutex<()>>>>>,
}

/// Namespace and name.
pub(crate) type Key = (Namespace, String);

impl Mounts {
    /// Takes up what an earlier daemon has mounted, and takes away what it did not finish.
    ///
    /// # Errors
    /// I/O on the directory.
    pub fn open(opts: OpenOpts) -> Result<Self> {
        Ok(Self {
            store: Arc::new(Store::open(opts)?),
            busy: Arc::default(),
        })
    }

    /// Performs what only we can of `mounts`, under the name `name`. On disk before it is answered; it
    /// lives until it is deactivated, or until nothing keeps it: the scope's lease, what its
    /// `gc.bref` labels name, what names it.
    ///
    /// # Errors
    /// `NotImplemented` when there is nothing that the client could not do itself; `AlreadyExists`;
    /// `InvalidArgument` for names, labels, changes and mounts that do not parse; those of mounting. On
    /// failure nothing stays mounted.
    pub async fn activate(
        &self,
        scope: &Scope,
        name: &str,
        mounts: Vec<Mount>,
        opts: ActivateOpts,
    ) -> Result<Activation> {
        check_name(name)?;
        opts.labels.validate()?;
        if mounts.len() > MAX_MOUNTS {
            return Err(Error::invalid_argument(format_args!(
                "{} mounts, the limit is {MAX_MOUNTS}",
                mounts.len()
            )));
        }
        let Some(plan) = Plan::of(&mounts, opts.temporary, &opts.allowed) else {
            return Err(Error::not_implemented("no mount needs the mount manager"));
        };
        let key = (scope.namespace.clone(), name.to_owned());
        let lease = scope.lease.clone();
        self.alone(key, move |store, key| {
            store.activate(key, lease, opts.labels, plan)
        })
        .await
    }

    /// True when there is something among `mounts` that a caller who can do nothing itself needs us for.
    #[must_use]
    pub fn is_needed(mounts: &[Mount]) -> bool {
        Plan::of(mounts, false, &[]).is_some()
    }

    /// Unmounts the activation `name`, last mount first, and forgets it.
    ///
    /// # Errors
    /// `NotFound`; those of unmounting: then it is inactive, and the next call or collection goes on.
    pub async fn deactivate(&self, namespace: &Namespace, name: &str) -> Result<()> {
        let key = (namespace.clone(), name.to_owned());
        self.alone(key, |store, key| store.remove(key, None)).await
    }

    /// The activation `name`.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn info(&self, namespace: &Namespace, name: &str) -> Result<Activation> {
        self.store.info(&(namespace.clone(), name.to_owned()))
    }

    /// The activations of a namespace, by name. Fields for filters: `name`, `labels.*`.
    #[must_use]
    pub fn list(&self, namespace: &Namespace, filter: &Filter) -> Vec<Activation> {
        self.store.list(namespace, filter)
    }

    /// All that a collector has to decide on. What could not be taken away at once is among it, kept
    /// by nothing.
    #[must_use]
    pub fn held(&self) -> Vec<Held> {
        self.store.held()
    }

    /// Takes away an activation that nothing keeps, unless its name has passed to another one.
    ///
    /// # Errors
    /// As [`Mounts::deactivate`].
    pub async fn collect(&self, held: &Held) -> Result<()> {
        let (key, number) = ((held.namespace.clone(), held.name.clone()), held.number);
        self.alone(key, move |store, key| store.remove(key, Some(number)))
            .await
    }

    /// Runs `work` on the activation at `key`, one at a time.
    async fn alone<T: Send + 'static>(
        &self,
        key: Key,
        work: impl FnOnce(&Store, &Key) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let lock = Arc::clone(self.busy().entry(key.clone()).or_default());
        let done = {
            let alone = Arc::clone(&lock).lock_owned().await;
            let (store, key) = (Arc::clone(&self.store), key.clone());
            let work = move || {
                // Also when the caller is gone: not before the work is done.
                let _alone = alone;
                work(&store, &key)
            };
            tokio::task::spawn_blocking(work).await
        };
        let mut busy = self.busy();
        // This one and the map's: nobody else waits for it.
        if Arc::strong_count(&lock) <= 2 {
            busy.remove(&key);
        }
        drop(busy);
        done.map_err(|e| Error::internal("mount task failed").with_source(e))?
    }

    fn busy(&self) -> MutexGuard<'_, HashMap<Key, Arc<tokio::sync::Mutex<()>>>> {
        self.busy.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control) {
        return Err(Error::invalid_argument(format_args!(
            "name of a mount of {} bytes must have 1 to {MAX_NAME}, none of them a control character",
            name.len()
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
