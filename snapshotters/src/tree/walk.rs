//! A walk through a tree of any size and any depth.
//!
//! Invariant: what is remembered of a tree is the way to where the walk is, and some of the subdirectories
//! beside it. One that has more of them than that is kept open, so that its list goes on where it was,
//! whatever was done to what it shows: an overlay lists in another order when it is opened anew. Where so
//! deep that descriptors would run out, all subdirectories are remembered, up to a ceiling.

use std::ffi::{CStr, CString};
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, SeekFrom, Stat};
use rustix::io::Errno;
use types::{Error, Result};

use super::{Listed, Relative, at, list, open_deep, stat};

/// Subdirectories of one directory that are remembered at a time.
const SOME: usize = 64;
/// Levels that may be kept open: several walks at a time are to leave descriptors to others.
const OPEN: usize = 32;
/// Bytes of the names of all subdirectories that are remembered of deeper levels: a million of them.
const NAMES: usize = 64 << 20;
/// What a remembered name takes besides its bytes.
const EACH: usize = 32;

/// Why a walk ended.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A call failed.
    Call(Errno),
    /// With what there is to say.
    Said(Error),
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Call(errno)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self::Said(error)
    }
}

/// An entry of a directory.
pub(crate) struct Entry<'a> {
    /// The directory.
    pub(crate) dir: BorrowedFd<'a>,
    /// Its path.
    pub(crate) path: &'a [u8],
    pub(crate) name: &'a CStr,
    pub(crate) facts: &'a Stat,
}

/// What is done on a walk. A directory's own calls come one after another: it is entered, its entries are
/// shown, and then it is listed; what is below it follows, and then it is left.
pub(crate) trait Visitor {
    /// What is kept of a directory until it is left.
    type Kept;
    /// Somebody may be at work in the tree: what is gone when its turn comes is passed over.
    const IS_LIVE: bool = false;

    /// `above` is what is kept of the directory that it is in. The root has an empty path.
    fn enter(
        &mut self,
        dir: BorrowedFd<'_>,
        path: &[u8],
        above: Option<&Self::Kept>,
    ) -> Result<Self::Kept, Failure>;

    /// Must not remove it: its directory is being read.
    fn entry(&mut self, of: &mut Self::Kept, entry: Entry<'_>) -> Result<(), Failure>;

    fn listed(&mut self, _dir: BorrowedFd<'_>) -> Result<(), Failure> {
        Ok(())
    }

    fn leave(&mut self, _kept: Self::Kept, _path: &[u8]) -> Result<(), Failure> {
        Ok(())
    }
}

/// Walks through the directory `top` and all below it, depth first. `root` and `call` are for messages.
///
/// # Errors
/// The first of a call or of the visitor's, with its path; `ResourceExhausted` beyond what is remembered.
pub(crate) fn walk<V: Visitor>(
    top: &OwnedFd,
    root: &Path,
    call: &str,
    visitor: &mut V,
) -> Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let mut path = Relative::new();
    let mut walk = Walk {
        top,
        visitor,
        names: 0,
    };
    walk.run(&mut path).map_err(|failure| match failure {
        Failure::Call(errno) => at(call, &root.join(std::ffi::OsStr::from_bytes(&path)), errno),
        Failure::Said(error) => error.ctx(format!("{call} {}", root.display())),
    })
}

/// A directory on the way to where a walk is.
struct Level<K> {
    /// Length of its path.
    len: usize,
    kept: K,
    /// Subdirectories to go to.
    some: Vec<CString>,
    /// Most of them.
    most: usize,
    /// Where the list goes on behind those.
    next: u64,
    /// There are more of them.
    has_more: bool,
    /// The directory, when it has more.
    dir: Option<OwnedFd>,
}

impl<K> Level<K> {
    /// Remembers a subdirectory, or that there is one more.
    fn add(&mut self, entry: &Listed<'_>) {
        if self.some.len() >= self.most {
            self.has_more = true;
        } else if !self.has_more {
            self.some.push(entry.name.to_owned());
            self.next = entry.next;
        }
    }

