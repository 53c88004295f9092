//! Exact copy of a directory tree.
//!
//! Invariant: the copy has the source's names, contents with their holes, owners, modes, extended
//! attributes, hard links, devices and times; links are never followed. Blocks are shared where the
//! file system can.

use std::ffi::CStr;
use std::fs::File;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::rc::Rc;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, RawMode, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;
use types::Result;

use crate::tree::{self, Entry, Failure, Linked, Visitor, open_deep};
use paths::{Paths, Place};

mod paths;

/// Buffer for contents that the kernel does not copy itself.
const BUFFER: usize = 256 * 1024;
/// Longest extended attribute and list of names (kernel limits).
const XATTR: usize = 64 * 1024;
/// What nearly all of these fit into.
const SHORT: usize = 1024;

/// What one copy keeps between entries.
struct Copier<'a> {
    target: &'a OwnedFd,
    /// The directory that is copied to.
    here: Rc<OwnedFd>,
    /// Where inodes with several names went first.
    linked: Linked<Place>,
    paths: Paths,
    buffer: Vec<u8>,
}

/// Makes directory `target` as a copy of `source`; without one, as an empty root directory.
///
/// # Errors
/// I/O with the path; what was made is left.
pub(crate) fn tree(source: Option<&Path>, target: &Path) -> Result<()> {
    rustix::fs::mkdir(target, Mode::RWXU).map_err(|e| tree::at("mkdir", target, e))?;
    let Some(source) = source else {
        let mode = Mode::from_raw_mode(0o755);
        return rustix::fs::chmod(target, mode).map_err(|e| tree::at("chmod", target, e));
    };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let open = |path| {
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(|e| tree::at("open", path, e))
    };
    let to = open(target)?;
    let mut copier = Copier {
        target: &to,
        here: Rc::new(open(target)?),
        linked: Linked::default(),
        paths: Paths::default(),
        buffer: Vec::new(),
    };
    tree::walk(&open(source)?, source, "copy", &mut copier)
}

/// Copies the entries of one directory, then its own attributes: what its subdirectories get later
/// changes their times only.
impl Visitor for Copier<'_> {
    type Kept = ();

    fn enter(
        &mut self,
        _dir: BorrowedFd<'_>,
        path: &[u8],
        _above: Option<&()>,
    ) -> Result<(), Failure> {
        self.here = Rc::new(open_deep(self.target, path)?);
        Ok(())
    }

    fn entry(&mut self, (): &mut (), entry: Entry<'_>) -> Result<(), Failure> {
        match FileType::from_raw_mode(entry.facts.st_mode) {
            FileType::Directory => rustix::fs::mkdirat(&self.here, entry.name, Mode::RWXU)?,
            FileType::Socket => {}
            kind => self.other(kind, &entry)?,
        }
        Ok(())
    }

    fn listed(&mut self, source: BorrowedFd<'_>) -> Result<(), Failure> {
        let target = self.here.as_fd();
        let facts = rustix::fs::fstat(source)?;
        xattrs((source, c"."), (target, c"."), |_| true)?;
        rustix::fs::fchown(
            target,
            Some(Uid::from_raw(facts.st_uid)),
            Some(Gid::from_raw(facts.st_gid)),
        )?;
        rustix::fs::fchmod(target, permissions(&facts))?;
        Ok(rustix::fs::futimens(target, &times(&facts))?)
    }
}

impl Copier<'_> {
    /// Copies what is no directory.
    fn other(&mut self, kind: FileType, entry: &Entry<'_>) -> Result<(), Failure> {
        let here = Rc::clone(&self.here);
        let (source, target) = (entry.dir, here.as_fd());
        let (name, facts) = (entry.name, entry.facts);
        if let Some(first) = self.linked.again(facts) {
            let (parent, base) = self.paths.get(first)?;
            if self.linked.is_empty() {
                self.paths.clear();
            }
            let parent = open_deep(self.target, &parent)?;
            return Ok(rustix::fs::linkat(
                &parent,
                base.as_slice(),
                target,
                name,
                AtFlags::empty(),
            )?);
        }
        if facts.st_nlink > 1 {
            let place = self.paths.put(target, entry.path, name.to_bytes())?;
            self.linked.first(facts, place)?;
        }
        match kind {
            FileType::RegularFile => self.file(source, target, name, facts)?,
            FileType::Symlink => {
                let text = rustix::fs::readlinkat(source, name, Vec::new())?;
                rustix::fs::symlinkat(&text, target, name)?;
            }
            _ => rustix::fs::mknodat(target, name, kind, Mode::RUSR | Mode::WUSR, facts.st_rdev)?,
        }
        let owner = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(target, name, Some(owner.0), Some(owner.1), nofollow)?;
        xattrs((source, name), (target, name), |_| true)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(target, name, permissions(facts), AtFlags::empty())?;
        }
        Ok(rustix::fs::utimensat(
            target,
            name,
            &times(facts),
            nofollow,
        )?)
    }

    fn file(
        &mut self,
        source: BorrowedFd<'_>,
        target: BorrowedFd<'_>,
        name: &CStr,
        facts: &Stat,
    ) -> Result<(), Errno> {
        let common = OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Non-blocking: should the entry have become a fifo meanwhile, the open must not hang.
        let from = rustix::fs::openat(
            source,
            name,
            common | OFlags::RDONLY | OFlags::NONBLOCK,
            Mode::empty(),
        )?;
        let flags = common | OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL;
        let to = rustix::fs::openat(target, name, flags, Mode::RUSR | Mode::WUSR)?;
        let (from, to) = (File::from(from), File::from(to));
        let size = u64::try_from(facts.st_size).unwrap_or(0);
        data(&from, &to, size, &mut self.buffer)
            .map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))
    }
}

