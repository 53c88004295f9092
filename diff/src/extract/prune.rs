//! Removal of what stands in the way.
//!
//! Invariant: no link is followed, no recursion, and what this archive wrote survives a deletion that
//! it also asks for.

use std::hash::BuildHasher as _;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, ResolveFlags};
use rustix::io::Errno;

use super::Tree;
use crate::root::{DIRECTORY, file_type, stat};

/// Longest path given to one call.
const STEP: usize = 2048;
/// Levels that are kept open: those above are read again when what is below them is done.
const OPEN: usize = 256;

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
    entries: Entries,
    /// It stays itself.
    keep: bool,
    inode: u64,
}

/// What of a directory is still to be looked at. It is read as it is emptied, never as a whole: what it
/// holds is as much as its owner likes.
enum Entries {
    /// From the start: what was removed is there no more, and what was emptied is known.
    All,
    Rest(Dir),
    None,
}

impl Tree<'_> {
    /// Removes the entry `name` of `dir` and all below it; with `spare` not what this archive wrote.
    pub(super) fn remove(&mut self, dir: &OwnedFd, name: &[u8], spare: bool) -> Result<(), Errno> {
        let Some(facts) = stat(dir, name)? else {
            return Ok(());
        };
        if !spare {
            self.unmark(rustix::fs::fstat(dir)?.st_ino, name);
        }
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

    /// What was written there is gone: another directory may get the number, and has not this entry.
    fn unmark(&mut self, inode: u64, name: &[u8]) {
        self.written.remove(self.hash(inode, name));
    }

    /// A file system gives the number of a directory that is gone to the next one.
    fn forget(&mut self, inode: u64) {
        self.emptied.remove(self.hasher.hash_one(inode));
    }

    /// Removes everything in `top`; with `spare` not what this archive wrote, nor the way to it.
    pub(super) fn empty(&mut self, top: &OwnedFd, spare: bool) -> Result<(), Errno> {
        self.parents.clear();
        let mut path = Vec::new();
        let mut stack = vec![self.level(top, &path, true, spare)?];
        while let Some(level) = stack.last_mut() {
            path.truncate(level.path);
            if let Some((name, written)) = self.directory_in(top, &path, level, spare)? {
                path.push(b'/');
                path.extend_from_slice(&name);
                let below = self.level(top, &path, written, spare)?;
                if let Some(far) = stack.len().checked_sub(OPEN)
                    && let Entries::Rest(_) = stack[far].entries
                {
                    stack[far].entries = Entries::All;
                }
                stack.push(below);
                continue;
            }
            let (keep, inode) = (level.keep, level.inode);
            stack.pop();
            if keep {
                continue;
            }
            let cut = path.iter().rposition(|b| *b == b'/').unwrap_or(0);
            let dir = open_below(top, &path[..cut])?;
            if !spare && let Some(above) = stack.last().map(|above| above.inode) {
                self.unmark(above, &path[cut + 1..]);
            }
            match rustix::fs::unlinkat(&dir, &path[cut + 1..], AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) if spare => {}
                Err(e) => return Err(e),
                Ok(()) => self.forget(inode),
            }
        }
        Ok(())
    }

    /// The directory `path` below `top`; there is nothing to do in one that was emptied before.
    fn level(
        &mut self,
        top: &OwnedFd,
        path: &[u8],
        keep: bool,
        spare: bool,
    ) -> Result<Level, Errno> {
        let dir = open_below(top, path)?;
        let inode = rustix::fs::fstat(&dir)?.st_ino;
        let hash = self.hasher.hash_one(inode);
        let is_done = spare && self.emptied.contains(hash);
        if spare && !is_done {
            self.emptied.insert(hash);
        }
        Ok(Level {
            path: path.len(),
            entries: if is_done {
                Entries::None
            } else {
                Entries::Rest(Dir::new(dir)?)
            },
            keep,
            inode,
        })
    }

    /// Removes what is no directory up to the next one, and returns that, and whether this archive wrote
    /// it.
    fn directory_in(
        &mut self,
        top: &OwnedFd,
        path: &[u8],
        level: &mut Level,
        spare: bool,
    ) -> Result<Option<(Vec<u8>, bool)>, Errno> {
        if let Entries::All = level.entries {
            level.entries = Entries::Rest(Dir::new(open_below(top, path)?)?);
        }
        let Entries::Rest(dir) = &mut level.entries else {
            return Ok(None);
        };
        while let Some(entry) = dir.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let written = spare && self.written.contains(self.hash(level.inode, name));
            let kind = match entry.file_type() {
                FileType::Unknown => stat(dir.fd()?, name)?.map(|facts| file_type(&facts)),
                kind => Some(kind),
            };
            match kind {
                Some(FileType::Directory) => return Ok(Some((name.to_vec(), written))),
                Some(_) if !written => {
                    rustix::fs::unlinkat(dir.fd()?, name, AtFlags::empty())?;
                    if !spare {
                        let hash = self.hasher.hash_one((level.inode, name));
                        self.written.remove(hash);
                    }
                }
                _ => {}
            }
        }
        level.entries = Entries::None;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::testing::{dir, file, merge, named};

    /// Names in a directory, more than one read of it gives.
    const WIDE: usize = 1200;

    /// Chains of directories, deeper than what is kept open and longer than a path, side by side in `top`;
    /// and files before, between and after them.
    fn grow(top: &Path) {
        std::fs::create_dir(top).unwrap();
        for number in 0..WIDE {
            std::fs::write(top.join(format!("{number}")), "").unwrap();
        }
        for chain in ["a", "b", "c"] {
            let mut at = sys::fs::open_dir(top).unwrap();
            for step in 0..OPEN + 30 {
                let name = if step == 0 {
                    chain
                } else {
                    "a-name-long-enough"
                };
                rustix::fs::mkdirat(&at, name, Mode::RWXU).unwrap();
                let below = rustix::fs::openat(&at, name, DIRECTORY, Mode::empty()).unwrap();
                let empty = b"beside it";
                rustix::fs::mkdirat(&below, &empty[..], Mode::RWXU).unwrap();
                at = below;
            }
        }
    }

    #[test]
    fn what_is_deep_and_wide_is_removed_as_a_whole() {
        let temp = tempfile::tempdir().unwrap();
        grow(&temp.path().join("d"));
        merge(&named(&[file("d")]), temp.path()).unwrap();
        assert!(temp.path().join("d").is_file());
    }

    #[test]
    fn of_what_is_deep_and_wide_stays_what_the_archive_wrote() {
        // In one of the chains as deep as an archive can go, which is beyond what is kept open.
        let deep = vec!["x"; OPEN + 20].join("/");
        let layer = [
            file(&format!("d/a/{deep}/new")),
            dir(&format!("d/b/{deep}")),
            file("d/kept"),
            file(&format!("d/{}", WIDE / 2)),
        ];
        for mark in ["d/.wh..wh..opq", ".wh.d"] {
            let temp = tempfile::tempdir().unwrap();
            let top = temp.path().join("d");
            grow(&top);
            let mut all = layer.to_vec();
            // Once more: what was emptied is not looked at again.
            all.extend([dir("d"), file(mark), file(mark)]);
            merge(&named(&all), temp.path()).unwrap();
            let mut left: Vec<PathBuf> = std::fs::read_dir(&top)
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into())
                .collect();
            left.sort();
            let want = [&format!("{}", WIDE / 2), "a", "b", "kept"];
            assert_eq!(left, want.map(PathBuf::from), "{mark}");
            assert!(top.join(format!("a/{deep}/new")).is_file(), "{mark}");
            assert!(top.join(format!("b/{deep}")).is_dir(), "{mark}");
            for chain in ["a", "b"] {
                let left = std::fs::read_dir(top.join(chain)).unwrap().count();
                assert_eq!(left, 1, "{mark}: old names stay in {chain}");
            }
        }
    }
}
