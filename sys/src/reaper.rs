//! Reaping in a process that adopts orphans.
//!
//! A container's init and its execs are made by the runtime, which ends; the kernel then gives them
//! to the nearest subreaper. Their pids become known only when the runtime's call is over, and they
//! may have ended by then.
//!
//! Invariant: no exit of a process that is or will be claimed is lost. Known children are reaped by
//! their pidfd. Children that nobody claimed are reaped only while no [`Reaper::hold`] is out, so
//! that during a runtime call an early exit stays a zombie, whose pid cannot be used again and can
//! still be claimed.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};

use types::Result;

use crate::error::{last, op};
use crate::pidfd;
use crate::process::{Child, Status};

/// Makes this process the parent of its orphaned descendants.
///
/// # Errors
/// The errno of `prctl`.
pub fn become_subreaper() -> Result<()> {
    let me = rustix::process::getpid();
    rustix::process::set_child_subreaper(Some(me)).map_err(|e| op("prctl", e))
}

/// What the reaper knows.
#[derive(Debug, Default)]
pub struct Reaper {
    claimed: HashMap<u32, OwnedFd>,
    holds: usize,
}

impl Reaper {
    /// Claims a process by pid: its end will be told by [`Reaper::reap`]. To be called under a hold
    /// that was taken before the process was made.
    ///
    /// # Errors
    /// `NotFound` when there is no such process, not even its zombie.
    pub fn claim(&mut self, pid: u32) -> Result<()> {
        let fd = pidfd::open(pid)?;
        self.claimed.insert(pid, fd);
        Ok(())
    }

    /// Claims a child that was just spawned.
    pub fn adopt(&mut self, child: Child) {
        self.claimed.insert(child.pid(), child.into_pidfd());
    }

    /// The pidfd of a claimed process that has not been told as ended.
    #[must_use]
    pub fn pidfd(&self, pid: u32) -> Option<BorrowedFd<'_>> {
        self.claimed.get(&pid).map(AsFd::as_fd)
    }

    /// From here to [`Reaper::release`] unknown children are left alone.
    pub fn hold(&mut self) {
        self.holds += 1;
    }

    /// Ends one hold. Call [`Reaper::reap`] after it: unknown children may be waiting.
    pub fn release(&mut self) {
        self.holds = self.holds.saturating_sub(1);
    }

    /// True while a hold is out.
    #[must_use]
    pub fn is_held(&self) -> bool {
        self.holds > 0
    }

    /// Reaps what has ended and returns the ends of claimed processes. Never blocks. To be called
    /// on SIGCHLD, after a claim and after a release.
    pub fn reap(&mut self) -> Vec<(u32, Status)> {
        let mut ended = Vec::new();
        loop {
            self.reap_claimed(&mut ended);
            if self.holds > 0 || !self.reap_unknown() {
                return ended;
            }
        }
    }

    fn reap_claimed(&mut self, ended: &mut Vec<(u32, Status)>) {
        self.claimed.retain(|pid, fd| match pidfd::try_wait(&*fd) {
            Ok(Some(status)) => {
                ended.push((*pid, status));
                false
            }
            // Claimed, but its parent (the runtime) lives yet: it becomes ours when that ends.
            Err(e) if e.errno() == Some(libc::ECHILD) => {
                pidfd::is_alive(&*fd).unwrap_or(true) || {
                    ended.push((*pid, LOST));
                    false
                }
            }
            Ok(None) | Err(_) => true,
        });
    }

    /// True when a claimed process ended meanwhile and the round must be repeated.
    fn reap_unknown(&self) -> bool {
        let peek = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
        while let Ok(Some((pid, _))) = wait_for(Which::Any, peek) {
            if self.claimed.contains_key(&pid) {
                return true;
            }
            // A failure cannot be acted on; the zombie would come up again at the next round.
            if wait_for(Which::Pid(pid), libc::WEXITED | libc::WNOHANG).is_err() {
                return false;
            }
        }
        false
    }
}

/// Told when somebody else reaped a claimed process: containerd's "nobody can tell" code.
const LOST: Status = Status::Exited(255);

/// Whom to wait for.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    Any,
    Pid(u32),
    Fd(BorrowedFd<'a>),
}

/// `waitid`; `None` when nothing has ended (with `WNOHANG`), or nothing is left to wait for (`Any`).
pub(crate) fn wait_for(which: Which<'_>, options: i32) -> Result<Option<(u32, Status)>> {
    let (kind, id) = match which {
        Which::Any => (libc::P_ALL, 0),
        Which::Pid(pid) => (libc::P_PID, pid),
        Which::Fd(fd) => (libc::P_PIDFD, fd.as_raw_fd().cast_unsigned()),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    loop {
        // SAFETY: `info` is writable and large enough for what the kernel stores.
        let done = unsafe { libc::waitid(kind, id, info.as_mut_ptr(), options) };
        if done == 0 {
            break;
        }
        let error = std::io::Error::last_os_error();
        match (error.raw_os_error(), which) {
            (Some(libc::EINTR), _) => {}
            (Some(libc::ECHILD), Which::Any) => return Ok(None),
            _ => return Err(last("waitid")),
        }
    }
    // SAFETY: all-zero is a valid siginfo_t, and the kernel has overwritten it if anything ended.
    let info = unsafe { info.assume_init() };
    // SAFETY: after waitid this field of the union is the one in use (zero when nothing ended).
    let pid = unsafe { info.si_pid() };
    if pid == 0 {
        return Ok(None);
    }
    // SAFETY: as above.
    let value = unsafe { info.si_status() };
    // The kernel gives codes of 8 bits and signals below 65.
    let value = u8::try_from(value & 0xff).unwrap_or(u8::MAX);
    let status = if info.si_code == libc::CLD_EXITED {
        Status::Exited(value)
    } else {
        Status::Signaled(value)
    };
    Ok(Some((pid.cast_unsigned(), status)))
}

#[cfg(test)]
mod tests;
