//! Standard streams without a terminal.
//!
//! ```text
//! fifo of a client ─── is the process's stream; the shim holds both ends
//! attach:// ───────── a pipe of the shim, whose other end goes to who attaches ┐
//! file://, cri:// ─── a pipe that the shim reads, into a log                   ├─ hub
//! binary:// ───────── pipes to a logger
//! ```
//! A fifo goes to the process as it is: no byte passes through the shim. The shim only keeps both
//! ends of an output open, so that a reader which goes away is neither a signal nor an end for the
//! process, and lets go when the process has ended, so that the reader sees the end.
//!
//! Invariant: after [`Streams::end`] nothing of the shim keeps a reader from seeing end-of-file once
//! a reader is there. Until a client has opened standard input for writing, or said that there is no
//! more, the process does not see end-of-file.

mod hub;
mod logfile;
mod session;
mod target;

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sys::fifo::{End, Fifo};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep};
use types::{Context as _, Error, Result};

use crate::log;
use crate::logger::Logger;
use crate::options::Options;
use crate::reap::Reap;
use crate::runc::ChildIo;

pub(crate) use hub::{Base, Hub};
pub(crate) use logfile::{Format, Tag};
pub(crate) use session::Session;
pub(crate) use target::Target;

use logfile::LogFile;

/// How long an ended process's output waits for a first reader.
const READER_GRACE: Duration = Duration::from_secs(10);
/// Between two looks for a reader.
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// Where a process's streams go, as the client said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Paths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// For whom streams are opened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Owner<'a> {
    pub(crate) reap: &'a Arc<Reap>,
    pub(crate) options: &'a Options,
    pub(crate) namespace: &'a str,
    /// Container id, or exec id.
    pub(crate) id: &'a str,
}

/// The shim's side of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdin: Input,
    /// One descriptor per output fifo, open for both.
    holds: Vec<(Tag, OwnedFd)>,
    /// Outputs that are not the client's fifos: standard output first.
    hubs: Vec<Arc<Hub>>,
    logger: Option<Logger>,
    /// Ends the waiting for readers.
    closed: Arc<Notify>,
}

/// The shim's side of standard input.
#[derive(Debug, Default)]
enum Input {
    /// There is none, or no more.
    #[default]
    None,
    /// The client's fifo.
    Fifo(Stdin),
    /// The write end of a pipe of the shim: no end of input while it is held.
    Held(OwnedFd),
}

/// Keeps end-of-file away until a client has standard input open.
#[derive(Debug)]
struct Stdin {
    fifo: Fifo,
    hold: Option<OwnedFd>,
}

impl Streams {
    /// Opens what the process gets and what the shim keeps.
    ///
    /// # Errors
    /// `NotFound` or `InvalidArgument` for a path that is absent or no fifo, else what failed.
    pub(crate) async fn open(paths: &Paths, owner: Owner<'_>) -> Result<(Self, ChildIo)> {
        let mut streams = Self::default();
        let stdin = streams.open_stdin(&paths.stdin, owner).ctx("stdin")?;
        if let Target::Logger(uri) = Target::parse(&paths.stdout)? {
            let (logger, ends) = Logger::start(owner.reap, uri, owner.namespace, owner.id).await?;
            streams.logger = Some(logger);
            let io = ChildIo {
                stdin,
                stdout: ends.stdout,
                stderr: ends.stderr,
            };
            return Ok((streams, io));
        }
        let (stdout, stderr) = streams.open_outputs(paths, owner)?;
        Ok((
            streams,
            ChildIo {
                stdin,
                stdout,
                stderr,
            },
        ))
    }

