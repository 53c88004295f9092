//! Starting and stopping a container, as a client would.

use std::sync::Arc;

use client::spec::Spec;
use runtime_v2::{CreateOpts, Stdio, Task};
use types::{Container, ContainerId, Context as _, Error, Fields, Labels, Result, Scope};

use super::policy::{COUNT, LOG_URI, Now, PENDING, Step};
use super::policy::{count, decide, has_begun, made, pending, under_way};
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
            Step::Settle => {
                let has_begun = has_begun(&container.labels, now);
                self.settle(&scope, id, has_begun).await.map(drop)
            }
            Step::Start => {
                let failed = pending(&container.labels, now);
                let follows = failed.or_else(|| under_way(&container.labels));
                if let Some(status) = &follows
                    && container.labels.get(PENDING) != Some(status)
                {
                    // Before the task goes: nobody else knows how it ended.
                    self.label(&scope, id, &[(PENDING, status)]).await?;
                }
                match now {
                    // Only what has ended: the shim refuses to delete a task that somebody else has
                    // made and started meanwhile.
                    Now::Ended(_) => self.delete(key).await?,
                    Now::Created => self.stop(key).await?,
                    Now::Absent | Now::Alive | Now::Unclear => {}
                }
                self.start(&scope, container, now, follows.as_deref()).await
            }
        }
    }

    /// Forgets the start that was under way, and counts it when it has come about; how often that was.
    async fn settle(&self, scope: &Scope, id: &ContainerId, has_begun: bool) -> Result<u64> {
        let containers = self.0.metadata.containers(scope);
        let times = count(&containers.get(id).await?.labels);
        if !has_begun {
            self.label(scope, id, &[(PENDING, "")]).await?;
            return Ok(times);
        }
        let times = times.saturating_add(1);
        let labels = [(PENDING, ""), (COUNT, &times.to_string())];
        self.label(scope, id, &labels).await?;
        Ok(times)
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

    /// Makes the task and starts it. `follows`: how the one before ended, when only that asks for this one.
    async fn start(
        &self,
        scope: &Scope,
        container: Container,
        was: Now,
        follows: Option<&str>,
    ) -> Result<()> {
        let id = container.id.clone();
        let opts = self.opts(scope, container).await?;
        let Some(times) = self.note(scope, &id, was, follows.is_some()).await? else {
            return self.give_up(scope, &id, follows).await;
        };
        let (mounts, tasks) = (&self.0.mounts, &*self.0.tasks);
        let made = activations::create_task(mounts, tasks, scope, &id, opts).await;
        let task: Arc<dyn Task> = match made {
            Ok(task) => task,
            // Somebody was quicker: it is his.
            Err(error) if error.is_already_exists() => {
                return self.give_up(scope, &id, follows).await;
            }
            Err(error) => return Err(error),
        };
        if let Err(error) = self.begin_task(scope, &id, &task, follows).await {
            // What cannot be started must not stay: the next attempt makes it anew.
            let key = (scope.namespace.clone(), id);
            if let Err(left) = self.undo(&key, &task).await {
                tracing::warn!(error = %left, "a task that did not start stays");
            }
            return Err(error);
        }
        let times = match follows {
            Some(_) => self.settle(scope, &id, true).await?,
            None => times,
        };
        let namespace = &scope.namespace;
        tracing::info!(%namespace, %id, times, "container started again");
        Ok(())
    }

    /// The start is another's, or not wanted any more.
    async fn give_up(&self, scope: &Scope, id: &ContainerId, follows: Option<&str>) -> Result<()> {
        match follows {
            Some(_) => self.settle(scope, id, false).await.map(drop),
            None => Ok(()),
        }
    }

    /// Starts the task. Whoever finds the record later knows whether a task that is gone may have run.
    async fn begin_task(
        &self,
        scope: &Scope,
        id: &ContainerId,
        task: &Arc<dyn Task>,
        follows: Option<&str>,
    ) -> Result<()> {
        let Some(status) = follows else {
            return task.start(None).await.map(drop).ctx("start");
        };
        self.label(scope, id, &[(PENDING, &made(status))]).await?;
        let started = task.start(None).await.map(drop).ctx("start");
        if started.is_err() {
            // While its task is there: without it this would say that it ran.
            self.label(scope, id, &[(PENDING, status)]).await?;
        }
        started
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

    /// Counts the start in the record, before it happens, unless it is counted when it has; how often that
    /// was. None when its owner has changed his mind since the look: to delete a task takes a while.
    async fn note(
        &self,
        scope: &Scope,
        id: &ContainerId,
        was: Now,
        is_later: bool,
    ) -> Result<Option<u64>> {
        let containers = self.0.metadata.containers(scope);
        let container = containers.get(id).await?;
        if decide(&container.labels, was) != Step::Start {
            return Ok(None);
        }
        let times = count(&container.labels).saturating_add(1);
        if !is_later {
            let text = times.to_string();
            self.label(scope, id, &[(COUNT, &text)]).await?;
        }
        Ok(Some(times))
    }

    /// Sets labels of the container, or takes them away; nothing else of it.
    async fn label(&self, scope: &Scope, id: &ContainerId, labels: &[(&str, &str)]) -> Result<()> {
        let containers = self.0.metadata.containers(scope);
        let mut container = containers.get(id).await?;
        let all = labels.iter();
        container.labels = all.fold(Labels::new(), |made, (key, value)| made.with(*key, *value));
        let keys = labels.iter().map(|(key, _)| format!("labels.{key}"));
        let fields = Fields::new(keys.collect());
        containers.update(container, &fields).await.map(drop)
    }
}
