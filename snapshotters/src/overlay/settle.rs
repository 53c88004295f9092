//! A layer that was unpacked without knowing what lies below gets its place.
//!
//! What the unpacker could not decide it has marked: every deletion became a whiteout, also of what the
//! layers below do not have, and a directory that only the names of others imply got plain attributes.
//!
//! Invariant: afterwards the layer is what unpacking on top of its parents would have made, durably, and
//! only then its mark is gone. Settling twice is settling once: a crash in between costs nothing. No link
//! is followed.

use std::ops::ControlFlow;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, StatFs, Uid};
use rustix::io::Errno;
use types::{IMPLIED_DIRECTORY, Result, UNSETTLED_LAYER};

use crate::copy;
use crate::tree::{self, Relative, at, join, open_deep};

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

/// A directory still to be looked at.
struct Left {
    path: Relative,
    /// Nothing below shows in it.
    hides: bool,
}

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
    let done = own(&top, &lowers).and_then(|()| match has(&top, UNSETTLED_LAYER) {
        true => walk(&top, &lowers),
        false => Ok(()),
    });
    done.map_err(|e| at("settle", upper, e))
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

fn walk(top: &OwnedFd, lowers: &[OwnedFd]) -> Result<(), Errno> {
    let mut left = vec![Left {
        path: Vec::new(),
        hides: false,
    }];
    while let Some(Left { path, hides }) = left.pop() {
        let dir = open_deep(top, &path)?;
        let hides = hides || has(&dir, OPAQUE);
        let facts = rustix::fs::fstat(&dir)?;
        let mut changed = false;
        tree::list(dir.as_fd(), |listed| {
            let name = listed.name;
            let entry = tree::stat(&dir, name)?;
            let below = join(&path, name);
            if FileType::from_raw_mode(entry.st_mode) == FileType::Directory {
                left.push(Left { path: below, hides });
            } else if is_whiteout(&entry) && (hides || find(lowers, &below)?.is_none()) {
                // Where nothing is to be hidden, a listing would show the whiteout itself.
                rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
                changed = true;
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if changed {
            rustix::fs::futimens(&dir, &copy::times(&facts))?;
        }
        if has(&dir, IMPLIED_DIRECTORY) {
            // Parity: archive/tar.go: parents are made like those below, hidden or not.
            if let Some(source) = directory(lowers, &path)? {
                imitate(source.as_fd(), dir.as_fd())?;
            }
            rustix::fs::fremovexattr(&dir, IMPLIED_DIRECTORY)?;
        }
    }
    rustix::fs::fremovexattr(top, UNSETTLED_LAYER)
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
