//! A process's terminal: the master side, received from the runtime, pumped with splice.
//!
//! Invariant: the shim holds the master as long as the process record lives; output is pumped until
//! every process has closed the other side, so what was written before the end arrives.

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sys::fifo::{End, Fifo};
use tokio::io::unix::AsyncFd;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use types::{Context as _, Error, Result};

use crate::log;
use crate::logger::Logger;
use crate::stdio::{Owner, Paths, Target, let_go, open_file};
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
    output: JoinHandle<()>,
    input: Option<JoinHandle<()>>,
    logger: Option<Logger>,
    closed: Arc<Notify>,
}

/// Where output goes. Opened before the process exists, so that a bad path fails early.
#[derive(Debug)]
pub(crate) struct Prepared {
    sink: Sink,
    input: Option<OwnedFd>,
    logger: Option<Logger>,
}

#[derive(Debug)]
enum Sink {
    /// A client's fifo, open for both; waited for when it is full.
    Fifo(OwnedFd),
    /// Anything that takes what it is given.
    Plain(OwnedFd),
}

impl Prepared {
    /// Opens the client's side of a terminal.
    ///
    /// # Errors
    /// As for streams without one.
    pub(crate) async fn open(paths: &Paths, owner: Owner<'_>) -> Result<Self> {
        let input = match Target::parse(&paths.stdin)? {
            Target::Fifo(path) => {
                // Both ends: a client that detaches is not the end of input.
                Some(
                    Fifo::find(path)
                        .and_then(|f| f.open_nonblocking(End::Both))
                        .ctx("stdin")?,
                )
            }
            _ => None,
        };
        let mut logger = None;
        let sink = match Target::parse(&paths.stdout)? {
            Target::Null => Sink::Plain(sys::process::null()?),
            Target::File(path) => Sink::Plain(open_file(path)?),
            Target::Fifo(path) => Sink::Fifo(
                Fifo::find(path)
                    .and_then(|f| f.open_nonblocking(End::Both))
                    .ctx("stdout")?,
            ),
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
            input,
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
        let master = Arc::new(watch(master)?);
        let closed = Arc::new(Notify::new());
        let is_logger = prepared.logger.is_some();
        let output = match prepared.sink {
            Sink::Fifo(fd) => {
                let sink = watch(fd)?;
                let (master, closed) = (Arc::clone(&master), Arc::clone(&closed));
                tokio::spawn(async move {
                    pump(&master, &sink).await;
                    // A logger's pipe has its one reader; a fifo's reader may be late.
                    if !is_logger {
                        let_go(sink.into_inner(), &closed);
                    }
                })
            }
            Sink::Plain(fd) => {
                let master = Arc::clone(&master);
                tokio::spawn(async move { pump_plain(&master, &fd).await })
            }
        };
        let input = prepared.input.map(watch).transpose()?.map(|from| {
            let master = Arc::clone(&master);
            tokio::spawn(async move { pump(&from, &master).await })
        });
        Ok(Self {
            master,
            output,
            input,
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

    /// Waits until all output is delivered, at most `limit`, then lets go of everything.
    pub(crate) async fn drain(mut self, limit: Duration) {
        self.close_stdin();
        if timeout(limit, &mut self.output).await.is_err() {
            log::warn(format_args!("terminal output is not taken: dropped"));
        }
        if let Some(logger) = self.logger.take() {
            self.output.abort();
            logger.stop(limit).await;
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.close_stdin();
        self.output.abort();
        self.closed.notify_waiters();
    }
}

/// Moves bytes until the end of `from`, without copying when the kernel can.
async fn pump(from: &AsyncFd<OwnedFd>, to: &AsyncFd<OwnedFd>) {
    let mut copy = false;
    loop {
        let Ok(mut readable) = from.readable().await else {
            return;
        };
        let Ok(mut writable) = to.writable().await else {
            return;
        };
        let moved = if copy {
            copy_some(from, to).await
        } else {
            sys::pipe::splice(from.get_ref(), to.get_ref(), CHUNK)
        };
        match moved {
            Ok(0) => return,
            Ok(_) => {}
            // Either side may be the one that is not ready.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {
                if sys::pipe::is_readable(from.get_ref()) {
                    writable.clear_ready();
                } else {
                    readable.clear_ready();
                }
            }
            Err(e) if e.kind() == ErrorKind::InvalidInput && !copy => copy = true,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            // A terminal whose other side is closed by all gives EIO: the end.
            Err(_) => return,
        }
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

/// To a file or `/dev/null`: they are always ready.
async fn pump_plain(from: &AsyncFd<OwnedFd>, to: &OwnedFd) {
    let mut buffer = [0; BUFFER];
    loop {
        let Ok(mut readable) = from.readable().await else {
            return;
        };
        let read = match readable.try_io(|fd| sys::pipe::read(fd.get_ref(), &mut buffer)) {
            Ok(Ok(0) | Err(_)) => return,
            Ok(Ok(read)) => read,
            Err(_not_yet) => continue,
        };
        let mut left = &buffer[..read];
        while let Ok(written @ 1..) = sys::pipe::write(to, left) {
            left = &left[written..];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::options::Options;
    use crate::reap::Reap;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(work)
    }

    fn fifo(dir: &Path, name: &str) -> (String, OwnedFd) {
        let path = dir.join(name);
        let hold = Fifo::make(&path, 0o600)
            .unwrap()
            .open_nonblocking(End::Both)
            .unwrap();
        (path.display().to_string(), hold)
    }

    async fn prepare(paths: &Paths) -> Result<Prepared> {
        let reap = Arc::new(Reap::default());
        let options = Options::default();
        let owner = Owner {
            reap: &reap,
            options: &options,
            namespace: "ns",
            id: "c1",
        };
        Prepared::open(paths, owner).await
    }

    #[test]
    fn both_directions_flow_and_the_last_bytes_arrive() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let (stdin, client_in) = fifo(dir.path(), "in");
            let (stdout, _hold) = fifo(dir.path(), "out");
            let paths = Paths {
                stdin,
                stdout: stdout.clone(),
                terminal: true,
                ..Paths::default()
            };
            let prepared = prepare(&paths).await.unwrap();
            let (master, peer) = sys::pty::open().unwrap();
            let _modes = sys::pty::make_raw(&peer).unwrap();
            let console = Console::attach(master, prepared).unwrap();
            console.resize(100, 30).unwrap();
            assert_eq!(sys::pty::size(&peer).unwrap(), (100, 30));
            let mut client_in = File::from(client_in);
            client_in.write_all(b"typed").unwrap();
            let peer_watch = watch(peer.try_clone().unwrap()).unwrap();
            drop(peer_watch.readable().await.unwrap());
            let mut typed = [0; 5];
            let mut process = File::from(peer);
            process.read_exact(&mut typed).unwrap();
            assert_eq!(&typed, b"typed");
            drop(peer_watch);
            let reader = Fifo::find(Path::new(&stdout)).unwrap();
            let reader = reader.open_nonblocking(End::Read).unwrap();
            process.write_all(&[b'x'; 3000]).unwrap();
            drop(process);
            console.drain(Duration::from_secs(20)).await;
            let mut got = [0; 4096];
            assert_eq!(sys::pipe::read(&reader, &mut got).unwrap(), 3000);
        });
    }

    #[test]
    fn a_file_takes_the_output_of_a_terminal() {
        block_on(async {
            let dir = tempfile::tempdir().unwrap();
            let file = dir.path().join("log");
            let stdout = format!("file://{}", file.display());
            let prepared = prepare(&Paths {
                stdout,
                ..Paths::default()
            })
            .await
            .unwrap();
            let (master, peer) = sys::pty::open().unwrap();
            let console = Console::attach(master, prepared).unwrap();
            File::from(peer).write_all(b"line\n").unwrap();
            console.drain(Duration::from_secs(20)).await;
            assert_eq!(std::fs::read(file).unwrap(), b"line\r\n");
        });
    }

    #[test]
    fn a_runtime_that_sends_nothing_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(dir.path(), "c1").unwrap();
        assert!(dir.path().join(socket.name()).exists());
        let error = socket.receive().unwrap_err();
        assert!(error.is(types::Code::FailedPrecondition), "{error}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn the_master_is_received() {
        let dir = tempfile::tempdir().unwrap();
        let socket = ConsoleSocket::bind(dir.path(), "c1").unwrap();
        let path = dir.path().join(socket.name());
        let (master, peer) = sys::pty::open().unwrap();
        let stream = std::os::unix::net::UnixStream::connect(path).unwrap();
        sys::socket::send_fds(&stream, b"/dev/pts/1", &[master.as_fd()]).unwrap();
        drop((stream, master));
        let master = socket.receive().unwrap();
        sys::pty::resize(&master, 10, 20).unwrap();
        assert_eq!(sys::pty::size(&peer).unwrap(), (10, 20));
    }
}
