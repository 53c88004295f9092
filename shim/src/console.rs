//! A process's terminal: the master side, received from the runtime.
//!
//! ```text
//! fifo or logger of a client <── splice ── master ── hub ──> clients that attach, logs, nobody
//! ```
//! Invariant: the shim holds the master as long as the process record lives; output is pumped until
//! every process has closed the other side, so what was written before the end arrives.

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use sys::fifo::{End, Fifo};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::{JoinHandle, consume_budget};
use tokio::time::{Instant, timeout_at};
use types::{Context as _, Error, Result};

use crate::log;
use crate::logger::Logger;
use crate::stdio::{Base, Format, Hub, Logs, Owner, Paths, Tag, Target, let_go, unread};
use crate::watch::watch;

/// As much as a pipe holds.
const CHUNK: usize = 64 * 1024;
/// For what cannot be spliced; a terminal gives no more at a time.
const BUFFER: usize = 4096;

/// Where the runtime sends the master side. In the bundle, named relatively: paths of sockets are
/// short.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
    name: String,
}

impl ConsoleSocket {
    /// Listens in the bundle.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn bind(bundle: &Path, id: &str) -> Result<Self> {
        let name = format!("pty-{id}.sock");
        let path = bundle.join(&name);
        // Left by an attempt that was killed.
        drop(std::fs::remove_file(&path));
        let dir = sys::fs::open_dir(bundle)?;
        let short = PathBuf::from(format!("/proc/self/fd/{}/{name}", dir.as_raw_fd()));
        let listener = sys::socket::listen(&short, 0o600)?;
        listener
            .set_nonblocking(true)
            .map_err(|e| Error::os("console socket", e))?;
        Ok(Self {
            listener,
            path,
            name,
        })
    }

    /// The name, from within the bundle.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Takes the master. The runtime has sent it before its call was over.
    ///
    /// # Errors
    /// `FailedPrecondition` when the runtime sent nothing.
    pub(crate) fn receive(self) -> Result<OwnedFd> {
        let (stream, _) = self.listener.accept().map_err(|e| match e.kind() {
            ErrorKind::WouldBlock => {
                Error::failed_precondition("the runtime did not send a terminal")
            }
            _ => Error::os("accept console", e),
        })?;
        sys::socket::receive_fd(stream.as_fd()).ctx("receive terminal")
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        // The bundle goes as a whole in any case.
        drop(std::fs::remove_file(&self.path));
    }
}

/// A terminal in use.
#[derive(Debug)]
pub(crate) struct Console {
    master: Arc<AsyncFd<OwnedFd>>,
    output: Output,
    input: Option<JoinHandle<()>>,
    /// The client's fifo for input.
    keyboard: Option<Fifo>,
    /// The client's fifo for output.
    screen: Option<Fifo>,
    logger: Option<Logger>,
    closed: Arc<Notify>,
}

/// What becomes of the output.
#[derive(Debug)]
enum Output {
    /// It is spliced into a client's fifo or a logger's pipe.
    Pumped(JoinHandle<()>),
    /// Clients and logs take it.
    Hub(Arc<Hub>),
}

/// Where output goes. Opened before the process exists, so that a bad path fails early.
#[derive(Debug)]
pub(crate) struct Prepared {
    sink: Sink,
    keyboard: Option<Fifo>,
    screen: Option<Fifo>,
    logger: Option<Logger>,
}

#[derive(Debug)]
enum Sink {
    /// A client's fifo, open for both; waited for when it is full.
    Fifo(OwnedFd),
    /// Everything else.
    Base(Base),
}

impl Prepared {
    /// Opens the client's side of a terminal.
    ///
    /// # Errors
    /// As for streams without one.
    pub(crate) async fn open(paths: &Paths, owner: Owner<'_>) -> Result<Self> {
        let keyboard = match Target::parse(&paths.stdin)? {
            Target::Fifo(path) => Some(Fifo::find(path).ctx("stdin")?),
            Target::Null | Target::Held | Target::File(_) | Target::Cri(_) | Target::Logger(_) => {
                None
            }
        };
        let (mut logger, mut screen) = (None, None);
        let mut logs = Logs::default();
        let sink = match Target::parse(&paths.stdout)? {
            Target::Null => Sink::Base(Base::Discard),
            Target::Held => Sink::Base(Base::Wait),
            Target::File(path) => Sink::Base(logs.open(path, Format::Bare).ctx("stdout")?),
            Target::Cri(path) => Sink::Base(logs.open(path, Format::Cri).ctx("stdout")?),
            Target::Fifo(path) => {
                let fifo = screen.insert(Fifo::find(path).ctx("stdout")?);
                Sink::Fifo(fifo.open_nonblocking(End::Both).ctx("stdout")?)
            }
            Target::Logger(uri) => {
                let (started, ends) =
                    Logger::start(owner.reap, uri, owner.namespace, owner.id).await?;
                logger = Some(started);
                sys::fs::set_nonblocking(&ends.stdout, true)?;
                Sink::Fifo(ends.stdout)
            }
        };
        Ok(Self {
            sink,
            keyboard,
            screen,
            logger,
        })
    }
}

