//! What a tree takes, and what it looks like: one walk with a bounded memory.
//!
//! Invariant: what is remembered of a tree is the way to where the walk is, some of the subdirectories
//! beside it, and a bit or two for each inode with several names.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, SeekFrom, Stat};
use rustix::io::Errno;
use types::{Result, Usage};

use super::{DIRECTORY, Listed, Relative, at, join, list, open_deep, stat};
use crate::print::Print;

/// Subdirectories of one directory that are remembered at a time.
const SOME: usize = 64;

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
    linked: Inodes,
}

/// Inodes that have been met, many of them by next to nothing: their numbers lie close together.
#[derive(Default)]
struct Inodes(HashMap<(u64, u64), u64>);

impl Inodes {
    /// True when it has not been met.
    fn insert(&mut self, device: u64, inode: u64) -> bool {
        let (bits, bit) = (
            self.0.entry((device, inode / 64)).or_default(),
            1 << (inode % 64),
        );
        let is_new = *bits & bit == 0;
        *bits |= bit;
        is_new
    }
}

impl Count {
    fn add(&mut self, facts: &Stat) {
        let directory = FileType::from_raw_mode(facts.st_mode) == FileType::Directory;
        if directory || facts.st_nlink < 2 || self.linked.insert(facts.st_dev, facts.st_ino) {
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

/// A directory on the way to where a walk is.
#[derive(Default)]
struct Level {
    /// Length of its path.
    len: usize,
    /// Subdirectories to go to.
    some: Vec<CString>,
    /// Where the list goes on behind those.
    next: u64,
    /// There are more of them.
    has_more: bool,
}

impl Level {
    /// Remembers a subdirectory, or that there is one more.
    fn add(&mut self, entry: &Listed<'_>) {
        if self.some.len() >= SOME {
            self.has_more = true;
        } else if !self.has_more {
            self.some.push(entry.name.to_owned());
            self.next = entry.next;
        }
    }

    /// Goes on with the list of its directory.
    fn refill(&mut self, dir: &OwnedFd) -> Result<(), Errno> {
        self.has_more = false;
        rustix::fs::seek(dir, SeekFrom::Start(self.next))?;
        list(dir.as_fd(), |entry| {
            if gone(entry.is_directory(dir.as_fd()), false)? {
                self.add(&entry);
            }
            Ok(match self.has_more {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })
    }
}

/// What a call says, or `otherwise` when somebody has removed or replaced the entry meanwhile.
fn gone<T>(done: Result<T, Errno>, otherwise: T) -> Result<T, Errno> {
    match done {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(otherwise),
        done => done,
    }
}

/// What a walk goes through.
struct Visit<'a> {
    top: OwnedFd,
    base: Option<OwnedFd>,
    each: &'a mut dyn FnMut(Entry<'_>),
}

impl Visit<'_> {
    fn open(&self, path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
        gone(open_deep(&self.top, path).map(Some), None)
    }

    /// Shows the entries of one directory.
    fn enter(&mut self, path: &[u8]) -> Result<Option<Level>, Errno> {
        let Some(dir) = self.open(path)? else {
            return Ok(None);
        };
        let beside = self.base.as_ref();
        let beside = beside.and_then(|base| open_deep(base, path).ok());
        let mut level = Level {
            len: path.len(),
            ..Level::default()
        };
        list(dir.as_fd(), |entry| {
            if let Some(facts) = gone(stat(&dir, entry.name).map(Some), None)? {
                if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
                    level.add(&entry);
                }
                let name = entry.name;
                (self.each)(Entry {
                    parent: path,
                    name,
                    facts: &facts,
                    beside: beside.as_ref().and_then(|dir| stat(dir, name).ok()),
                });
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(Some(level))
    }

    /// Depth first, so that no more is remembered than the way and some of what lies beside it.
    fn walk(&mut self) -> Result<(), Errno> {
        let mut path = Relative::new();
        let mut way: Vec<Level> = self.enter(&path)?.into_iter().collect();
        while let Some(level) = way.last_mut() {
            path.truncate(level.len);
            if let Some(name) = level.some.pop() {
                path = join(&path, &name);
                way.extend(self.enter(&path)?);
            } else if level.has_more {
                match self.open(&path)? {
                    Some(dir) => level.refill(&dir)?,
                    None => level.has_more = false,
                }
            } else {
                way.pop();
            }
        }
        Ok(())
    }
}

/// Shows `root` and all below it to `each`.
fn visit(root: &Path, base: Option<&Path>, each: &mut dyn FnMut(Entry<'_>)) -> Result<()> {
    let open = |path: &Path| {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|e| at("open", path, e))
    };
    let (top, base) = (open(root)?, base.map(open).transpose()?);
    each(Entry {
        parent: b"",
        name: c"",
        facts: &rustix::fs::fstat(&top).map_err(|e| at("stat", root, e))?,
        beside: base.as_ref().and_then(|base| rustix::fs::fstat(base).ok()),
    });
    let mut visit = Visit { top, base, each };
    visit.walk().map_err(|e| at("read", root, e))
}

/// True when an inode of a snapshot is that of its base, unchanged.
fn is_same(base: &Stat, found: &Stat) -> bool {
    let facts = |s: &Stat| (s.st_ino, s.st_mode, s.st_size, s.st_ctime, s.st_ctime_nsec);
    facts(base) == facts(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_walk_remembers_a_part_of_a_directory_and_sees_all_of_it() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        for n in 0..300 {
            std::fs::create_dir_all(root.join(format!("many/{n}/inner"))).unwrap();
            std::fs::write(root.join(format!("many/{n}/inner/file")), "").unwrap();
        }
        assert_eq!(usage(&root).unwrap().inodes, 2 + 3 * 300);
        let top = rustix::fs::open(&root, DIRECTORY, Mode::empty()).unwrap();
        let (mut seen, base) = (0, None);
        let each = &mut |_: Entry<'_>| seen += 1;
        let level = Visit { top, base, each }.enter(b"many").unwrap().unwrap();
        assert!(level.has_more && level.some.len() == SOME);
        assert_eq!(seen, 300);
    }

    #[test]
    fn what_is_replaced_while_it_is_measured_is_gone() {
        let temp = tempfile::tempdir().unwrap();
        let root = temp.path().join("t");
        for name in ["a", "b", "c"] {
            std::fs::create_dir_all(root.join(name).join("below")).unwrap();
        }
        let mut seen = 0;
        visit(&root, None, &mut |entry| {
            // When they have been listed, and before anybody goes there.
            if entry.parent.is_empty() && !entry.name.is_empty() {
                let path = root.join(entry.name.to_str().unwrap());
                std::fs::remove_dir_all(&path).unwrap();
                match entry.name.to_bytes() {
                    b"a" => std::fs::write(path, "").unwrap(),
                    b"b" => std::os::unix::fs::symlink("..", path).unwrap(),
                    _ => {}
                }
            }
            seen += 1;
        })
        .unwrap();
        assert_eq!(seen, 4);
    }

    #[test]
    fn inodes_are_met_once() {
        let mut inodes = Inodes::default();
        for inode in [0, 63, 64, u64::MAX] {
            assert!(inodes.insert(1, inode) && inodes.insert(2, inode));
            assert!(!inodes.insert(1, inode));
        }
        assert!((1000..4000).all(|inode| inodes.insert(1, inode)));
        assert!(inodes.0.len() < 64);
    }
}
