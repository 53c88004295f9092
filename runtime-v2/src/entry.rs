//! One task as the daemon keeps it.
//!
//! ```text
//! Connecting --shim answers--> Ready --connection ends--> Connecting
//!     \--nobody listens any more-----------------------------> Gone(Exit)
//! ```
//! Invariant: `Gone` is final. Only a fact of the kernel or a finished delete leads there, never a
//! deadline.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use recorder::On;
use tokio::sync::watch;
use types::{ContainerId, Error, ExecId, Exit, Namespace, Result};

use crate::bootstrap::Address;
use crate::bundle::{Bundle, is_alive};
use crate::client::{Client, Failure};
use crate::log::Tap;
use crate::seen::Seen;
use crate::{ProcessState, Status, Stdio};

/// How long a call waits for a shim that is being connected to.
const CONNECTING: Duration = Duration::from_secs(5);

/// The daemon's connection to the task.
#[derive(Clone, Debug)]
pub(crate) enum Link {
    /// Not connected at the moment; the shim may well be alive.
    Connecting,
    /// Connected.
    Ready(Arc<Client>),
    /// The shim is gone, and so is the task.
    Gone(Exit),
}

/// A task.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) namespace: Namespace,
    pub(crate) id: ContainerId,
    pub(crate) bundle: Bundle,
    /// The shim's binary, as soon as it is known.
    pub(crate) binary: OnceLock<PathBuf>,
    /// Where the shim listens, as soon as it is known.
    pub(crate) address: OnceLock<Address>,
    /// Held by whoever ends the task: a delete, or the burial after a lost shim.
    pub(crate) ending: tokio::sync::Mutex<()>,
    /// Pid of the shim that answered last; 0 before.
    pub(crate) shim: AtomicU32,
    /// When the init process began that the shim has told of, in ticks; 0 when that is not known.
    started: AtomicU64,
    link: watch::Sender<Link>,
    seen: Mutex<Seen>,
    tap: Mutex<Option<Tap>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Entry {
    /// A task that is not connected.
    pub(crate) fn new(namespace: Namespace, id: ContainerId, bundle: Bundle, stdio: Stdio) -> Self {
        Self {
            seen: Mutex::new(Seen::new(&id, stdio)),
            namespace,
            id,
            bundle,
            binary: OnceLock::new(),
            address: OnceLock::new(),
            ending: tokio::sync::Mutex::new(()),
            shim: AtomicU32::new(0),
            started: AtomicU64::new(0),
            link: watch::Sender::new(Link::Connecting),
            tap: Mutex::new(None),
        }
    }

    /// Where the daemon stands with the shim.
    pub(crate) fn link(&self) -> Link {
        self.link.borrow().clone()
    }

    /// Follows the link.
    pub(crate) fn links(&self) -> watch::Receiver<Link> {
        self.link.subscribe()
    }

    /// Changes the link, unless the task is gone.
    pub(crate) fn relink(&self, link: Link) {
        if let Link::Ready(client) = &link {
            self.shim.store(client.peer().shim, Ordering::Relaxed);
            self.mark();
        }
        self.link.send_if_modified(|now| {
            if matches!(now, Link::Gone(_)) {
                return false;
            }
            *now = link;
            true
        });
    }

    /// The shim has just told init's pid: remembers which process that is.
    pub(crate) fn mark(&self) {
        let pid = self.seen().get(None).map_or(0, |state| state.pid);
        let started = sys::process::start_time(pid).unwrap_or(0);
        self.started.store(started, Ordering::Relaxed);
    }

    /// True when init lives, as far as its pid tells; a process that has got the pid since is not it.
    pub(crate) fn is_init_alive(&self) -> bool {
        let pid = match self.seen().get(None) {
            Some(init) if init.exit.is_none() => init.pid,
            _ => return false,
        };
        let started = self.started.load(Ordering::Relaxed);
        is_alive(pid) && (started == 0 || sys::process::start_time(pid) == Some(started))
    }

    /// The task is over.
    pub(crate) fn finish(&self, exit: Exit) {
        self.seen().ended(None, exit.pid, exit.status, exit.at);
        self.relink(Link::Gone(exit));
        drop(lock(&self.tap).take());
    }

    /// Starts to copy the shim's log.
    pub(crate) fn tap(&self, tap: Tap) {
        *lock(&self.tap) = Some(tap);
    }

    /// What is known without asking.
    pub(crate) fn seen(&self) -> MutexGuard<'_, Seen> {
        lock(&self.seen)
    }

    /// The last known state of a process, marked as such.
    ///
    /// # Errors
    /// `NotFound` for an unknown exec.
    pub(crate) fn last_known(&self, exec: Option<&ExecId>) -> Result<ProcessState> {
        let stale = !matches!(self.link(), Link::Gone(_));
        let seen = self.seen();
        let state = seen.get(exec).ok_or_else(|| {
            let exec = exec.map_or("", ExecId::as_str);
            Error::not_found(format_args!("process {exec} in task {}", self.id))
        })?;
        Ok(ProcessState {
            stale,
            ..state.clone()
        })
    }

    /// Reads from the bundle what can be known before the shim answers.
    pub(crate) fn look(&self) {
        let mut seen = self.seen();
        if let Some(exit) = self.bundle.exit() {
            seen.ended(None, exit.pid, exit.status, exit.at);
        } else if let Some(pid) = self.bundle.init_pid()
            && is_alive(pid)
        {
            // Whether it was started, only the shim can tell; it will.
            seen.alive(None, Status::Running, Some(pid));
        }
    }

    /// The shim, waiting a little while it is being connected to.
    ///
    /// # Errors
    /// `NotFound` when the task is over, `Unavailable` when the shim does not respond.
    pub(crate) async fn client(&self) -> Result<Arc<Client>> {
        let mut links = self.links();
        let is_connecting = matches!(self.link(), Link::Connecting);
        let _waiting =
            is_connecting.then(|| recorder::stage("connection to shim", || self.named()));
        let settled = links.wait_for(|link| !matches!(link, Link::Connecting));
        match tokio::time::timeout(CONNECTING, settled).await {
            Ok(Ok(link)) => match &*link {
                Link::Ready(client) => Ok(Arc::clone(client)),
                Link::Gone(_) | Link::Connecting => Err(Error::not_found(format_args!(
                    "task {}: process already finished",
                    self.id
                ))),
            },
            _ => Err(Error::unavailable(format_args!(
                "task {}: its shim does not respond",
                self.id
            ))),
        }
    }

    /// The shim, for who waits for it.
    fn named(&self) -> On {
        match self.shim.load(Ordering::Relaxed) {
            0 => On::named(self.address.get().map_or("", |known| &known.address)),
            shim => On::Process(shim),
        }
    }

    /// The error of a failed call.
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        failure.into_error(&self.id)
    }

    /// Waits until the task is gone, at most so long.
    pub(crate) async fn gone(&self, limit: Duration) -> Option<Exit> {
        let mut links = self.links();
        let over = links.wait_for(|link| matches!(link, Link::Gone(_)));
        let link = tokio::time::timeout(limit, over).await.ok()?.ok()?;
        match &*link {
            Link::Gone(exit) => Some(*exit),
            Link::Connecting | Link::Ready(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bundle::{Bundles, lost};

    #[test]
    fn a_process_that_got_the_pid_later_is_not_the_init() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(&dir.path().join("s"), &dir.path().join("r"));
        let (namespace, id): (Namespace, ContainerId) =
            ("ns".parse().unwrap(), "c".parse().unwrap());
        let bundle = bundles.of(&namespace, &id);
        let entry = Entry::new(namespace, id, bundle, Stdio::default());
        assert!(!entry.is_init_alive());
        let me = std::process::id();
        entry.seen().alive(None, Status::Running, Some(me));
        // Nothing is recorded: the pid has to do.
        assert!(entry.is_init_alive());
        entry.mark();
        assert!(entry.is_init_alive());
        entry.started.fetch_sub(1, Ordering::Relaxed);
        assert!(!entry.is_init_alive());
        entry.mark();
        entry.finish(lost(me));
        assert!(!entry.is_init_alive());
    }
}
