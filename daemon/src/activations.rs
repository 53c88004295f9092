//! The mount manager in this daemon: where its files are, and what the collector does with it.

use std::sync::Arc;

use async_trait::async_trait;
use metadata::Metadata;
use metadata::gc::{HeldMount, Mounts as Collected};
use mounts::{ActivateOpts, Held, Mounts, OpenOpts};
use runtime_v2::{CreateOpts, Task, TaskManager};
use types::{Code, ContainerId, Exit, Labels, Namespace, Result, Scope, gc_label};

use crate::config::Config;
use crate::point::Row;

/// Kind of the manager.
const MANAGER: &str = "io.containerd.mount-manager.v1";
/// Kind of what performs mounts of its own.
const HANDLER: &str = "io.containerd.mount-handler.v1";
/// Parity: the name stands in paths that clients see.
const ID: &str = "bolt";

/// Opens the manager, and lets the collector of `metadata` take its mounts away.
///
/// # Errors
/// I/O on its directory.
pub(crate) fn open(metadata: &Metadata, config: &Config) -> Result<(Mounts, Vec<Row>)> {
    let mounts = Mounts::open(OpenOpts {
        directory: config.state.join(format!("{MANAGER}.{ID}")),
        // Snapshotters ask for directories and disks in their own.
        roots: vec![config.root.clone()],
    })?;
    metadata.collect_mounts(Arc::new(Kept(mounts.clone())));
    let requires = &["io.containerd.metadata.v1", HANDLER];
    let rows = vec![
        Row::ready(HANDLER, "erofs", &[]),
        Row::ready(HANDLER, "loop", &[]),
        Row::ready(MANAGER, ID, requires),
    ];
    Ok((mounts, rows))
}

/// Creates the task of container `id`. What of its root file system the shim cannot mount is mounted here,
/// under the container's name, and lives as long as the container or until the task is deleted.
///
/// # Errors
/// Those of the mounts and of the task; without the task nothing stays mounted.
pub(crate) async fn create_task(
    mounts: &Mounts,
    tasks: &dyn TaskManager,
    scope: &Scope,
    id: &ContainerId,
    mut opts: CreateOpts,
) -> Result<Arc<dyn Task>> {
    let name = id.to_string();
    let labels = Labels::new().with(gc_label::BREF_CONTAINER, &name);
    let how = ActivateOpts {
        labels,
        temporary: false,
    };
    let rootfs = opts.rootfs.clone();
    let mut is_new = false;
    match mounts.activate(scope, &name, rootfs, how).await {
        Ok(active) => {
            is_new = true;
            opts.rootfs = active.system;
        }
        // Of an earlier task of the same container, which the label names.
        Err(error) if error.is_already_exists() => {
            opts.rootfs = mounts.info(&scope.namespace, &name)?.system;
        }
        Err(error) if error.is(Code::NotImplemented) => {}
        Err(error) => return Err(error.ctx("mount root file system")),
    }
    let created = tasks.create(scope, id, opts).await;
    if is_new && created.is_err() {
        end(mounts, &scope.namespace, &name).await;
    }
    created
}

/// Deletes the task of container `id`, and what was mounted for it.
///
/// # Errors
/// Those of the task.
pub(crate) async fn delete_task(
    mounts: &Mounts,
    tasks: &dyn TaskManager,
    namespace: &Namespace,
    id: &ContainerId,
) -> Result<Exit> {
    let exit = tasks.delete(namespace, id).await?;
    let name = id.to_string();
    if mounts.info(namespace, &name).is_ok() {
        end(mounts, namespace, &name).await;
    }
    Ok(exit)
}

/// Whatever stays is collected with the container.
async fn end(mounts: &Mounts, namespace: &Namespace, name: &str) {
    if let Err(error) = mounts.deactivate(namespace, name).await {
        tracing::warn!(name, %error, "mounts of a task stay for now");
    }
}

/// The activations as the collector knows them.
#[derive(Debug)]
struct Kept(Mounts);

#[async_trait]
impl Collected for Kept {
    fn held(&self) -> Vec<HeldMount> {
        let held = |one: Held| HeldMount {
            namespace: one.namespace,
            name: one.name,
            number: one.number,
            lease: one.lease,
            labels: one.labels,
        };
        self.0.held().into_iter().map(held).collect()
    }

    async fn end(&self, mount: &HeldMount) {
        let held = Held {
            namespace: mount.namespace.clone(),
            name: mount.name.clone(),
            number: mount.number,
            lease: None,
            labels: Labels::new(),
        };
        if let Err(error) = self.0.collect(&held).await {
            tracing::warn!(name = held.name, %error, "mount that nobody keeps stays for now");
        }
    }
}
