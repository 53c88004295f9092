//! All tasks of the daemon.
//!
//! Invariant: the map says which ids are taken, and nothing waits while it is locked. A task is in it
//! from the reservation of its id to the end of its delete; one whose shim died stays listed as
//! stopped, with its exit, until it is deleted or its id is used again.

use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use types::{Any, ContainerId, Error, Event, Exit, Namespace, Result, Scope};

use crate::bootstrap::{self, Shims};
use crate::bundle::Bundles;
use crate::client::event;
use crate::entry::{Entry, Link};
use crate::infos::Infos;
use crate::turns::Turns;
use crate::{CreateOpts, Task, TaskManager, create, recover, shims};

/// Tasks without a shim that are remembered for their exit; beyond it, those that nobody deletes go.
const GONE: usize = 1024;

/// Tells the world what happened to a task whose shim cannot any more.
pub type Publisher = Arc<dyn Fn(Namespace, Event) + Send + Sync>;

/// Finds the runtime name of a container's record.
pub type RuntimeOf = Arc<dyn Fn(&Namespace, &ContainerId) -> Option<String> + Send + Sync>;

/// What tasks need to know of their daemon.
#[derive(Clone)]
pub struct Config {
    /// Persistent directory.
    pub root: PathBuf,
    /// Directory that is empty after a reboot.
    pub state: PathBuf,
    /// Path of the main socket.
    pub grpc_address: String,
    /// Path of the socket on which shims publish events.
    pub ttrpc_address: String,
    /// The daemon's binary, told to shims as their publisher of last resort.
    pub containerd_binary: PathBuf,
    /// Runtime of containers that name none.
    pub default_runtime: String,
    /// Shims write debug messages.
    pub debug: bool,
    /// Shims put their processes into core scheduling domains.
    pub sched_core: bool,
    /// Creates of tasks and starts of execs at a time, of all together; 0: any number.
    pub most_at_once: usize,
    /// Where events go.
    pub publisher: Publisher,
    /// Asked for tasks whose bundle does not name a binary.
    pub runtime_of: RuntimeOf,
}

impl fmt::Debug for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Config")
            .field("root", &self.root)
            .field("state", &self.state)
            .field("grpc_address", &self.grpc_address)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
impl Config {
    /// Of a daemon with this state that nobody listens to.
    pub(crate) fn of(state: &Path) -> Self {
        Self {
            root: state.join("root"),
            state: state.to_owned(),
            grpc_address: "/run/containerd/containerd.sock".into(),
            ttrpc_address: String::new(),
            containerd_binary: PathBuf::new(),
            default_runtime: String::new(),
            debug: false,
            sched_core: false,
            most_at_once: 0,
            publisher: Arc::new(|_, _| {}),
            runtime_of: Arc::new(|_, _| None),
        }
    }
}

type Key = (Namespace, ContainerId);

#[derive(Debug)]
enum Slot {
    /// The id is taken; the task is not visible yet.
    Making(Option<Arc<Entry>>),
    /// A task.
    Made(Arc<Entry>),
}

impl Slot {
    fn entry(&self) -> Option<&Arc<Entry>> {
        match self {
            Self::Making(entry) => entry.as_ref(),
            Self::Made(entry) => Some(entry),
        }
    }
}

/// What all parts of the crate share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) bundles: Bundles,
    pub(crate) shims: Shims,
    pub(crate) turns: Arc<Turns>,
    slots: Mutex<HashMap<Key, Slot>>,
    infos: Infos,
}

