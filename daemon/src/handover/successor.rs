//! The old daemon's side: the successor, from its start to its readiness or its end.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, IntoRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

use events::History;
use sys::process::{Child, Spawn};
use tokio::time::timeout;
use types::{Context as _, Error, Result};

use super::{CONTROL, Estate, GO, GO_AFTER, KNOWN, PREPARED, Patience, READY, RELOAD, VARIABLE};
use super::{history, receive, unexpected};

/// How long one that was killed may take to be gone.
const END: Duration = Duration::from_secs(5);

/// A daemon that was started to go on in this one's place.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Child,
    control: OwnedFd,
    patience: Patience,
}

impl Successor {
    /// The side of the old daemon in a conversation.
    pub(super) fn of(child: Child, control: OwnedFd, patience: Patience) -> Self {
        Self {
            child,
            control,
            patience,
        }
    }

    /// Starts `binary` with this process's own arguments and gives it the estate. The descriptors are
    /// those of the locks and of the sockets.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn start(binary: &Path, estate: &Estate, fds: &[BorrowedFd<'_>]) -> Result<Self> {
        let (control, theirs) = sys::socket::message_pair()?;
        let text = toml::to_string(estate).map_err(Error::internal)?;
        sys::socket::send_fds(&control, text.as_bytes(), fds)?;
        let dup = |fd: BorrowedFd<'_>| {
            let fd = fd.try_clone_to_owned();
            fd.map_err(|e| Error::os("dup", e))
        };
        let child = Spawn::new(binary)
            .args(std::env::args_os().skip(1))
            .env(VARIABLE, CONTROL.to_string())
            // It is meant for the process that systemd started.
            .env_remove("WATCHDOG_PID")
            .fd(theirs, CONTROL)
            .stdout(dup(std::io::stdout().as_fd())?)
            .stderr(dup(std::io::stderr().as_fd())?)
            .spawn()?;
        Ok(Self::of(child, control, Patience::default()))
    }

    /// Its pid.
    pub(crate) fn pid(&self) -> u32 {
        self.child.pid()
    }

    /// Waits until it needs nothing more but the stores. Cancel safe.
    ///
    /// # Errors
    /// Why it does not get there; `DeadlineExceeded` when it takes too long.
    pub(crate) async fn prepared(&self) -> Result<()> {
        let told = timeout(self.patience.prepare, receive(&self.control)).await;
        match told.map_err(|_| Error::deadline_exceeded("it does not get prepared"))?? {
            Some((text, _)) if text == PREPARED => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Tells it to open the stores: this daemon has closed them, or is about to end (`after`).
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn go(&self, past: &History, after: bool) -> Result<()> {
        let file: File = history::write(past)?;
        let word = if after { GO_AFTER } else { GO };
        sys::socket::send_fds(&self.control, word.as_bytes(), &[file.as_fd()]).ctx("go")
    }

    /// Waits until it serves. Cancel safe.
    ///
    /// # Errors
    /// Why it does not; `DeadlineExceeded` when it takes too long.
    pub(crate) async fn ready(&self) -> Result<()> {
        let told = timeout(self.patience.open, receive(&self.control)).await;
        match told.map_err(|_| Error::deadline_exceeded("it does not get ready"))?? {
            Some((text, _)) if text == READY => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Says that it is on its own: the service manager knows it, and somebody has asked for a reload
    /// meanwhile, or not.
    ///
    /// # Errors
    /// The errno: it has ended.
    pub(crate) fn farewell(&self, reload: bool) -> Result<()> {
        let words = reload.then_some(RELOAD).into_iter().chain([KNOWN]);
        for word in words {
            sys::socket::send_fds(&self.control, word.as_bytes(), &[]).ctx(word)?;
        }
        Ok(())
    }

    /// Leaves the conversation open until the kernel ends it: it closes when the last thread of this
    /// process is gone, and what that thread had open and locked with it. Its end is what a successor
    /// that begins after this daemon waits for.
    pub(crate) fn keep(self) {
        let _open_to_the_end = self.control.into_raw_fd();
    }

    /// Ends it, whatever it does. Blocks until it is gone, for no longer than [`END`].
    pub(crate) fn end(self) {
        let ended = self.child.kill(9).and_then(|()| {
            // One that waits for a device ends when that answers: nothing of it runs any more.
            if sys::pidfd::ends_within(self.child.pidfd(), END)? {
                return self.child.wait().map(drop);
            }
            Err(Error::deadline_exceeded("it does not end"))
        });
        if let Err(error) = ended {
            let pid = self.pid();
            tracing::error!(%error, pid, "the successor cannot be ended");
        }
    }

    /// As [`Successor::end`], for callers that serve meanwhile.
    pub(crate) async fn end_beside(self) {
        let ended = tokio::task::spawn_blocking(move || self.end()).await;
        if let Err(error) = ended {
            tracing::error!(%error, "the successor cannot be ended");
        }
    }
}
