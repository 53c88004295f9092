//! The old daemon's side: the successor, from its start to its readiness or its end.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use events::History;
use sys::process::{Child, Spawn};
use tokio::time::timeout;
use types::{Context as _, Error, Result};

use super::{CONTROL, Estate, GO, GO_AFTER, OPEN, PREPARE, PREPARED, READY, VARIABLE};
use super::{history, receive, unexpected};

/// A daemon that was started to go on in this one's place.
#[derive(Debug)]
pub(crate) struct Successor {
    child: Child,
    control: OwnedFd,
}

impl Successor {
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
        Ok(Self { child, control })
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
        let told = timeout(PREPARE, receive(&self.control)).await;
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
        let told = timeout(OPEN, receive(&self.control)).await;
        match told.map_err(|_| Error::deadline_exceeded("it does not get ready"))?? {
            Some((text, _)) if text == READY => Ok(()),
            other => Err(unexpected(other)),
        }
    }

    /// Ends it, whatever it does. Blocks until it is gone.
    pub(crate) fn end(self) {
        if let Err(error) = self
            .child
            .kill(9)
            .and_then(|()| self.child.wait().map(drop))
        {
            tracing::error!(%error, "the successor cannot be ended");
        }
    }
}
