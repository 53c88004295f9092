//! The asynchronous side of [`sys::reaper`]: every process that the shim starts or adopts has one
//! receiver for its end.
//!
//! Invariant: a runtime call that makes a process is made under a [`Hold`]; the process is claimed
//! before the hold ends. So its exit is told whenever it happened. Who has asked for a last look at a
//! process has it in the round that reaps it, before.

use std::collections::{HashMap, HashSet};
use std::fmt::{Debug, Formatter};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use sys::process::{Spawn, Status};
use sys::reaper::Reaper;
use tokio::sync::{Notify, oneshot};
use types::{Error, Result};

use crate::log;

const SIGKILL: i32 = libc::SIGKILL;

/// How and when a process ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ended {
    pub(crate) status: Status,
    pub(crate) at: SystemTime,
}

/// Told once, at the end.
pub(crate) type Ending = oneshot::Receiver<Ended>;

/// The one reaper of the shim.
#[derive(Debug)]
pub(crate) struct Reap {
    inner: Mutex<Inner>,
    /// A hold, or lingering, has ended.
    released: Notify,
}

#[derive(Default)]
struct Inner {
    reaper: Reaper,
    waiting: HashMap<u32, Waiting>,
    /// Were told to end.
    told: HashSet<u32>,
    /// Who keeps the shim from its end for a while.
    lingering: usize,
    /// The shim ends: what it lets go of from now on lives on.
    leaving: bool,
}

/// What is due at an end.
struct Waiting {
    tell: oneshot::Sender<Ended>,
    /// Called before the process is reaped.
    look: Option<Look>,
}

/// A last look at what is left of a process, its zombie. It must not ask the reaper for anything.
pub(crate) type Look = Box<dyn FnOnce() + Send>;

impl Inner {
    fn wait_for(&mut self, pid: u32) -> Ending {
        let (tell, ending) = oneshot::channel();
        self.waiting.insert(pid, Waiting { tell, look: None });
        ending
    }

    /// Looks at what has ended and is not reaped.
    fn look(&mut self) {
        let Self {
            reaper, waiting, ..
        } = self;
        for (pid, waiting) in waiting.iter_mut().filter(|(_, w)| w.look.is_some()) {
            let alive = |fd| sys::pidfd::is_alive(fd).unwrap_or(true);
            if !reaper.pidfd(*pid).is_none_or(alive)
                && let Some(look) = waiting.look.take()
            {
                look();
            }
        }
    }
}

impl Debug for Inner {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("reaper", &self.reaper)
            .field("waiting", &self.waiting.keys())
            .finish()
    }
}

impl Default for Reap {
    fn default() -> Self {
        let mut inner = Inner::default();
        if cfg!(test) {
            // Tests are threads of one process: a child that nobody claimed here is another test's.
            inner.reaper.hold();
        }
        Self {
            inner: Mutex::new(inner),
            released: Notify::new(),
        }
    }
}

impl Reap {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts a process.
    ///
    /// # Errors
    /// As [`Spawn::spawn`].
    pub(crate) fn spawn(&self, spawn: Spawn) -> Result<(u32, Ending)> {
        let child = spawn.spawn()?;
        let pid = child.pid();
        let mut inner = self.lock();
        inner.reaper.adopt(child);
        Ok((pid, inner.wait_for(pid)))
    }

    /// Claims a process that a runtime made, alive or just ended, under a hold.
    ///
    /// # Errors
    /// `NotFound` when there is none of that pid.
    pub(crate) fn claim(&self, pid: u32) -> Result<Ending> {
        let mut inner = self.lock();
        inner.reaper.claim(pid)?;
        Ok(inner.wait_for(pid))
    }

    /// Has `look` called when this process has ended, before it is reaped. Without effect when that
    /// has been told.
    pub(crate) fn look_before_reaping(&self, pid: u32, look: Look) {
        if let Some(waiting) = self.lock().waiting.get_mut(&pid) {
            waiting.look = Some(look);
        }
    }

    /// Leaves unclaimed children alone as long as the result lives.
    pub(crate) fn hold(self: &Arc<Self>) -> Hold {
        self.lock().reaper.hold();
        Hold {
            reap: Arc::clone(self),
        }
    }

    /// As long as the result lives, [`Reap::quiet`] waits.
    pub(crate) fn linger(self: &Arc<Self>) -> Linger {
        self.lock().lingering += 1;
        Linger {
            reap: Arc::clone(self),
        }
    }

    /// Waits until nobody holds or lingers.
    pub(crate) async fn quiet(&self) {
        let is_quiet = || {
            let inner = self.lock();
            !inner.reaper.is_held() && inner.lingering == 0
        };
        loop {
            let released = self.released.notified();
            if is_quiet() {
                return;
            }
            released.await;
        }
    }

