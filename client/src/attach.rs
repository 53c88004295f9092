//! Attaching to a process: its streams' descriptors, straight from the shim.
//!
//! ```text
//! daemon: where is the shim? ──> shim: Stdio.Attach ──> descriptors ──> read and write, alone
//!                                            └─ line: "read this one instead", "you are too slow"
//! ```
//! Invariant: from the answer on the daemon may go and come; this ends with the shim or when all parts
//! are dropped. When the shim wants a descriptor back no byte is read from it any more before that is
//! said. The protocol is in docs/attach.md.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use protos::frame;
use protos::services::attach as daemon;
use protos::shim::stdio as api;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use types::{ContainerId, Error, ExecId, Namespace, Result};

use crate::Tasks;
use crate::call::done;
use crate::shim;

/// Messages of the line.
const SWITCH: u8 = b'S';
const RELEASED: u8 = b'R';
const CUT: u8 = b'C';
/// What a stream is called on the line.
const STDOUT: u8 = 2;
const STDERR: u8 = 3;

/// Streams to attach to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Write to the process.
    pub stdin: bool,
    /// Read its output.
    pub stdout: bool,
    /// Read its errors.
    pub stderr: bool,
}

impl Wanted {
    /// All that there are.
    pub const ALL: Self = Self {
        stdin: true,
        stdout: true,
        stderr: true,
    };
}

/// The streams of a process. Dropping a part closes it; dropping all of them detaches.
#[derive(Debug)]
pub struct Attached {
    /// The process has a terminal: input and output are its master, or pumped from it.
    pub terminal: bool,
    /// Our end of its input, when it has one.
    pub stdin: Option<Writer>,
    /// Our end of its output.
    pub stdout: Option<Reader>,
    /// Our end of its errors.
    pub stderr: Option<Reader>,
}

impl Tasks {
    /// Attaches to a process of a task.
    ///
    /// # Errors
    /// `NotFound` for the process, `NotImplemented` when daemon or shim cannot do this,
    /// `FailedPrecondition` for a process without streams, `Unavailable` when another client does not
    /// share one.
    pub async fn attach(
        &self,
        id: &ContainerId,
        exec: Option<&ExecId>,
        wanted: Wanted,
    ) -> Result<Attached> {
        let address = self.endpoint(id).await?;
        let request = api::AttachRequest {
            id: id.to_string(),
            exec_id: exec.map(ToString::to_string).unwrap_or_default(),
            stdin: wanted.stdin,
            stdout: wanted.stdout,
            stderr: wanted.stderr,
            ..Default::default()
        };
        attach(&address, &self.caller().scope().namespace, &request).await
    }

    /// Lets the shim close the log files of a process and open them again by their paths. After a
    /// rotation the old file is complete when this is answered.
    ///
    /// # Errors
    /// `NotFound` for the process, `NotImplemented` when daemon or shim cannot do this,
    /// `FailedPrecondition` for a process without logs.
    pub async fn reopen_logs(&self, id: &ContainerId, exec: Option<&ExecId>) -> Result<()> {
        let address = self.endpoint(id).await?;
        reopen_logs(&address, &self.caller().scope().namespace, id, exec).await
    }

    /// Where the shim of a task listens.
    async fn endpoint(&self, id: &ContainerId) -> Result<String> {
        let message = daemon::EndpointRequest {
            container_id: id.to_string(),
            ..Default::default()
        };
        let mut stub = grpc::attach::AttachClient::new(self.caller().channel());
        let found = done(stub.endpoint(self.caller().request(message)?).await)?;
        Ok(found.address)
    }
}

/// Reopens logs at the shim that listens at `address`.
///
/// # Errors
/// As [`Tasks::reopen_logs`]; `Unavailable` when nobody listens there.
pub async fn reopen_logs(
    address: &str,
    namespace: &Namespace,
    id: &ContainerId,
    exec: Option<&ExecId>,
) -> Result<()> {
    let request = api::ReopenLogsRequest {
        id: id.to_string(),
        exec_id: exec.map(ToString::to_string).unwrap_or_default(),
        ..Default::default()
    };
    let (response, _) = shim::ask(address, namespace, "ReopenLogs", &request).await?;
    frame::answer::<protos::well_known::Empty>(&response).map(drop)
}

