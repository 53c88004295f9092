//! What a process does to itself: its threads, its group, its descriptors, its environment.
//!
//! Invariant: what is only safe for a process with one thread counts its threads first.

use std::os::fd::{AsFd, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::path::Path;

use types::{Error, Result};

use crate::error::{at, last, op};

/// How many threads this process has.
///
/// # Errors
/// The errno of reading `/proc`.
pub fn threads() -> Result<usize> {
    let tasks = Path::new("/proc/self/task");
    let entries = std::fs::read_dir(tasks).map_err(|e| at("read", tasks, e))?;
    Ok(entries.count())
}

/// Which side of [`fork`] this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fork {
    /// The caller; the new process has this pid.
    Parent(u32),
    /// The new process.
    Child,
}

/// Splits a process that has one thread in two, without `exec`.
///
/// # Errors
/// `FailedPrecondition` when there is more than one thread (the child could inherit a held lock),
/// else the errno of `fork`.
pub fn fork() -> Result<Fork> {
    let threads = threads()?;
    if threads != 1 {
        return Err(Error::failed_precondition(format_args!(
            "fork with {threads} threads"
        )));
    }
    // SAFETY: this is the only thread (counted above, and only it could start another), so no lock of
    // the allocator or of the standard library is held by a thread that the child would lack.
    match unsafe { libc::fork() } {
        0 => Ok(Fork::Child),
        pid if pid > 0 => Ok(Fork::Parent(pid.cast_unsigned())),
        _ => Err(last("fork")),
    }
}

/// Leaves the caller's process group, and with it the reach of its terminal's keys.
///
/// Not its session: the kernel schedules each session as one unit against all others
/// (sched(7), autogroup), and a session that has just begun waits longest on a busy machine.
///
/// # Errors
/// The errno of `setpgid`.
pub fn new_group() -> Result<()> {
    rustix::process::setpgid(None, None).map_err(|e| op("setpgid", e))
}

/// Gives the caller's process group a core of its own: what is not of the group (or born of it) never
/// runs on the other threads of that core at the same time.
///
/// # Errors
/// The errno of `prctl`: `EINVAL` without core scheduling in the kernel, `ENODEV` without such cores.
pub fn share_no_core() -> Result<()> {
    /// `PIDTYPE_PGID` of the kernel (prctl(2), `PR_SCHED_CORE`).
    const GROUP: libc::c_ulong = 2;
    // SAFETY: the one pointer that this command can take is null; it is not used for making a cookie.
    let made = unsafe { libc::prctl(libc::PR_SCHED_CORE, libc::PR_SCHED_CORE_CREATE, 0, GROUP, 0) };
    if made != 0 {
        return Err(last("prctl"));
    }
    Ok(())
}

/// Puts `fd` under the number `target` in this process, as shells redirect.
///
/// # Errors
/// The errno of `dup2`.
pub fn redirect(fd: impl AsFd, target: RawFd) -> Result<()> {
    // SAFETY: dup2 acts on descriptor numbers only; the caller says that `target` is no descriptor
    // that another owner closes (a standard one, by contract of this function's uses).
    if unsafe { libc::dup2(fd.as_fd().as_raw_fd(), target) } < 0 {
        return Err(last("dup2"));
    }
    Ok(())
}

/// Closes every descriptor from `first` on. For the start of a program, before anything is opened.
///
/// # Errors
/// The errno of `close_range`.
pub fn close_from(first: u32) -> Result<()> {
    // SAFETY: called before any object owns a descriptor at or above `first` (contract above), so no
    // owner is left with a number that means something else.
    if unsafe { libc::close_range(first, libc::c_uint::MAX, 0) } != 0 {
        return Err(last("close_range"));
    }
    Ok(())
}

/// Takes variables out of this process's environment, so that no child inherits them. For the start of
/// a program, before it has a second thread.
///
/// # Errors
/// `FailedPrecondition` when there is a second thread, which could be reading the environment.
pub fn forget_env(names: &[&str]) -> Result<()> {
    let threads = threads()?;
    if threads != 1 {
        return Err(Error::failed_precondition(format_args!(
            "environment changed with {threads} threads"
        )));
    }
    for name in names {
        // SAFETY: this is the only thread (counted above): nobody reads the environment meanwhile.
        unsafe { std::env::remove_var(name) };
    }
    Ok(())
}

/// Takes over a descriptor that this process was started with, by number.
///
/// # Errors
/// The errno of `fcntl`: `EBADF` when there is none.
pub fn inherited_fd(number: RawFd) -> Result<OwnedFd> {
    // SAFETY: acts on a descriptor number only; fails when it is not open.
    if unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
        return Err(last("fcntl"));
    }
    // SAFETY: it is open, and by this function's contract it came with the process: nobody owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
