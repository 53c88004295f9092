//! The mount manager in this daemon: where its files are, and what the collector does with it.

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use metadata::Metadata;
use metadata::gc::Unrecorded;
use mounts::{ActivateOpts, Mounts, OpenOpts};
use protos::Message as _;
use protos::types::RuntimeInfo;
use runtime_v2::{CreateOpts, Task, TaskManager};
use types::{Code, ContainerId, Error, Exit, Held, Labels, Namespace, Result, Scope, gc_label};

use crate::config::Config;
use crate::point::Row;

/// Kind of the manager.
const MANAGER: &str = "io.containerd.mount-manager.v1";
/// Kind of what performs mounts of its own.
const HANDLER: &str = "io.containerd.mount-handler.v1";
/// Parity: the name stands in paths that clients see.
const ID: &str = "bolt";

/// Where the manager keeps its records and mounts.
pub(crate) fn directory(config: &Config) -> PathBuf {
    config.state.join(format!("{MANAGER}.{ID}"))
}

/// Annotation of a runtime, a list with commas: mounts of which types it performs itself.
const ALLOWED: &str = "containerd.io/runtime-allow-mounts";

/// Opens the manager, and lets the collector of `metadata` take its mounts away.
///
/// # Errors
/// I/O on its directory.
pub(crate) fn open(metadata: &Metadata, config: &Config) -> Result<(Mounts, Vec<Row>)> {
    let mounts = Mounts::open(OpenOpts {
        directory: directory(config),
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
        allowed: allowed(tasks, &opts).await,
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

/// Types of mounts that the shim of a task wants to perform itself. Nobody is asked where that makes no
/// difference; one that does not answer wants none.
async fn allowed(tasks: &dyn TaskManager, opts: &CreateOpts) -> Vec<String> {
    if !Mounts::is_needed(&opts.rootfs) {
        return Vec::new();
    }
    let told = tasks.known_info(&opts.runtime).await;
    let told = told.and_then(|told| {
        // One that is too old to tell anything performs none.
        let told = told.map_or_else(Vec::new, |told| told.value);
        let info = RuntimeInfo::parse_from_bytes(&told);
        info.map_err(|e| Error::unknown("info of the runtime").with_source(e))
    });
    match told {
        Ok(info) => {
            let types = info.annotations.get(ALLOWED).map_or("", String::as_str);
            let types = types
                .split(',')
                .map(str::trim)
                .filter(|kind| !kind.is_empty());
            types.map(str::to_owned).collect()
        }
        Err(error) => {
            tracing::warn!(
                runtime = opts.runtime,
                %error,
                "the shim does not tell which mounts it performs: all that it may not know are performed here"
            );
            Vec::new()
        }
    }
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
impl Unrecorded for Kept {
    fn held(&self) -> Vec<Held> {
        self.0.held()
    }

    async fn end(&self, held: &Held) {
        if let Err(error) = self.0.collect(held).await {
            tracing::warn!(name = held.name, %error, "mount that nobody keeps stays for now");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use types::{Any, Mount};

    use super::*;

    /// A manager whose runtime tells this of itself.
    #[derive(Debug, Default)]
    struct Told {
        /// None: it fails; in it none: it is too old.
        info: Option<Option<RuntimeInfo>>,
        asked: AtomicUsize,
    }

    fn unused<T>() -> Result<T> {
        Err(Error::not_implemented("here"))
    }

    #[async_trait]
    impl TaskManager for Told {
        async fn create(&self, _: &Scope, _: &ContainerId, _: CreateOpts) -> Result<Arc<dyn Task>> {
            unused()
        }

        fn check_free(&self, _: &Namespace, _: &ContainerId) -> Result<()> {
            unused()
        }

        async fn get(&self, _: &Namespace, _: &ContainerId) -> Result<Arc<dyn Task>> {
            unused()
        }

        async fn list(&self, _: Option<&Namespace>) -> Result<Vec<Arc<dyn Task>>> {
            unused()
        }

        async fn delete(&self, _: &Namespace, _: &ContainerId) -> Result<Exit> {
            unused()
        }

        async fn runtime_info(&self, _: &str, _: Option<Any>) -> Result<Any> {
            unused()
        }

        async fn known_info(&self, runtime: &str) -> Result<Option<Any>> {
            assert_eq!(runtime, "io.containerd.x.v2");
            self.asked.fetch_add(1, Ordering::Relaxed);
            let info = self.info.as_ref().ok_or_else(|| Error::unknown("no"))?;
            let told = |info: &RuntimeInfo| Any {
                type_url: String::new(),
                value: info.write_to_bytes().unwrap(),
            };
            Ok(info.as_ref().map(told))
        }
    }

    fn opts(kinds: &[&str]) -> CreateOpts {
        let mount = |kind: &&str| Mount {
            kind: (*kind).to_owned(),
            ..Mount::default()
        };
        CreateOpts {
            rootfs: kinds.iter().map(mount).collect(),
            runtime: "io.containerd.x.v2".into(),
            spec: Vec::new(),
            stdio: runtime_v2::Stdio::default(),
            options: None,
            checkpoint: None,
            sandbox: String::new(),
        }
    }

    #[tokio::test]
    async fn a_shim_is_asked_which_mounts_it_performs_only_where_that_matters() {
        let mut told = Told::default();
        assert!(allowed(&told, &opts(&["bind", "overlay"])).await.is_empty());
        assert_eq!(told.asked.load(Ordering::Relaxed), 0);
        assert!(allowed(&told, &opts(&["erofs"])).await.is_empty());
        assert_eq!(told.asked.load(Ordering::Relaxed), 1);
        told.info = Some(None);
        assert!(allowed(&told, &opts(&["erofs"])).await.is_empty());
        let mut info = RuntimeInfo::new();
        told.info = Some(Some(info.clone()));
        assert!(allowed(&told, &opts(&["erofs"])).await.is_empty());
        info.annotations
            .insert(ALLOWED.into(), "erofs, format/*,,".into());
        told.info = Some(Some(info));
        let types = allowed(&told, &opts(&["erofs", "format/overlay"])).await;
        assert_eq!(types, ["erofs", "format/*"]);
    }
}
