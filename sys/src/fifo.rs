//! Named pipes that a client made: opened only when they are named pipes, never waiting for a peer.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};
use types::{Error, Result};

use crate::error::at;
use crate::fs::fd_path;

/// A named pipe, found and checked once; its ends are opened from here, whatever happens to the path.
#[derive(Debug)]
pub struct Fifo {
    handle: OwnedFd,
}

/// Which end to open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// For reading; does not wait for a writer.
    Read,
    /// For writing; `ENXIO` when nobody reads.
    Write,
    /// Both: never waits, keeps both ends alive.
    Both,
}

impl Fifo {
    /// Finds the named pipe at `path`.
    ///
    /// # Errors
    /// `NotFound` when there is nothing, `InvalidArgument` when it is something else, else the errno.
    pub fn find(path: &Path) -> Result<Self> {
        let handle = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| match e {
                rustix::io::Errno::NOENT => at("open fifo", path, e).reclass(types::Code::NotFound),
                e => at("open fifo", path, e),
            })?;
        let stat = rustix::fs::fstat(&handle).map_err(|e| at("stat fifo", path, e))?;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Fifo {
            Ok(Self { handle })
        } else {
            Err(Error::invalid_argument(format_args!(
                "{} is not a fifo",
                path.display()
            )))
        }
    }

    /// Makes the named pipe when it is missing, then finds it.
    ///
    /// # Errors
    /// As [`Fifo::find`], or the errno of `mknod`.
    pub fn make(path: &Path, mode: u32) -> Result<Self> {
        let mode = Mode::from_raw_mode(mode);
        match rustix::fs::mknodat(rustix::fs::CWD, path, FileType::Fifo, mode, 0) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => Self::find(path),
            Err(e) => Err(at("mkfifo", path, e)),
        }
    }

    /// Opens an end. The descriptor blocks on reads and writes, as a process expects of its stdio.
    ///
    /// # Errors
    /// The errno of `open`; `ENXIO` for [`End::Write`] without a reader.
    pub fn open(&self, end: End) -> Result<OwnedFd> {
        let fd = self.open_nonblocking(end)?;
        crate::fs::set_nonblocking(&fd, false)?;
        Ok(fd)
    }

    /// Opens an end for a readiness loop.
    ///
    /// # Errors
    /// As [`Fifo::open`].
    pub fn open_nonblocking(&self, end: End) -> Result<OwnedFd> {
        open_path(&fd_path(&self.handle), end)
    }

    /// The checked handle (`O_PATH`).
    #[must_use]
    pub fn handle(&self) -> &OwnedFd {
        &self.handle
    }
}

/// Opens another end of the named pipe behind an open descriptor of it, for a readiness loop.
///
/// # Errors
/// As [`Fifo::open`].
pub fn reopen(fd: impl AsFd, end: End) -> Result<OwnedFd> {
    open_path(&fd_path(fd), end)
}

fn open_path(path: &Path, end: End) -> Result<OwnedFd> {
    let access = match end {
        End::Read => OFlags::RDONLY,
        End::Write => OFlags::WRONLY,
        End::Both => OFlags::RDWR,
    };
    let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    rustix::fs::open(path, flags, Mode::empty()).map_err(|e| at("open fifo", path, e))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read as _, Write as _};

    use crate::testing::until;

    #[test]
    fn a_write_end_needs_a_reader_and_both_needs_nobody() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::make(&dir.path().join("f"), 0o600).unwrap();
        assert_eq!(
            fifo.open(End::Write).unwrap_err().errno(),
            Some(libc::ENXIO)
        );
        let both = fifo.open(End::Both).unwrap();
        let mut write = File::from(fifo.open(End::Write).unwrap());
        write.write_all(b"x").unwrap();
        let mut read = File::from(fifo.open(End::Read).unwrap());
        drop((write, both));
        let mut text = String::new();
        read.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn the_other_end_is_seen_to_come_and_go() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = Fifo::make(&dir.path().join("f"), 0o600).unwrap();
        let hold = fifo.open_nonblocking(End::Both).unwrap();
        let write = reopen(&hold, End::Write).unwrap();
        drop(hold);
        until("the reader goes", || !crate::pipe::has_reader(&write));
        let read = fifo.open_nonblocking(End::Read).unwrap();
        assert!(crate::pipe::has_reader(&write) && crate::pipe::has_writer(&read));
        assert!(!crate::pipe::is_readable(&read));
        drop(write);
        until("the writer goes", || !crate::pipe::has_writer(&read));
    }

    #[test]
    fn other_things_than_fifos_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        for path in [dir.path(), file.as_path(), Path::new("/dev/null")] {
            let error = Fifo::find(path).unwrap_err();
            assert!(error.is(types::Code::InvalidArgument), "{error}");
        }
        let error = Fifo::find(&dir.path().join("absent")).unwrap_err();
        assert!(error.is_not_found(), "{error}");
    }
}
