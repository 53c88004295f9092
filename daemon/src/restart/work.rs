//! Starting and stopping a container, as a client would.

use std::sync::Arc;

use client::spec::Spec;
use runtime_v2::{CreateOpts, Stdio, Task};
use types::{Container, Error, Fields, Labels, Result, Scope};

use super::policy::{COUNT, LOG_URI, Now, Step, count, decide};
use super::{Key, Monitor, state};
use crate::activations;

const SIGKILL: u32 = 9;

impl Monitor {
    /// Looks once more, and does what is to be done.
    pub(super) async fn act(&self, key: &Key) -> Result<()> {
        let (namespace, id) = key;
        recorder::subject(namespace.as_str(), id.as_str());
        let scope = Scope::new(namespace.clone());
        let container = self.0.metadata.containers(&scope).get(id).await?;
        let now = state(&*self.0.tasks, key).await;
        match decide(&container.labels, now) {
            Step::Leave => Ok(()),
            Step::Stop => self.stop(key).await,
            Step::Start => {
                match now {
                    // Only what has ended: the shim refuses to delete a task that somebody else has
                    // made and started meanwhile.
                    Now::Ended(_) => self.delete(key).await?,
                    Now::Created => self.stop(key).await?,
                    Now::Absent | Now::Alive | Now::Unclear => {}
                }
                self.start(&scope, container, now).await
            }
        }
    }

    /// Ends the task, whatever state it is in.
    ///
    /// # Errors
    /// `NotFound` when there is none.
    async fn stop(&self, (namespace, id): &Key) -> Result<()> {
        let task = self.0.tasks.get(namespace, id).await?;
        if task.kill(None, SIGKILL, true).await.is_ok() {
            task.wait(None).await?;
        }
        self.delete(&(namespace.clone(), id.clone())).await
    }

    /// Ends `task`, unless there is another one in its place by now.
    async fn undo(&self, key: &Key, task: &Arc<dyn Task>) -> Result<()> {
        let (namespace, id) = key;
        if !Arc::ptr_eq(&self.0.tasks.get(namespace, id).await?, task) {
            return Ok(());
        }
        if task.kill(None, SIGKILL, true).await.is_ok() {
            task.wait(None).await?;
        }
        self.delete(key).await
    }

    async fn delete(&self, (namespace, id): &Key) -> Result<()> {
        let (mounts, tasks) = (&self.0.mounts, &*self.0.tasks);
        let exit = activations::delete_task(mounts, tasks, namespace, id).await?;
        tracing::info!(%namespace, %id, status = exit.status, "task removed by the restart monitor");
        Ok(())
    }

    async fn start(&self, scope: &Scope, container: Container, was: Now) -> Result<()> {
        let id = container.id.clone();
        let opts = self.opts(scope, container).await?;
        let Some(times) = self.note(scope, &id, was).await? else {
            return Ok(());
        };
        let (mounts, tasks) = (&self.0.mounts, &*self.0.tasks);
        let made = activations::create_task(mounts, tasks, scope, &id, opts).await;
        let task: Arc<dyn Task> = match made {
            Ok(task) => task,
            // Somebody was quicker: it is his.
            Err(error) if error.is_already_exists() => return Ok(()),
            Err(error) => return Err(error),
        };
        if let Err(error) = task.start(None).await {
            // What cannot be started must not stay: the next attempt makes it anew.
            let key = (scope.namespace.clone(), id);
            if let Err(left) = self.undo(&key, &task).await {
                tracing::warn!(error = %left, "a task that did not start stays");
            }
            return Err(error.ctx("start"));
        }
        let namespace = &scope.namespace;
        tracing::info!(%namespace, %id, times, "container started again");
        Ok(())
    }

    /// How to make the task: from the record, as a client does.
    async fn opts(&self, scope: &Scope, container: Container) -> Result<CreateOpts> {
        let rootfs = match container.snapshot_key.as_str() {
            "" => Vec::new(),
            key => {
                let scoped = self.0.metadata.scoped(scope);
                let snapshotter = scoped.snapshotter(&container.snapshotter)?;
                snapshotter.mounts(&key.parse()?).await?
            }
        };
        let terminal = Spec::from_any(container.spec.as_ref())?.terminal();
        let log = container.labels.get(LOG_URI).cloned().unwrap_or_default();
        let spec = container.spec.ok_or_else(|| {
            Error::failed_precondition(format_args!("container {} has no spec", container.id))
        })?;
        Ok(CreateOpts {
            spec: spec.value,
            rootfs,
            stdio: Stdio {
                stdin: String::new(),
                stdout: log.clone(),
                // A terminal has one output.
                stderr: if terminal { String::new() } else { log },
                terminal,
            },
            runtime: container.runtime.name,
            options: container.runtime.options,
            checkpoint: None,
            sandbox: container.sandbox,
        })
    }

    /// Counts the start in the record, before it happens: after a crash in between it is not made
    /// more often than the policy allows. None when its owner has changed his mind since the look: to delete
    /// a task takes a while.
    async fn note(&self, scope: &Scope, id: &types::ContainerId, was: Now) -> Result<Option<u64>> {
        let containers = self.0.metadata.containers(scope);
        let mut container = containers.get(id).await?;
        if decide(&container.labels, was) != Step::Start {
            return Ok(None);
        }
        let times = count(&container.labels).saturating_add(1);
        container.labels = Labels::new().with(COUNT, times.to_string());
        let fields = Fields::new(vec![format!("labels.{COUNT}")]);
        containers.update(container, &fields).await?;
        Ok(Some(times))
    }
}
