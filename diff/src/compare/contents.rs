//! The contents of files whose facts are equal.
//!
//! Invariant: what is read is not written, so nothing fails when nobody wants the layer any more: that is
//! asked at each file and at each buffer.

use std::fmt;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;

use rustix::fs::Stat;
use rustix::io::Errno;
use types::{Error, Result};

use super::layer::Node;
use crate::root::{entry_error, open_regular};

/// What is read at a time, of each of the two.
const BUFFER: usize = 64 * 1024;

/// True when nobody wants the layer any more.
pub(super) type IsGone<'a> = &'a (dyn Fn() -> bool + 'a);

/// Compares files, one pair after the other.
pub(super) struct Contents<'a> {
    left: Vec<u8>,
    right: Vec<u8>,
    is_gone: IsGone<'a>,
}

impl fmt::Debug for Contents<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contents").finish_non_exhaustive()
    }
}

/// True when equal facts do not tell that two files have the same contents.
///
/// Parity: continuity: fs/diff.go: a time without nanoseconds may have been cut to seconds, or set by a
/// build that wants the same bytes each time.
pub(super) fn is_to_be_read(old: &Stat, new: &Stat, copied_up: bool) -> bool {
    let is_one = (old.st_dev, old.st_ino) == (new.st_dev, new.st_ino);
    let is_whole = old.st_mtime_nsec == 0 || new.st_mtime_nsec == 0;
    !is_one && new.st_size > 0 && (copied_up || is_whole)
}

fn check(is_gone: IsGone<'_>) -> Result<()> {
    match is_gone() {
        true => Err(Error::cancelled("compare was abandoned")),
        false => Ok(()),
    }
}

impl<'a> Contents<'a> {
    pub(super) fn new(is_gone: IsGone<'a>) -> Self {
        Self {
            left: Vec::new(),
            right: Vec::new(),
            is_gone,
        }
    }

    /// Whether it goes on.
    ///
    /// # Errors
    /// `Cancelled`.
    pub(super) fn check(&self) -> Result<()> {
        check(self.is_gone)
    }

    /// True when the older file in `dir` and the newer one have the same contents.
    ///
    /// # Errors
    /// I/O; `Cancelled`.
    pub(super) fn are_same(&mut self, dir: &OwnedFd, old: &Stat, new: &Node<'_>) -> Result<bool> {
        let fail = |e| entry_error("compare", new.path, e);
        let open = |dir: &OwnedFd, facts: &Stat| -> Result<File> {
            Ok(open_regular(dir, new.name, facts).map_err(fail)?.into())
        };
        let (mut a, mut b) = (open(dir, old)?, open(new.dir, new.stat)?);
        let fail = |e: std::io::Error| fail(Errno::from_io_error(&e).unwrap_or(Errno::IO));
        let Self { left, right, .. } = self;
        left.resize(BUFFER, 0);
        right.resize(BUFFER, 0);
        loop {
            check(self.is_gone)?;
            let got = a.read(left).map_err(fail)?;
            if got == 0 {
                return Ok(b.read(right).map_err(fail)? == 0);
            }
            match b.read_exact(&mut right[..got]) {
                Ok(()) => {}
                Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
                Err(e) => return Err(fail(e)),
            }
            if left[..got] != right[..got] {
                return Ok(false);
            }
        }
    }
}

#[cfg(test)]
#[path = "contents_tests.rs"]
mod contents_tests;
