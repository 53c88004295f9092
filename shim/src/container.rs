//! One container: its init, its execs, and what the runtime does with them.
//!
//! ```text
//!  create: mount rootfs ─ open streams ─ [hold: runtime create ─ claim pid] ─ event
//!          (from a checkpoint: see `restore`)
//!  start:  runtime start ─ event            exec: [hold: runtime exec ─ claim pid] ─ event
//!  end:    record on disk ─ out of memory? ─ execs' exits ─ init's exit ─ waiters
//!  delete: runtime delete ─ drain output ─ unmount ─ event
//! ```
//! Invariant: what a failed step made is undone. Exit events follow start events, the init's follows
//! those of all execs.

mod create;
mod exec;
mod oom;
mod restore;
mod rootfs;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use protos::MessageField;
use protos::events::{TaskDelete, TaskExit, TaskPaused, TaskResumed, TaskStart};
use protos::wire::Wire as _;
use sys::cgroup::Cgroup;
use sys::process::Status;
use tokio::time::{Instant, timeout};
use types::{Code, Error, Exit, Result};

use crate::caught::{caught, survives};
use crate::exits;
use crate::lifecycle::{Input, Phase};
use crate::log;
use crate::process::Process;
use crate::reap::Ending;
use crate::runc::Runtime;
use crate::service::Shim;

use oom::Oom;

/// How long a deletion waits for output to be taken.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the end of a killed process may take.
const KILLED: Duration = Duration::from_secs(10);
/// The end of a process that was sent SIGKILL.
const KILLING: Status = Status::Signaled(9);

/// A container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) runtime: Runtime,
    /// All its processes die with its init.
    own_pids: bool,
    /// The shim mounted its root file system.
    mounted: bool,
    pub(crate) init: Arc<Process>,
    execs: Mutex<BTreeMap<String, Arc<Process>>>,
    /// Known once there is a process.
    pub(crate) cgroup: OnceLock<Cgroup>,
    /// The checkpoint that it comes from.
    image: Option<restore::Image>,
    oom: Oom,
}

impl Container {
    fn execs(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The init for an empty id, else an exec.
    ///
    /// # Errors
    /// `NotFound`.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>> {
        if exec.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        let found = self.execs().get(exec).map(Arc::clone);
        found.ok_or_else(|| Error::not_found(format_args!("process does not exist {exec}")))
    }

    /// Starts the init.
    ///
    /// # Errors
    /// The runtime's text; `FailedPrecondition` when it runs already, `Unknown` when it has ended.
    pub(crate) async fn start(self: &Arc<Self>, shim: &Arc<Shim>) -> Result<u32> {
        let init = &self.init;
        let _gate = init.gate.lock().await;
        startable(init)?;
        if let Some(image) = &self.image {
            return self.restore(shim, image).await;
        }
        init.starting();
        let started = caught(self.runtime.start()).await;
        let pid = init.view().pid;
        if started.is_ok() {
            init.step(Input::Start)?;
            let event = TaskStart {
                container_id: self.id.clone(),
                pid,
                ..TaskStart::default()
            };
            shim.publisher.publish("/tasks/start", &event);
        }
        init.announced();
        self.settle(shim);
        started.map(|()| pid)
    }

    /// Takes note of the end of one of its processes, when it comes.
    pub(crate) fn watch(
        self: &Arc<Self>,
        shim: &Arc<Shim>,
        process: &Arc<Process>,
        pid: u32,
        ending: Ending,
    ) {
        let (container, shim) = (Arc::clone(self), Arc::clone(shim));
        let process = Arc::clone(process);
        if process.is_init() {
            let container = Arc::clone(self);
            let look = Box::new(move || container.look_for_oom());
            self.runtime.reap.look_before_reaping(pid, look);
        }
        drop(tokio::spawn(async move {
            if let Ok(ended) = ending.await {
                let exit = Exit {
                    pid,
                    status: ended.status.code(),
                    at: ended.at,
                };
                if process.is_init() {
                    let fate = container.runtime.fate();
                    if ended.status == KILLING {
                        // Also by somebody who did not ask us to.
                        fate.doom();
                    }
                    fate.is_over();
                }
                if survives(|| container.ended(&shim, &process, exit)) {
                    return;
                }
                // Its end is a fact all the same.
                if !process.has_ended() {
                    process.ended(exit);
                }
                container.settle(&shim);
            }
        }));
        // It may have ended before it was claimed.
        self.runtime.reap.round();
    }

