//! One output of a process and everybody who takes it.
//!
//! ```text
//!            ┌─ nobody: it waits in the pipe
//!  source ───┼─ one client: has the descriptor itself, no byte passes through the shim
//!            └─ a log, or several clients: the shim reads and gives to all
//! ```
//! Invariant: at any time there is one reader of the source: nobody, one client, or the pump. Every
//! taker gets every byte from the moment it came; one that does not take its share is cut off before
//! it holds up the others for longer than [`SLOW`].

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sys::fifo::{End, Fifo};
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, watch as channel};
use tokio::time::{sleep, timeout};
use types::{Error, Result};

use super::logfile::{Lines, LogFile, RETRY, Tag};
use super::session::Session;
use crate::log;
use crate::watch::watch;

/// Read at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;
/// How long a client may take to let go of the source.
const LET_GO: Duration = Duration::from_secs(2);
/// How long a client may keep the others waiting.
const SLOW: Duration = Duration::from_secs(5);
/// The same beside a log, which must not wait for people.
const SLOW_BESIDE_LOG: Duration = Duration::from_millis(100);
/// Clients at a time, each with a pipe.
const READERS: usize = 64;
/// Most that is read at once when a process has ended.
const LAST: usize = 4 << 20;

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
                pumping: false,
                ended: false,
            }),
            changed: Notify::new(),
            progress: channel::Sender::new(Progress::Resting),
        });
        hub.start();
        hub
    }

    /// The output that goes to a fifo which a client made. Within the runtime.
    ///
    /// # Errors
    /// As [`Fifo::find`], or the errno.
    pub(crate) fn of_fifo(path: &Path, tag: Tag) -> Result<Arc<Self>> {
        let source = Fifo::find(path)?.open_nonblocking(End::Read)?;
        Ok(Self::new(source, tag, false, Base::Wait))
    }

    /// Which output it is.
    pub(crate) fn tag(&self) -> Tag {
        self.tag
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
        let mut shared = {
            let mut state = self.state();
            if state.direct.as_ref().is_some_and(|other| other.is_over()) {
                state.direct = None;
            }
            let alone = matches!(state.base, Base::Wait) && state.readers.is_empty();
            if alone && state.direct.is_none() {
                let end = self.end_of_source()?;
                state.direct = Some(Arc::clone(session));
                return Ok(end);
            }
            if state.readers.len() >= READERS {
                let text = format_args!("{READERS} clients are attached");
                return Err(Error::resource_exhausted(text));
            }
            self.share(&mut state)?
        };
        if let Some(shared) = &mut shared {
            // Without a sender it is done, too.
            let done = timeout(LET_GO, shared.wait_for(|done| *done)).await;
            drop(done.map_err(|_| {
                Error::unavailable("another client reads this stream and does not share it")
            })?);
        }
        let (reader, theirs) = Reader::new(session)?;
        {
            let mut state = self.state();
            if !state.ended {
                state.readers.push(reader);
            }
        }
        self.start();
        self.changed.notify_one();
        Ok(theirs)
    }

    /// Asks the client that has the source to share it, unless it was asked before. The result tells
    /// when the source is free; none when it is. Whatever becomes of who asked, a client that lets go
    /// has its pipe.
    fn share(self: &Arc<Self>, state: &mut State) -> Result<Option<channel::Receiver<bool>>> {
        let Some(first) = state.direct.clone() else {
            return Ok(None);
        };
        if let Some(asked) = &state.asked {
            return Ok(Some(asked.clone()));
        }
        let (pipe, next) = Reader::new(&first)?;
        if first.switch(self.tag, &next).is_err() {
            // It went in this moment.
            state.direct = None;
            return Ok(None);
        }
        let (tell, told) = channel::channel(false);
        state.asked = Some(told.clone());
        let hub = Arc::clone(self);
        drop(tokio::spawn(async move {
            let stays = first.released(hub.tag).await;
            {
                let mut state = hub.state();
                if stays && !state.ended {
                    state.readers.push(pipe);
                }
                if state
                    .direct
                    .as_ref()
                    .is_some_and(|s| Arc::ptr_eq(s, &first))
                {
                    state.direct = None;
                }
                state.asked = None;
            }
            hub.start();
            hub.changed.notify_one();
            tell.send_replace(true);
        }));
        Ok(Some(told))
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
        if state
            .direct
            .as_ref()
            .is_some_and(|s| Arc::ptr_eq(s, session))
        {
            state.direct = None;
        }
        state.readers.retain(|r| !Arc::ptr_eq(&r.session, session));
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

    /// The process has ended: what it left goes into its log now, before anybody hears of the end.
    pub(crate) fn flush(&self) {
        let mut left = LAST;
        let mut state = self.state();
        if !matches!(state.base, Base::Log(_)) {
            return;
        }
        let mut chunk = vec![0; CHUNK];
        while state.readers.is_empty() && left > 0 && !state.ended {
            let State { base, lines, .. } = &mut *state;
            let Base::Log(file) = base else { return };
            let mut file = lock(file);
            if file.owes() {
                return;
            }
            match sys::pipe::read(&*self.source, &mut chunk) {
                Ok(length @ 1..) => {
                    file.append(lines, self.tag, &chunk[..length]);
                    left = left.saturating_sub(length);
                }
                // The pump sees the end too.
                _ => return,
            }
        }
    }

    /// Waits until everything that is there has been taken, at most `limit`, then lets go of all.
    pub(crate) async fn finish(&self, limit: Duration) {
        let mut progress = self.progress.subscribe();
        let taken = async {
            let quiet = |progress: &Progress| match progress {
                Progress::Ended => true,
                Progress::Busy => false,
                Progress::Resting => {
                    !self.state().pumping || !sys::pipe::is_readable(&*self.source)
                }
            };
            // The sender lives as long as the hub.
            drop(progress.wait_for(quiet).await);
        };
        if timeout(limit, taken).await.is_err() {
            log::warn(format_args!("output is not taken: dropped"));
        }
        let mut state = self.state();
        let State { base, lines, .. } = &mut *state;
        if let Base::Log(file) = base {
            lock(file).finish(lines, self.tag);
        }
        state.base = Base::Wait;
        state.readers.clear();
        state.direct = None;
        state.ended = true;
        drop(state);
        self.changed.notify_one();
    }

    /// Starts the pump when somebody wants it and it does not run.
    fn start(self: &Arc<Self>) {
        let mut state = self.state();
        if state.pumping || !state.wants_pump() {
            return;
        }
        state.pumping = true;
        drop(state);
        let hub = Arc::clone(self);
        drop(tokio::spawn(async move {
            match watch(Arc::clone(&hub.source)) {
                Ok(source) => hub.pump(&source).await,
                Err(error) => log::error(format_args!("output is not read: {error}")),
            }
            let ended = {
                let mut state = hub.state();
                state.pumping = false;
                state.ended
            };
            let progress = if ended {
                Progress::Ended
            } else {
                Progress::Resting
            };
            hub.progress.send_replace(progress);
            // Somebody may have come in this moment.
            hub.start();
        }));
    }

    /// Moves bytes from the source to all takers until there are none or the source ends.
    async fn pump(&self, source: &AsyncFd<Arc<OwnedFd>>) {
        let mut chunk = Vec::new();
        while self.state().wants_pump() {
            let mut ready = tokio::select! {
                ready = source.readable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return,
                },
                () = self.changed.notified() => continue,
                () = sleep(RETRY), if self.owes() => {
                    self.retry();
                    continue;
                }
            };
            chunk.resize(CHUNK, 0);
            match ready.try_io(|fd| sys::pipe::read(fd.get_ref(), &mut chunk)) {
                Ok(Ok(length @ 1..)) => {
                    self.progress.send_replace(Progress::Busy);
                    self.deliver(&chunk[..length]).await;
                }
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                // A terminal whose other side is closed by all gives EIO.
                Ok(Ok(_) | Err(_)) => {
                    self.source_ended();
                    return;
                }
                Err(_not_yet) => {
                    chunk = Vec::new();
                    self.progress.send_replace(Progress::Resting);
                }
            }
        }
    }

    fn source_ended(&self) {
        let mut state = self.state();
        let State { base, lines, .. } = &mut *state;
        if let Base::Log(file) = base {
            lock(file).finish(lines, self.tag);
        }
        state.ended = true;
        // Their pipes close: they see the end.
        state.readers.clear();
    }

    async fn deliver(&self, bytes: &[u8]) {
        let readers = {
            let mut state = self.state();
            let State {
                base,
                lines,
                readers,
                ..
            } = &mut *state;
            if let Base::Log(file) = base {
                lock(file).append(lines, self.tag, bytes);
            }
            readers.clone()
        };
        for reader in readers {
            if let Err(why) = self.give(&reader, bytes).await {
                log::debug(format_args!("a reader is gone: {why}"));
                self.state().readers.retain(|r| !Arc::ptr_eq(r, &reader));
            }
        }
        while self.is_waiting() {
            sleep(RETRY).await;
            self.retry();
        }
    }

    /// Gives a reader its share. The only taker may take its time.
    async fn give(&self, reader: &Arc<Reader>, mut bytes: &[u8]) -> std::io::Result<()> {
        while !bytes.is_empty() {
            let writable = async {
                match self.patience() {
                    Some(limit) => timeout(limit, reader.pipe.writable()).await,
                    None => Ok(reader.pipe.writable().await),
                }
            };
            let ready = tokio::select! {
                ready = writable => ready,
                () = self.changed.notified() => {
                    let readers = &self.state().readers;
                    if !readers.iter().any(|r| Arc::ptr_eq(r, reader)) {
                        return Err(ErrorKind::BrokenPipe.into());
                    }
                    continue;
                }
            };
            let Ok(ready) = ready else {
                reader.session.cut(self.tag);
                return Err(ErrorKind::TimedOut.into());
            };
            match ready?.try_io(|pipe| sys::pipe::write(pipe.get_ref(), bytes)) {
                Ok(written) => bytes = &bytes[written?..],
                Err(_not_yet) => {}
            }
        }
        Ok(())
    }

    fn patience(&self) -> Option<Duration> {
        let state = self.state();
        match state.base {
            Base::Log(_) => Some(SLOW_BESIDE_LOG),
            Base::Discard => Some(SLOW),
            Base::Wait => (state.readers.len() > 1).then_some(SLOW),
        }
    }

    fn with_log<T>(&self, work: impl FnOnce(&mut LogFile) -> T) -> Option<T> {
        match &self.state().base {
            Base::Log(file) => Some(work(&mut lock(file))),
            Base::Wait | Base::Discard => None,
        }
    }

    fn owes(&self) -> bool {
        self.with_log(|file| file.owes()).unwrap_or_default()
    }

    fn is_waiting(&self) -> bool {
        self.with_log(|file| file.is_waiting()).unwrap_or_default()
    }

    fn retry(&self) {
        self.with_log(LogFile::retry);
    }
}

impl State {
    fn wants_pump(&self) -> bool {
        !self.ended && (!self.readers.is_empty() || !matches!(self.base, Base::Wait))
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
