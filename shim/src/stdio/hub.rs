//! One output of a process and everybody who takes it.
//!
//! ```text
//!            ┌─ nobody: it waits in the pipe
//!  source ───┼─ one client: has the descriptor itself, no byte passes through the shim
//!            └─ a log, or several clients: the shim reads and gives to all (pump.rs)
//! ```
//! Invariant: at any time there is one reader of the source: nobody, one client, or the pump. Every
//! taker gets every byte from the moment it came, and what the last one did not take waits for the
//! next, unless a log has it.

mod pump;

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use sys::fifo::End;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch as channel};
use tokio::time::{Instant, timeout_at};
use types::{Error, Result};

use super::logfile::{Lines, LogFile, Tag};
use super::session::Session;
use crate::watch::watch;

/// How long a client may take to let go of the source.
const LET_GO: Duration = Duration::from_secs(2);
/// Clients at a time, each with a pipe.
const READERS: usize = 64;
/// What a pipe holds.
const PIPE: usize = 64 * 1024;

/// What happens to the output when nobody is attached.
#[derive(Debug)]
pub(crate) enum Base {
    /// It waits.
    Wait,
    /// It is thrown away.
    Discard,
    /// It goes to a log.
    Log(Arc<Mutex<LogFile>>),
}

/// An output and its takers.
#[derive(Debug)]
pub(crate) struct Hub {
    source: Arc<OwnedFd>,
    tag: Tag,
    /// A terminal's master: another open description cannot be had.
    terminal: bool,
    state: Mutex<State>,
    /// Takers came or went.
    changed: Notify,
    progress: channel::Sender<Progress>,
}

#[derive(Debug)]
struct State {
    base: Base,
    lines: Lines,
    /// The client that has the source.
    direct: Option<Arc<Session>>,
    /// It was asked to share: tells when it has answered.
    asked: Option<channel::Receiver<bool>>,
    readers: Vec<Arc<Reader>>,
    /// Read from the source, in no need of a log, and not yet given to readers.
    left: Vec<u8>,
    /// The reader that went when there was no other.
    last: Weak<Reader>,
    pumping: bool,
    /// The source has ended.
    ended: bool,
}

/// A client with a pipe of its own.
#[derive(Debug)]
struct Reader {
    pipe: AsyncFd<OwnedFd>,
    session: Arc<Session>,
}

/// What the pump does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Progress {
    /// There is none, or it waits for output.
    Resting,
    Busy,
    Ended,
}

/// What an attempt to join came to.
#[derive(Debug)]
enum Joined {
    Place(OwnedFd),
    /// The client that has the source was asked for it.
    Asked(channel::Receiver<bool>),
}

impl Hub {
    /// An output whose bytes come from `source`, a descriptor that does not block. Within the runtime.
    pub(crate) fn new(source: OwnedFd, tag: Tag, terminal: bool, base: Base) -> Arc<Self> {
        let hub = Arc::new(Self {
            source: Arc::new(source),
            tag,
            terminal,
            state: Mutex::new(State {
                base,
                lines: Lines::default(),
                direct: None,
                asked: None,
                readers: Vec::new(),
                left: Vec::new(),
                last: Weak::new(),
                pumping: false,
                ended: false,
            }),
            changed: Notify::new(),
            progress: channel::Sender::new(Progress::Resting),
        });
        hub.start();
        hub
    }

