//! A node of a lower layer, copied up so that an entry can link to it.
//!
//! Invariant: a copy takes no more of the disk than the layer may store, however long the file is: what
//! a hole spares below is spared here.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Timespec, Timestamps};
use rustix::io::Errno;
use types::Result;

use super::Tree;
use super::attributes::{What, copy_entry};
use super::node::{NEW_FILE, Room, Stored, write_runs};
use crate::lower::Found;
use crate::root::{entry_error, file_type};
use crate::stream::CHUNK;
use crate::work::Stop;

impl Tree<'_> {
    /// Copies the lower file, link or device `name` into the upper directory `to`; `path` is for messages.
    pub(super) fn copy_node(
        &mut self,
        found: &Found,
        name: &[u8],
        to: &OwnedFd,
        path: &[u8],
    ) -> Result<()> {
        let fail = |e| entry_error("copy up", path, e);
        let kind = file_type(&found.stat);
        if kind == FileType::RegularFile {
            let (from, to) = files(found, name, to).map_err(fail)?;
            if rustix::fs::ioctl_ficlone(&to, &from).is_err() {
                let size = u64::try_from(found.stat.st_size).unwrap_or(0);
                let fail = |e: std::io::Error| fail(Errno::from_io_error(&e).unwrap_or(Errno::IO));
                data(&from, &to, size, &mut self.room, &self.stop, &fail)?;
            }
        }
        let stored = rest(found, name, to).map_err(fail)?;
        self.room.take(stored)
    }
}

fn files(found: &Found, name: &[u8], to: &OwnedFd) -> Result<(File, File), Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let from = rustix::fs::openat(&found.dir, name, flags, Mode::empty())?;
    let to = rustix::fs::openat(to, name, NEW_FILE, Mode::RUSR | Mode::WUSR)?;
    Ok((from.into(), to.into()))
}

/// Copies what is no hole.
fn data(
    from: &File,
    to: &File,
    size: u64,
    room: &mut Room,
    stop: &Stop,
    fail: &dyn Fn(std::io::Error) -> types::Error,
) -> Result<()> {
    let mut buffer = vec![0; CHUNK];
    let (mut at, mut stored) = (0, Stored::default());
    while at < size {
        stop.check()?;
        // Where holes are not told, all is data.
        let start = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Err(Errno::NXIO) => break,
            start => start.unwrap_or(at),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(start)).unwrap_or(size);
        at = start;
        while at < end {
            stop.check()?;
            let want = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK);
            let got = from.read_at(&mut buffer[..want], at).map_err(fail)?;
            if got == 0 {
                break;
            }
            let wrote = write_runs(to, &buffer[..got], at, &mut stored).map_err(fail)?;
            room.wrote(&wrote)?;
            at += got as u64;
        }
        if at < end {
            break;
        }
    }
    to.set_len(size).map_err(fail)
}

/// Makes what is no regular file, and gives it the attributes of what it is a copy of. Returns their bytes.
fn rest(found: &Found, name: &[u8], to: &OwnedFd) -> Result<u64, Errno> {
    let kind = file_type(&found.stat);
    match kind {
        FileType::RegularFile => {}
        FileType::Symlink => {
            let text = rustix::fs::readlinkat(&found.dir, name, Vec::new())?;
            rustix::fs::symlinkat(&text, to, name)?;
        }
        _ => rustix::fs::mknodat(to, name, kind, Mode::RUSR | Mode::WUSR, found.stat.st_rdev)?,
    }
    let what = What::Entry(to, name, kind);
    let stored = copy_entry((&found.dir, name), &found.stat, what)?;
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    let times = Timestamps {
        last_access: time(found.stat.st_atime, found.stat.st_atime_nsec),
        last_modification: time(found.stat.st_mtime, found.stat.st_mtime_nsec),
    };
    rustix::fs::utimensat(to, name, &times, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok(stored)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use types::Code;

    use super::*;
    use crate::testing::{Bench, link, named};
    use crate::{Limits, Root, Target, TreeOpts, apply_tar};

    /// Two pieces of data of 128 KiB in a file of 32 GiB.
    const PIECE: usize = 128 << 10;
    const LEN: u64 = 32 << 30;

    /// A lower layer with such a file, and a layer that links to it, unpacked on top.
    fn unpacked(limits: Limits, stop: Stop) -> (Bench, Result<()>) {
        let bench = Bench::new();
        let [lower, upper] = ["lower", "upper"].map(|name| bench.dir(name));
        let file = File::create(lower.join("f")).unwrap();
        file.set_len(LEN).unwrap();
        for at in [0, LEN / 2] {
            file.write_all_at(&[b'x'; PIECE], at).unwrap();
        }
        let opts = TreeOpts {
            target: Target::Upper {
                lowers: vec![lower],
                userxattr: false,
            },
            limits,
            stop,
            ..TreeOpts::default()
        };
        let tar = named(&[link("l", "f")]);
        let done = apply_tar(&tar[..], &Root::open(&upper).unwrap(), &opts);
        (bench, done)
    }

    #[test]
    fn a_link_to_a_lower_file_of_holes_stores_what_that_stores() {
        let (bench, done) = unpacked(Limits::default(), Stop::default());
        done.unwrap();
        let made = File::open(bench.temp.path().join("upper/l")).unwrap();
        let facts = made.metadata().unwrap();
        assert_eq!((facts.size(), facts.nlink()), (LEN, 2));
        let stored = facts.blocks() * 512;
        assert!(stored < 4 * PIECE as u64, "{stored} bytes");
        for at in [0, LEN / 2] {
            let mut read = [0; PIECE];
            made.read_exact_at(&mut read, at).unwrap();
            assert_eq!(read, [b'x'; PIECE]);
        }
    }

    /// The data alone: where blocks are shared, nothing is copied.
    fn copied(stored: u64, stop: &Stop) -> Result<()> {
        let temp = tempfile::tempdir().unwrap();
        let [from, to] = ["from", "to"].map(|name| temp.path().join(name));
        std::fs::write(&from, [b'x'; 4 * PIECE]).unwrap();
        let (from, to) = (File::open(from).unwrap(), File::create(to).unwrap());
        let fail = |e| types::Error::os("copy", e);
        let room = &mut Room::new(stored, u64::MAX);
        data(&from, &to, 4 * PIECE as u64, room, stop, &fail)
    }

    #[test]
    fn what_a_link_stores_is_limited() {
        copied(4 * PIECE as u64, &Stop::default()).unwrap();
        let error = copied(4 * PIECE as u64 - 1, &Stop::default()).unwrap_err();
        assert!(error.is(Code::ResourceExhausted), "{error}");
    }

    #[test]
    fn a_copy_that_nobody_waits_for_ends() {
        let stop = Stop::default();
        stop.tell();
        let error = copied(u64::MAX, &stop).unwrap_err();
        assert!(error.is(Code::Cancelled), "{error}");
    }
}
