//! Running a shim's short actions (`start`, `delete`, `-info`, `-v`) from asynchronous code.
//!
//! Invariant: the child never outlives the future that waits for it: deadline and cancellation kill
//! and reap it. What it writes is bounded.

use std::future::Future as _;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use recorder::On;
use sys::process::{Child, Spawn, Status};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::unix::pipe;
use types::{Error, Result};

/// A shim's answer is at most this long (the limit that Go shims set for the other direction).
const LIMIT: usize = 1 << 20;

/// What the action left.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) status: Status,
    pub(crate) stdout: Vec<u8>,
    /// Empty when both streams were asked for as one.
    pub(crate) stderr: Vec<u8>,
}

/// Where standard error goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stderr {
    /// Into `stdout`, in the order written.
    Merged,
    /// Apart.
    Apart,
}

/// Runs to the end.
///
/// # Errors
/// As [`Spawn::spawn`]; `DeadlineExceeded` and `ResourceExhausted` after the child was killed.
pub(crate) async fn run(
    spawn: Spawn,
    input: &[u8],
    stderr: Stderr,
    deadline: Duration,
) -> Result<Ran> {
    let (their_in, our_in) = sys::pipe::new()?;
    let (our_out, their_out) = sys::pipe::new()?;
    let (our_err, their_err) = match stderr {
        Stderr::Merged => {
            let copy = their_out.try_clone().map_err(|e| Error::os("dup", e))?;
            (None, copy)
        }
        Stderr::Apart => {
            let (ours, theirs) = sys::pipe::new()?;
            (Some(ours), theirs)
        }
    };
    let (mut out, mut err) = (Sink::open(Some(our_out))?, Sink::open(our_err)?);
    let feed = sender(our_in)?;
    let child = spawn
        .stdin(their_in)
        .stdout(their_out)
        .stderr(their_err)
        .spawn()?;
    let _running = recorder::stage("process", || On::Process(child.pid()));
    let mut child = Guard::new(child)?;
    let work = async {
        let fed = write_all(feed, input);
        tokio::pin!(fed);
        let mut feeding = true;
        loop {
            tokio::select! {
                () = &mut fed, if feeding => feeding = false,
                read = out.read(), if out.is_open() => read?,
                read = err.read(), if err.is_open() => read?,
                status = child.ended() => return status,
            }
        }
    };
    let status = tokio::time::timeout(deadline, work)
        .await
        .map_err(|_| Error::deadline_exceeded(""))??;
    child.reaped();
    out.drain().await?;
    err.drain().await?;
    Ok(Ran {
        status,
        stdout: out.bytes,
        stderr: err.bytes,
    })
}

fn sender(fd: OwnedFd) -> Result<pipe::Sender> {
    sys::fs::set_nonblocking(&fd, true)?;
    pipe::Sender::from_owned_fd(fd).map_err(|e| Error::os("register pipe", e))
}

async fn write_all(mut feed: pipe::Sender, input: &[u8]) {
    // A child that does not want its input closes the pipe: its affair.
    drop(feed.write_all(input).await);
}

/// Collects one stream.
struct Sink {
    pipe: Option<pipe::Receiver>,
    bytes: Vec<u8>,
}

impl Sink {
    fn open(fd: Option<OwnedFd>) -> Result<Self> {
        let pipe = fd
            .map(|fd| {
                sys::fs::set_nonblocking(&fd, true)?;
                pipe::Receiver::from_owned_fd(fd).map_err(|e| Error::os("register pipe", e))
            })
            .transpose()?;
        Ok(Self {
            pipe,
            bytes: Vec::new(),
        })
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    async fn read(&mut self) -> Result<()> {
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut chunk = [0; 4096];
        let read = pipe
            .read(&mut chunk)
            .await
            .map_err(|e| Error::os("read", e))?;
        if read == 0 {
            self.pipe = None;
        }
        self.bytes.extend_from_slice(&chunk[..read]);
        if self.bytes.len() > LIMIT {
            return Err(Error::resource_exhausted(format_args!(
                "output of more than {LIMIT} bytes"
            )));
        }
        Ok(())
    }

    /// Takes what is there without waiting: a grandchild may hold the pipe open for ever.
    async fn drain(&mut self) -> Result<()> {
        while self.is_open() {
            let mut read = std::pin::pin!(self.read());
            let step = std::future::poll_fn(|cx| match Pin::as_mut(&mut read).poll(cx) {
                Poll::Ready(done) => Poll::Ready(Some(done)),
                Poll::Pending => Poll::Ready(None),
            });
            match step.await {
                Some(done) => done?,
                None => break,
            }
        }
        Ok(())
    }
}

/// Kills and reaps unless the child was reaped already.
struct Guard {
    watch: AsyncFd<OwnedFd>,
    child: Option<Child>,
}

impl Guard {
    fn new(child: Child) -> Result<Self> {
        match watch(&child) {
            Ok(watch) => Ok(Self {
                watch,
                child: Some(child),
            }),
            Err(error) => {
                end(child);
                Err(error)
            }
        }
    }

