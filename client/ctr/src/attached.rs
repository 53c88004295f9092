//! A process with our terminal or our standard streams at its other end.
//!
//! ```text
//! Io::prepare -> create or exec at the daemon -> Session::start -> follow: copy, signals, size
//!             -> exit -> drain what it still has to say
//! ```
//! Invariant: our ends are open before the daemon hears of the pipes; the terminal is itself again
//! when this is done, whatever happened.

mod lost;
mod signals;

use std::path::PathBuf;

use client::attach::{Attached, Wanted};
use client::stdio::{FIFO_DIR, Fifos, HELD, Input, Output, Streams};
use client::terminal::Terminal;
use client::{Exited, StdioPaths, Tasks};
use tokio::task::JoinHandle;
use types::{Code, ContainerId, Error, ExecId, Result};

use lost::is_lost;
pub(crate) use signals::Signals;
use signals::WINDOW_CHANGED;

/// `SIGPIPE`.
const NO_READER: i32 = 13;

/// Flags about the stdio of a process.
#[derive(Clone, Debug, Default, clap::Args)]
pub(crate) struct IoFlags {
    /// Log uri: the runtime shim writes the output there (file, cri, binary), or keeps the streams
    /// for whoever attaches (attach://)
    #[arg(long, conflicts_with = "fifo_dir")]
    log_uri: Option<String>,
    /// Directory used for storing IO FIFOs
    #[arg(long)]
    fifo_dir: Option<PathBuf>,
}

/// What a process is to have as its stdio.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Our terminal.
    Terminal,
    /// Our standard streams, unless a log address is given.
    Streams,
    /// Nothing.
    Null,
}

/// Our side of a process's stdio, before it runs.
#[derive(Debug)]
pub(crate) struct Io {
    paths: StdioPaths,
    fifos: Option<Fifos>,
    streams: Option<Streams>,
    /// The shim keeps the streams: we attach as soon as the process runs.
    held: bool,
    terminal: Option<Terminal>,
}

impl Io {
    /// Makes and opens what `kind` needs for process `id`. A process that we leave alone needs no
    /// terminal of ours.
    pub(crate) fn prepare(kind: Kind, flags: &IoFlags, id: &str, detach: bool) -> Result<Self> {
        let mut made = Self {
            paths: StdioPaths::default(),
            fifos: None,
            streams: None,
            held: false,
            terminal: None,
        };
        let tty = kind == Kind::Terminal;
        if tty && !detach {
            made.terminal = Some(Terminal::find()?);
        }
        if flags.log_uri.as_deref() == Some(HELD) && kind != Kind::Null {
            made.paths = held(tty);
            made.held = true;
            return Ok(made);
        }
        if let Some(uri) = &flags.log_uri {
            if kind != Kind::Streams {
                return Err(Error::invalid_argument(
                    "can't use log-uri with tty or null-io",
                ));
            }
            if !uri.contains("://") {
                return Err(Error::invalid_argument(format_args!(
                    "log uri {uri:?} has no scheme"
                )));
            }
            made.paths.stdout.clone_from(uri);
            made.paths.stderr.clone_from(uri);
            return Ok(made);
        }
        if kind == Kind::Null {
            return Ok(made);
        }
        let base = flags
            .fifo_dir
            .clone()
            .unwrap_or_else(|| PathBuf::from(FIFO_DIR));
        let fifos = Fifos::create(&base, id, tty)?;
        made.paths = fifos.paths().clone();
        made.streams = Some(Streams::open(&made.paths)?);
        made.fifos = Some(fifos);
        Ok(made)
    }

    /// Opens the pipes of a process that runs already.
    pub(crate) fn attach(paths: &StdioPaths) -> Result<Self> {
        let mut wanted = paths.clone();
        for path in [&mut wanted.stdin, &mut wanted.stdout, &mut wanted.stderr] {
            if path.contains("://") {
                path.clear();
            }
        }
        if wanted.stdout.is_empty() && wanted.stdin.is_empty() {
            return Err(Error::failed_precondition(
                "the task has no stdio to attach to",
            ));
        }
        let terminal = if wanted.terminal {
            Some(Terminal::find()?)
        } else {
            None
        };
        let streams = Streams::open(&wanted)?;
        Ok(Self {
            paths: wanted,
            fifos: None,
            streams: Some(streams),
            held: false,
            terminal,
        })
    }

    /// The streams of a process that runs already, from its shim.
    pub(crate) async fn attach_to(target: &Target, paths: &StdioPaths) -> Result<Self> {
        let attached = target.attach().await?;
        let terminal = if attached.terminal {
            Some(Terminal::find()?)
        } else {
            None
        };
        Ok(Self {
            paths: paths.clone(),
            fifos: None,
            streams: Some(attached.into()),
            held: false,
            terminal,
        })
    }

    /// Where the process's stdio goes.
    pub(crate) fn paths(&self) -> StdioPaths {
        self.paths.clone()
    }

    /// Lets the process go on without us; somebody may attach to it later.
    pub(crate) fn leave(self) {
        if let Some(fifos) = self.fifos {
            fifos.keep();
        }
    }

    /// The start failed: the pipes stay when it may have happened all the same.
    pub(crate) fn unstarted(self, failure: Failure) -> Failure {
        if failure.started {
            self.leave();
        }
        failure
    }
}

/// Streams that the shim keeps.
fn held(terminal: bool) -> StdioPaths {
    StdioPaths {
        stdin: HELD.to_owned(),
        stdout: HELD.to_owned(),
        stderr: if terminal { "" } else { HELD }.to_owned(),
        terminal,
    }
}

/// A process: the init of a task, or an exec.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) tasks: Tasks,
    pub(crate) id: ContainerId,
    pub(crate) exec: Option<ExecId>,
}