    fn open_stdin(&mut self, path: &str, owner: Owner<'_>) -> Result<OwnedFd> {
        match Target::parse(path)? {
            Target::Fifo(path) => {
                let fifo = Fifo::find(path)?;
                let end = fifo.open(End::Read)?;
                own(&end, owner.options)?;
                let mut stdin = Stdin { fifo, hold: None };
                stdin.hold_unless_open();
                self.stdin = Input::Fifo(stdin);
                Ok(end)
            }
            Target::Held => {
                let (read, write) = sys::pipe::new()?;
                own(&read, owner.options)?;
                self.stdin = Input::Held(write);
                Ok(read)
            }
            Target::Null | Target::File(_) | Target::Cri(_) | Target::Logger(_) => {
                sys::process::null()
            }
        }
    }

    fn open_outputs(&mut self, paths: &Paths, owner: Owner<'_>) -> Result<(OwnedFd, OwnedFd)> {
        let mut logs = Logs::default();
        let stdout = self
            .open_output(&paths.stdout, Tag::Stdout, &mut logs, owner)
            .ctx("stdout")?;
        let stderr = match Target::parse(&paths.stderr)? {
            // Entries name their stream, and who attaches can tell the two apart.
            Target::Cri(_) | Target::Held | Target::Null => None,
            Target::Fifo(_) | Target::File(_) | Target::Logger(_) => {
                (paths.stderr == paths.stdout).then(|| stdout.try_clone())
            }
        };
        let stderr = match stderr {
            Some(same) => same.map_err(|e| Error::os("dup", e))?,
            None => self
                .open_output(&paths.stderr, Tag::Stderr, &mut logs, owner)
                .ctx("stderr")?,
        };
        Ok((stdout, stderr))
    }

    fn open_output(
        &mut self,
        address: &str,
        tag: Tag,
        logs: &mut Logs,
        owner: Owner<'_>,
    ) -> Result<OwnedFd> {
        let base = match Target::parse(address)? {
            Target::Null => return sys::process::null(),
            Target::Logger(_) => {
                return Err(Error::invalid_argument(
                    "a logging binary takes stdout and stderr together, its address is stdout's",
                ));
            }
            // Parity: io.go copyPipes appends to a plain file under a bare path.
            Target::Fifo(path) if !address.contains("://") && path.is_file() => {
                logs.open(path, Format::Bare)?
            }
            Target::Fifo(path) => {
                let fifo = Fifo::find(path)?;
                self.holds.push((tag, fifo.open_nonblocking(End::Both)?));
                let end = fifo.open(End::Write)?;
                own(&end, owner.options)?;
                return Ok(end);
            }
            Target::File(path) => logs.open(path, Format::Bare)?,
            Target::Cri(path) => logs.open(path, Format::Cri)?,
            Target::Held => Base::Wait,
        };
        let (read, write) = sys::pipe::new()?;
        own(&write, owner.options)?;
        sys::fs::set_nonblocking(&read, true)?;
        self.hubs.push(Hub::new(read, tag, false, base));
        Ok(write)
    }

    /// Looks again whether a client has opened standard input. For the moment before the process
    /// starts to read.
    pub(crate) fn look_for_stdin(&mut self) {
        if let Input::Fifo(stdin) = &mut self.stdin
            && stdin.hold.is_some()
        {
            stdin.hold_unless_open();
        }
    }