/// Attaches at the shim that listens at `address`.
///
/// # Errors
/// As [`Tasks::attach`]; `Unavailable` when nobody listens there.
pub async fn attach(
    address: &str,
    namespace: &Namespace,
    request: &api::AttachRequest,
) -> Result<Attached> {
    let (response, fds) = shim::ask(address, namespace, "Attach", request).await?;
    let answer: api::AttachResponse = frame::answer(&response)?;
    if answer.streams.len() != fds.len() {
        return Err(Error::internal(format_args!(
            "{} descriptors for {} streams",
            fds.len(),
            answer.streams.len()
        )));
    }
    let mut attached = Attached {
        terminal: answer.terminal,
        stdin: None,
        stdout: None,
        stderr: None,
    };
    let mut streams = answer.streams.iter().map(protos::EnumOrUnknown::enum_value);
    let mut fds = fds.into_iter();
    let (Some(Ok(api::Stream::CONTROL)), Some(line)) = (streams.next(), fds.next()) else {
        return Err(Error::internal("answer without a line"));
    };
    let line = Line::new(line)?;
    for (stream, fd) in streams.zip(fds) {
        sys::fs::set_nonblocking(&fd, true)?;
        match stream {
            Ok(api::Stream::STDIN) => attached.stdin = Some(Writer::new(fd, &line)?),
            Ok(api::Stream::STDOUT) => attached.stdout = Some(Reader::new(fd, STDOUT, &line)?),
            Ok(api::Stream::STDERR) => attached.stderr = Some(Reader::new(fd, STDERR, &line)?),
            // Of a later version; not asked for.
            Ok(api::Stream::CONTROL) | Err(_) => {}
        }
    }
    line.follow();
    Ok(attached)
}

/// What the shim and we say to each other while we are attached.
#[derive(Debug)]
struct Line {
    fd: AsyncFd<OwnedFd>,
    /// A part that was dropped has closed its descriptor.
    slots: Mutex<Vec<Weak<Slot>>>,
    follower: Mutex<Option<JoinHandle<()>>>,
}

impl Line {
    fn new(fd: OwnedFd) -> Result<Arc<Self>> {
        Ok(Arc::new(Self {
            fd: watched(fd)?,
            slots: Mutex::new(Vec::new()),
            follower: Mutex::new(None),
        }))
    }

    /// Obeys from now on.
    fn follow(self: &Arc<Self>) {
        let line = Arc::downgrade(self);
        let fd = self.fd.get_ref().try_clone();
        let follower = tokio::spawn(async move {
            let Ok(Ok(fd)) = fd.map(watched) else { return };
            loop {
                let Ok(mut ready) = fd.readable().await else {
                    return;
                };
                let mut message = [0; 16];
                let got = ready.try_io(|fd| sys::socket::receive(fd, &mut message));
                let Some(line) = line.upgrade() else { return };
                match got {
                    Ok(Ok((2.., fds))) => line.obey(message[0], message[1], fds),
                    // Of a later version.
                    Ok(Ok((1, _))) | Err(_) => {}
                    // The shim is gone: streams end by themselves.
                    Ok(Ok((0, _)) | Err(_)) => return,
                }
            }
        });
        *lock(&self.follower) = Some(follower);
    }

    fn released(&self, stream: u8) {
        // A shim that is gone does not want to know.
        sys::socket::send(&self.fd, &[RELEASED, stream], &[]).ok();
    }

    fn obey(&self, message: u8, stream: u8, fds: Vec<OwnedFd>) {
        let slot = lock(&self.slots)
            .iter()
            .filter_map(Weak::upgrade)
            .find(|slot| slot.stream == stream);
        match (message, slot, fds.into_iter().next()) {
            (SWITCH, Some(slot), Some(next)) => {
                let next = sys::fs::set_nonblocking(&next, true).and_then(|()| watched(next));
                match next {
                    Ok(next) => slot.replace(Some(Arc::new(next))),
                    Err(error) => {
                        tracing::warn!(%error, "stream is lost");
                        slot.replace(None);
                    }
                }
                self.released(stream);
            }
            // Not read any more: the shim need not wait.
            (SWITCH, None, _) => self.released(stream),
            (CUT, Some(slot), _) => {
                tracing::warn!("the stream was cut off: it was not read in time");
                slot.replace(None);
            }
            _ => {}
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(follower) = lock(&self.follower).take() {
            follower.abort();
        }
    }
}

/// The descriptor that a stream is read from at the moment; none when it was cut off.
#[derive(Debug)]
struct Slot {
    stream: u8,
    current: Mutex<Option<Arc<AsyncFd<OwnedFd>>>>,
    changed: watch::Sender<()>,
}

impl Slot {
    fn replace(&self, next: Option<Arc<AsyncFd<OwnedFd>>>) {
        *lock(&self.current) = next;
        self.changed.send_replace(());
    }
}

/// Our end of an output.
#[derive(Debug)]
pub struct Reader {
    slot: Arc<Slot>,
    changed: watch::Receiver<()>,
    _line: Arc<Line>,
}

impl Reader {
    fn new(fd: OwnedFd, stream: u8, line: &Arc<Line>) -> Result<Self> {
        let slot = Arc::new(Slot {
            stream,
            current: Mutex::new(Some(Arc::new(watched(fd)?))),
            changed: watch::Sender::new(()),
        });
        lock(&line.slots).push(Arc::downgrade(&slot));
        Ok(Self {
            changed: slot.changed.subscribe(),
            slot,
            _line: Arc::clone(line),
        })
    }

