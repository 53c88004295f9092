//! Descriptors in the event loop.

use std::os::fd::AsRawFd;

use tokio::io::unix::AsyncFd;
use types::{Error, Result};

/// Watches an owned descriptor for readiness.
///
/// # Errors
/// The errno: some files cannot be watched.
#[expect(
    deprecated,
    reason = "its successor is unsafe for types that lie about their descriptor; ours own theirs"
)]
pub(crate) fn watch<T: AsRawFd>(fd: T) -> Result<AsyncFd<T>> {
    AsyncFd::new(fd).map_err(|e| Error::os("watch descriptor", e))
}