impl Console {
    /// Starts to pump. Within the runtime.
    ///
    /// # Errors
    /// The errno of registering the descriptors.
    pub(crate) fn attach(master: OwnedFd, prepared: Prepared) -> Result<Self> {
        sys::fs::set_nonblocking(&master, true)?;
        let own = master.try_clone().map_err(|e| Error::os("dup", e))?;
        let master = Arc::new(watch(master)?);
        let closed = Arc::new(Notify::new());
        let is_logger = prepared.logger.is_some();
        let output = match prepared.sink {
            Sink::Fifo(fd) => {
                let sink = watch(fd)?;
                let (master, closed) = (Arc::clone(&master), Arc::clone(&closed));
                Output::Pumped(tokio::spawn(async move {
                    pump(&master, &sink, master.get_ref()).await;
                    // A logger's pipe has its one reader; a fifo's reader may be late.
                    if !is_logger {
                        let_go(sink.into_inner(), &closed);
                    }
                }))
            }
            Sink::Base(base) => Output::Hub(Hub::new(own, Tag::Stdout, true, base)),
        };
        // Both ends: a client that detaches is not the end of input.
        let input = prepared.keyboard.as_ref().map(|fifo| {
            let from = watch(fifo.open_nonblocking(End::Both)?)?;
            let master = Arc::clone(&master);
            Ok::<_, Error>(tokio::spawn(async move {
                pump(&from, &master, master.get_ref()).await;
            }))
        });
        Ok(Self {
            master,
            output,
            input: input.transpose()?,
            keyboard: prepared.keyboard,
            screen: prepared.screen,
            logger: prepared.logger,
            closed,
        })
    }

    /// Sets the size.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> Result<()> {
        sys::pty::resize(self.master.get_ref(), columns, rows)
    }

    /// No more input.
    pub(crate) fn close_stdin(&mut self) {
        if let Some(input) = self.input.take() {
            input.abort();
        }
    }

    /// The process has ended.
    pub(crate) fn end(&mut self) {
        self.close_stdin();
        if let Output::Hub(hub) = &self.output {
            hub.flush();
        }
    }

    /// The output, unless it goes where a client or a logger takes it by itself.
    pub(crate) fn hub(&self) -> Option<&Arc<Hub>> {
        match &self.output {
            Output::Hub(hub) => Some(hub),
            Output::Pumped(_) => None,
        }
    }

    /// A client's end of the input: the terminal itself, or the fifo that is pumped into it. None
    /// when there is no more input.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn stdin(&self) -> Result<Option<OwnedFd>> {
        match &self.keyboard {
            Some(fifo) => fifo.open_nonblocking(End::Write).map(Some).or_else(unread),
            None => {
                let master = self.master.get_ref().try_clone();
                master.map(Some).map_err(|e| Error::os("dup terminal", e))
            }
        }
    }

    /// The client's own fifo, for others to take the output from.
    ///
    /// # Errors
    /// The errno.
    pub(crate) fn fifo(&self) -> Result<Option<Arc<Hub>>> {
        let hub = |fifo: &Fifo| {
            let source = fifo.open_nonblocking(End::Read)?;
            Ok(Hub::new(source, Tag::Stdout, false, Base::Wait))
        };
        self.screen.as_ref().map(hub).transpose()
    }

    /// Waits for all output to be delivered, no longer than to `until`, then lets go of everything.
    pub(crate) async fn drain(mut self, until: Instant) {
        self.close_stdin();
        match &mut self.output {
            Output::Hub(hub) => hub.finish(until).await,
            Output::Pumped(output) => {
                if timeout_at(until, &mut *output).await.is_err() {
                    log::warn(format_args!("terminal output is not taken: dropped"));
                }
                output.abort();
            }
        }
        if let Some(logger) = self.logger.take() {
            logger.stop(until).await;
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close_stdin();
        if let Output::Pumped(output) = &self.output {
            output.abort();
        }
        self.closed.notify_waiters();
    }
}

/// Moves bytes until the end of `from`, without copying when the kernel can. `shared`: the one of them
/// whose open description others have as well.
async fn pump(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>, shared: &OwnedFd) {
    let mut copy = false;
    loop {
        let Ok(mut readable) = from.readable().await else {
            return;
        };
        let Ok(mut writable) = to.writable().await else {
            return;
        };
        // What it does when it would wait is in their hands, too.
        sys::fs::set_nonblocking(shared, true).ok();
        let moved = if copy {
            copy_some(from, to).await
        } else {
            sys::pipe::splice(from.get_ref(), to.get_ref(), CHUNK)
        };
        match moved {
            Ok(0) => return,
            Ok(_) => {}
            // Either side may be the one that was not ready, and be so by now: only of the one that is
            // not ready still will the kernel tell when it is.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if !sys::pipe::is_writable(to.get_ref()) {
                    writable.clear_ready();
                } else if !sys::pipe::is_readable(from.get_ref()) {
                    readable.clear_ready();
                }
            }
            Err(e) if e.kind() == ErrorKind::InvalidInput && !copy => copy = true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // A terminal whose other side is closed by all gives EIO: the end.
            Err(_) => return,
        }
        // A process that never stops must not keep the shim from everything else.
        consume_budget().await;
    }
}

/// One buffer from `from`, all of it to `to`.
async fn copy_some(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) -> std::io::Result<usize> {
    let mut buffer = [0; BUFFER];
    let read = sys::pipe::read(from.get_ref(), &mut buffer)?;
    let mut left = &buffer[..read];
    while !left.is_empty() {
        let mut writable = to.writable().await?;
        match writable.try_io(|fd| sys::pipe::write(fd.get_ref(), left)) {
            Ok(written) => left = &left[written?..],
            Err(_not_yet) => {}
        }
    }
    Ok(read)
}

#[cfg(test)]
mod tests;
