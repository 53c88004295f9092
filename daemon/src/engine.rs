//! Third floor: what works on stored things. Differs and tasks.

use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use async_trait::async_trait;
use client::remote::RemoteDiff;
use content::ContentStore;
use diff::{Applier, ApplyOpts, CompareOpts, Comparer, Erofs, Walking};
use futures::FutureExt as _;
use metadata::Metadata;
use metadata::gc::{Scheduler, SchedulerOpts};
use mounts::Mounts;
use network::Networks;
use runtime_v2::Tasks;
use snapshotters::SETTLES;
use tokio::sync::watch;
use types::{
    Code, ContainerId, DEFAULT_RUNTIME, Descriptor, Error, Mount, Namespace, Result, Scope,
};

use crate::activations;
use crate::checkpoints::Checkpoints;
use crate::config::{self, Config, Level, ProxyKind};
use crate::drivers::Drivers;
use crate::ground::proxies;
use crate::lock;
use crate::networks;
use crate::point::{Candidate, Facts, Point, Row};
use crate::store::Store;
use crate::streams::Streams;
use crate::transfers::{self, Transfers};

/// Kind of differs.
const DIFFER: &str = "io.containerd.differ.v1";
/// The one that gives layers as images; what it declines is unpacked as files.
pub(crate) const EROFS: &str = "erofs";
/// Kind of the runtime.
const RUNTIME: &str = "io.containerd.runtime.v2";
/// Kind of the streams.
const STREAMING: &str = "io.containerd.streaming.v1";

/// Where the output of a process can go beside a plain path: clients look it up. `attach://` is no
/// place for it, but a promise to whoever comes.
const LOG_SCHEMES: &str = "fifo,binary,binary-v2,file,cri";
/// Directory of mounts that last no longer than a call.
pub(crate) const TEMPORARY: &str = "tmpmounts";
/// Directory of checkpoints on their way to or from the content store.
const CHECKPOINTS: &str = "checkpoints";

/// What works on the records.
#[derive(Debug)]
pub(crate) struct Engine {
    /// The floor below.
    pub(crate) store: Store,
    /// Layers onto mounts and back.
    pub(crate) differs: Arc<Differs>,
    /// Directories of CRIU's as blobs and back.
    pub(crate) checkpoints: Checkpoints,
    /// What runs.
    pub(crate) tasks: Arc<Tasks>,
    /// Streams to and from clients.
    pub(crate) streams: Streams,
    /// Mounts by name.
    pub(crate) mounts: Mounts,
    /// Network namespaces and interfaces by name.
    pub(crate) networks: Networks,
    /// Who joins containers to networks.
    pub(crate) drivers: Drivers,
    /// Images in and out, unless that is disabled.
    pub(crate) transfers: Option<Transfers>,
    /// What there is, for introspection.
    pub(crate) rows: Vec<Row>,
}

impl Engine {
    /// Puts the engine on `store`. Tasks of an earlier daemon are listed, not yet connected to.
    ///
    /// # Errors
    /// That of a required differ; I/O on the directory of the bundles.
    pub(crate) fn open(store: Store, config: &Config) -> Result<Self> {
        let temporary = empty(config.root.join(TEMPORARY))?;
        let mut candidates = own_differs(config, temporary)?;
        candidates.extend(proxies::candidates(
            config,
            ProxyKind::Diff,
            |caller, _, plugin| -> Arc<dyn Differ> {
                let settles = plugin.capabilities.iter().any(|word| word == SETTLES);
                Arc::new(RemoteDiff::new(caller).with_settling(settles))
            },
        ));
        let differs = Point::build(DIFFER, config, candidates)?;
        let mut rows = differs.rows().to_vec();
        let requires = &["io.containerd.event.v1", "io.containerd.metadata.v1"];
        let section: config::Tasks = config.section(&format!("{RUNTIME}.task"))?;
        let platforms = section.platforms.iter().map(|platform| platform.parse());
        let facts = Facts {
            platforms: platforms.collect::<Result<_>>()?,
            ..Facts::default().export("log-uri-schemes", LOG_SCHEMES)
        };
        rows.push(Row::ready(RUNTIME, "task", requires).with(facts));

        let order = config.section("io.containerd.service.v1.diff-service")?;
        let streams = Streams::default();
        store.metadata.collect_streams(Arc::new(streams.clone()));
        rows.push(Row::ready(
            STREAMING,
            "manager",
            &["io.containerd.metadata.v1"],
        ));
        let (mounts, more) = activations::open(&store.metadata, config)?;
        rows.extend(more);
        let gone = Arc::default();
        let (networks, row) = networks::open(&store, config, &gone)?;
        rows.push(row);
        let drivers = Drivers::open(&networks, &gone, config)?;
        rows.extend(drivers.rows());
        let (transfers, more) = transfers::open(&store, &differs, &streams, config)?;
        rows.extend(more);
        let differs = Arc::new(Differs::select(&differs, &order));
        let directory = config.root.join(CHECKPOINTS);
        let checkpoints = Checkpoints::open(directory, Arc::clone(&differs))?;
        let tasks = Tasks::open(tasks_config(&store, config, &section)?)?;
        Ok(Self {
            store,
            differs,
            checkpoints,
            tasks,
            streams,
            mounts,
            networks,
            drivers,
            transfers,
            rows,
        })
    }

