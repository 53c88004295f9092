//! Mounting and unmounting lists of [`Mount`].
//!
//! Invariant: [`mount_all`] performs all mounts of a list or none: on failure it detaches what it
//! made. A mount's sub path is resolved inside the target (a link planted there cannot lead out) and
//! mounted through a descriptor. Calls block; `unmount` may wait seconds for a busy file system.

pub mod info;
mod options;
mod overlay;
mod temp;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};
use types::{Context as _, Error, Errors, Mount, Result};

pub use info::MountInfo;
pub use options::Options;
use options::REMOUNT;
pub use temp::{TempMount, read_only, with_temp_mount};

use crate::error::{at, op};
use crate::fs::{fd_path, resolve_in_root};

/// How often and how far apart a busy unmount is tried again, as Go does.
const BUSY_RETRIES: u32 = 50;
const BUSY_PAUSE: Duration = Duration::from_millis(50);

/// Performs the mounts in order at `target`, which must exist.
///
/// # Errors
/// `InvalidArgument` or `NotImplemented` for a mount that cannot be performed as written, else the
/// errno with source and target. What was mounted before the failure is detached again.
pub fn mount_all(mounts: &[Mount], target: &Path) -> Result<()> {
    for (done, mount) in mounts.iter().enumerate() {
        if let Err(error) = self::mount(mount, target) {
            for _ in 0..done {
                // Best effort: the first failure is what the caller must hear of.
                drop(detach(target));
            }
            return Err(error);
        }
    }
    Ok(())
}

/// Performs one mount at `target` (or at its sub path [`Mount::target`]).
///
/// # Errors
/// As for [`mount_all`].
pub fn mount(mount: &Mount, target: &Path) -> Result<()> {
    let options = Options::parse(&mount.options)?;
    if mount.kind.starts_with("fuse.") || mount.kind.starts_with("fuse3.") {
        return Err(Error::not_implemented(format_args!(
            "mount type {}",
            mount.kind
        )));
    }
    let place = if mount.target.is_empty() {
        None
    } else {
        Some(resolve_in_root(target, Path::new(&mount.target))?)
    };
    let at = place.as_ref().map_or_else(|| target.to_owned(), fd_path);
    perform(mount, &options, &at)
        .ctx_with(|| format!("failed to mount {} on {}", mount.source, target.display()))
}

fn perform(mount: &Mount, options: &Options, target: &Path) -> Result<()> {
    // A remount without data only changes flags, which the last step does.
    if !options.flags.contains(REMOUNT) || !options.data.is_empty() {
        if mount.kind == "overlay" && options.data.len() >= overlay::data_limit() {
            overlay::mount_compact(&mount.source, target, options)?;
        } else {
            call(
                &mount.source,
                target,
                &mount.kind,
                options.flags,
                &options.data,
            )?;
        }
    }
    let finish = || -> Result<()> {
        if !options.propagation.is_empty() {
            rustix::mount::mount_change(target, options.propagation)
                .map_err(|e| at("set propagation of", target, e))?;
        }
        // A bind mount takes its flags only from a second call.
        let read_only_bind = MountFlags::BIND | MountFlags::RDONLY;
        if options.flags.contains(read_only_bind) {
            call("", target, "", options.flags | REMOUNT, "")?;
        }
        Ok(())
    };
    finish().inspect_err(|_| drop(detach(target)))
}

/// The bare system call; flags may carry the remount bit.
fn call(source: &str, target: &Path, kind: &str, flags: MountFlags, data: &str) -> Result<()> {
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

/// Unmounts the top mount at `target`; waits while it is busy. Nothing mounted there is no error.
///
/// # Errors
/// The errno, with the path: `EBUSY` after 2.5 s.
pub fn unmount(target: &Path) -> Result<()> {
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

/// Unmounts everything stacked at `target`.
///
/// # Errors
/// The errno, with the path.
pub fn unmount_all(target: &Path) -> Result<()> {
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
        AtFlags::NO_AUTOMOUNT,
        StatxFlags::empty(),
    )
    .map_err(|e| at("statx", path, e))?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bind(source: &Path, options: &[&str]) -> Mount {
        Mount {
            kind: "bind".into(),
            source: source.display().to_string(),
            target: String::new(),
            options: options.iter().map(|&o| o.to_owned()).collect(),
        }
    }

    #[test]
    fn a_read_only_bind_refuses_writes_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(&to).unwrap();
        mount_all(&[bind(&from, &["rbind", "ro"])], &to).unwrap();
        assert!(is_mount_point(&to).unwrap());
        let refused = std::fs::write(to.join("x"), "").unwrap_err();
        assert_eq!(refused.raw_os_error(), Some(libc::EROFS));
        unmount_all(&to).unwrap();
        assert!(!is_mount_point(&to).unwrap());
        unmount(&to).unwrap();
    }

    #[test]
    fn an_overlay_is_told_from_what_it_lies_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["one", "two", "to"] {
            std::fs::create_dir(path(name)).unwrap();
        }
        let (one, two) = (path("one"), path("two"));
        let overlay = Mount {
            kind: "overlay".into(),
            source: "overlay".into(),
            options: vec![format!("lowerdir={}:{}", one.display(), two.display())],
            ..Mount::default()
        };
        let open = |name: &str| crate::fs::open_dir(&path(name)).unwrap();
        let tmpfs = Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..Mount::default()
        };
        mount_all(&[overlay], &path("to")).unwrap();
        assert!(is_overlay(open("to")));
        unmount_all(&path("to")).unwrap();
        mount_all(&[tmpfs], &path("to")).unwrap();
        assert!(!is_overlay(open("to")));
        unmount_all(&path("to")).unwrap();
    }

    #[test]
    fn a_failed_list_leaves_nothing_mounted() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        std::fs::create_dir_all(&from).unwrap();
        std::fs::create_dir_all(&to).unwrap();
        let missing = dir.path().join("missing");
        let error =
            mount_all(&[bind(&from, &["bind"]), bind(&missing, &["bind"])], &to).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOENT));
        assert!(error.to_string().contains("missing"), "{error}");
        assert!(!is_mount_point(&to).unwrap());
    }

    #[test]
    fn a_sub_path_cannot_leave_the_target() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to, out) = (
            dir.path().join("from"),
            dir.path().join("to"),
            dir.path().join("out"),
        );
        for path in [&from, &to, &out, &to.join("in")] {
            std::fs::create_dir_all(path).unwrap();
        }
        std::os::unix::fs::symlink(&out, to.join("link")).unwrap();
        let mut escape = bind(&from, &["bind"]);
        escape.target = "link".into();
        mount_all(&[escape], &to).unwrap_err();
        assert!(!is_mount_point(&out).unwrap());
        let mut inside = bind(&from, &["bind"]);
        inside.target = "/in".into();
        mount_all(&[inside], &to).unwrap();
        assert!(is_mount_point(&to.join("in")).unwrap());
        unmount_recursive(&to).unwrap();
        assert!(!is_mount_point(&to.join("in")).unwrap());
    }

    #[test]
    fn stacked_mounts_all_go() {
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("to");
        std::fs::create_dir_all(&to).unwrap();
        let tmpfs = Mount {
            kind: "tmpfs".into(),
            source: "tmpfs".into(),
            ..Mount::default()
        };
        mount_all(&[tmpfs.clone(), tmpfs], &to).unwrap();
        unmount_recursive(&to).unwrap();
        assert!(!is_mount_point(&to).unwrap());
    }
}
