//! Errors of system calls: operation, path, errno. Only this crate makes them.

use std::io;
use std::path::Path;

use types::Error;

/// `operation path: errno text`.
pub(crate) fn at(operation: &str, path: &Path, error: impl Into<io::Error>) -> Error {
    Error::os(format_args!("{operation} {}", path.display()), error.into())
}

/// `operation: errno text`.
pub(crate) fn op(operation: &str, error: impl Into<io::Error>) -> Error {
    Error::os(operation, error.into())
}

/// `operation: errno text` for the errno of the libc call that just failed.
pub(crate) fn last(operation: &str) -> Error {
    Error::os(operation, io::Error::last_os_error())
}