    /// Connects to the shims of an earlier daemon and then collects garbage, for ever, as told and whenever
    /// what is sent says. Runs beside the services.
    pub(crate) fn start(&self, schedule: SchedulerOpts) -> watch::Sender<SchedulerOpts> {
        let (sender, mut opts) = watch::channel(schedule);
        tokio::spawn(self.drivers.clone().settle());
        let (tasks, metadata) = (Arc::clone(&self.tasks), self.store.metadata.clone());
        tokio::spawn(async move {
            tasks.recover().await;
            loop {
                let scheduler = Scheduler::new(metadata.clone(), *opts.borrow_and_update());
                tokio::select! {
                    () = scheduler.run() => {}
                    changed = opts.changed() => if changed.is_err() {
                        return;
                    },
                }
            }
        });
        sender
    }
}

/// The differs of this program.
fn own_differs(config: &Config, temporary: PathBuf) -> Result<Vec<Candidate<'static, dyn Differ>>> {
    let limits = config.section::<config::Walking>(&format!("{DIFFER}.walking"))?;
    let walking = Walking::new(temporary)
        .with_limits(limits.limits())
        .with_processors(config.processors());
    let section: config::ErofsDiffer = config.section(&format!("{DIFFER}.erofs"))?;
    let of_walking = walking.clone();
    let erofs = move || {
        let opts = section.opts()?;
        let made: Arc<dyn Differ> = Arc::new(Erofs::new(of_walking, opts));
        Ok((made, Facts::of_host().capability(SETTLES, true)))
    };
    let walking = move || {
        let made: Arc<dyn Differ> = Arc::new(walking);
        Ok((made, Facts::of_host().capability(SETTLES, true)))
    };
    let requires: &[_] = &["io.containerd.metadata.v1"];
    Ok(vec![
        Candidate {
            id: "walking",
            requires,
            build: Box::new(walking),
        },
        Candidate {
            id: EROFS,
            requires,
            build: Box::new(erofs),
        },
    ])
}

/// Makes the directory of temporary mounts, and takes away what a daemon that was killed left there.
fn empty(directory: PathBuf) -> Result<PathBuf> {
    lock::create(&directory, lock::ROOT_MODE)?;
    if let Err(error) = sys::mount::unmount_recursive(&directory) {
        tracing::warn!(%error, "temporary mounts of an earlier daemon stay");
    }
    let entries = std::fs::read_dir(&directory)
        .map_err(|e| Error::os(format_args!("read {}", directory.display()), e))?;
    for entry in entries.filter_map(std::result::Result::ok) {
        // Only what is empty: whatever is still mounted there is not ours to delete.
        if let Err(error) = std::fs::remove_dir(entry.path()) {
            tracing::warn!(%error, path = %entry.path().display(), "directory stays");
        }
    }
    Ok(directory)
}

/// Where this program was started from: it may be replaced since, and this daemon open its engine again.
fn own_binary() -> Result<PathBuf> {
    static OWN: OnceLock<PathBuf> = OnceLock::new();
    if let Some(own) = OWN.get() {
        return Ok(own.clone());
    }
    let own = std::env::current_exe().map_err(|e| Error::os("find own binary", e))?;
    Ok(OWN.get_or_init(|| own).clone())
}

