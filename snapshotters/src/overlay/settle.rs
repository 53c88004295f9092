//! A layer that was unpacked without knowing what lies below gets its place.
//!
//! What the unpacker could not decide it has marked: every deletion became a whiteout, also of what the
//! layers below do not have, and a directory that only the names of others imply got plain attributes.
//!
//! Invariant: afterwards the layer is what unpacking on top of its parents would have made, durably, and
//! only then its mark is gone. Settling twice is settling once: a crash in between costs nothing. No link
//! is followed.

use std::ffi::CStr;
use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, StatFs, Timestamps, Uid};
use rustix::io::Errno;
use types::{IMPLIED_DIRECTORY, Result, UNSETTLED_LAYER};

use crate::copy;
use crate::tree::{self, Entry, Failure, Visitor, at, join, open_deep};

const DIRECTORY: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);
/// What overlayfs takes for "nothing below shows in this directory".
const OPAQUE: &str = "trusted.overlay.opaque";

/// Numbers of file systems, as statfs(2) has them.
const EXT: u64 = 0xef53;
const XFS: u64 = 0x5846_5342;
const TMPFS: u64 = 0x0102_1994;

/// Settles the layer at `upper` onto `parents`, top first; not yet [`flush`]ed.
///
/// # Errors
/// I/O.
pub(crate) fn settle(upper: &Path, parents: &[PathBuf]) -> Result<()> {
    let open = |path: &PathBuf| {
        rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(|e| at("open", path, e))
    };
    let top = open(&upper.to_owned())?;
    let lowers = parents.iter().map(open).collect::<Result<Vec<_>>>()?;
    let fail = |e| at("settle", upper, e);
    own(&top, &lowers).map_err(fail)?;
    if !has(&top, UNSETTLED_LAYER) {
        return Ok(());
    }
    let mut settling = Settling {
        top: &top,
        lowers: &lowers,
    };
    tree::walk(&top, upper, "settle", &mut settling)?;
    rustix::fs::fremovexattr(&top, UNSETTLED_LAYER).map_err(fail)
}

/// True for a layer that was never settled, or not to the end.
pub(crate) fn is_unsettled(upper: &Path) -> bool {
    let top = rustix::fs::open(upper, DIRECTORY, Mode::empty());
    top.is_ok_and(|top| has(top, UNSETTLED_LAYER))
}

/// Makes durable what was changed: the last change was that of the layer's root, and these file systems
/// keep changes of names, owners and attributes in order. Others are flushed whole. Always: an earlier
/// call may have been cut off before it came to this.
///
/// # Errors
/// I/O.
pub(crate) fn flush(upper: &Path) -> Result<()> {
    let synced =
        rustix::fs::open(upper, DIRECTORY, Mode::empty()).and_then(|top| {
            match is_in_order(&rustix::fs::fstatfs(&top)?) {
                true => rustix::fs::fsync(&top),
                false => rustix::fs::syncfs(&top),
            }
        });
    synced.map_err(|e| at("flush", upper, e))
}

/// True on file systems that keep what happened to directories in order: a flush of one thing takes along
/// whatever had happened before.
fn is_in_order(facts: &StatFs) -> bool {
    const IN_ORDER: [u64; 3] = [EXT, XFS, TMPFS];
    u64::try_from(facts.f_type).is_ok_and(|kind| IN_ORDER.contains(&kind))
}

/// The same, of the one that `path` is on; false when that cannot be told.
pub(super) fn flushes_in_order(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|facts| is_in_order(&facts))
}

/// The layer's root belongs to whom the parent's belongs.
fn own(top: &OwnedFd, lowers: &[OwnedFd]) -> Result<(), Errno> {
    let Some(parent) = lowers.first() else {
        return Ok(());
    };
    let facts = rustix::fs::fstat(parent)?;
    let (uid, gid) = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
    rustix::fs::fchown(top, Some(uid), Some(gid))
}

/// A layer being settled.
struct Settling<'a> {
    top: &'a OwnedFd,
    lowers: &'a [OwnedFd],
}

/// What is to be done with a directory when what is below it is done.
struct Left {
    /// Nothing below shows in it.
    hides: bool,
    /// It has whiteouts of nothing.
    is_stale: bool,
    /// Only the names of others imply it.
    is_implied: bool,
    times: Timestamps,
}

impl Settling<'_> {
    /// Where nothing is to be hidden, a listing would show the whiteout itself.
    fn is_stale(&self, hides: bool, path: &[u8], name: &CStr, facts: &Stat) -> Result<bool, Errno> {
        Ok(is_whiteout(facts) && (hides || find(self.lowers, &join(path, name))?.is_none()))
    }

    fn settle(&self, left: &Left, path: &[u8]) -> Result<(), Errno> {
        let dir = open_deep(self.top, path)?;
        if left.is_stale {
            tree::list(dir.as_fd(), |listed| {
                let facts = tree::stat(&dir, listed.name)?;
                if self.is_stale(left.hides, path, listed.name, &facts)? {
                    rustix::fs::unlinkat(&dir, listed.name, AtFlags::empty())?;
                }
                Ok(ControlFlow::Continue(()))
            })?;
            rustix::fs::futimens(&dir, &left.times)?;
        }
        if left.is_implied {
            // Parity: archive/tar.go: parents are made like those below, hidden or not.
            if let Some(source) = directory(self.lowers, path)? {
                imitate(source.as_fd(), dir.as_fd())?;
            }
            rustix::fs::fremovexattr(&dir, IMPLIED_DIRECTORY)?;
        }
        Ok(())
    }
}