    fn ended(self: &Arc<Self>, shim: &Arc<Shim>, process: &Arc<Process>, exit: Exit) {
        #[cfg(test)]
        crate::caught::fault::point("ended");
        let oom = process.is_init() && self.ran_out_of_memory();
        if let Err(error) = exits::record(&self.bundle, &process.exec, exit, oom) {
            log::error(format_args!("exit of {} not recorded: {error}", self.id));
        }
        process.ended(exit);
        // One that is still being frozen is seen to by `pause`.
        let frozen = matches!(self.init.view().phase, Phase::Paused);
        if process.is_init() && (frozen || !self.own_pids) {
            let (container, shim) = (Arc::clone(self), Arc::clone(shim));
            drop(tokio::spawn(async move {
                if !container.own_pids {
                    container.kill_rest(&shim).await;
                }
                if frozen {
                    // What dies with the init does so when it thaws.
                    container.thaw().await;
                }
            }));
        }
        self.settle(shim);
    }

    /// Has what was killed die: in a frozen group of version 1 nothing does.
    async fn thaw(&self) {
        if let Err(error) = self.runtime.resume().await {
            // The runtime may have thawed it itself, or not have frozen it yet: see `pause`.
            log::debug(format_args!("thaw {}: {error}", self.id));
        }
    }

    /// Without process ids of its own, processes outlive the init: they are ended.
    async fn kill_rest(&self, shim: &Shim) {
        if let Err(error) = self.runtime.kill(libc::SIGKILL.unsigned_abs(), true).await {
            log::debug(format_args!("kill all of {}: {error}", self.id));
        }
        for exec in self.active_execs() {
            drop(self.runtime.reap.signal(exec.view().pid, libc::SIGKILL));
        }
        self.settle(shim);
    }

    fn active_execs(&self) -> Vec<Arc<Process>> {
        self.execs()
            .values()
            .filter(|exec| exec.view().active)
            .map(Arc::clone)
            .collect()
    }

    /// Publishes the ends that are due: execs first, the init when none of them is left.
    pub(crate) fn settle(&self, shim: &Shim) {
        let execs: Vec<Arc<Process>> = self.execs().values().map(Arc::clone).collect();
        for exec in &execs {
            self.publish_exit(shim, exec);
        }
        if execs.iter().any(|exec| exec.view().active) {
            return;
        }
        self.publish_exit(shim, &self.init);
    }

