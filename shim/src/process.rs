//! One process of a container: the init or an exec.
//!
//! Invariant: [`State`] is changed only here, by steps of the [`Phase`] machine; an exit is kept back
//! until the start has been announced, so that its event follows the start's. Operations that call
//! the runtime hold the process's gate; nothing holds the state's lock across a wait.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::SystemTime;

use protos::task::Status;
use tokio::sync::watch;
use tokio::time::Instant;
use types::{Error, Exit, Result};

use crate::console::Console;
use crate::lifecycle::{Denied, Input, Phase};
use crate::log;
use crate::logger::Logger;
use crate::stdio::{Hub, Paths, Session, Streams};

/// A process.
#[derive(Debug)]
pub(crate) struct Process {
    /// Exec id; empty for the init.
    pub(crate) exec: String,
    pub(crate) paths: Paths,
    /// The process as the runtime spec writes it, for an exec.
    pub(crate) spec: Vec<u8>,
    /// Held by operations that call the runtime.
    pub(crate) gate: tokio::sync::Mutex<()>,
    state: Mutex<State>,
    end: watch::Sender<End>,
}

/// What changes.
#[derive(Debug)]
struct State {
    phase: Phase,
    pid: u32,
    /// Its start (an init: its creation) has been published.
    announced: bool,
    /// It may have a living process: from the attempt to start it to its published end.
    active: bool,
    /// Its end, until that is published.
    ended: Option<Exit>,
    streams: Streams,
    console: Option<Console>,
    logger: Option<Logger>,
    /// The client's own fifos, once somebody attached to them.
    shared: Vec<Arc<Hub>>,
    sessions: Vec<Weak<Session>>,
}

impl State {
    /// The outputs that the shim has.
    fn hubs(&self) -> impl Iterator<Item = &Arc<Hub>> {
        let console = self.console.as_ref().and_then(Console::hub);
        self.streams.hubs().iter().chain(console)
    }
}

/// Where a process's stdio can be had.
#[derive(Debug, Default)]
pub(crate) struct Outlets {
    pub(crate) stdin: Option<OwnedFd>,
    pub(crate) outputs: Vec<Arc<Hub>>,
}

/// The shim's side of a started process's streams.
#[derive(Debug)]
pub(crate) enum Attached {
    Streams(Streams),
    Console(Console),
}

/// What those who wait for the end learn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// It has not ended.
    Open,
    /// It has, and that has been published.
    Told(Exit),
    /// It was deleted without having been started.
    Never,
}

impl End {
    fn or_never(self) -> Self {
        if self == Self::Open {
            Self::Never
        } else {
            self
        }
    }
}

/// A snapshot for answers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct View {
    pub(crate) phase: Phase,
    pub(crate) pid: u32,
    pub(crate) active: bool,
}

impl View {
    /// The status as clients know it.
    pub(crate) fn status(self) -> Status {
        match self.phase {
            Phase::Created => Status::CREATED,
            Phase::Running => Status::RUNNING,
            Phase::Pausing => Status::PAUSING,
            Phase::Paused => Status::PAUSED,
            Phase::Stopped(_) | Phase::Deleted => Status::STOPPED,
        }
    }
}

