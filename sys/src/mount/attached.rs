//! Trees attached for a moment, for kernels that take no layer of an overlay that is not.
//!
//! ```text
//! /run/containerd-idmap/17/       locked by who made it, as long as it is needed
//!                          0/ 1/  one tree each
//! ```
//! Invariant: nobody but root can make or see anything there, and who comes next takes away what one
//! that was killed has left.

use std::io::ErrorKind;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags};
use types::{Error, Result};

use super::{attr, detach_all};
use crate::error::at;

/// Where they are: of the machine, as mounts are, and empty after a boot.
pub(super) const DIRECTORY: &str = "/run/containerd-idmap";
/// Bits that others may have on it: none.
const OTHERS: u32 = 0o077;

/// Trees attached in a directory of their own, as long as this is held.
#[derive(Debug)]
pub(super) struct Attached {
    directory: PathBuf,
    count: usize,
    /// Its lock goes with the process.
    _lock: OwnedFd,
}

impl Attached {
    /// Attaches the trees below `parent`, which is made when it is not there.
    ///
    /// # Errors
    /// `PermissionDenied` for a parent that is not root's alone; the errno, with the path.
    pub(super) fn new(trees: &[OwnedFd], parent: &Path) -> Result<Self> {
        own(parent)?;
        sweep(parent);
        let (directory, lock) = fresh(parent)?;
        let mut made = Self {
            directory,
            count: 0,
            _lock: lock,
        };
        for tree in trees {
            let point = made.point(made.count);
            make(&point).map_err(|e| at("mkdir", &point, e))?;
            made.count += 1;
            attr::attach(tree.as_fd(), &point)?;
        }
        Ok(made)
    }

    fn point(&self, number: usize) -> PathBuf {
        self.directory.join(number.to_string())
    }

    /// Where the trees are.
    pub(super) fn paths(&self) -> Vec<PathBuf> {
        (0..self.count).map(|number| self.point(number)).collect()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        clear(&self.directory);
    }
}

fn make(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new().mode(0o700).create(path)
}

/// Makes `parent`, and sees that it is this user's alone.
fn own(parent: &Path) -> Result<()> {
    match make(parent) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(at("mkdir", parent, e)),
        _ => {}
    }
    let facts = std::fs::symlink_metadata(parent).map_err(|e| at("stat", parent, e))?;
    let user = rustix::process::geteuid().as_raw();
    if facts.is_dir() && facts.uid() == user && facts.mode() & OTHERS == 0 {
        return Ok(());
    }
    Err(Error::permission_denied(format_args!(
        "{} must be a directory of user {user} alone",
        parent.display()
    )))
}

/// A directory that nobody else has, and its lock.
fn fresh(parent: &Path) -> Result<(PathBuf, OwnedFd)> {
    for number in 0_u32.. {
        let path = parent.join(number.to_string());
        match make(&path) {
            Ok(()) => {}
            Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
            Err(e) => return Err(at("mkdir", &path, e)),
        }
        // Who sweeps may have taken it for a leftover before it was locked.
        if let Some(lock) = lock(&path)
            && is_at(&lock, &path)
        {
            return Ok((path, lock));
        }
    }
    Err(Error::resource_exhausted(format_args!(
        "no free name in {}",
        parent.display()
    )))
}

/// The lock of a directory; none when somebody has it, or the directory is gone.
fn lock(path: &Path) -> Option<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let fd = rustix::fs::open(path, flags, Mode::empty()).ok()?;
    let exclusive = FlockOperation::NonBlockingLockExclusive;
    rustix::fs::flock(&fd, exclusive).ok().map(|()| fd)
}

fn is_at(fd: &OwnedFd, path: &Path) -> bool {
    let inode = |found: rustix::fs::Stat| (found.st_dev, found.st_ino);
    let open = rustix::fs::fstat(fd).map(inode);
    open.is_ok() && open == rustix::fs::stat(path).map(inode)
}

