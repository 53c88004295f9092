//! Parent directories: a cache of open ones, and making those that are missing.
//!
//! Invariant: a cached descriptor is what its path resolves to: whatever replaces a directory or a
//! link empties the cache.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;

use rustix::fs::{CWD, FileType, Mode, RawMode, XattrFlags};
use rustix::io::Errno;
use types::{Error, IMPLIED_DIRECTORY, Result};

use super::Tree;
use super::attributes::copy_directory;
use crate::lower::{Found, is_opaque};
use crate::root::{DIRECTORY, MAX_NAME, entry_error, file_type, is_whiteout, stat};
use crate::tar::Time;

/// Most descriptors held.
const CACHED: usize = 128;
/// Most links followed on the way to one directory, as in the kernel.
const MAX_LINKS: usize = 40;

/// An open directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) fd: OwnedFd,
    pub(super) inode: u64,
    /// What is made here does not simply get our ids and the mode asked for: set-gid bit or default ACL.
    pub(super) inherits: bool,
}

impl Directory {
    /// # Errors
    /// `NAMETOOLONG` beyond what a path can be: links would let a tree grow deeper with each name, until
    /// nobody can remove it.
    pub(super) fn new(fd: OwnedFd) -> Result<Self, Errno> {
        let mut path = [MaybeUninit::uninit(); MAX_NAME + 1];
        rustix::fs::readlinkat_raw(CWD, sys::fs::fd_path(&fd), &mut path)?;
        let facts = rustix::fs::fstat(&fd)?;
        let set_gid = RawMode::from(facts.st_mode) & 0o2000 != 0;
        let mut none = [0_u8; 0];
        let acl = rustix::fs::fgetxattr(&fd, "system.posix_acl_default", &mut none[..]);
        Ok(Self {
            fd,
            inode: facts.st_ino,
            inherits: set_gid || acl.is_ok_and(|len| len > 0),
        })
    }
}

/// Open directories by path.
#[derive(Debug, Default)]
pub(super) struct Parents {
    open: HashMap<Vec<u8>, Rc<Directory>>,
}

impl Parents {
    pub(super) fn get(&self, path: &[u8]) -> Option<Rc<Directory>> {
        self.open.get(path).map(Rc::clone)
    }

    pub(super) fn put(&mut self, path: Vec<u8>, dir: Directory) -> Rc<Directory> {
        if self.open.len() >= CACHED {
            self.open.clear();
        }
        let dir = Rc::new(dir);
        self.open.insert(path, Rc::clone(&dir));
        dir
    }

    pub(super) fn forget(&mut self, path: &[u8]) {
        self.open.remove(path);
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }
}

