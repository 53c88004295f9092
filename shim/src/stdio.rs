//! Standard streams without a terminal.
//!
//! A fifo goes to the process as it is: no byte passes through the shim. The shim only keeps both
//! ends of an output open, so that a reader which goes away is neither a signal nor an end for the
//! process, and lets go when the process has ended, so that the reader sees the end.
//!
//! Invariant: after [`Streams::end`] nothing of the shim keeps a reader from seeing end-of-file once
//! a reader is there. Until a client has opened standard input for writing, or said that there is no
//! more, the process does not see end-of-file.

use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
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

/// A stream's address.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Target<'a> {
    /// `/dev/null`.
    Null,
    /// A fifo that the client made.
    Fifo(&'a Path),
    /// A log file, appended to.
    File(&'a Path),
    /// A logger, with the whole address.
    Logger(&'a str),
}

impl<'a> Target<'a> {
    /// What an address means.
    ///
    /// # Errors
    /// `NotImplemented` for an unknown scheme, `InvalidArgument` for a relative path.
    pub(crate) fn parse(text: &'a str) -> Result<Self> {
        if text.is_empty() {
            return Ok(Self::Null);
        }
        let (scheme, path) = text.split_once("://").unwrap_or(("fifo", text));
        match scheme {
            "binary" | "binary-v2" => return Ok(Self::Logger(text)),
            "fifo" | "file" => {}
            _ => {
                return Err(Error::not_implemented(format_args!(
                    "stdio scheme {scheme:?}"
                )));
            }
        }
        let path = Path::new(path);
        if !path.is_absolute() {
            return Err(Error::invalid_argument(format_args!("stdio path {text:?}")));
        }
        Ok(if scheme == "file" {
            Self::File(path)
        } else {
            Self::Fifo(path)
        })
    }
}

/// The shim's side of a process's streams.
#[derive(Debug, Default)]
pub(crate) struct Streams {
    stdin: Option<Stdin>,
    /// One descriptor per output fifo, open for both.
    holds: Vec<OwnedFd>,
    logger: Option<Logger>,
    /// Ends the waiting for readers.
    closed: Arc<Notify>,
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
        let stdout = streams.open_output(&paths.stdout, owner).ctx("stdout")?;
        let stderr = if paths.stderr == paths.stdout {
            stdout.try_clone().map_err(|e| Error::os("dup", e))?
        } else {
            streams.open_output(&paths.stderr, owner).ctx("stderr")?
        };
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
        let Target::Fifo(path) = Target::parse(path)? else {
            return sys::process::null();
        };
        let fifo = Fifo::find(path)?;
        let end = fifo.open(End::Read)?;
        own(&end, owner.options)?;
        let mut stdin = Stdin { fifo, hold: None };
        stdin.hold_unless_open();
        self.stdin = Some(stdin);
        Ok(end)
    }

    fn open_output(&mut self, address: &str, owner: Owner<'_>) -> Result<OwnedFd> {
        match Target::parse(address)? {
            Target::Null => sys::process::null(),
            Target::File(path) => open_file(path),
            Target::Logger(_) => Err(Error::invalid_argument(
                "a logging binary takes stdout and stderr together, its address is stdout's",
            )),
            // Parity: io.go copyPipes appends to a plain file under a bare path.
            Target::Fifo(path) if !address.contains("://") && path.is_file() => open_file(path),
            Target::Fifo(path) => {
                let fifo = Fifo::find(path)?;
                self.holds.push(fifo.open_nonblocking(End::Both)?);
                let end = fifo.open(End::Write)?;
                own(&end, owner.options)?;
                Ok(end)
            }
        }
    }

    /// Looks again whether a client has opened standard input. For the moment before the process
    /// starts to read.
    pub(crate) fn look_for_stdin(&mut self) {
        if let Some(stdin) = self.stdin.as_mut().filter(|stdin| stdin.hold.is_some()) {
            stdin.hold_unless_open();
        }
    }

    /// No more input: the process sees end-of-file when the client closes its end too.
    pub(crate) fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// The process has ended: readers see the end after the last byte. Returns the logger.
    pub(crate) fn end(&mut self) -> Option<Logger> {
        self.stdin = None;
        for hold in self.holds.drain(..) {
            let_go(hold, &self.closed);
        }
        self.logger.take()
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

pub(crate) fn open_file(path: &Path) -> Result<OwnedFd> {
    let failed = |e| Error::os(format_args!("open {}", path.display()), e);
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    let mut options = std::fs::OpenOptions::new();
    let file = options
        .append(true)
        .create(true)
        .mode(0o644)
        .open(path)
        .map_err(failed)?;
    Ok(file.into())
}

#[cfg(test)]
mod tests;