fn tasks_config(
    store: &Store,
    config: &Config,
    section: &config::Tasks,
) -> Result<runtime_v2::Config> {
    let binary = own_binary()?;
    let events = Arc::clone(&store.ground.events);
    let metadata = store.metadata.clone();
    Ok(runtime_v2::Config {
        root: config.root.clone(),
        state: config.state.clone(),
        grpc_address: config.grpc.address.clone(),
        ttrpc_address: config.ttrpc_address(),
        containerd_binary: binary,
        default_runtime: DEFAULT_RUNTIME.into(),
        debug: matches!(config.debug.level, Level::Debug | Level::Trace),
        sched_core: section.sched_core,
        most_at_once: section.max_concurrent_starts,
        publisher: Arc::new(move |namespace, event| events.publish(&namespace, &event)),
        runtime_of: Arc::new(move |namespace, id| runtime_of(&metadata, namespace, id)),
    })
}

/// The runtime in a container's record.
fn runtime_of(metadata: &Metadata, namespace: &Namespace, id: &ContainerId) -> Option<String> {
    let records = metadata.containers(&Scope::new(namespace.clone()));
    // Reading records waits for nothing.
    let container = records.get(id).now_or_never()?.ok()?;
    Some(container.runtime.name)
}

/// A differ does both ways.
pub(crate) trait Differ: Applier + Comparer {}

impl<T: Applier + Comparer> Differ for T {}

/// The differs in the order in which they are asked: the first that can do it does it.
pub(crate) struct Differs {
    ordered: Vec<Arc<dyn Differ>>,
    /// Flush every layer, asked for or not.
    sync: bool,
}

impl Differs {
    /// The configured differs.
    pub(crate) fn select(point: &Point<dyn Differ>, section: &config::Diff) -> Self {
        let ready = |id: &String| {
            let found = point.ready().get(id).cloned();
            if found.is_none() {
                tracing::warn!(id, "configured differ is not there");
            }
            found
        };
        let ordered = section.default.iter().filter_map(ready).collect();
        Self {
            ordered,
            sync: section.sync_fs,
        }
    }

    /// One differ and no configuration.
    #[cfg(test)]
    pub(crate) fn only(differ: Arc<dyn Differ>) -> Self {
        Self {
            ordered: vec![differ],
            sync: false,
        }
    }

    /// Applies a layer.
    ///
    /// # Errors
    /// `NotImplemented` when no differ handles the media type; that of the differ that does.
    pub(crate) async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        mut opts: ApplyOpts,
    ) -> Result<Descriptor> {
        opts.sync |= self.sync;
        let mut declined = Vec::new();
        for differ in &self.ordered {
            match differ.apply(store, layer, mounts, opts.clone()).await {
                Err(error) if error.is(Code::NotImplemented) => declined.push(error.to_string()),
                done => return done,
            }
        }
        let media_type = &layer.media_type;
        Err(Error::not_implemented(format_args!(
            "no differ applies media type {media_type:?} ({})",
            declined.join("; ")
        )))
    }

    /// Makes a layer.
    ///
    /// # Errors
    /// `NotImplemented` when no differ makes the media type; that of the differ that does.
    pub(crate) async fn compare(
        &self,
        store: &Arc<dyn ContentStore>,
        lower: &[Mount],
        upper: &[Mount],
        opts: CompareOpts,
    ) -> Result<Descriptor> {
        for differ in &self.ordered {
            match differ.compare(store, lower, upper, opts.clone()).await {
                Err(error) if error.is(Code::NotImplemented) => {}
                done => return done,
            }
        }
        let media_type = opts.media_type;
        Err(Error::not_implemented(format_args!(
            "no differ makes media type {media_type:?}"
        )))
    }
}

#[async_trait]
impl Applier for Differs {
    async fn apply(
        &self,
        store: &Arc<dyn ContentStore>,
        layer: &Descriptor,
        mounts: &[Mount],
        opts: ApplyOpts,
    ) -> Result<Descriptor> {
        Self::apply(self, store, layer, mounts, opts).await
    }

    /// Any of them may be the one that applies.
    fn follows(&self) -> bool {
        self.ordered.iter().all(|differ| differ.follows())
    }

    /// As above.
    fn settles(&self) -> bool {
        self.ordered.iter().all(|differ| differ.settles())
    }

    /// As above.
    fn flushes(&self) -> bool {
        self.ordered.iter().all(|differ| differ.flushes())
    }
}

impl fmt::Debug for Differs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(&self.ordered).finish()
    }
}

#[cfg(test)]
mod tests;
