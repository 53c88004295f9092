//! Parent directories: a cache of open ones, and making those that are missing.
//!
//! Invariant: a cached descriptor is what its path resolves to: whatever replaces a directory or a
//! link empties the cache. What a directory hands down is forgotten when the directory is changed.

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
/// Most components on it, those of links among them: twice what the longest name can have.
const MAX_STEPS: usize = MAX_NAME + 1;

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
            // What is not asked for has no length.
            inherits: set_gid || !matches!(acl, Err(Errno::NODATA | Errno::NOTSUP)),
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

    /// Forgets a directory that is no more what it was, under all the paths that lead to it.
    pub(super) fn forget(&mut self, inode: u64) {
        self.open.retain(|_, dir| dir.inode != inode);
    }

    pub(super) fn clear(&mut self) {
        self.open.clear();
    }
}

/// A way to a directory, on which links are met.
struct Way {
    /// Components to go, next one last.
    todo: Vec<Vec<u8>>,
    /// Where it is: components without links.
    here: Vec<Vec<u8>>,
    links: usize,
    steps: usize,
}

/// What comes next on a way.
enum Step {
    /// Into this directory.
    Name(Vec<u8>),
    /// To a directory above, which is [`Way::here`] now.
    Up,
}

impl Way {
    fn new(parts: &[&[u8]]) -> Self {
        Self {
            todo: parts.iter().rev().map(|part| part.to_vec()).collect(),
            here: Vec::new(),
            links: 0,
            steps: 0,
        }
    }

    /// # Errors
    /// `LOOP` beyond [`MAX_STEPS`].
    fn next(&mut self) -> Result<Option<Step>, Errno> {
        let mut is_up = false;
        while let Some(part) = self.todo.pop() {
            self.steps += 1;
            if self.steps > MAX_STEPS {
                return Err(Errno::LOOP);
            }
            match &*part {
                b"" | b"." => {}
                b".." => {
                    self.here.pop();
                    is_up = true;
                }
                // However far up it goes, the directory there is opened once.
                _ if is_up => {
                    self.todo.push(part);
                    return Ok(Some(Step::Up));
                }
                _ => return Ok(Some(Step::Name(part))),
            }
        }
        Ok(is_up.then_some(Step::Up))
    }

