//! Directory trees of any depth: walk, measure, remove.
//!
//! Invariant: no recursion, no more than two descriptors at a time, no symbolic link followed, and no
//! path given to the kernel that is longer than it takes: layers come from strangers and may be
//! nested thousands deep.

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;
use types::{Error, Result, Usage};

use crate::print::Print;

/// Longest relative path given to one system call.
const CHUNK: usize = 2048;
const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

/// An error of a call on `path`.
pub(crate) fn at(call: &str, path: &Path, errno: Errno) -> Error {
    let made = Error::os(format_args!("{call} {}", path.display()), errno.into());
    match errno {
        Errno::NOSPC | Errno::DQUOT => made.reclass(types::Code::ResourceExhausted),
        _ => made,
    }
}

/// A path below a root: components joined by `/`, empty for the root.
pub(crate) type Relative = Vec<u8>;

/// `parent/name`.
pub(crate) fn join(parent: &[u8], name: &CStr) -> Relative {
    let mut joined = Vec::with_capacity(parent.len() + 1 + name.to_bytes().len());
    if !parent.is_empty() {
        joined.extend_from_slice(parent);
        joined.push(b'/');
    }
    joined.extend_from_slice(name.to_bytes());
    joined
}

/// Opens the directory `relative` below `root`, in steps that the kernel takes.
///
/// # Errors
/// The errno of `openat`.
pub(crate) fn open_deep(root: impl AsFd, relative: &[u8]) -> Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat(root, c".", DIRECTORY, Mode::empty())?;
    let mut rest = relative;
    while !rest.is_empty() {
        let take = if rest.len() <= CHUNK {
            rest.len()
        } else {
            // A component has at most 255 bytes: there is a slash.
            rest[..CHUNK]
                .iter()
                .rposition(|b| *b == b'/')
                .ok_or(Errno::NAMETOOLONG)?
        };
        dir = rustix::fs::openat(&dir, &rest[..take], DIRECTORY, Mode::empty())?;
        rest = rest.get(take + 1..).unwrap_or_default();
    }
    Ok(dir)
}

/// The names in a directory, without `.` and `..`.
///
/// # Errors
/// The errno of reading.
pub(crate) fn names(dir: BorrowedFd<'_>) -> Result<Vec<CString>, Errno> {
    let mut found = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            found.push(entry.file_name().to_owned());
        }
    }
    Ok(found)
}

/// The path by which an entry of an open directory can be named to calls that take no descriptor.
pub(crate) fn through_fd(dir: BorrowedFd<'_>, name: &CStr) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    let mut path = PathBuf::from(format!("/proc/self/fd/{}", dir.as_raw_fd()));
    path.push(std::ffi::OsStr::from_bytes(name.to_bytes()));
    path
}

/// Facts of an entry, links not followed.
///
/// # Errors
/// The errno of `fstatat`.
pub(crate) fn stat(dir: impl AsFd, name: &CStr) -> Result<Stat, Errno> {
    rustix::fs::statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)
}

/// Inodes and bytes below and including `root`; an inode with several names counts once.
///
/// # Errors
/// I/O. What vanishes meanwhile is not counted.
pub(crate) fn usage(root: &Path) -> Result<Usage> {
    usage_beside(root, None)
}

/// As [`usage`], without what is in `base` as well: `root` began as a snapshot of it, in which inodes
/// keep their numbers and the time of their last change.
///
/// # Errors
/// As [`usage`].
pub(crate) fn usage_beside(root: &Path, base: Option<&Path>) -> Result<Usage> {
    let mut count = Count::default();
    visit(root, base, &mut |entry| {
        let is_in_base = entry
            .beside
            .is_some_and(|before| is_same(&before, entry.facts));
        if !is_in_base {
            count.add(entry.facts);
        }
    })?;
    Ok(count.usage)
}

/// [`usage`] and print of a tree, in one walk.
///
/// # Errors
/// As [`usage`].
pub(crate) fn measure(root: &Path) -> Result<(Usage, Print)> {
    let (mut count, mut print) = (Count::default(), Print::default());
    visit(root, None, &mut |entry| {
        count.add(entry.facts);
        print.add(entry.parent, entry.name, entry.facts);
    })?;
    Ok((count.usage, print))
}

/// What has been met of a tree.
#[derive(Default)]
struct Count {
    usage: Usage,
    linked: HashSet<(u64, u64)>,
}

impl Count {
    fn add(&mut self, facts: &Stat) {
        let directory = FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
        if directory || facts.st_nlink < 2 || self.linked.insert((facts.st_dev, facts.st_ino)) {
            self.usage.inodes += 1;
            self.usage.size += u64::try_from(facts.st_blocks).unwrap_or(0) * 512;
        }
    }
}

/// An entry of a tree; its root has no name.
struct Entry<'a> {
    parent: &'a [u8],
    name: &'a CStr,
    facts: &'a Stat,
    /// Of the same path below the base.
    beside: Option<Stat>,
}

/// Shows `root` and all below it to `each`.
fn visit(root: &Path, base: Option<&Path>, each: &mut dyn FnMut(Entry<'_>)) -> Result<()> {
    let open = |path: &Path| {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|e| at("open", path, e))
    };
    let top = open(root)?;
    let base = base.map(open).transpose()?;
    each(Entry {
        parent: b"",
        name: c"",
        facts: &rustix::fs::fstat(&top).map_err(|e| at("stat", root, e))?,
        beside: base.as_ref().and_then(|base| rustix::fs::fstat(base).ok()),
    });
    let mut left: Vec<Relative> = vec![Vec::new()];
    while let Some(relative) = left.pop() {
        let dir = match open_deep(&top, &relative) {
            Ok(dir) => dir,
            Err(Errno::NOENT) => continue,
            Err(e) => return Err(at("open", root, e)),
        };
        let beside = base
            .as_ref()
            .and_then(|base| open_deep(base, &relative).ok());
        for name in names(dir.as_fd()).map_err(|e| at("read", root, e))? {
            let facts = match stat(&dir, &name) {
                Ok(facts) => facts,
                Err(Errno::NOENT) => continue,
                Err(e) => return Err(at("stat", root, e)),
            };
            if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
                left.push(join(&relative, &name));
            }
            each(Entry {
                parent: &relative,
                name: &name,
                facts: &facts,
                beside: beside.as_ref().and_then(|dir| stat(dir, &name).ok()),
            });
        }
    }
    Ok(())
}