    /// No more input: the process sees end-of-file when the client closes its end too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = Input::None;
    }

    /// The process has ended: readers see the end after the last byte. Returns the logger.
    pub(crate) fn end(&mut self) -> Option<Logger> {
        self.stdin = Input::None;
        for (_, hold) in self.holds.drain(..) {
            let_go(hold, &self.closed);
        }
        for hub in &self.hubs {
            hub.flush();
        }
        self.logger.take()
    }

    /// The outputs that the shim has.
    pub(crate) fn hubs(&self) -> &[Arc<Hub>] {
        &self.hubs
    }

    /// The client's own fifos, for others to take the output from: one for each.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn fifos(&self) -> Result<Vec<Arc<Hub>>> {
        let hub = |(tag, hold): &(Tag, OwnedFd)| {
            let source = sys::fifo::reopen(hold, End::Read)?;
            Ok(Hub::new(source, *tag, false, Base::Wait))
        };
        self.holds.iter().map(hub).collect()
    }

    /// A client's end of standard input; none when there is none or the process has closed its own.
    /// From now on its end is what [`Streams::close_stdin`] says: not that some client goes.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn stdin(&mut self) -> Result<Option<OwnedFd>> {
        let end = match &mut self.stdin {
            Input::None => return Ok(None),
            Input::Held(write) if !sys::pipe::has_reader(&*write) => return Ok(None),
            Input::Fifo(stdin) => stdin.fifo.open_nonblocking(End::Write).and_then(|end| {
                stdin.hold = Some(stdin.fifo.open_nonblocking(End::Write)?);
                Ok(end)
            }),
            Input::Held(write) => sys::fifo::reopen(write, End::Write),
        };
        end.map(Some).or_else(unread)
    }
}

/// No end for a stream that nobody reads.
///
/// # Errors
/// Any other error than `ENXIO`.
pub(crate) fn unread(error: Error) -> Result<Option<OwnedFd>> {
    match error.errno() {
        Some(libc::ENXIO) => Ok(None),
        _ => Err(error),
    }
}

/// Log files of one process: two streams with one path share it.
#[derive(Debug, Default)]
pub(crate) struct Logs(Vec<(PathBuf, Format, Arc<Mutex<LogFile>>)>);

impl Logs {
    /// A log at `path`.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn open(&mut self, path: &Path, format: Format) -> Result<Base> {
        let known = self.0.iter().find(|(p, f, _)| p == path && *f == format);
        if let Some((_, _, file)) = known {
            return Ok(Base::Log(Arc::clone(file)));
        }
        let file = Arc::new(Mutex::new(LogFile::open(path, format)?));
        self.0.push((path.to_owned(), format, Arc::clone(&file)));
        Ok(Base::Log(file))
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.closed.notify_waiters();
    }
}

impl Stdin {
    /// Without a writer anywhere a read gives end-of-file at once: the shim is the writer until a
    /// client is.
    fn hold_unless_open(&mut self) {
        self.hold = None;
        match self.probe() {
            Ok(hold) => self.hold = hold,
            Err(error) => log::warn(format_args!("stdin not kept open: {error}")),
        }
    }

    fn probe(&self) -> Result<Option<OwnedFd>> {
        let read = self.fifo.open_nonblocking(End::Read)?;
        // A read end that has not seen a writer come and go does not tell that there is none.
        drop(self.fifo.open_nonblocking(End::Write)?);
        if sys::pipe::has_writer(&read) {
            return Ok(None);
        }
        Ok(Some(self.fifo.open_nonblocking(End::Write)?))
    }
}

/// Closes the shim's end of an output, at once when somebody reads. A client that opens late must
/// find the last bytes and the end: it gets some time.
pub(crate) fn let_go(hold: OwnedFd, closed: &Arc<Notify>) {
    let Ok(write) = sys::fifo::reopen(&hold, End::Write) else {
        return;
    };
    drop(hold);
    if sys::pipe::has_reader(&write) {
        return;
    }
    let closed = Arc::clone(closed);
    drop(tokio::spawn(async move {
        let until = Instant::now() + READER_GRACE;
        let mut pause = Duration::from_millis(1);
        while Instant::now() < until && !sys::pipe::has_reader(&write) {
            tokio::select! {
                () = closed.notified() => return,
                () = sleep(pause) => pause = (pause * 2).min(LONGEST_PAUSE),
            }
        }
    }));
}

fn own(fd: &OwnedFd, options: &Options) -> Result<()> {
    if options.io_uid == 0 && options.io_gid == 0 {
        return Ok(());
    }
    sys::fs::chown_fd(fd, options.io_uid, options.io_gid)
}

#[cfg(test)]
mod tests;
