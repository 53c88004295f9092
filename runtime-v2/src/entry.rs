//! One task as the daemon keeps it.
//!
//! ```text
//! Connecting --shim answers--> Ready --connection ends--> Connecting
//!     \--nobody listens any more-----------------------------> Gone(Exit)
//! ```
//! Invariant: `Gone` is final. Only a fact of the kernel or a finished delete leads there, never a
//! deadline.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use recorder::On;
use tokio::sync::{Notify, watch};
use types::{Code, ContainerId, Error, ExecId, Exit, Namespace, Result};

use crate::bootstrap::Address;
use crate::bundle::{Bundle, is_alive};
use crate::client::{Client, Failure};
use crate::log::Tap;
use crate::seen::Seen;
use crate::turns::Turns;
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

/// What is known of a container's init.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Init {
    /// It lives, as far as its pid tells.
    Alive(u32),
    /// It has ended.
    Ended,
    /// Nobody has told its pid.
    Unknown,
}

/// What is known of a shim's process.
#[derive(Debug)]
pub(crate) enum Shim {
    /// It lives.
    Alive(Arc<OwnedFd>),
    /// It has ended.
    Ended,
    /// Nobody has told which it is.
    Unknown,
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
    /// The shim, when this process has started it and nobody else uses it, until the task is over.
    process: Mutex<Option<Arc<OwnedFd>>>,
    /// Held by whoever ends the task: a delete, or the burial after a lost shim.
    pub(crate) ending: tokio::sync::Mutex<()>,
    /// Pid of the shim that answered last; 0 before.
    shim: AtomicU32,
    /// When that process began, in ticks; 0 when that is not known.
    shim_started: AtomicU64,
    /// When the init process began that the shim has told of, in ticks; 0 when that is not known.
    started: AtomicU64,
    link: watch::Sender<Link>,
    /// Why the shim cannot be reached at the moment, when that is known.
    trouble: Mutex<Option<String>>,
    seen: Mutex<Seen>,
    tap: Mutex<Option<Tap>>,
    /// The shim does not answer, and that is told.
    pub(crate) silent: AtomicBool,
    /// It did not answer somebody in time.
    pub(crate) unanswered: Notify,
    /// Where starts of execs wait for their turn, as soon as the task is one of the daemon's.
    pub(crate) turns: OnceLock<Arc<Turns>>,
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
            process: Mutex::new(None),
            ending: tokio::sync::Mutex::new(()),
            shim: AtomicU32::new(0),
            shim_started: AtomicU64::new(0),
            started: AtomicU64::new(0),
            link: watch::Sender::new(Link::Connecting),
            trouble: Mutex::new(None),
            tap: Mutex::new(None),
            silent: AtomicBool::new(false),
            unanswered: Notify::new(),
            turns: OnceLock::new(),
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
            let shim = client.peer().shim;
            let started = sys::process::start_time(shim).unwrap_or(0);
            self.shim.store(shim, Ordering::Relaxed);
            self.shim_started.store(started, Ordering::Relaxed);
            self.mark();
            *lock(&self.trouble) = None;
        }
        self.link.send_if_modified(|now| {
            if matches!(now, Link::Gone(_)) {
                return false;
            }
            *now = link;
            true
        });
    }

    /// The shim cannot be reached: says why, in the log once, and to whoever calls.
    pub(crate) fn blame(&self, error: &Error) {
        let text = error.to_string();
        let mut trouble = lock(&self.trouble);
        if trouble.as_ref() != Some(&text) {
            let (namespace, id) = (&self.namespace, &self.id);
            tracing::warn!(%namespace, %id, %error, "shim cannot be reached, its task stays as it is");
            *trouble = Some(text);
        }
    }

    /// The shim has just told init's pid: remembers which process that is, here and for a later daemon.
    pub(crate) fn mark(&self) {
        let pid = self.seen().get(None).map_or(0, |state| state.pid);
        let started = sys::process::start_time(pid).unwrap_or(0);
        if self.started.swap(started, Ordering::Relaxed) == started || started == 0 {
            return;
        }
        if let Err(error) = self.bundle.write_started(pid, started) {
            let (namespace, id) = (&self.namespace, &self.id);
            tracing::warn!(%namespace, %id, %error, "remember init");
        }
    }

    /// True when init lives, as far as its pid tells; a process that has got the pid since is not it.
    pub(crate) fn is_init_alive(&self) -> bool {
        matches!(self.init(), Init::Alive(_))
    }

    /// What is known of init.
    pub(crate) fn init(&self) -> Init {
        let pid = match self.seen().get(None) {
            Some(init) if init.exit.is_some() => return Init::Ended,
            Some(init) if init.pid != 0 => init.pid,
            _ => return Init::Unknown,
        };
        let started = self.started.load(Ordering::Relaxed);
        let is_it = started == 0 || sys::process::start_time(pid) == Some(started);
        match is_it && is_alive(pid) {
            true => Init::Alive(pid),
            false => Init::Ended,
        }
    }

    /// What is known of the shim's process: by its descriptor where there is one, else by its pid and when
    /// it began.
    ///
    /// # Errors
    /// Without a descriptor to ask with, nobody knows.
    pub(crate) fn shim(&self) -> Result<Shim> {
        let process = match (self.process(), self.shim.load(Ordering::Relaxed)) {
            (Some(process), _) => process,
            (None, 0) => return Ok(Shim::Unknown),
            (None, pid) => {
                let process = match sys::pidfd::open(pid) {
                    Err(e) if e.is_not_found() || e.is(Code::InvalidArgument) => {
                        return Ok(Shim::Ended);
                    }
                    process => process?,
                };
                let started = self.shim_started.load(Ordering::Relaxed);
                // Looked at when the descriptor is there: it is of the same process.
                if started != 0 && sys::process::start_time(pid) != Some(started) {
                    return Ok(Shim::Ended);
                }
                Arc::new(process)
            }
        };
        match sys::pidfd::is_alive(&process)? {
            true => Ok(Shim::Alive(process)),
            false => Ok(Shim::Ended),
        }
    }

    /// This process has started the shim.
    pub(crate) fn started_shim(&self, process: OwnedFd) {
        *lock(&self.process) = Some(Arc::new(process));
    }

    /// The shim, when this process has started it and the task is not over.
    pub(crate) fn process(&self) -> Option<Arc<OwnedFd>> {
        lock(&self.process).clone()
    }

    /// True when the shim has claimed to be this process.
    pub(crate) fn is_own_process(&self) -> bool {
        self.shim.load(Ordering::Relaxed) == std::process::id()
    }

    /// The task is over.
    pub(crate) fn finish(&self, exit: Exit) {
        self.seen().ended(None, exit.pid, exit.status, exit.at);
        self.relink(Link::Gone(exit));
        drop(lock(&self.tap).take());
        // The task may be remembered for its exit for long.
        drop(lock(&self.process).take());
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
    ///
    /// # Errors
    /// What cannot be read, and may say that init has ended or lives.
    pub(crate) fn look(&self) -> Result<()> {
        if let Some(ended) = self.bundle.ended()? {
            let exit = ended.exit;
            self.seen().ended(None, exit.pid, exit.status, exit.at);
        } else if let Some(pid) = self.bundle.init_pid()? {
            let started = match self.bundle.started(pid) {
                Err(error) if error.is(Code::DataLoss) => None,
                started => started?,
            };
            let is_it = started.is_none_or(|at| sys::process::start_time(pid) == Some(at));
            // Whether it was started, only the shim can tell; it will. One that has ended is known by its
            // pid, too: of one that nobody told of, nothing is known.
            let status = match is_it && is_alive(pid) {
                true => Status::Running,
                false => Status::Unknown,
            };
            self.started.store(started.unwrap_or(0), Ordering::Relaxed);
            self.seen().alive(None, status, Some(pid));
        }
        Ok(())
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
            _ => {
                let why = lock(&self.trouble).clone();
                let why = why.map_or_else(String::new, |why| format!(" ({why})"));
                let id = &self.id;
                Err(Error::unavailable(format_args!(
                    "task {id}: its shim does not respond{why}"
                )))
            }
        }
    }

    /// The shim, for who waits for it.
    pub(crate) fn named(&self) -> On {
        match self.shim.load(Ordering::Relaxed) {
            0 => On::named(self.address.get().map_or("", |known| &known.address)),
            shim => On::Process(shim),
        }
    }

    /// The error of a failed call.
    pub(crate) fn failed(&self, failure: Failure) -> Error {
        self.note(&failure);
        failure.into_error(&self.id)
    }

    /// A call failed: whoever follows the task looks after a shim that did not answer it.
    pub(crate) fn note(&self, failure: &Failure) {
        if matches!(failure, Failure::Silent) {
            self.unanswered.notify_one();
        }
    }

    /// Waits until the task is gone.
    pub(crate) async fn over(&self) {
        let mut links = self.links();
        // The sender lives in this entry.
        drop(links.wait_for(|link| matches!(link, Link::Gone(_))).await);
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
        assert_eq!(entry.init(), Init::Unknown);
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
        assert_eq!(entry.init(), Init::Ended);
    }

    #[test]
    fn a_shim_is_known_by_its_pid_and_when_it_began() {
        let dir = tempfile::tempdir().unwrap();
        let bundles = Bundles::new(&dir.path().join("s"), &dir.path().join("r"));
        let (namespace, id): (Namespace, ContainerId) =
            ("ns".parse().unwrap(), "c".parse().unwrap());
        let bundle = bundles.of(&namespace, &id);
        let entry = Entry::new(namespace, id, bundle, Stdio::default());
        assert!(matches!(entry.shim().unwrap(), Shim::Unknown));
        let me = std::process::id();
        entry.shim.store(me, Ordering::Relaxed);
        let began = sys::process::start_time(me).unwrap();
        entry.shim_started.store(began, Ordering::Relaxed);
        assert!(matches!(entry.shim().unwrap(), Shim::Alive(_)));
        entry.shim_started.store(began + 1, Ordering::Relaxed);
        assert!(matches!(entry.shim().unwrap(), Shim::Ended));
        // What this process has started it knows better.
        let child = sys::process::Spawn::new("true").spawn().unwrap();
        let process = sys::pidfd::open(child.pid()).unwrap();
        entry.shim.store(me, Ordering::Relaxed);
        entry.shim_started.store(began, Ordering::Relaxed);
        entry.started_shim(process);
        child.wait().unwrap();
        assert!(matches!(entry.shim().unwrap(), Shim::Ended));
        assert!(entry.process().is_some());
        entry.finish(lost(0));
        assert!(
            entry.process().is_none(),
            "no descriptor is kept for an exit"
        );
    }
}
