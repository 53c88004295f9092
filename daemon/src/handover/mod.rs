//! The live hand-over: a running daemon starts its successor and gives it what it holds.
//!
//! ```text
//! old                                     new
//! SIGUSR2: start it ── estate, locks, sockets ──> configuration read, log started
//!  serves on              <────── prepared ─────  waits
//!  ends its calls, closes its stores
//!  waits                  ─── go, history ─────>  opens the stores, serves
//!                         <──────── ready ──────
//!  tells systemd, exits   ── known, reload ────>  is on its own
//! ```
//! Invariant: one of the two works on root and state at any time, and no third one can: the locks are
//! passed as descriptors and never open. Until the successor says that it is ready, the old one holds
//! everything that it needs to go on; connections made meanwhile wait in the sockets, which stay open.

mod heir;
mod history;
mod successor;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use types::{Error, Result};

pub(crate) use heir::{Heir, Parting};
pub(crate) use successor::Successor;

/// Names the descriptor of the conversation to the successor, and that it is one.
const VARIABLE: &str = "CONTAINERD_HANDOVER";
/// That descriptor.
const CONTROL: RawFd = 3;

/// How long the successor may take to read its configuration. The old one serves meanwhile.
const PREPARE: Duration = Duration::from_secs(10);
/// How long it may take to open the stores. Nobody serves meanwhile; connections wait.
const OPEN: Duration = Duration::from_secs(30);

/// How often the service manager hears of a daemon that waits for the other one.
pub(crate) const BEAT: Duration = Duration::from_secs(5);

/// How long a successor is waited for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    /// Until it is prepared.
    prepare: Duration,
    /// Until it serves.
    open: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            prepare: PREPARE,
            open: OPEN,
        }
    }
}

/// Waits for an end that has a deadline of its own, whatever comes meanwhile: each thing that comes is
/// heeded, and may be the end, too. `next` is to be cancel safe.
pub(crate) async fn heeding<T, W>(
    end: impl Future<Output = T>,
    mut next: impl AsyncFnMut() -> W,
    mut heed: impl FnMut(W) -> Option<T>,
) -> T {
    // One future for the whole wait: made anew for each thing that comes, its deadline would begin anew.
    let mut end = pin!(end);
    loop {
        let came = tokio::select! {
            ended = &mut end => return ended,
            came = next() => came,
        };
        if let Some(ended) = heed(came) {
            return ended;
        }
    }
}

/// The words of the conversation.
const PREPARED: &str = "prepared";
const GO: &str = "go";
/// As `go`, but only when the old one has ended.
const GO_AFTER: &str = "go after";
const READY: &str = "ready";
const FAILED: &str = "failed: ";
/// The service manager knows that the new one is the daemon, or there is none.
const KNOWN: &str = "known";
/// Somebody has asked for the configuration to be read again since the new one was started.
const RELOAD: &str = "reload";

/// What is handed over. With it come, as descriptors, the two locks and then the sockets.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Estate {
    /// Root that is locked.
    pub(crate) root: PathBuf,
    /// State that is locked.
    pub(crate) state: PathBuf,
    /// The sockets.
    pub(crate) sockets: Vec<Given>,
}

/// A socket that is handed over.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Given {
    /// Its name, as in [`crate::passed`].
    pub(crate) name: String,
    /// Whether its file is the daemon's to remove.
    pub(crate) owned: bool,
}

/// Longest message: the estate has two paths and a few names.
const MESSAGE: usize = 16 << 10;

/// A message with its descriptors; `None` at the end.
type Message = Option<(String, Vec<OwnedFd>)>;

fn receive_now(control: impl AsFd) -> io::Result<Message> {
    let mut data = vec![0; MESSAGE];
    let (read, fds) = sys::socket::receive(control, &mut data)?;
    let text = data.get(..read).unwrap_or_default();
    Ok((read > 0).then(|| (String::from_utf8_lossy(text).into_owned(), fds)))
}

/// The next message. Cancel safe.
async fn receive(control: &OwnedFd) -> Result<Message> {
    let fail = |e| Error::os("hand-over", e);
    let watched = watched(control).map_err(fail)?;
    let message = watched.async_io(Interest::READABLE, |fd| receive_now(fd));
    message.await.map_err(fail)
}

#[allow(
    deprecated,
    reason = "its unsafe replacement guards against descriptors that change: this one is borrowed"
)]
fn watched(control: &OwnedFd) -> io::Result<AsyncFd<BorrowedFd<'_>>> {
    AsyncFd::with_interest(control.as_fd(), Interest::READABLE)
}

/// The error of a message that is not the one expected.
fn unexpected(message: Message) -> Error {
    match message {
        None => Error::unavailable("it has ended"),
        Some((text, _)) => match text.strip_prefix(FAILED) {
            Some(why) => Error::failed_precondition(why),
            None => Error::internal(format_args!("unexpected message {text:?}")),
        },
    }
}

#[cfg(test)]
mod tests;