    fn publish_exit(&self, shim: &Shim, process: &Process) {
        let Some(exit) = process.take_due_exit() else {
            return;
        };
        self.settle_oom(shim, process, exit);
        let id = if process.is_init() {
            &self.id
        } else {
            &process.exec
        };
        let event = TaskExit {
            container_id: self.id.clone(),
            id: id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.to_wire()),
            ..TaskExit::default()
        };
        shim.publisher.publish("/tasks/exit", &event);
        process.tell(exit);
    }

    /// Sends a signal to a process, or with `all` to the whole container.
    ///
    /// # Errors
    /// `NotFound` for what has ended, `FailedPrecondition` for an exec that has not started.
    pub(crate) async fn kill(&self, exec: &str, signal: u32, all: bool) -> Result<()> {
        let process = self.process(exec)?;
        process.check(Input::Touch)?;
        let number = i32::try_from(signal)
            .map_err(|_| Error::invalid_argument(format_args!("signal {signal}")))?;
        let view = process.view();
        if !process.is_init() {
            if view.pid == 0 {
                return Err(Error::failed_precondition("process not created"));
            }
            return self.runtime.reap.signal(view.pid, number);
        }
        if self.is_image() {
            return Err(Error::not_found("process not created"));
        }
        let direct = !all
            && self.own_pids
            && self.runtime.has_plain_processes()
            && matches!(view.phase, Phase::Running);
        if direct {
            self.runtime.reap.signal(view.pid, number)?;
        } else {
            self.runtime.kill(signal, all).await?;
        }
        if number == libc::SIGKILL {
            self.runtime.fate().doom();
            // As it is now: it may have been frozen while the runtime was at work.
            if matches!(self.init.view().phase, Phase::Pausing | Phase::Paused) {
                self.thaw().await;
            }
        }
        Ok(())
    }

    /// Freezes it.
    ///
    /// # Errors
    /// The runtime's text; `FailedPrecondition` when it does not run, `NotFound` when it was killed or
    /// has ended meanwhile.
    pub(crate) async fn pause(&self, shim: &Shim) -> Result<()> {
        let _gate = self.init.gate.lock().await;
        self.init.step(Input::Pause)?;
        let paused = caught(self.runtime.pause()).await;
        // Killed or ended meanwhile: frozen, its processes would never be gone.
        let dying = self.runtime.fate().is_doomed() || self.init.has_ended();
        let done = if paused.is_ok() && !dying {
            Input::PauseDone
        } else {
            Input::PauseFailed
        };
        self.init.step(done)?;
        let half = |error: &Error| error.is(Code::Aborted);
        if dying || paused.as_ref().is_err_and(half) {
            // Half frozen is of no use to anybody either.
            self.thaw().await;
        }
        paused?;
        if dying {
            return Err(Error::not_found("process already finished"));
        }
        // It was frozen a moment ago and nothing was waited for since: no exit can have been told.
        let event = TaskPaused {
            container_id: self.id.clone(),
            ..TaskPaused::default()
        };
        shim.publisher.publish("/tasks/paused", &event);
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// The runtime's text; `FailedPrecondition` when it is not frozen.
    pub(crate) async fn resume(&self, shim: &Shim) -> Result<()> {
        let _gate = self.init.gate.lock().await;
        self.init.check(Input::Resume)?;
        self.runtime.resume().await?;
        self.init.step(Input::Resume)?;
        let event = TaskResumed {
            container_id: self.id.clone(),
            ..TaskResumed::default()
        };
        shim.publisher.publish("/tasks/resumed", &event);
        Ok(())
    }

    /// Changes resources, given as the runtime spec writes them.
    ///
    /// # Errors
    /// The runtime's text.
    pub(crate) async fn update(&self, resources: &[u8]) -> Result<()> {
        let _gate = self.init.gate.lock().await;
        self.init.check(Input::Touch)?;
        self.need_process()?;
        let file = self.bundle.join("resources.json");
        sys::fs::write_atomic_with(&file, resources, 0o600, sys::fs::Flush::Volatile)?;
        let updated = self.runtime.update(&file.display().to_string()).await;
        drop(std::fs::remove_file(&file));
        updated
    }

    /// The pids in it, those of execs with their id.
    pub(crate) fn pids(&self, own: Option<&Cgroup>) -> Vec<(u32, Option<String>)> {
        let known: BTreeMap<u32, String> = self
            .active_execs()
            .into_iter()
            .map(|exec| (exec.view().pid, exec.exec.clone()))
            .filter(|(pid, _)| *pid != 0)
            .collect();
        let in_group = self
            .cgroup
            .get()
            .zip(own)
            .and_then(|(group, own)| group.pids(own));
        let pids = in_group.unwrap_or_else(|| {
            let init = self.init.view();
            let init = init.active.then_some(init.pid);
            init.into_iter().chain(known.keys().copied()).collect()
        });
        pids.into_iter()
            .map(|pid| (pid, known.get(&pid).cloned()))
            .collect()
    }

    /// Removes an exec's record, or the whole container; the latter must have ended or never been
    /// started.
    ///
    /// # Errors
    /// `Unknown` for what runs, else what the runtime or the kernel says.
    pub(crate) async fn delete(&self, shim: &Shim, exec: &str) -> Result<Exit> {
        let process = self.process(exec)?;
        let _gate = process.gate.lock().await;
        process.check(Input::Delete)?;
        if !process.is_init() {
            process.drain(Instant::now() + DRAIN).await;
            process.delete()?;
            self.execs().remove(exec);
            exits::forget(&self.bundle, exec);
            return Ok(process.exit());
        }
        self.remove().await?;
        let until = Instant::now() + DRAIN;
        process.drain(until).await;
        let unmounted = if self.mounted {
            rootfs::unmount(&self.bundle).await
        } else {
            Ok(())
        };
        self.stop_watching_oom();
        process.delete()?;
        self.delete_execs(until).await;
        let exit = process.exit();
        let event = TaskDelete {
            container_id: self.id.clone(),
            pid: exit.pid,
            exit_status: exit.status,
            exited_at: MessageField::some(exit.at.to_wire()),
            ..TaskDelete::default()
        };
        shim.publisher.publish("/tasks/delete", &event);
        unmounted.map(|()| exit)
    }

    /// The execs go with their container: who waits for one that was never started learns that it
    /// never will be.
    async fn delete_execs(&self, until: Instant) {
        let execs = std::mem::take(&mut *self.execs());
        for exec in execs.into_values() {
            exec.drain(until).await;
            // Somebody else may be deleting it: as good.
            drop(exec.delete());
            exits::forget(&self.bundle, &exec.exec);
        }
    }

    /// Has the runtime remove it; one that was never started is ended first.
    async fn remove(&self) -> Result<()> {
        if self.is_image() {
            return Ok(());
        }
        let never_started = matches!(self.init.view().phase, Phase::Created);
        self.runtime.delete(never_started).await?;
        if never_started {
            timeout(KILLED, self.init.wait()).await.map_err(|_| {
                Error::deadline_exceeded(format_args!("end of container {}", self.id))
            })??;
        }
        Ok(())
    }
}

/// Whether a process can be started.
///
/// # Errors
/// `FailedPrecondition` when it runs, `Unknown` when it has ended.
fn startable(process: &Process) -> Result<()> {
    process.check(Input::Start).map_err(|error| {
        if error.is_not_found() {
            // Parity: process/init_state.go, exec_state.go: an error without a class. It is there, so
            // that clients must not take it for one that is not.
            Error::unknown("a process that has ended cannot be started again")
        } else {
            error
        }
    })
}

/// True for texts that say that the runtime has another container of this name.
fn says_exists(error: &Error) -> bool {
    let text = error.to_string();
    error.code() == Code::Unknown && (text.contains("already exists") || text.contains("given ID"))
}

#[cfg(test)]
mod tests;