impl Visitor for Settling<'_> {
    type Kept = Left;

    fn enter(
        &mut self,
        dir: BorrowedFd<'_>,
        _path: &[u8],
        above: Option<&Left>,
    ) -> Result<Left, Failure> {
        Ok(Left {
            hides: above.is_some_and(|above| above.hides) || has(dir, OPAQUE),
            is_stale: false,
            is_implied: has(dir, IMPLIED_DIRECTORY),
            times: copy::times(&rustix::fs::fstat(dir)?),
        })
    }

    fn entry(&mut self, of: &mut Left, entry: Entry<'_>) -> Result<(), Failure> {
        // To be taken away later: the list of its directory goes on.
        of.is_stale =
            of.is_stale || self.is_stale(of.hides, entry.path, entry.name, entry.facts)?;
        Ok(())
    }

    fn leave(&mut self, left: Left, path: &[u8]) -> Result<(), Failure> {
        if left.is_stale || left.is_implied {
            self.settle(&left, path)?;
        }
        Ok(())
    }
}

/// Gives a directory what another one has.
fn imitate(source: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    let facts = rustix::fs::fstat(source)?;
    let (uid, gid) = (Uid::from_raw(facts.st_uid), Gid::from_raw(facts.st_gid));
    rustix::fs::fchown(to, Some(uid), Some(gid))?;
    // Marks of overlayfs are each layer's own.
    let wanted =
        |name: &[u8]| !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.");
    copy::xattrs((source, c"."), (to, c"."), wanted)?;
    rustix::fs::fchmod(to, copy::permissions(&facts))?;
    rustix::fs::futimens(to, &copy::times(&facts))
}

fn has(dir: impl AsFd, attribute: &str) -> bool {
    let mut value = [0_u8; 4];
    rustix::fs::fgetxattr(dir, attribute, &mut value[..]).is_ok_and(|len| value[..len] == *b"y")
}

fn is_whiteout(facts: &Stat) -> bool {
    FileType::from_raw_mode(facts.st_mode) == FileType::CharacterDevice && facts.st_rdev == 0
}

/// The directory that the layers show at `path`.
fn directory(lowers: &[OwnedFd], path: &[u8]) -> Result<Option<OwnedFd>, Errno> {
    let Some((parent, facts)) = find(lowers, path)? else {
        return Ok(None);
    };
    if FileType::from_raw_mode(facts.st_mode) != FileType::Directory {
        return Ok(None);
    }
    let name = path.rsplit(|b| *b == b'/').next().unwrap_or(path);
    rustix::fs::openat(&parent, name, DIRECTORY, Mode::empty()).map(Some)
}

/// What the layers together show at `path`: its directory and its facts.
fn find(lowers: &[OwnedFd], path: &[u8]) -> Result<Option<(OwnedFd, Stat)>, Errno> {
    let parts: Vec<&[u8]> = path.split(|b| *b == b'/').collect();
    for layer in lowers {
        let mut dir = rustix::fs::openat(layer, c".", DIRECTORY, Mode::empty())?;
        let mut hides = false;
        for (n, part) in parts.iter().enumerate() {
            let facts = match rustix::fs::statat(&dir, *part, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(facts) => facts,
                Err(Errno::NOENT) => break,
                Err(e) => return Err(e),
            };
            if is_whiteout(&facts) {
                return Ok(None);
            }
            if n + 1 == parts.len() {
                return Ok(Some((dir, facts)));
            }
            if FileType::from_raw_mode(facts.st_mode) != FileType::Directory {
                return Ok(None);
            }
            dir = rustix::fs::openat(&dir, *part, DIRECTORY, Mode::empty())?;
            hides |= has(&dir, OPAQUE);
        }
        if hides {
            return Ok(None);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use rustix::fs::{CWD, XattrFlags};

    use super::*;

    fn whiteout(path: &Path) {
        let kind = FileType::CharacterDevice;
        rustix::fs::mknodat(CWD, path, kind, Mode::empty(), 0).unwrap();
    }

    fn mark(path: &Path, attribute: &str) {
        rustix::fs::setxattr(path, attribute, b"y", XattrFlags::empty()).unwrap();
    }

    #[test]
    fn a_layer_is_settled_however_wide_and_deep_it_is() {
        let temp = tempfile::tempdir().unwrap();
        let [upper, lower] = ["upper", "lower"].map(|name| temp.path().join(name));
        // More than is remembered at a time, side by side and below each other.
        let deep = vec!["d"; 300].join("/");
        let wide: Vec<_> = (0..200).map(|n| format!("wide/{n}")).collect();
        let all: Vec<_> = wide.iter().chain([&deep]).collect();
        for path in &all {
            let (here, below) = (upper.join(path), lower.join(path));
            for dir in [&here, &below] {
                std::fs::create_dir_all(dir).unwrap();
            }
            std::fs::set_permissions(&below, std::fs::Permissions::from_mode(0o1712)).unwrap();
            std::fs::write(below.join("hidden"), "").unwrap();
            whiteout(&here.join("hidden"));
            whiteout(&here.join("stale"));
            mark(&here, IMPLIED_DIRECTORY);
        }
        let opaque = upper.join("wide/7");
        mark(&opaque, OPAQUE);
        mark(&upper, UNSETTLED_LAYER);
        for _ in 0..2 {
            settle(&upper, std::slice::from_ref(&lower)).unwrap();
            assert!(!is_unsettled(&upper));
            for path in &all {
                let here = upper.join(path);
                let hides = here.join("hidden").symlink_metadata().is_ok();
                assert_eq!(hides, here != opaque, "{path}");
                assert!(here.join("stale").symlink_metadata().is_err(), "{path}");
                let mode = std::fs::metadata(&here).unwrap().mode();
                assert_eq!(mode & 0o7777, 0o1712, "{path}");
                assert!(!has(sys::fs::open_dir(&here).unwrap(), IMPLIED_DIRECTORY));
            }
        }
    }
}
