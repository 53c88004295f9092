//! Mounting and unmounting lists of [`Mount`].
//!
//! Invariant: [`mount_all`] performs all mounts of a list or none: on failure it detaches what it
//! made. A mount's sub path is resolved inside the target (a link planted there cannot lead out) and
//! mounted through a descriptor. Calls block; `unmount` may wait seconds for a busy file system.

mod attached;
mod attr;
mod bind;
mod fuse;
mod idmap;
pub mod info;
mod options;
mod overlay;
mod place;
mod temp;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use types::{Context as _, Error, Errors, Mount, Result};

pub use attr::Attributes;
use fuse::Helper;
pub use info::MountInfo;
pub use options::Options;
use options::REMOUNT;
use place::Place;
pub use temp::{TempMount, read_only, with_temp_mount};

use crate::error::{at, op};
use crate::fs::fd_path;
use crate::loopdev::{LoopDevice, LoopOpts};
use crate::userns;

/// How often and how far apart a busy unmount is tried again, as Go does.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Performs the mounts in order at `target`, which must exist.
///
/// # Errors
/// `InvalidArgument` or `NotImplemented` for a mount that cannot be performed as written, else the
/// errno with source and target. What was mounted before the failure is detached again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    let mut made = Vec::new();
    for mount in mounts {
        match perform(mount, target) {
            Ok(mount) => made.extend(mount),
            Err(error) => {
                for mount in made.iter().rev() {
                    // Best effort: the first failure is what the caller must hear of.
                    drop(detach_mount(mount));
                }
                return Err(error);
            }
        }
    }
    Ok(())
}

/// Performs one mount at `target` (or at its sub path [`Mount::target`]).
///
/// Types `fuse.X` and `fuse3.X` are left to FUSE's own helper, which starts the program `X`.
///
/// # Errors
/// As for [`mount_all`].
pub fn mount(mount: &Mount, target: &Path) -> Result<()> {
    perform(mount, target).map(drop)
}

/// Performs one mount and returns it; `None` when it only changed one.
fn perform(mount: &Mount, target: &Path) -> Result<Option<OwnedFd>> {
    let perform = || {
        let place = Place::find(target, Path::new(&mount.target))?;
        let Some(helper) = Helper::of(&mount.kind) else {
            return at_place(mount, &Options::parse(&mount.options)?, &place);
        };
        helper.mount(mount, place.path())?;
        place.made().map(Some)
    };
    perform().ctx_with(|| format!("failed to mount {} on {}", mount.source, target.display()))
}

fn at_place(mount: &Mount, options: &Options, place: &Place<'_>) -> Result<Option<OwnedFd>> {
    if options.flags.contains(REMOUNT) {
        return remount(mount, options, place.path()).map(|()| None);
    }
    let ids = options.ids.as_ref();
    let user = ids.map(|(users, groups)| userns::create(users, groups));
    let user = user.transpose()?;
    if options.flags.contains(MountFlags::BIND) {
        return bind::mount(&mount.source, place, options, user.as_ref()).map(Some);
    }
    let kind = mount.kind.as_str();
    let at = place.path();
    let made = if kind == "overlay" {
        match &user {
            Some(user) => idmap::mount_overlay(&mount.source, at, options, user)?,
            None => overlay::mount(&mount.source, at, options.flags, &options.data)?,
        }
        place.made()?
    } else {
        // Held until the file system is: the device goes with its last user.
        let device = loop_device(mount, options)?;
        let source = device.as_ref().map(LoopDevice::path);
        let source = source.unwrap_or(Path::new(&mount.source));
        if let Some(user) = &user {
            idmap::mount(source, place, kind, options, user)?
        } else {
            call(source, at, kind, options.flags, &options.data)?;
            place.made()?
        }
    };
    let finish = || -> Result<()> {
        if !options.tree.is_empty() {
            attr::change(&made, options.tree, true)?;
        }
        if !options.propagation.is_empty() {
            attr::propagate(&made, options.propagation)?;
        }
        Ok(())
    };
    finish().inspect_err(|_| drop(detach_mount(&made)))?;
    Ok(Some(made))
}

fn loop_device(mount: &Mount, options: &Options) -> Result<Option<LoopDevice>> {
    if !options.is_loop {
        return Ok(None);
    }
    let opts = LoopOpts {
        read_only: options.flags.contains(MountFlags::RDONLY),
        autoclear: true,
        direct_io: options.direct_io,
    };
    LoopDevice::attach(Path::new(&mount.source), opts).map(Some)
}

/// Changes the mount at `target`.
fn remount(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    let silent = REMOUNT | MountFlags::BIND | MountFlags::REC;
    // Parity: with nothing to change, a remount does nothing.
    if !options.data.is_empty() || !(options.flags - silent).is_empty() {
        let source = Path::new(&mount.source);
        call(source, target, &mount.kind, options.flags, &options.data)?;
    }
    if options.tree.is_empty() && options.propagation.is_empty() {
        return Ok(());
    }
    let at = crate::fs::open_path(target)?;
    if !options.tree.is_empty() {
        attr::change(&at, options.tree, true)?;
    }
    if !options.propagation.is_empty() {
        attr::propagate(&at, options.propagation)?;
    }
    Ok(())
}