impl Shared {
    fn slots(&self) -> MutexGuard<'_, HashMap<Key, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub(crate) fn reserve(self: &Arc<Self>, key: Key) -> Result<Place> {
        let mut slots = self.slots();
        check_free(&slots, &key)?;
        let before = slots.insert(key.clone(), Slot::Making(None));
        Ok(Place {
            shared: Arc::clone(self),
            key: Some(key),
            before,
        })
    }

    pub(crate) fn publish(&self, namespace: &Namespace, event: Event) {
        (self.config.publisher)(namespace.clone(), event);
    }

    fn get(&self, key: &Key) -> Option<Arc<Entry>> {
        match self.slots().get(key)? {
            Slot::Made(entry) => Some(Arc::clone(entry)),
            Slot::Making(_) => None,
        }
    }

    /// True when another task uses the same shim.
    pub(crate) fn is_shared(&self, entry: &Entry) -> bool {
        let slots = self.slots();
        let mut all = slots.values().filter_map(Slot::entry);
        all.any(|other| shares(other, entry))
    }

    /// The other tasks that use the same shim.
    pub(crate) fn sharing(&self, entry: &Entry) -> Vec<Arc<Entry>> {
        let slots = self.slots();
        let all = slots.values().filter_map(Slot::entry);
        all.filter(|other| shares(other, entry)).cloned().collect()
    }

    /// Removes a task from the list.
    pub(crate) fn forget(&self, entry: &Arc<Entry>) {
        let key = (entry.namespace.clone(), entry.id.clone());
        let mut slots = self.slots();
        if matches!(slots.get(&key), Some(Slot::Made(now)) if Arc::ptr_eq(now, entry)) {
            slots.remove(&key);
        }
    }

    /// Removes a task from the list when it is gone.
    pub(crate) fn forget_gone(&self, entry: &Arc<Entry>) {
        if matches!(entry.link(), Link::Gone(_)) {
            self.forget(entry);
        }
    }

    /// A task has become one without a shim: bounds their number.
    pub(crate) fn settle(&self, entry: &Arc<Entry>) {
        let mut slots = self.slots();
        let mut gone: Vec<_> = slots
            .iter()
            .filter_map(|(key, slot)| match (slot, slot.entry()?.link()) {
                (Slot::Made(other), Link::Gone(exit)) if !Arc::ptr_eq(other, entry) => {
                    Some((exit.at, key.clone()))
                }
                _ => None,
            })
            .collect();
        if gone.len() >= GONE
            && let Some((_, oldest)) = {
                gone.sort_by_key(|(at, _)| *at);
                gone.into_iter().next()
            }
        {
            slots.remove(&oldest);
        }
    }

    /// All visible tasks.
    pub(crate) fn entries(&self, namespace: Option<&Namespace>) -> Vec<Arc<Entry>> {
        let slots = self.slots();
        let visible = slots.values().filter_map(|slot| match slot {
            Slot::Made(entry) => Some(entry),
            Slot::Making(_) => None,
        });
        visible
            .filter(|entry| namespace.is_none_or(|wanted| *wanted == entry.namespace))
            .cloned()
            .collect()
    }
}

/// True of another task, which is not gone, with the same shim.
fn shares(other: &Arc<Entry>, entry: &Entry) -> bool {
    !std::ptr::eq(Arc::as_ptr(other), entry)
        && !matches!(other.link(), Link::Gone(_))
        && entry
            .address
            .get()
            .is_some_and(|address| other.address.get() == Some(address))
}

/// An id is free when nobody has it, or a task without a shim.
fn check_free(slots: &HashMap<Key, Slot>, key: &Key) -> Result<()> {
    match slots.get(key) {
        None => Ok(()),
        Some(Slot::Made(entry)) if matches!(entry.link(), Link::Gone(_)) => Ok(()),
        Some(_) => Err(Error::already_exists(format_args!("task {}", key.1))),
    }
}

/// A reserved id: as it was before unless it was filled.
#[derive(Debug)]
pub(crate) struct Place {
    shared: Arc<Shared>,
    key: Option<Key>,
    /// A task without a shim, whose exit can still be asked for.
    before: Option<Slot>,
}

impl Place {
    /// Lets the entry see events, before anybody can see the entry.
    pub(crate) fn attach(&self, entry: &Arc<Entry>) {
        if let Some(key) = &self.key {
            let slot = Slot::Making(Some(Arc::clone(entry)));
            self.shared.slots().insert(key.clone(), slot);
        }
    }

    /// The task is made.
    pub(crate) fn fill(mut self, entry: &Arc<Entry>) {
        if let Some(key) = self.key.take() {
            let slot = Slot::Made(Arc::clone(entry));
            self.shared.slots().insert(key, slot);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(key) = self.key.take() {
            let mut slots = self.shared.slots();
            match self.before.take() {
                Some(before) => slots.insert(key, before),
                None => slots.remove(&key),
            };
        }
    }
}

/// All tasks of the daemon, kept by shims.
#[derive(Debug)]
pub struct Tasks {
    pub(crate) shared: Arc<Shared>,
}

impl Tasks {
    /// Opens the state directory. Tasks found there are listed at once and connected to by
    /// [`Tasks::recover`].
    ///
    /// # Errors
    /// The errno when the state directory cannot be read.
    pub fn open(config: Config) -> Result<Arc<Self>> {
        let bundles = Bundles::new(&config.state, &config.root);
        let found = bundles.list()?;
        let turns = Arc::new(Turns::new(config.most_at_once));
        let slots = found.into_iter().map(|(namespace, id)| {
            let bundle = bundles.of(&namespace, &id);
            let stdio = crate::Stdio::default();
            let entry = Entry::new(namespace.clone(), id.clone(), bundle, stdio);
            let _first = entry.turns.set(Arc::clone(&turns));
            ((namespace, id), Slot::Made(Arc::new(entry)))
        });
        let slots = Mutex::new(slots.collect());
        Ok(Arc::new(Self {
            shared: Arc::new(Shared {
                bundles,
                config,
                shims: Shims::default(),
                turns,
                slots,
                infos: Infos::default(),
            }),
        }))
    }

