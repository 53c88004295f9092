//! Running a helper to its end: feed its input, collect what it says, within a deadline.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use types::{Error, Result};

use super::{Child, Spawn, Status};
use crate::error::op;
use crate::{pidfd, pipe};

/// Reads in a row: the content of a pipe.
const ROUNDS: usize = 32;
/// How long what a killed program has started may take to end: a signal that nobody can refuse is sent,
/// but what waits for a device does not see it.
const LAST_WORK: Duration = Duration::from_secs(5);

/// What a helper left.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: Status,
    /// Standard output and standard error together, in the order written.
    pub text: Vec<u8>,
}

/// What a program answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// How it ended.
    pub status: Status,
    /// The beginning of its standard output.
    pub text: Vec<u8>,
    /// There was more of it.
    pub is_cut: bool,
    /// The beginning of its standard error.
    pub errors: Vec<u8>,
}

impl Spawn {
    /// Starts the process in a group of its own, writes `input` to it, and waits for its end. Blocks.
    /// Of each of its outputs `limit` bytes are kept; more is read and forgotten.
    ///
    /// # Errors
    /// As [`Spawn::spawn`]; `DeadlineExceeded`. Then, and when it fails in any other way, it is killed with
    /// all that it started, and nothing of it is at work any more.
    pub fn answer(self, input: &[u8], limit: usize, deadline: Duration) -> Result<Answer> {
        let name = self.program.display().to_string();
        let (their_in, our_in) = pipe::new()?;
        let (our_out, their_out) = pipe::new()?;
        let (our_err, their_err) = pipe::new()?;
        let child = self
            .new_group()
            .stdin(their_in)
            .stdout(their_out)
            .stderr(their_err)
            .spawn()?;
        crate::fs::set_nonblocking(&our_in, true)?;
        let mut exchange = Exchange {
            child: &child,
            is_left: true,
            stdin: Some(File::from(our_in)),
            input,
            outputs: vec![
                Collected::new(our_out, limit, false)?,
                Collected::new(our_err, limit, false)?,
            ],
        };
        let status = exchange.run(Instant::now() + deadline);
        let is_fine = status.as_ref().is_ok_and(|status| status.is_success());
        if !is_fine {
            // Not reaped yet: the group is its own.
            drop(super::kill_tree(child.pid()));
        }
        drop(child.wait());
        if !is_fine && !super::tree::group_ends_within(child.pid(), LAST_WORK) {
            tracing::warn!(
                program = name,
                "what a failed program has started does not end"
            );
        }
        let status = status.map_err(|e| e.ctx(name))?;
        let errors = exchange.outputs.pop().map(|o| o.text).unwrap_or_default();
        let output = exchange.outputs.pop();
        let (text, is_cut) = output.map(|o| (o.text, o.is_cut)).unwrap_or_default();
        Ok(Answer {
            status,
            text,
            is_cut,
            errors,
        })
    }

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
        let mut exchange = Exchange {
            child: &child,
            is_left: false,
            stdin: Some(File::from(our_in)),
            input,
            outputs: vec![Collected::new(our_out, limit, true)?],
        };
        let status = exchange.run(Instant::now() + deadline).inspect_err(|_| {
            // It is ours and unwanted: end it, and reap it.
            drop(child.kill(libc::SIGKILL));
            drop(child.wait());
        });
        let text = exchange.outputs.pop().map(|o| o.text).unwrap_or_default();
        Ok(Output {
            status: status.map_err(|e| e.ctx(name))?,
            text,
        })
    }
}

struct Exchange<'a> {
    child: &'a Child,
    /// Its end is seen, but to reap it is left to the caller.
    is_left: bool,
    stdin: Option<File>,
    input: &'a [u8],
    outputs: Vec<Collected>,
}

/// What came out of one pipe.
struct Collected {
    pipe: Option<File>,
    text: Vec<u8>,
    limit: usize,
    /// More than the limit is an error.
    strict: bool,
    is_cut: bool,
}

impl Exchange<'_> {
    fn run(&mut self, until: Instant) -> Result<Status> {
        loop {
            self.feed()?;
            self.collect()?;
            let ended = if self.is_left {
                pidfd::peek(self.child.pidfd())?
            } else {
                self.child.try_wait()?
            };
            if let Some(status) = ended {
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
        for file in self.outputs.iter().filter_map(|o| o.pipe.as_ref()) {
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
        self.outputs.iter_mut().try_for_each(Collected::collect)
    }
}

impl Collected {
    fn new(pipe: OwnedFd, limit: usize, strict: bool) -> Result<Self> {
        crate::fs::set_nonblocking(&pipe, true)?;
        Ok(Self {
            pipe: Some(File::from(pipe)),
            text: Vec::new(),
            limit,
            strict,
            is_cut: false,
        })
    }

    /// Takes what is there, but a pipe's worth at most: who writes without end shall not keep its
    /// reader from looking at the clock.
    fn collect(&mut self) -> Result<()> {
        let mut buffer = [0; 4096];
        for _ in 0..ROUNDS {
            let Some(file) = &mut self.pipe else {
                break;
            };
            match file.read(&mut buffer) {
                Ok(0) => self.pipe = None,
                Ok(read) if self.text.len() + read > self.limit => {
                    if self.strict {
                        return Err(Error::resource_exhausted(format_args!(
                            "output of more than {} bytes",
                            self.limit
                        )));
                    }
                    let room = self.limit - self.text.len();
                    self.text.extend_from_slice(&buffer[..room]);
                    self.is_cut = true;
                }
                Ok(read) => self.text.extend_from_slice(&buffer[..read]),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => break,
                Err(e) => return Err(op("read", e)),
            }
        }
        Ok(())
    }
}