impl Process {
    pub(crate) fn new(exec: &str, paths: Paths, spec: Vec<u8>) -> Self {
        Self {
            exec: exec.to_owned(),
            paths,
            spec,
            gate: tokio::sync::Mutex::new(()),
            state: Mutex::new(State {
                phase: Phase::Created,
                pid: 0,
                announced: false,
                active: false,
                ended: None,
                streams: Streams::default(),
                console: None,
                logger: None,
                shared: Vec::new(),
                sessions: Vec::new(),
            }),
            end: watch::Sender::new(End::Open),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn is_init(&self) -> bool {
        self.exec.is_empty()
    }

    pub(crate) fn view(&self) -> View {
        let state = self.state();
        View {
            phase: state.phase,
            pid: state.pid,
            active: state.active,
        }
    }

    /// True when it has ended, published or not.
    pub(crate) fn has_ended(&self) -> bool {
        let state = self.state();
        state.ended.is_some() || matches!(state.phase, Phase::Stopped(_) | Phase::Deleted)
    }

    /// Takes a step of the machine.
    ///
    /// # Errors
    /// `NotFound` for what has ended, `Unknown` for the deletion of what has not, `FailedPrecondition`
    /// for everything else that cannot be now.
    pub(crate) fn step(&self, input: Input) -> Result<()> {
        let mut state = self.state();
        state.phase = state.phase.step(input).map_err(denied)?;
        Ok(())
    }

    /// Whether a step would be possible.
    ///
    /// # Errors
    /// As [`Process::step`].
    pub(crate) fn check(&self, input: Input) -> Result<()> {
        self.state().phase.step(input).map(drop).map_err(denied)
    }

    /// An attempt to start it begins: its end must wait for the announcement.
    pub(crate) fn starting(&self) {
        let mut state = self.state();
        state.announced = false;
        state.active = true;
        state.streams.look_for_stdin();
    }

    /// It has this pid and these streams.
    pub(crate) fn has_started(&self, pid: u32, attached: Attached) {
        let mut state = self.state();
        state.pid = pid;
        state.active = true;
        match attached {
            Attached::Streams(streams) => state.streams = streams,
            Attached::Console(console) => state.console = Some(console),
        }
    }

    /// The attempt came to nothing: there is no process.
    pub(crate) fn did_not_start(&self) {
        self.state().active = false;
    }

    /// Its start has been published: its end may be.
    pub(crate) fn announced(&self) {
        self.state().announced = true;
    }

    /// It has ended. Readers of its output see the end.
    pub(crate) fn ended(&self, exit: Exit) {
        let mut state = self.state();
        state.ended = Some(exit);
        // An end that nobody reads any more would look like a reader of the client's fifo.
        state.shared.retain(|hub| hub.is_taken());
        state.logger = state.streams.end();
        if let Some(console) = &mut state.console {
            console.end();
        }
    }

    /// Its end, once, when it may be published.
    pub(crate) fn take_due_exit(&self) -> Option<Exit> {
        let mut state = self.state();
        if !state.announced {
            return None;
        }
        let exit = state.ended.take()?;
        state.active = false;
        match state.phase.step(Input::Exited(exit)) {
            Ok(next) => state.phase = next,
            Err(reason) => {
                log::error(format_args!(
                    "second exit of process {}: {}",
                    exit.pid,
                    reason.text()
                ));
                return None;
            }
        }
        Some(exit)
    }

    /// Wakes those who wait for the end. To be called when its event is queued.
    pub(crate) fn tell(&self, exit: Exit) {
        self.end.send_replace(End::Told(exit));
    }

    /// Waits for the end, which may be long ago.
    ///
    /// # Errors
    /// `NotFound` when the record goes without an end.
    pub(crate) async fn wait(&self) -> Result<Exit> {
        let mut end = self.end.subscribe();
        let seen = end.wait_for(|end| *end != End::Open).await.map(|end| *end);
        match seen {
            Ok(End::Told(exit)) => Ok(exit),
            _ => Err(Error::not_found("process was not started")),
        }
    }

    /// Its record goes. Those who wait for a process that was never started wait no longer.
    ///
    /// # Errors
    /// As [`Process::step`].
    pub(crate) fn delete(&self) -> Result<()> {
        self.step(Input::Delete)?;
        self.end
            .send_if_modified(|end| std::mem::replace(end, end.or_never()) == End::Open);
        Ok(())
    }

    /// Waits for output to be delivered, no longer than to `until`, and lets go of the streams.
    pub(crate) async fn drain(&self, until: Instant) {
        let (console, hubs, logger, sessions) = {
            let mut state = self.state();
            let logger = state.logger.take().or_else(|| state.streams.end());
            state.shared.clear();
            let streams = std::mem::take(&mut state.streams);
            let sessions = std::mem::take(&mut state.sessions);
            (
                state.console.take(),
                streams.hubs().to_vec(),
                logger,
                sessions,
            )
        };
        for hub in hubs {
            hub.finish(until).await;
        }
        if let Some(console) = console {
            console.drain(until).await;
        }
        for session in sessions.iter().filter_map(Weak::upgrade) {
            session.end();
        }
        if let Some(logger) = logger {
            logger.stop(until).await;
        }
    }

    /// Its stdio, for a client that attaches: standard input when that is `wanted`.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn outlets(&self, wanted: bool) -> Result<Outlets> {
        let mut state = self.state();
        let state = &mut *state;
        let stdin = match (&state.console, wanted) {
            (_, false) => None,
            (Some(console), true) => console.stdin()?,
            (None, true) => state.streams.stdin()?,
        };
        if state.shared.is_empty() && state.active {
            state.shared = match &state.console {
                Some(console) => console.fifo()?.into_iter().collect(),
                None => state.streams.fifos()?,
            };
        }
        let hubs = state.hubs().chain(&state.shared);
        let outputs = hubs.map(Arc::clone).collect();
        Ok(Outlets { stdin, outputs })
    }

    /// A client has attached: its session ends with the record of the process.
    pub(crate) fn attached(&self, session: &Arc<Session>) {
        let sessions = &mut self.state().sessions;
        sessions.retain(|session| session.strong_count() > 0);
        sessions.push(Arc::downgrade(session));
    }

    /// Opens its logs anew.
    ///
    /// # Errors
    /// `FailedPrecondition` when it has none, else the errno.
    pub(crate) fn reopen_logs(&self) -> Result<()> {
        let mut found = false;
        for hub in self.state().hubs() {
            found |= hub.reopen()?;
        }
        if found {
            Ok(())
        } else {
            Err(Error::failed_precondition("process has no log"))
        }
    }

    /// Sets the size of its terminal.
    ///
    /// # Errors
    /// `FailedPrecondition` when it has none, or the errno.
    pub(crate) fn resize(&self, columns: u32, rows: u32) -> Result<()> {
        let fits = |size: u32| {
            u16::try_from(size)
                .map_err(|_| Error::invalid_argument(format_args!("terminal size {size}")))
        };
        let (columns, rows) = (fits(columns)?, fits(rows)?);
        match &self.state().console {
            Some(console) => console.resize(columns, rows),
            // Parity: Go answers with success for a process that has no terminal (yet).
            None => Ok(()),
        }
    }

    /// No more input.
    pub(crate) fn close_stdin(&self) {
        let mut state = self.state();
        state.streams.close_stdin();
        if let Some(console) = &mut state.console {
            console.close_stdin();
        }
    }

    /// How it ended, for an answer: the time is zero while it has not.
    pub(crate) fn exit(&self) -> Exit {
        let state = self.state();
        let told = match *self.end.borrow() {
            End::Told(exit) => Some(exit),
            End::Open | End::Never => None,
        };
        let alive = Exit {
            pid: state.pid,
            status: 0,
            at: SystemTime::UNIX_EPOCH,
        };
        state.phase.exit().or(told).unwrap_or(alive)
    }
}

fn denied(reason: Denied) -> Error {
    match reason {
        Denied::Stopped | Denied::Deleted => Error::not_found(reason.text()),
        Denied::NotStarted | Denied::Started | Denied::Paused | Denied::NotPaused => {
            Error::failed_precondition(reason.text())
        }
        // Parity: process/init_state.go, exec_state.go: an error without a class.
        Denied::Alive => Error::unknown(reason.text()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::block_on;

    const EXIT: Exit = Exit {
        pid: 7,
        status: 3,
        at: SystemTime::UNIX_EPOCH,
    };

    fn process() -> Process {
        Process::new("e1", Paths::default(), Vec::new())
    }

    #[test]
    fn an_exit_before_the_announcement_is_kept_back() {
        block_on(async {
            let process = process();
            process.starting();
            process.has_started(7, Attached::Streams(Streams::default()));
            process.ended(EXIT);
            assert!(process.has_ended());
            assert_eq!(process.take_due_exit(), None);
            process.step(Input::Start).unwrap();
            process.announced();
            assert_eq!(process.view().status(), Status::RUNNING);
            assert_eq!(process.take_due_exit(), Some(EXIT));
            assert_eq!(process.take_due_exit(), None);
            process.tell(EXIT);
            assert_eq!(process.view().status(), Status::STOPPED);
            assert!(!process.view().active);
            assert_eq!(process.wait().await.unwrap(), EXIT);
            assert_eq!(process.wait().await.unwrap(), EXIT);
            process.delete().unwrap();
            assert_eq!(process.exit(), EXIT);
            assert_eq!(process.wait().await.unwrap(), EXIT);
        });
    }

    #[test]
    fn a_failed_start_leaves_it_as_it_was() {
        let process = process();
        process.starting();
        process.did_not_start();
        assert!(!process.view().active && !process.has_ended());
        block_on(async {
            let waiting = std::pin::pin!(process.wait());
            let deleted = std::pin::pin!(async { process.delete() });
            let (waited, deleted) = tokio::join!(waiting, deleted);
            deleted.unwrap();
            assert!(waited.unwrap_err().is_not_found());
        });
        assert!(process.step(Input::Start).unwrap_err().is_not_found());
    }

    #[test]
    fn what_cannot_be_now_is_a_failed_precondition() {
        let process = process();
        let error = process.check(Input::Pause).unwrap_err();
        assert!(error.is(types::Code::FailedPrecondition), "{error}");
        assert!(
            process
                .resize(70_000, 1)
                .unwrap_err()
                .is(types::Code::InvalidArgument)
        );
        process.resize(80, 24).unwrap();
    }
}
