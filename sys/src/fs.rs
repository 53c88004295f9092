//! Files: durable writes, paths resolved inside a root, locks.
//!
//! Invariant: after [`write_atomic`] returns, a reader sees the old or the new content and never a
//! part, also after a power cut. A path that a user had a hand in is resolved with
//! [`resolve_in_root`] and used through the descriptor it returns.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fs::{FallocateFlags, Mode, OFlags, ResolveFlags};
use types::Result;

use crate::error::{at, op};

/// Opens `path` below `root` as if `root` were the root directory: `..` and absolute links stay
/// inside. The descriptor is an `O_PATH` one.
///
/// # Errors
/// The errno of `openat2`, with the path.
pub fn resolve_in_root(root: &Path, path: &Path) -> Result<OwnedFd> {
    let dir = open_dir(root)?;
    open_in_root(&dir, path, OFlags::PATH | OFlags::CLOEXEC, 0)
}

/// Opens `path` below the directory `root` with `flags`, never leaving `root`. Magic links are refused.
///
/// # Errors
/// The errno of `openat2`, with the path.
pub fn open_in_root(root: impl AsFd, path: &Path, flags: OFlags, mode: u32) -> Result<OwnedFd> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let name = if relative.as_os_str().is_empty() {
        Path::new(".")
    } else {
        relative
    };
    rustix::fs::openat2(
        root,
        name,
        flags | OFlags::CLOEXEC,
        Mode::from_raw_mode(mode),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )
    .map_err(|e| at("openat2", path, e))
}

/// The path by which this process reaches an open descriptor.
#[must_use]
pub fn fd_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

/// Opens a directory as an `O_PATH` descriptor.
///
/// # Errors
/// The errno of `open`, with the path.
pub fn open_dir(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(|e| at("open", path, e))
}

/// Opens whatever is at `path` as an `O_PATH` descriptor.
///
/// # Errors
/// The errno of `open`, with the path.
pub fn open_path(path: &Path) -> Result<OwnedFd> {
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| at("open", path, e))
}

/// Makes the entries of a directory durable.
///
/// # Errors
/// The errno of `open` or `fsync`, with the path.
pub fn fsync_dir(path: &Path) -> Result<()> {
    let dir = File::open(path).map_err(|e| at("open", path, e))?;
    dir.sync_all().map_err(|e| at("fsync", path, e))
}

/// Gives each of two directory entries the name of the other, in one step.
///
/// # Errors
/// The errno of `renameat2`, with the first path.
pub fn exchange(one: &Path, other: &Path) -> Result<()> {
    let flags = rustix::fs::RenameFlags::EXCHANGE;
    rustix::fs::renameat_with(rustix::fs::CWD, one, rustix::fs::CWD, other, flags)
        .map_err(|e| at("exchange", one, e))
}

/// Flushes the whole file system that holds `path`.
///
/// # Errors
/// The errno of `open` or `syncfs`, with the path.
pub fn syncfs(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(|e| at("open", path, e))?;
    rustix::fs::syncfs(&file).map_err(|e| at("syncfs", path, e))
}

/// Copies a file, if there is one.
///
/// # Errors
/// The errno of the copy, with the path.
pub fn copy_if_there(from: &Path, to: &Path) -> Result<()> {
    match std::fs::copy(from, to) {
        Ok(_) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound && !from.exists() => Ok(()),
        Err(e) => Err(at("copy", from, e)),
    }
}

/// Makes a file of `bytes` whose room on the disk is there, not only promised.
///
/// # Errors
/// The file exists or cannot be made; no room, or a file system that promises none (fallocate(2)).
pub fn make_room(path: &Path, bytes: u64) -> Result<()> {
    let made = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let file = made.map_err(|e| at("create", path, e))?;
    rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, bytes)
        .map_err(|e| at("allocate", path, e))
}

/// Bytes that the file system of `path` has left for this process.
///
/// # Errors
/// The errno of `statvfs`, with the path.
pub fn free_bytes(path: &Path) -> Result<u64> {
    let found = rustix::fs::statvfs(path).map_err(|e| at("statvfs", path, e))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// Whether [`write_atomic_with`] waits for the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flush {
    /// File and directory are flushed: survives a power cut.
    Durable,
    /// Atomic for readers and against a killed process only. For state on a tmpfs.
    Volatile,
}

/// Replaces `path` with `data`: temporary file, fsync, rename, fsync of the directory.
///
/// # Errors
/// The errno of the step that failed, with the path; the temporary file is gone then.
pub fn write_atomic(path: &Path, data: &[u8], mode: u32) -> Result<()> {
    write_atomic_with(path, data, mode, Flush::Durable)
}

