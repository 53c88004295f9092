//! A client that has descriptors of a process's stdio, and the line on which both sides speak of them.
//!
//! ```text
//! shim ── SWITCH n, with a descriptor ──> client      read that one from now on
//!      <───────────── RELEASED n ──────── client      the old one is not read any more
//!      ── CUT n ───────────────────────> client       too slow: this stream ends here
//!      <────────── end of the line ─────  client       detached
//! ```
//! Invariant: a session is over when its line is, whatever else a client does or does not do.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};
use tokio::task::consume_budget;
use types::{Error, Result};

use super::logfile::Tag;
use crate::watch::watch as watch_fd;

/// Message: read the enclosed descriptor from now on.
const SWITCH: u8 = b'S';
/// Answer to it: the old descriptor is not read any more.
const RELEASED: u8 = b'R';
/// Message: the stream ends here for this client.
const CUT: u8 = b'C';

/// Sessions of one shim at a time: each holds descriptors, and their number is the process's limit.
static PLACES: Semaphore = Semaphore::const_new(256);

/// A client's session.
#[derive(Debug)]
pub(crate) struct Session {
    line: AsyncFd<OwnedFd>,
    seen: watch::Sender<Seen>,
    ended: Notify,
    _place: SemaphorePermit<'static>,
}

/// What has come from the client.
#[derive(Debug, Default)]
struct Seen {
    released: BTreeSet<u8>,
    gone: bool,
}

impl Session {
    /// A new session, and the client's end of its line. Within the runtime.
    ///
    /// # Errors
    /// `ResourceExhausted` when there are too many, else the errno.
    pub(crate) fn open() -> Result<(Arc<Self>, OwnedFd)> {
        let place = PLACES
            .try_acquire()
            .map_err(|_| Error::resource_exhausted("too many clients are attached"))?;
        let (ours, theirs) = sys::socket::message_pair()?;
        let session = Arc::new(Self {
            line: watch_fd(ours)?,
            seen: watch::Sender::new(Seen::default()),
            ended: Notify::new(),
            _place: place,
        });
        Ok((session, theirs))
    }

    /// Listens to the client until it is gone or the session is ended.
    pub(crate) async fn follow(&self) {
        let mut message = [0; 16];
        loop {
            let ready = tokio::select! {
                ready = self.line.readable() => ready,
                () = self.ended.notified() => break,
            };
            let Ok(mut ready) = ready else { break };
            let got = ready.try_io(|line| sys::socket::receive(line, &mut message));
            match got {
                // Descriptors that a client sends are dropped, that is closed.
                Ok(Ok((1.., _))) if message[0] == RELEASED => {
                    let stream = message[1];
                    self.seen.send_modify(|seen| {
                        seen.released.insert(stream);
                    });
                }
                // Of a later version.
                Ok(Ok((1.., _))) | Err(_) => {}
                Ok(Ok((0, _)) | Err(_)) => break,
            }
            // A client that never stops must not keep the shim from everything else.
            consume_budget().await;
        }
        self.give_up();
    }

    /// From now on it counts as gone, also one that nobody has ever listened to.
    pub(crate) fn give_up(&self) {
        self.seen.send_modify(|seen| seen.gone = true);
    }

    /// Ends it: there is nothing more to attach to.
    pub(crate) fn end(&self) {
        self.ended.notify_one();
    }

    /// True when the client is gone.
    pub(crate) fn is_over(&self) -> bool {
        self.seen.borrow().gone
    }

    /// Has the client read `next` instead of what it has.
    ///
    /// # Errors
    /// `NotFound` when it is gone, `Unavailable` when it does not listen.
    pub(crate) fn switch(&self, tag: Tag, next: &OwnedFd) -> Result<()> {
        let stream = number(tag);
        self.seen.send_modify(|seen| {
            seen.released.remove(&stream);
        });
        let sent = sys::socket::send(&self.line, &[SWITCH, stream], &[next.as_fd()]);
        sent.map(drop).map_err(|e| {
            let code = match e.kind() {
                ErrorKind::WouldBlock => types::Code::Unavailable,
                _ => types::Code::NotFound,
            };
            Error::os("switch", e).reclass(code)
        })
    }

    /// Waits until the client has let go of what it had. False when it is gone instead.
    pub(crate) async fn released(&self, tag: Tag) -> bool {
        let stream = number(tag);
        let mut seen = self.seen.subscribe();
        let told = seen.wait_for(|seen| seen.gone || seen.released.contains(&stream));
        // The sender is ours.
        told.await.is_ok_and(|seen| !seen.gone)
    }

    /// Tells the client that a stream is over for it.
    pub(crate) fn cut(&self, tag: Tag) {
        // One that does not listen will see the end of the stream.
        sys::socket::send(&self.line, &[CUT, number(tag)], &[]).ok();
    }
}

/// A stream's number on the line.
fn number(tag: Tag) -> u8 {
    match tag {
        Tag::Stdout => 2,
        Tag::Stderr => 3,
    }
}