    /// Which output it is.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
    }

    /// True while a client takes it.
    pub(crate) fn is_taken(&self) -> bool {
        let state = self.state();
        state.direct.as_ref().is_some_and(|s| !s.is_over()) || !state.readers.is_empty()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a client its end.
    ///
    /// # Errors
    /// `Unavailable` when another client has the source and does not let go, `ResourceExhausted` for
    /// too many clients, else the errno.
    pub(crate) async fn join(self: &Arc<Self>, session: &Arc<Session>) -> Result<OwnedFd> {
        let until = Instant::now() + LET_GO;
        loop {
            let mut asked = match self.try_join(session)? {
                Joined::Place(end) => return Ok(end),
                Joined::Asked(asked) => asked,
            };
            // Without a sender it is done, too.
            let done = timeout_at(until, asked.wait_for(|done| *done)).await;
            drop(done.map_err(|_| {
                Error::unavailable("another client reads this stream and does not share it")
            })?);
        }
    }

    fn try_join(self: &Arc<Self>, session: &Arc<Session>) -> Result<Joined> {
        let mut state = self.state();
        if state.direct.as_ref().is_some_and(|other| other.is_over()) {
            state.no_direct();
        }
        if state.direct.is_none() && state.is_untouched() {
            let end = self.end_of_source()?;
            state.direct = Some(Arc::clone(session));
            return Ok(Joined::Place(end));
        }
        if state.readers.len() >= READERS {
            let text = format_args!("{READERS} clients are attached");
            return Err(Error::resource_exhausted(text));
        }
        if let Some(asked) = self.share(&mut state)? {
            return Ok(Joined::Asked(asked));
        }
        let (reader, theirs) = Reader::new(session)?;
        if !state.ended {
            state.readers.push(reader);
        }
        drop(state);
        self.start();
        self.changed.notify_one();
        Ok(Joined::Place(theirs))
    }

    /// Asks the client that has the source to share it, unless it was asked before. The result tells
    /// when it has answered or gone; none when the source is free. Whatever becomes of who asked, a
    /// client that lets go has its pipe.
    fn share(self: &Arc<Self>, state: &mut State) -> Result<Option<channel::Receiver<bool>>> {
        let Some(first) = state.direct.clone() else {
            return Ok(None);
        };
        if let Some(asked) = &state.asked {
            return Ok(Some(asked.clone()));
        }
        let (pipe, next) = Reader::new(&first)?;
        match first.switch(self.tag, &next) {
            Ok(()) => {}
            Err(error) if error.is_not_found() => {
                // It went in this moment.
                state.no_direct();
                return Ok(None);
            }
            Err(error) => return Err(error),
        }
        let (tell, told) = channel::channel(false);
        state.asked = Some(told.clone());
        let hub = Arc::clone(self);
        drop(tokio::spawn(async move {
            let stays = first.released(hub.tag).await;
            hub.shared(&first, stays.then_some(pipe), &tell);
        }));
        Ok(Some(told))
    }

    /// A client has let go of the source, or has gone with it.
    fn shared(
        self: &Arc<Self>,
        first: &Arc<Session>,
        pipe: Option<Arc<Reader>>,
        tell: &channel::Sender<bool>,
    ) {
        let mut state = self.state();
        if !state.ended {
            state.readers.extend(pipe);
        }
        let has_it = |s: &Arc<Session>| Arc::ptr_eq(s, first);
        if state.direct.as_ref().is_some_and(has_it) {
            state.no_direct();
        }
        drop(state);
        self.start();
        self.changed.notify_one();
        tell.send_replace(true);
    }

    /// A client's own end of the source.
    fn end_of_source(&self) -> Result<OwnedFd> {
        if self.terminal {
            return self
                .source
                .try_clone()
                .map_err(|e| Error::os("dup terminal", e));
        }
        let end = sys::fifo::reopen(&*self.source, End::Read)?;
        // An end that never met a writer does not tell that there is none any more.
        drop(sys::fifo::reopen(&*self.source, End::Write));
        Ok(end)
    }

    /// A client is gone.
    pub(crate) fn leave(&self, session: &Arc<Session>) {
        let mut state = self.state();
        let is_it = |s: &Arc<Session>| Arc::ptr_eq(s, session);
        if state.direct.as_ref().is_some_and(is_it) {
            state.no_direct();
        }
        state.remove(|reader| is_it(&reader.session));
        drop(state);
        self.changed.notify_one();
    }

    /// Opens the log anew, if there is one.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn reopen(&self) -> Result<bool> {
        match &self.state().base {
            Base::Log(file) => lock(file).reopen().map(|()| true),
            Base::Wait | Base::Discard => Ok(false),
        }
    }

    fn with_log<T>(&self, work: impl FnOnce(&mut LogFile) -> T) -> Option<T> {
        match &self.state().base {
            Base::Log(file) => Some(work(&mut lock(file))),
            Base::Wait | Base::Discard => None,
        }
    }
}

impl State {
    fn wants_pump(&self) -> bool {
        !self.ended && (!self.readers.is_empty() || !matches!(self.base, Base::Wait))
    }

    /// Nothing but the source itself has the output.
    fn is_untouched(&self) -> bool {
        matches!(self.base, Base::Wait)
            && self.readers.is_empty()
            && self.left.is_empty()
            && !self.pumping
    }

    fn no_direct(&mut self) {
        self.direct = None;
        self.asked = None;
    }

    /// A reader goes. What the last one did not take waits for the next one.
    fn remove(&mut self, is_it: impl Fn(&Arc<Reader>) -> bool) {
        let Some(at) = self.readers.iter().position(is_it) else {
            return;
        };
        let reader = self.readers.swap_remove(at);
        if !self.readers.is_empty() {
            return;
        }
        if !matches!(self.base, Base::Wait) {
            self.left.clear();
            return;
        }
        self.last = Arc::downgrade(&reader);
        // What is in its pipe comes before what has not got there.
        let mut rest = vec![0; PIPE];
        let length = sys::fifo::reopen(&reader.pipe, End::Read)
            .ok()
            .and_then(|end| sys::pipe::read(end, &mut rest).ok());
        rest.truncate(length.unwrap_or_default());
        rest.append(&mut self.left);
        self.left = rest;
    }
}

impl Reader {
    /// A pipe for a client: our end and its own.
    fn new(session: &Arc<Session>) -> Result<(Arc<Self>, OwnedFd)> {
        let (theirs, ours) = sys::pipe::new()?;
        sys::fs::set_nonblocking(&ours, true)?;
        let reader = Self {
            pipe: watch(ours)?,
            session: Arc::clone(session),
        };
        Ok((Arc::new(reader), theirs))
    }
}

fn lock(file: &Arc<Mutex<LogFile>>) -> MutexGuard<'_, LogFile> {
    file.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
