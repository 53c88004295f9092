//! Directories of the daemon, and the locks that keep a second daemon out of them.

use std::fs::{self, File, Permissions, TryLockError};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use types::{Error, Result};

/// Mode of the root: nobody else's business.
pub(crate) const ROOT_MODE: u32 = 0o700;
/// Mode of the state: shims with user namespaces must pass through.
pub(crate) const STATE_MODE: u32 = 0o711;

/// A directory of ours. The kernel gives it up when the process ends, however it ends.
#[derive(Debug)]
pub(crate) struct Lock {
    _held: File,
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
        match handle.try_lock() {
            Ok(()) => Ok(Self { _held: handle }),
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