impl Target {
    async fn attach(&self) -> Result<Attached> {
        let exec = self.exec.as_ref();
        self.tasks.attach(&self.id, exec, Wanted::ALL).await
    }

    async fn resize(&self, terminal: &Terminal) {
        let done = match terminal.size() {
            Ok(size) => self.tasks.resize(&self.id, self.exec.as_ref(), size).await,
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => {}
            Err(error) if error.is_not_found() => tracing::debug!(%error, "resize pty"),
            Err(error) => tracing::error!(%error, "resize pty"),
        }
    }
}

/// Why a process did not run to its end before our eyes.
#[derive(Debug)]
pub(crate) struct Failure {
    /// It was started and may run on, or nobody knows: nothing that it needs may be removed.
    pub(crate) started: bool,
    pub(crate) error: Error,
}

impl Failure {
    fn after_start(error: Error) -> Self {
        Self {
            started: true,
            error,
        }
    }
}

impl From<Error> for Failure {
    /// Of a step before the process ran. A call that took too long, or whose daemon went away over it,
    /// may be fulfilled all the same.
    fn from(error: Error) -> Self {
        Self {
            started: error.is(Code::DeadlineExceeded) || is_lost(&error),
            error,
        }
    }
}

/// Starts a process that goes on without us.
pub(crate) async fn start_detached(
    target: &Target,
    io: Io,
    mut signals: Signals,
) -> Result<u8, Failure> {
    let start = target.tasks.start(&target.id, target.exec.as_ref());
    match signals.unless_interrupted(start).await {
        Ok(_) => {
            io.leave();
            Ok(0)
        }
        Err(failure) => Err(io.unstarted(failure)),
    }
}

/// A process that we follow to its end.
#[derive(Debug)]
pub(crate) struct Session {
    target: Target,
    io: Io,
    wait: JoinHandle<Result<Exited>>,
    signals: Signals,
}

impl Session {
    pub(crate) fn new(
        target: Target,
        io: Io,
        wait: JoinHandle<Result<Exited>>,
        signals: Signals,
    ) -> Self {
        Self {
            target,
            io,
            wait,
            signals,
        }
    }

    /// Starts the process and follows it: copies streams, passes on signals or the terminal's size,
    /// until it has ended and its output is drained.
    pub(crate) async fn run(mut self, start: bool) -> Result<Exited, Failure> {
        if let Some(terminal) = &mut self.io.terminal {
            terminal.make_raw()?;
        }
        if start {
            let (tasks, exec) = (&self.target.tasks, self.target.exec.as_ref());
            let start = tasks.start(&self.target.id, exec);
            if let Err(failure) = self.signals.unless_interrupted(start).await {
                return Err(self.io.unstarted(failure));
            }
        }
        if self.io.held {
            let attached = self.target.attach().await;
            self.io.streams = Some(attached.map_err(Failure::after_start)?.into());
        }
        // Only now: what a runtime that failed to start it said there is in the error already.
        let (input, mut output) = self.copy();
        if let Some(terminal) = &self.io.terminal {
            self.target.resize(terminal).await;
        }
        let feeding = input.map(|input| tokio::spawn(feed(self.target.clone(), input)));
        let exited = self.follow(output.as_mut()).await;
        if let Some(feeding) = feeding {
            feeding.abort();
        }
        match exited {
            Ok(exited) => {
                // How it ended is known all the same.
                if let Some(output) = output
                    && let Err(error) = output.drain().await
                {
                    tracing::error!(%error, "the output is not complete");
                }
                Ok(exited)
            }
            Err(error) => {
                // It may well run on: whoever attaches finds its pipes.
                self.io.leave();
                Err(Failure {
                    started: true,
                    error,
                })
            }
        }
    }

    fn copy(&mut self) -> (Option<Input>, Option<Output>) {
        match self.io.streams.take() {
            Some(streams) => {
                let (input, output) = streams.copy(tokio::io::stdout(), tokio::io::stderr());
                (input, Some(output))
            }
            None => (None, None),
        }
    }

    async fn follow(&mut self, output: Option<&mut Output>) -> Result<Exited> {
        // In a pipeline without us the process would get this signal itself.
        let refused = async {
            match output {
                Some(output) => output.refused().await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(refused);
        let mut told = false;
        loop {
            tokio::select! {
                exited = &mut self.wait => {
                    return exited.map_err(|e| Error::internal("wait").with_source(e))?;
                }
                Some(number) = self.signals.arrived.recv() => self.pass_on(number).await,
                () = &mut refused, if !told => {
                    told = true;
                    self.pass_on(NO_READER).await;
                }
            }
        }
    }

    async fn pass_on(&self, number: i32) {
        match (&self.io.terminal, number) {
            (Some(terminal), WINDOW_CHANGED) => return self.target.resize(terminal).await,
            (None, WINDOW_CHANGED) => return,
            _ => {}
        }
        let target = &self.target;
        match target
            .tasks
            .kill(&target.id, target.exec.as_ref(), number, false)
            .await
        {
            Ok(()) => {}
            Err(error) if error.is_not_found() => tracing::debug!(number, "not forwarding signal"),
            Err(error) => tracing::error!(%error, number, "forward signal"),
        }
    }
}

/// Copies our standard input into the process; at its end the process sees the end of its own.
async fn feed(target: Target, input: Input) {
    let close = async {
        match target
            .tasks
            .close_stdin(&target.id, target.exec.as_ref())
            .await
        {
            // It ended meanwhile.
            Err(e) if e.is_not_found() => Ok(()),
            other => other,
        }
    };
    if let Err(error) = input.feed(tokio::io::stdin(), close).await {
        tracing::debug!(%error, "standard input");
    }
}

#[cfg(test)]
mod tests;
