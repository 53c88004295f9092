//! Second floor: the records of all namespaces over the backends, and what collects the rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use metadata::gc::SchedulerOpts;
use metadata::{FoundTask, Metadata, OpenOpts, Policy, TasksOf};
use types::{Context as _, Error, Result};

use crate::config::{self, Config};
use crate::ground::{Ground, SNAPSHOTTER};
use crate::lock;
use crate::point::Row;

/// Kind and id of the metadata store: the wire's names; the engine below is not bolt.
const METADATA: &str = "io.containerd.metadata.v1";
/// File of the store, beside the one that Go's daemon would have.
const FILE: &str = "metadata.redb";

/// The backends and the records that name what is in them.
#[derive(Debug)]
pub(crate) struct Store {
    /// The floor below.
    pub(crate) ground: Ground,
    /// The records.
    pub(crate) metadata: Metadata,
    /// What there is, for introspection.
    pub(crate) rows: Vec<Row>,
}

impl Store {
    /// Opens the records over `ground`.
    ///
    /// # Errors
    /// `Unavailable` while another daemon has them; `FailedPrecondition` for records of another's.
    pub(crate) async fn open(ground: Ground, config: &Config) -> Result<Self> {
        let directory = directory(config);
        lock::create(&directory, lock::ROOT_MODE)?;
        let store = Self::at(&directory, ground, config).await?;
        store.metadata.redo_rootfs().await?;
        Ok(store)
    }

    /// A copy of the records in `scratch`, an empty directory, over `ground`: to be looked at.
    ///
    /// # Errors
    /// As [`Store::open`].
    pub(crate) async fn examine(ground: Ground, config: &Config, scratch: &Path) -> Result<Self> {
        metadata::copy_store(&directory(config).join(FILE), &scratch.join(FILE))?;
        Self::at(scratch, ground, config).await
    }

    async fn at(directory: &Path, ground: Ground, config: &Config) -> Result<Self> {
        let section: config::Metadata = config.section(&format!("{METADATA}.bolt"))?;
        let opts = OpenOpts {
            content: Arc::clone(&ground.content),
            snapshotters: ground.snapshotters.ready().clone(),
            events: Arc::clone(&ground.events),
            policy: match section.content_sharing_policy {
                config::Sharing::Shared => Policy::Shared,
                config::Sharing::Isolated => Policy::Isolated,
            },
            tasks: tasks(config),
            absent: absent(&ground, config)?,
        };
        let metadata = Metadata::open(&directory.join(FILE), opts)
            .await
            .ctx("open metadata")?;
        let rows = vec![
            Row::ready(
                METADATA,
                "bolt",
                &[
                    "io.containerd.content.v1",
                    "io.containerd.event.v1",
                    "io.containerd.snapshotter.v1",
                ],
            ),
            Row::ready("io.containerd.gc.v1", "scheduler", &[METADATA]),
            Row::ready("io.containerd.lease.v1", "manager", &[METADATA]),
        ];
        Ok(Self {
            ground,
            metadata,
            rows,
        })
    }
}

/// When garbage is collected, as configured.
///
/// # Errors
/// `InvalidArgument` for a section that does not fit.
pub(crate) fn collector(config: &Config) -> Result<SchedulerOpts> {
    let section: config::Scheduler = config.section("io.containerd.gc.v1.scheduler")?;
    Ok(SchedulerOpts {
        startup_delay: section.startup_delay,
        schedule_delay: section.schedule_delay,
        deletion_threshold: section.deletion_threshold,
        mutation_threshold: section.mutation_threshold,
        pause_threshold: section.pause_threshold,
    })
}

/// Where the records are.
pub(crate) fn directory(config: &Config) -> PathBuf {
    config.root.join(format!("{METADATA}.bolt"))
}

/// The files of the records that [`Store::examine`] copies, as far as they are there.
pub(crate) fn copied(config: &Config) -> impl Iterator<Item = PathBuf> {
    metadata::store_files(&directory(config).join(FILE)).into_iter()
}

/// What the bundles know, for a store that has lost its records.
fn tasks(config: &Config) -> TasksOf {
    let (state, root) = (config.state.clone(), config.root.clone());
    Box::new(move || {
        let found = runtime_v2::found(&state, &root)?;
        let task = |found: runtime_v2::Found| FoundTask {
            namespace: found.namespace,
            id: found.id,
            spec: found.spec,
            runtime: found.runtime,
        };
        Ok(found.into_iter().map(task).collect())
    })
}

/// Snapshotters that have a directory under the root and do not work now.
fn absent(ground: &Ground, config: &Config) -> Result<Vec<String>> {
    let root = &config.root;
    let os = |e| Error::os(format_args!("read {}", root.display()), e);
    let mut absent = Vec::new();
    for entry in std::fs::read_dir(root).map_err(os)? {
        let name = entry.map_err(os)?.file_name();
        let snapshotter = name
            .to_str()
            .and_then(|name| name.strip_prefix(SNAPSHOTTER));
        let Some(name) = snapshotter.and_then(|name| name.strip_prefix('.')) else {
            continue;
        };
        if !ground.snapshotters.ready().contains_key(name) {
            absent.push(name.to_owned());
        }
    }
    Ok(absent)
}
