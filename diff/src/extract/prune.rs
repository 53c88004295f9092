//! Removal of what stands in the way.
//!
//! Invariant: no link is followed, no recursion, and what this archive wrote survives a deletion that
//! it also asks for.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, ResolveFlags};
use rustix::io::Errno;

use super::Tree;
use crate::root::{DIRECTORY, file_type, names, stat};

/// Longest path given to one call.
const STEP: usize = 2048;

/// Opens `path` below `dir`, no part of it a symbolic link, in steps that the kernel takes.
fn open_below(dir: impl AsFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let mut at = rustix::fs::openat(dir, c".", DIRECTORY, Mode::empty())?;
    let mut rest = path.strip_prefix(b"/").unwrap_or(path);
    while !rest.is_empty() {
        let take = if rest.len() <= STEP {
            rest.len()
        } else {
            rest[..STEP]
                .iter()
                .rposition(|b| *b == b'/')
                .ok_or(Errno::NAMETOOLONG)?
        };
        let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        at = rustix::fs::openat2(&at, &rest[..take], DIRECTORY, Mode::empty(), how)?;
        rest = rest.get(take + 1..).unwrap_or_default();
    }
    Ok(at)
}

/// A directory being emptied.
struct Level {
    /// Length of its path.
    path: usize,
    /// Directories in it that are still to be emptied, and whether this archive wrote them.
    below: Vec<(Vec<u8>, bool)>,
    /// It stays itself.
    keep: bool,
    inode: u64,
}

impl Tree<'_> {
    /// Removes the entry `name` of `dir` and all below it; with `spare` not what this archive wrote.
    pub(super) fn remove(&mut self, dir: &OwnedFd, name: &[u8], spare: bool) -> Result<(), Errno> {
        let Some(facts) = stat(dir, name)? else {
            return Ok(());
        };
        if file_type(&facts) != FileType::Directory {
            if file_type(&facts) == FileType::Symlink {
                self.parents.clear();
            }
            return rustix::fs::unlinkat(dir, name, AtFlags::empty());
        }
        self.parents.clear();
        let inner = rustix::fs::openat(dir, name, DIRECTORY, Mode::empty())?;
        self.empty(&inner, spare)?;
        match rustix::fs::unlinkat(dir, name, AtFlags::REMOVEDIR) {
            Err(Errno::NOTEMPTY | Errno::EXIST) if spare => Ok(()),
            other => {
                self.forget(facts.st_ino);
                other
            }
        }
    }

    /// A file system gives the number of a directory that is gone to the next one.
    fn forget(&mut self, inode: u64) {
        self.emptied.remove(&inode);
    }

    /// Removes everything in `top`; with `spare` not what this archive wrote, nor the way to it.
    pub(super) fn empty(&mut self, top: &OwnedFd, spare: bool) -> Result<(), Errno> {
        self.parents.clear();
        let mut path = Vec::new();
        let mut stack = vec![self.level(top, &path, true, spare)?];
        while let Some(level) = stack.last_mut() {
            path.truncate(level.path);
            if let Some((name, written)) = level.below.pop() {
                path.push(b'/');
                path.extend_from_slice(&name);
                stack.push(self.level(top, &path, written, spare)?);
                continue;
            }
            let (keep, inode) = (level.keep, level.inode);
            stack.pop();
            if keep {
                continue;
            }
            let cut = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
            let dir = open_below(top, &path[..cut])?;
            match rustix::fs::unlinkat(&dir, &path[cut + 1..], AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if spare => {}
                Err(e) => return Err(e),
                Ok(()) => self.forget(inode),
            }
        }
        Ok(())
    }

    /// Removes what is no directory in the directory `path` below `top`, and lists the directories.
    fn level(
        &mut self,
        top: &OwnedFd,
        path: &[u8],
        keep: bool,
        spare: bool,
    ) -> Result<Level, Errno> {
        let dir = open_below(top, path)?;
        let inode = rustix::fs::fstat(&dir)?.st_ino;
        let mut level = Level {
            path: path.len(),
            below: Vec::new(),
            keep,
            inode,
        };
        if spare && !self.emptied.insert(inode) {
            return Ok(level);
        }
        for name in names(&dir)? {
            let written = spare && self.written.contains(self.hash(inode, &name));
            let Some(facts) = stat(&dir, &name)? else {
                continue;
            };
            if file_type(&facts) == FileType::Directory {
                level.below.push((name, written));
            } else if !written {
                rustix::fs::unlinkat(&dir, &*name, AtFlags::empty())?;
            }
        }
        Ok(level)
    }
}