impl Tree<'_> {
    /// Walks to the directory `parts`, making what is missing, following links inside the root.
    pub(super) fn make_parents(&mut self, parts: &[&[u8]]) -> Result<OwnedFd> {
        let name = parts.join(&b'/');
        self.walk(parts)
            .map_err(|e| entry_error("make parent directory", &name, e))
    }

    fn walk(&mut self, parts: &[&[u8]]) -> Result<OwnedFd, Errno> {
        // Components to go, next one last.
        let mut todo: Vec<Vec<u8>> = parts.iter().rev().map(|part| part.to_vec()).collect();
        // Where we are: components without links.
        let mut here: Vec<Vec<u8>> = Vec::new();
        let mut dir = self.root.plain_directory(b"")?;
        let mut links = 0;
        while let Some(part) = todo.pop() {
            if matches!(&*part, b"" | b".") {
                continue;
            }
            if part == b".." {
                here.pop();
                dir = self.root.plain_directory(&here.join(&b'/'))?;
                continue;
            }
            match rustix::fs::openat(&dir, &*part, DIRECTORY, Mode::empty()) {
                Ok(next) => {
                    dir = next;
                    here.push(part);
                }
                Err(Errno::NOENT) => {
                    here.push(part);
                    dir = self.make_one(&dir, &here, false)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let facts = stat(&dir, &part)?.ok_or(Errno::NOENT)?;
                    if self.upper.is_some() && is_whiteout(&facts) {
                        // Deleted by this very layer, and here again.
                        rustix::fs::unlinkat(&dir, &*part, rustix::fs::AtFlags::empty())?;
                        here.push(part);
                        dir = self.make_one(&dir, &here, true)?;
                        continue;
                    }
                    if file_type(&facts) != FileType::Symlink {
                        return Err(Errno::NOTDIR);
                    }
                    links += 1;
                    if links > MAX_LINKS {
                        return Err(Errno::LOOP);
                    }
                    let target = rustix::fs::readlinkat(&dir, &*part, Vec::new())?;
                    let target = target.as_bytes();
                    if target.starts_with(b"/") {
                        here.clear();
                        dir = self.root.plain_directory(b"")?;
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(<[u8]>::to_vec));
                }
                Err(e) => return Err(e),
            }
        }
        Ok(dir)
    }

    /// Makes the last of `here` in `parent`: like the directory that it covers, if there is one.
    fn make_one(
        &mut self,
        parent: &OwnedFd,
        here: &[Vec<u8>],
        opaque: bool,
    ) -> Result<OwnedFd, Errno> {
        let path = here.join(&b'/');
        if path.len() > MAX_NAME {
            return Err(Errno::NAMETOOLONG);
        }
        let name = here.last().ok_or(Errno::INVAL)?;
        rustix::fs::mkdirat(parent, name.as_slice(), Mode::from_raw_mode(0o755))?;
        let made = rustix::fs::openat(parent, name.as_slice(), DIRECTORY, Mode::empty())?;
        rustix::fs::fchmod(&made, Mode::from_raw_mode(0o755))?;
        if !opaque && self.is_detached() {
            rustix::fs::fsetxattr(&made, IMPLIED_DIRECTORY, b"y", XattrFlags::empty())?;
            return Ok(made);
        }
        let Some(upper) = &self.upper else {
            return Ok(made);
        };
        if opaque {
            rustix::fs::fsetxattr(&made, upper.opaque, b"y", XattrFlags::empty())?;
            return Ok(made);
        }
        let parts: Vec<&[u8]> = here.iter().map(Vec::as_slice).collect();
        let Some(found) = upper.lowers.find(&parts)? else {
            return Ok(made);
        };
        if file_type(&found.stat) == FileType::Directory {
            let source = rustix::fs::openat(&found.dir, name.as_slice(), DIRECTORY, Mode::empty())?;
            copy_directory(&source, &found.stat, &made)?;
            let time = |seconds, nanos: u64| Time {
                seconds,
                nanos: u32::try_from(nanos).unwrap_or(0),
            };
            let mtime = time(found.stat.st_mtime, found.stat.st_mtime_nsec);
            let atime = time(found.stat.st_atime, found.stat.st_atime_nsec);
            self.times.push(self.root, &path, mtime, Some(atime))?;
        }
        Ok(made)
    }

    /// What the layers below an upper directory show at `parts`, whose parents are no links.
    pub(super) fn below(&self, parts: &[&[u8]]) -> Result<Option<Found>, Errno> {
        let Some(upper) = &self.upper else {
            return Ok(None);
        };
        for end in 1..parts.len() {
            // An opaque directory of this layer hides what is below it.
            let Ok(dir) = self.root.plain_directory(&parts[..end].join(&b'/')) else {
                break;
            };
            if is_opaque(&dir, upper.opaque) {
                return Ok(None);
            }
        }
        upper.lowers.find(parts)
    }

    /// The path of an open directory below the root, without links.
    pub(super) fn canonical(&self, dir: &OwnedFd) -> Option<PathBuf> {
        let root = std::fs::read_link(sys::fs::fd_path(self.root.fd())).ok()?;
        let path = std::fs::read_link(sys::fs::fd_path(dir)).ok()?;
        path.strip_prefix(root).ok().map(PathBuf::from)
    }

    /// Brings the lower file `parts` up into the upper directory, as overlayfs does before it links.
    ///
    /// # Errors
    /// `InvalidArgument` when no layer shows such a file.
    pub(super) fn copy_up(&mut self, parts: &[&[u8]]) -> Result<()> {
        let name = parts.join(&b'/');
        let missing = || {
            Error::invalid_argument(format_args!(
                "hard link to {:?}, which is not there",
                String::from_utf8_lossy(&name)
            ))
        };
        let fail = |e| entry_error("copy up", &name, e);
        let (base, parents) = parts.split_last().ok_or_else(missing)?;
        let found = self.below(parts).map_err(fail)?.ok_or_else(missing)?;
        if file_type(&found.stat) == FileType::Directory {
            return Err(entry_error("link", &name, Errno::ISDIR));
        }
        let target = self.parent(parents)?;
        self.copy_node(&found, base, &target.fd, &name)
    }
}
