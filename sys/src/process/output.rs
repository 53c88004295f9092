//! Running a helper to its end: feed its input, collect what it says, within a deadline.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use types::{Error, Result};

use super::{Child, Spawn, Status};
use crate::error::op;
use crate::pipe;

/// What a helper left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Standard output and standard error together, in the order written.
    pub text: Vec<u8>,
}

impl Spawn {
    /// Starts the process, writes `input` to it, and waits for its end. Blocks.
    ///
    /// What it wrote until then is returned, also when a child of its own keeps the pipe open.
    ///
    /// # Errors
    /// As [`Spawn::spawn`]; `DeadlineExceeded` (it is killed), `ResourceExhausted` when it wrote more
    /// than `limit` bytes (it is killed).
    pub fn output(self, input: &[u8], limit: usize, deadline: Duration) -> Result<Output> {
        let name = self.program.display().to_string();
        let (their_in, our_in) = pipe::new()?;
        let (our_out, their_out) = pipe::new()?;
        let their_err = their_out.try_clone().map_err(|e| op("dup", e))?;
        let child = self
            .stdin(their_in)
            .stdout(their_out)
            .stderr(their_err)
            .spawn()?;
        crate::fs::set_nonblocking(&our_in, true)?;
        crate::fs::set_nonblocking(&our_out, true)?;
        let mut exchange = Exchange {
            child: &child,
            stdin: Some(File::from(our_in)),
            stdout: Some(File::from(our_out)),
            input,
            text: Vec::new(),
            limit,
        };
        let status = exchange.run(Instant::now() + deadline).inspect_err(|_| {
            // It is ours and unwanted: end it, and reap it.
            drop(child.kill(libc::SIGKILL));
            drop(child.wait());
        });
        Ok(Output {
            status: status.map_err(|e| e.ctx(name))?,
            text: exchange.text,
        })
    }
}

struct Exchange<'a> {
    child: &'a Child,
    stdin: Option<File>,
    stdout: Option<File>,
    input: &'a [u8],
    text: Vec<u8>,
    limit: usize,
}

impl Exchange<'_> {
    fn run(&mut self, until: Instant) -> Result<Status> {
        loop {
            self.feed()?;
            self.collect()?;
            if let Some(status) = self.child.try_wait()? {
                self.collect()?;
                return Ok(status);
            }
            self.sleep(until)?;
        }
    }

    fn sleep(&self, until: Instant) -> Result<()> {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(Error::deadline_exceeded(""));
        }
        let pidfd = self.child.pidfd();
        let mut fds = vec![PollFd::new(&pidfd, PollFlags::IN)];
        if let Some(file) = &self.stdin {
            fds.push(PollFd::from_borrowed_fd(file.as_fd(), PollFlags::OUT));
        }
        if let Some(file) = &self.stdout {
            fds.push(PollFd::from_borrowed_fd(file.as_fd(), PollFlags::IN));
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(e) => Err(op("poll", e)),
        }
    }

    fn feed(&mut self) -> Result<()> {
        while let Some(file) = &mut self.stdin {
            if self.input.is_empty() {
                self.stdin = None;
                break;
            }
            match file.write(self.input) {
                Ok(written) => self.input = &self.input[written..],
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                // It does not want its input: its affair.
                Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => self.stdin = None,
                Err(e) => return Err(op("write", e)),
            }
        }
        Ok(())
    }

    fn collect(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        while let Some(file) = &mut self.stdout {
            match file.read(&mut buffer) {
                Ok(0) => self.stdout = None,
                Ok(read) if self.text.len() + read > self.limit => {
                    return Err(Error::resource_exhausted(format_args!(
                        "output of more than {} bytes",
                        self.limit
                    )));
                }
                Ok(read) => self.text.extend_from_slice(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(op("read", e)),
            }
        }
        Ok(())
    }
}
