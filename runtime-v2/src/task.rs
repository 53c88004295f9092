//! The calls on one task.
//!
//! Invariant: a call that a lost connection cut off says so; only `wait` goes on by itself, because
//! an exit can always be told in the end.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use types::{Any, Code, ContainerId, Error, ExecId, Exit, Namespace, Result};

use crate::bundle::lost;
use crate::client::{Client, Failure, STATE};
use crate::entry::{Entry, Link};
use crate::{ExecOpts, ProcessInfo, ProcessState, Status, Task};

#[async_trait]
impl Task for Entry {
    fn id(&self) -> &ContainerId {
        &self.id
    }

    fn namespace(&self) -> &Namespace {
        &self.namespace
    }

    fn pid(&self) -> u32 {
        self.seen().get(None).map_or(0, |state| state.pid)
    }

    fn known(&self, exec: Option<&ExecId>) -> Result<ProcessState> {
        self.last_known(exec)
    }

    fn endpoint(&self) -> Result<String> {
        let id = &self.id;
        if matches!(self.link(), Link::Gone(_)) {
            return Err(Error::not_found(format_args!("shim of task {id}")));
        }
        let known = self.address.get().map(|known| known.address.clone());
        known.ok_or_else(|| Error::unavailable(format_args!("shim of task {id} is not known yet")))
    }

    fn is_silent(&self) -> bool {
        self.silent.load(Ordering::Relaxed)
    }

    async fn start(&self, exec: Option<&ExecId>) -> Result<u32> {
        match (exec, self.turns.get()) {
            // What a silent shim is asked for costs the machine nothing.
            (Some(_), Some(turns)) if !self.is_silent() => {
                drop(self.client().await?);
                let turn = turns.take().await;
                turn.during(pin!(self.start_now(exec))).await
            }
            _ => self.start_now(exec).await,
        }
    }

    async fn state(&self, exec: Option<&ExecId>) -> Result<ProcessState> {
        let mut links = self.links();
        let settled = links.wait_for(|link| !matches!(link, Link::Connecting));
        let ready = match tokio::time::timeout(STATE, settled).await {
            Ok(Ok(link)) => match &*link {
                Link::Ready(client) => Some(Arc::clone(client)),
                Link::Connecting | Link::Gone(_) => None,
            },
            _ => None,
        };
        let Some(client) = ready else {
            return self.last_known(exec);
        };
        match client.state(exec).await {
            Ok(state) => {
                self.seen().told(exec, &state);
                Ok(state)
            }
            Err(failure @ (Failure::Silent | Failure::Lost)) => {
                self.note(&failure);
                self.last_known(exec)
            }
            Err(Failure::Answer(error)) => Err(error),
        }
    }

    async fn exec(&self, id: &ExecId, opts: ExecOpts) -> Result<()> {
        let client = self.client().await?;
        client.exec(id, &opts).await.map_err(|e| self.failed(e))?;
        self.seen().added(id, opts.stdio);
        Ok(())
    }

    async fn kill(&self, exec: Option<&ExecId>, signal: u32, all: bool) -> Result<()> {
        let client = self.client().await?;
        let killed = client.kill(exec, signal, all).await;
        killed.map_err(|e| self.failed(e))
    }

    async fn wait(&self, exec: Option<&ExecId>) -> Result<Exit> {
        let mut links = self.links();
        loop {
            let link = links.borrow_and_update().clone();
            match link {
                Link::Gone(exit) => return self.exit_without_shim(exec, exit),
                Link::Ready(client) => match self.wait_on(&client, exec).await {
                    Err(Failure::Lost) => {}
                    done => return done.map_err(|e| self.failed(e)),
                },
                Link::Connecting => {}
            }
            // The sender lives in this entry: an error cannot happen while it is borrowed.
            if links.changed().await.is_err() {
                return self.exit_without_shim(exec, lost(self.pid()));
            }
        }
    }

    async fn delete_exec(&self, id: &ExecId) -> Result<Exit> {
        if let Link::Gone(exit) = self.link() {
            let exit = self.exit_without_shim(Some(id), exit)?;
            self.seen().removed(id);
            return Ok(exit);
        }
        let client = self.client().await?;
        let deleted = client.delete(Some(id)).await;
        let exit = deleted.map_err(|e| self.failed(e))?;
        self.seen().removed(id);
        Ok(exit)
    }