    /// Goes where the link `name` in `dir` leads; true when that is from the root on.
    ///
    /// # Errors
    /// `NOTDIR` when it is no link.
    fn link(&mut self, dir: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
        let facts = stat(dir, name)?.ok_or(Errno::NOENT)?;
        if file_type(&facts) != FileType::Symlink {
            return Err(Errno::NOTDIR);
        }
        self.links += 1;
        if self.links > MAX_LINKS {
            return Err(Errno::LOOP);
        }
        let target = rustix::fs::readlinkat(dir, name, Vec::new())?;
        let target = target.as_bytes();
        let from_root = target.starts_with(b"/");
        if from_root {
            self.here.clear();
        }
        let parts = target.split(|b| *b == b'/').rev();
        self.todo.extend(parts.map(<[u8]>::to_vec));
        Ok(from_root)
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
        let mut way = Way::new(parts);
        let mut dir = self.root.plain_directory(b"")?;
        while let Some(step) = way.next()? {
            let part = match step {
                Step::Name(part) => part,
                Step::Up => {
                    dir = self.root.plain_directory(&way.here.join(&b'/'))?;
                    continue;
                }
            };
            match rustix::fs::openat(&dir, &*part, DIRECTORY, Mode::empty()) {
                Ok(next) => {
                    dir = next;
                    way.here.push(part);
                }
                Err(Errno::NOENT) => {
                    way.here.push(part);
                    dir = self.make_one(&dir, &way.here, false)?;
                }
                Err(Errno::NOTDIR | Errno::LOOP) => {
                    let facts = stat(&dir, &part)?.ok_or(Errno::NOENT)?;
                    if self.upper.is_some() && is_whiteout(&facts) {
                        // Deleted by this very layer, and here again.
                        rustix::fs::unlinkat(&dir, &*part, rustix::fs::AtFlags::empty())?;
                        way.here.push(part);
                        dir = self.make_one(&dir, &way.here, true)?;
                    } else if way.link(&dir, &part)? {
                        dir = self.root.plain_directory(b"")?;
                    }
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
        self.times.count(&path);
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
            let stored = copy_directory(&source, &found.stat, &made)?;
            self.room.add(stored);
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
        let (_, parents) = parts.split_last().ok_or(Errno::INVAL)?;
        let mut dir = self.root.plain_directory(b"")?;
        for part in parents {
            dir = match rustix::fs::openat(&dir, *part, DIRECTORY, Mode::empty()) {
                // An opaque directory of this layer hides what is below it.
                Ok(next) if is_opaque(&next, upper.opaque) => return Ok(None),
                Ok(next) => next,
                Err(Errno::NOENT) => break,
                // So does what is no directory.
                Err(Errno::NOTDIR | Errno::LOOP) => return Ok(None),
                Err(e) => return Err(e),
            };
        }
        upper.lowers.find(parts)
    }

    /// The path of an open directory below the root, without links.
    pub(super) fn canonical(&self, dir: &OwnedFd) -> Option<PathBuf> {
        let root = std::fs::read_link(sys::fs::fd_path(self.root.fd())).ok()?;
        let path = std::fs::read_link(sys::fs::fd_path(dir)).ok()?;
        path.strip_prefix(root).ok().map(PathBuf::from)
    }

    /// Where the directory `parts` is, whose own links are followed as far as this layer has them. What it
    /// has not is taken from the layers below, where no link is followed.
    fn resolve(&self, parts: &[&[u8]]) -> Result<Vec<Vec<u8>>, Errno> {
        let mut way = Way::new(parts);
        let mut dir = Some(self.root.plain_directory(b"")?);
        while let Some(step) = way.next()? {
            let part = match step {
                Step::Name(part) => part,
                Step::Up => {
                    dir = match self.root.plain_directory(&way.here.join(&b'/')) {
                        Err(Errno::NOENT) => None,
                        up => Some(up?),
                    };
                    continue;
                }
            };
            let opened = dir.as_ref().map_or(Err(Errno::NOENT), |dir| {
                rustix::fs::openat(dir, &*part, DIRECTORY, Mode::empty())
            });
            match (opened, &dir) {
                (Ok(next), _) => {
                    way.here.push(part);
                    dir = Some(next);
                }
                (Err(Errno::NOENT), _) => {
                    way.here.push(part);
                    let here: Vec<&[u8]> = way.here.iter().map(Vec::as_slice).collect();
                    let found = self.below(&here)?;
                    found
                        .filter(|found| file_type(&found.stat) == FileType::Directory)
                        .ok_or(Errno::NOENT)?;
                    dir = None;
                }
                (Err(Errno::NOTDIR | Errno::LOOP), Some(at)) => {
                    if way.link(at, &part)? {
                        dir = Some(self.root.plain_directory(b"")?);
                    }
                }
                (Err(e), _) => return Err(e),
            }
        }
        Ok(way.here)
    }

    /// Brings the lower file `parts` up into the upper directory, as overlayfs does before it links. Returns
    /// the directory that it is in.
    ///
    /// # Errors
    /// `InvalidArgument` when no layer shows such a file.
    pub(super) fn copy_up(&mut self, parts: &[&[u8]]) -> Result<Rc<Directory>> {
        let name = parts.join(&b'/');
        let missing = || {
            Error::invalid_argument(format_args!(
                "hard link to {:?}, which is not there",
                String::from_utf8_lossy(&name)
            ))
        };
        let fail = |e| entry_error("copy up", &name, e);
        let (base, parents) = parts.split_last().ok_or_else(missing)?;
        if self.upper.is_none() {
            return Err(missing());
        }
        let parents = match self.resolve(parents) {
            Err(Errno::NOENT) => return Err(missing()),
            parents => parents.map_err(fail)?,
        };
        let mut parts: Vec<&[u8]> = parents.iter().map(Vec::as_slice).collect();
        parts.push(base);
        let found = self.below(&parts).map_err(fail)?.ok_or_else(missing)?;
        if file_type(&found.stat) == FileType::Directory {
            return Err(entry_error("link", &name, Errno::ISDIR));
        }
        let target = self.parent(&parts[..parts.len() - 1])?;
        self.copy_node(&found, base, &target.fd, &name)?;
        Ok(target)
    }
}