/// Makes file `target` with the contents of `source`, not yet flushed.
///
/// # Errors
/// I/O with the path; what was made is left.
pub(crate) fn file(source: &Path, target: &Path) -> Result<()> {
    let open = || -> std::io::Result<(File, File)> {
        let from = File::open(source)?;
        Ok((from, File::create_new(target)?))
    };
    let copied = open().and_then(|(from, to)| {
        let size = from.metadata()?.len();
        data(&from, &to, size, &mut Vec::new())
    });
    copied.map_err(|e| {
        let errno = Errno::from_io_error(&e).unwrap_or(Errno::IO);
        tree::at("copy", source, errno)
    })
}

/// Shares the blocks of a file, or copies its data segments only, so that holes stay holes.
fn data(from: &File, mut to: &File, size: u64, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    if size == 0 || rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    buffer.resize(BUFFER, 0);
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(from, rustix::fs::SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(Errno::NXIO) => break,
            Err(_) => at,
        };
        let end = rustix::fs::seek(from, rustix::fs::SeekFrom::Hole(start)).unwrap_or(size);
        to.seek(SeekFrom::Start(start))?;
        at = start;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(BUFFER).min(BUFFER);
            let got = from.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                break;
            }
            to.write_all(&buffer[..got])?;
            at += got as u64;
        }
        if at < end {
            break;
        }
    }
    to.set_len(size)
}

pub(crate) fn permissions(facts: &Stat) -> Mode {
    Mode::from_raw_mode(RawMode::from(facts.st_mode) & 0o7777)
}

pub(crate) fn times(facts: &Stat) -> Timestamps {
    let time = |seconds, nanos: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanos).unwrap_or(0),
    };
    Timestamps {
        last_access: time(facts.st_atime, facts.st_atime_nsec),
        last_modification: time(facts.st_mtime, facts.st_mtime_nsec),
    }
}

