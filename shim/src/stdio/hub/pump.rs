//! The shim as the reader of an output: for a log, for several clients, or to throw it away.
//!
//! Invariant: a taker holds up the others, and the process, for [`SLOW`] (beside a log for
//! [`SLOW_BESIDE_LOG`]) at each piece of output, all of them together; then it is cut off. Only who
//! is alone may take its time.

use std::io::ErrorKind;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::task::yield_now;
use tokio::time::{Instant, sleep, timeout_at};

use super::{Base, Hub, PIPE, Progress, Reader, State, lock};
use crate::log;
use crate::stdio::logfile::{LogFile, RETRY};
use crate::watch::watch;

/// How long clients may keep each other waiting.
const SLOW: Duration = Duration::from_secs(5);
/// The same beside a log, which must not wait for people.
const SLOW_BESIDE_LOG: Duration = Duration::from_millis(100);
/// Most that is read at once when a process has ended.
const LAST: usize = 4 << 20;

impl Hub {
    /// Starts the pump when somebody wants it and it does not run.
    pub(super) fn start(self: &Arc<Self>) {
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
                Err(error) => {
                    log::error(format_args!("output is not read yet: {error}"));
                    // The machine has none left for us: it may have later.
                    sleep(RETRY).await;
                }
            }
            hub.until_taken_by_log().await;
            let ended = {
                let mut state = hub.state();
                state.pumping = false;
                state.ended
            };
            if ended {
                hub.progress.send_replace(Progress::Ended);
                // What is missing is told when the disk takes it, while somebody keeps the record.
                hub.while_log(LogFile::owes).await;
            } else {
                hub.progress.send_replace(Progress::Resting);
                // Somebody may have come in this moment.
                hub.start();
            }
        }));
    }

    /// Moves bytes from the source to all takers until there are none or the source ends.
    async fn pump(&self, source: &AsyncFd<Arc<OwnedFd>>) {
        let mut chunk = Vec::new();
        while self.state().wants_pump() {
            if let Some(left) = self.take_left() {
                self.progress.send_replace(Progress::Busy);
                self.give_all(&left).await;
                continue;
            }
            let mut ready = tokio::select! {
                ready = source.readable() => match ready {
                    Ok(ready) => ready,
                    Err(_) => return,
                },
                () = self.changed.notified() => continue,
                () = sleep(RETRY), if self.owes() => {
                    self.with_log(LogFile::retry);
                    continue;
                }
            };
            chunk.resize(PIPE, 0);
            match ready.try_io(|_| self.read(&mut chunk)) {
                Ok(Ok(length @ 1..)) => {
                    self.progress.send_replace(Progress::Busy);
                    self.deliver(&chunk[..length]).await;
                    // A process that never stops must not keep the shim from everything else.
                    yield_now().await;
                }
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                // A terminal whose other side is closed by all gives EIO.
                Ok(Ok(_) | Err(_)) => {
                    if self.source_ended() {
                        return;
                    }
                }
                Err(_not_yet) => {
                    chunk = Vec::new();
                    self.progress.send_replace(Progress::Resting);
                }
            }
        }
    }

    /// Reads what is there.
    fn read(&self, chunk: &mut [u8]) -> std::io::Result<usize> {
        if self.terminal {
            // Clients have had this open description, and what it does when there is nothing.
            sys::fs::set_nonblocking(&*self.source, true).ok();
        }
        sys::pipe::read(&*self.source, chunk)
    }

    fn take_left(&self) -> Option<Vec<u8>> {
        let mut state = self.state();
        let some = !state.readers.is_empty() && !state.left.is_empty();
        some.then(|| std::mem::take(&mut state.left))
    }

    /// False when there is something left to give before.
    fn source_ended(&self) -> bool {
        let mut state = self.state();
        let State { base, lines, .. } = &mut *state;
        if let Base::Log(file) = base {
            lock(file).finish(lines, self.tag);
        }
        if !state.left.is_empty() && !state.readers.is_empty() {
            return false;
        }
        state.ended = true;
        // Their pipes close: they see the end.
        state.readers.clear();
        true
    }

    async fn deliver(&self, bytes: &[u8]) {
        {
            let mut state = self.state();
            let State { base, lines, .. } = &mut *state;
            if let Base::Log(file) = base {
                lock(file).append(lines, self.tag, bytes);
            }
        }
        self.give_all(bytes).await;
        self.until_taken_by_log().await;
    }

    /// Gives every reader its share.
    async fn give_all(&self, bytes: &[u8]) {
        let readers = self.state().readers.clone();
        let mut until = None;
        let mut given = Vec::new();
        for reader in readers {
            let mut done = 0;
            if let Err(why) = self.give(&reader, bytes, &mut done, &mut until).await {
                log::debug(format_args!("a reader is cut off: {why}"));
                self.state().remove(|r| Arc::ptr_eq(r, &reader));
            }
            given.push((reader, done));
        }
        let mut state = self.state();
        let last = std::mem::take(&mut state.last).upgrade();
        let had = given
            .iter()
            .find(|(reader, _)| last.as_ref().is_some_and(|l| Arc::ptr_eq(reader, l)));
        if let Some((_, done)) = had {
            state.left.extend_from_slice(&bytes[*done..]);
        }
    }

    /// Gives a reader its share, or what it takes of it before it leaves; `done` is how much it had.
    /// `until` is how long all readers together may take, once that is known.
    ///
    /// # Errors
    /// `TimedOut`, or of writing.
    async fn give(
        &self,
        reader: &Arc<Reader>,
        bytes: &[u8],
        done: &mut usize,
        until: &mut Option<Instant>,
    ) -> std::io::Result<()> {
        loop {
            match sys::pipe::write(reader.pipe.get_ref(), &bytes[*done..]) {
                Ok(written) => *done += written,
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // Its session's end, which is seen later, is no news then.
                Err(e) => return Err(e),
            }
            if *done == bytes.len() {
                return Ok(());
            }
            // Who has become the only one meanwhile may take its time.
            let limit = self.patience();
            let limit = limit.map(|limit| *until.get_or_insert_with(|| Instant::now() + limit));
            let writable = async {
                let mut guard = reader.pipe.writable().await?;
                // The write comes next: it tells.
                guard.clear_ready();
                Ok::<_, std::io::Error>(())
            };
            tokio::select! {
                ready = in_time(limit, writable) => match ready {
                    Some(ready) => ready?,
                    None => {
                        reader.session.cut(self.tag);
                        return Err(ErrorKind::TimedOut.into());
                    }
                },
                () = self.changed.notified() => {
                    if !self.state().readers.iter().any(|r| Arc::ptr_eq(r, reader)) {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn patience(&self) -> Option<Duration> {
        let state = self.state();
        match state.base {
            Base::Log(_) => Some(SLOW_BESIDE_LOG),
            Base::Discard => Some(SLOW),
            Base::Wait => (state.readers.len() > 1).then_some(SLOW),
        }
    }

    /// The process has ended: what it left goes into its log now, before anybody hears of the end.
    pub(crate) fn flush(&self) {
        let mut state = self.state();
        if !matches!(state.base, Base::Log(_)) || state.ended {
            return;
        }
        let mut room = LAST;
        let mut chunk = vec![0; PIPE];
        while room > 0 {
            let State {
                base,
                lines,
                left,
                readers,
                ..
            } = &mut *state;
            let Base::Log(file) = base else { break };
            let mut file = lock(file);
            if file.owes() {
                break;
            }
            match self.read(&mut chunk) {
                Ok(length @ 1..) => {
                    file.append(lines, self.tag, &chunk[..length]);
                    if !readers.is_empty() {
                        left.extend_from_slice(&chunk[..length]);
                    }
                    room = room.saturating_sub(length);
                }
                // Nothing more for now: a line that was begun ends here. The pump sees the end.
                _ => {
                    file.finish(lines, self.tag);
                    break;
                }
            }
        }
        drop(state);
        self.changed.notify_one();
    }

    /// Waits until everything that is there has been taken, no longer than to `until`, then lets go.
    pub(crate) async fn finish(&self, until: Instant) {
        let mut progress = self.progress.subscribe();
        let taken = async {
            let quiet = |progress: &Progress| match progress {
                Progress::Ended => true,
                Progress::Busy => false,
                Progress::Resting => {
                    let state = self.state();
                    let waits = !state.left.is_empty() || sys::pipe::is_readable(&*self.source);
                    !state.pumping || !waits
                }
            };
            // The sender lives as long as the hub.
            drop(progress.wait_for(quiet).await);
        };
        if timeout_at(until, taken).await.is_err() {
            log::warn(format_args!("output is not taken: dropped"));
        }
        let mut state = self.state();
        let State { base, lines, .. } = &mut *state;
        if let Base::Log(file) = base {
            let mut file = lock(file);
            file.finish(lines, self.tag);
            file.last_words();
        }
        state.base = Base::Wait;
        state.readers.clear();
        state.left = Vec::new();
        state.no_direct();
        state.ended = true;
        drop(state);
        self.changed.notify_one();
    }

    fn owes(&self) -> bool {
        self.with_log(|file| file.owes()).unwrap_or_default()
    }

    /// Waits for a disk, as long as a log has patience.
    async fn until_taken_by_log(&self) {
        self.while_log(LogFile::is_waiting).await;
    }

    async fn while_log(&self, still: fn(&LogFile) -> bool) {
        while self.with_log(|file| still(file)).unwrap_or_default() {
            sleep(RETRY).await;
            self.with_log(LogFile::retry);
        }
    }
}

/// None when it takes too long.
async fn in_time<T>(until: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match until {
        Some(until) => timeout_at(until, work).await.ok(),
        None => Some(work.await),
    }
}