    async fn ended(&self) -> Result<Status> {
        loop {
            let mut ready = self.watch.readable().await.map_err(poll_failed)?;
            let Some(child) = &self.child else {
                return Err(Error::internal("child is gone"));
            };
            if let Some(status) = child.try_wait()? {
                return Ok(status);
            }
            ready.clear_ready();
        }
    }

    fn reaped(&mut self) {
        self.child = None;
    }
}

/// Readable when the child has ended.
///
/// # Errors
/// The errno when its pidfd cannot be registered.
pub(crate) fn watch(child: &Child) -> Result<AsyncFd<OwnedFd>> {
    let fd = child.pidfd().try_clone_to_owned();
    watch_fd(fd.map_err(|e| Error::os("dup", e))?)
}

/// Readable when the process of a pidfd has ended.
///
/// # Errors
/// The errno when it cannot be registered.
#[expect(
    deprecated,
    reason = "the new constructor is unsafe; an OwnedFd is what it asks for"
)]
pub(crate) fn watch_fd(pidfd: OwnedFd) -> Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE).map_err(|e| Error::os("register pidfd", e))
}

fn poll_failed(error: io::Error) -> Error {
    Error::os("poll", error)
}

fn end(child: Child) {
    drop(child.kill(9));
    let reap = move || drop(child.wait());
    // Reaping a killed process may take a while when the machine is busy: not on this thread.
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => drop(runtime.spawn_blocking(reap)),
        Err(_) => reap(),
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if let Some(child) = self.child.take() {
            end(child);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOON: Duration = Duration::from_secs(20);

    fn shell(script: &str) -> Spawn {
        Spawn::new("/bin/sh").arg("-c").arg(script)
    }

    #[tokio::test]
    async fn both_streams_are_kept_apart_or_merged() {
        let script = "cat; echo oops >&2; exit 3";
        let ran = run(shell(script), b"in", Stderr::Apart, SOON)
            .await
            .unwrap();
        assert_eq!(ran.status, Status::Exited(3));
        assert_eq!((&*ran.stdout, &*ran.stderr), (&b"in"[..], &b"oops\n"[..]));
        let ran = run(shell(script), b"in", Stderr::Merged, SOON)
            .await
            .unwrap();
        assert_eq!((&*ran.stdout, &*ran.stderr), (&b"inoops\n"[..], &b""[..]));
    }

    #[tokio::test]
    async fn a_grandchild_that_keeps_the_pipe_does_not_hold_the_answer() {
        let ran = run(shell("sleep 30 & echo $!"), b"", Stderr::Merged, SOON)
            .await
            .unwrap();
        let pid: u32 = String::from_utf8(ran.stdout)
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        let sleeper = sys::pidfd::open(pid).unwrap();
        sys::pidfd::send_signal(&sleeper, 9).unwrap();
    }

    #[tokio::test]
    async fn deadline_and_flood_end_the_child() {
        let late = run(
            shell("sleep 60"),
            b"",
            Stderr::Apart,
            Duration::from_millis(50),
        )
        .await;
        assert!(late.unwrap_err().is(types::Code::DeadlineExceeded));
        let flood = run(shell("cat /dev/zero"), b"", Stderr::Apart, SOON).await;
        assert!(flood.unwrap_err().is(types::Code::ResourceExhausted));
        let none = run(Spawn::new("/no/such/shim"), b"", Stderr::Apart, SOON).await;
        let text = none.unwrap_err().to_string();
        assert!(text.contains("/no/such/shim"), "{text}");
    }
}
