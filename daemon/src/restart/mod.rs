//! The restart monitor: containers whose labels ask for it are started again when they end.
//!
//! Invariant: a container is started once. There is one change at a time for each, it looks again at
//! record and task before it does anything, and a task that somebody else makes meanwhile is his.
//!
//! ```text
//! every interval, while there are such containers; else when a record of one is made or changed:
//! records with the label + states from memory ── policy::decide ──> start | stop, beside each other
//!                                                      ^ not sooner than the container's pace allows
//! ```
//! Everything that is remembered stands in the labels, so a daemon that was restarted goes on where
//! it was; what is here in memory only slows down.

mod pace;
mod policy;
mod work;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use events::Exchange;
use metadata::Metadata;
use mounts::Mounts;
use runtime_v2::{Status, Task, TaskManager};
use tokio::time::{Instant, sleep};
use types::{ContainerId, ContainerRef, Filter, Labels, Namespace, Result, Scope};

use self::pace::Pace;
use self::policy::{Now, STATUS, Step, decide};
use crate::config::{self, Config};
use crate::engine::Engine;
use crate::point::{Facts, Row};

/// Kind of the monitor.
const MONITOR: &str = "io.containerd.monitor.container.v1";
/// Its id, by which clients look for it.
const ID: &str = "restart";
/// A record that was just made or changed: its client is about to make the task itself.
const FRESH: Duration = Duration::from_secs(3);
/// A task that was made this long ago and not started is nobody's any more.
const FORGOTTEN: Duration = Duration::from_secs(60);
/// Wait when the records cannot be read, and for intervals that are none.
const PAUSE: Duration = Duration::from_secs(10);

type Key = (Namespace, ContainerId);

/// Starts containers again.
#[derive(Clone, Debug)]
pub(crate) struct Monitor(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    metadata: Metadata,
    tasks: Arc<dyn TaskManager>,
    mounts: Mounts,
    events: Arc<Exchange>,
    interval: Duration,
    paces: Mutex<HashMap<Key, Pace>>,
}

/// The monitor's row; none when it is disabled.
pub(crate) fn row(config: &Config) -> Option<Row> {
    let facts = Facts {
        capabilities: policy::POLICIES.map(str::to_owned).to_vec(),
        ..Facts::default()
    };
    let requires = &["io.containerd.event.v1", "io.containerd.service.v1"];
    let row = Row::ready(MONITOR, ID, requires).with(facts);
    config.enabled(&row.uri()).then_some(row)
}

/// The monitor, unless it is disabled. It does nothing yet.
///
/// # Errors
/// `InvalidArgument` for a section that does not fit.
pub(crate) fn monitor(engine: &Engine, config: &Config) -> Result<Option<Monitor>> {
    let Some(row) = row(config) else {
        return Ok(None);
    };
    let section: config::Restart = config.section(&row.uri())?;
    let tasks = Arc::<runtime_v2::Tasks>::clone(&engine.tasks);
    Ok(Some(Monitor(Arc::new(Shared {
        metadata: engine.store.metadata.clone(),
        tasks,
        mounts: engine.mounts.clone(),
        events: Arc::clone(&engine.store.ground.events),
        // Parity: plugins/restart/monitor.go: none is the default.
        interval: match section.interval {
            Duration::ZERO => PAUSE,
            some => some,
        },
        paces: Mutex::default(),
    }))))
}

impl Monitor {
    /// Lets it work, beside the services.
    pub(crate) fn begin(self) {
        tokio::spawn(async move { self.run().await });
    }

    /// Looks and acts, for ever.
    async fn run(&self) {
        loop {
            // Before the look: what changes after it is noticed.
            let changes = self.changes();
            match self.pass().await {
                Ok(true) => drop(changes),
                Ok(false) => changes.await,
                Err(error) => tracing::warn!(%error, "restart monitor cannot read the records"),
            }
            sleep(self.0.interval).await;
        }
    }

    /// Waits until the record of a container is made or changed.
    fn changes(&self) -> impl Future<Output = ()> + use<> {
        let topics = ["topic==/containers/create", "topic==/containers/update"];
        let subscription = Filter::parse(&topics).map(|filter| self.0.events.subscribe(filter));
        async move {
            if let Ok(mut subscription) = subscription {
                // An error is an end as good as any.
                drop(subscription.recv().await);
            }
        }
    }

