//! Directories of the daemon, and the locks that keep a second daemon out of them.

use std::cell::Cell;
use std::fs::{self, File, Permissions, TryLockError};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use types::{Error, Result};

use crate::config::Config;

/// Mode of the root: nobody else's business.
pub(crate) const ROOT_MODE: u32 = 0o700;
/// Mode of the state: shims with user namespaces must pass through.
pub(crate) const STATE_MODE: u32 = 0o711;

/// A directory of ours. The kernel gives it up when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    held: Option<File>,
    /// The one that it came from may go on with it: not to be unlocked, only closed.
    is_shared: Cell<bool>,
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Not by closing alone: a child between its fork and its exec has the descriptor, too.
        if let Some(held) = &self.held
            && !self.is_shared.get()
            && let Err(error) = held.unlock()
        {
            tracing::debug!(%error, "cannot unlock");
        }
    }
}

/// The locks of a daemon.
#[derive(Debug)]
pub(crate) struct Locks {
    root: Lock,
    state: Lock,
}

impl Locks {
    /// Makes both directories and locks them.
    ///
    /// # Errors
    /// As [`Lock::take`].
    pub(crate) fn take(config: &Config) -> Result<Self> {
        Ok(Self {
            root: Lock::take(&config.root, ROOT_MODE)?,
            state: Lock::take(&config.state, STATE_MODE)?,
        })
    }

    /// Takes over those of another process, which were never open in between.
    ///
    /// # Errors
    /// As [`Lock::hold`].
    pub(crate) fn adopt(config: &Config, root: OwnedFd, state: OwnedFd) -> Result<Self> {
        Ok(Self {
            root: Lock::adopt(&config.root, root.into())?,
            state: Lock::adopt(&config.state, state.into())?,
        })
    }

    /// Whoever they came from does not go on with them.
    pub(crate) fn own(&self) {
        self.root.is_shared.set(false);
        self.state.is_shared.set(false);
    }

    /// Their descriptors, to be passed on.
    pub(crate) fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let locks = [&self.root, &self.state].into_iter();
        locks.filter_map(|lock| lock.held.as_ref().map(AsFd::as_fd))
    }

    /// Leaves them to whoever they were passed to.
    pub(crate) fn leave(mut self) {
        self.root.held = None;
        self.state.held = None;
    }
}

impl Lock {
    /// Makes the directory when it is missing, and locks it.
    ///
    /// # Errors
    /// `FailedPrecondition` while another daemon has it; the errno when it cannot be made.
    pub(crate) fn take(directory: &Path, mode: u32) -> Result<Self> {
        create(directory, mode)?;
        Self::hold(directory)
    }

    /// Locks a directory that is there, and changes nothing about it.
    ///
    /// # Errors
    /// `FailedPrecondition` while another daemon has it; the errno.
    pub(crate) fn hold(directory: &Path) -> Result<Self> {
        let at = |what, e| Error::os(format_args!("{what} {}", directory.display()), e);
        let handle = File::open(directory).map_err(|e| at("open", e))?;
        Self::locked(directory, handle, false)
    }

    /// Takes over a lock that came as a descriptor.
    fn adopt(directory: &Path, handle: File) -> Result<Self> {
        // By way of a shared lock, which nobody else gets past: the kernel keeps who took the lock last,
        // and tells it to whoever wants to know who holds it.
        if let Err(error) = handle.try_lock_shared() {
            tracing::debug!(%error, "the lock still has the name of the old daemon");
        }
        Self::locked(directory, handle, true)
    }

    fn locked(directory: &Path, handle: File, is_shared: bool) -> Result<Self> {
        let at = |what, e| Error::os(format_args!("{what} {}", directory.display()), e);
        match handle.try_lock() {
            Ok(()) => Ok(Self {
                held: Some(handle),
                is_shared: Cell::new(is_shared),
            }),
            Err(TryLockError::WouldBlock) => Err(Error::failed_precondition(format_args!(
                "{} is in use by another containerd{}",
                directory.display(),
                sys::lock::holder(&handle)
            ))),
            Err(TryLockError::Error(error)) => Err(at("lock", error)),
        }
    }
}

/// Makes a directory with its parents and gives it `mode`.
///
/// # Errors
/// The errno.
pub(crate) fn create(directory: &Path, mode: u32) -> Result<()> {
    let at = |what, e| Error::os(format_args!("{what} {}", directory.display()), e);
    fs::create_dir_all(directory).map_err(|e| at("mkdir", e))?;
    fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(|e| at("chmod", e))
}

#[cfg(test)]
mod tests {
    use types::Code;

    use super::*;

    #[test]
    fn a_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        let first = Lock::take(&root, ROOT_MODE).unwrap();
        assert_eq!(
            fs::metadata(&root).unwrap().permissions().mode() & 0o777,
            ROOT_MODE
        );
        let error = Lock::take(&root, ROOT_MODE).unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            error.to_string().contains(&format!(
                "is in use by another containerd, process {} (",
                std::process::id()
            )),
            "{error}"
        );
        drop(first);
        Lock::take(&root, ROOT_MODE).unwrap();
    }

    #[test]
    fn a_lock_that_was_passed_stays_with_the_old_daemon_until_the_new_one_serves() {
        let dir = tempfile::tempdir().unwrap();
        let old = Lock::take(dir.path(), ROOT_MODE).unwrap();
        let passed = || old.held.as_ref().unwrap().try_clone().unwrap();
        // One that fails before it serves.
        drop(Lock::adopt(dir.path(), passed()).unwrap());
        Lock::take(dir.path(), ROOT_MODE).unwrap_err();
        let new = Lock::adopt(dir.path(), passed()).unwrap();
        new.is_shared.set(false);
        drop(new);
        Lock::take(dir.path(), ROOT_MODE).unwrap();
    }

    #[test]
    fn a_place_where_no_directory_can_be_is_a_plain_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let said = Lock::take(&file.join("root"), ROOT_MODE)
            .unwrap_err()
            .to_string();
        assert!(
            said.starts_with("mkdir ") && said.ends_with("not a directory"),
            "{said}"
        );
    }
}