/// True when an inode of a snapshot is that of its base, unchanged.
fn is_same(base: &Stat, found: &Stat) -> bool {
    let facts = |s: &Stat| (s.st_ino, s.st_mode, s.st_size, s.st_ctime, s.st_ctime_nsec);
    facts(base) == facts(found)
}

/// Removes everything in a directory.
///
/// # Errors
/// As [`remove`].
pub(crate) fn empty(root: &Path) -> Result<()> {
    let top = rustix::fs::open(root, DIRECTORY, Mode::empty()).map_err(|e| at("open", root, e))?;
    clear(top.as_fd(), root)
}

/// Removes a tree. A nested directory that is not empty is moved up to the top first, so that depth
/// costs nothing. A missing tree is no error.
///
/// # Errors
/// I/O; what is left can be removed by another call.
pub(crate) fn remove(root: &Path) -> Result<()> {
    let fail = |call: &'static str| move |e| at(call, root, e);
    let top = match rustix::fs::open(root, DIRECTORY, Mode::empty()) {
        Ok(top) => top,
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::NOTDIR | Errno::LOOP) => {
            return rustix::fs::unlink(root).map_err(fail("unlink"));
        }
        Err(e) => return Err(at("open", root, e)),
    };
    clear(top.as_fd(), root)?;
    rustix::fs::unlinkat(CWD, root, AtFlags::REMOVEDIR).map_err(fail("rmdir"))
}

/// Takes everything out of the directory `top`, which is at `root`.
fn clear(top: BorrowedFd<'_>, root: &Path) -> Result<()> {
    let fail = |call: &'static str| move |e| at(call, root, e);
    let mut serial = 0_u64;
    loop {
        let entries = names(top).map_err(fail("read"))?;
        if entries.is_empty() {
            return Ok(());
        }
        for name in entries {
            if unlink(top, &name).map_err(fail("unlink"))? {
                continue;
            }
            let dir =
                rustix::fs::openat(top, &name, DIRECTORY, Mode::empty()).map_err(fail("open"))?;
            for inner in names(dir.as_fd()).map_err(fail("read"))? {
                if unlink(dir.as_fd(), &inner).map_err(fail("unlink"))? {
                    continue;
                }
                lift(dir.as_fd(), &inner, top, &mut serial).map_err(fail("rename"))?;
            }
            unlink(top, &name).map_err(fail("rmdir"))?;
        }
    }
}

/// Removes a file or an empty directory; false for a directory with entries.
fn unlink(dir: BorrowedFd<'_>, name: &CStr) -> Result<bool, Errno> {
    match rustix::fs::unlinkat(dir, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(true),
        Err(Errno::ISDIR | Errno::PERM) => {}
        Err(e) => return Err(e),
    }
    match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
        Ok(()) | Err(Errno::NOENT) => Ok(true),
        Err(Errno::NOTEMPTY | Errno::EXIST) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Moves a directory to `top` under a name that is free there.
fn lift(
    dir: BorrowedFd<'_>,
    name: &CStr,
    top: BorrowedFd<'_>,
    serial: &mut u64,
) -> Result<(), Errno> {
    loop {
        *serial += 1;
        let target = format!(".removed-{serial}");
        let flags = rustix::fs::RenameFlags::NOREPLACE;
        match rustix::fs::renameat_with(dir, name, top, target.as_str(), flags) {
            Err(Errno::EXIST) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A chain of `depth` directories of 40 bytes each, with a file at the bottom.
    fn deep(root: &Path, depth: usize) {
        let mut dir = rustix::fs::open(root, DIRECTORY, Mode::empty()).unwrap();
        let name = "d".repeat(40);
        for _ in 0..depth {
            rustix::fs::mkdirat(&dir, name.as_str(), Mode::RWXU).unwrap();
            dir = rustix::fs::openat(&dir, name.as_str(), DIRECTORY, Mode::empty()).unwrap();
        }
        let file = rustix::fs::openat(&dir, c"f", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU);
        drop(file.unwrap());
    }

    #[test]
    fn trees_deeper_than_a_path_may_be_long_are_measured_and_removed() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        std::fs::create_dir(&root).unwrap();
        deep(&root, 1500);
        assert_eq!(usage(&root).unwrap().inodes, 1502);
        remove(&root).unwrap();
        assert!(!root.exists());
        remove(&root).unwrap();
    }

    #[test]
    fn hard_links_count_once_and_links_are_not_followed() {
        let temp = tempfile::tempdir().unwrap();
        let outside = temp.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("canary"), "x").unwrap();
        let root = temp.path().join("t");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("a"), vec![1; 8192]).unwrap();
        let alone = usage(&root).unwrap();
        std::fs::hard_link(root.join("a"), root.join("sub/b")).unwrap();
        assert_eq!(usage(&root).unwrap(), alone);
        std::os::unix::fs::symlink(&outside, root.join("link")).unwrap();
        assert_eq!(usage(&root).unwrap().inodes, alone.inodes + 1);
        remove(&root).unwrap();
        assert!(outside.join("canary").exists());
    }
}