    /// Connects to the shims of an earlier run of the daemon, all at the same time, and cleans up
    /// after those that are gone. Returns when every shim has answered or had five seconds to do so;
    /// a silent one is waited for in the background, however long it takes.
    pub async fn recover(&self) {
        recover::run(&self.shared).await;
    }

    /// Lets from now on so many creates of tasks and starts of execs be at work at a time; 0: any number.
    pub fn bound(&self, most: usize) {
        self.shared.turns.set(most);
    }

    /// Takes over what a shim published.
    pub fn observe(&self, namespace: &Namespace, topic: &str, event: &Any) {
        if !topic.starts_with("/tasks/") {
            return;
        }
        let (id, change) = match event::read(event) {
            Ok(Some(told)) => told,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(%namespace, topic, %error, "event of a shim");
                return;
            }
        };
        let key = (namespace.clone(), id);
        let entry = self.shared.slots().get(&key).and_then(Slot::entry).cloned();
        if let Some(entry) = entry {
            entry.seen().apply(&change);
        }
    }

    fn entry(&self, namespace: &Namespace, id: &ContainerId) -> Result<Arc<Entry>> {
        let key = (namespace.clone(), id.clone());
        self.shared
            .get(&key)
            .ok_or_else(|| Error::not_found(format_args!("task {id} not found")))
    }

    fn binary(&self, runtime: &str) -> Result<PathBuf> {
        if runtime.is_empty() {
            bootstrap::resolve(&self.shared.config.default_runtime)
        } else {
            bootstrap::resolve(runtime)
        }
    }
}

#[async_trait]
impl TaskManager for Tasks {
    async fn create(
        &self,
        scope: &Scope,
        id: &ContainerId,
        opts: CreateOpts,
    ) -> Result<Arc<dyn Task>> {
        let binary = self.binary(&opts.runtime)?;
        let place = self.shared.reserve((scope.namespace.clone(), id.clone()))?;
        let job = create::Job {
            shared: Arc::clone(&self.shared),
            namespace: scope.namespace.clone(),
            id: id.clone(),
            binary,
            opts,
        };
        let turn = self.shared.turns.take().await;
        Ok(create::run(job, place, turn).await?)
    }

    fn check_free(&self, namespace: &Namespace, id: &ContainerId) -> Result<()> {
        check_free(&self.shared.slots(), &(namespace.clone(), id.clone()))
    }

    async fn get(&self, namespace: &Namespace, id: &ContainerId) -> Result<Arc<dyn Task>> {
        Ok(self.entry(namespace, id)?)
    }

    async fn list(&self, namespace: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>> {
        let mut entries = self.shared.entries(namespace);
        entries.sort_by(|a, b| (&a.namespace, &a.id).cmp(&(&b.namespace, &b.id)));
        let erase = |entry: Arc<Entry>| -> Arc<dyn Task> { entry };
        Ok(entries.into_iter().map(erase).collect())
    }

    async fn delete(&self, namespace: &Namespace, id: &ContainerId) -> Result<Exit> {
        let entry = self.entry(namespace, id)?;
        let shared = Arc::clone(&self.shared);
        // A caller that goes away must not leave half a task.
        let work = async move { shims::delete(&shared, &entry).await };
        let work = tokio::spawn(recorder::carry(work));
        work.await
            .map_err(|e| Error::internal("delete task").with_source(e))?
    }

    async fn runtime_info(&self, runtime: &str, options: Option<Any>) -> Result<Any> {
        let binary = self.binary(runtime)?;
        bootstrap::info(&binary, options.as_ref()).await
    }

    async fn known_info(&self, runtime: &str) -> Result<Option<Any>> {
        let binary = self.binary(runtime)?;
        let ask = || bootstrap::info(&binary, None);
        self.shared.infos.of(&binary, ask).await
    }
}

/// True when `state` is the one of an installation with defaults.
pub(crate) fn is_default_state(state: &Path) -> bool {
    state == Path::new(bootstrap::DEFAULT_STATE)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::lost;
    use types::Code;

    #[test]
    fn an_id_is_taken_from_its_reservation_to_the_end_of_its_shim() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(&dir.path().join("s"), &dir.path().join("r"));
        let key: Key = ("ns".parse().unwrap(), "c".parse().unwrap());
        let bundle = bundles.of(&key.0, &key.1);
        let stdio = crate::Stdio::default();
        let entry = Arc::new(Entry::new(key.0.clone(), key.1.clone(), bundle, stdio));
        let mut slots = HashMap::new();
        check_free(&slots, &key).unwrap();
        for slot in [Slot::Making(None), Slot::Made(Arc::clone(&entry))] {
            slots.insert(key.clone(), slot);
            let taken = check_free(&slots, &key).unwrap_err();
            assert!(taken.is(Code::AlreadyExists), "{taken}");
        }
        entry.finish(lost(0));
        check_free(&slots, &key).unwrap();
    }
}