/// Copies the extended attributes that are wanted; a target that has none at all is no error.
pub(crate) fn xattrs(
    source: (BorrowedFd<'_>, &CStr),
    target: (BorrowedFd<'_>, &CStr),
    wanted: impl Fn(&[u8]) -> bool,
) -> Result<(), Errno> {
    let from = tree::through_fd(source.0, source.1);
    let mut list = vec![0_u8; SHORT];
    let len = loop {
        match rustix::fs::llistxattr(&from, &mut list[..]) {
            Ok(len) => break len,
            Err(Errno::RANGE) if list.len() < XATTR => list.resize(XATTR, 0),
            Err(Errno::NOTSUP) => return Ok(()),
            Err(e) => return Err(e),
        }
    };
    if len == 0 {
        return Ok(());
    }
    let to = tree::through_fd(target.0, target.1);
    // Nearly all are short, and most entries that have one have no other: the longest is not made room
    // for before one is met.
    let mut value = vec![0_u8; SHORT];
    for name in list[..len]
        .split(|b| *b == 0)
        .filter(|name| !name.is_empty() && wanted(name))
    {
        let got = loop {
            match rustix::fs::lgetxattr(&from, name, &mut value[..]) {
                Ok(got) => break Some(got),
                Err(Errno::RANGE) if value.len() < XATTR => value.resize(XATTR, 0),
                Err(Errno::NODATA | Errno::NOTSUP) => break None,
                Err(e) => return Err(e),
            }
        };
        let Some(got) = got else { continue };
        match rustix::fs::lsetxattr(&to, name, &value[..got], XattrFlags::empty()) {
            Ok(()) => {}
            Err(Errno::NOTSUP | Errno::PERM) => {
                tracing::debug!(name = %String::from_utf8_lossy(name), "attribute not copied");
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    #[test]
    fn a_copy_has_everything_the_source_has() {
        let temp = tempfile::tempdir().unwrap();
        let source = temp.path().join("s");
        std::fs::create_dir_all(source.join("d/e")).unwrap();
        let file = source.join("d/file");
        std::fs::write(&file, "text").unwrap();
        std::fs::hard_link(&file, source.join("link")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", source.join("sym")).unwrap();
        std::os::unix::fs::lchown(source.join("sym"), Some(3), Some(4)).unwrap();
        let sparse = File::create(source.join("sparse")).unwrap();
        sparse.set_len(64 << 20).unwrap();
        sparse.write_all_at(b"end", 40 << 20).unwrap();
        rustix::fs::mknodat(CWD, source.join("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        rustix::fs::mknodat(
            CWD,
            source.join("null"),
            FileType::CharacterDevice,
            Mode::RUSR,
            rustix::fs::makedev(1, 3),
        )
        .unwrap();
        std::os::unix::fs::chown(&file, Some(11), Some(12)).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o4755)).unwrap();
        // Not every file system has them.
        let has_xattr = rustix::fs::lsetxattr(&file, "user.k", b"v", XattrFlags::empty()).is_ok();
        let long = [b'x'; 2000];
        let has_long =
            rustix::fs::lsetxattr(&file, "user.long", &long, XattrFlags::empty()).is_ok();
        let old = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 123);
        File::open(source.join("d"))
            .unwrap()
            .set_modified(old)
            .unwrap();

        let target = temp.path().join("t");
        tree(Some(&source), &target).unwrap();

        let facts = |p: &str| std::fs::symlink_metadata(target.join(p)).unwrap();
        assert_eq!(std::fs::read(target.join("d/file")).unwrap(), b"text");
        assert_eq!((facts("d/file").uid(), facts("d/file").gid()), (11, 12));
        assert_eq!(facts("d/file").mode() & 0o7777, 0o4755);
        assert_eq!(facts("d/file").ino(), facts("link").ino());
        assert_eq!(
            std::fs::read_link(target.join("sym")).unwrap(),
            Path::new("/etc/passwd")
        );
        assert_eq!(facts("sym").uid(), 3);
        assert_eq!(facts("null").rdev(), rustix::fs::makedev(1, 3));
        assert_eq!(facts("d").modified().unwrap(), old);
        assert_eq!(facts("sparse").size(), 64 << 20);
        assert!(
            facts("sparse").blocks() * 512 < 1 << 20,
            "holes were filled"
        );
        let mut end = [0; 3];
        File::open(target.join("sparse"))
            .unwrap()
            .read_exact_at(&mut end, 40 << 20)
            .unwrap();
        assert_eq!(&end, b"end");
        let mut value = [0; 8];
        if has_xattr {
            let got = rustix::fs::lgetxattr(target.join("d/file"), "user.k", &mut value[..]);
            assert_eq!((got, value[0]), (Ok(1), b'v'));
        }
        let mut value = [0; 4096];
        if has_long {
            let got = rustix::fs::lgetxattr(target.join("d/file"), "user.long", &mut value[..]);
            assert_eq!((got, value[1999]), (Ok(2000), b'x'));
        }
        assert_eq!(
            tree::usage(&target).unwrap().inodes,
            tree::usage(&source).unwrap().inodes
        );
    }

    #[test]
    fn hard_links_that_lie_far_from_each_other_stay_links() {
        let temp = tempfile::tempdir().unwrap();
        let source = temp.path().join("s");
        let name = |n: usize, which: &str| format!("{which}/{}/{n}", n % 90);
        for n in 0..300 {
            for which in ["a", "b"] {
                let path = source.join(name(n, which));
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            }
            let first = source.join(name(n, "a"));
            std::fs::write(&first, n.to_string()).unwrap();
            std::fs::hard_link(&first, source.join(name(n, "b"))).unwrap();
        }
        // One whose other name is not in the tree.
        let outside = temp.path().join("outside");
        std::fs::write(&outside, "o").unwrap();
        std::fs::hard_link(&outside, source.join("alone")).unwrap();
        let target = temp.path().join("t");
        tree(Some(&source), &target).unwrap();
        let facts = |path: &str| std::fs::metadata(target.join(path)).unwrap();
        for n in 0..300 {
            let [first, second] = ["a", "b"].map(|which| facts(&name(n, which)));
            assert_eq!((first.ino(), first.nlink()), (second.ino(), 2));
            let text = std::fs::read_to_string(target.join(name(n, "b"))).unwrap();
            assert_eq!(text, n.to_string());
        }
        assert_eq!(facts("alone").nlink(), 1);
    }
}
