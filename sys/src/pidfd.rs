//! Processes by descriptor: a pidfd means one process for ever, a pid does not.

use std::os::fd::{AsFd, AsRawFd as _, OwnedFd};
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags};
use types::{Error, Result};

use crate::error::op;
use crate::process::Status;
use crate::reaper::{Which, wait_for};

/// Opens the process that has this pid now. Its zombie counts as the process.
///
/// # Errors
/// `NotFound` when there is none, else the errno.
pub fn open(pid: u32) -> Result<OwnedFd> {
    let wanted = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or_else(|| Error::invalid_argument(format_args!("pid {pid}")))?;
    rustix::process::pidfd_open(wanted, PidfdFlags::empty()).map_err(|e| match e {
        rustix::io::Errno::SRCH => Error::not_found(format_args!("process {pid}")),
        e => op("pidfd_open", e),
    })
}

/// Sends a signal.
///
/// # Errors
/// `InvalidArgument` for a number that is no signal, else the errno (`ESRCH` when it has ended).
pub fn send_signal(pidfd: impl AsFd, signal: i32) -> Result<()> {
    // SAFETY: no memory is passed (siginfo is null: the kernel fills it as kill does).
    let sent = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_fd().as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(crate::error::last("pidfd_send_signal"))
    }
}

/// Waits for a child's end and reaps it. Blocks.
///
/// # Errors
/// The errno of `waitid`: `ECHILD` when it is no child of this process.
pub fn wait(pidfd: impl AsFd) -> Result<Status> {
    loop {
        let found = wait_for(Which::Fd(pidfd.as_fd()), libc::WEXITED)?;
        if let Some((_, status)) = found {
            return Ok(status);
        }
    }
}

/// Reaps a child when it has ended.
///
/// # Errors
/// The errno of `waitid`: `ECHILD` when it is no child of this process.
pub fn try_wait(pidfd: impl AsFd) -> Result<Option<Status>> {
    let found = wait_for(Which::Fd(pidfd.as_fd()), libc::WEXITED | libc::WNOHANG)?;
    Ok(found.map(|(_, status)| status))
}

/// How a child has ended, when it has; it is not reaped, so its pid stays its own.
///
/// # Errors
/// The errno of `waitid`: `ECHILD` when it is no child of this process.
pub fn peek(pidfd: impl AsFd) -> Result<Option<Status>> {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    let found = wait_for(Which::Fd(pidfd.as_fd()), options)?;
    Ok(found.map(|(_, status)| status))
}

/// True while the process has not ended. Works for any process, child or not.
///
/// # Errors
/// The errno of `poll`.
pub fn is_alive(pidfd: impl AsFd) -> Result<bool> {
    ends_within(pidfd, Duration::ZERO).map(|ended| !ended)
}

/// Waits for the end of any process, child or not, for no longer than `limit`; whether it came. Blocks.
///
/// # Errors
/// The errno of `poll`.
pub fn ends_within(pidfd: impl AsFd, limit: Duration) -> Result<bool> {
    crate::fs::readable_within(pidfd, limit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::Spawn;

    #[test]
    fn a_process_is_alive_until_it_is_not() {
        let child = Spawn::new("sleep").arg("60").spawn().unwrap();
        let pidfd = open(child.pid()).unwrap();
        assert!(is_alive(&pidfd).unwrap());
        assert!(!ends_within(&pidfd, Duration::from_millis(5)).unwrap());
        assert_eq!(try_wait(&pidfd).unwrap(), None);
        send_signal(&pidfd, libc::SIGTERM).unwrap();
        assert_eq!(wait(&pidfd).unwrap(), Status::Signaled(15));
        assert!(!is_alive(&pidfd).unwrap());
        assert!(ends_within(&pidfd, Duration::from_secs(60)).unwrap());
        assert_eq!(
            send_signal(&pidfd, libc::SIGTERM).unwrap_err().errno(),
            Some(libc::ESRCH)
        );
        assert!(open(child.pid()).unwrap_err().is_not_found());
    }

    #[test]
    fn impossible_pids_are_refused() {
        for pid in [0, u32::MAX] {
            assert!(open(pid).unwrap_err().is(types::Code::InvalidArgument));
        }
    }
}