    /// Reads what is there, or waits for it. Zero is the end. Safe to cancel.
    ///
    /// # Errors
    /// Of reading; `TimedOut` when the shim cut us off because we did not read in time.
    pub async fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let Some(fd) = lock(&self.slot.current).clone() else {
                return Err(ErrorKind::TimedOut.into());
            };
            let mut ready = tokio::select! {
                ready = fd.readable() => ready?,
                // The sender lives in our slot.
                _ = self.changed.changed() => continue,
            };
            let current = lock(&self.slot.current);
            if !current.as_ref().is_some_and(|now| Arc::ptr_eq(now, &fd)) {
                continue;
            }
            match ready.try_io(|fd| sys::pipe::read(fd.get_ref(), buffer)) {
                // A terminal that nobody has open any more.
                Ok(Err(e)) if e.raw_os_error() == Some(EIO) => return Ok(0),
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(done) => return done,
                Err(_not_yet) => {}
            }
        }
    }
}

/// `EIO`.
const EIO: i32 = 5;

/// Our end of the input.
#[derive(Debug)]
pub struct Writer {
    fd: AsyncFd<OwnedFd>,
    _line: Arc<Line>,
}

impl Writer {
    fn new(fd: OwnedFd, line: &Arc<Line>) -> Result<Self> {
        Ok(Self {
            fd: watched(fd)?,
            _line: Arc::clone(line),
        })
    }

    /// Writes all of it. Closing our end is not the end of input: that is said to the daemon.
    ///
    /// # Errors
    /// Of writing.
    pub async fn write_all(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut ready = self.fd.writable().await?;
            match ready.try_io(|fd| sys::pipe::write(fd.get_ref(), bytes)) {
                Ok(Err(e)) if e.kind() == ErrorKind::Interrupted => {}
                Ok(written) => bytes = &bytes[written?..],
                Err(_not_yet) => {}
            }
        }
        Ok(())
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe for types that lie about their descriptor; ours own theirs"
)]
fn watched<T: AsRawFd>(fd: T) -> Result<AsyncFd<T>> {
    AsyncFd::new(fd).map_err(|e| Error::os("watch descriptor", e))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd as _;
    use tokio::io::Interest;

    #[tokio::test]
    async fn a_dropped_part_is_closed_and_keeps_nobody_waiting() {
        let (shim, ours) = sys::socket::message_pair().unwrap();
        let line = Line::new(ours).unwrap();
        line.follow();
        let (read, write) = sys::pipe::new().unwrap();
        sys::fs::set_nonblocking(&read, true).unwrap();
        let reader = Reader::new(read, STDOUT, &line).unwrap();
        assert!(sys::pipe::has_reader(&write));
        drop(reader);
        // A child of another test may have a copy of it for a moment.
        let begun = std::time::Instant::now();
        while sys::pipe::has_reader(&write) {
            assert!(begun.elapsed() < std::time::Duration::from_secs(60));
            std::thread::yield_now();
        }
        let (next, _write) = sys::pipe::new().unwrap();
        sys::socket::send(&shim, &[SWITCH, STDOUT], &[next.as_fd()]).unwrap();
        let shim = watched(shim).unwrap();
        let mut message = [0; 16];
        let (length, _) = shim
            .async_io(Interest::READABLE, |shim| {
                sys::socket::receive(shim, &mut message)
            })
            .await
            .unwrap();
        assert_eq!(message[..length], [RELEASED, STDOUT]);
    }
}