    async fn pause(&self) -> Result<()> {
        let client = self.client().await?;
        client.pause().await.map_err(|e| self.failed(e))?;
        self.seen().alive(None, Status::Paused, None);
        Ok(())
    }

    async fn resume(&self) -> Result<()> {
        let client = self.client().await?;
        client.resume().await.map_err(|e| self.failed(e))?;
        self.seen().alive(None, Status::Running, None);
        Ok(())
    }

    async fn resize(&self, exec: Option<&ExecId>, width: u32, height: u32) -> Result<()> {
        let client = self.client().await?;
        let resized = client.resize(exec, width, height).await;
        resized.map_err(|e| self.failed(e))
    }

    async fn close_io(&self, exec: Option<&ExecId>) -> Result<()> {
        let client = self.client().await?;
        client.close_io(exec).await.map_err(|e| self.failed(e))
    }

    async fn pids(&self) -> Result<Vec<ProcessInfo>> {
        let client = self.client().await?;
        client.pids().await.map_err(|e| self.failed(e))
    }

    async fn update(&self, resources: Any, annotations: Vec<(String, String)>) -> Result<()> {
        let client = self.client().await?;
        let updated = client.update(resources, annotations).await;
        updated.map_err(|e| self.failed(e))
    }

    async fn checkpoint(&self, path: &str, options: Option<Any>) -> Result<()> {
        let client = self.client().await?;
        let written = client.checkpoint(path, options).await;
        written.map_err(|e| self.failed(e))
    }

    async fn stats(&self) -> Result<Any> {
        let client = self.client().await?;
        client.stats().await.map_err(|e| self.failed(e))
    }
}

/// What stays goes with the bundle.
fn remove(checkpoint: &Path) {
    match std::fs::remove_dir_all(checkpoint) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(path = %checkpoint.display(), error = %e, "remove checkpoint");
        }
        _ => {}
    }
}

impl Entry {
    async fn start_now(&self, exec: Option<&ExecId>) -> Result<u32> {
        let client = self.client().await?;
        // A created task without a process is one that its start restores.
        let restores = exec.is_none() && self.pid() == 0;
        let started = client.start(exec, restores).await;
        let pid = started.map_err(|e| self.failed(e))?;
        self.seen().alive(exec, Status::Running, Some(pid));
        if exec.is_none() {
            self.mark();
            self.drop_checkpoint();
        }
        Ok(pid)
    }

    /// The task was restored: what it was restored from has served. What a crash leaves is removed
    /// after the next start of the daemon.
    pub(crate) fn drop_checkpoint(&self) {
        if let Some(served) = self.bundle.forget_checkpoint() {
            // It may be gigabytes, and somebody waits.
            drop(tokio::task::spawn_blocking(move || remove(&served)));
        }
    }

    async fn wait_on(&self, client: &Client, exec: Option<&ExecId>) -> Result<Exit, Failure> {
        let (status, at) = match client.wait(exec).await {
            Err(Failure::Answer(error)) if error.is(Code::NotFound) && exec.is_none() => {
                // Deleted meanwhile: the exit was told to whoever deleted it.
                return match self.seen().exit() {
                    Some(exit) => Ok(exit),
                    None => Err(Failure::Answer(error)),
                };
            }
            done => done?,
        };
        let mut seen = self.seen();
        seen.ended(exec, 0, status, at);
        let pid = seen.get(exec).map_or(0, |state| state.pid);
        Ok(Exit { pid, status, at })
    }

    /// How a process ended when there is no shim to ask: as recorded; an exec ended with its task.
    fn exit_without_shim(&self, exec: Option<&ExecId>, exit: Exit) -> Result<Exit> {
        let Some(id) = exec else {
            return Ok(exit);
        };
        let state = self.last_known(Some(id))?;
        Ok(match state.exit {
            Some((status, at)) => Exit {
                pid: state.pid,
                status,
                at,
            },
            None => Exit {
                at: exit.at,
                ..lost(state.pid)
            },
        })
    }
}
