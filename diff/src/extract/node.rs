//! Making one entry: file, directory, link, device.
//!
//! Invariant: everything is made with "must not exist"; what exists is taken away first, by name.

use std::fs::File;
use std::io::BufRead;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt as _;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, XattrFlags};
use rustix::io::Errno;
use types::{Error, IMPLIED_DIRECTORY, Result};

use super::Tree;
use super::attributes::{self, What, mode, same_inode};
use super::parents::Directory;
use crate::root::{DIRECTORY, components, entry_error, file_type, is_whiteout, stat};
use crate::tar::{Entry, Kind, Reader};

/// Runs of zeroes of this length, at multiples of it, become holes.
const HOLE: u64 = 64 * 1024;
/// Largest device numbers of the kernel.
const MAX_MAJOR: u32 = (1 << 12) - 1;
const MAX_MINOR: u32 = (1 << 20) - 1;
/// How a file is made.
pub(super) const NEW_FILE: OFlags = OFlags::WRONLY
    .union(OFlags::CREATE)
    .union(OFlags::EXCL)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

impl Tree<'_> {
    /// Makes `entry` as `name` in `dir`; `parts` is its whole path.
    pub(super) fn node<R: BufRead>(
        &mut self,
        dir: &Directory,
        name: &[u8],
        parts: &[&[u8]],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<()> {
        let fail = |call: &'static str| move |e| entry_error(call, &entry.name, e);
        self.room.take(attributes::size(&entry.xattrs))?;
        let kind = match entry.kind {
            Kind::Directory => {
                return self
                    .directory(dir, name, parts, entry)
                    .map_err(fail("mkdir"));
            }
            Kind::File => return self.file(dir, name, entry, reader),
            Kind::Link => return self.link(dir, name, entry),
            Kind::Symlink => {
                if entry.link.is_empty() {
                    return Err(entry_error("symlink", &entry.name, Errno::INVAL));
                }
                let make = || rustix::fs::symlinkat(entry.link.as_slice(), &dir.fd, name);
                self.fresh(dir, name, make).map_err(fail("symlink"))?;
                FileType::Symlink
            }
            Kind::Fifo => FileType::Fifo,
            Kind::Char => FileType::CharacterDevice,
            Kind::Block => FileType::BlockDevice,
        };
        if kind != FileType::Symlink {
            if entry.major > MAX_MAJOR || entry.minor > MAX_MINOR {
                return Err(Error::invalid_argument(format_args!(
                    "device number {}:{} for {:?} out of range",
                    entry.major,
                    entry.minor,
                    String::from_utf8_lossy(&entry.name)
                )));
            }
            let number = rustix::fs::makedev(entry.major, entry.minor);
            let make = || rustix::fs::mknodat(&dir.fd, name, kind, mode(entry.mode), number);
            self.fresh(dir, name, make).map_err(fail("mknod"))?;
        }
        self.dress(What::Entry(&dir.fd, name, kind), entry, dir)
    }

    /// Gives what was made its attributes, and its times last.
    fn dress(&self, what: What<'_>, entry: &Entry, dir: &Directory) -> Result<()> {
        let fail = |call: &'static str| move |e| entry_error(call, &entry.name, e);
        let set = self.attributes.set(what, entry, dir.inherits);
        set.map_err(fail("set attributes of"))?;
        let times = self.attributes.times(what, entry);
        times.map_err(fail("set times of"))
    }

    /// Makes something that must not exist, after taking away what does.
    fn fresh<T>(
        &mut self,
        dir: &Directory,
        name: &[u8],
        make: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, Errno> {
        match make() {
            Err(Errno::EXIST) => {
                self.displace(dir, name)?;
                make()
            }
            other => other,
        }
    }

    fn directory(
        &mut self,
        dir: &Directory,
        name: &[u8],
        parts: &[&[u8]],
        entry: &Entry,
    ) -> Result<(), Errno> {
        let make = || rustix::fs::mkdirat(&dir.fd, name, mode(entry.mode & 0o777));
        let (mut old, mut opaque, mut is_replaced) = (None, false, false);
        match make() {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                old = stat(&dir.fd, name)?.filter(|f| file_type(f) == FileType::Directory);
                if old.is_none() {
                    opaque = self.displace(dir, name)?;
                    is_replaced = true;
                    make()?;
                }
            }
            Err(e) => return Err(e),
        }
        let fd = rustix::fs::openat(&dir.fd, name, DIRECTORY, Mode::empty())?;
        if let (true, Some(upper)) = (opaque, &self.upper) {
            rustix::fs::fsetxattr(&fd, upper.opaque, b"y", XattrFlags::empty())?;
        }
        if old.is_some() && self.is_detached() {
            // It has an entry of its own after all.
            match rustix::fs::fremovexattr(&fd, IMPLIED_DIRECTORY) {
                Ok(()) | Err(Errno::NODATA) => {}
                Err(e) => return Err(e),
            }
        }
        match &old {
            Some(old) => self.attributes.reset(What::Open(&fd), entry, old)?,
            None => self.attributes.set(What::Open(&fd), entry, dir.inherits)?,
        }
        let path = parts.join(&b'/');
        self.times.count(&path);
        self.times
            .push(self.root, &path, entry.mtime, entry.atime)?;
        let fresh = Directory::new(fd)?;
        if old.is_some() {
            self.parents.forget(fresh.inode);
        }
        // Entries in it come next, as a rule. A link that it took the place of may have been on its own way,
        // which leads elsewhere then.
        if !is_replaced {
            self.parents.put(path, fresh);
        }
        Ok(())
    }

    fn file<R: BufRead>(
        &mut self,
        dir: &Directory,
        name: &[u8],
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<()> {
        let fail = |call: &'static str| move |e| entry_error(call, &entry.name, e);
        let make = || rustix::fs::openat(&dir.fd, name, NEW_FILE, mode(entry.mode & 0o777));
        let fd = self.fresh(dir, name, make).map_err(fail("create"))?;
        let file = File::from(fd);
        contents(&file, entry, reader, &mut self.room)?;
        let fd = OwnedFd::from(file);
        self.dress(What::Open(&fd), entry, dir)
    }

    fn link(&mut self, dir: &Directory, name: &[u8], entry: &Entry) -> Result<()> {
        let fail = |e| entry_error("link", &entry.name, e);
        let parts = components(&entry.link);
        let Some((base, parents)) = parts.split_last() else {
            return Err(fail(Errno::ISDIR));
        };
        let parents = parents.join(&b'/');
        let find = |root: &crate::root::Root| -> Result<Option<OwnedFd>, Errno> {
            let at = match root.directory(&parents) {
                Ok(at) => at,
                Err(Errno::NOENT) => return Ok(None),
                Err(e) => return Err(e),
            };
            Ok(stat(&at, base)?.is_some().then_some(at))
        };
        let (own, below);
        let source = match find(self.root).map_err(fail)? {
            Some(found) => {
                own = found;
                &own
            }
            // Parity, broken on purpose: containerd refuses links into a lower layer.
            None => {
                below = self.copy_up(&parts)?;
                &below.fd
            }
        };
        let facts = stat(source, base)
            .map_err(fail)?
            .ok_or_else(|| fail(Errno::NOENT))?;
        if self.upper.is_some() && is_whiteout(&facts) {
            return Err(fail(Errno::NOENT));
        }
        if file_type(&facts) == FileType::Directory {
            return Err(fail(Errno::ISDIR));
        }
        if !same_inode(&dir.fd, name, &facts).map_err(fail)? {
            let make = || rustix::fs::linkat(source, *base, &dir.fd, name, AtFlags::empty());
            self.fresh(dir, name, make).map_err(fail)?;
        }
        // The inode keeps what its first name gave it, unless this entry says otherwise.
        let what = What::Entry(&dir.fd, name, file_type(&facts));
        let same = (facts.st_uid, facts.st_gid, facts.st_mode & 0o7777)
            == (entry.uid, entry.gid, entry.mode);
        if !same || !entry.xattrs.is_empty() {
            self.attributes.reset(what, entry, &facts).map_err(fail)?;
        }
        self.attributes.times(what, entry).map_err(fail)
    }
}

/// What files take on a disk is a multiple of this.
const STORED: u64 = 4096;

/// Bytes that a layer may still store.
#[derive(Debug)]
pub(super) struct Room {
    /// In whole blocks, and how many there may be.
    taken: u64,
    ceiling: u64,
    /// As the size of the blob lets expect, and how many there may be.
    expected: u64,
    most: u64,
}

impl Room {
    pub(super) fn new(ceiling: u64, most: u64) -> Self {
        Self {
            taken: 0,
            ceiling,
            expected: 0,
            most,
        }
    }

    pub(super) fn take(&mut self, bytes: u64) -> Result<()> {
        self.add(bytes);
        self.check()
    }

    /// Takes what was written.
    pub(super) fn wrote(&mut self, wrote: &Wrote) -> Result<()> {
        self.taken = self.taken.saturating_add(wrote.stored);
        self.expected = self.expected.saturating_add(wrote.expected);
        self.check()
    }

    /// Notes what has been stored already.
    pub(super) fn add(&mut self, bytes: u64) {
        self.taken = self.taken.saturating_add(bytes);
        self.expected = self.expected.saturating_add(bytes);
    }

    #[cfg(test)]
    pub(super) fn sums(&self) -> (u64, u64) {
        (self.taken, self.expected)
    }

    /// # Errors
    /// `ResourceExhausted` when more was stored than may be.
    pub(super) fn check(&self) -> Result<()> {
        if self.taken > self.ceiling {
            return Err(Error::resource_exhausted(format_args!(
                "files of layer store more than {} bytes",
                self.ceiling
            )));
        }
        if self.expected > self.most {
            return Err(Error::resource_exhausted(format_args!(
                "files of layer store more than {} bytes, which is the most for a blob of its size",
                self.most
            )));
        }
        Ok(())
    }
}

/// Writes the entry's data; long runs of zeroes and the holes of its map stay holes.
fn contents<R: BufRead>(
    file: &File,
    entry: &Entry,
    reader: &mut Reader<R>,
    room: &mut Room,
) -> Result<()> {
    let fail = |e: std::io::Error| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        entry_error("write", &entry.name, errno)
    };
    let (mut end, mut stored) = (0, Stored::default());
    let mut extents = crate::tar::extents(entry).into_iter();
    let mut extent = extents.next();
    while let Some(run) = &mut extent {
        if run.len == 0 {
            extent = extents.next();
            continue;
        }
        let part = reader.fill()?;
        let take = usize::try_from(run.len)
            .unwrap_or(usize::MAX)
            .min(part.len());
        if take == 0 {
            return Err(entry_error("write", &entry.name, Errno::INVAL));
        }
        let wrote = write_runs(file, &part[..take], run.offset, &mut stored).map_err(fail)?;
        room.wrote(&wrote)?;
        end = wrote.end.max(end);
        reader.consume(take);
        run.offset += take as u64;
        run.len -= take as u64;
    }
    if end != entry.size {
        file.set_len(entry.size).map_err(fail)?;
    }
    Ok(())
}