/// [`write_atomic`] with a choice of durability.
///
/// # Errors
/// The errno of the step that failed, with the path; the temporary file is gone then.
pub fn write_atomic_with(path: &Path, data: &[u8], mode: u32, flush: Flush) -> Result<()> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
    let temporary = path.with_file_name(format!(".{name}.{}.{serial}", std::process::id()));
    let done = fill(&temporary, data, mode, flush)
        .and_then(|()| std::fs::rename(&temporary, path).map_err(|e| at("rename", path, e)));
    if done.is_err() {
        // The first failure is the one to tell; the temporary may not even exist.
        drop(std::fs::remove_file(&temporary));
        return done;
    }
    match (flush, path.parent()) {
        (Flush::Durable, Some(parent)) if !parent.as_os_str().is_empty() => fsync_dir(parent),
        (Flush::Durable, _) => fsync_dir(Path::new(".")),
        (Flush::Volatile, _) => Ok(()),
    }
}

fn fill(path: &Path, data: &[u8], mode: u32, flush: Flush) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(path)
        .map_err(|e| at("create", path, e))?;
    file.write_all(data).map_err(|e| at("write", path, e))?;
    match flush {
        Flush::Durable => file.sync_all().map_err(|e| at("fsync", path, e)),
        Flush::Volatile => Ok(()),
    }
}

/// A file in memory without a name; it goes with its last descriptor.
///
/// # Errors
/// The errno of `memfd_create`.
pub fn nameless(label: &str) -> Result<File> {
    let made = rustix::fs::memfd_create(label, rustix::fs::MemfdFlags::CLOEXEC);
    Ok(made.map_err(|e| op("memfd_create", e))?.into())
}

/// Waits until there is something to read, or its end, for no longer than `limit`; whether it came. Blocks.
///
/// # Errors
/// The errno of `poll`.
pub fn readable_within(fd: impl AsFd, limit: Duration) -> Result<bool> {
    let until = Instant::now() + limit;
    loop {
        let mut fds = [PollFd::new(&fd, PollFlags::IN)];
        let left = until.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: left.subsec_nanos().into(),
        };
        match rustix::event::poll(&mut fds, Some(&left)) {
            Ok(ready) => return Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(op("poll", error)),
        }
    }
}

/// Sets `O_NONBLOCK` on or off.
///
/// # Errors
/// The errno of `fcntl`.
pub fn set_nonblocking(fd: impl AsFd, on: bool) -> Result<()> {
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(|e| op("fcntl", e))?;
    let wanted = if on {
        flags | OFlags::NONBLOCK
    } else {
        flags - OFlags::NONBLOCK
    };
    if wanted == flags {
        return Ok(());
    }
    rustix::fs::fcntl_setfl(&fd, wanted).map_err(|e| op("fcntl", e))
}

/// Owner of an open file, by descriptor.
///
/// # Errors
/// The errno of `fchown`.
pub fn chown_fd(fd: impl AsFd, uid: u32, gid: u32) -> Result<()> {
    let uid = rustix::fs::Uid::from_raw(uid);
    let gid = rustix::fs::Gid::from_raw(gid);
    rustix::fs::fchown(fd, Some(uid), Some(gid)).map_err(|e| op("fchown", e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn atomic_write_replaces_and_leaves_no_temporary() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        write_atomic(&path, b"one", 0o600).unwrap();
        write_atomic_with(&path, b"two", 0o600, Flush::Volatile).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        std::fs::create_dir_all(path.join("sub")).unwrap();
        write_atomic(&path, b"x", 0o600).unwrap_err();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn what_is_free_is_some_of_what_there_is() {
        let dir = tempfile::tempdir().unwrap();
        let whole = rustix::fs::statvfs(dir.path()).unwrap();
        let free = free_bytes(dir.path()).unwrap();
        assert!(
            (1..=whole.f_blocks * whole.f_frsize).contains(&free),
            "{free}"
        );
        let error = free_bytes(&dir.path().join("absent")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }

    #[test]
    fn links_cannot_lead_out_of_the_root() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("etc")).unwrap();
        std::fs::write(root.join("etc/name"), "inside").unwrap();
        std::fs::write(dir.path().join("name"), "outside").unwrap();
        std::os::unix::fs::symlink("/etc", root.join("link")).unwrap();
        std::os::unix::fs::symlink("../../../name", root.join("up")).unwrap();
        let fd = resolve_in_root(&root, Path::new("/link/name")).unwrap();
        assert_eq!(std::fs::read_to_string(fd_path(&fd)).unwrap(), "inside");
        let error = resolve_in_root(&root, Path::new("up")).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
    }
}