    /// Goes on with the list of its directory.
    fn refill(&mut self, dir: OwnedFd, is_live: bool) -> Result<(), Errno> {
        self.has_more = false;
        rustix::fs::seek(&dir, SeekFrom::Start(self.next))?;
        list(dir.as_fd(), |entry| {
            if unless_gone(is_live, entry.is_directory(dir.as_fd()))? == Some(true) {
                self.add(&entry);
            }
            Ok(match self.has_more {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        self.dir = Some(dir).filter(|_| self.has_more);
        Ok(())
    }
}

/// What a call says; nothing when somebody has removed or replaced the entry meanwhile, who may.
fn unless_gone<T>(is_live: bool, done: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match done {
        Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) if is_live => Ok(None),
        done => done.map(Some),
    }
}

struct Walk<'a, V> {
    top: &'a OwnedFd,
    visitor: &'a mut V,
    /// Bytes of names that are remembered of deep levels.
    names: usize,
}

impl<V: Visitor> Walk<'_, V> {
    /// Leaves in `path` where it ended.
    fn run(&mut self, path: &mut Relative) -> Result<(), Failure> {
        let mut way: Vec<_> = self.enter(path, None, 0)?.into_iter().collect();
        while let Some(level) = way.last_mut() {
            path.truncate(level.len);
            if let Some(name) = level.some.pop() {
                if level.most > SOME {
                    self.names = self.names.saturating_sub(name.count_bytes() + EACH);
                }
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend_from_slice(name.to_bytes());
                let depth = way.len();
                let below = self.enter(path, way.last().map(|level| &level.kept), depth)?;
                way.extend(below);
            } else if let Some(dir) = level.dir.take() {
                level.refill(dir, V::IS_LIVE)?;
            } else if let Some(level) = way.pop() {
                self.visitor.leave(level.kept, path)?;
            }
        }
        Ok(())
    }

    /// Shows the entries of one directory.
    fn enter(
        &mut self,
        path: &[u8],
        above: Option<&V::Kept>,
        depth: usize,
    ) -> Result<Option<Level<V::Kept>>, Failure> {
        let Some(dir) = unless_gone(V::IS_LIVE, open_deep(self.top, path))? else {
            return Ok(None);
        };
        let mut level = Level {
            len: path.len(),
            kept: self.visitor.enter(dir.as_fd(), path, above)?,
            some: Vec::new(),
            most: if depth < OPEN { SOME } else { usize::MAX },
            next: 0,
            has_more: false,
            dir: None,
        };
        let mut failure = None;
        list(dir.as_fd(), |listed| {
            Ok(match self.show(&mut level, dir.as_fd(), path, &listed) {
                Ok(()) => ControlFlow::Continue(()),
                Err(why) => {
                    failure = Some(why);
                    ControlFlow::Break(())
                }
            })
        })?;
        if let Some(why) = failure {
            return Err(why);
        }
        self.visitor.listed(dir.as_fd())?;
        level.dir = Some(dir).filter(|_| level.has_more);
        Ok(Some(level))
    }

    fn show(
        &mut self,
        level: &mut Level<V::Kept>,
        dir: BorrowedFd<'_>,
        path: &[u8],
        listed: &Listed<'_>,
    ) -> Result<(), Failure> {
        let name = listed.name;
        let Some(facts) = unless_gone(V::IS_LIVE, stat(dir, name))? else {
            return Ok(());
        };
        if FileType::from_raw_mode(facts.st_mode) == FileType::Directory {
            level.add(listed);
            if level.most > SOME {
                self.names += name.count_bytes() + EACH;
            }
            if self.names > NAMES {
                return Err(Failure::Said(Error::resource_exhausted(format_args!(
                    "subdirectories more than {OPEN} levels deep have names of more than {NAMES} bytes"
                ))));
            }
        }
        let facts = &facts;
        let entry = Entry {
            dir,
            path,
            name,
            facts,
        };
        self.visitor.entry(&mut level.kept, entry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rustix::fs::Mode;

    use super::super::DIRECTORY;
    use super::*;

    /// Notes what it sees, and in which order directories are entered and left.
    #[derive(Default)]
    struct Noting {
        seen: BTreeSet<Vec<u8>>,
        inside: Vec<Vec<u8>>,
    }

    impl Visitor for Noting {
        type Kept = Vec<u8>;

        fn enter(
            &mut self,
            _: BorrowedFd<'_>,
            path: &[u8],
            above: Option<&Vec<u8>>,
        ) -> Result<Vec<u8>, Failure> {
            assert_eq!(above, self.inside.last());
            self.inside.push(path.to_vec());
            Ok(path.to_vec())
        }

        fn entry(&mut self, of: &mut Vec<u8>, entry: Entry<'_>) -> Result<(), Failure> {
            assert_eq!(of, entry.path);
            assert!(self.seen.insert(super::super::join(entry.path, entry.name)));
            Ok(())
        }

        fn leave(&mut self, kept: Vec<u8>, path: &[u8]) -> Result<(), Failure> {
            assert_eq!((Some(&kept), &kept[..]), (self.inside.pop().as_ref(), path));
            Ok(())
        }
    }

    fn open(path: &Path) -> OwnedFd {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).unwrap()
    }

    #[test]
    fn a_walk_remembers_a_part_of_a_directory_and_sees_all_of_it() {
        let temp = tempfile::tempdir().unwrap();
        for n in 0..300 {
            std::fs::create_dir_all(temp.path().join(format!("many/{n}/inner"))).unwrap();
            std::fs::write(temp.path().join(format!("many/{n}/inner/file")), "").unwrap();
        }
        let top = open(temp.path());
        let mut noting = Noting::default();
        walk(&top, temp.path(), "walk", &mut noting).unwrap();
        assert_eq!(noting.seen.len(), 1 + 3 * 300);
        assert!(noting.inside.is_empty());
        let mut noting = Noting::default();
        let mut walk = Walk {
            top: &top,
            visitor: &mut noting,
            names: 0,
        };
        let level = walk.enter(b"many", None, 1).unwrap().unwrap();
        assert!(level.dir.is_some() && level.some.len() == SOME);
        assert_eq!(walk.names, 0);
        assert_eq!(noting.seen.len(), 300);
    }

    /// A chain of directories, of which the last ones lie beside many others.
    fn deep(root: &Path, steps: usize, wide: usize, beside: usize) {
        let mut dir = open(root);
        for step in 0..steps {
            let count = if step + wide < steps { 1 } else { beside };
            for n in 0..count {
                rustix::fs::mkdirat(&dir, format!("{n}"), Mode::RWXU).unwrap();
            }
            dir = rustix::fs::openat(&dir, "0", DIRECTORY, Mode::empty()).unwrap();
        }
    }

    #[test]
    fn a_tree_deeper_than_what_is_kept_open_is_seen_as_a_whole() {
        let temp = tempfile::tempdir().unwrap();
        let (steps, wide, beside) = (OPEN + 10, 20, SOME + 6);
        deep(temp.path(), steps, wide, beside);
        let top = open(temp.path());
        let mut noting = Noting::default();
        walk(&top, temp.path(), "walk", &mut noting).unwrap();
        assert_eq!(noting.seen.len(), steps - wide + wide * beside);
        let at = vec!["0"; steps - 1].join("/");
        for (depth, remembered) in [(OPEN - 1, SOME), (OPEN, beside)] {
            let mut noting = Noting::default();
            let mut walk = Walk {
                top: &top,
                visitor: &mut noting,
                names: 0,
            };
            let level = walk.enter(at.as_bytes(), None, depth).unwrap().unwrap();
            assert_eq!(level.some.len(), remembered);
            assert_eq!(level.dir.is_some(), depth < OPEN);
            assert_eq!(walk.names > 0, depth == OPEN);
        }
    }

    #[test]
    fn what_is_remembered_of_deep_levels_has_a_ceiling() {
        let temp = tempfile::tempdir().unwrap();
        deep(temp.path(), 2, 2, 2);
        let top = open(temp.path());
        let mut noting = [Noting::default(), Noting::default()];
        let mut enter = |depth| {
            let mut walk = Walk {
                top: &top,
                visitor: &mut noting[depth + 1 - OPEN],
                names: NAMES - 2 * EACH,
            };
            walk.enter(b"", None, depth).map(drop)
        };
        // Levels above are not counted.
        enter(OPEN - 1).unwrap();
        let error = enter(OPEN).unwrap_err();
        assert!(matches!(error, Failure::Said(_)), "{error:?}");
    }
}