/// Takes away what nobody holds.
fn sweep(parent: &Path) {
    for left in std::fs::read_dir(parent).into_iter().flatten().flatten() {
        let path = left.path();
        if lock(&path).is_some_and(|lock| is_at(&lock, &path)) {
            clear(&path);
        }
    }
}

/// Detaches what is in a directory, and removes it.
fn clear(directory: &Path) {
    for point in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let point = point.path();
        let gone = detach_all(&point);
        // Never more than the empty directory: what is still mounted must survive.
        let removed = std::fs::remove_dir(&point);
        if gone.is_err() || removed.is_err() {
            tracing::warn!(path = %point.display(), "temporary mount left behind");
        }
    }
    if let Err(error) = std::fs::remove_dir(directory) {
        tracing::warn!(%error, path = %directory.display(), "temporary directory left behind");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::{overlay, unmount_all};
    use super::*;

    fn trees(dir: &Path) -> Vec<OwnedFd> {
        let tree = |name: &str| {
            let path = dir.join(name);
            std::fs::create_dir_all(&path).unwrap();
            std::fs::write(path.join(name), "").unwrap();
            attr::copy_tree(&path, false).unwrap()
        };
        ["one", "two"].map(tree).into()
    }

    #[test]
    fn an_overlay_of_attached_trees_outlives_them_and_they_leave_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("parent");
        let to = dir.path().join("to");
        std::fs::create_dir(&to).unwrap();
        let attached = Attached::new(&trees(dir.path()), &parent).unwrap();
        let paths = attached.paths();
        let lowers: Vec<_> = paths.iter().map(|p| p.display().to_string()).collect();
        let data = format!("lowerdir={}", lowers.join(":"));
        let flags = rustix::mount::MountFlags::empty();
        overlay::mount("overlay", &to, flags, &data).unwrap();
        drop(attached);
        assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 0);
        assert_eq!(std::fs::read_dir(&to).unwrap().count(), 2);
        unmount_all(&to).unwrap();
    }

    #[test]
    fn what_a_killed_one_left_goes_with_the_next_and_what_is_in_use_stays() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("parent");
        let used = Attached::new(&trees(dir.path()), &parent).unwrap();
        let left = parent.join("1/0");
        std::fs::create_dir_all(&left).unwrap();
        let tmpfs = types::Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..types::Mount::default()
        };
        super::super::mount(&tmpfs, &left).unwrap();
        // A name that is taken is no reason to fail.
        std::fs::create_dir(parent.join("2")).unwrap();
        let held = lock(&parent.join("2")).unwrap();
        let next = Attached::new(&trees(dir.path()), &parent).unwrap();
        // The leftover is gone, or its name would not be free; nobody's lock was broken.
        assert_eq!(next.directory, parent.join("1"));
        assert!(used.directory.exists() && parent.join("2").exists());
        for one in [&used, &next] {
            for (path, name) in one.paths().iter().zip(["one", "two"]) {
                assert!(path.join(name).exists(), "{}", path.display());
            }
        }
        // A child of another test may have a copy of the descriptor, and with it the lock.
        rustix::fs::flock(&held, FlockOperation::Unlock).unwrap();
        drop((used, next, held));
        sweep(&parent);
        assert_eq!(std::fs::read_dir(&parent).unwrap().count(), 0);
    }

    #[test]
    fn a_directory_that_others_may_use_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("parent");
        std::fs::create_dir(&parent).unwrap();
        for mode in [0o777, 0o750, 0o1777] {
            std::fs::set_permissions(&parent, PermissionsExt::from_mode(mode)).unwrap();
            let error = Attached::new(&[], &parent).unwrap_err();
            assert!(error.is(types::Code::PermissionDenied), "{error}");
        }
        std::fs::remove_dir(&parent).unwrap();
        std::os::unix::fs::symlink("/root", &parent).unwrap();
        Attached::new(&[], &parent).unwrap_err();
    }
}