/// The bare system call; flags may carry the remount bit.
fn call(source: &Path, target: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<()> {
    let data = c_string(data)?;
    let data: Option<&CStr> = (!data.is_empty()).then_some(&data);
    rustix::mount::mount(source, target, kind, flags, data).map_err(|e| op("mount", e))
}

fn c_string(text: &str) -> Result<CString> {
    CString::new(text).map_err(|_| Error::invalid_argument("mount option contains a NUL byte"))
}

/// Makes the mount at `target` private, slave or shared.
///
/// # Errors
/// The errno, with the path.
pub fn set_propagation(target: &Path, flags: MountPropagationFlags) -> Result<()> {
    rustix::mount::mount_change(target, flags).map_err(|e| at("set propagation of", target, e))
}

/// Unmounts the top mount at `target`; waits while it is busy. Nothing mounted there is no error. One of
/// FUSE is left to its helper first.
///
/// # Errors
/// The errno, with the path: `EBUSY` after 2.5 s.
pub fn unmount(target: &Path) -> Result<()> {
    if fuse::unmount(target, &fuse::UNMOUNTERS) {
        return Ok(());
    }
    for _ in 0..BUSY_RETRIES {
        match unmount_once(target, UnmountFlags::empty()) {
            Err(rustix::io::Errno::BUSY) => pause(),
            Err(e) => return Err(at("unmount", target, e)),
            Ok(_) => return Ok(()),
        }
    }
    Err(at("unmount", target, rustix::io::Errno::BUSY))
}

/// Takes the top mount at `target` out of the tree at once; the kernel drops it with its last user.
/// Nothing mounted there is no error.
///
/// # Errors
/// The errno, with the path.
pub fn detach(target: &Path) -> Result<()> {
    unmount_once(target, UnmountFlags::DETACH).map_err(|e| at("unmount", target, e))?;
    Ok(())
}

/// Takes the mount whose root `mount` is out of the tree at once: that one and no other, whatever is
/// mounted over it, and whether or not a path leads there.
///
/// # Errors
/// The errno.
pub(crate) fn detach_mount(mount: impl AsFd) -> Result<()> {
    // The link of a descriptor leads to the mount itself; not followed, it is a link of procfs.
    rustix::mount::unmount(fd_path(&mount), UnmountFlags::DETACH).map_err(|e| op("unmount", e))
}

/// [`detach`] that leaves the file system in use by the descriptor returned: the kernel writes it back
/// and drops it when that is closed, at a moment of the caller's choice. `None` without a mount there.
///
/// # Errors
/// The errno, with the path.
pub fn detach_keeping(target: &Path) -> Result<Option<OwnedFd>> {
    let kept = match crate::fs::open_dir(target) {
        Ok(kept) => kept,
        Err(e) if e.errno() == Some(libc::ENOENT) => return Ok(None),
        Err(e) => return Err(e),
    };
    let mounted =
        unmount_once(target, UnmountFlags::DETACH).map_err(|e| at("unmount", target, e))?;
    Ok(mounted.then_some(kept))
}

/// True for what lies on an overlay.
#[must_use]
pub fn is_overlay(fd: impl AsFd) -> bool {
    const MAGIC: u64 = 0x794c_7630;
    rustix::fs::fstatfs(fd).is_ok_and(|found| u64::try_from(found.f_type) == Ok(MAGIC))
}

/// Unmounts everything stacked at `target`, each as [`unmount`] does.
///
/// # Errors
/// The errno, with the path.
pub fn unmount_all(target: &Path) -> Result<()> {
    fuse::unmount_all(target, &fuse::UNMOUNTERS);
    // The kernel has the rest, and tells the end.
    repeat(target, UnmountFlags::empty())
}

/// Detaches everything stacked at `target` at once.
///
/// # Errors
/// The errno, with the path.
pub fn detach_all(target: &Path) -> Result<()> {
    repeat(target, UnmountFlags::DETACH)
}

fn repeat(target: &Path, flags: UnmountFlags) -> Result<()> {
    let mut busy = 0;
    loop {
        match unmount_once(target, flags) {
            Ok(true) => {}
            Ok(false) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if busy < BUSY_RETRIES => {
                busy += 1;
                pause();
            }
            Err(e) => return Err(at("unmount", target, e)),
        }
    }
}

/// Detaches every mount at and below `target`, deepest first, going on past failures.
///
/// # Errors
/// All failures, the class of the first.
pub fn unmount_recursive(target: &Path) -> Result<()> {
    let real = match target.canonicalize() {
        Ok(real) => real,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(at("resolve", target, e)),
    };
    let mut points: Vec<PathBuf> = info::load()?
        .into_iter()
        .map(|mount| mount.mount_point)
        .filter(|point| point.starts_with(&real))
        .collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.components().count()));
    let mut errors = Errors::default();
    for point in points {
        errors.note(detach(&point));
    }
    errors.into_result()
}

/// `Ok(false)` when nothing is mounted there.
fn unmount_once(target: &Path, flags: UnmountFlags) -> rustix::io::Result<bool> {
    match rustix::mount::unmount(target, flags | UnmountFlags::NOFOLLOW) {
        Ok(()) => Ok(true),
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(false),
        Err(e) => Err(e),
    }
}

fn pause() {
    std::thread::sleep(BUSY_PAUSE);
}

/// True when `path` is the top of a mount.
///
/// # Errors
/// The errno of `statx`, with the path.
pub fn is_mount_point(path: &Path) -> Result<bool> {
    use rustix::fs::{AtFlags, StatxAttributes, StatxFlags};
    let dir = rustix::fs::CWD;
    let stat = rustix::fs::statx(
        dir.as_fd(),
        path,
        // The kernel knows; a server of the file system need not be there.
        AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC,
        StatxFlags::empty(),
    )
    .map_err(|e| at("statx", path, e))?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests;
