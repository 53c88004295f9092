//! Directory trees of any depth: walk, measure, remove.
//!
//! Invariant: no recursion, few descriptors at a time, no symbolic link followed, and no path given to the kernel that is longer than it takes: layers come from strangers and may be
//! nested thousands deep.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, SeekFrom, Stat};
use rustix::io::Errno;
use types::{Error, Result};

mod linked;
mod measure;
mod walk;

pub(crate) use linked::Linked;
pub(crate) use measure::{measure, usage, usage_beside};
pub(crate) use walk::{Entry, Failure, Visitor, walk};

/// Bytes of a directory's list that are read at a time.
const PART: usize = 32 * 1024;
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

/// How long a file is.
///
/// # Errors
/// I/O.
pub(crate) fn length(path: &Path) -> Result<u64> {
    let facts = rustix::fs::lstat(path).map_err(|e| at("stat", path, e))?;
    Ok(u64::try_from(facts.st_size).unwrap_or(0))
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

/// The parent of a path, and its name in there.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

/// Opens the directory `relative` below `root`, in steps that the kernel takes.
///
/// # Errors
/// The errno of `openat`.
pub(crate) fn open_deep(root: impl AsFd, relative: &[u8]) -> Result<OwnedFd, Errno> {
    let mut held = None;
    let mut rest = relative;
    while !rest.is_empty() || held.is_none() {
        let take = if rest.len() <= CHUNK {
            rest.len()
        } else {
            // A component has at most 255 bytes: there is a slash.
            rest[..CHUNK]
                .iter()
                .rposition(|b| *b == b'/')
                .ok_or(Errno::NAMETOOLONG)?
        };
        let step = if take == 0 { b"." } else { &rest[..take] };
        let from = held.as_ref().map_or(root.as_fd(), OwnedFd::as_fd);
        let next = rustix::fs::openat(from, step, DIRECTORY, Mode::empty())?;
        held = Some(next);
        rest = rest.get(take + 1..).unwrap_or_default();
    }
    held.ok_or(Errno::INVAL)
}

/// An entry as its directory lists it.
pub(crate) struct Listed<'a> {
    pub(crate) name: &'a CStr,
    kind: FileType,
    /// Where the directory goes on behind it.
    next: u64,
}

impl Listed<'_> {
    /// Whether it is a directory: most file systems tell in the list.
    fn is_directory(&self, dir: BorrowedFd<'_>) -> Result<bool, Errno> {
        if self.kind != FileType::Unknown {
            return Ok(self.kind == FileType::Directory);
        }
        let facts = stat(dir, self.name)?;
        Ok(FileType::from_raw_mode(facts.st_mode) == FileType::Directory)
    }
}

/// Shows the entries of a directory from where it is read to `each`, without `.` and `..`, until that is
/// enough for it. Holds no more than a part of them, however many there are; they may be removed meanwhile.
///
/// # Errors
/// The errno of reading; that of `each`.
pub(crate) fn list(
    dir: BorrowedFd<'_>,
    mut each: impl FnMut(Listed<'_>) -> Result<ControlFlow<()>, Errno>,
) -> Result<(), Errno> {
    let mut part = Vec::with_capacity(PART);
    let mut entries = RawDir::new(dir, part.spare_capacity_mut());
    while let Some(entry) = entries.next() {
        let entry = entry?;
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let listed = Listed {
            name,
            kind: entry.file_type(),
            next: entry.next_entry_cookie(),
        };
        if each(listed)?.is_break() {
            break;
        }
    }
    Ok(())
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
    let mut serial = 0_u64;
    // What is moved here may stand before the place where it is being read: until nothing is there.
    while sweep(top, &mut serial).map_err(|e| at("empty", root, e))? {}
    Ok(())
}

/// Removes what `top` lists; a directory that is not empty is emptied, and what is not empty in it moved up.
/// True when there was something.
fn sweep(top: BorrowedFd<'_>, serial: &mut u64) -> Result<bool, Errno> {
    let mut was_any = false;
    rustix::fs::seek(top, SeekFrom::Start(0))?;
    list(top, |entry| {
        was_any = true;
        if !unlink(top, entry.name)? {
            let dir = rustix::fs::openat(top, entry.name, DIRECTORY, Mode::empty())?;
            list(dir.as_fd(), |inner| {
                if !unlink(dir.as_fd(), inner.name)? {
                    lift(dir.as_fd(), inner.name, top, serial)?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
            unlink(top, entry.name)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    Ok(was_any)
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
    fn a_tree_is_removed_however_many_entries_it_has_in_one_place() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        for n in 0..300 {
            std::fs::create_dir_all(root.join(format!("a/many-{n}/inner/empty"))).unwrap();
            std::fs::write(root.join(format!("a/many-{n}/inner/file")), "").unwrap();
            std::fs::write(root.join(format!("a/{n}-{}", "x".repeat(200))), "").unwrap();
        }
        remove(&root).unwrap();
        assert!(!root.exists());
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
