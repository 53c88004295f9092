//! A container's memory running out: told each time it does, and before the end of what it killed.
//!
//! Invariant: no event after the init's exit has been published. The kernel's event and the group's
//! counter are two views of one watch, so a kill is told once whoever sees it first. The counter is
//! read while the init is a zombie: who manages the group (systemd a scope) removes it when it hears of
//! the end, at any time from then on.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use protos::events::TaskOOM;
use sys::cgroup::{OomEvent, OomWatch};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::AbortHandle;
use types::{Exit, Result};

use super::Container;
use crate::log;
use crate::process::Process;
use crate::service::Shim;
use crate::watch::watch_for;

/// What the killer of the kernel uses.
const KILLED: u32 = 128 + libc::SIGKILL.unsigned_abs();

/// The watch of a container. Without one only the init's end tells.
#[derive(Debug, Default)]
pub(super) struct Oom {
    watch: OnceLock<Arc<AsyncFd<OomWatch>>>,
    follower: Mutex<Option<AbortHandle>>,
    last: Mutex<Last>,
}

/// What a look at the group of an ended init has found.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    /// The kernel has ended some process of it.
    killed: bool,
    /// That is not told yet.
    due: bool,
}

/// What makes a watch ready.
fn interest(watch: &OomWatch) -> Interest {
    if watch.is_urgent() {
        Interest::PRIORITY
    } else {
        Interest::READABLE
    }
}

fn in_loop(watch: OomWatch) -> Result<AsyncFd<OomWatch>> {
    let interest = interest(&watch);
    watch_for(watch, interest)
}

impl Container {
    /// Begins to tell.
    pub(super) fn watch_oom(self: &Arc<Self>, shim: &Arc<Shim>) {
        let Some(group) = self.cgroup.get() else {
            return;
        };
        // Some kernel may refuse to tell of that file in a loop: then by what every loop can wait for.
        let watch = group.watch_oom().and_then(in_loop);
        let watch = watch.or_else(|refused| match group.watch_oom_readable() {
            Ok(watch) => in_loop(watch),
            Err(_) => Err(refused),
        });
        let watch = match watch {
            Ok(watch) => Arc::clone(self.oom.watch.get_or_init(|| Arc::new(watch))),
            Err(error) => {
                log::warn(format_args!("no OOM events of {}: {error}", self.id));
                return;
            }
        };
        let (container, shim) = (Arc::clone(self), Arc::clone(shim));
        let task = tokio::spawn(async move { container.follow_oom(&shim, &watch).await });
        *self.follower() = Some(task.abort_handle());
    }

    fn follower(&self) -> MutexGuard<'_, Option<AbortHandle>> {
        let lock = self.oom.follower.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    async fn follow_oom(&self, shim: &Shim, watch: &AsyncFd<OomWatch>) {
        loop {
            let Ok(mut ready) = watch.ready(interest(watch.get_ref())).await else {
                return;
            };
            match watch.get_ref().check(true) {
                OomEvent::Oom => self.publish_oom(shim),
                OomEvent::Nothing => {}
                OomEvent::Gone => return,
            }
            ready.clear_ready();
        }
    }

    /// Looks at the group a last time. To be called when the init has ended, before it is reaped.
    pub(super) fn look_for_oom(&self) {
        let group = self.cgroup.get();
        let killed = group.is_some_and(|group| group.oom_kills() > 0);
        let due = match self.oom.watch.get() {
            Some(watch) => watch.get_ref().check(true) == OomEvent::Oom,
            None => killed,
        };
        *self.last_look() = Last { killed, due };
    }

    fn last_look(&self) -> MutexGuard<'_, Last> {
        let lock = self.oom.last.lock();
        lock.unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells what is not told yet. To be called before the event of an exit.
    pub(super) fn settle_oom(&self, shim: &Shim, process: &Process, exit: Exit) {
        // Others can have ended because of a victim.
        let count = process.is_init() || exit.status == KILLED;
        let now = match self.oom.watch.get() {
            Some(watch) => watch.get_ref().check(count) == OomEvent::Oom,
            None => false,
        };
        let before = process.is_init() && std::mem::take(&mut self.last_look().due);
        if now || before {
            self.publish_oom(shim);
        }
        if process.is_init() {
            self.stop_watching_oom();
        }
    }

    /// Whether the kernel had ended any of its processes for want of memory when the init ended.
    pub(super) fn ran_out_of_memory(&self) -> bool {
        self.last_look().killed
    }

    fn publish_oom(&self, shim: &Shim) {
        let event = TaskOOM {
            container_id: self.id.clone(),
            ..TaskOOM::default()
        };
        shim.publisher.publish("/tasks/oom", &event);
    }

    pub(super) fn stop_watching_oom(&self) {
        if let Some(task) = self.follower().take() {
            task.abort();
        }
    }
}
