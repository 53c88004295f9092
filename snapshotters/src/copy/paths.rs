//! Paths of files that have further names, on the disk.
//!
//! ```text
//!   directory: length (4), path    file: where its directory is (4), length (1), name
//! ```
//! A directory is written once for all of its files that follow each other, as they do in a walk: what all
//! paths take is what an unpacked layer may have of paths of directories, and 260 bytes for each file.
//!
//! Invariant: they take no memory, and no more of the disk than [`MOST`], in a file without a name.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use types::{Error, Result};

use crate::tree::{Failure, Relative};

/// Most bytes of all of them: 256 MiB of directories and four million of the longest names are 1.3 GB.
const MOST: u32 = 1 << 31;

/// Where one of them is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place(u32);

/// The file.
#[derive(Debug, Default)]
pub(super) struct Paths {
    file: Option<File>,
    len: u32,
    /// The directory that was written last, and where.
    directory: Option<(Relative, u32)>,
}

impl Paths {
    /// Forgets all of them: their places are used again.
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.directory = None;
    }

    /// Keeps the path of `name` in `directory`, on the file system of `near` if that has files without names.
    ///
    /// # Errors
    /// `ResourceExhausted` when there are too many; those of writing.
    pub(super) fn put(
        &mut self,
        near: BorrowedFd<'_>,
        directory: &[u8],
        name: &[u8],
    ) -> Result<Place, Failure> {
        let known = self.directory.as_ref().filter(|last| last.0 == directory);
        let at = match known {
            Some((_, at)) => *at,
            None => {
                let len = u32::try_from(directory.len()).map_err(|_| Errno::NAMETOOLONG)?;
                let at = self.write(near, &[&len.to_ne_bytes(), directory])?;
                self.directory = Some((directory.to_vec(), at));
                at
            }
        };
        let len = u8::try_from(name.len()).map_err(|_| Errno::NAMETOOLONG)?;
        let written = self.write(near, &[&at.to_ne_bytes(), &[len], name])?;
        Ok(Place(written))
    }

    /// Appends a record.
    fn write(&mut self, near: BorrowedFd<'_>, parts: &[&[u8]]) -> Result<u32, Failure> {
        let record = parts.concat();
        let end = u32::try_from(record.len())
            .ok()
            .and_then(|len| self.len.checked_add(len))
            .filter(|end| *end <= MOST)
            .ok_or_else(|| {
                Error::resource_exhausted(format_args!(
                    "paths of hard-linked files have more than {MOST} bytes"
                ))
            })?;
        if self.file.is_none() {
            self.file = Some(nameless(near)?);
        }
        let file = self.file.as_ref().ok_or(Errno::INVAL)?;
        file.write_all_at(&record, u64::from(self.len))
            .map_err(errno)?;
        Ok(std::mem::replace(&mut self.len, end))
    }

    /// Gives a path back: that of the directory, and the name.
    ///
    /// # Errors
    /// Those of reading.
    pub(super) fn get(&self, place: Place) -> Result<(Relative, Vec<u8>), Errno> {
        let at = u64::from(place.0);
        let (mut directory, mut len) = ([0; 4], [0; 1]);
        self.read(&mut directory, at)?;
        self.read(&mut len, at + 4)?;
        let mut name = vec![0; usize::from(len[0])];
        self.read(&mut name, at + 5)?;
        let (at, mut len) = (u64::from(u32::from_ne_bytes(directory)), [0; 4]);
        self.read(&mut len, at)?;
        let mut path = vec![0; u32::from_ne_bytes(len) as usize];
        self.read(&mut path, at + 4)?;
        Ok((path, name))
    }

    fn read(&self, to: &mut [u8], at: u64) -> Result<(), Errno> {
        let file = self.file.as_ref().ok_or(Errno::INVAL)?;
        file.read_exact_at(to, at).map_err(errno)
    }
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn errno(error: std::io::Error) -> Errno {
    Errno::from_io_error(&error).unwrap_or(Errno::IO)
}

fn nameless(near: BorrowedFd<'_>) -> Result<File, Errno> {
    let flags = OFlags::RDWR | OFlags::TMPFILE | OFlags::EXCL | OFlags::CLOEXEC;
    let mode = Mode::RUSR | Mode::WUSR;
    match rustix::fs::openat(near, c".", flags, mode) {
        Err(Errno::OPNOTSUPP | Errno::ISDIR | Errno::NOENT) => {
            rustix::fs::open(std::env::temp_dir(), flags, mode).map(File::from)
        }
        done => done.map(File::from),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn paths_come_back_up_to_a_ceiling_and_leave_no_name() {
        let temp = tempfile::tempdir().unwrap();
        let dir = File::open(temp.path()).unwrap();
        let mut paths = Paths::default();
        let long = ["n"; 255].concat();
        let texts = [
            ("", "a"),
            ("b", "c"),
            ("b", &long),
            ("long/er", "than"),
            ("b", "d"),
        ];
        let put = |paths: &mut Paths, (at, name): (&str, &str)| {
            paths.put(dir.as_fd(), at.as_bytes(), name.as_bytes())
        };
        for _ in 0..2 {
            let places = texts.map(|text| put(&mut paths, text).unwrap());
            for (place, (at, name)) in places.into_iter().zip(texts) {
                let (path, base) = paths.get(place).unwrap();
                assert_eq!((&path[..], &base[..]), (at.as_bytes(), name.as_bytes()));
            }
            paths.clear();
        }
        assert_eq!(std::fs::read_dir(temp.path()).unwrap().count(), 0);
        // A directory is there once for names that follow each other.
        let first = put(&mut paths, ("some/where", "x")).unwrap();
        let second = put(&mut paths, ("some/where", "y")).unwrap();
        assert_eq!(second.0 - first.0, 6);
        paths.len = MOST - 6;
        put(&mut paths, ("some/where", "z")).unwrap();
        let error = put(&mut paths, ("some/where", "x")).unwrap_err();
        assert!(matches!(error, Failure::Said(_)), "{error:?}");
    }
}