/// What was written.
#[derive(Debug, Default)]
pub(super) struct Wrote {
    /// Where the last piece ended.
    end: u64,
    /// Bytes that the disk took for it.
    stored: u64,
    /// The same, but of the first piece of a file only its own.
    expected: u64,
}

/// What of a file is stored, which is written from its start on.
#[derive(Debug, Default)]
pub(super) struct Stored {
    /// Where the last block ends.
    end: u64,
}

impl Stored {
    /// Bytes that the disk takes for a piece, in blocks that it did not take before.
    fn add(&mut self, from: u64, to: u64) -> u64 {
        let first = (from - from % STORED).max(self.end);
        let end = to.checked_next_multiple_of(STORED).unwrap_or(u64::MAX);
        self.end = self.end.max(end);
        end.saturating_sub(first)
    }
}

/// Writes `data` at `offset`, leaving out pieces of zeroes.
pub(super) fn write_runs(
    file: &File,
    data: &[u8],
    offset: u64,
    stored: &mut Stored,
) -> std::io::Result<Wrote> {
    let mut wrote = Wrote::default();
    let (mut start, mut at) = (0, 0);
    let mut flush = |from: usize, to: usize| -> std::io::Result<()> {
        if from < to {
            file.write_all_at(&data[from..to], offset + from as u64)?;
            wrote.end = offset + to as u64;
            let is_first = stored.end == 0;
            let taken = stored.add(offset + from as u64, wrote.end);
            wrote.stored += taken;
            // One file has one such piece; a byte in each of its blocks is not let pass.
            wrote.expected += if is_first { (to - from) as u64 } else { taken };
        }
        Ok(())
    };
    while at < data.len() {
        let to_edge = HOLE - (offset + at as u64) % HOLE;
        let len = usize::try_from(to_edge)
            .unwrap_or(usize::MAX)
            .min(data.len() - at);
        if is_zero(&data[at..at + len]) {
            flush(start, at)?;
            start = at + len;
        }
        at += len;
    }
    flush(start, at)?;
    Ok(wrote)
}

fn is_zero(piece: &[u8]) -> bool {
    let (wide, rest) = piece.as_chunks::<16>();
    wide.iter().all(|chunk| u128::from_ne_bytes(*chunk) == 0) && rest.iter().all(|b| *b == 0)
}
