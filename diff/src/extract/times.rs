//! Times of directories, to be set when nothing changes them any more.
//!
//! Invariant: what is remembered is bounded in memory: beyond [`IN_MEMORY`] it goes to a file without a
//! name, in the tree that is being written. Times are given back in the order in which they came.

use std::fs::File;
use std::io::{BufReader, Read as _, Seek as _, Write as _};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use types::{Error, Result};

use crate::root::Root;
use crate::tar::Time;

/// Bytes of records held before they are written out.
const IN_MEMORY: usize = 4 << 20;
/// Length of the numbers of a record: two times, and how long the path is.
const HEAD: usize = 28;
/// Nanoseconds of a time that is not there.
const NONE: u32 = u32::MAX;

/// The list.
#[derive(Debug, Default)]
pub(super) struct Times {
    /// The latest records.
    records: Vec<u8>,
    /// Earlier ones.
    file: Option<File>,
    /// Bytes of the paths of all directories, those whose times are not set among them.
    pub(super) bytes: u64,
}

impl Times {
    /// Counts a directory that was made or is to have times.
    pub(super) fn count(&mut self, path: &[u8]) {
        self.bytes += path.len() as u64;
    }

    /// Adds the times of a directory.
    ///
    /// # Errors
    /// Those of writing the file below `root`.
    pub(super) fn push(
        &mut self,
        root: &Root,
        path: &[u8],
        mtime: Time,
        atime: Option<Time>,
    ) -> Result<(), Errno> {
        let none = Time {
            seconds: 0,
            nanos: NONE,
        };
        for time in [mtime, atime.unwrap_or(none)] {
            self.records.extend_from_slice(&time.seconds.to_ne_bytes());
            self.records.extend_from_slice(&time.nanos.to_ne_bytes());
        }
        let len = u32::try_from(path.len()).map_err(|_| Errno::NAMETOOLONG)?;
        self.records.extend_from_slice(&len.to_ne_bytes());
        self.records.extend_from_slice(path);
        if self.records.len() >= IN_MEMORY {
            self.write_out(root)?;
        }
        Ok(())
    }

    fn write_out(&mut self, root: &Root) -> Result<(), Errno> {
        let mut file = match self.file.take() {
            Some(file) => file,
            None => nameless(root)?,
        };
        let done = file.write_all(&self.records);
        done.map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        self.file = Some(file);
        self.records.clear();
        Ok(())
    }

    /// Gives all of them to `set`, in order.
    ///
    /// # Errors
    /// Those of reading the file back; that of `set`, which ends it.
    pub(super) fn each(
        self,
        mut set: impl FnMut(&[u8], Time, Option<Time>) -> Result<()>,
    ) -> Result<()> {
        let fail = |e| Error::os("read times of directories", e);
        if let Some(mut file) = self.file {
            let end = file.stream_position().map_err(fail)?;
            file.rewind().map_err(fail)?;
            let mut from = BufReader::with_capacity(1 << 16, file.take(end));
            let mut head = [0; HEAD];
            let mut path = Vec::new();
            loop {
                match from.read_exact(&mut head) {
                    Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => break,
                    done => done.map_err(fail)?,
                }
                let (mtime, atime, len) = numbers(&head);
                path.resize(len, 0);
                from.read_exact(&mut path).map_err(fail)?;
                set(&path, mtime, atime)?;
            }
        }
        let mut rest = &self.records[..];
        while let Some((head, more)) = rest.split_first_chunk::<HEAD>() {
            let (mtime, atime, len) = numbers(head);
            let (path, more) = more.split_at(len.min(more.len()));
            set(path, mtime, atime)?;
            rest = more;
        }
        Ok(())
    }
}

/// A file that goes with its descriptor, on the file system of `root` if that can have one.
fn nameless(root: &Root) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL | OFlags::CLOEXEC;
    let open = |dir: std::os::fd::BorrowedFd<'_>| {
        rustix::fs::openat(dir, c".", flags, Mode::RUSR | Mode::WUSR)
    };
    match open(root.fd()) {
        Ok(fd) => Ok(fd.into()),
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
            let temporary = std::env::temp_dir();
            let dir = rustix::fs::open(temporary, flags, Mode::empty())?;
            open(std::os::fd::AsFd::as_fd(&dir)).map(File::from)
        }
        Err(e) => Err(e),
    }
}

fn numbers(head: &[u8; HEAD]) -> (Time, Option<Time>, usize) {
    let long = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&head[at..at + 8]);
        i64::from_ne_bytes(bytes)
    };
    let short = |at: usize| {
        let mut bytes = [0; 4];
        bytes.copy_from_slice(&head[at..at + 4]);
        u32::from_ne_bytes(bytes)
    };
    let time = |at| Time {
        seconds: long(at),
        nanos: short(at + 8),
    };
    let atime = Some(time(12)).filter(|time| time.nanos != NONE);
    (time(0), atime, short(24) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_into_memory_comes_back_in_order() {
        let temp = tempfile::tempdir().unwrap();
        let root = Root::open(temp.path()).unwrap();
        let one = |number: i64| {
            let time = Time {
                seconds: number - 5,
                nanos: 7,
            };
            let path = format!("{}/{number}", "p".repeat(200));
            (path.into_bytes(), time, (number % 3 == 0).then_some(time))
        };
        let mut times = Times::default();
        let count = 60_000;
        for number in 0..count {
            let (path, mtime, atime) = one(number);
            times.push(&root, &path, mtime, atime).unwrap();
            assert!(times.records.len() < IN_MEMORY);
        }
        assert!(times.file.is_some());
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        let mut next = 0;
        let check = |path: &[u8], mtime, atime| {
            assert_eq!((path.to_vec(), mtime, atime), one(next));
            next += 1;
            Ok(())
        };
        times.each(check).unwrap();
        assert_eq!(next, count);
    }
}
