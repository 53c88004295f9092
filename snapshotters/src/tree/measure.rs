//! What a tree takes, and what it looks like: one walk with a bounded memory.
//!
//! Invariant: what is remembered of a tree is a bit or two for each inode with several names.

use std::collections::HashMap;
use std::ffi::CStr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, Stat};
use types::{Result, Usage};

use super::{DIRECTORY, Failure, Visitor, at, open_deep, stat, walk};
use crate::print::Print;

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

/// What a walk goes through.
struct Visit<'a> {
    base: Option<OwnedFd>,
    /// The directory of the base at the path of the one that is shown.
    beside: Option<OwnedFd>,
    each: &'a mut dyn FnMut(Entry<'_>),
}

impl Visitor for Visit<'_> {
    type Kept = ();
    const IS_LIVE: bool = true;

    fn enter(
        &mut self,
        _dir: BorrowedFd<'_>,
        path: &[u8],
        _above: Option<&()>,
    ) -> Result<(), Failure> {
        let base = self.base.as_ref();
        self.beside = base.and_then(|base| open_deep(base, path).ok());
        Ok(())
    }

    fn entry(&mut self, (): &mut (), entry: super::Entry<'_>) -> Result<(), Failure> {
        let beside = self.beside.as_ref();
        (self.each)(Entry {
            parent: entry.path,
            name: entry.name,
            facts: entry.facts,
            beside: beside.and_then(|dir| stat(dir, entry.name).ok()),
        });
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
    let mut visit = Visit {
        base,
        beside: None,
        each,
    };
    walk(&top, root, "read", &mut visit)
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