    /// One look at all containers. Whether there are any to look after.
    async fn pass(&self) -> Result<bool> {
        let mut wanted = Vec::new();
        for namespace in self.0.metadata.namespaces().list().await? {
            let scope = Scope::new(namespace.name);
            let containers = self.0.metadata.containers(&scope);
            containers.visit(&Filter::default(), &mut |container| {
                wanted.extend(Wanted::of(&scope.namespace, container));
                true
            })?;
        }
        self.forget(&wanted);
        for one in &wanted {
            self.look_after(one).await;
        }
        Ok(!wanted.is_empty())
    }

    /// What is known of containers that are nobody's concern any more goes.
    fn forget(&self, wanted: &[Wanted]) {
        let mut paces = self.paces();
        let mut old = std::mem::take(&mut *paces);
        let keep = wanted.iter().filter_map(|one| old.remove_entry(&one.key));
        *paces = keep.collect();
        // What is being done comes to its end; it must not begin again before.
        paces.extend(old.into_iter().filter(|(_, pace)| pace.is_busy()));
    }

    fn paces(&self) -> MutexGuard<'_, HashMap<Key, Pace>> {
        self.0.paces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn look_after(&self, one: &Wanted) {
        let now = state(&*self.0.tasks, &one.key).await;
        let step = decide(&one.labels, now);
        if now == Now::Alive {
            self.paces().entry(one.key.clone()).or_default().alive();
        }
        let is_made = now == Now::Created;
        let waits = {
            let mut paces = self.paces();
            let pace = paces.entry(one.key.clone()).or_default();
            pace.made(is_made, Instant::now())
        };
        // Who made it is about to start it, or its task.
        let is_fresh = match is_made {
            true => waits < FORGOTTEN,
            false => one.age < FRESH,
        };
        let is_fresh = step == Step::Start && is_fresh;
        if step == Step::Leave || is_fresh {
            return;
        }
        let interval = self.0.interval;
        let mut paces = self.paces();
        let pace = paces.entry(one.key.clone()).or_default();
        if !pace.begin(step == Step::Start, interval, Instant::now()) {
            return;
        }
        drop(paces);
        let (this, key) = (self.clone(), one.key.clone());
        tokio::spawn(async move {
            // Given back whatever happens.
            let _busy = Busy(&this, &key);
            let work = Box::pin(this.act(&key));
            if let Err(error) = recorder::fly("restart", work).await {
                let (namespace, id) = &key;
                tracing::warn!(%namespace, %id, %error, "restart monitor");
            }
        });
    }
}

/// A change under way.
struct Busy<'a>(&'a Monitor, &'a Key);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        if let Some(pace) = self.0.paces().get_mut(self.1) {
            pace.end();
        }
    }
}

/// A container that asks to be looked after.
#[derive(Debug)]
struct Wanted {
    key: Key,
    labels: Labels,
    /// How long ago its record was made or changed.
    age: Duration,
}

impl Wanted {
    fn of(namespace: &Namespace, container: &ContainerRef<'_>) -> Option<Self> {
        if !container.labels.iter().any(|(key, _)| *key == STATUS) {
            return None;
        }
        let ours = |(key, _): &&(&str, &str)| key.starts_with("containerd.io/restart.");
        let ours = container.labels.iter().filter(ours);
        let changed = container.updated_at.max(container.created_at);
        Some(Self {
            key: (namespace.clone(), container.id.parse().ok()?),
            labels: ours.fold(Labels::new(), |made, (key, value)| made.with(*key, *value)),
            // A clock that was set back makes nothing fresh for ever.
            age: SystemTime::now()
                .duration_since(changed)
                .unwrap_or(Duration::MAX),
        })
    }
}

/// What is known of a container's task, without asking its shim.
async fn state(tasks: &dyn TaskManager, key: &Key) -> Now {
    match tasks.get(&key.0, &key.1).await {
        Ok(task) => state_of(&*task),
        Err(error) if error.is_not_found() => match tasks.check_free(&key.0, &key.1) {
            Ok(()) => Now::Absent,
            // It is being made.
            Err(_) => Now::Unclear,
        },
        Err(_) => Now::Unclear,
    }
}

fn state_of(task: &dyn Task) -> Now {
    let Ok(known) = task.known(None) else {
        return Now::Unclear;
    };
    match (known.status, known.exit) {
        (Status::Stopped, Some((status, _))) => Now::Ended(status),
        (Status::Created, _) => Now::Created,
        (Status::Running | Status::Paused | Status::Pausing, _) => Now::Alive,
        (Status::Unknown | Status::Stopped, _) => Now::Unclear,
    }
}