    /// Sends a signal to a claimed process.
    ///
    /// # Errors
    /// `NotFound` when it has ended, else the errno.
    pub(crate) fn signal(&self, pid: u32, signal: i32) -> Result<()> {
        let inner = self.lock();
        let finished = || Error::not_found("process already finished");
        let pidfd = inner.reaper.pidfd(pid).ok_or_else(finished)?;
        sys::pidfd::send_signal(pidfd, signal).map_err(|error| match error.errno() {
            Some(libc::ESRCH) => finished(),
            Some(libc::EINVAL) => error.reclass(types::Code::InvalidArgument),
            _ => error,
        })
    }

    /// Tells a claimed process to end. False when the shim itself ends and it is to live on.
    pub(crate) fn tell_to_end(&self, pid: u32) -> bool {
        let mut inner = self.lock();
        if inner.leaving {
            return false;
        }
        // One that has ended is not told, and its pid not kept: it may be another's later.
        if let Some(pidfd) = inner.reaper.pidfd(pid)
            && sys::pidfd::send_signal(pidfd, libc::SIGTERM).is_ok()
        {
            inner.told.insert(pid);
        }
        true
    }

    /// The shim ends: kills what was told to end and has not. The loggers of containers that live on
    /// are not told any more.
    pub(crate) fn insist(&self) {
        let told = {
            let mut inner = self.lock();
            inner.leaving = true;
            std::mem::take(&mut inner.told)
        };
        for pid in told {
            drop(self.signal(pid, libc::SIGKILL));
        }
    }

    /// Kills a process that was started in a group of its own, and everything below it. One that has
    /// ended is left alone.
    pub(crate) fn kill_tree(&self, pid: u32) {
        let inner = self.lock();
        // Nobody reaps it while the lock is held: the pid is its own.
        if inner.reaper.pidfd(pid).is_some()
            && let Err(error) = sys::process::kill_tree(pid)
        {
            log::error(format_args!("process {pid} not killed: {error}"));
        }
    }

    /// Kills the children that a dead runtime left: unclaimed, and known by `is_left`.
    pub(crate) fn kill_left(&self, is_left: impl Fn(u32) -> bool) {
        let inner = self.lock();
        let children = sys::process::children(std::process::id()).unwrap_or_default();
        // As above: no child's pid can be used again meanwhile.
        for pid in children {
            if inner.reaper.pidfd(pid).is_some() || !is_left(pid) {
                continue;
            }
            log::warn(format_args!(
                "process {pid} was left by its runtime: killed"
            ));
            let killed = sys::pidfd::open(pid).and_then(|fd| sys::pidfd::send_signal(fd, SIGKILL));
            if let Err(error) = killed {
                log::debug(format_args!("process {pid}: {error}"));
            }
        }
    }

    /// Reaps what has ended and tells who waits for it.
    pub(crate) fn round(&self) {
        let mut inner = self.lock();
        inner.look();
        let ended = inner.reaper.reap();
        let at = SystemTime::now();
        for (pid, status) in ended {
            inner.told.remove(&pid);
            if let Some(Waiting { tell, look }) = inner.waiting.remove(&pid) {
                // It ended between the two: this is the next best moment.
                if let Some(look) = look {
                    look();
                }
                // Nobody may be interested any more.
                tell.send(Ended { status, at }).ok();
            }
        }
    }
}

/// See [`Reap::hold`].
#[derive(Debug)]
pub(crate) struct Hold {
    reap: Arc<Reap>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        self.reap.lock().reaper.release();
        self.reap.round();
        self.reap.released.notify_waiters();
    }
}

/// See [`Reap::linger`].
#[derive(Debug)]
pub(crate) struct Linger {
    reap: Arc<Reap>,
}

impl Drop for Linger {
    fn drop(&mut self) {
        self.reap.lock().lingering -= 1;
        self.reap.released.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_of_one_test_leaves_the_children_of_others_alone() {
        let child = Spawn::new("true").spawn().unwrap();
        while sys::pidfd::is_alive(child.pidfd()).unwrap() {
            std::thread::yield_now();
        }
        let reap = Arc::new(Reap::default());
        drop(reap.hold());
        reap.round();
        assert!(child.wait().unwrap().is_success());
    }

    #[test]
    fn the_last_look_at_a_process_comes_before_it_is_reaped() {
        let reap = Reap::default();
        let (pid, mut ending) = reap.spawn(Spawn::new("true")).unwrap();
        let (tell, seen) = std::sync::mpsc::channel();
        let look = move || tell.send(sys::process::start_time(pid).is_some()).unwrap();
        reap.look_before_reaping(pid, Box::new(look));
        let process = sys::pidfd::open(pid).unwrap();
        while sys::pidfd::is_alive(&process).unwrap() {
            std::thread::yield_now();
        }
        reap.round();
        assert_eq!(ending.try_recv().unwrap().status, Status::Exited(0));
        assert_eq!(seen.iter().collect::<Vec<_>>(), [true]);
    }
}
